//! Tells an operator what is wrong before the first proxy asks.

use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use meshca_core::resource::IssuerRef;
use meshca_core::{CheckReport, Error, ErrorKind, Result};
use serde::Deserialize as _;

use crate::crd::{Condition, GROUP};
use crate::error::{code, from_kube, limited, line};
use crate::rights::require;
use crate::signing::Signing;

/// What the control plane does with requests.
const VERBS: [&str; 5] = ["create", "get", "list", "watch", "delete"];

pub(crate) async fn check(signing: &Signing) -> Result<CheckReport> {
    let mut report = CheckReport::new();
    let resource = (GROUP, "certificaterequests");
    let namespace = &signing.settings.namespace;
    let purpose = "do what it has to";
    require(&signing.client, namespace, resource, &VERBS, purpose).await?;
    report.warnings.extend(issuer(signing).await?);
    if signing.settings.conf.ca_cert.is_none() {
        report = report.with_warning(
            "`caCert` is not set: the root that the issuer names in `status.ca` is trusted, and some kinds of issuers name none",
        );
    }
    Ok(report)
}

/// Whether the issuer is there and ready; a warning where that cannot be seen.
async fn issuer(signing: &Signing) -> Result<Option<String>> {
    let wanted = &signing.settings.conf.issuer;
    let (kind, name, group) = (wanted.kind(), wanted.name.as_str(), wanted.group());
    if group != IssuerRef::DEFAULT_GROUP {
        return Ok(Some(format!(
            "whether the {kind} `{name}` of `{group}` is ready cannot be seen from here: external issuers differ"
        )));
    }
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
    let plural = resource.plural.clone();
    let api: Api<DynamicObject> = match kind {
        "ClusterIssuer" => Api::all_with(signing.client.clone(), &resource),
        _ => Api::namespaced_with(
            signing.client.clone(),
            &signing.settings.namespace,
            &resource,
        ),
    };
    let object = match limited(api.get(name)).await {
        Ok(object) => object,
        Err(error) if code(&error) == Some(403) => {
            return Ok(Some(format!(
                "whether the {kind} `{name}` is ready cannot be seen: to have that, add the verb `get` on `{plural}.{group}` to the control plane's role"
            )));
        }
        Err(error) if code(&error) == Some(404) => {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "there is no {kind} `{name}`{}: create it, correct `issuerRef`, or install cert-manager if its resources are missing",
                    match kind {
                        "ClusterIssuer" => String::new(),
                        _ => format!(" in the namespace `{}`", signing.settings.namespace),
                    }
                ),
            ));
        }
        Err(error) => {
            return Err(from_kube(
                error,
                "read the issuer",
                "get",
                &format!("{plural}.{group}"),
            ));
        }
    };
    let conditions = object.data.pointer("/status/conditions");
    let conditions = conditions.and_then(|list| list.as_array()).into_iter();
    // One by one: another controller's condition that cannot be read must not hide this one.
    let ready = conditions
        .flatten()
        .filter_map(|condition| Condition::deserialize(condition).ok())
        .find(|condition| condition.type_ == "Ready");
    match ready {
        Some(ready) if ready.status == "True" => Ok(None),
        Some(ready) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("the {kind} `{name}` is not ready: {}", line(&ready.message)),
        )),
        None => Err(Error::new(
            ErrorKind::Unavailable,
            format!("the {kind} `{name}` is not ready yet: is cert-manager's controller running?"),
        )),
    }
}
