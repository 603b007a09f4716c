//! A Vault token, wiped when the last request with it is done.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use meshca_core::Result;
use zeroize::Zeroizing;

use crate::error::misconfigured;

/// A token, in the form in which every request carries it.
///
/// Comparing it need not take constant time: both sides are ours.
#[derive(Clone, PartialEq, Eq, derive_more::Debug)]
#[debug("Token([redacted])")]
pub(crate) struct Token(HeaderValue);

impl Token {
    /// A token from wherever it is kept; white space around it is not part of it.
    pub(crate) fn new(text: &[u8]) -> Result<Self> {
        let token = text.trim_ascii();
        if token.is_empty() {
            return Err(misconfigured("the token is empty"));
        }
        if !token.iter().all(u8::is_ascii_graphic) {
            return Err(misconfigured(
                "the token holds characters that none has, such as a line break: it must be the token and nothing else",
            ));
        }
        // Nobody prints it, and its memory is wiped with its last copy.
        let wiped = Bytes::from_owner(Zeroizing::new(token.to_vec()));
        let mut token = HeaderValue::from_maybe_shared(wiped)
            .map_err(|error| misconfigured("no header can carry the token").with_source(error))?;
        token.set_sensitive(true);
        Ok(Self(token))
    }

    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    pub(crate) fn expose(&self) -> &str {
        // Graphic ASCII, see `new`.
        self.0.to_str().unwrap_or_default()
    }
}

/// The lifetime of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// The rest of it; `None` if it does not end.
    pub(crate) ttl: Option<Duration>,
    pub(crate) renewable: bool,
}

#[cfg(test)]
mod tests {
    use meshca_core::ErrorKind;

    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_kept() {
        for text in ["hvs.abc", "hvs.abc\n", " hvs.abc\r\n"] {
            assert_eq!(Token::new(text.as_bytes()).unwrap().expose(), "hvs.abc");
        }
        for text in ["", " \n", "hvs.a\nbc", "hvs.ä", "two words"] {
            let error = Token::new(text.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{text}");
            assert!(!error.to_string().contains("hvs"), "{error}");
        }
    }

    #[test]
    fn a_token_is_not_printed() {
        let token = Token::new(b"hvs.abc").unwrap();
        assert!(!format!("{token:?} {:?}", token.header()).contains("abc"));
    }
}
