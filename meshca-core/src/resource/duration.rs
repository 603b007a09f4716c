//! The two ways to write a duration.
//!
//! `Mesh` takes one whole number and one unit of `ms s m h d w y` (`1d`, `720h`); `MeshIdentity` takes
//! what Go's `time.ParseDuration` takes (`24h`, `1h30m`, `1.5s`).

use std::time::Duration;

use serde_json::json;

use super::decode::{Clip, Cursor};
use super::field::{Codec, Described, try_spelt};
use super::node::Value;

/// A day has 24 hours and a year 365 days, as in the product.
const MESH_UNITS: [(&str, u64); 7] = [
    ("y", 365 * 86_400_000),
    ("w", 7 * 86_400_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

const GO_UNITS: [(&str, u64); 8] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1000),
    ("\u{b5}s", 1000),
    ("\u{3bc}s", 1000),
    ("ns", 1),
];

/// Go counts nanoseconds in an `int64`, and both grammars are read by Go programs.
const MAX: Duration = Duration::from_nanos(i64::MAX as u64);

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

/// One whole number and one unit.
pub(crate) fn parse_mesh(text: &str) -> Result<Duration, &'static str> {
    const SHAPE: &str = "a duration here is one whole number and one unit of ms, s, m, h, d, w or y, such as `24h` or `30d`";
    let (digits, unit) = split_digits(text);
    let unit = MESH_UNITS.iter().find(|(name, _)| *name == unit);
    let Some((_, millis)) = unit.filter(|_| !digits.is_empty()) else {
        return Err(SHAPE);
    };
    let number = digits.parse::<u64>().ok();
    number
        .and_then(|number| number.checked_mul(*millis))
        .map(Duration::from_millis)
        .filter(|duration| *duration <= MAX)
        .ok_or(TOO_LONG)
}

const TOO_LONG: &str = "this duration is longer than the 292 years that can be represented";

/// The shortest way to write it, in the largest unit that divides it. `None` below a millisecond.
pub(crate) fn format_mesh(duration: Duration) -> Option<String> {
    let millis = u64::try_from(duration.as_millis()).ok()?;
    if duration > MAX || Duration::from_millis(millis) != duration {
        return None;
    }
    if millis == 0 {
        return Some("0s".to_owned());
    }
    // Operators think in days, not in weeks: 7d, not 1w.
    let (name, unit) = MESH_UNITS
        .iter()
        .filter(|(name, _)| *name != "w")
        .find(|(_, unit)| millis.is_multiple_of(*unit))?;
    Some(format!("{}{name}", millis / unit))
}

/// What Go's `time.ParseDuration` takes, without the negative ones.
pub(crate) fn parse_go(text: &str) -> Result<Duration, &'static str> {
    const SHAPE: &str = "a duration here is a Go duration: numbers with units of h, m, s, ms, us or ns, such as `24h` or `1h30m`";
    if text.starts_with('-') {
        return Err("a duration must not be negative");
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(SHAPE);
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let (whole, after) = split_digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => split_digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(SHAPE);
        }
        let unit_len = after
            .bytes()
            .take_while(|byte| !byte.is_ascii_digit() && *byte != b'.')
            .count();
        let (unit, after) = after.split_at(unit_len);
        let Some((_, unit)) = GO_UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(SHAPE);
        };
        let unit = u128::from(*unit);
        if !whole.is_empty() {
            let whole: u64 = whole.parse().map_err(|_| TOO_LONG)?;
            nanos += u128::from(whole) * unit;
        }
        // Further digits are below a nanosecond of the largest unit.
        let mut scale: u128 = 1;
        let mut value: u128 = 0;
        for digit in fraction.bytes().take(18) {
            value = value * 10 + u128::from(digit - b'0');
            scale *= 10;
        }
        nanos += value * unit / scale;
        if nanos > MAX.as_nanos() {
            return Err(TOO_LONG);
        }
        rest = after;
    }
    u64::try_from(nanos)
        .map(Duration::from_nanos)
        .map_err(|_| TOO_LONG)
}

/// A Go duration of whole numbers: `1h30m`. `None` if it is longer than Go can hold.
pub(crate) fn format_go(duration: Duration) -> Option<String> {
    let mut nanos = u64::try_from(duration.as_nanos())
        .ok()
        .filter(|_| duration <= MAX)?;
    if nanos == 0 {
        return Some("0s".to_owned());
    }
    let mut text = String::new();
    for (name, unit) in GO_UNITS.iter().filter(|(name, _)| name.is_ascii()) {
        if nanos >= *unit {
            text.push_str(&format!("{}{name}", nanos / unit));
            nanos %= unit;
        }
    }
    Some(text)
}

fn read(at: Cursor<'_>, parse: fn(&str) -> Result<Duration, &'static str>) -> Option<Duration> {
    if let Value::Int(number) = at.node.value {
        return at.error(format_args!("a duration needs a unit, such as `{number}s`"));
    }
    let text = at.text()?;
    parse(text).map_or_else(
        |reason| at.error(format_args!("`{}`: {reason}", Clip(text))),
        Some,
    )
}

/// Reads a duration: one whole number and one unit of `ms`, `s`, `m`, `h`, `d`, `w` and `y`, such as `24h`.
pub fn mesh(at: Cursor<'_>) -> Option<Duration> {
    read(at, parse_mesh)
}

fn go(at: Cursor<'_>) -> Option<Duration> {
    read(at, parse_go)
}

fn positive(at: Cursor<'_>, duration: Duration, why_not_zero: &str) -> Option<Duration> {
    match duration.is_zero() {
        true => at.error(why_not_zero),
        false => Some(duration),
    }
}

/// The shortest lifetime of a certificate: its times are whole seconds (RFC 5280 §4.1.2.5).
const MIN_LIFETIME: Duration = Duration::from_secs(1);

/// The shortest lifetime of a CA. One with less is ready too late for the steps of its own rotation, and has an end
/// before the leaves under it: most of the time there would be no certificate.
pub(crate) const MIN_CA_LIFETIME: Duration = Duration::from_secs(3600);

fn lifetime(at: Cursor<'_>, duration: Duration) -> Option<Duration> {
    match duration {
        Duration::ZERO => {
            at.error("must be longer than 0: such a certificate has expired before it is used")
        }
        short if short < MIN_LIFETIME => {
            at.error("must be 1 second or more: the times in a certificate are whole seconds")
        }
        enough => Some(enough),
    }
}

/// A lifetime in a `Mesh`.
pub(crate) fn mesh_lifetime() -> impl Codec<Value = Duration> {
    in_mesh(|at| lifetime(at, mesh(at)?))
}

/// The lifetime of a CA in a `Mesh`.
pub(crate) fn mesh_ca_lifetime() -> impl Codec<Value = Duration> {
    in_mesh(|at| match lifetime(at, mesh(at)?)? {
        short if short < MIN_CA_LIFETIME => at.error(
            "must be 1 hour or more: the steps in which a CA is replaced do not fit into less, \
             and workloads would be without a certificate",
        ),
        enough => Some(enough),
    })
}

/// A time limit of the control plane in a `Mesh`.
pub(crate) fn mesh_timeout() -> impl Codec<Value = Duration> {
    const UNANSWERED: &str = "must be positive: nothing is answered in no time";
    in_mesh(|at| positive(at, mesh(at)?, UNANSWERED))
}

fn in_mesh(read: fn(Cursor<'_>) -> Option<Duration>) -> impl Codec<Value = Duration> {
    let codec = try_spelt(read, |duration| format_mesh(*duration).ok_or(INEXPRESSIBLE));
    Described(codec, || {
        json!({
            "description": "One whole number and one unit: `24h`, `30d`",
            "pattern": "^[0-9]+(ms|s|m|h|d|w|y)$",
        })
    })
}

/// A lifetime in a `MeshIdentity`.
pub(crate) fn go_lifetime() -> impl Codec<Value = Duration> {
    in_go(|at| lifetime(at, go(at)?))
}

/// Any duration in a `MeshIdentity`.
pub(crate) fn go_duration() -> impl Codec<Value = Duration> {
    in_go(go)
}

fn in_go(read: fn(Cursor<'_>) -> Option<Duration>) -> impl Codec<Value = Duration> {
    let codec = try_spelt(read, |duration| format_go(*duration).ok_or(INEXPRESSIBLE));
    Described(codec, || {
        json!({
            "description": "A duration as Go writes it: `24h`, `1h30m`",
            "pattern": "^\\+?(0|(([0-9]+\\.?[0-9]*|\\.[0-9]+)(h|m|s|ms|us|\u{b5}s|\u{3bc}s|ns))+)$",
        })
    })
}

const INEXPRESSIBLE: &str = "a duration that this field cannot express: too long or too fine";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mesh_grammar() {
        let day = Duration::from_secs(86_400);
        for (text, expected) in [
            ("1d", Some(day)),
            ("24h", Some(day)),
            ("1w", Some(7 * day)),
            ("10y", Some(3650 * day)),
            ("15ms", Some(Duration::from_millis(15))),
            ("0s", Some(Duration::ZERO)),
            ("007m", Some(Duration::from_secs(420))),
            ("1h30m", None),
            ("1.5h", None),
            ("-1d", None),
            ("+1d", None),
            ("1", None),
            ("0", None),
            ("d", None),
            ("", None),
            ("1 d", None),
            ("1D", None),
            ("1us", None),
            ("293y", None),
            ("99999999999999999999y", None),
        ] {
            assert_eq!(parse_mesh(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn go_grammar() {
        for (text, expected) in [
            ("24h", Some(Duration::from_secs(86_400))),
            ("1h30m", Some(Duration::from_secs(5400))),
            ("1.5h", Some(Duration::from_secs(5400))),
            (".5s", Some(Duration::from_millis(500))),
            ("1.s", Some(Duration::from_secs(1))),
            ("+3us", Some(Duration::from_micros(3))),
            ("3µs", Some(Duration::from_micros(3))),
            ("3μs", Some(Duration::from_micros(3))),
            ("1m1m", Some(Duration::from_secs(120))),
            ("0", Some(Duration::ZERO)),
            ("2562047h47m16.854775807s", Some(MAX)),
            ("2562047h47m16.854775808s", None),
            ("99999999999999999999h", None),
            ("-1h", None),
            ("1d", None),
            (".h", None),
            (".", None),
            ("", None),
            ("+", None),
            ("h", None),
            ("1", None),
            ("1 h", None),
        ] {
            assert_eq!(parse_go(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn durations_are_written_in_the_unit_that_people_use() {
        for (millis, mesh, go) in [
            (86_400_000, "1d", "24h"),
            (604_800_000, "7d", "168h"),
            (5_400_000, "90m", "1h30m"),
            (1500, "1500ms", "1s500ms"),
            (0, "0s", "0s"),
        ] {
            let duration = Duration::from_millis(millis);
            assert_eq!(format_mesh(duration).unwrap(), mesh);
            assert_eq!(format_go(duration).unwrap(), go);
        }
        assert_eq!(format_mesh(Duration::from_nanos(1)), None);
        assert_eq!(format_go(Duration::MAX), None);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(nanos in 0..=i64::MAX as u64) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_go(&format_go(duration).unwrap()), Ok(duration));
            let duration = Duration::from_millis(nanos / 1_000_000);
            prop_assert_eq!(parse_mesh(&format_mesh(duration).unwrap()), Ok(duration));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*", numbers in "[0-9.hmsuµn+-]{0,40}") {
            for text in [&text, &numbers] {
                let _ = (parse_go(text), parse_mesh(text));
            }
        }
    }
}
