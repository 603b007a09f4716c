//! What the control plane may do, as the API server sees it.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::{Api, PostParams};
use meshca_core::{Error, ErrorKind, Result, Retry};

use crate::error::{from_kube, limited};

/// Refuses, with the verbs to add, if some of these are not granted on a resource (by its group and name) in a namespace.
/// `purpose`: as in "the control plane may not …".
pub(crate) async fn require(
    client: &Client,
    namespace: &str,
    (group, resource): (&str, &str),
    verbs: &[&str],
    purpose: &str,
) -> Result<()> {
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut missing = Vec::new();
    for verb in verbs {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some(group.to_owned()),
                    resource: Some(resource.to_owned()),
                    namespace: Some(namespace.to_owned()),
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
    Err(Error::new(
        ErrorKind::Denied,
        format!(
            "the control plane may not {purpose}: add the verbs `{}` on `{resource}`{of_group} to its role in the namespace `{namespace}`, or correct the namespace that it was told",
            missing.join("`, `")
        ),
    )
    // As when a request is refused: roles take a moment until they are known.
    .with_retry(Retry::Backoff))
}
