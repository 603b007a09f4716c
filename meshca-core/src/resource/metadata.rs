//! The envelope of a resource: its form, name, mesh, labels.

use std::collections::BTreeMap;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::declare::{Mapping, mapping};
use super::decode::{Clip, Cursor, Fields};
use super::field::{Foreign, defaulted, optional, required};
use super::free_form::FreeForm;
use super::kri::Kri;
use super::labels;
use super::values;

/// The name of the mesh that is meant where none is named.
pub const DEFAULT_MESH: &str = "default";

/// The API version of every kind but [`SecretResource`](super::SecretResource).
const API_VERSION: &str = "kuma.io/v1alpha1";

/// What a Kubernetes API server adds to an object; kept, not interpreted.
const OBJECT_META: [&str; 11] = [
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
#[derive(Clone, PartialEq, derive_more::Debug)]
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
    #[debug("{:?}", annotations.keys())]
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

mapping! {
    /// `metadata` of an object on Kubernetes.
    pub(super) struct ObjectMeta {
        name: String = required("name", object_name),
        namespace: Option<String> = optional("namespace", values::non_empty),
        labels: BTreeMap<String, String> = defaulted("labels", labels),
        annotations: BTreeMap<String, String> = defaulted("annotations", values::string_map),
        rest: FreeForm = Foreign::Named(&OBJECT_META),
    }
}

mapping! {
    /// The envelope beside `type` in Universal form.
    pub(super) struct UniversalMeta {
        name: String = required("name", resource_name),
        mesh: Option<String> = optional("mesh", resource_name),
        labels: BTreeMap<String, String> = defaulted("labels", labels),
        rest: FreeForm = Foreign::Named(&UNIVERSAL_META),
    }
}

/// Reads the envelope in either form.
pub(crate) fn read(f: &mut Fields<'_>, form: Form, scope: Scope) -> Option<Metadata> {
    match form {
        Form::Kubernetes => f.required("metadata", |at| at.mapping(|f| kubernetes(f, scope))),
        Form::Universal => universal(f, scope),
    }
}

fn kubernetes(f: &mut Fields<'_>, scope: Scope) -> Option<Metadata> {
    let (name, namespace, labels, annotations, rest) = ObjectMeta::read_parts(f);
    let system_namespace = f.cursor.context.system_namespace;
    match (scope, system_namespace, namespace.as_ref()?) {
        (Scope::Global, _, Some(_)) => {
            f.opt("namespace", |at| {
                at.error::<()>("a Mesh is in no namespace: remove this field")
            });
        }
        (Scope::System, Some(expected), Some(namespace)) if expected != namespace => {
            f.opt("namespace", |at| {
                at.error::<()>(format_args!(
                    "must be `{expected}`, the control plane's namespace, and not `{}`",
                    Clip(namespace)
                ))
            });
        }
        (Scope::System, Some(expected), None) if !f.has("namespace") => {
            let message = format_args!("must be `{expected}`, the control plane's namespace");
            f.missing::<()>("namespace", message);
        }
        _ => {}
    }
    let mut labels = labels?;
    Some(Metadata {
        form: Form::Kubernetes,
        name: name?,
        mesh: match scope {
            Scope::Global => None,
            _ => labels.remove(labels::MESH),
        },
        namespace: namespace?,
        labels,
        annotations: annotations?,
        rest: rest?,
    })
}

fn universal(f: &mut Fields<'_>, scope: Scope) -> Option<Metadata> {
    let (name, mesh, labels, rest) = UniversalMeta::read_parts(f);
    let (mut mesh, mut labels) = (mesh?, labels?);
    if scope == Scope::Global {
        f.refuse::<()>("mesh", "a Mesh is in no mesh: remove this field");
    }
    if scope != Scope::Global
        && let Some(label) = labels.remove(labels::MESH)
    {
        if mesh.as_ref().is_some_and(|mesh| *mesh != label) {
            f.opt("mesh", |at| {
                at.error::<()>(format_args!(
                    "contradicts the label `{}`, which says `{}`: keep one of them",
                    labels::MESH,
                    Clip(&label)
                ))
            });
        }
        mesh = mesh.or(Some(label));
    }
    Some(Metadata {
        form: Form::Universal,
        name: name?,
        mesh,
        namespace: None,
        labels,
        annotations: BTreeMap::new(),
        rest: rest?,
    })
}

fn labels(at: Cursor<'_>) -> Option<BTreeMap<String, String>> {
    let labels = values::string_map(at)?;
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

fn object_name(at: Cursor<'_>) -> Option<String> {
    name(at, false)
}

fn resource_name(at: Cursor<'_>) -> Option<String> {
    name(at, true)
}

fn name(at: Cursor<'_>, underscores: bool) -> Option<String> {
    let name = at.text()?;
    match is_resource_name(name, underscores) {
        true => Some(name.to_owned()),
        false => at.error(not_a_name(name)),
    }
}

/// A DNS subdomain (RFC 1123); Universal names may contain `_` as well.
fn is_resource_name(name: &str, underscores: bool) -> bool {
    let others = if underscores { "-._" } else { "-." };
    is_name(name, others, 253)
}

fn not_a_name(name: &str) -> String {
    format!(
        "`{}` is not a name: up to 253 lower-case letters, digits, `-` and `.`, a letter or digit first and last",
        Clip(name)
    )
}

/// A DNS label (RFC 1123, section 2.1).
pub(crate) fn is_dns_label(name: &str) -> bool {
    is_name(name, "-", 63)
}

/// Letters, digits and these others, which are neither first nor last.
fn is_name(name: &str, others: &str, limit: usize) -> bool {
    let plain = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit();
    name.len() <= limit
        && name.starts_with(plain)
        && name.ends_with(plain)
        && name.chars().all(|it| plain(it) || others.contains(it))
}

/// A kind of resource: the properties that all its documents have in common, and how they are read and written.
pub(crate) trait Kind: Sized {
    const NAME: &'static str;
    const API_VERSION: &'static str = API_VERSION;
    const SCOPE: Scope;
    /// The forms in which the content is beside the name, and not in `spec`.
    const FLAT_IN: &[Form] = &[];

    /// Reads a resource whose `apiVersion` and `kind`, or `type`, have been read.
    fn read(f: &mut Fields<'_>, form: Form) -> Option<Self>;

    fn write<S: Serializer>(&self, form: Form, serializer: S) -> Result<S::Ok, S::Error>;
}

/// Writes a resource of this kind.
pub(crate) fn write<K: Kind, S: Mapping + Serialize, Z: Serializer>(
    metadata: &Metadata,
    spec: &S,
    status: &FreeForm,
    form: Form,
    serializer: Z,
) -> Result<Z::Ok, Z::Error> {
    let name = metadata.name.clone();
    let rest = match form == metadata.form {
        true => metadata.rest.clone(),
        false => FreeForm::default(),
    };
    let mut map = serializer.serialize_map(None)?;
    match form {
        Form::Kubernetes => {
            let mut labels = metadata.labels.clone();
            if let Some(mesh) = &metadata.mesh {
                labels.insert(labels::MESH.to_owned(), mesh.clone());
            }
            let object = ObjectMeta {
                name,
                namespace: metadata.namespace.clone(),
                labels,
                annotations: metadata.annotations.clone(),
                rest,
            };
            map.serialize_entry("apiVersion", K::API_VERSION)?;
            map.serialize_entry("kind", K::NAME)?;
            map.serialize_entry("metadata", &object)?;
        }
        Form::Universal => {
            let beside = UniversalMeta {
                name,
                mesh: metadata.mesh.clone(),
                labels: metadata.labels.clone(),
                rest,
            };
            map.serialize_entry("type", K::NAME)?;
            beside.write_fields(&mut map)?;
        }
    }
    match K::FLAT_IN.contains(&form) {
        true => spec.write_fields(&mut map)?,
        false => map.serialize_entry("spec", spec)?,
    }
    if !status.is_empty() {
        map.serialize_entry("status", status)?;
    }
    map.end()
}
