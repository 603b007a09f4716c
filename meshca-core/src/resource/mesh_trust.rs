//! `MeshTrust`: whose certificates are believed.

use std::borrow::Cow;

use der::Decode as _;
use serde::{Serialize, Serializer};
use x509_cert::Certificate;

use super::decode::{Cursor, Fields};
use super::free_form::FreeForm;
use super::kri::Kri;
use super::metadata::{self, API_VERSION, Form, Layout, Metadata, Scope, Written};
use crate::pem;
use crate::spiffe::TrustDomain;

/// The longest trust domain, in characters: the product's limit, two below that of SPIFFE.
const MAX_TRUST_DOMAIN: usize = 253;

/// Roots for one trust domain. Several resources may share a trust domain: their bundles add up.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MeshTrust {
    /// Name, mesh and form. On Kubernetes it lives in the control plane's own namespace.
    pub metadata: Metadata,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// The roots, at least one.
    pub ca_bundles: Vec<CaBundle>,
    /// `status.origin.kri`: the [`MeshIdentity`](super::MeshIdentity) that it was made from.
    pub origin: Option<Kri>,
    /// What else the control plane says about it.
    pub status: FreeForm,
}

impl MeshTrust {
    /// With one bundle.
    pub fn new(metadata: Metadata, trust_domain: TrustDomain, bundle: CaBundle) -> Self {
        Self {
            metadata,
            trust_domain,
            ca_bundles: vec![bundle],
            origin: None,
            status: FreeForm::default(),
        }
    }

    pub(super) fn write<S: Serializer>(
        &self,
        form: Form,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let Self {
            metadata,
            trust_domain,
            ca_bundles,
            origin,
            status,
        } = self;
        let spec = SpecWire {
            trust_domain: trust_domain.as_ref(),
            ca_bundles,
        };
        let status = match origin {
            Some(origin) => {
                Cow::Owned(status.with("origin", serde_json::json!({ "kri": origin.to_string() })))
            }
            None => Cow::Borrowed(status),
        };
        Written {
            api_version: API_VERSION,
            kind: "MeshTrust",
            metadata,
            layout: Layout::Spec,
            spec,
            status,
        }
        .write(form, serializer)
    }
}

/// Roots in one of the formats that exist; so far there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CaBundle {
    /// `type: Pem`: one or more `CERTIFICATE` blocks (RFC 7468) and nothing else.
    Pem(String),
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct SpecWire<'w> {
    trust_domain: &'w str,
    ca_bundles: &'w [CaBundle],
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type")]
enum BundleWire<'w> {
    Pem { pem: PemWire<'w> },
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct PemWire<'w> {
    value: &'w str,
}

impl Serialize for CaBundle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self::Pem(value) = self;
        BundleWire::Pem {
            pem: PemWire { value },
        }
        .serialize(serializer)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for CaBundle {
    fn schema_name() -> Cow<'static, str> {
        "CaBundle".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        BundleWire::json_schema(generator)
    }
}

/// Reads a `MeshTrust` whose `apiVersion` and `kind`, or `type`, have been read.
pub(super) fn read(f: &mut Fields<'_>, form: Form) -> Option<MeshTrust> {
    let metadata = metadata::read(f, form, Scope::System);
    let spec = f.required("spec", |at| {
        let mut f = at.fields()?;
        let trust_domain = f.required("trustDomain", trust_domain);
        let ca_bundles = f.required("caBundles", |at| {
            let bundles = at.list(bundle)?;
            match bundles.is_empty() {
                true => at.error("must hold at least one bundle"),
                false => Some(bundles),
            }
        });
        // Older versions kept it here.
        let origin = f.opt("origin", origin);
        f.finish();
        Some((trust_domain?, ca_bundles?, origin))
    });
    let status = f.opt("status", |at| {
        let mut f = at.fields()?;
        let origin = f.opt("origin", origin);
        Some((origin, f.remaining()))
    });
    f.finish();
    let (trust_domain, ca_bundles, older) = spec?;
    let (origin, status) = status.unwrap_or_default();
    Some(MeshTrust {
        metadata: metadata?,
        trust_domain,
        ca_bundles,
        origin: origin.or(older),
        status,
    })
}

fn trust_domain(at: Cursor<'_>) -> Option<TrustDomain> {
    let text = at.text()?;
    if text.len() > MAX_TRUST_DOMAIN {
        return at.error(format_args!(
            "must not be longer than {MAX_TRUST_DOMAIN} characters"
        ));
    }
    match TrustDomain::new(text) {
        // The library takes the trust domain out of a whole SPIFFE ID as well.
        Ok(domain) if domain.as_ref() == text => Some(domain),
        Ok(domain) => at.error(format_args!(
            "must be the trust domain alone, in lower case: `{domain}`"
        )),
        Err(error) => at.error(format_args!("is not a SPIFFE trust domain: {error}")),
    }
}

fn origin(at: Cursor<'_>) -> Option<Kri> {
    let mut f = at.fields()?;
    let kri = f.opt("kri", |at| {
        at.text()?
            .parse::<Kri>()
            .map_or_else(|error| at.error(error), Some)
    });
    f.finish();
    kri
}

fn bundle(at: Cursor<'_>) -> Option<CaBundle> {
    let mut f = at.fields()?;
    let kind = f.required("type", |at| at.choice(&[("Pem", ())]));
    let value = f.required("pem", |at| {
        let mut f = at.fields()?;
        let value = f.required("value", certificates);
        f.finish();
        value
    });
    f.finish();
    kind.and(value).map(CaBundle::Pem)
}

/// Certificates in PEM and nothing else.
fn certificates(at: Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    let certificates = match pem::certificates(text) {
        Ok(certificates) => certificates,
        Err(error) => return at.error(format_args!("not a bundle of certificates: {error}")),
    };
    if certificates.is_empty() {
        return at.error("must hold at least one certificate in PEM");
    }
    for (line, certificate) in certificates {
        if Certificate::from_der(&certificate).is_err() {
            return at.error(format_args!(
                "line {line}: the block that begins here is not an X.509 certificate"
            ));
        }
    }
    Some(text.to_owned())
}
