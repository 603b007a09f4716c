use serde::Serialize;

use super::render::Values;
use super::shape::Shape;
use super::{Dialect, Function, Source, Template, TemplateError, template_text};
use crate::spiffe::Workload;
use crate::spiffe::shown::Shown;
use crate::{Error, ErrorKind, Result};

static DIALECT: Dialect = Dialect {
    name: "common name template",
    fields: &[],
    functions: &[Function::Tag, Function::Label, Function::Replace],
    shape: Shape::CommonName,
};

/// The template of a subject's common name: `commonName` of the classic backends.
///
/// It may use `tag "key"` (the tags of a classic Dataplane), `label "key"` and `replace`. There is
/// no default: without a template a certificate has no common name.
///
/// The result has 1 to 64 characters (RFC 5280, appendix A.1, `ub-common-name`), in the form of a DNS
/// name: parts of 1 to 63 characters (RFC 1035 §2.3.4), separated by dots. Beyond letters, digits
/// and `-` (RFC 1123 §2.1) it may have `_`, which service names are full of; a CA that insists on
/// host names refuses it, hence `replace`. A `*` is refused: a wildcard would make the
/// certificate of one workload a certificate for its neighbours.
///
/// ```
/// use meshca_core::spiffe::{NameTemplate, Workload};
///
/// let template = NameTemplate::parse(r#"{{ tag "kuma.io/service" | replace "_" "-" }}.mesh"#)?;
/// let workload = Workload::new().with_tag("kuma.io/service", "backend_shop_svc_80");
/// assert_eq!(template.render(&workload)?, "backend-shop-svc-80.mesh");
/// # Ok::<(), meshca_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, derive_more::Display, Serialize)]
#[serde(transparent)]
pub struct NameTemplate(Template);

impl NameTemplate {
    /// Parses and checks a template: its syntax, the names it uses, and its literal text.
    ///
    /// # Errors
    ///
    /// A [`TemplateError`] that says where the template is wrong and what may stand there.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Template::parse(&DIALECT, text).map(Self)
    }

    /// The common name of a workload.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`](ErrorKind::InvalidRequest) if the workload lacks a tag or label that the
    /// template uses, if it has several values of that tag, or if the value – after every `replace` –
    /// or the result does not fit a common name. The message names the tag or label.
    pub fn render(&self, workload: &Workload) -> Result<String> {
        self.0.render(Shape::CommonName, &NameValues(workload))
    }
}

template_text!(
    NameTemplate,
    r#"{{ tag "kuma.io/service" | replace "_" "-" }}.mesh"#
);

struct NameValues<'a>(&'a Workload);

impl Values for NameValues<'_> {
    fn get(&self, source: &Source) -> Result<&str> {
        match source {
            Source::Label(key) => self.0.label(key).ok_or_else(|| missing("label", key)),
            Source::Tag(key) => {
                let mut values = self.0.tags().get(key).into_iter().flatten();
                match (values.next(), values.next()) {
                    (Some(value), None) => Ok(value),
                    (None, _) => Err(missing("tag", key)),
                    (Some(first), Some(second)) => Err(several(key, first, second)),
                }
            }
            Source::Field(_) => Err(Error::new(
                ErrorKind::Internal,
                "not a value of a common name",
            )),
        }
    }
}

#[cold]
fn missing(what: &str, key: &str) -> Error {
    let message = format!(
        "the proxy has no {what} `{}`, which the common name template uses: add the {what}",
        Shown(key)
    );
    Error::new(ErrorKind::InvalidRequest, message)
}

#[cold]
fn several(key: &str, first: &str, second: &str) -> Error {
    let message = format!(
        "the proxy has several values of tag `{}` (`{}`, `{}`, …), and the common name template needs exactly one",
        Shown(key),
        Shown(first),
        Shown(second)
    );
    Error::new(ErrorKind::InvalidRequest, message)
}
