//! Templates as fields.

use super::decode::Cursor;
use crate::spiffe::{NameTemplate, PathTemplate, TemplateError, TrustDomainTemplate};

fn read<T>(at: Cursor<'_>, parse: fn(&str) -> Result<T, TemplateError>) -> Option<T> {
    parse(at.text()?).map_or_else(|error| at.error(error), Some)
}

pub(crate) fn trust_domain(at: Cursor<'_>) -> Option<TrustDomainTemplate> {
    read(at, TrustDomainTemplate::parse)
}

pub(crate) fn path(at: Cursor<'_>) -> Option<PathTemplate> {
    read(at, PathTemplate::parse)
}

/// Reads a template for a common name or a DNS name.
pub fn name(at: Cursor<'_>) -> Option<NameTemplate> {
    read(at, NameTemplate::parse)
}
