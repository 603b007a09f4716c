//! What a record says.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};

use der::{Decode as _, Encode as _};
use meshca_core::{CertificateRequest, Error, Profile, Result, SignedChain};
use serde::{Serialize, Serializer};
use x509_cert::Certificate;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::rfc3339;

/// What happened when a CA was asked to sign.
///
/// Serialises as one flat object; this is a line of the [`JsonLinesSink`](super::JsonLinesSink), wrapped:
///
/// ```json
/// {"time":"2026-01-01T00:00:00.25Z","outcome":"signed","issuer":"builtin CA of example.org",
///  "request_id":"0f1e…","spiffe_id":"spiffe://example.org/ns/shop/sa/cart","profile":"workload",
///  "requested":{"uris":[],"dns_names":["cart.shop"],"common_name":null,"lifetime_secs":86400},
///  "signed":{"serial":"5a…","subject":"","issuer":"CN=…","not_before":"2025-12-31T23:59:50Z",
///            "not_after":"2026-01-02T00:00:00Z","lifetime_secs":86410,
///            "names":["URI:spiffe://example.org/ns/shop/sa/cart","DNS:cart.shop"],"note":null},
///  "refusal":null,"duration_ms":1.25}
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct AuditRecord {
    /// When it ended.
    pub time: SystemTime,
    /// The issuer, as it names itself.
    pub issuer: String,
    /// The [name](CertificateRequest::id) of the request: the same for the same wish, however often it is tried.
    pub request_id: String,
    /// Who was to get the certificate.
    pub spiffe_id: String,
    /// `workload` or `intermediate`.
    pub profile: &'static str,
    /// What else was asked for.
    pub requested: Requested,
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took.
    pub duration: Duration,
}

/// What was asked for beside the SPIFFE ID.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Requested {
    /// Further URIs.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns_names: Vec<String>,
    /// The common name.
    pub common_name: Option<String>,
    /// For how long.
    #[serde(rename = "lifetime_secs", serialize_with = "seconds")]
    pub lifetime: Duration,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// The CA returned certificates. Nobody had verified them at that time.
    Signed(Signed),
    /// It did not.
    Refused(Refusal),
    /// The caller no longer wanted to know. Whether the CA signed is unknown.
    Cancelled,
}

/// The certificate that a CA returned, as it says of itself.
///
/// Everything is empty and `note` says why, if none of the returned certificates is for the requested key.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Signed {
    /// The serial number in lower-case hex, which is unique at its issuer (RFC 5280 §4.1.2.2).
    pub serial: Option<String>,
    /// Its subject; empty for most workloads.
    pub subject: Option<String>,
    /// The CA that signed it.
    pub issuer: Option<String>,
    /// From when it is valid.
    #[serde(serialize_with = "optional_time")]
    pub not_before: Option<SystemTime>,
    /// Until when it is valid.
    #[serde(serialize_with = "optional_time")]
    pub not_after: Option<SystemTime>,
    /// From the one to the other, in seconds.
    pub lifetime_secs: Option<u64>,
    /// All subject alternative names, each after its type: `URI:…`, `DNS:…`, `IP:…`, `email:…`, `other`.
    pub names: Vec<String>,
    /// What could not be read.
    pub note: Option<String>,
}

/// Why there is no certificate.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Refusal {
    /// The [kind](meshca_core::ErrorKind::as_str) of the error.
    pub kind: &'static str,
    /// The error, without its sources.
    pub message: String,
}

impl AuditRecord {
    pub(super) fn new(
        time: SystemTime,
        issuer: String,
        request: &CertificateRequest,
        outcome: Outcome,
        duration: Duration,
    ) -> Self {
        let spec = request.spec();
        Self {
            time,
            issuer,
            request_id: request.id().to_string(),
            spiffe_id: spec.spiffe_id().to_string(),
            profile: match spec.profile() {
                Profile::Workload => "workload",
                _ => "intermediate",
            },
            requested: Requested {
                uris: spec.uris().to_vec(),
                dns_names: spec.dns_names().to_vec(),
                common_name: spec.common_name().map(str::to_owned),
                lifetime: spec.lifetime(),
            },
            outcome,
            duration,
        }
    }
}

impl Outcome {
    pub(super) fn of(answer: Result<&SignedChain, &Error>, request: &CertificateRequest) -> Self {
        match answer {
            Ok(chain) => Self::Signed(Signed::read(chain, request)),
            Err(error) => Self::Refused(Refusal {
                kind: error.kind().as_str(),
                message: error.to_string(),
            }),
        }
    }

    /// `signed`, `refused` or `cancelled`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Signed(_) => "signed",
            Self::Refused(_) => "refused",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Signed {
    /// Order means nothing in what a CA returns, so the leaf is the one with the requested key.
    fn read(chain: &SignedChain, request: &CertificateRequest) -> Self {
        let key: &[u8] = request.public_key();
        let leaf = chain.certificates().iter().find_map(|der| {
            let certificate = Certificate::from_der(der).ok()?;
            let subject_key = certificate.tbs_certificate().subject_public_key_info();
            (subject_key.to_der().ok()? == key).then_some(certificate)
        });
        match leaf {
            Some(leaf) => Self::of(&leaf),
            None => Self {
                note: Some(format!(
                    "none of the {} certificates is for the requested key",
                    chain.certificates().len()
                )),
                ..Self::default()
            },
        }
    }

    fn of(leaf: &Certificate) -> Self {
        let tbs = leaf.tbs_certificate();
        let not_before = tbs.validity().not_before.to_system_time();
        let not_after = tbs.validity().not_after.to_system_time();
        let (names, note) = match tbs.get_extension::<SubjectAltName>() {
            Ok(names) => {
                let names = names.map(|(_, names)| names.0).unwrap_or_default();
                (names.iter().map(name).collect(), None)
            }
            Err(error) => (
                Vec::new(),
                Some(format!(
                    "the subject alternative names cannot be read: {error}"
                )),
            ),
        };
        Self {
            serial: Some(serial(tbs.serial_number().as_bytes())),
            subject: Some(tbs.subject().to_string()),
            issuer: Some(tbs.issuer().to_string()),
            not_before: Some(not_before),
            not_after: Some(not_after),
            lifetime_secs: not_after
                .duration_since(not_before)
                .ok()
                .map(|lifetime| lifetime.as_secs()),
            names,
            note,
        }
    }
}

fn name(name: &GeneralName) -> String {
    match name {
        GeneralName::UniformResourceIdentifier(uri) => format!("URI:{uri}"),
        GeneralName::DnsName(name) => format!("DNS:{name}"),
        GeneralName::Rfc822Name(name) => format!("email:{name}"),
        GeneralName::IpAddress(address) => {
            let bytes = address.as_bytes();
            match (<[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
                (Ok(v4), _) => format!("IP:{}", Ipv4Addr::from(v4)),
                (_, Ok(v6)) => format!("IP:{}", Ipv6Addr::from(v6)),
                _ => format!("IP:{}", hex(bytes)),
            }
        }
        _ => "other".to_owned(),
    }
}

/// Without the octet that only says in DER that the number is positive, as `openssl x509 -serial` prints it.
fn serial(number: &[u8]) -> String {
    match number {
        [0, rest @ ..] if !rest.is_empty() => hex(rest),
        _ => hex(number),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The order and the names of the fields are what log pipelines are written against.
#[derive(Serialize)]
struct Wire<'a> {
    time: String,
    outcome: &'static str,
    issuer: &'a str,
    request_id: &'a str,
    spiffe_id: &'a str,
    profile: &'static str,
    requested: &'a Requested,
    signed: Option<&'a Signed>,
    refusal: Option<&'a Refusal>,
    duration_ms: f64,
}

impl Serialize for AuditRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (signed, refusal) = match &self.outcome {
            Outcome::Signed(signed) => (Some(signed), None),
            Outcome::Refused(refusal) => (None, Some(refusal)),
            Outcome::Cancelled => (None, None),
        };
        Wire {
            time: rfc3339(self.time),
            outcome: self.outcome.as_str(),
            issuer: &self.issuer,
            request_id: &self.request_id,
            spiffe_id: &self.spiffe_id,
            profile: self.profile,
            requested: &self.requested,
            signed,
            refusal,
            duration_ms: (self.duration.as_secs_f64() * 1e6).round() / 1e3,
        }
        .serialize(serializer)
    }
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs())
}

#[expect(clippy::ref_option, reason = "serde hands in a reference to the field")]
fn optional_time<S: Serializer>(
    time: &Option<SystemTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.map(rfc3339).serialize(serializer)
}
