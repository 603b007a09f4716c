//! What several parts of this crate say of a setting.

use std::borrow::Cow;

use meshca_core::{Error, ErrorKind};

/// A setting, or what it names, is of no use.
pub(crate) fn misconfigured(what: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidConfig, what)
}
