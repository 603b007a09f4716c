//! What a peer's certificate says of itself, before anybody vouches for it.

use meshca_core::SpiffeId;
use rustls_pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, SubjectAltName};

use super::refusal::{PeerRefusal, PeerRule};

/// How much of a foreign name is repeated in a message.
const SHOWN: usize = 128;

/// A certificate of a peer. Nothing in here is proven.
pub(super) struct Svid(Certificate);

impl Svid {
    pub(super) fn read(der: &CertificateDer<'_>) -> Result<Self, PeerRefusal> {
        Certificate::from_der(der).map(Self).map_err(|error| {
            PeerRefusal::new(
                PeerRule::Encoding,
                format!("the peer sent what is not an X.509 certificate: {error}"),
            )
        })
    }

    /// Its one SPIFFE ID (SPIFFE X.509-SVID §2). A second URI of any kind makes it void: one reader would take the first for the
    /// peer's name and another the second.
    pub(super) fn spiffe_id(&self) -> Result<SpiffeId, PeerRefusal> {
        let refuse = |why: String| PeerRefusal::new(PeerRule::SpiffeId, why);
        let names = self
            .0
            .tbs_certificate()
            .get_extension::<SubjectAltName>()
            .map_err(|error| {
                refuse(format!(
                    "the subject alternative names of the peer's certificate are damaged: {error}"
                ))
            })?;
        let names = names.map(|(_, names)| names.0).unwrap_or_default();
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str()),
            _ => None,
        });
        match (uris.next(), uris.count()) {
            (None, _) => Err(refuse(
                "the peer's certificate has no URI name, so no SPIFFE ID".to_owned(),
            )),
            (Some(uri), 0) => spiffe_id(uri).map_err(refuse),
            (Some(_), more) => Err(refuse(format!(
                "the peer's certificate has {} URI names, where an X.509-SVID has one (X.509-SVID §2)",
                more.saturating_add(1)
            ))),
        }
    }

    /// A CA must not pass for a workload (SPIFFE X.509-SVID §5.2), and whoever signs a handshake must be allowed to (RFC 8446 §4.4.2.2).
    pub(super) fn check_leaf(&self) -> Result<(), PeerRefusal> {
        let refuse = |why: &str| {
            Err(PeerRefusal::new(
                PeerRule::NotALeaf,
                format!("the peer's certificate {why}"),
            ))
        };
        let tbs = self.0.tbs_certificate();
        match tbs.get_extension::<BasicConstraints>() {
            Ok(Some((_, constraints))) if constraints.ca => {
                return refuse("is a CA's, which no workload may show (X.509-SVID §5.2)");
            }
            Ok(_) => {}
            Err(_) => return refuse("has a damaged BasicConstraints extension"),
        }
        match self.key_usage() {
            Ok(Some(usage)) if usage.key_cert_sign() || usage.crl_sign() => {
                refuse("may sign certificates or CRLs, which no workload may (X.509-SVID §5.2)")
            }
            Ok(Some(usage)) if !usage.digital_signature() => {
                refuse("lacks the key usage `digitalSignature` (X.509-SVID §4.3)")
            }
            Ok(_) => Ok(()),
            Err(_) => refuse("has a damaged KeyUsage extension"),
        }
    }

    /// What webpki leaves out and Envoy, Go and OpenSSL look at (RFC 5280 §6.1.4 (n)).
    pub(super) fn check_ca(&self) -> Result<(), String> {
        match self.key_usage() {
            Ok(Some(usage)) if !usage.key_cert_sign() => Err(format!(
                "`{}` may not sign certificates (its key usage lacks `keyCertSign`)",
                self.subject()
            )),
            Ok(_) => Ok(()),
            Err(_) => Err(format!(
                "`{}` has a damaged KeyUsage extension",
                self.subject()
            )),
        }
    }

    pub(super) fn path_len(&self) -> Option<u8> {
        let constraints = self
            .0
            .tbs_certificate()
            .get_extension::<BasicConstraints>()
            .ok()??;
        constraints.1.path_len_constraint
    }

    /// Self-issued certificates do not count against a path length (RFC 5280 §6.1.4 (l)).
    pub(super) fn is_self_issued(&self) -> bool {
        let tbs = self.0.tbs_certificate();
        tbs.subject() == tbs.issuer()
    }

    pub(super) fn subject(&self) -> String {
        self.0.tbs_certificate().subject().to_string()
    }

    pub(super) fn issuer(&self) -> String {
        self.0.tbs_certificate().issuer().to_string()
    }

    pub(super) fn extended_key_usage(
        &self,
    ) -> Result<Option<x509_cert::ext::pkix::ExtendedKeyUsage>, x509_cert::der::Error> {
        let found = self.0.tbs_certificate().get_extension()?;
        Ok(found.map(|(_, value)| value))
    }

    fn key_usage(&self) -> Result<Option<KeyUsage>, x509_cert::der::Error> {
        let found = self.0.tbs_certificate().get_extension::<KeyUsage>()?;
        Ok(found.map(|(_, value)| value))
    }
}

/// A workload's SPIFFE ID, to the letter: the parser would make upper case lower case, and two spellings would be one peer here
/// and two elsewhere.
fn spiffe_id(uri: &str) -> Result<SpiffeId, String> {
    let shown: String = uri.escape_debug().take(SHOWN).collect();
    let id = SpiffeId::new(uri).map_err(|error| {
        format!("the URI name of the peer's certificate, `{shown}`, is not a SPIFFE ID: {error}")
    })?;
    if id.to_string() != uri {
        return Err(format!(
            "the URI name of the peer's certificate, `{shown}`, is not a SPIFFE ID as it must be written: `{id}`"
        ));
    }
    if id.path().is_empty() {
        return Err(format!(
            "the SPIFFE ID of the peer's certificate, `{shown}`, has no path, so it is no workload's (X.509-SVID §3.1)"
        ));
    }
    Ok(id)
}
