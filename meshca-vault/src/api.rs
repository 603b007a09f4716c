//! The server's answers, as far as we read them, and the requests that [`vaultrs`] knows.
//!
//! Every field that a version or a fork of Vault may leave out is optional.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use http::Method;
use meshca_core::{Error, ErrorKind, Result};
use rustify::endpoint::Endpoint;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::transport::Call;

/// What surrounds every answer.
#[derive(Deserialize)]
pub(crate) struct Envelope<'a, T> {
    pub(crate) data: Option<T>,
    #[serde(borrow)]
    pub(crate) auth: Option<AuthInfo<'a>>,
    pub(crate) warnings: Option<Vec<String>>,
    wrap_info: Option<IgnoredAny>,
}

impl<T> Envelope<'_, T> {
    /// Whether a policy, or something in between, had the answer wrapped into a token of its own.
    pub(crate) fn is_wrapped(&self) -> bool {
        self.wrap_info.is_some() && self.data.is_none() && self.auth.is_none()
    }
}

/// What a login or a renewal gives. The token is borrowed from the answer, whose memory is wiped.
#[derive(Deserialize, derive_more::Debug)]
#[debug("AuthInfo({lease_duration} s, renewable: {renewable})")]
pub(crate) struct AuthInfo<'a> {
    #[serde(borrow)]
    pub(crate) client_token: Cow<'a, str>,
    #[serde(default)]
    pub(crate) lease_duration: u64,
    #[serde(default)]
    pub(crate) renewable: bool,
}

/// The answer to `auth/token/lookup-self`.
#[derive(Debug, Deserialize)]
pub(crate) struct TokenInfo {
    pub(crate) ttl: u64,
    #[serde(default)]
    pub(crate) renewable: bool,
    /// `null` for a token that does not end.
    pub(crate) expire_time: Option<String>,
    /// Seconds; such a token can be renewed for ever.
    pub(crate) period: Option<u64>,
    /// How often it may still be used; 0 for as often as it likes.
    pub(crate) num_uses: Option<u64>,
    pub(crate) policies: Option<Vec<String>>,
}

/// The answer to `sign` and `sign-intermediate`.
#[derive(Debug, Deserialize)]
pub(crate) struct Signed {
    pub(crate) certificate: String,
    #[serde(default)]
    pub(crate) issuing_ca: String,
    /// Absent, `null`, or a list with or without the root.
    pub(crate) ca_chain: Option<Vec<String>>,
}

impl Signed {
    /// Everything in it that is a certificate, once, as one PEM text.
    pub(crate) fn pem(&self) -> String {
        // The issuing CA is in the chain as well, but for some versions and forks.
        let signers = [&self.certificate, &self.issuing_ca].into_iter();
        pem(signers.chain(self.ca_chain.iter().flatten()))
    }
}

/// The parts that are not empty, each once, as one text.
fn pem<'a>(parts: impl Iterator<Item = &'a String>) -> String {
    let mut once: Vec<&str> = Vec::new();
    for part in parts.map(|part| part.trim()) {
        if !part.is_empty() && !once.contains(&part) {
            once.push(part);
        }
    }
    once.join("\n")
}

/// The answer to `LIST issuers`.
#[derive(Debug, Deserialize)]
pub(crate) struct Keys {
    /// The IDs of the issuers.
    pub(crate) keys: Vec<String>,
    pub(crate) key_info: Option<BTreeMap<String, KeyInfo>>,
}

/// What the list says of one issuer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct KeyInfo {
    pub(crate) issuer_name: String,
    /// Empty where the mount has no key for it; absent in Vault 1.11.
    pub(crate) key_id: Option<String>,
}

/// The answer to `issuer/<ref>/json` and `cert/ca_chain`.
#[derive(Debug, Deserialize)]
pub(crate) struct IssuerInfo {
    #[serde(default)]
    pub(crate) certificate: String,
    pub(crate) ca_chain: Option<Chain>,
}

/// A list where an issuer is asked for, one text where the mount is.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Chain {
    Text(String),
    List(Vec<String>),
}

impl IssuerInfo {
    /// Everything in it that is a certificate, as one PEM text.
    pub(crate) fn pem(&self) -> String {
        let chain: &[String] = match &self.ca_chain {
            None => &[],
            Some(Chain::Text(text)) => std::slice::from_ref(text),
            Some(Chain::List(list)) => list,
        };
        pem(std::iter::once(&self.certificate).chain(chain))
    }
}

/// The answer to `roles/<name>`: what makes a difference to a SPIFFE certificate.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Role {
    pub(crate) allowed_uri_sans: Vec<String>,
    pub(crate) allowed_uri_sans_template: bool,
    pub(crate) require_cn: Option<bool>,
    pub(crate) use_csr_sans: Option<bool>,
    pub(crate) server_flag: Option<bool>,
    pub(crate) client_flag: Option<bool>,
    pub(crate) key_type: Option<String>,
    /// 0 for any size.
    pub(crate) key_bits: Option<u64>,
    pub(crate) key_usage: Option<Vec<String>>,
    pub(crate) ext_key_usage: Option<Vec<String>>,
    pub(crate) ext_key_usage_oids: Option<Vec<String>>,
    pub(crate) allowed_domains: Option<Vec<String>>,
    pub(crate) allow_any_name: bool,
    pub(crate) allow_bare_domains: bool,
    pub(crate) allow_subdomains: bool,
    pub(crate) allow_glob_domains: bool,
    pub(crate) cn_validations: Option<Vec<String>>,
    /// The issuer that signs where the path names none.
    pub(crate) issuer_ref: Option<String>,
    /// The end of every certificate, whatever was asked for.
    pub(crate) not_after: Option<String>,
    /// In seconds; 0 leaves it to the mount.
    pub(crate) max_ttl: u64,
    pub(crate) no_store: bool,
    pub(crate) generate_lease: bool,
}

/// A request as vaultrs describes it: its method, its path and its body. The rest of vaultrs is left alone; see the
/// crate's architecture notes.
pub(crate) fn call(endpoint: &impl Endpoint) -> Result<Call> {
    let body = endpoint.body().map_err(|error| {
        Error::new(ErrorKind::Internal, "a request cannot be written").with_source(error)
    })?;
    Ok(Call {
        method: endpoint.method().into(),
        path: endpoint.path().trim().trim_start_matches('/').to_owned(),
        body: body.unwrap_or_default().into(),
    })
}

/// A request of our own.
pub(crate) fn get(path: impl Into<String>) -> Call {
    Call {
        method: Method::GET,
        path: path.into(),
        body: Bytes::new(),
    }
}
