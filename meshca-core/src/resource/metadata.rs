//! The envelope of a resource: its form, name, mesh, labels.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

use super::decode::{self, Clip, Cursor, Fields};
use super::free_form::FreeForm;
use super::kri::Kri;
use super::labels;

/// The name of the mesh that is meant where none is named.
pub const DEFAULT_MESH: &str = "default";

/// The API version of every kind but [`SecretResource`](super::SecretResource).
pub(crate) const API_VERSION: &str = "kuma.io/v1alpha1";

/// What a Kubernetes API server adds to an object; kept, not interpreted.
pub(crate) const OBJECT_META: [&str; 11] = [
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// What a Universal control plane adds.
pub(crate) const UNIVERSAL_META: [&str; 3] = ["creationTime", "kri", "modificationTime"];

/// How a resource is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Form {
    /// `apiVersion`, `kind`, `metadata`, `spec`.
    Kubernetes,
    /// `type`, `name`, `mesh`, and the rest beside them or in `spec`.
    Universal,
}

/// What a resource is called, which mesh it belongs to, and how it is written down.
///
/// `Debug` prints only the names of annotations: `kubectl` keeps a copy of the whole resource in one.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Metadata {
    /// The form that it was read in and is written in.
    pub form: Form,
    /// The name.
    pub name: String,
    /// The mesh that it belongs to; `None` where the document does not say and for a `Mesh` itself.
    /// In Kubernetes form this is the label `kuma.io/mesh`, which is therefore not among the
    /// [`labels`](Self::labels).
    pub mesh: Option<String>,
    /// The Kubernetes namespace. It has no place in Universal form.
    pub namespace: Option<String>,
    /// The labels, apart from `kuma.io/mesh`; [`label`](Self::label) knows that one too.
    pub labels: BTreeMap<String, String>,
    /// The Kubernetes annotations. They have no place in Universal form.
    pub annotations: BTreeMap<String, String>,
    /// What the server keeps about it (`uid`, `resourceVersion`, `creationTime`, …), written back in the
    /// form that it was read in.
    pub rest: FreeForm,
}

impl Metadata {
    fn new(form: Form, name: impl Into<String>) -> Self {
        Self {
            form,
            name: name.into(),
            mesh: None,
            namespace: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            rest: FreeForm::default(),
        }
    }

    /// Of a resource in Kubernetes form.
    pub fn kubernetes(name: impl Into<String>) -> Self {
        Self::new(Form::Kubernetes, name)
    }

    /// Of a resource in Universal form.
    pub fn universal(name: impl Into<String>) -> Self {
        Self::new(Form::Universal, name)
    }

    /// Sets the mesh.
    #[must_use]
    pub fn with_mesh(mut self, mesh: impl Into<String>) -> Self {
        self.mesh = Some(mesh.into());
        self
    }

    /// Sets the Kubernetes namespace.
    #[must_use]
    pub fn with_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn with_label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// The mesh that it belongs to: `default` if it does not say.
    pub fn mesh(&self) -> &str {
        self.mesh.as_deref().unwrap_or(DEFAULT_MESH)
    }

    /// The KRI of the resource of this kind in this zone, which is what proxies call its secrets; `short` is the kind's short name, `mid`
    /// for a MeshIdentity. `None` if a part contains `_`, which separates the parts of a KRI.
    pub fn kri(&self, short: &str, zone: &str) -> Option<Kri> {
        let namespace = self.namespace.as_deref().unwrap_or_default();
        Kri::new(short, self.mesh(), zone, namespace, &self.name, "").ok()
    }

    /// A label, including `kuma.io/mesh`.
    pub fn label(&self, name: &str) -> Option<&str> {
        match (name, &self.mesh) {
            (labels::MESH, Some(mesh)) => Some(mesh),
            _ => self.labels.get(name).map(String::as_str),
        }
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            form,
            name,
            mesh,
            namespace,
            labels,
            annotations,
            rest,
        } = self;
        f.debug_struct("Metadata")
            .field("form", form)
            .field("name", name)
            .field("mesh", mesh)
            .field("namespace", namespace)
            .field("labels", labels)
            .field("annotations", &annotations.keys())
            .field("rest", rest)
            .finish()
    }
}

/// What the rules of an envelope depend on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// A `Mesh`: cluster-scoped, in no mesh.
    Global,
    /// In a mesh.
    Mesh,
    /// In a mesh, and on Kubernetes only in the control plane's own namespace.
    System,
}

/// Reads the envelope in either form.
pub(crate) fn read(f: &mut Fields<'_>, form: Form, scope: Scope) -> Option<Metadata> {
    match form {
        Form::Kubernetes => kubernetes(f, scope),
        Form::Universal => universal(f, scope),
    }
}

/// Reads `metadata`.
fn kubernetes(fields: &mut Fields<'_>, scope: Scope) -> Option<Metadata> {
    fields.required("metadata", |at| {
        let mut f = at.fields()?;
        let name = f.required("name", |at| resource_name(at, false));
        let namespace = f.opt("namespace", |at| namespace(at, scope));
        if scope == Scope::System
            && let (Some(expected), false) = (at.context.system_namespace, f.has("namespace"))
        {
            f.missing::<()>(
                "namespace",
                format_args!("must be `{expected}`, the control plane's namespace"),
            );
        }
        let mut labels = f.opt("labels", labels).unwrap_or_default();
        let annotations = f.opt("annotations", decode::string_map).unwrap_or_default();
        let rest = f.keep(&OBJECT_META);
        f.finish();
        let mesh = if scope == Scope::Global {
            None
        } else {
            labels.remove(labels::MESH)
        };
        Some(Metadata {
            form: Form::Kubernetes,
            name: name?,
            mesh,
            namespace,
            labels,
            annotations,
            rest,
        })
    })
}

/// Reads the fields beside `type`.
fn universal(f: &mut Fields<'_>, scope: Scope) -> Option<Metadata> {
    let name = f.required("name", |at| resource_name(at, true));
    let mut labels = f.opt("labels", labels).unwrap_or_default();
    let mesh = if scope == Scope::Global {
        None
    } else {
        let label = labels.remove(labels::MESH);
        f.opt("mesh", |at| {
            let mesh = resource_name(at, true)?;
            match &label {
                Some(label) if *label != mesh => at.error(format_args!(
                    "contradicts the label `{}`, which says `{}`: keep one of them",
                    labels::MESH,
                    Clip(label)
                )),
                _ => Some(mesh),
            }
        })
        .or(label)
    };
    let rest = f.keep(&UNIVERSAL_META);
    Some(Metadata {
        form: Form::Universal,
        name: name?,
        mesh,
        namespace: None,
        labels,
        annotations: BTreeMap::new(),
        rest,
    })
}

fn namespace(at: Cursor<'_>, scope: Scope) -> Option<String> {
    let namespace = decode::non_empty(at)?;
    match (scope, at.context.system_namespace) {
        (Scope::Global, _) => at.error("a Mesh is in no namespace: remove this field"),
        (Scope::System, Some(expected)) if expected != namespace => at.error(format_args!(
            "must be `{expected}`, the control plane's namespace, and not `{}`",
            Clip(&namespace)
        )),
        _ => Some(namespace),
    }
}

fn labels(at: Cursor<'_>) -> Option<BTreeMap<String, String>> {
    let labels = decode::string_map(at)?;
    if let Some(mesh) = labels.get(labels::MESH)
        && !is_resource_name(mesh, true)
    {
        return at.error(format_args!(
            "the label `{}`: {}",
            labels::MESH,
            not_a_name(mesh)
        ));
    }
    for name in labels.keys() {
        let reserved = name.starts_with("kuma.io/") || name.starts_with("k8s.kuma.io/");
        if reserved
            && !labels::KNOWN.contains(&name.as_str())
            && let Some(meant) = at.context.nearest(name, &labels::KNOWN)
        {
            at.warn(format_args!(
                "the label `{}` has no meaning, did you mean `{meant}`?",
                Clip(name)
            ));
        }
    }
    Some(labels)
}

fn resource_name(at: Cursor<'_>, underscores: bool) -> Option<String> {
    let name = at.text()?;
    match is_resource_name(name, underscores) {
        true => Some(name.to_owned()),
        false => at.error(not_a_name(name)),
    }
}

/// A DNS subdomain (RFC 1123); Universal names may contain `_` as well.
fn is_resource_name(name: &str, underscores: bool) -> bool {
    is_name(
        name,
        |byte| matches!(byte, b'-' | b'.') || (underscores && byte == b'_'),
        253,
    )
}

fn not_a_name(name: &str) -> String {
    format!(
        "`{}` is not a name: up to 253 lower-case letters, digits, `-` and `.`, a letter or digit first and last",
        Clip(name)
    )
}

/// A DNS label (RFC 1123, section 2.1).
pub(crate) fn is_dns_label(name: &str) -> bool {
    is_name(name, |byte| byte == b'-', 63)
}

fn is_name(name: &str, inner: impl Fn(u8) -> bool, limit: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.len() <= limit
        && bytes.first().copied().is_some_and(plain)
        && bytes.last().copied().is_some_and(plain)
        && bytes.iter().all(|byte| plain(*byte) || inner(*byte))
}

/// Where the content stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// In `spec`.
    Spec,
    /// In `spec`, but in Universal form beside the name.
    FlatUniversal,
    /// Beside the name.
    Flat,
}

/// A resource on its way to being written.
pub(crate) struct Written<'w, S> {
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) metadata: &'w Metadata,
    pub(crate) layout: Layout,
    pub(crate) spec: S,
    pub(crate) status: Cow<'w, FreeForm>,
}

impl<S: Serialize> Written<'_, S> {
    pub(crate) fn write<Z: Serializer>(self, form: Form, serializer: Z) -> Result<Z::Ok, Z::Error> {
        let Self {
            api_version,
            kind,
            metadata,
            layout,
            spec,
            status,
        } = self;
        let empty = FreeForm::default();
        let rest = if form == metadata.form {
            &metadata.rest
        } else {
            &empty
        };
        let name = metadata.name.as_str();
        let mesh = metadata.mesh.as_deref();
        match form {
            Form::Kubernetes => {
                let object = ObjectMeta::new(metadata, rest);
                match layout {
                    Layout::Flat => KubernetesFlat {
                        api_version,
                        kind,
                        metadata: object,
                        spec,
                        status,
                    }
                    .serialize(serializer),
                    _ => Kubernetes {
                        api_version,
                        kind,
                        metadata: object,
                        spec,
                        status,
                    }
                    .serialize(serializer),
                }
            }
            Form::Universal => {
                let head = Head {
                    kind,
                    name,
                    mesh,
                    labels: &metadata.labels,
                    rest,
                };
                match layout {
                    Layout::Spec => Universal { head, spec, status }.serialize(serializer),
                    _ => Flat { head, spec, status }.serialize(serializer),
                }
            }
        }
    }
}

#[derive(Serialize)]
struct ObjectMeta<'w> {
    name: &'w str,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'w str>,
    #[serde(skip_serializing_if = "is_empty")]
    labels: Cow<'w, BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "is_empty")]
    annotations: &'w BTreeMap<String, String>,
    #[serde(flatten)]
    rest: &'w FreeForm,
}

impl<'w> ObjectMeta<'w> {
    fn new(metadata: &'w Metadata, rest: &'w FreeForm) -> Self {
        let mut labels = Cow::Borrowed(&metadata.labels);
        if let Some(mesh) = &metadata.mesh {
            labels
                .to_mut()
                .insert(labels::MESH.to_owned(), mesh.clone());
        }
        Self {
            name: &metadata.name,
            namespace: metadata.namespace.as_deref(),
            labels,
            annotations: &metadata.annotations,
            rest,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Kubernetes<'w, S> {
    api_version: &'static str,
    kind: &'static str,
    metadata: ObjectMeta<'w>,
    spec: S,
    #[serde(skip_serializing_if = "nothing")]
    status: Cow<'w, FreeForm>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KubernetesFlat<'w, S> {
    api_version: &'static str,
    kind: &'static str,
    metadata: ObjectMeta<'w>,
    #[serde(flatten)]
    spec: S,
    #[serde(skip_serializing_if = "nothing")]
    status: Cow<'w, FreeForm>,
}

#[derive(Serialize)]
struct Head<'w> {
    #[serde(rename = "type")]
    kind: &'static str,
    name: &'w str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mesh: Option<&'w str>,
    #[serde(skip_serializing_if = "is_empty")]
    labels: &'w BTreeMap<String, String>,
    #[serde(flatten)]
    rest: &'w FreeForm,
}

#[derive(Serialize)]
struct Universal<'w, S> {
    #[serde(flatten)]
    head: Head<'w>,
    spec: S,
    #[serde(skip_serializing_if = "nothing")]
    status: Cow<'w, FreeForm>,
}

#[derive(Serialize)]
struct Flat<'w, S> {
    #[serde(flatten)]
    head: Head<'w>,
    #[serde(flatten)]
    spec: S,
    #[serde(skip_serializing_if = "nothing")]
    status: Cow<'w, FreeForm>,
}

/// For fields that are always written but need not be given: it makes them optional in the schema.
pub(crate) fn may_be_absent<T>(_: &T) -> bool {
    false
}

fn is_empty(map: &BTreeMap<String, String>) -> bool {
    map.is_empty()
}

fn nothing(status: &FreeForm) -> bool {
    status.is_empty()
}
