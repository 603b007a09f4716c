//! What a message shows of values that others wrote.

use std::fmt::{self, Write as _};

/// How much of an outside value a message shows, in characters.
const MAX_SHOWN: usize = 64;

/// One character, escaped if it would not show.
pub(super) fn shown(character: char) -> String {
    Shown(character.encode_utf8(&mut [0; 4])).to_string()
}

/// The beginning of an outside value, escaped: what a message may show of it.
pub(super) struct Shown<'a>(pub(super) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut length = 0;
        for character in self.0.chars() {
            let plain = matches!(character, '\'' | '"');
            let escaped = character.escape_default();
            length += if plain { 1 } else { escaped.len() };
            if length > MAX_SHOWN {
                return f.write_str("…");
            }
            if plain {
                f.write_char(character)?;
            } else {
                write!(f, "{escaped}")?;
            }
        }
        Ok(())
    }
}
