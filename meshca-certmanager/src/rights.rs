//! What the control plane may do, as the API server sees it.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::{Api, PostParams};
use meshca_core::Result;

use crate::error::{from_kube, limited};

/// Which of these verbs are not granted on a resource, by its group and name, in a namespace.
pub(crate) async fn missing_verbs(
    client: &Client,
    namespace: &str,
    (group, resource): (&str, &str),
    verbs: &[&'static str],
) -> Result<Vec<&'static str>> {
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
    Ok(missing)
}
