//! The URIs of tags, which the classic model puts beside the SPIFFE ID.

use super::shown::Shown;
use crate::{Error, ErrorKind, Result};

const SCHEME: &str = "kuma://";

/// `kuma://<tag>/<value>`, for a tag and a value that fill their places and do nothing else. The value has no `/`, so
/// the last one of the URI is where it begins: no two pairs have one URI.
pub(crate) fn tag_uri(tag: &str, value: &str) -> Result<String> {
    let refused = |what: &str, text: &str, why: &str| {
        let (tag, text) = (Shown(tag), Shown(text));
        let message = format!(
            "the tag `{tag}` cannot be a URI of a certificate: its {what} is `{text}`, {why}"
        );
        Error::new(ErrorKind::InvalidRequest, message)
    };
    check_name(tag).map_err(|why| refused("name", tag, why))?;
    check_segment(value).map_err(|why| refused("value", value, why))?;
    Ok([SCHEME, tag, "/", value].concat())
}

/// Whether this is the URI of some tag; why not, if not.
pub(crate) fn check(uri: &str) -> std::result::Result<(), &'static str> {
    let Some(rest) = uri.strip_prefix(SCHEME) else {
        return Err("beside the SPIFFE ID, a certificate has no URIs but tags (`kuma://…`)");
    };
    let Some((tag, value)) = rest.rsplit_once('/') else {
        return Err("the URI of a tag is `kuma://<tag>/<value>`, and this one has no value");
    };
    check_name(tag)
        .and_then(|()| check_segment(value))
        .map_err(|_| {
            "the URI of a tag is `kuma://<tag>/<value>`, each part of letters, digits, `.`, `-`, `_` and `:`, \
             and this one has another shape"
        })
}

/// The name of a tag: segments, of which the first is the authority of the URI.
fn check_name(tag: &str) -> std::result::Result<(), &'static str> {
    if tag
        .split('/')
        .next()
        .is_some_and(|first| first.contains(':'))
    {
        return Err("and a `:` before its first `/` would be read as the port of a host");
    }
    tag.split('/').try_for_each(check_segment)
}

/// The characters are those that the product allows in tags.
fn check_segment(segment: &str) -> std::result::Result<(), &'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    match segment {
        "" => Err("and an empty part would change the shape of the URI"),
        "." | ".." => Err("and `.` or `..` alone would change the shape of the URI"),
        _ if segment.contains('/') => Err("and a `/` in it would change the shape of the URI"),
        _ if !segment.bytes().all(allowed) => {
            Err("and a tag has only letters, digits, `.`, `-`, `_` and `:`")
        }
        _ => Ok(()),
    }
}
