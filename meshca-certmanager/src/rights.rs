//! What the control plane may do, as the API server sees it.

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::{Api, PostParams};
use meshca_core::{Error, ErrorKind, Result, Retry};

use crate::error::{from_kube, limited, line};

/// Rights that the control plane needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant<'a> {
    pub(crate) group: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) verbs: &'a [&'a str],
    /// None for a resource of the cluster.
    pub(crate) namespace: Option<&'a str>,
}

impl Grant<'_> {
    /// The command that grants them, in backquotes: with the names of our example role, whose other
    /// rules it keeps (`kubectl auth reconcile`).
    pub(crate) async fn command(&self, client: &Client) -> String {
        let resource = match self.group {
            "" => self.resource.to_owned(),
            group => format!("{}.{group}", self.resource),
        };
        let (of, place) = match self.namespace {
            Some(namespace) => ("", format!(" -n {}", quoted(namespace))),
            None => ("cluster", String::new()),
        };
        let subject = subject(client, self.namespace).await;
        let verbs = self.verbs.join(",");
        let print = "--dry-run=client -o yaml";
        format!(
            "`(kubectl create {of}role meshca --verb={verbs} --resource={resource}{place} {print}; echo ---; kubectl create {of}rolebinding meshca --{of}role=meshca {subject}{place} {print}) | kubectl auth reconcile -f -`"
        )
    }
}

/// The control plane as a flag of `kubectl create rolebinding`. An API server that does not say who we
/// are leaves it to the operator.
async fn subject(client: &Client, namespace: Option<&str>) -> String {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    let review = SelfSubjectReview::default();
    let told = limited(api.create(&PostParams::default(), &review)).await;
    let told = told.ok().and_then(|told| told.status?.user_info?.username);
    match told.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => match name.strip_prefix("system:serviceaccount:") {
            Some(account) => format!("--serviceaccount={}", quoted(account)),
            None => format!("--user={}", quoted(name)),
        },
        None => format!(
            "--serviceaccount={}:SERVICE-ACCOUNT",
            quoted(namespace.unwrap_or("NAMESPACE"))
        ),
    }
}

/// A value as an argument for a shell.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:@/".contains(c);
    match !value.is_empty() && value.chars().all(plain) {
        true => value.to_owned(),
        false => format!("'{}'", line(value).replace('\'', r"'\''")),
    }
}

/// Refuses, with the command that grants what is missing. `purpose`: as in "the control plane may not
/// …".
pub(crate) async fn require(client: &Client, grant: Grant<'_>, purpose: &str) -> Result<()> {
    let Grant {
        group, resource, ..
    } = grant;
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut missing = Vec::new();
    for verb in grant.verbs {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some(group.to_owned()),
                    resource: Some(resource.to_owned()),
                    namespace: grant.namespace.map(str::to_owned),
                    verb: Some((*verb).to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer = limited(api.create(&PostParams::default(), &review)).await;
        let answer = answer.map_err(|error| {
            from_kube(
                error,
                "ask what we may do",
                "create",
                "selfsubjectaccessreviews.authorization.k8s.io",
            )
        })?;
        if !answer.status.is_some_and(|status| status.allowed) {
            missing.push(*verb);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let of_group = match group {
        "" => String::new(),
        group => format!(" of the group `{group}`"),
    };
    let place = match grant.namespace {
        Some(namespace) => {
            format!(" in the namespace `{namespace}`, or correct the namespace that it was given")
        }
        None => String::new(),
    };
    Err(Error::new(
        ErrorKind::Denied,
        format!(
            "the control plane may not {purpose}: its role lacks the verbs `{}` on `{resource}`{of_group}. Grant them{place}. One command: {}",
            missing.join("`, `"),
            grant.command(client).await
        ),
    )
    // As when a request is refused: roles take a moment until they are known.
    .with_retry(Retry::Backoff))
}
