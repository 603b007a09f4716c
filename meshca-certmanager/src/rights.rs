//! What the control plane may do, as the API server sees it.

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};
use kube::{Client, Error as KubeError};
use meshca_core::{Error, ErrorKind, Result, Retry};

use crate::error::{code, from_kube, limited, line};

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
    /// The resource with its group, as `kubectl` takes it.
    fn full_resource(&self) -> String {
        match self.group {
            "" => self.resource.to_owned(),
            group => format!("{}.{group}", self.resource),
        }
    }

    /// The command that grants them, in backquotes: with the names of our example role, whose other
    /// rules it keeps (`kubectl auth reconcile`).
    pub(crate) async fn command(&self, client: &Client) -> String {
        let resource = self.full_resource();
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
    let missing = missing(client, grant).await?;
    match missing.is_empty() {
        true => Ok(()),
        false => Err(lacking(client, grant, &missing, purpose).await),
    }
}

/// Makes an error of a call that was refused. Where that is for want of rights, it has the command that
/// grants them. `doing`, `verb`: as in [`from_kube`].
pub(crate) async fn refused(
    client: &Client,
    grant: Grant<'_>,
    error: KubeError,
    doing: &str,
    verb: &str,
) -> Error {
    let resource = grant.full_resource();
    if code(&error) != Some(403) {
        return from_kube(error, doing, verb, &resource);
    }
    match missing(client, grant).await {
        Ok(missing) if !missing.is_empty() => {
            let lacking = lacking(client, grant, &missing, doing).await;
            lacking.with_source(error)
        }
        // Webhooks and quotas refuse with the same status.
        Ok(_) => {
            let said = line(&error.to_string());
            let why = format!(
                "the API server refused to {doing}, though the control plane's role allows it: does an admission webhook or a quota refuse? (Kubernetes: {said})"
            );
            let denied = Error::new(ErrorKind::Denied, why);
            denied.with_retry(Retry::Backoff).with_source(error)
        }
        Err(_) => from_kube(error, doing, verb, &resource),
    }
}

/// The verbs that the API server does not allow.
async fn missing<'g>(client: &Client, grant: Grant<'g>) -> Result<Vec<&'g str>> {
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut missing = Vec::new();
    for verb in grant.verbs {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some(grant.group.to_owned()),
                    resource: Some(grant.resource.to_owned()),
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
    Ok(missing)
}

async fn lacking(client: &Client, grant: Grant<'_>, missing: &[&str], purpose: &str) -> Error {
    let of_group = match grant.group {
        "" => String::new(),
        group => format!(" of the group `{group}`"),
    };
    let place = match grant.namespace {
        Some(namespace) => {
            format!(" in the namespace `{namespace}`, or correct the namespace that it was given")
        }
        None => String::new(),
    };
    let why = format!(
        "the control plane may not {purpose}: its role lacks the verbs `{}` on `{}`{of_group}. Grant them{place}. One command: {}",
        missing.join("`, `"),
        grant.resource,
        grant.command(client).await
    );
    // As when a request is refused: roles take a moment until they are known.
    Error::new(ErrorKind::Denied, why).with_retry(Retry::Backoff)
}
