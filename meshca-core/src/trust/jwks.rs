//! The SPIFFE bundle format: a JWK Set (RFC 7517) with a certificate in each `x509-svid` key.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use der::Decode;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use spiffe::TrustDomain;
use x509_cert::spki::SubjectPublicKeyInfoRef;

use super::{TrustBundle, TrustRoot};
use crate::x509::RsaPublicKey;
use crate::x509::key_oid::{ED25519, P256, P384, P521, RSA};
use crate::{Error, ErrorKind, Result};

/// How a certificate's key is marked (SPIFFE X.509-SVID §6).
const USE_X509_SVID: &str = "x509-svid";

#[derive(Serialize, Deserialize)]
struct KeySet {
    keys: Vec<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_refresh_hint: Option<u64>,
}

/// What all keys have in common; the rest depends on the type of the key.
#[derive(Deserialize)]
struct Key {
    #[serde(rename = "use")]
    key_use: Option<String>,
    kty: Option<String>,
    #[serde(default)]
    x5c: Vec<String>,
}

pub(super) fn read(trust_domain: TrustDomain, json: &str) -> Result<TrustBundle> {
    let invalid = |why: String| {
        Error::new(
            ErrorKind::InvalidConfig,
            format!("not a SPIFFE bundle: {why}"),
        )
        .with_context("trust domain", &trust_domain)
    };
    // Derived readers take a list of values for a mapping of fields; nobody else does.
    if json.trim_start().starts_with('[') {
        return Err(invalid("expected a JSON object, found a list".to_owned()));
    }
    let set: KeySet = serde_json::from_str(json).map_err(|error| invalid(error.to_string()))?;
    let mut roots = Vec::new();
    for (index, key) in set.keys.into_iter().enumerate() {
        let at = |why: String| invalid(format!("keys[{index}]: {why}"));
        if !key.is_object() {
            return Err(at("expected a JSON object".to_owned()));
        }
        let key: Key = serde_json::from_value(key).map_err(|error| at(error.to_string()))?;
        // "If the use parameter is omitted or unrecognised, the client must ignore the key" (Bundle §4.2.2).
        if key.key_use.as_deref() != Some(USE_X509_SVID) {
            continue;
        }
        if key.kty.is_none() {
            return Err(at("`kty` must be set".to_owned()));
        }
        let [certificate] = key.x5c.as_slice() else {
            return Err(at(format!(
                "`x5c` must hold exactly one certificate, not {}",
                key.x5c.len()
            )));
        };
        let der = STANDARD
            .decode(certificate)
            .map_err(|error| at(format!("`x5c` is not base64: {error}")))?;
        roots.push(TrustRoot::new(CertificateDer::from(der)).map_err(at)?);
    }
    let mut bundle = TrustBundle::of(trust_domain, roots);
    bundle.sequence = set.spiffe_sequence;
    bundle.refresh_hint = set.spiffe_refresh_hint.map(Duration::from_secs);
    Ok(bundle)
}

pub(super) fn write(bundle: &TrustBundle) -> String {
    let keys = bundle.roots().iter().map(key).collect();
    let set = KeySet {
        keys,
        spiffe_sequence: bundle.sequence(),
        spiffe_refresh_hint: bundle.refresh_hint().map(|hint| hint.as_secs()),
    };
    // Strings and numbers in maps with string keys: serialising them cannot fail.
    serde_json::to_string_pretty(&set).unwrap_or_default()
}

fn key(root: &TrustRoot) -> serde_json::Value {
    let mut key = public_parameters(root);
    key.insert("use".into(), USE_X509_SVID.into());
    key.insert("x5c".into(), vec![STANDARD.encode(root.der())].into());
    key.into()
}

/// The public key as JSON Web Keys write it (RFC 7518 §6, RFC 8037 §2). A type that these do not
/// know still gets its `kty`, the certificate being what counts.
fn public_parameters(root: &TrustRoot) -> serde_json::Map<String, serde_json::Value> {
    let mut key = serde_json::Map::new();
    let Ok(spki) = SubjectPublicKeyInfoRef::from_der(root.public_key()) else {
        key.insert("kty".into(), "EC".into());
        return key;
    };
    let public = spki.subject_public_key.raw_bytes();
    let encode = |bytes: &[u8]| serde_json::Value::from(URL_SAFE_NO_PAD.encode(bytes));
    match spki.algorithm.oid {
        RSA => {
            key.insert("kty".into(), "RSA".into());
            if let Ok(rsa) = RsaPublicKey::from_der(public) {
                key.insert("n".into(), encode(rsa.modulus.as_bytes()));
                key.insert("e".into(), encode(rsa.exponent.as_bytes()));
            }
        }
        ED25519 => {
            key.insert("kty".into(), "OKP".into());
            key.insert("crv".into(), "Ed25519".into());
            key.insert("x".into(), encode(public));
        }
        _ => {
            key.insert("kty".into(), "EC".into());
            let named = match spki.algorithm.parameters_oid() {
                Ok(P256) => Some("P-256"),
                Ok(P384) => Some("P-384"),
                Ok(P521) => Some("P-521"),
                _ => None,
            };
            // An uncompressed point: 4, then both coordinates at full length (SEC 1 §2.3.3).
            if let (Some(curve), Some((4, point))) = (named, public.split_first()) {
                let (x, y) = point.split_at_checked(point.len() / 2).unwrap_or_default();
                key.insert("crv".into(), curve.into());
                key.insert("x".into(), encode(x));
                key.insert("y".into(), encode(y));
            }
        }
    }
    key
}
