//! Descriptions of the faults that the checks find.

use meshca_core::Error;

/// Descriptions of what is wrong.
#[derive(Debug, Default)]
pub(super) struct Faults(pub(super) Vec<String>);

impl Faults {
    pub(super) fn push(&mut self, fault: impl Into<String>) {
        self.0.push(fault.into());
    }
}

impl From<String> for Faults {
    fn from(fault: String) -> Self {
        Self(vec![fault])
    }
}

impl From<&str> for Faults {
    fn from(fault: &str) -> Self {
        fault.to_owned().into()
    }
}

impl From<Error> for Faults {
    fn from(error: Error) -> Self {
        told(&error).into()
    }
}

/// An error with its kind, since that is what callers act on.
pub(super) fn told(error: &Error) -> String {
    let mut text = format!("{error} [{}, {:?}]", error.kind().as_str(), error.retry());
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
