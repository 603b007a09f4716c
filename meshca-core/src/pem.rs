//! Strict PEM: only blocks, nothing between them.
//!
//! Lenient readers skip what they do not understand, and so accept a file in which the second of
//! two certificates has a damaged header: it silently becomes a file with one. What stands between
//! the blocks is therefore an error with its line. (RFC 7468 §2 allows explanatory text outside
//! the blocks and lets parsers refuse it.)

use std::fmt;

use rustls_pki_types::pem::{self, SectionKind};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
};
use zeroize::{Zeroize, Zeroizing};

/// What is wrong with a PEM text, and in which line (counted from 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PemError {
    pub(crate) line: usize,
    pub(crate) message: String,
}

impl PemError {
    fn new(line: usize, message: impl Into<String>) -> Self {
        Self {
            line,
            message: message.into(),
        }
    }
}

impl fmt::Display for PemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for PemError {}

/// One block: its first line, its label, its text with the markers.
struct Block<'a> {
    line: usize,
    label: &'a str,
    text: Zeroizing<String>,
}

fn blocks(text: &str) -> Result<Vec<Block<'_>>, PemError> {
    let mut found = Vec::new();
    let mut open: Option<Block<'_>> = None;
    // Some tools write the byte order mark of their platform.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (index, line) in text.lines().enumerate() {
        let (number, line) = (index + 1, line.trim());
        let begin = line
            .strip_prefix("-----BEGIN ")
            .and_then(|rest| rest.strip_suffix("-----"));
        match (&mut open, begin) {
            (None, Some(label)) => {
                // Sized for the rest of the text, so that growing leaves no copies of a key behind.
                let mut block = Zeroizing::new(String::with_capacity(text.len() + 2));
                push_line(&mut block, line);
                open = Some(Block {
                    line: number,
                    label,
                    text: block,
                });
            }
            (None, None) if line.is_empty() => {}
            (None, None) => {
                return Err(PemError::new(
                    number,
                    "text outside a PEM block; only `-----BEGIN …` may stand here",
                ));
            }
            (Some(block), Some(_)) => {
                return Err(PemError::new(
                    number,
                    format!(
                        "a new block begins before the one of line {} ends",
                        block.line
                    ),
                ));
            }
            (Some(block), None) => {
                push_line(&mut block.text, line);
                if line.starts_with("-----END ") {
                    found.extend(open.take());
                }
            }
        }
    }
    match open {
        Some(block) => Err(PemError::new(
            block.line,
            format!("the {} block that begins here has no end", block.label),
        )),
        None => Ok(found),
    }
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

impl Block<'_> {
    fn decode(&self) -> Result<(SectionKind, Vec<u8>), PemError> {
        let broken = |why: &dyn fmt::Debug| {
            PemError::new(
                self.line,
                format!(
                    "the {} block that begins here is damaged ({why:?})",
                    self.label
                ),
            )
        };
        match pem::from_buf(&mut self.text.as_bytes()) {
            Ok(Some(section)) => Ok(section),
            Ok(None) => Err(PemError::new(
                self.line,
                format!("a block of kind `{}` is not known here", self.label),
            )),
            Err(pem::Error::Base64Decode(_)) => Err(broken(&"not base64")),
            Err(error) => Err(broken(&error)),
        }
    }
}

/// All certificates of a text that holds nothing else, with the line each begins in.
pub(crate) fn certificates(text: &str) -> Result<Vec<(usize, CertificateDer<'static>)>, PemError> {
    blocks(text)?
        .iter()
        .map(|block| match block.decode()? {
            (SectionKind::Certificate, der) => Ok((block.line, CertificateDer::from(der))),
            (_, mut other) => {
                other.zeroize();
                Err(PemError::new(
                    block.line,
                    format!("expected a CERTIFICATE, found a {}", block.label),
                ))
            }
        })
        .collect()
}

/// The one private key of a text that holds nothing else.
///
/// The `EC PARAMETERS` block that `openssl ecparam -genkey` writes before the key is skipped: the
/// key repeats it.
pub(crate) fn private_key(text: &str) -> Result<PrivateKeyDer<'static>, PemError> {
    let blocks = blocks(text)?;
    let mut keys = blocks.iter().filter(|block| block.label != "EC PARAMETERS");
    let Some(block) = keys.next() else {
        return Err(PemError::new(1, "no PRIVATE KEY block in it"));
    };
    if let Some(second) = keys.next() {
        return Err(PemError::new(
            second.line,
            "only one block was expected, the private key",
        ));
    }
    match block.decode()? {
        (SectionKind::PrivateKey, der) => Ok(PrivatePkcs8KeyDer::from(der).into()),
        (SectionKind::EcPrivateKey, der) => Ok(PrivateSec1KeyDer::from(der).into()),
        (SectionKind::RsaPrivateKey, der) => Ok(PrivatePkcs1KeyDer::from(der).into()),
        (_, _) => Err(PemError::new(
            block.line,
            format!("expected a PRIVATE KEY, found a {}", block.label),
        )),
    }
}

/// The one certificate signing request of a text that holds nothing else.
pub(crate) fn csr(text: &str) -> Result<Vec<u8>, PemError> {
    match blocks(text)?.as_slice() {
        [block] => match block.decode()? {
            (SectionKind::Csr, der) => Ok(der),
            _ => Err(PemError::new(
                block.line,
                format!("expected a CERTIFICATE REQUEST, found a {}", block.label),
            )),
        },
        [] => Err(PemError::new(1, "no CERTIFICATE REQUEST block in it")),
        [_, second, ..] => Err(PemError::new(
            second.line,
            "only one block was expected, the CSR",
        )),
    }
}

/// Writes one block with lines of 64 characters (RFC 7468 §2).
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let body = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(der));
    let mut text = String::with_capacity(body.len() + body.len() / 64 + 2 * label.len() + 36);
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at_checked(64).unwrap_or((rest, ""));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn says_what_is_wrong_and_in_which_line() {
        let good = encode("CERTIFICATE", b"not read any deeper here");
        let cases = [
            (
                format!("{good}junk\n{good}"),
                "line 4: text outside a PEM block; only `-----BEGIN …` may stand here",
            ),
            (
                format!("\n\n-----BEGIN CERTIFICATE-----\nAAAA\n{good}"),
                "line 5: a new block begins before the one of line 3 ends",
            ),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA".to_owned(),
                "line 1: the CERTIFICATE block that begins here has no end",
            ),
            (
                encode("PRIVATE KEY", b"k"),
                "line 1: expected a CERTIFICATE, found a PRIVATE KEY",
            ),
            (
                good.replace("bm90", "b*90"),
                "line 1: the CERTIFICATE block that begins here is damaged (\"not base64\")",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(certificates(&text).unwrap_err().to_string(), message);
        }
        assert_eq!(
            certificates(&format!("{good}\r\n \n{good}")).unwrap().len(),
            2
        );
        assert_eq!(
            private_key("").unwrap_err().to_string(),
            "line 1: no PRIVATE KEY block in it"
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(ders in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..5)) {
            let text: String = ders.iter().map(|der| encode("CERTIFICATE", der)).collect();
            let read: Vec<_> = certificates(&text).unwrap().into_iter().map(|(_, der)| der.to_vec()).collect();
            prop_assert_eq!(read, ders);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(-----(BEGIN|END) [A-Z ]{1,12}-----|[A-Za-z0-9+/=]{0,70}|\n|.){0,20}") {
            let _ = certificates(&text);
            let _ = private_key(&text);
            let _ = csr(&text);
        }
    }
}
