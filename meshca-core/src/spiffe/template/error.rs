use std::ops::Range;

use crate::{Error, ErrorKind};

/// Why a text is not a template of the wanted kind, and where.
///
/// [`Display`](std::fmt::Display) names the kind of template, the place and what to do. As a
/// [`crate::Error`] it is of the kind [`InvalidConfig`](ErrorKind::InvalidConfig).
///
/// ```
/// use meshca_core::spiffe::PathTemplate;
///
/// let error = PathTemplate::parse("/ns/{{ .Namespce }}").unwrap_err();
/// assert_eq!(error.offset(), 7..16);
/// assert_eq!(
///     error.to_string(),
///     "path template, byte 7: unknown variable `.Namespce`; did you mean `.Namespace`? A path template \
///      may use `.Namespace`, `.ServiceAccount`, `.Workload`, `.TrustDomain`, `label \"key\"` and \
///      `replace \"old\" \"new\" value`"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq, derive_more::Display)]
#[display("{}, byte {}: {}", _0.template, _0.offset.start, _0.message)]
pub struct TemplateError(Box<Inner>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Inner {
    template: &'static str,
    offset: Range<usize>,
    message: String,
}

impl TemplateError {
    #[cold]
    pub(super) fn new(
        template: &'static str,
        offset: Range<usize>,
        message: impl Into<String>,
    ) -> Self {
        Self(Box::new(Inner {
            template,
            offset,
            message: message.into(),
        }))
    }

    /// The bytes of the template that are wrong. Empty, at its end, when something is missing there.
    pub fn offset(&self) -> Range<usize> {
        self.0.offset.clone()
    }

    /// What is wrong, without the place: for a caller that knows a better one, such as a line of a
    /// file.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl std::error::Error for TemplateError {}

impl From<TemplateError> for Error {
    fn from(error: TemplateError) -> Self {
        Self::new(ErrorKind::InvalidConfig, error.to_string())
    }
}
