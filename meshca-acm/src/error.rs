//! What an answer of AWS means.

use std::error::Error as StdError;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_acmpca::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_acmpca::operation::issue_certificate::IssueCertificateError;
use aws_smithy_runtime_api::client::interceptors::context::InterceptorContext;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::retries::classifiers::{
    ClassifyRetry, RetryAction, RetryClassifierPriority,
};
use meshca_core::{Error, ErrorKind, Result, Retry};

use crate::arn::CaArn;

/// A CA has signed as many certificates as it may. The SDK takes it for throttling, and would try again for as long as it is told to.
const QUOTA_USED_UP: &str = "LimitExceededException";
/// The certificate is not there yet.
pub(crate) const IN_PROGRESS: &str = "RequestInProgressException";
/// There is no such CA, or no such certificate.
pub(crate) const NOT_FOUND: &str = "ResourceNotFoundException";
/// A refused CA may sign more at any time, and nobody tells us: its quota was raised.
const QUOTA_PAUSE: Duration = Duration::from_secs(600);
/// The message for a signature of another time.
const WRONG_CLOCK: &str = "the clock of the control plane is wrong: AWS accepts five minutes";
/// As much of what a server says as an operator may want to read; it may be a page of HTML.
const LONGEST: usize = 500;

/// Whether a refusal of `IssueCertificate` may be due to what we take the CA for.
pub(crate) fn contradicts(code: Option<&str>) -> bool {
    matches!(
        code,
        Some(
            "InvalidStateException"
                | "InvalidArgsException"
                | "ValidationException"
                | "InvalidParameterException"
        )
    )
}

/// `operation`: as IAM names it, without `acm-pca:`.
pub(crate) fn from_sdk<E>(error: SdkError<E, HttpResponse>, operation: &str, arn: &CaArn) -> Error
where
    E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
{
    if let Some(error) = credentials_error(&error) {
        return error;
    }
    let SdkError::ServiceError(service) = &error else {
        return unreachable_aws(error, operation);
    };
    let status = service.raw().status().as_u16();
    let metadata = service.err().meta();
    let code = metadata.code().unwrap_or_default();
    let said = metadata.message().unwrap_or_default();
    refusal(code, status, said, operation, arn)
}

fn refusal(code: &str, status: u16, said: &str, operation: &str, arn: &CaArn) -> Error {
    use ErrorKind::*;
    let name = code.rsplit('#').next().unwrap_or(code);
    let name = name.split(':').next().unwrap_or(name);
    let (kind, text) = match name {
        "ThrottlingException" | "Throttling" | "ThrottledException" | "RequestThrottled"
        | "TooManyRequestsException" | "RequestLimitExceeded" => (
            RateLimited,
            format!("AWS has no time for `{operation}`: lower the rate of each control plane, or raise the quota of the account"),
        ),
        QUOTA_USED_UP => (
            Denied,
            "the CA has issued as many certificates as it may in its life (1,000,000 unless it was raised): raise the quota in Service Quotas, which is noticed in ten minutes, or use another CA, and consider `mode: Intermediate`".to_owned(),
        ),
        IN_PROGRESS => (
            Unavailable,
            "AWS has not made the certificate yet; the next call for the same request fetches it".to_owned(),
        ),
        "InvalidStateException" => (
            Unavailable,
            "the CA is not active (disabled, expired, or without a certificate): enable it, renew it, or install its certificate".to_owned(),
        ),
        "RequestFailedException" => (
            Unavailable,
            format!("AWS failed at `{operation}` and does not say why"),
        ),
        "MalformedCSRException" => (
            InvalidRequest,
            "AWS does not accept the CSR: its key, its signature or its names".to_owned(),
        ),
        "InvalidArgsException" | "ValidationException" | "InvalidParameterException" => (
            InvalidRequest,
            format!("AWS does not accept what was asked for with `{operation}`"),
        ),
        "InvalidArnException" => (
            InvalidConfig,
            format!("AWS does not accept the ARN `{arn}`: correct it"),
        ),
        NOT_FOUND => (
            NotFound,
            format!("there is no CA `{arn}`: correct the ARN; a CA that was deleted can be restored for some days"),
        ),
        "RequestExpired" | "RequestExpiredException" | "RequestTimeTooSkewed" | "RequestInTheFuture" => {
            (Unauthenticated, WRONG_CLOCK.to_owned())
        }
        "InvalidSignatureException" | "SignatureDoesNotMatch" if is_clock(said) => {
            (Unauthenticated, WRONG_CLOCK.to_owned())
        }
        "InvalidSignatureException" | "SignatureDoesNotMatch" => (
            Unauthenticated,
            "AWS does not accept our signature: the secret access key does not fit its ID".to_owned(),
        ),
        "ExpiredTokenException" | "ExpiredToken" => (
            Unauthenticated,
            "the AWS credentials have expired, and whoever gave them has not replaced them".to_owned(),
        ),
        "UnrecognizedClientException" | "InvalidClientTokenId" | "MissingAuthenticationTokenException"
        | "IncompleteSignatureException" | "NotAuthorized" | "OptInRequired" => (
            Unauthenticated,
            "AWS does not know the credentials: they are deleted, disabled, or of another partition".to_owned(),
        ),
        "AccessDeniedException" | "AccessDenied" | "UnauthorizedOperation" => {
            (Denied, denied(operation, arn))
        }
        _ if status >= 500 => (Unavailable, format!("AWS failed at `{operation}`")),
        _ if status == 429 => (RateLimited, format!("AWS has no time for `{operation}`")),
        _ if matches!(status, 401 | 403) => (Denied, denied(operation, arn)),
        _ => (
            BadResponse,
            format!("AWS answered `{operation}` with what we do not know"),
        ),
    };
    let said = match (code, said) {
        ("", "") => format!("status {status}"),
        ("", said) => said.to_owned(),
        (code, "") => code.to_owned(),
        (code, said) => format!("{code}: {said}"),
    };
    let retry = match kind {
        _ if name == QUOTA_USED_UP => Retry::After(QUOTA_PAUSE),
        InvalidRequest | InvalidConfig | BadResponse => Retry::Never,
        // Credentials and the CA are put right at AWS, and policies take a while until they are known everywhere.
        _ => Retry::Backoff,
    };
    Error::new(kind, format!("{text} (AWS: {})", clipped(&said))).with_retry(retry)
}

/// Names the statement that is missing.
fn denied(operation: &str, arn: &CaArn) -> String {
    format!(
        r#"IAM does not allow `acm-pca:{operation}`: add `{{"Effect": "Allow", "Action": "acm-pca:{operation}", "Resource": "{arn}"}}` to the policy of the control plane, and for a CA of another account to the share or the CA's policy as well"#
    )
}

/// "Signature expired: … is now earlier than …", "Signature not yet current: …".
fn is_clock(said: &str) -> bool {
    said.contains("Signature expired") || said.contains("Signature not yet current")
}

/// That of our own providers, which says where the credentials should come from.
fn credentials_error(error: &(dyn StdError + 'static)) -> Option<Error> {
    let failed = std::iter::once(error)
        .chain(causes(error))
        .find_map(|cause| cause.downcast_ref::<CredentialsError>())?;
    let ours = causes(failed).find_map(|cause| cause.downcast_ref::<Error>());
    let kind = match ours.map(Error::kind) {
        Some(ErrorKind::NotFound | ErrorKind::InvalidConfig) => ErrorKind::InvalidConfig,
        Some(kind) => kind,
        None => ErrorKind::Unauthenticated,
    };
    let why = ours.map_or_else(|| in_words(failed), |ours| in_words(ours));
    let message = format!("there are no AWS credentials to ask with: {why}");
    Some(Error::new(kind, message).with_retry(Retry::Backoff))
}

fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

fn unreachable_aws<E>(error: SdkError<E, HttpResponse>, operation: &str) -> Error
where
    E: StdError + Send + Sync + 'static,
{
    let new = |kind, text: &str| Error::new(kind, format!("{text} `{operation}`"));
    match error {
        SdkError::TimeoutError(_) => new(ErrorKind::Timeout, "AWS did not answer in time to"),
        SdkError::ResponseError(_) => {
            new(ErrorKind::BadResponse, "this is no answer of AWS to").with_retry(Retry::Backoff)
        }
        SdkError::ConstructionFailure(_) => {
            new(ErrorKind::InvalidConfig, "the SDK cannot make a request of")
                .with_source(Said(in_words(&error)))
        }
        _ => new(
            ErrorKind::Unavailable,
            "AWS cannot be reached (is there a way to the endpoint of its region?) for",
        )
        .with_source(Said(in_words(&error))),
    }
}

/// On one line, and no longer than anybody reads.
fn clipped(said: &str) -> String {
    let said: String = said.split_whitespace().collect::<Vec<_>>().join(" ");
    match said.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", said.get(..end).unwrap_or_default()),
        None => said,
    }
}

/// With its causes, each of which says something new. What the SDK has for that prints whole requests.
pub(crate) fn in_words(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    for cause in causes(error) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    clipped(&text)
}

/// An error of the SDK in words: its own type holds requests and answers.
#[derive(Debug, derive_more::Display, derive_more::Error)]
struct Said(#[error(not(source))] String);

/// Has the SDK not try again where the CA's quota is used up.
#[derive(Debug)]
pub(crate) struct QuotaIsFinal;

impl ClassifyRetry for QuotaIsFinal {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let Some(Err(error)) = context.output_or_error() else {
            return RetryAction::NoActionIndicated;
        };
        let error = error.as_operation_error();
        let error = error.and_then(|error| error.downcast_ref::<IssueCertificateError>());
        match error {
            Some(error) if error.is_limit_exceeded_exception() => RetryAction::RetryForbidden,
            _ => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "the CA's quota is final"
    }

    fn priority(&self) -> RetryClassifierPriority {
        RetryClassifierPriority::run_after(RetryClassifierPriority::transient_error_classifier())
    }
}

/// Something that AWS always sends, and did not.
pub(crate) fn present<T>(value: Option<T>, what: &str) -> Result<T> {
    value.ok_or_else(|| {
        Error::new(
            ErrorKind::BadResponse,
            format!("the answer of AWS has no {what}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_a_kind_and_advice() {
        use ErrorKind::*;
        let arn: CaArn = "arn:aws:acm-pca:us-east-1:123456789012:certificate-authority/1"
            .parse()
            .unwrap();
        for (code, status, said, kind, again, words) in [
            (
                "ThrottlingException",
                400,
                "Rate exceeded",
                RateLimited,
                true,
                "raise the quota",
            ),
            ("LimitExceededException", 400, "", Denied, true, "1,000,000"),
            (
                "RequestInProgressException",
                400,
                "",
                Unavailable,
                true,
                "the next call",
            ),
            (
                "InvalidStateException",
                400,
                "",
                Unavailable,
                true,
                "enable it",
            ),
            (
                "RequestFailedException",
                400,
                "",
                Unavailable,
                true,
                "does not say why",
            ),
            (
                "MalformedCSRException",
                400,
                "",
                InvalidRequest,
                false,
                "CSR",
            ),
            (
                "InvalidArgsException",
                400,
                "",
                InvalidRequest,
                false,
                "`IssueCertificate`",
            ),
            (
                "ValidationException",
                400,
                "no",
                InvalidRequest,
                false,
                "ValidationException: no",
            ),
            (
                "InvalidArnException",
                400,
                "",
                InvalidConfig,
                false,
                "certificate-authority/1",
            ),
            (
                "ResourceNotFoundException",
                400,
                "",
                NotFound,
                true,
                "correct the ARN",
            ),
            (
                "AccessDeniedException",
                400,
                "",
                Denied,
                true,
                r#""Action": "acm-pca:IssueCertificate""#,
            ),
            (
                "com.amazon.coral.service#AccessDeniedException",
                400,
                "",
                Denied,
                true,
                "IAM does not allow",
            ),
            (
                "ExpiredTokenException",
                400,
                "",
                Unauthenticated,
                true,
                "expired",
            ),
            (
                "UnrecognizedClientException",
                400,
                "",
                Unauthenticated,
                true,
                "does not know",
            ),
            (
                "InvalidSignatureException",
                400,
                "no",
                Unauthenticated,
                true,
                "does not fit its ID",
            ),
            (
                "InvalidSignatureException",
                400,
                "Signature expired: 1 is now earlier than 2",
                Unauthenticated,
                true,
                "clock",
            ),
            ("RequestExpired", 400, "", Unauthenticated, true, "clock"),
            ("InternalFailure", 500, "", Unavailable, true, "failed"),
            ("", 503, "", Unavailable, true, "status 503"),
            ("", 403, "", Denied, true, "IAM"),
            ("", 429, "", RateLimited, true, "no time"),
            ("SomethingNew", 400, "", BadResponse, false, "SomethingNew"),
        ] {
            let error = refusal(code, status, said, "IssueCertificate", &arn);
            assert_eq!(error.kind(), kind, "{code} {error}");
            assert_eq!(error.retry() != Retry::Never, again, "{code} {error}");
            assert!(error.to_string().contains(words), "{code} {error}");
        }
    }

    #[test]
    fn a_long_story_is_cut_short() {
        let arn: CaArn = "arn:aws:acm-pca:us-east-1:123456789012:certificate-authority/1"
            .parse()
            .unwrap();
        let story = "<p>\n  Sorry</p> ".repeat(100_000);
        let failed = CredentialsError::provider_error(story.clone());
        for text in [
            refusal("SomethingNew", 400, &story, "IssueCertificate", &arn).to_string(),
            refusal(&story, 400, "", "IssueCertificate", &arn).to_string(),
            refusal("", 403, &story, "IssueCertificate", &arn).to_string(),
            credentials_error(&failed).unwrap().to_string(),
        ] {
            assert!(text.contains("Sorry</p> <p>"), "{text}");
            assert!(text.chars().count() < 2 * LONGEST, "{text}");
        }
    }
}
