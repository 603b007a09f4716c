//! PEM, read as strictly as its content wants it.
//!
//! Certificates come from tools that explain them: `openssl x509 -text` and `openssl s_client -showcerts`
//! write text before and between the blocks, and people write comments. That text is skipped, as RFC 7468
//! §2 wants it. But lenient readers also skip what they do not understand, and so accept a file in which
//! the second of two certificates has a damaged header: it silently becomes a file with one. So a line
//! with five dashes that is no marker of a block is an error with its line, and so is a line of base64.
//!
//! Beside a key or a CSR no text may stand: what does may be the key.

use rustls_pki_types::pem::{self, SectionKind};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
};
use zeroize::{Zeroize, Zeroizing};

/// What is wrong with a PEM text, and in which line (counted from 1).
#[derive(Clone, Debug, PartialEq, Eq, derive_more::Display, derive_more::Error)]
#[display("line {line}: {message}")]
pub(crate) struct PemError {
    pub(crate) line: usize,
    pub(crate) message: String,
}

fn fail<T>(line: usize, message: impl Into<String>) -> Result<T, PemError> {
    let message = message.into();
    Err(PemError { line, message })
}

/// The largest text that is looked at: a thousand certificates, or far more than any key or CSR.
const MAX_TEXT: usize = 1 << 20;

/// One block, as it stands in the text, markers included.
struct Block<'a> {
    line: usize,
    label: &'static str,
    text: &'a str,
}

/// The kinds of block that are known here. Messages name these, and never what stands in the text:
/// a key whose line breaks were lost is all in its first line.
const LABELS: [&str; 9] = [
    "CERTIFICATE",
    "CERTIFICATE REQUEST",
    "PRIVATE KEY",
    "EC PRIVATE KEY",
    "RSA PRIVATE KEY",
    "EC PARAMETERS",
    "ENCRYPTED PRIVATE KEY",
    "PUBLIC KEY",
    "X509 CRL",
];

/// What may stand outside the blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outside {
    Nothing,
    Explanations,
}

/// Whether a line can be no part of a block that lost its marker.
fn is_explanation(line: &str) -> bool {
    // The lines of a body have 64 characters (RFC 7468 §2) or 76 (RFC 2045 §6.8), but for the last.
    const LEAST: usize = 60;
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    let is_body = line.len() >= LEAST && line.bytes().all(base64);
    !is_body && !line.contains("-----")
}

/// Finds the blocks, at most `limit` of them. Nothing is copied: a copy of a key would have to be wiped.
fn blocks(text: &str, limit: usize, outside: Outside) -> Result<Vec<Block<'_>>, PemError> {
    if text.len() > MAX_TEXT {
        let size = text.len() >> 10;
        let most = MAX_TEXT >> 10;
        return fail(
            1,
            format!("the text has {size} KiB; at most {most} KiB are read"),
        );
    }
    let mut found = Vec::new();
    // Some tools write the byte order mark of their platform.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut open: Option<(usize, &'static str, usize)> = None;
    let mut start = 0;
    for (index, full) in text.split_inclusive('\n').enumerate() {
        let (number, line) = (index + 1, full.trim());
        let end = start + full.len();
        // The decoder ends a line there, and would find blocks that we do not.
        if line.contains('\r') {
            let message =
                "a carriage return within a line; lines end with a line feed, or with both";
            return fail(number, message);
        }
        if line.starts_with("-----BEGIN ") {
            if let Some((begun, ..)) = open {
                let message = format!("a new block begins before the one of line {begun} ends");
                return fail(number, message);
            }
            if found.len() == limit {
                let message = match limit {
                    1 => "only one block was expected".to_owned(),
                    _ => format!("more than {limit} blocks"),
                };
                return fail(number, message);
            }
            open = Some((number, label(number, line)?, start));
        } else if let Some((begun, label, from)) = open {
            if let Some(closing) = line.strip_prefix("-----END ") {
                // The decoder does not look at what follows: the next block, where files were put
                // together without a line feed between them.
                if closing.strip_suffix("-----") != Some(label) {
                    let message =
                        format!("expected `-----END {label}-----` and nothing else in the line");
                    return fail(number, message);
                }
                let text = text.get(from..end).unwrap_or_default();
                found.push(Block {
                    line: begun,
                    label,
                    text,
                });
                open = None;
            }
        } else if outside == Outside::Nothing && !line.is_empty() {
            let message = "text outside a PEM block; only `-----BEGIN …` may stand here";
            return fail(number, message);
        } else if !is_explanation(line) {
            let message = "this is part of a PEM block whose `-----BEGIN …` is missing or damaged";
            return fail(number, message);
        }
        start = end;
    }
    match open {
        Some((line, label, _)) => fail(
            line,
            format!("the {label} block that begins here has no end"),
        ),
        None => Ok(found),
    }
}

fn label(number: usize, line: &str) -> Result<&'static str, PemError> {
    let label = line
        .strip_prefix("-----BEGIN ")
        .and_then(|rest| rest.strip_suffix("-----"));
    let Some(label) = label.filter(|label| !label.contains("-----")) else {
        let message = "the BEGIN line is damaged; were the line breaks of the PEM text lost?";
        return fail(number, message);
    };
    match LABELS.into_iter().find(|known| *known == label) {
        Some(known) => Ok(known),
        None => fail(number, "a block of a kind that is not known here"),
    }
}

impl Block<'_> {
    fn decode(&self) -> Result<(SectionKind, Vec<u8>), PemError> {
        let (line, label, mut text) = (self.line, self.label, self.text);
        let broken = |why: &str| {
            fail(
                line,
                format!("the {label} block that begins here is damaged ({why})"),
            )
        };
        // YAML indents; only then is a copy needed, of a size that never grows.
        let mut trimmed = Zeroizing::new(String::new());
        if text.lines().any(|line| line.trim() != line) {
            trimmed.reserve_exact(text.len() + 1);
            for line in text.lines() {
                trimmed.push_str(line.trim());
                trimmed.push('\n');
            }
            text = &trimmed;
        }
        match pem::from_buf(&mut text.as_bytes()) {
            Ok(Some(section)) => Ok(section),
            Ok(None) => fail(line, format!("a {label} block has no place here")),
            Err(pem::Error::Base64Decode(_)) => broken("not base64"),
            Err(pem::Error::MissingSectionEnd { .. }) => broken("its END line is of another kind"),
            Err(_) => broken("not PEM"),
        }
    }

    /// Decodes a key in constant time. Its text is copied once, into memory that is wiped; the decoder of certificates
    /// leaves its copy behind.
    fn decode_secret(&self) -> Result<Vec<u8>, PemError> {
        use base64ct::{Base64, Encoding as _};
        let (line, label) = (self.line, self.label);
        let mut body = Zeroizing::new(Vec::new());
        body.reserve_exact(self.text.len());
        let lines = self.text.lines().map(str::trim);
        for line in lines.filter(|line| !line.starts_with("-----")) {
            body.extend_from_slice(line.as_bytes());
        }
        let mut der = Zeroizing::new(vec![0; body.len() / 4 * 3]);
        let length = match Base64::decode(body.as_slice(), &mut der) {
            Ok(decoded) => decoded.len(),
            Err(_) => {
                let message = format!("the {label} block that begins here is damaged (not base64)");
                return fail(line, message);
            }
        };
        der.truncate(length);
        // Whoever takes it wipes it.
        Ok(std::mem::take(&mut *der))
    }

    /// Refuses what was decoded, which may be a key.
    fn refuse<T>(&self, mut decoded: Vec<u8>, expected: &str) -> Result<T, PemError> {
        decoded.zeroize();
        let message = format!("expected a {expected}, found a {}", self.label);
        fail(self.line, message)
    }
}

/// How many certificates one text may hold.
const MAX_CERTIFICATES: usize = 1000;

/// All certificates of a text, with the line each begins in. Explanations around them are skipped; other blocks are not.
pub(crate) fn certificates(text: &str) -> Result<Vec<(usize, CertificateDer<'static>)>, PemError> {
    let blocks = blocks(text, MAX_CERTIFICATES, Outside::Explanations)?;
    if blocks.is_empty() && !text.trim().is_empty() {
        return fail(1, "no `-----BEGIN CERTIFICATE-----` in it");
    }
    blocks
        .iter()
        .map(|block| match block.decode()? {
            (SectionKind::Certificate, der) => Ok((block.line, CertificateDer::from(der))),
            (_, other) => block.refuse(other, "CERTIFICATE"),
        })
        .collect()
}

/// The one private key of a text that holds nothing else.
///
/// The `EC PARAMETERS` block that `openssl ecparam -genkey` writes before the key is skipped: the
/// key repeats it.
pub(crate) fn private_key(text: &str) -> Result<PrivateKeyDer<'static>, PemError> {
    let blocks = blocks(text, 2, Outside::Nothing)?;
    let mut keys = blocks.iter().filter(|block| block.label != "EC PARAMETERS");
    let Some(block) = keys.next() else {
        return fail(1, "no PRIVATE KEY block in it");
    };
    if let Some(second) = keys.next() {
        return fail(second.line, "only one block was expected, the private key");
    }
    match block.label {
        "PRIVATE KEY" => Ok(PrivatePkcs8KeyDer::from(block.decode_secret()?).into()),
        "EC PRIVATE KEY" => Ok(PrivateSec1KeyDer::from(block.decode_secret()?).into()),
        "RSA PRIVATE KEY" => Ok(PrivatePkcs1KeyDer::from(block.decode_secret()?).into()),
        _ => block.refuse(Vec::new(), "PRIVATE KEY"),
    }
}

/// The one certificate signing request of a text that holds nothing else.
pub(crate) fn csr(text: &str) -> Result<Vec<u8>, PemError> {
    let blocks = blocks(text, 1, Outside::Nothing)?;
    let Some(block) = blocks.first() else {
        return fail(1, "no CERTIFICATE REQUEST block in it");
    };
    match block.decode()? {
        (SectionKind::Csr, der) => Ok(der),
        (_, other) => block.refuse(other, "CERTIFICATE REQUEST"),
    }
}

/// Writes one block with lines of 64 characters (RFC 7468 §2).
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    const LINE: usize = 64;
    let before = "-----BEGIN -----\n".len() + label.len();
    let body = 4 * der.len().div_ceil(3);
    let lines = body.div_ceil(LINE);
    let mut text = Vec::with_capacity(before + body + lines + before);
    text.extend_from_slice(b"-----BEGIN ");
    text.extend_from_slice(label.as_bytes());
    text.extend_from_slice(b"-----\n");
    // The body is written once, so far back that its lines can be moved to where they belong: a copy of a key would have to be wiped.
    text.resize(before + lines + body, b'\n');
    if let Some(space) = text.get_mut(before + lines..) {
        // It is as long as it must be.
        let _ = base64::engine::general_purpose::STANDARD.encode_slice(der, space);
    }
    let (mut from, mut to) = (before + lines, before);
    while from < text.len() {
        let line = LINE.min(text.len() - from);
        text.copy_within(from..from + line, to);
        if let Some(end) = text.get_mut(to + line) {
            *end = b'\n';
        }
        (from, to) = (from + line, to + line + 1);
    }
    text.extend_from_slice(b"-----END ");
    text.extend_from_slice(label.as_bytes());
    text.extend_from_slice(b"-----\n");
    // It is ASCII.
    String::from_utf8(text).unwrap_or_default()
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
                good.replace("-----BEGIN CERTIFICATE-----", "----BEGIN CERTIFICATE-----"),
                "line 1: this is part of a PEM block whose `-----BEGIN …` is missing or damaged",
            ),
            (
                good.replace("-----BEGIN CERTIFICATE-----", "BEGIN CERTIFICATE"),
                "line 3: this is part of a PEM block whose `-----BEGIN …` is missing or damaged",
            ),
            (
                format!("{good}{}\n{good}", "QUJD".repeat(16)),
                "line 4: this is part of a PEM block whose `-----BEGIN …` is missing or damaged",
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
                good.replace("bm90", "bm90\r\r-----BEGIN CERTIFICATE-----\r"),
                "line 2: a carriage return within a line; lines end with a line feed, or with both",
            ),
            (
                format!("{}{good}", good.trim_end()),
                "line 3: expected `-----END CERTIFICATE-----` and nothing else in the line",
            ),
            (
                good.replace("END CERT", "END X509 CERT"),
                "line 3: expected `-----END CERTIFICATE-----` and nothing else in the line",
            ),
            (
                encode("PRIVATE KEY", b"k"),
                "line 1: expected a CERTIFICATE, found a PRIVATE KEY",
            ),
            (
                good.replace("bm90", "b*90"),
                "line 1: the CERTIFICATE block that begins here is damaged (not base64)",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(certificates(&text).unwrap_err().to_string(), message);
        }
        assert_eq!(
            certificates(&format!("{good}\r\n \n{good}")).unwrap().len(),
            2
        );
        let explained = format!(
            "# Corporate Root\nCertificate:\n    Data:\n        Version: 3 (0x2)\n{good}---\n 1 s:CN=ca\n   v:NotBefore: Jan  1 00:00:00 2026 GMT\n{good}\nVerify return code: 0 (ok)\n---\n"
        );
        let lines = certificates(&explained).unwrap();
        assert_eq!(Vec::from_iter(lines.iter().map(|(line, _)| *line)), [5, 11]);
        assert_eq!(
            csr(&format!(
                "a comment\n{}",
                encode("CERTIFICATE REQUEST", b"x")
            ))
            .unwrap_err()
            .to_string(),
            "line 1: text outside a PEM block; only `-----BEGIN …` may stand here"
        );
        let windows = good.replace('\n', "\r\n  ");
        assert_eq!(certificates(&windows).unwrap().len(), 1);
        assert_eq!(
            private_key("").unwrap_err().to_string(),
            "line 1: no PRIVATE KEY block in it"
        );
    }

    /// Keys arrive damaged from environment variables and folded YAML; the error must not repeat them.
    #[test]
    fn a_damaged_key_is_not_repeated() {
        let key = encode(
            "PRIVATE KEY",
            b"canary canary canary canary canary canary canary",
        );
        let body = key.lines().nth(1).unwrap().to_owned();
        let secret: String = body.chars().take(16).collect();
        for damaged in [
            key.replace('\n', ""),
            key.replace('\n', "\\n"),
            key.replace('\n', " "),
            key.replacen("-----\n", "-----", 1),
            key.replacen("-----\n", "", 1),
            key.replace("-----END PRIVATE KEY-----", ""),
            key.replace("-----END PRIVATE KEY-----", "-----END CERTIFICATE-----"),
            key.replace("PRIVATE KEY-----\n", &format!("{body}-----\n")),
            format!("{body}\n{key}"),
            key.replace(&body, &format!("{body}*")),
        ] {
            for error in [
                private_key(&damaged).unwrap_err(),
                certificates(&damaged).unwrap_err(),
                csr(&damaged).unwrap_err(),
            ] {
                let text = format!("{error} {error:?}");
                assert!(!text.contains(&secret), "{text}");
            }
        }
        let message = private_key(&key.replace('\n', "")).unwrap_err().to_string();
        assert!(
            message.contains("were the line breaks of the PEM text lost?"),
            "{message}"
        );
    }

    #[test]
    fn large_texts_cost_what_their_size_says() {
        let empty = "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"
            .repeat(10_000);
        assert!(csr(&empty).unwrap_err().message.contains("only one block"));
        let many = encode("CERTIFICATE", b"x").repeat(10_000);
        assert!(
            certificates(&many)
                .unwrap_err()
                .message
                .contains("more than 1000 blocks")
        );
        assert!(
            certificates(&"x".repeat(2 << 20))
                .unwrap_err()
                .message
                .contains("2048 KiB")
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
