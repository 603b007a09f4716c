//! What an answer of the API server means.

use std::time::Duration;

use kube::Error as KubeError;
use meshca_core::{Error, ErrorKind, Retry};

/// How long an answer of the API server may take. kube itself waits for minutes.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Gives up on a server that does not answer.
pub(crate) async fn limited<T>(
    call: impl Future<Output = Result<T, KubeError>>,
) -> Result<T, KubeError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer,
        Err(_) => {
            let seconds = CALL_TIMEOUT.as_secs();
            Err(KubeError::Service(
                format!("no answer within {seconds} s").into(),
            ))
        }
    }
}

/// What others say, for a message of ours: on one line, and no longer than anybody reads.
pub(crate) fn line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|c| !c.is_control()).take(500).collect()
}

/// The status of an answer, if there was one.
pub(crate) fn code(error: &KubeError) -> Option<u16> {
    match error {
        KubeError::Api(status) => Some(status.code),
        _ => None,
    }
}

/// `doing`: as in "the API server refused to …". `verb`, `resource`: what the rule has to grant.
pub(crate) fn from_kube(error: KubeError, doing: &str, verb: &str, resource: &str) -> Error {
    let KubeError::Api(status) = &error else {
        return Error::new(
            ErrorKind::Unavailable,
            format!("the Kubernetes API server cannot be reached, or has no time, to {doing}"),
        )
        .with_source(error);
    };
    let said = line(&status.message);
    let new = |kind, text: String| Error::new(kind, format!("{text} (Kubernetes: {said})"));
    match status.code {
        401 => new(
            ErrorKind::Unauthenticated,
            format!("the API server does not accept our credentials to {doing}"),
        )
        .with_retry(Retry::Backoff),
        403 => new(
            ErrorKind::Denied,
            format!("we may not {doing}: add the verb `{verb}` on `{resource}` to the control plane's role"),
        )
        // An API server that has just started does not know the roles yet.
        .with_retry(Retry::Backoff),
        404 => new(
            ErrorKind::NotFound,
            format!("the API server could not {doing}: does the namespace exist{}?", match resource {
                "secrets" => "",
                _ => ", and is cert-manager installed",
            }),
        )
        .with_retry(Retry::Backoff),
        409 => new(ErrorKind::Conflict, format!("the API server could not {doing}")),
        400 | 413 | 422 => new(
            ErrorKind::InvalidRequest,
            format!("the API server, or a webhook of it, refused to {doing}"),
        ),
        429 => {
            let seconds = status.details.as_ref().map_or(0, |it| it.retry_after_seconds);
            let retry = match seconds {
                0 => Retry::Backoff,
                seconds => Retry::After(Duration::from_secs(u64::from(seconds))),
            };
            new(ErrorKind::RateLimited, format!("the API server has no time to {doing}"))
                .with_retry(retry)
        }
        500..=599 => new(ErrorKind::Unavailable, format!("the API server failed to {doing}")),
        code => new(
            ErrorKind::BadResponse,
            format!("the API server answered {code} when asked to {doing}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_is_one_line_of_a_bounded_length() {
        assert_eq!(line(" no\n\tsuch\u{1b}  name "), "no such name");
        let long = "é".repeat(2000);
        let status = kube::core::Status::failure(&long, "Invalid").with_code(422);
        let error = from_kube(KubeError::Api(Box::new(status)), "ask", "get", "things");
        assert_eq!(error.to_string().matches('é').count(), 500, "{error}");
    }
}
