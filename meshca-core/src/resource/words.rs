//! Names and values in messages.

use std::fmt;

/// How many names a message lists.
pub(super) const MAX_LISTED: usize = 12;

/// The name that was probably meant, if there is exactly one.
pub(crate) fn nearest<'n>(text: &str, names: &[&'n str]) -> Option<&'n str> {
    if text.len() > 64 {
        return None;
    }
    let mut best: Option<(usize, &str)> = None;
    let mut tied = false;
    for name in names.iter().copied().filter(|name| *name != text) {
        let distance = if name.eq_ignore_ascii_case(text) {
            0
        } else {
            strsim::osa_distance(text, name)
        };
        if distance > name.len().max(text.len()) / 3 {
            continue;
        }
        match best {
            Some((least, _)) if distance > least => {}
            Some((least, _)) if distance == least => tied = true,
            _ => (best, tied) = (Some((distance, name)), false),
        }
    }
    best.filter(|_| !tied).map(|(_, name)| name)
}

/// `` `a`, `b` and `c` ``
pub(crate) struct List<'l>(pub(crate) &'l [&'l str]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        join(f, self.0, "and")
    }
}

/// `` `a`, `b` or `c` ``
pub(crate) struct OneOf<'l>(pub(crate) &'l [&'l str]);

impl fmt::Display for OneOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        join(f, self.0, "or")
    }
}

fn join(f: &mut fmt::Formatter<'_>, names: &[&str], last: &str) -> fmt::Result {
    for (index, name) in names.iter().enumerate() {
        match index {
            0 => {}
            MAX_LISTED => return write!(f, " {last} {} others", names.len() - index),
            _ if index + 1 == names.len() => write!(f, " {last} ")?,
            _ => f.write_str(", ")?,
        }
        write!(f, "`{name}`")?;
    }
    Ok(())
}

/// A value from outside, short enough for one line and without control characters.
pub(crate) struct Clip<'t>(pub(crate) &'t str);

impl fmt::Display for Clip<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut characters = self.0.chars();
        for character in characters.by_ref().take(64) {
            write!(f, "{}", character.escape_debug())?;
        }
        if characters.next().is_some() {
            f.write_str("…")
        } else {
            Ok(())
        }
    }
}
