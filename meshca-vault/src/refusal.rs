//! What the server means when it says no.

use std::time::Duration;

use http::StatusCode;
use meshca_core::{Error, ErrorKind, Retry};
use serde::Deserialize;

use crate::product::Product;
use crate::transport::Answer;

/// Longer messages are cut: they are for people.
const MAX_MESSAGE: usize = 400;

/// An answer with a status that is not success.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// What Vault gave as the reasons, cleaned up; nothing that a proxy said.
    pub(crate) reasons: String,
    retry_after: Option<Duration>,
    /// Whether it is of the form in which Vault says no.
    vaults: bool,
    pub(crate) product: Product,
    /// Whether the token may be dead, and when that is looked into again.
    unsettled: Option<Duration>,
}

#[derive(Deserialize)]
struct Body {
    errors: Vec<String>,
}

impl Refusal {
    /// `secret`: what was sent to identify us. No message repeats it, whatever the server does.
    pub(crate) fn read(answer: &Answer, product: Product, secret: Option<&str>) -> Self {
        let body = serde_json::from_slice::<Body>(&answer.body);
        let vaults = body.is_ok();
        let reasons = match body {
            Ok(Body { errors }) => clean(&errors.join("; "), secret),
            Err(_) if answer.body.is_empty() => String::new(),
            // Somebody else's text, of which nobody knows what it repeats.
            Err(_) => format!(
                "the answer is not of its kind, but {} bytes of {}: is a proxy in between?",
                answer.body.len(),
                clean(answer.content_type(), secret)
            ),
        };
        Self {
            status: answer.status,
            reasons,
            retry_after: answer.retry_after(),
            vaults,
            product,
            unsettled: None,
        }
    }

    /// The same where nobody can tell whether the token is dead or a policy refuses. After this time another login decides.
    pub(crate) fn unsettled(mut self, wait: Duration) -> Self {
        self.unsettled = Some(wait);
        self
    }

    /// Whether the token may be dead.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.unsettled.is_some()
    }

    /// An error that says so, if somebody else than Vault says no to the request itself. What a proxy says of Vault's health, or of
    /// its own, is as good as Vault's word.
    pub(crate) fn somebody_elses(&self, address: &str) -> Option<Error> {
        let of_request = matches!(self.status.as_u16(), 300..=399 | 400..=411 | 413..=428);
        (of_request && !self.vaults).then(|| {
            let what = format!(
                "what answers at {address} is neither Vault nor OpenBao, or does not let us through to it (status {}): is the address right, with `https://` where it speaks TLS, and without `/v1` or `/ui`?",
                self.status.as_u16()
            );
            self.error(ErrorKind::InvalidConfig, &what).with_retry(Retry::Backoff)
        })
    }

    /// Whether one of the reasons says this. There are no codes for them. What is decided by it has a sound answer without.
    pub(crate) fn says(&self, text: &str) -> bool {
        self.reasons.contains(text)
    }

    /// An error of the caller's words, followed by the server's own.
    pub(crate) fn error(&self, kind: ErrorKind, message: &str) -> Error {
        let message = match self.reasons.as_str() {
            "" => message.to_owned(),
            reasons => format!("{message} ({}: {reasons})", self.product),
        };
        let error = Error::new(kind, message);
        match self.unsettled {
            Some(wait) => error.with_retry(Retry::After(wait)),
            None => error,
        }
    }

    /// The meaning of a status wherever it comes up. `doing`: what was refused, as in "Vault refused to …".
    pub(crate) fn into_error(self, doing: &str) -> Error {
        let status = self.status.as_u16();
        let product = self.product;
        match status {
            400 | 405 | 413 | 422 => self.error(
                ErrorKind::InvalidRequest,
                &format!("{product} refused to {doing}: it takes the request for a wrong one"),
            ),
            401 | 403 if self.is_unsettled() => self.error(
                ErrorKind::Denied,
                &format!("{product} refused to {doing}: the token is dead, or no policy of it allows this"),
            ),
            401 | 403 => self.error(
                ErrorKind::Denied,
                &format!("{product} refused to {doing}: no policy of the token allows it"),
            ),
            404 => self.error(
                ErrorKind::NotFound,
                &format!("{product} could not {doing}: there is nothing at that path"),
            ),
            412 => self.error(
                ErrorKind::Unavailable,
                "this node has not caught up with the active one yet: it will in a moment",
            ),
            423 => self.error(ErrorKind::Unavailable, "the namespace is locked: unlock it"),
            429 => self
                .error(
                    ErrorKind::RateLimited,
                    &format!("a quota of {product} is used up, of requests or of leases: raise it, or set `no_store=true` and `generate_lease=false` on the role"),
                )
                .with_retry(self.retry_after.map_or(Retry::Backoff, Retry::After)),
            472 => self.error(
                ErrorKind::Unavailable,
                "this is a secondary for disaster recovery, which serves no requests: use the address of the primary",
            ),
            473 => self.error(
                ErrorKind::Unavailable,
                "this is a performance standby that does not serve this: use the address of the active node",
            ),
            503 if self.says("sealed") => {
                self.error(ErrorKind::Unavailable, &format!("{product} is sealed: unseal it"))
                    .with_retry(self.pause())
            }
            500..=599 => self
                .error(
                    ErrorKind::Unavailable,
                    &format!("{product} could not {doing}: it, or what stands before it, answered {status}"),
                )
                .with_retry(self.pause()),
            _ => self.error(
                ErrorKind::BadResponse,
                &format!("{product} could not {doing}: status {status} is none of its own"),
            ),
        }
    }

    fn pause(&self) -> Retry {
        self.retry_after.map_or(Retry::Backoff, Retry::After)
    }
}

/// One line of printable text that does not repeat the secret.
pub(crate) fn clean(text: &str, secret: Option<&str>) -> String {
    let text = match secret.filter(|secret| !secret.is_empty()) {
        Some(secret) => text.replace(secret, "[redacted]"),
        None => text.to_owned(),
    };
    // Vault's lists of one: "1 error occurred:\n\t* permission denied\n\n".
    let mut words = text.split_whitespace().filter(|word| *word != "*");
    let mut line = String::new();
    for word in words.by_ref() {
        if line.len() + word.len() > MAX_MESSAGE {
            line.push('…');
            break;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word.chars().filter(|c| !c.is_control()));
    }
    line.strip_prefix("1 error occurred: ")
        .map_or(line.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_one_line_without_the_secret() {
        for (text, line) in [
            (
                "1 error occurred:\n\t* permission denied\n\n",
                "permission denied",
            ),
            (
                "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n",
                "2 errors occurred: permission denied invalid token",
            ),
            ("bad token hvs.secret!", "bad token [redacted]!"),
            ("a\u{1b}[31mb", "a[31mb"),
        ] {
            assert_eq!(clean(text, Some("hvs.secret")), line);
        }
        assert!(clean(&"long ".repeat(1000), None).chars().count() <= MAX_MESSAGE + 1);
        assert!(clean(&"x".repeat(10_000), None).chars().count() <= MAX_MESSAGE + 1);
    }
}
