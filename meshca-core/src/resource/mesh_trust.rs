//! `MeshTrust`: whose certificates are believed.

use der::Decode as _;
use serde::Serializer;
use x509_cert::Certificate;

use super::declare::{Mapping as _, mapping, tagged};
use super::decode::{Cursor, Fields};
use super::field::{Codec, Group, optional, required, spelt};
use super::free_form::FreeForm;
use super::kri::Kri;
use super::metadata::{self, Form, Kind, Metadata, Scope};
use crate::spiffe::TrustDomain;
use crate::{Error, ErrorKind, Result, TrustBundle, TrustRoot, pem};

/// The longest trust domain, in characters: the product's limit, two below that of SPIFFE.
const MAX_TRUST_DOMAIN: usize = 253;

/// The most certificates of a MeshTrust that are searched for missing roots. Real ones have a few.
const MAX_JUDGED: usize = 64;

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

impl Kind for MeshTrust {
    const NAME: &'static str = "MeshTrust";
    const SCOPE: Scope = Scope::System;

    fn read(f: &mut Fields<'_>, form: Form) -> Option<Self> {
        let metadata = metadata::read(f, form, Self::SCOPE);
        let spec = f.required("spec", |at| {
            let spec = Spec::read(at)?;
            warn_of_anchors(at, &spec);
            Some(spec)
        });
        let status = f.opt("status", |at| {
            let mut f = at.fields()?;
            let origin = optional("origin", origin()).content(&mut f);
            Some((origin, f.remaining()))
        });
        f.finish();
        let (origin, status) = status.unwrap_or_default();
        let spec = spec?;
        Some(Self {
            metadata: metadata?,
            trust_domain: spec.trust_domain,
            ca_bundles: spec.ca_bundles,
            origin: origin.or(spec.origin),
            status,
        })
    }

    fn write<S: Serializer>(&self, form: Form, serializer: S) -> Result<S::Ok, S::Error> {
        let spec = Spec {
            trust_domain: self.trust_domain.clone(),
            ca_bundles: self.ca_bundles.clone(),
            origin: None,
        };
        let status = match &self.origin {
            Some(origin) => {
                let origin = serde_json::json!({ "kri": origin.to_string() });
                &self.status.with("origin", origin)
            }
            None => &self.status,
        };
        metadata::write::<Self, _, _>(&self.metadata, &spec, status, form, serializer)
    }
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

    /// From a trust bundle, such as that of an [issuer](crate::Issuer::trust_bundle), with one [`CaBundle`] for each root:
    /// where roots change one at a time, so do the entries of the list.
    ///
    /// The sequence number and the refresh hint of the bundle have no place here.
    ///
    /// ```
    /// use meshca_core::resource::{MeshTrust, Metadata};
    /// use meshca_core::{TrustBundle, TrustDomain};
    ///
    /// let pem = include_str!("../../tests/data/root.pem");
    /// let bundle = TrustBundle::from_pem(TrustDomain::new("example.org").expect("a trust domain"), pem)?;
    /// let trust = MeshTrust::from_trust_bundle(Metadata::universal("id").with_mesh("default"), &bundle)?;
    /// assert_eq!(trust.to_trust_bundle()?, bundle);
    /// # Ok::<(), meshca_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) for what a MeshTrust cannot say: no root at all, or a trust
    /// domain of more than 253 characters.
    pub fn from_trust_bundle(metadata: Metadata, bundle: &TrustBundle) -> Result<Self> {
        let trust_domain = bundle.trust_domain().clone();
        let refuse = |message: String| {
            let error = Error::new(ErrorKind::InvalidConfig, message);
            Err(error.with_context("trust domain", &trust_domain))
        };
        if bundle.is_empty() {
            let message = "a MeshTrust needs at least one root, and the bundle has none";
            return refuse(message.to_owned());
        }
        if trust_domain.as_ref().len() > MAX_TRUST_DOMAIN {
            return refuse(format!(
                "the trust domain of a MeshTrust must not be longer than {MAX_TRUST_DOMAIN} characters"
            ));
        }
        let pem = |root: &TrustRoot| CaBundle::Pem(pem::encode("CERTIFICATE", root.der()));
        Ok(Self {
            metadata,
            ca_bundles: bundle.roots().iter().map(pem).collect(),
            trust_domain,
            origin: None,
            status: FreeForm::default(),
        })
    }

    /// The roots of all bundles as one, in their order and without repetition.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) naming the bundle if a certificate in it is none of a CA, which
    /// reading the resource does not check.
    pub fn to_trust_bundle(&self) -> Result<TrustBundle> {
        let mut all = TrustBundle::new(self.trust_domain.clone(), [])?;
        for (index, CaBundle::Pem(text)) in self.ca_bundles.iter().enumerate() {
            let bundle = TrustBundle::from_pem(self.trust_domain.clone(), text);
            let bundle = bundle.map_err(|error| {
                error
                    .with_context("field", format!("caBundles[{index}].pem.value"))
                    .with_context("MeshTrust", &self.metadata.name)
            })?;
            all = all.union(&bundle)?;
        }
        Ok(all)
    }
}

impl MeshTrust {
    /// As [`to_trust_bundle`](Self::to_trust_bundle), without the certificates that cannot be an anchor, so that one of
    /// them costs nobody else's trust. Each of them is an error that names the field and the line. The bundle is empty
    /// if there is none that can.
    pub fn to_readable_bundle(&self) -> (TrustBundle, Vec<Error>) {
        let (mut roots, mut left_out) = (Vec::new(), Vec::new());
        for (index, CaBundle::Pem(text)) in self.ca_bundles.iter().enumerate() {
            let (bundle, whys) = TrustBundle::readable(self.trust_domain.clone(), text);
            roots.extend(bundle.roots().iter().cloned());
            left_out.extend(whys.into_iter().map(|why| {
                let message = format!("not a trust anchor, so it is left out: {why}");
                Error::new(ErrorKind::InvalidConfig, message)
                    .with_context("field", format!("caBundles[{index}].pem.value"))
                    .with_context("MeshTrust", &self.metadata.name)
                    .with_context("trust domain", &self.trust_domain)
            }));
        }
        (TrustBundle::of(self.trust_domain.clone(), roots), left_out)
    }
}

tagged! {
    /// Roots in one of the formats that exist; so far there is one.
    #[derive(Clone, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    pub enum CaBundle refuses "does not go with this `type`" {
        /// `type: Pem`: one or more `CERTIFICATE` blocks (RFC 7468) and nothing else.
        Pem(String) = "Pem" with required("pem", Group(required("value", certificates))),
    }
}

mapping! {
    #[derive(Clone)]
    pub(super) struct Spec {
        trust_domain: TrustDomain = required("trustDomain", spelt(trust_domain, ToString::to_string)),
        ca_bundles: Vec<CaBundle> = required("caBundles", bundles),
        // Older versions kept it here.
        origin: Option<Kri> = optional("origin", origin()),
    }
}

fn bundles(at: Cursor<'_>) -> Option<Vec<CaBundle>> {
    let bundles = at.list(CaBundle::read)?;
    match bundles.is_empty() {
        true => at.error("must hold at least one bundle"),
        false => Some(bundles),
    }
}

/// Warns of certificates that are no anchors, which [are left out](MeshTrust::to_readable_bundle), and of each
/// intermediate whose root is in none of the bundles.
fn warn_of_anchors(at: Cursor<'_>, spec: &Spec) {
    let read = |text: &str| TrustBundle::readable(spec.trust_domain.clone(), text);
    let (mut roots, mut sound) = (Vec::new(), true);
    for CaBundle::Pem(text) in &spec.ca_bundles {
        let (bundle, left_out) = read(text);
        roots.extend(bundle.roots().iter().cloned());
        sound &= left_out.is_empty();
    }
    let all = TrustBundle::of(spec.trust_domain.clone(), roots);
    // Following signatures takes time, and a hostile text could have thousands of certificates.
    let judged = all.roots().len() <= MAX_JUDGED;
    let missing = |anchor: &TrustRoot| judged.then(|| all.missing_above(anchor)).flatten();
    if sound && !all.roots().iter().any(|it| missing(it).is_some()) {
        return;
    }
    at.visit(&["caBundles", "pem", "value"], &|at| {
        let Some((bundle, left_out)) = at.text().map(read) else {
            return;
        };
        for why in left_out.iter().take(MAX_JUDGED) {
            at.warn(format_args!("holds no trust anchor there, so it is left out: {why}"));
        }
        for anchor in bundle.roots() {
            if let Some(missing) = missing(anchor) {
                at.warn(format_args!(
                    "`{}` is an intermediate whose root is not here, and Envoy accepts no chain that ends in one: add the certificate of `{missing}`, unless another MeshTrust of this trust domain has it",
                    anchor.subject()
                ));
            }
        }
    });
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

/// `kri`, in the mapping `origin`.
fn origin() -> impl Codec<Value = Kri> {
    Group(optional("kri", spelt(kri, ToString::to_string)))
}

fn kri(at: Cursor<'_>) -> Option<Kri> {
    at.text()?
        .parse()
        .map_or_else(|error: Error| at.error(error), Some)
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
