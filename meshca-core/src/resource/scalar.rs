//! What a scalar is: text, a number, a boolean or nothing.

use std::borrow::Cow;

use granit_parser::Tag;

use super::node::Value;
use super::violation::Location;

/// The reason why reading ends early, and the place.
pub(super) type Failure = (Location, String);

pub(super) fn check_tag(tag: Option<&Tag>, expected: &str, at: Location) -> Result<(), Failure> {
    match tag {
        Some(tag) if tag.core_suffix() != Some(expected) => Err(refuse_tag(tag, at)),
        _ => Ok(()),
    }
}

fn refuse_tag(tag: &Tag, at: Location) -> Failure {
    (
        at,
        format!("the tag `{tag}` has no meaning here: remove it"),
    )
}

pub(super) fn resolve_tagged<'a>(
    text: Cow<'a, str>,
    tag: &Tag,
    at: Location,
) -> Result<Value<'a>, Failure> {
    match tag.core_suffix() {
        Some("str") => Ok(Value::Str(text)),
        Some(suffix @ ("null" | "bool" | "int" | "float")) => {
            let value = resolve(text, at)?;
            match (suffix, &value) {
                ("null", Value::Null)
                | ("bool", Value::Bool(_))
                | ("int", Value::Int(_) | Value::UInt(_))
                | ("float", Value::Int(_) | Value::UInt(_) | Value::Float(_)) => Ok(value),
                _ => Err((at, format!("this is not a `!!{suffix}`"))),
            }
        }
        _ => Err(refuse_tag(tag, at)),
    }
}

/// The YAML 1.2 core schema (YAML 1.2.2, section 10.3.2).
pub(super) fn resolve(text: Cow<'_, str>, at: Location) -> Result<Value<'_>, Failure> {
    let value = match text.as_ref() {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        number
            if number.starts_with(|first: char| {
                first.is_ascii_digit() || matches!(first, '-' | '+' | '.')
            }) =>
        {
            match resolve_number(number, at)? {
                Some(value) => value,
                None => Value::Str(text),
            }
        }
        _ => Value::Str(text),
    };
    Ok(value)
}

fn resolve_number(text: &str, at: Location) -> Result<Option<Value<'static>>, Failure> {
    let not_finite = || {
        (
            at,
            format!("`{text}` is not a finite number: put it in quotes if it is text"),
        )
    };
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Err(not_finite());
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix) {
            return Ok(u64::from_str_radix(digits, radix)
                .ok()
                .filter(|_| !digits.starts_with('+'))
                .map(|value| i64::try_from(value).map_or(Value::UInt(value), Value::Int)));
        }
    }
    if let Ok(value) = text.parse::<i64>() {
        return Ok(Some(Value::Int(value)));
    }
    if let Ok(value) = text.parse::<u64>() {
        return Ok(Some(Value::UInt(value)));
    }
    // YAML's `( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`. Rust reads the same, and words such as `inf` besides.
    let words = unsigned.starts_with(|first: char| first.is_ascii_alphabetic());
    match text.parse::<f64>().ok().filter(|_| !words) {
        Some(value) if value.is_finite() => Ok(Some(Value::Float(value))),
        Some(_) => Err(not_finite()),
        None => Ok(None),
    }
}
