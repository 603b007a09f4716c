use std::collections::BTreeMap;

use ::spiffe::TrustDomain;
use serde::Serialize;

use super::render::Values;
use super::shape::Shape;
use super::{Dialect, Field, Function, Piece, Source, Template, TemplateError, template_text};
use crate::spiffe::shown::Shown;
use crate::{Error, ErrorKind, Result};

static DIALECT: Dialect = Dialect {
    name: "trust domain template",
    fields: &[Field::Mesh, Field::Zone],
    functions: &[Function::Label, Function::Replace],
    shape: Shape::TrustDomain,
};

/// The template of a trust domain: `spec.spiffeID.trustDomain` of a MeshIdentity.
///
/// It may use `.Mesh`, `.Zone`, `label "key"` (the labels of the MeshIdentity) and `replace`.
/// The default is [`DEFAULT`](Self::DEFAULT).
///
/// ```
/// use meshca_core::spiffe::{TrustDomainInputs, TrustDomainTemplate};
///
/// let trust_domain = TrustDomainTemplate::default().render(&TrustDomainInputs::new("prod", "eu-1"))?;
/// assert_eq!(trust_domain.as_str(), "prod.eu-1.mesh.local");
/// # Ok::<(), meshca_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, derive_more::Display, Serialize)]
#[serde(transparent)]
pub struct TrustDomainTemplate(Template);

impl TrustDomainTemplate {
    /// The template that a MeshIdentity without one has: each zone of a mesh is a trust domain.
    pub const DEFAULT: &'static str = "{{ .Mesh }}.{{ .Zone }}.mesh.local";

    /// Parses and checks a template: its syntax, the names it uses, and its literal text, which must
    /// consist of lower-case letters, digits, `.`, `-` and `_` (SPIFFE-ID §2.1).
    ///
    /// # Errors
    ///
    /// A [`TemplateError`] that says where the template is wrong and what may stand there.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Template::parse(&DIALECT, text).map(Self)
    }

    /// The trust domain for these inputs.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`](ErrorKind::InvalidRequest) if a label is missing, if a value is empty, has
    /// a character that a trust domain cannot have – upper case included – or if the result is
    /// longer than 255 bytes (SPIFFE-ID §2.1). The message names the variable or label.
    pub fn render(&self, inputs: &TrustDomainInputs<'_>) -> Result<TrustDomain> {
        let name = self.0.render(Shape::TrustDomain, inputs)?;
        TrustDomain::new(&name).map_err(|error| {
            let message = format!("`{}` is not a trust domain", Shown(&name));
            Error::new(ErrorKind::InvalidRequest, message).with_source(error)
        })
    }
}

impl Default for TrustDomainTemplate {
    /// [`DEFAULT`](Self::DEFAULT).
    fn default() -> Self {
        Self(Template {
            source: Self::DEFAULT.into(),
            pieces: vec![
                Piece::field(Field::Mesh),
                Piece::Literal(".".into()),
                Piece::field(Field::Zone),
                Piece::Literal(".mesh.local".into()),
            ],
        })
    }
}

template_text!(TrustDomainTemplate, "{{ .Mesh }}.{{ .Zone }}.mesh.local");

/// What a [`TrustDomainTemplate`] is rendered with.
#[derive(Clone, Copy, Debug)]
pub struct TrustDomainInputs<'a> {
    mesh: &'a str,
    zone: &'a str,
    labels: Option<&'a BTreeMap<String, String>>,
}

impl<'a> TrustDomainInputs<'a> {
    /// The name of the mesh and of the zone whose control plane issues.
    pub fn new(mesh: &'a str, zone: &'a str) -> Self {
        Self {
            mesh,
            zone,
            labels: None,
        }
    }

    /// Adds the labels of the MeshIdentity.
    #[must_use]
    pub fn with_labels(mut self, labels: &'a BTreeMap<String, String>) -> Self {
        self.labels = Some(labels);
        self
    }
}

impl Values for TrustDomainInputs<'_> {
    fn get(&self, source: &Source) -> Result<&str> {
        match source {
            Source::Field(Field::Mesh) => Ok(self.mesh),
            Source::Field(Field::Zone) => Ok(self.zone),
            Source::Label(key) => match self.labels.and_then(|labels| labels.get(key)) {
                Some(value) => Ok(value),
                None => {
                    let key = Shown(key);
                    let message = format!(
                        "the MeshIdentity has no label `{key}`, which its trust domain template uses: add the label"
                    );
                    Err(Error::new(ErrorKind::InvalidRequest, message))
                }
            },
            Source::Field(_) | Source::Tag(_) => Err(Error::new(
                ErrorKind::Internal,
                "not a value of a trust domain",
            )),
        }
    }
}
