//! Text to resources and back.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::decode::{Clip, Context, Cursor, Fields, OneOf, SettingsType};
use super::document;
use super::metadata::Kind;
use super::node::Node;
use super::path::Path;
use super::provider::OURS;
use super::violation::Report;
use super::{Form, Location, Mesh, MeshIdentity, MeshTls, MeshTrust, Metadata, SecretResource};
use crate::{Error, ErrorKind, Result};

/// A resource of any of the kinds that a certificate authority has to know.
#[derive(Clone, Debug, PartialEq, derive_more::From)]
#[allow(
    clippy::large_enum_variant,
    reason = "few exist at a time, and matching on them should stay plain"
)]
#[non_exhaustive]
pub enum Resource {
    /// A mesh with its classic CAs.
    Mesh(Mesh),
    /// Who gets which identity, and from which CA.
    MeshIdentity(MeshIdentity),
    /// Whose certificates are believed.
    MeshTrust(MeshTrust),
    /// How strictly proxies insist on mTLS.
    MeshTls(MeshTls),
    /// A secret of a mesh.
    Secret(SecretResource),
}

impl Resource {
    /// Reads every resource of a YAML or JSON text with the default [`ParseOptions`].
    ///
    /// # Errors
    ///
    /// All violations at once, with warnings among them, if at least one is an error.
    pub fn parse(text: impl AsRef<[u8]>) -> std::result::Result<Documents, Report> {
        ParseOptions::new().parse(text)
    }

    /// Checks a resource that was built in code by the rules that hold for documents, with the default [`ParseOptions`].
    ///
    /// # Errors
    ///
    /// As [`ParseOptions::validate`].
    pub fn validate(&self) -> std::result::Result<Report, Report> {
        ParseOptions::new().validate(self)
    }

    /// Writes the resource as one YAML document, in the form that it was read in.
    ///
    /// # Errors
    ///
    /// `InvalidConfig` if a value that was set in code has no notation, such as a duration of half a
    /// millisecond.
    pub fn to_yaml(&self) -> Result<String> {
        self.to_yaml_as(self.metadata().form)
    }

    fn fits(&self, form: Form) -> Result<()> {
        let name = &self.metadata().name;
        match form == Form::Kubernetes && name.contains('_') {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::InvalidRequest,
                "a name on Kubernetes has no underscores: give the resource another one",
            )
            .with_context("name", name)),
        }
    }

    /// Writes the resource as one YAML document, in the given form.
    ///
    /// What the other form has no place for is left out: namespace and annotations in Universal form,
    /// and what the server keeps about the resource in the form that it was not read in.
    ///
    /// # Errors
    ///
    /// As for [`to_yaml`](Self::to_yaml); and [`ErrorKind::InvalidRequest`] for a name with an underscore, which a resource in
    /// Universal form may have and one on Kubernetes may not.
    pub fn to_yaml_as(&self, form: Form) -> Result<String> {
        self.fits(form)?;
        let yaml = serde_saphyr::to_string(&InForm(self, form))
            .map_err(|error| cannot_write(self, error))?;
        // The library writes some characters that YAML forbids as they are. JSON is YAML, too.
        if yaml.chars().all(is_printable) {
            Ok(yaml)
        } else {
            self.to_json_as(form)
        }
    }

    /// Writes the resource as JSON, in the form that it was read in.
    ///
    /// # Errors
    ///
    /// As for [`to_yaml`](Self::to_yaml).
    pub fn to_json(&self) -> Result<String> {
        self.to_json_as(self.metadata().form)
    }

    /// Writes the resource as JSON, in the given form; see [`to_yaml_as`](Self::to_yaml_as).
    ///
    /// # Errors
    ///
    /// As for [`to_yaml`](Self::to_yaml).
    pub fn to_json_as(&self, form: Form) -> Result<String> {
        self.fits(form)?;
        let json = serde_json::to_string_pretty(&InForm(self, form))
            .map_err(|error| cannot_write(self, error))?;
        if json.chars().all(is_printable) {
            return Ok(json);
        }
        let mut escaped = String::with_capacity(json.len() + 64);
        for character in json.chars() {
            // In JSON they can only stand inside of strings.
            match is_printable(character) {
                true => escaped.push(character),
                false => escaped.push_str(&format!("\\u{:04x}", u32::from(character))),
            }
        }
        Ok(escaped)
    }
}

/// What may stand in a YAML text unescaped (YAML 1.2.2, section 5.1), without what readers treat
/// specially. All others are in the basic multilingual plane.
fn is_printable(character: char) -> bool {
    matches!(character, '\t' | '\n' | ' '..='~' | '\u{a0}'..='\u{2027}' | '\u{202a}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}' | '\u{10000}'..)
}

fn cannot_write(resource: &Resource, error: impl fmt::Display) -> Error {
    Error::new(
        ErrorKind::InvalidConfig,
        format!("the resource cannot be written: {error}"),
    )
    .with_context("kind", resource.kind())
    .with_context("name", &resource.metadata().name)
}

struct InForm<'w>(&'w Resource, Form);

impl Serialize for Resource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        InForm(self, self.metadata().form).serialize(serializer)
    }
}

/// Reads one resource, without places; the error is the whole report.
impl<'de> Deserialize<'de> for Resource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let node = Node::deserialize(deserializer)?;
        let context = Context::new(Report::default(), None, OURS);
        let resource = read_all([&node], &context, false).pop();
        let report = context.into_report();
        match resource {
            Some(resource) if !report.has_errors() => Ok(resource),
            _ => Err(D::Error::custom(report)),
        }
    }
}

/// Everything that depends on the kind of a resource, from one list of kinds.
macro_rules! kinds {
    ($($variant:ident($type:ident),)*) => {
        /// The kinds, as documents spell them.
        const KINDS: &[&str] = &[$($type::NAME),*];

        impl Resource {
            /// The kind, as documents spell it: `MeshTLS`.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $type::NAME,)*
                }
            }

            /// The envelope.
            pub fn metadata(&self) -> &Metadata {
                match self {
                    $(Self::$variant(resource) => &resource.metadata,)*
                }
            }

            /// The envelope, to change it.
            pub fn metadata_mut(&mut self) -> &mut Metadata {
                match self {
                    $(Self::$variant(resource) => &mut resource.metadata,)*
                }
            }

            /// Reads the fields that remain once the kind is known.
            fn read(kind: &str, f: &mut Fields<'_>, form: Form) -> Option<Self> {
                match kind {
                    $($type::NAME => content::<$type>(f, form).map(Self::$variant),)*
                    _ => None,
                }
            }
        }

        impl Serialize for InForm<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self.0 {
                    $(Resource::$variant(resource) => resource.write(self.1, serializer),)*
                }
            }
        }

        $(impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.write(self.metadata.form, serializer)
            }
        }

        /// Reads one resource of this kind, without places; the error is the whole report.
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                match Resource::deserialize(deserializer)? {
                    Resource::$variant(resource) => Ok(resource),
                    other => Err(D::Error::custom(format_args!(
                        "expected a {}, found a {}",
                        $type::NAME,
                        other.kind()
                    ))),
                }
            }
        })*
    };
}

kinds! {
    Mesh(Mesh),
    MeshIdentity(MeshIdentity),
    MeshTls(MeshTls),
    MeshTrust(MeshTrust),
    Secret(SecretResource),
}

/// How to read a text.
///
/// ```
/// use meshca_core::resource::ParseOptions;
///
/// let report = ParseOptions::new()
///     .source("identity.yaml")
///     .system_namespace("kuma-system")
///     .parse("{apiVersion: kuma.io/v1alpha1, kind: MeshIdentity, metadata: {name: id, namespace: apps}, spec: {}}")
///     .unwrap_err();
/// assert_eq!(
///     report.to_string(),
///     "identity.yaml:1:84: metadata.namespace: must be `kuma-system`, the control plane's namespace, and not `apps`"
/// );
/// ```
#[derive(Clone, Debug)]
pub struct ParseOptions {
    source: Option<String>,
    system_namespace: Option<String>,
    types: Vec<SettingsType>,
}

impl Default for ParseOptions {
    fn default() -> Self {
        Self {
            source: None,
            system_namespace: None,
            types: OURS.to_vec(),
        }
    }
}

impl ParseOptions {
    /// No name of the source, no rule about namespaces, and meshca's own types of CAs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names the source in reports, such as a file's name.
    #[must_use]
    pub fn source(mut self, name: impl Into<String>) -> Self {
        self.source = Some(name.into());
        self
    }

    /// The control plane's own namespace on Kubernetes: a [`MeshIdentity`] and a [`MeshTrust`] must live in it.
    /// Without it their namespace is not checked.
    #[must_use]
    pub fn system_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.system_namespace = Some(namespace.into());
        self
    }

    /// Adds types of CAs whose settings are checked: those of
    /// [`BackendRegistry::settings`](crate::BackendRegistry::settings). Settings of other types are not judged.
    #[must_use]
    pub fn settings(mut self, types: impl IntoIterator<Item = SettingsType>) -> Self {
        for kind in types {
            kind.add_to(&mut self.types);
        }
        self
    }

    fn context(&self, report: Report) -> Context<'_> {
        Context::new(report, self.system_namespace.as_deref(), &self.types)
    }

    /// Checks a resource that was built in code by the rules that hold for documents.
    ///
    /// # Errors
    ///
    /// The report, if there is an error in it; a report of warnings is what is returned otherwise.
    pub fn validate(&self, resource: &Resource) -> std::result::Result<Report, Report> {
        let mut report = Report::default();
        match serde_json::to_value(resource).and_then(Node::deserialize) {
            Ok(node) => {
                let context = self.context(report);
                read_all([&node], &context, false);
                report = context.into_report();
            }
            Err(error) => report.fail(Location::NONE, format!("cannot be written: {error}")),
        }
        report.without_errors()
    }

    /// Reads every resource of a YAML or JSON text.
    ///
    /// # Errors
    ///
    /// All violations at once, with warnings among them, if at least one is an error: bad input is never
    /// read in part.
    pub fn parse(&self, text: impl AsRef<[u8]>) -> std::result::Result<Documents, Report> {
        let mut report = Report::new(self.source.clone());
        let nodes = document::read(text.as_ref(), &mut report);
        if nodes.is_empty() && !report.has_errors() {
            report.fail(Location::START, "there is no resource in it".to_owned());
        }
        let context = self.context(report);
        let resources = read_all(&nodes, &context, true);
        let mut report = context.into_report();
        report.sort();
        Ok(Documents {
            resources,
            warnings: report.without_errors()?,
        })
    }
}

/// The resources of a text, in its order, and what is worth a warning about them.
#[derive(Clone, Debug, PartialEq)]
pub struct Documents {
    resources: Vec<Resource>,
    warnings: Report,
}

impl Documents {
    /// The resources.
    pub fn iter(&self) -> std::slice::Iter<'_, Resource> {
        self.resources.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.resources.len()
    }

    /// Whether there is none: so it is for a `List` without items.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// What works, but should not stay as it is.
    pub fn warnings(&self) -> &Report {
        &self.warnings
    }
}

impl IntoIterator for Documents {
    type Item = Resource;
    type IntoIter = std::vec::IntoIter<Resource>;

    fn into_iter(self) -> Self::IntoIter {
        self.resources.into_iter()
    }
}

impl<'d> IntoIterator for &'d Documents {
    type Item = &'d Resource;
    type IntoIter = std::slice::Iter<'d, Resource>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Reads documents, each of which may be a list of resources where `lists` says so.
fn read_all<'n, 'a: 'n>(
    nodes: impl IntoIterator<Item = &'n Node<'a>>,
    context: &Context<'_>,
    lists: bool,
) -> Vec<Resource> {
    let mut resources = Vec::new();
    for node in nodes {
        read(
            Cursor::new(node, &Path::Root, context),
            lists,
            &mut resources,
        );
    }
    resources
}

fn read(at: Cursor<'_>, lists: bool, resources: &mut Vec<Resource>) -> Option<()> {
    let Some(mut f) = at.as_mapping() else {
        return at.expected("a resource");
    };
    let (form, field) = if f.has("kind") || f.has("apiVersion") {
        (Form::Kubernetes, "kind")
    } else if f.has("type") {
        (Form::Universal, "type")
    } else {
        return at.error("this is no resource: it has neither `apiVersion` and `kind` nor `type`");
    };
    if lists && form == Form::Kubernetes && at.node.says("kind", "List") {
        f.know(&["kind", "metadata"]);
        f.required("apiVersion", |at| api_version(at, "v1"));
        f.required("items", |at| at.list(|at| read(at, false, resources)));
        f.finish();
    } else {
        let kind = f.required(field, kind)?;
        resources.push(Resource::read(kind, &mut f, form)?);
    }
    Some(())
}

fn content<K: Kind>(f: &mut Fields<'_>, form: Form) -> Option<K> {
    if form == Form::Kubernetes {
        f.required("apiVersion", |at| api_version(at, K::API_VERSION));
    }
    K::read(f, form)
}

fn kind(at: Cursor<'_>) -> Option<&'static str> {
    let text = at.text()?;
    if let Some(kind) = KINDS.iter().find(|kind| **kind == text) {
        return Some(kind);
    }
    match at.context.nearest(text, KINDS) {
        Some(meant) => at.error(format_args!(
            "unknown kind `{}`, did you mean `{meant}`?",
            Clip(text)
        )),
        None => at.error(format_args!(
            "the kind `{}` is not read here: it is {}",
            Clip(text),
            OneOf(KINDS)
        )),
    }
}

fn api_version(at: Cursor<'_>, expected: &str) -> Option<()> {
    match at.text()? {
        text if text == expected => Some(()),
        text => at.error(format_args!("must be `{expected}`, found `{}`", Clip(text))),
    }
}
