//! `Mesh`: of which only `mtls` is ours.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::any_settings::Dialect;
use super::decode::{self, Clip, Cursor, Fields, OneOf};
use super::duration;
use super::free_form::FreeForm;
use super::labels;
use super::metadata::{
    self, API_VERSION, Form, Layout, Metadata, Scope, Written, is_dns_label, may_be_absent,
};
use super::provider::{self, BackendSettingsWire, Provider};
#[cfg(feature = "schema")]
use super::schema;
use crate::spiffe::{SpiffeId, TrustDomain, Workload};
use crate::{Error, ErrorKind, Result};

/// The lifetime of a workload's certificate where nothing says otherwise: 24 hours.
pub const DEFAULT_EXPIRATION: Duration = crate::DEFAULT_LIFETIME;

/// Sections of a `Mesh` that are not ours, so that they are not taken for a misspelt `mtls`.
const FOREIGN: [&str; 8] = [
    "constraints",
    "logging",
    "membership",
    "meshServices",
    "metrics",
    "networking",
    "routing",
    "tracing",
];

/// Fields of a resource in Universal form that are not those of its content.
const ENVELOPE: [&str; 5] = ["type", "name", "mesh", "labels", "status"];

/// A mesh of the classic model. What concerns its CAs is in [`mtls`](Self::mtls); everything else
/// (`meshServices`, `logging`, `routing`, …) is kept in [`rest`](Self::rest) and written back.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Mesh {
    /// Name and form. A `Mesh` is in no mesh and in no namespace.
    pub metadata: Metadata,
    /// The CAs. Absent: mTLS is off.
    pub mtls: Option<Mtls>,
    /// The sections that are not ours.
    pub rest: FreeForm,
    /// What the server says about it.
    pub status: FreeForm,
}

impl Mesh {
    /// A mesh without mTLS.
    pub fn new(metadata: Metadata) -> Self {
        Self {
            metadata,
            mtls: None,
            rest: FreeForm::default(),
            status: FreeForm::default(),
        }
    }

    /// The backend that issues: `None` if mTLS is off.
    pub fn enabled_backend(&self) -> Option<&Backend> {
        self.mtls.as_ref()?.enabled()
    }

    /// The trust domain of the classic model: the name of the mesh.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) if the name is no trust domain (SPIFFE-ID §2.1).
    pub fn trust_domain(&self) -> Result<TrustDomain> {
        let name = &self.metadata.name;
        match TrustDomain::new(name) {
            // The library takes the trust domain out of a whole SPIFFE ID as well.
            Ok(domain) if domain.as_ref() == name => Ok(domain),
            refused => {
                let error = Error::new(
                    ErrorKind::InvalidConfig,
                    "the mesh's name cannot be a trust domain: up to 255 lower-case letters, digits, `.`, `-` and `_`",
                )
                .with_context("mesh", name.escape_debug());
                Err(match refused {
                    Ok(_) => error,
                    Err(source) => error.with_source(source),
                })
            }
        }
    }

    /// The SPIFFE ID of the classic model: `spiffe://<mesh>/<service>`, the service being the one value
    /// of the tag `kuma.io/service`, or without that tag the label of that name.
    ///
    /// ```
    /// use meshca_core::resource::{Mesh, Metadata};
    /// use meshca_core::spiffe::Workload;
    ///
    /// let mesh = Mesh::new(Metadata::universal("default"));
    /// let workload = Workload::new().with_tag("kuma.io/service", "backend_shop_svc_80");
    /// assert_eq!(mesh.spiffe_id_of(&workload)?.to_string(), "spiffe://default/backend_shop_svc_80");
    /// # Ok::<(), meshca_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`](ErrorKind::InvalidRequest) if there is no service or several, or if it is no single
    /// segment of a SPIFFE ID (SPIFFE-ID §2.2) of at most 255 characters; those of [`trust_domain`](Self::trust_domain).
    pub fn spiffe_id_of(&self, workload: &Workload) -> Result<SpiffeId> {
        let (what, service) = service(workload)?;
        let segment = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let sound = (1..=MAX_SERVICE).contains(&service.len())
            && service.bytes().all(segment)
            && !matches!(service, "." | "..");
        let unfit = || {
            Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "the {what} `{}` is `{}`, which cannot be part of a SPIFFE ID: write 1 to {MAX_SERVICE} letters, \
                     digits, `.`, `-` and `_`, and neither `.` nor `..` alone",
                    labels::SERVICE,
                    Clip(service)
                ),
            )
        };
        if !sound {
            return Err(unfit());
        }
        SpiffeId::from_segments(self.trust_domain()?, &[service])
            .map_err(|error| unfit().with_source(error))
    }

    pub(super) fn write<S: Serializer>(
        &self,
        form: Form,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        let Self {
            metadata,
            mtls,
            rest,
            status,
        } = self;
        Written {
            api_version: API_VERSION,
            kind: "Mesh",
            metadata,
            layout: Layout::FlatUniversal,
            spec: SpecWire {
                mtls: mtls.as_ref(),
                rest,
            },
            status: Cow::Borrowed(status),
        }
        .write(form, serializer)
    }
}

/// The longest service in a SPIFFE ID, in characters.
const MAX_SERVICE: usize = 255;

/// The one service of a workload, and whether a tag or a label says so.
fn service(workload: &Workload) -> Result<(&'static str, &str)> {
    let invalid = |message: String| Err(Error::new(ErrorKind::InvalidRequest, message));
    let mut tags = workload.tags().get(labels::SERVICE).into_iter().flatten();
    match (tags.next(), tags.next(), workload.label(labels::SERVICE)) {
        (Some(service), None, _) => Ok(("tag", service)),
        (Some(first), Some(second), _) => invalid(format!(
            "the classic SPIFFE ID needs one value of the tag `{}`; this workload has several values of the tag, \
             `{}` and `{}` among them",
            labels::SERVICE,
            Clip(first),
            Clip(second)
        )),
        (None, _, Some(service)) => Ok(("label", service)),
        (None, _, None) => invalid(format!(
            "the classic SPIFFE ID needs the tag (or label) `{}`; this workload has neither",
            labels::SERVICE
        )),
    }
}

/// How the content of a `Mesh` is written.
#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(description = "The CAs of the mesh, and sections that are not judged here")
)]
pub(super) struct SpecWire<'w> {
    #[serde(skip_serializing_if = "Option::is_none")]
    mtls: Option<&'w Mtls>,
    #[serde(flatten)]
    rest: &'w FreeForm,
}

/// The CAs of a mesh: leaves come from the enabled one, and the roots of every listed one are trusted.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Mtls {
    /// The name of the backend that issues; absent: mTLS is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled_backend: Option<String>,
    /// Whether what is wrong with a backend's settings is only worth a warning.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skip_validation: bool,
    /// The CAs.
    #[serde(skip_serializing_if = "may_be_absent")]
    pub backends: Vec<Backend>,
}

impl Mtls {
    /// mTLS by one backend.
    pub fn with_backend(backend: Backend) -> Self {
        Self {
            enabled_backend: Some(backend.name.clone()),
            skip_validation: false,
            backends: vec![backend],
        }
    }

    /// The backend that issues.
    pub fn enabled(&self) -> Option<&Backend> {
        let name = self.enabled_backend.as_deref()?;
        self.backends.iter().find(|backend| backend.name == name)
    }
}

/// A CA of the classic model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Backend {
    /// Unique in its mesh; a lower-case DNS label, since it is part of the names of the CA's secrets.
    pub name: String,
    /// The CA's type and settings.
    pub provider: Provider,
    /// Whether inbounds accept plaintext as well.
    pub mode: Mode,
    /// What the workloads' certificates are like.
    pub dp_cert: DpCert,
    /// How the CA's chain is fetched.
    pub root_chain: RootChain,
    /// How `type` and the settings are spelt.
    pub dialect: Dialect,
}

impl Backend {
    /// In strict mode, with the defaults for all the rest.
    pub fn new(name: impl Into<String>, provider: Provider) -> Self {
        Self {
            name: name.into(),
            provider,
            mode: Mode::default(),
            dp_cert: DpCert::default(),
            root_chain: RootChain::default(),
            dialect: Dialect::default(),
        }
    }
}

/// Whether a proxy insists on mTLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// Plaintext is refused.
    #[default]
    Strict,
    /// Inbounds accept plaintext as well.
    Permissive,
}

/// `dpCert`: certificates of workloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DpCert {
    /// `rotation.expiration`: the lifetime; see [`lifetime`](Self::lifetime).
    pub expiration: Option<Duration>,
    /// How long to wait for the CA. No limit of the resource's own if absent.
    pub request_timeout: Option<Duration>,
}

impl DpCert {
    /// The lifetime to ask for: [`DEFAULT_EXPIRATION`] if the document does not say.
    pub fn lifetime(&self) -> Duration {
        self.expiration.unwrap_or(DEFAULT_EXPIRATION)
    }
}

/// `rootChain`: the CA's own certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RootChain {
    /// How long to wait for the CA; see [`timeout`](Self::timeout).
    pub request_timeout: Option<Duration>,
}

impl RootChain {
    /// The limit where the document sets none: one slow CA must not hold up other meshes.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

    /// How long to wait for the CA: 10 seconds if the document does not say.
    pub fn timeout(&self) -> Duration {
        self.request_timeout.unwrap_or(Self::DEFAULT_TIMEOUT)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BackendWire<'w> {
    name: &'w str,
    #[serde(rename = "type")]
    type_name: &'w str,
    #[serde(skip_serializing_if = "ModeWire::is_default")]
    mode: ModeWire,
    #[serde(skip_serializing_if = "Option::is_none")]
    dp_cert: Option<DpCertWire>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root_chain: Option<TimeoutWire>,
    #[serde(flatten)]
    settings: BackendSettingsWire<'w>,
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "Mode")
)]
#[serde(rename_all = "UPPERCASE")]
enum ModeWire {
    Strict,
    Permissive,
}

impl ModeWire {
    fn is_default(&self) -> bool {
        matches!(self, Self::Strict)
    }
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "DpCert")
)]
#[serde(rename_all = "camelCase")]
struct DpCertWire {
    #[serde(skip_serializing_if = "Option::is_none")]
    rotation: Option<RotationWire>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "duration::serialize_mesh"
    )]
    #[cfg_attr(feature = "schema", schemars(with = "Option<duration::MeshDuration>"))]
    request_timeout: Option<Duration>,
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "Rotation")
)]
struct RotationWire {
    #[serde(
        skip_serializing_if = "may_be_absent",
        serialize_with = "duration::serialize_mesh"
    )]
    #[cfg_attr(feature = "schema", schemars(with = "Option<duration::MeshDuration>"))]
    expiration: Option<Duration>,
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "RootChain")
)]
#[serde(rename_all = "camelCase")]
struct TimeoutWire {
    #[serde(
        skip_serializing_if = "may_be_absent",
        serialize_with = "duration::serialize_mesh"
    )]
    #[cfg_attr(feature = "schema", schemars(with = "Option<duration::MeshDuration>"))]
    request_timeout: Option<Duration>,
}

impl Serialize for Backend {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let DpCert {
            expiration,
            request_timeout,
        } = self.dp_cert;
        BackendWire {
            name: &self.name,
            type_name: self.provider.type_name_in(self.dialect),
            mode: match self.mode {
                Mode::Strict => ModeWire::Strict,
                Mode::Permissive => ModeWire::Permissive,
            },
            dp_cert: (expiration.is_some() || request_timeout.is_some()).then(|| DpCertWire {
                rotation: expiration.map(|expiration| RotationWire {
                    expiration: Some(expiration),
                }),
                request_timeout,
            }),
            root_chain: self.root_chain.request_timeout.map(|timeout| TimeoutWire {
                request_timeout: Some(timeout),
            }),
            settings: self.provider.backend_settings(self.dialect),
        }
        .serialize(serializer)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Backend {
    fn schema_name() -> Cow<'static, str> {
        "Backend".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schema::backend::<ModeWire, DpCertWire, TimeoutWire>(generator)
    }
}

/// Reads a `Mesh` whose `apiVersion` and `kind`, or `type`, have been read.
pub(super) fn read(f: &mut Fields<'_>, form: Form) -> Option<Mesh> {
    let metadata = metadata::read(f, form, Scope::Global);
    let name = metadata
        .as_ref()
        .map(|metadata| metadata.name.as_str())
        .unwrap_or_default();
    let status = f.opt("status", decode::free_form).unwrap_or_default();
    // Flat is the rule in Universal form, but documents with a `spec` exist.
    let (mtls, rest) = if form == Form::Universal && !f.has("spec") {
        if f.has("mesh") {
            f.refuse::<()>("mesh", "a Mesh is in no mesh: remove this field");
        }
        content(f, name)
    } else {
        let content = f.opt("spec", |at| {
            let mut f = at.fields()?;
            // In Universal form it would stand beside the field of the same name.
            for field in ENVELOPE.iter().chain(&metadata::UNIVERSAL_META) {
                if f.has(field) {
                    f.refuse::<()>(
                        field,
                        format_args!("a Mesh has no such field in its `spec`: is it a field of the resource itself?"),
                    );
                }
            }
            Some(content(&mut f, name))
        });
        f.finish();
        content.unwrap_or_default()
    };
    Some(Mesh {
        metadata: metadata?,
        mtls,
        rest,
        status,
    })
}

fn content(f: &mut Fields<'_>, mesh: &str) -> (Option<Mtls>, FreeForm) {
    let mtls = f.opt("mtls", |at| mtls(at, mesh));
    (mtls, f.rest(&["mtls"], &FOREIGN))
}

fn mtls(at: Cursor<'_>, mesh: &str) -> Option<Mtls> {
    let mut f = at.fields()?;
    let skip_validation = f.opt("skipValidation", decode::boolean).unwrap_or_default();
    let mut names = BTreeSet::new();
    let backends = f.list("backends", |at| {
        backend(at, mesh, skip_validation, &mut names)
    });
    let enabled_backend = f.opt("enabledBackend", |at| {
        let name = at.text()?;
        if name.is_empty() {
            return None;
        }
        if names.contains(name) {
            return Some(name.to_owned());
        }
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let name = Clip(name);
        match (at.context.nearest(name.0, &names), names.as_slice()) {
            (Some(meant), _) => at.error(format_args!(
                "no backend is called `{name}`, did you mean `{meant}`?"
            )),
            (None, []) => at.error(format_args!(
                "no backend is called `{name}`: there are none in `backends`"
            )),
            (None, names) => at.error(format_args!(
                "no backend is called `{name}`: it is {}",
                OneOf(names)
            )),
        }
    });
    f.finish();
    Some(Mtls {
        enabled_backend,
        skip_validation,
        backends,
    })
}

fn backend(
    at: Cursor<'_>,
    mesh: &str,
    skip_validation: bool,
    names: &mut BTreeSet<String>,
) -> Option<Backend> {
    let mut f = at.fields()?;
    let name = f.required("name", |at| backend_name(at, mesh, names));
    let type_name = f.required("type", provider::backend_type);
    let mode = f.opt("mode", |at| {
        at.choice(&[("STRICT", Mode::Strict), ("PERMISSIVE", Mode::Permissive)])
    });
    let needed = type_name
        .as_deref()
        .and_then(|name| provider::needs_expiration(at.context, name));
    let dp_cert = f.opt("dpCert", |at| dp_cert(at, needed, skip_validation));
    if !f.has("dpCert") {
        need(&f, "dpCert.rotation.expiration", needed, skip_validation);
    }
    let root_chain = f.opt("rootChain", |at| {
        let mut f = at.fields()?;
        let request_timeout = f.opt("requestTimeout", duration::mesh_timeout);
        f.finish();
        Some(RootChain { request_timeout })
    });
    let Some(type_name) = type_name else {
        // Whose settings these are is not known, so they are not judged.
        f.know(&provider::blocks(at.context));
        f.finish();
        return None;
    };
    let settings = at.context.leniently(skip_validation, || {
        provider::backend_settings(&mut f, &type_name)
    });
    f.finish();
    let (provider, dialect) = settings?;
    Some(Backend {
        name: name?,
        provider,
        mode: mode.unwrap_or_default(),
        dp_cert: dp_cert.unwrap_or_default(),
        root_chain: root_chain.unwrap_or_default(),
        dialect,
    })
}

/// Reports a lifetime that is missing, if there is a reason why it must be set.
fn need(f: &Fields<'_>, field: &'static str, reason: Option<&str>, skip_validation: bool) {
    if let Some(reason) = reason {
        f.cursor.context.leniently(skip_validation, || {
            f.missing::<()>(field, format_args!("must be set: {reason}"))
        });
    }
}

fn dp_cert(at: Cursor<'_>, needed: Option<&str>, skip_validation: bool) -> Option<DpCert> {
    let mut f = at.fields()?;
    let expiration = f.opt("rotation", |at| {
        let mut f = at.fields()?;
        let expiration = f.opt("expiration", duration::mesh_lifetime);
        if !f.has("expiration") {
            need(&f, "expiration", needed, skip_validation);
        }
        f.finish();
        expiration
    });
    if !f.has("rotation") {
        need(&f, "rotation.expiration", needed, skip_validation);
    }
    let request_timeout = f.opt("requestTimeout", duration::mesh_timeout);
    f.finish();
    Some(DpCert {
        expiration,
        request_timeout,
    })
}

fn backend_name(at: Cursor<'_>, mesh: &str, names: &mut BTreeSet<String>) -> Option<String> {
    let name = at.text()?;
    let limit = 255_usize.saturating_sub(mesh.len() + ".ca-builtin-cert-".len());
    if !is_dns_label(name) {
        return at.error(format_args!(
            "`{}` is not a name: up to 63 lower-case letters, digits and `-`, a letter or digit first and last",
            Clip(name)
        ));
    }
    if name.len() > limit {
        return at.error(format_args!(
            "is too long: the CA's secret `<mesh>.ca-builtin-cert-<backend>` may have 255 characters, \
             so here are at most {limit}"
        ));
    }
    if !names.insert(name.to_owned()) {
        return at.error(format_args!(
            "another backend is called `{name}` as well: names must be unique"
        ));
    }
    Some(name.to_owned())
}
