//! Tells an operator what is wrong before the first proxy asks.

use std::time::{Duration, SystemTime};

use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use meshca_core::issuer::{CaUse, Findings};
use meshca_core::resource::{CertManagerConf, CertManagerUsage, IssuerRef};
use meshca_core::{Error, ErrorKind, Retry};
use serde::Deserialize as _;

use crate::crd::Condition;
use crate::error::{code, from_kube, limited, line};
use crate::heard::hours;
use crate::issuer::CertManagerIssuer;
use crate::rights::{Grant, require};
use crate::signing::Signing;

/// A CA that lives no longer is worth a word.
const NEARLY_OVER: Duration = Duration::from_secs(30 * 24 * 3600);
/// The API group of the issuers of AWS Private CA.
const AWS: &str = "awspca.cert-manager.io";

impl CertManagerIssuer {
    /// Looks at everything, also where something is wrong: an operator wants to hear of it together.
    pub(crate) async fn look_at_all(&self, found: &mut Findings) {
        let signing = &*self.signing;
        let (settings, now) = (&signing.settings, self.clock.now());
        let may = require(&signing.client, signing.grant(), "do what it has to");
        let (may, ()) = tokio::join!(may, look_at_issuer(signing, found));
        found.take(may);
        match found.take(self.can_be_read().await) {
            Some(Some(roots)) => {
                let wanted = CaUse::leaves(Duration::ZERO, now);
                found.judge_roots(&roots, wanted, "Add the next root to `caCert`");
                found.judge_dead_ends(&roots, "caCert");
            }
            Some(None) => found.warn(
                "`caCert` is not set: the root that the issuer names in `status.ca` is trusted, and some kinds of issuers name none",
            ),
            None => {}
        }
        if let Some(end) = self.heard.ca_end() {
            judge_end(found, "the CA of the issuer", end, now);
        }
        judge_usages(found, &settings.conf);
    }
}

fn judge_end(found: &mut Findings, what: &str, end: SystemTime, now: SystemTime) {
    match end.duration_since(now) {
        Ok(left) if left >= NEARLY_OVER => {}
        Ok(left) => found.warn(format!(
            "{what} ends in {}, and no certificate lives longer: renew it",
            hours(left)
        )),
        // Known from an answer, so that it may have been renewed since.
        Err(_) => found.warn(format!(
            "{what} has ended as far as is known here: renew it"
        )),
    }
}

fn judge_usages(found: &mut Findings, conf: &CertManagerConf) {
    use CertManagerUsage::{ClientAuth, ServerAuth};
    let usages = conf.usages();
    let both = usages.contains(&ServerAuth) && usages.contains(&ClientAuth);
    if conf.issuer.group() == AWS && !(both && usages.len() == 2) {
        found.warn(
            "the AWS Private CA issuer takes the template `EndEntityCertificate/V1` for exactly two usages, and for all others one that copies usages from the CSR, where there are none: set `usages: [server auth, client auth]`",
        );
    }
}

/// Whether the issuer is there and ready; a warning where that cannot be seen.
async fn look_at_issuer(signing: &Signing, found: &mut Findings) {
    let wanted = &signing.settings.conf.issuer;
    let (kind, name, group) = (wanted.kind(), wanted.name.as_str(), wanted.group());
    if group != IssuerRef::DEFAULT_GROUP {
        found.warn(format!(
            "whether the {kind} `{name}` of `{group}` is ready cannot be seen from here, nor whether an approver covers it: external issuers differ"
        ));
        return;
    }
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
    let plural = resource.plural.clone();
    let namespace = &signing.settings.namespace;
    let (api, place): (Api<DynamicObject>, _) = match kind {
        "ClusterIssuer" => {
            let all = Api::all_with(signing.client.clone(), &resource);
            (all, String::new())
        }
        _ => {
            let here = Api::namespaced_with(signing.client.clone(), namespace, &resource);
            (here, format!(" -n {namespace}"))
        }
    };
    let object = match limited(api.get(name)).await {
        Ok(object) => object,
        Err(error) if code(&error) == Some(403) => {
            let grant = Grant {
                group,
                resource: &plural,
                verbs: &["get"],
                namespace: Some(namespace)
                    .filter(|_| !place.is_empty())
                    .map(String::as_str),
            };
            return found.warn(format!(
                "whether the {kind} `{name}` is ready cannot be seen: to have that, run {}",
                grant.command(&signing.client).await
            ));
        }
        Err(error) if code(&error) == Some(404) => {
            return found.problem(Error::new(
                ErrorKind::NotFound,
                format!(
                    "there is no {kind} `{name}`{}: create it, correct `issuerRef`, or install cert-manager if its resources are missing (see `kubectl get {plural}.{group}{place}`)",
                    match place.is_empty() {
                        true => String::new(),
                        false => format!(" in the namespace `{namespace}`"),
                    }
                ),
            ));
        }
        Err(error) => {
            // Not a fault of the issuer: the API server does not say.
            let resource = format!("{plural}.{group}");
            return found.problem(from_kube(error, "read the issuer", "get", &resource));
        }
    };
    let acme = object.data.pointer("/spec/acme").is_some();
    if acme {
        found.problem(Error::new(
            ErrorKind::InvalidConfig,
            format!("the {kind} `{name}` is an ACME issuer, and public CAs sign no SPIFFE IDs: name another one in `issuerRef`"),
        ));
    }
    let conditions = object.data.pointer("/status/conditions");
    let conditions = conditions.and_then(|list| list.as_array()).into_iter();
    // One by one: another controller's condition that cannot be read must not hide this one.
    let ready = conditions
        .flatten()
        .filter_map(|condition| Condition::deserialize(condition).ok())
        .find(|condition| condition.type_ == "Ready");
    let why = match ready {
        Some(ready) if ready.status == "True" => return,
        Some(ready) => format!(
            "the {kind} `{name}` is not ready: {} (see `kubectl describe {plural}.{group} {name}{place}`)",
            line(&ready.message)
        ),
        None => format!(
            "the {kind} `{name}` is not ready yet: is cert-manager's controller running (`kubectl -n cert-manager get pods`)?"
        ),
    };
    found.problem(Error::new(ErrorKind::Unavailable, why).with_retry(Retry::Backoff));
}
