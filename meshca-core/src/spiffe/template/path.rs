use ::spiffe::{SpiffeId, TrustDomain};
use serde::Serialize;

use super::render::Values;
use super::shape::{MAX_SPIFFE_ID, Shape};
use super::{Dialect, Field, Function, Piece, Source, Template, TemplateError, template_text};
use crate::spiffe::shown::Shown;
use crate::spiffe::{Environment, Workload};
use crate::{Error, ErrorKind, Result};

static DIALECT: Dialect = Dialect {
    name: "path template",
    fields: &[
        Field::Namespace,
        Field::ServiceAccount,
        Field::Workload,
        Field::TrustDomain,
    ],
    functions: &[Function::Label, Function::Replace],
    shape: Shape::Path,
};

/// How many segments of a path are handed over without an allocation.
const INLINE_SEGMENTS: usize = 16;

/// The template of the path of a SPIFFE ID: `spec.spiffeID.path` of a MeshIdentity.
///
/// It may use `.Namespace`, `.ServiceAccount`, `.Workload`, `.TrustDomain`, `label "key"` (the labels
/// of the Dataplane) and `replace`. The default [depends on the environment](Self::default_for).
///
/// A value fills a segment, or a part of one, and nothing else: the result always has as many
/// segments as the template, whatever the labels of a proxy say.
///
/// ```
/// use meshca_core::spiffe::{PathTemplate, TrustDomain, Workload};
///
/// let template = PathTemplate::parse(r#"/team/{{ label "team" }}/{{ .Workload }}"#)?;
/// let trust_domain = TrustDomain::new("prod.mesh.local").expect("a trust domain");
/// let workload = Workload::from_label_list("team=checkout,kuma.io/workload=cart")?;
/// let id = template.render(&trust_domain, &workload)?;
/// assert_eq!(id.to_string(), "spiffe://prod.mesh.local/team/checkout/cart");
///
/// let liar = Workload::from_label_list("team=checkout/cart,kuma.io/workload=x")?;
/// assert_eq!(
///     template.render(&trust_domain, &liar).unwrap_err().to_string(),
///     "label `team` has the value `checkout/cart`: `/` would change the shape of the SPIFFE ID"
/// );
/// # Ok::<(), meshca_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, derive_more::Display, Serialize)]
#[serde(transparent)]
pub struct PathTemplate(Template);

impl PathTemplate {
    /// The default on Kubernetes: namespace and service account.
    pub const KUBERNETES: &'static str = "/ns/{{ .Namespace }}/sa/{{ .ServiceAccount }}";

    /// The default on Universal: the workload's name.
    pub const UNIVERSAL: &'static str = "/workload/{{ .Workload }}";

    /// Parses and checks a template: its syntax, the names it uses, and its literal text, which must
    /// make a path (SPIFFE-ID §2.2): it starts with `/`, has no empty, `.` or `..` segment, does not
    /// end in `/`, and consists of letters, digits, `.`, `-` and `_`.
    ///
    /// # Errors
    ///
    /// A [`TemplateError`] that says where the template is wrong and what may stand there.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Template::parse(&DIALECT, text).map(Self)
    }

    /// The template that a MeshIdentity without one has: [`KUBERNETES`](Self::KUBERNETES) or
    /// [`UNIVERSAL`](Self::UNIVERSAL).
    pub fn default_for(environment: Environment) -> Self {
        let (source, pieces) = match environment {
            Environment::Kubernetes => (
                Self::KUBERNETES,
                vec![
                    Piece::Literal("/ns/".into()),
                    Piece::field(Field::Namespace),
                    Piece::Literal("/sa/".into()),
                    Piece::field(Field::ServiceAccount),
                ],
            ),
            Environment::Universal => (
                Self::UNIVERSAL,
                vec![
                    Piece::Literal("/workload/".into()),
                    Piece::field(Field::Workload),
                ],
            ),
        };
        Self(Template {
            source: source.into(),
            pieces,
        })
    }

    /// The SPIFFE ID of a workload in this trust domain.
    ///
    /// # Errors
    ///
    /// As [`render_path`](Self::render_path).
    pub fn render(&self, trust_domain: &TrustDomain, workload: &Workload) -> Result<SpiffeId> {
        let values = PathValues {
            trust_domain,
            workload,
        };
        let path = self.0.render_unchecked(Shape::Path, &values)?;
        check_length(trust_domain, &path)?;
        // From here on the check of the whole is the one of the `spiffe` crate, so that no segment
        // can be made that somebody else reads differently.
        let mut segments = path.split('/');
        if segments.next() != Some("") {
            return Err(Error::new(
                ErrorKind::Internal,
                "a path template without a leading `/`",
            ));
        }
        let mut inline = [""; INLINE_SEGMENTS];
        let mut count = 0;
        for (slot, segment) in inline.iter_mut().zip(segments.by_ref()) {
            *slot = segment;
            count += 1;
        }
        let head = inline.get(..count).unwrap_or_default();
        let id = match segments.next() {
            None => SpiffeId::from_segments(trust_domain.clone(), head),
            Some(next) => {
                let all: Vec<&str> = head.iter().copied().chain([next]).chain(segments).collect();
                SpiffeId::from_segments(trust_domain.clone(), &all)
            }
        };
        id.map_err(|error| {
            Error::new(
                ErrorKind::InvalidRequest,
                format!("`{}` is not the path of a SPIFFE ID", Shown(&path)),
            )
            .with_source(error)
        })
    }

    /// The path alone, with its leading `/`.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`](ErrorKind::InvalidRequest) if the workload lacks a label that the template
    /// uses, if a value is empty, is `.` or `..`, or has a character that a path segment cannot have
    /// (SPIFFE-ID §2.2), or if the whole SPIFFE ID is longer than 2048 bytes (§2.3). The message
    /// names the label.
    pub fn render_path(&self, trust_domain: &TrustDomain, workload: &Workload) -> Result<String> {
        let values = PathValues {
            trust_domain,
            workload,
        };
        let path = self.0.render(Shape::Path, &values)?;
        check_length(trust_domain, &path)?;
        Ok(path)
    }
}

template_text!(
    PathTemplate,
    "/ns/{{ .Namespace }}/sa/{{ .ServiceAccount }}"
);

struct PathValues<'a> {
    trust_domain: &'a TrustDomain,
    workload: &'a Workload,
}

impl Values for PathValues<'_> {
    fn get(&self, source: &Source) -> Result<&str> {
        let key = match source {
            Source::Field(Field::TrustDomain) => return Ok(self.trust_domain.as_str()),
            Source::Field(field) => field.label(),
            Source::Label(key) => Some(key.as_str()),
            Source::Tag(_) => None,
        };
        let Some(key) = key else {
            return Err(Error::new(ErrorKind::Internal, "not a value of a path"));
        };
        self.workload.label(key).ok_or_else(|| missing(source, key))
    }
}

/// SPIFFE-ID §2.3.
fn check_length(trust_domain: &TrustDomain, path: &str) -> Result<()> {
    let length = "spiffe://".len() + trust_domain.as_str().len() + path.len();
    if length > MAX_SPIFFE_ID {
        let message = format!(
            "the SPIFFE ID is {length} bytes long and may have {MAX_SPIFFE_ID}: shorten a label"
        );
        return Err(Error::new(ErrorKind::InvalidRequest, message));
    }
    Ok(())
}

#[cold]
fn missing(source: &Source, key: &str) -> Error {
    let used = match source {
        Source::Field(field) => format!("which the path template reads as `.{}`", field.name()),
        _ => "which the path template uses".to_owned(),
    };
    let key = Shown(key);
    let message = format!("the proxy has no label `{key}`, {used}: add the label");
    Error::new(ErrorKind::InvalidRequest, message)
}
