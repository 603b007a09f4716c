//! `Mesh`: of which only `mtls` is ours.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::any_settings::Dialect;
use super::declare::{Mapping as _, json_schema, mapping};
use super::decode::{Clip, Cursor, Fields};
#[cfg(feature = "schema")]
use super::describe::Object;
use super::duration;
use super::field::{Choice, Foreign, Group, defaulted, optional, required};
use super::free_form::FreeForm;
use super::labels;
use super::metadata::{self, Form, Kind, Metadata, Scope, is_dns_label};
use super::node::Value;
use super::provider::{self, Provider};
use super::values;
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

impl Kind for Mesh {
    const NAME: &'static str = "Mesh";
    const SCOPE: Scope = Scope::Global;
    const FLAT_IN: &[Form] = &[Form::Universal];

    fn read(f: &mut Fields<'_>, form: Form) -> Option<Self> {
        let metadata = metadata::read(f, form, Self::SCOPE);
        let mesh = metadata.as_ref().map_or("", |metadata| &metadata.name);
        let status = f.opt("status", values::free_form).unwrap_or_default();
        // Flat is the rule in Universal form, but documents with a `spec` exist.
        let spec = if form == Form::Universal && !f.has("spec") {
            content(f, mesh)
        } else {
            let spec = f.opt("spec", |at| {
                let mut f = at.fields()?;
                // In Universal form it would stand beside the field of the same name.
                for field in ENVELOPE.iter().chain(&metadata::UNIVERSAL_META) {
                    let message = "a Mesh has no such field in its `spec`: is it a field of the resource itself?";
                    f.refuse::<()>(field, message);
                }
                content(&mut f, mesh)
            });
            f.finish();
            spec
        };
        let (mtls, rest) = spec.map(|spec| (spec.mtls, spec.rest)).unwrap_or_default();
        Some(Self {
            metadata: metadata?,
            mtls,
            rest,
            status,
        })
    }

    fn write<S: Serializer>(&self, form: Form, serializer: S) -> Result<S::Ok, S::Error> {
        let spec = Spec {
            mtls: self.mtls.clone(),
            rest: self.rest.clone(),
        };
        metadata::write::<Self, _, _>(&self.metadata, &spec, &self.status, form, serializer)
    }
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

mapping! {
    /// The CAs of the mesh, and sections that are not judged here
    pub(super) struct Spec {
        mtls: Option<Mtls> = optional("mtls", mtls),
        rest: FreeForm = Foreign::Rest { ours: &["mtls"], theirs: &FOREIGN },
    }
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

/// For a field that is always written but need not be given: it makes it optional in the schema.
fn may_be_absent<T>(_: &T) -> bool {
    false
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

/// The words of this kind for a mode; a MeshTLS has them in small letters.
const MODES: Choice<Mode> = Choice(&[("STRICT", Mode::Strict), ("PERMISSIVE", Mode::Permissive)]);

mapping! {
    /// `dpCert`: certificates of workloads.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct DpCert {
        /// `rotation.expiration`: the lifetime.
        ///
        /// [`lifetime`](Self::lifetime) has the default.
        pub expiration: Option<Duration> =
            optional("rotation", Group(optional("expiration", duration::mesh_lifetime()))),
        /// How long to wait for the CA. No limit of the resource's own if absent.
        pub request_timeout: Option<Duration> = optional("requestTimeout", duration::mesh_timeout()),
    }
}

impl DpCert {
    /// The lifetime to ask for: [`DEFAULT_EXPIRATION`] if the document does not say.
    pub fn lifetime(&self) -> Duration {
        self.expiration.unwrap_or(DEFAULT_EXPIRATION)
    }
}

mapping! {
    /// `rootChain`: the CA's own certificates.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct RootChain {
        /// How long to wait for the CA.
        ///
        /// [`timeout`](Self::timeout) has the default.
        pub request_timeout: Option<Duration> = optional("requestTimeout", duration::mesh_timeout()),
    }
}

impl RootChain {
    /// The limit where the document sets none: one slow CA must not hold up other meshes.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

    /// How long to wait for the CA: 10 seconds if the document does not say.
    pub fn timeout(&self) -> Duration {
        self.request_timeout.unwrap_or(Self::DEFAULT_TIMEOUT)
    }
}

mapping! {
    /// A backend without its name, which is judged among the others, and without its settings.
    pub(super) struct BackendFields {
        type_name: String = required("type", provider::backend_type),
        mode: Mode = defaulted("mode", MODES),
        dp_cert: DpCert = defaulted("dpCert", DpCert::read),
        root_chain: RootChain = defaulted("rootChain", RootChain::read),
    }
}

impl Serialize for Backend {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = BackendFields {
            type_name: self.provider.type_name_in(self.dialect).to_owned(),
            mode: self.mode,
            dp_cert: self.dp_cert,
            root_chain: self.root_chain,
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &self.name)?;
        fields.write_fields(&mut map)?;
        self.provider.write_in_backend(self.dialect, &mut map)?;
        map.end()
    }
}

json_schema! {
    // `schema::by_type` adds the settings of the types that are known.
    Backend, generator => {
        let mut object = Object::new(&["A CA of the mesh. The settings depend on its type."]);
        let name = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";
        let name = schemars::json_schema!({ "type": "string", "pattern": name });
        object.add("name", true, &[], name);
        BackendFields::describe_fields(&mut object, generator);
        object.finish()
    }
}

fn content(f: &mut Fields<'_>, mesh: &str) -> Option<Spec> {
    let limit = 255_usize.saturating_sub(mesh.len() + ".ca-builtin-cert-".len());
    f.cursor.visit(&["mtls", "backends", "name"], &|at| {
        if matches!(&at.node.value, Value::Str(name) if name.len() > limit) {
            at.error::<()>(format_args!(
                "is too long: the CA's secret `<mesh>.ca-builtin-cert-<backend>` may have 255 characters, \
                 so here are at most {limit}"
            ));
        }
    });
    Spec::read_fields(f)
}

fn mtls(at: Cursor<'_>) -> Option<Mtls> {
    let mut f = at.fields()?;
    let skip_validation = f.opt("skipValidation", values::boolean).unwrap_or_default();
    let mut names = BTreeSet::new();
    let backends = f.list("backends", |at| {
        at.mapping(|f| backend(f, skip_validation, &mut names))
    });
    let enabled_backend = f.opt("enabledBackend", |at| {
        let name = at.text()?;
        if name.is_empty() {
            return None;
        }
        if names.contains(name) {
            return Some(name.to_owned());
        }
        let name = Clip(name);
        let message = format_args!("no backend is called `{name}`");
        if names.is_empty() {
            return at.error(format_args!("{message}: there are none in `backends`"));
        }
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        at.none_of(&names, message)
    });
    f.finish();
    Some(Mtls {
        enabled_backend,
        skip_validation,
        backends,
    })
}

fn backend(
    f: &mut Fields<'_>,
    skip_validation: bool,
    names: &mut BTreeSet<String>,
) -> Option<Backend> {
    let context = f.cursor.context;
    let name = f.required("name", |at| backend_name(at, names));
    let needed = f
        .cursor
        .node
        .text_of("type")
        .and_then(|name| provider::needs_expiration(context, name));
    if let Some(reason) = needed {
        context.leniently(skip_validation, || {
            f.demand(
                "dpCert.rotation.expiration",
                &format!("must be set: {reason}"),
            );
        });
    }
    let (type_name, mode, dp_cert, root_chain) = BackendFields::read_parts(f);
    let Some(type_name) = type_name else {
        // Whose settings these are is not known, so they are not judged.
        f.know(&provider::blocks(context));
        return None;
    };
    let (provider, dialect) = context.leniently(skip_validation, || {
        provider::backend_settings(f, &type_name)
    })?;
    Some(Backend {
        name: name?,
        provider,
        mode: mode?,
        dp_cert: dp_cert?,
        root_chain: root_chain?,
        dialect,
    })
}

fn backend_name(at: Cursor<'_>, names: &mut BTreeSet<String>) -> Option<String> {
    let name = at.text()?;
    if !is_dns_label(name) {
        return at.error(format_args!(
            "`{}` is not a name: up to 63 lower-case letters, digits and `-`, a letter or digit first and last",
            Clip(name)
        ));
    }
    if !names.insert(name.to_owned()) {
        return at.error(format_args!(
            "another backend is called `{name}` as well: names must be unique"
        ));
    }
    Some(name.to_owned())
}
