//! What the status of a `CertificateRequest` means.

use crate::crd::{Condition, Status};
use crate::error::line;

/// How far a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nobody has decided yet; what is known of why.
    Pending(Wait),
    /// The chain in PEM, and what the issuer says is its CA.
    Ready {
        certificate: Vec<u8>,
        ca: Option<Vec<u8>>,
    },
    /// An approver said no. Final.
    Denied(String),
    /// The issuer says that the request itself is wrong. Final; `Ready` may never be set.
    Invalid(String),
    /// The issuer failed, for good or for now: cert-manager does not tell. Final for this object.
    Failed(String),
}

/// What a request waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Approval,
    /// The issuer, with its own words.
    Issuer(String),
}

pub(crate) fn progress(status: Option<&Status>) -> Progress {
    let Some(status) = status else {
        return Progress::Pending(Wait::Approval);
    };
    let condition = |type_: &str| status.conditions.iter().find(|it| it.type_ == type_);
    let set = |type_: &str| condition(type_).filter(|it| it.status == "True");
    if let Some(denied) = set("Denied") {
        return Progress::Denied(words(denied));
    }
    if let Some(invalid) = set("InvalidRequest") {
        return Progress::Invalid(words(invalid));
    }
    match condition("Ready") {
        Some(ready) if ready.status == "True" => match &status.certificate {
            Some(certificate) if !certificate.0.is_empty() => Progress::Ready {
                certificate: certificate.0.clone(),
                ca: status
                    .ca
                    .as_ref()
                    .map(|ca| ca.0.clone())
                    .filter(|ca| !ca.is_empty()),
            },
            // An issuer that sets them one after the other.
            _ => Progress::Pending(Wait::Issuer(words(ready))),
        },
        Some(ready) if ready.status == "False" && ready.reason == "Failed" => {
            Progress::Failed(words(ready))
        }
        Some(ready) if ready.status == "False" && ready.reason == "Denied" => {
            Progress::Denied(words(ready))
        }
        _ if set("Approved").is_none() => Progress::Pending(Wait::Approval),
        Some(ready) => Progress::Pending(Wait::Issuer(words(ready))),
        None => Progress::Pending(Wait::Issuer(String::new())),
    }
}

/// The reason and the message, on one line.
fn words(condition: &Condition) -> String {
    match (condition.reason.as_str(), condition.message.as_str()) {
        (reason, "") => line(reason),
        ("", message) => line(message),
        (reason, message) => line(&format!("{reason}: {message}")),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn status(conditions: &[(&str, &str, &str, &str)], certificate: Option<&str>) -> Status {
        Status {
            conditions: conditions
                .iter()
                .map(|(type_, status, reason, message)| Condition {
                    type_: (*type_).to_owned(),
                    status: (*status).to_owned(),
                    reason: (*reason).to_owned(),
                    message: (*message).to_owned(),
                })
                .collect(),
            certificate: certificate.map(|text| ByteString(text.as_bytes().to_vec())),
            ca: None,
        }
    }

    #[test]
    fn each_status_has_one_meaning() {
        use Progress::{Denied, Failed, Invalid, Pending, Ready};
        let approved = ("Approved", "True", "cert-manager.io", "approved");
        let denied = ("Denied", "True", "policy", "no such name");
        let invalid = ("InvalidRequest", "True", "BadCSR", "no CSR");
        let ready = ("Ready", "True", "Issued", "done");
        let pending = ("Ready", "False", "Pending", "issuer not found");
        let failed = ("Ready", "False", "Failed", "boom");
        let issued = Ready {
            certificate: b"pem".to_vec(),
            ca: None,
        };
        let at_issuer = |text: &str| Pending(Wait::Issuer(text.to_owned()));
        for (conditions, certificate, expected) in [
            (vec![], None, Pending(Wait::Approval)),
            (vec![approved], None, at_issuer("")),
            (
                vec![approved, pending],
                None,
                at_issuer("Pending: issuer not found"),
            ),
            (vec![pending], None, Pending(Wait::Approval)),
            (vec![approved, ready], Some("pem"), issued.clone()),
            (vec![ready], Some("pem"), issued),
            (vec![approved, ready], None, at_issuer("Issued: done")),
            (vec![approved, ready], Some(""), at_issuer("Issued: done")),
            // The bytes alone are not the word of the issuer.
            (vec![approved], Some("pem"), at_issuer("")),
            (
                vec![approved, failed],
                None,
                Failed("Failed: boom".to_owned()),
            ),
            (
                vec![denied],
                None,
                Denied("policy: no such name".to_owned()),
            ),
            (
                vec![denied, ready],
                Some("pem"),
                Denied("policy: no such name".to_owned()),
            ),
            (
                vec![("Ready", "False", "Denied", "")],
                None,
                Denied("Denied".to_owned()),
            ),
            // `Ready` is never set then.
            (
                vec![approved, invalid],
                None,
                Invalid("BadCSR: no CSR".to_owned()),
            ),
            (
                vec![
                    ("Denied", "False", "", ""),
                    ("InvalidRequest", "Unknown", "", ""),
                ],
                None,
                Pending(Wait::Approval),
            ),
        ] {
            assert_eq!(
                progress(Some(&status(&conditions, certificate))),
                expected,
                "{conditions:?}"
            );
        }
        assert_eq!(progress(None), Pending(Wait::Approval));
    }
}
