//! The error that several parts of this crate share.

use std::borrow::Cow;

use meshca_core::{Error, ErrorKind};

/// An error for a setting that cannot be used, or that names something which cannot.
pub(crate) fn misconfigured(what: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidConfig, what)
}
