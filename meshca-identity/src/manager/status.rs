//! The status of a MeshIdentity, as the field writes it.

use meshca_core::resource::{IdentityProvider, MeshIdentity, MeshTrustCreation};
use meshca_core::{Error, ErrorKind};
use serde::Deserialize;

/// What a control plane writes into `status.conditions` of a MeshIdentity.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IdentityStatus {
    /// The name of the MeshIdentity.
    pub name: String,
    /// Its namespace, on Kubernetes.
    pub namespace: Option<String>,
    /// What is the case, `Ready` last.
    pub conditions: Vec<Condition>,
}

/// One condition. Types and reasons are Kuma's.
#[derive(Clone, Debug, derive_more::Display, PartialEq, Eq)]
#[display("{kind}={} {reason}: {message}", self.status_str())]
#[non_exhaustive]
pub struct Condition {
    /// `SpiffeIDProvider`, `Provider`, `MeshTrustCreated` or `Ready`. A `Provider` that is `False` for
    /// `ProviderValidationError` has settings that cannot work, or a CA whose certificates peers would
    /// refuse: no MeshTrust has its root, or it is an intermediate whose root the mesh does not trust.
    pub kind: &'static str,
    /// Whether it is so; `None` if that is not known yet.
    pub status: Option<bool>,
    /// Why, in one word.
    pub reason: &'static str,
    /// Why, in words for an operator.
    pub message: String,
}

impl Condition {
    /// As Kubernetes writes it: `True`, `False` or `Unknown`.
    pub fn status_str(&self) -> &'static str {
        match self.status {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        }
    }
}

impl IdentityStatus {
    /// The condition of this type.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|it| it.kind == kind)
    }
}

/// What is known of the CA behind a MeshIdentity.
pub(crate) enum CaStatus<'a> {
    /// Being set up.
    Building,
    Ready,
    Failing {
        error: &'a Error,
        registered: bool,
        /// Whether something shows that it existed, and it is gone.
        lost: bool,
        /// Whether what was set up before goes on.
        serving: bool,
    },
}

/// The reason of a `Provider` whose CA existed and is gone. Kuma has none for it: there, a new CA is made.
const CA_LOST: &str = "ProviderCaLost";

/// The stored form of a status, as far as it is read.
#[derive(Deserialize)]
struct Stored {
    #[serde(default)]
    conditions: Vec<StoredCondition>,
}

#[derive(Deserialize)]
struct StoredCondition {
    r#type: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    reason: String,
}

/// Whether the status of a MeshIdentity shows that its provider has had a CA.
pub(super) fn shows_a_ca(identity: &MeshIdentity) -> bool {
    let stored = identity.status.decode::<Stored>();
    let conditions = stored.map(|stored| stored.conditions).unwrap_or_default();
    conditions.iter().any(|it| {
        let is_true = matches!(&*it.r#type, "Provider" | "MeshTrustCreated") && it.status == "True";
        is_true || it.reason == CA_LOST
    })
}

fn condition(
    kind: &'static str,
    status: Option<bool>,
    reason: &'static str,
    message: impl Into<String>,
) -> Condition {
    Condition {
        kind,
        status,
        reason,
        message: message.into(),
    }
}

/// The conditions of a MeshIdentity.
pub(crate) fn of(
    identity: &MeshIdentity,
    spiffe: Result<(), Error>,
    ca: CaStatus<'_>,
    trust: Result<(), Error>,
) -> IdentityStatus {
    IdentityStatus {
        name: identity.metadata.name.clone(),
        namespace: identity.metadata.namespace.clone(),
        conditions: conditions(identity.provider.as_ref(), spiffe, ca, trust),
    }
}

fn conditions(
    provider: Option<&IdentityProvider>,
    spiffe: Result<(), Error>,
    ca: CaStatus<'_>,
    trust: Result<(), Error>,
) -> Vec<Condition> {
    if let Err(error) = spiffe {
        let message = error.to_string();
        return vec![
            condition("SpiffeIDProvider", Some(false), "Failure", &message),
            condition("Ready", Some(false), "Failure", &message),
        ];
    }
    let provided = "SPIFFE IDs can be made";
    let mut conditions = vec![condition(
        "SpiffeIDProvider",
        Some(true),
        "SpiffeIDProvided",
        provided,
    )];
    let Some(provider) = provider else {
        let message = "SPIFFE ID only: there is no provider, so nothing is issued";
        conditions.push(condition("Ready", Some(false), "PartiallyReady", message));
        return conditions;
    };
    let (found, ready) = of_provider(provider, ca);
    conditions.push(found);
    let creates = match provider {
        IdentityProvider::Bundled(bundled) => {
            bundled.mesh_trust_creation == MeshTrustCreation::Enabled
        }
        IdentityProvider::Extension(_) => true,
        _ => false,
    };
    let mut trusted = true;
    if creates && ready == Some(true) {
        trusted = trust.is_ok();
        let kind = "MeshTrustCreated";
        conditions.push(match trust {
            Ok(()) => {
                let message = "its roots are in a MeshTrust of its name";
                condition(kind, Some(true), "MeshTrustCreated", message)
            }
            Err(error) => {
                let reason = "MeshTrustCreationError";
                condition(kind, Some(false), reason, error.to_string())
            }
        });
    }
    let (reason, message) = match ready {
        Some(true) if trusted => ("Ready", "workloads get their identities"),
        None => ("PartiallyReady", "the CA is being set up"),
        _ => (
            "Failure",
            "workloads that it selects get no identity: see the other conditions",
        ),
    };
    let ready = ready.map(|ready| ready && trusted);
    conditions.push(condition("Ready", ready, reason, message));
    conditions
}

/// The condition of a provider, and whether it is ready.
fn of_provider(provider: &IdentityProvider, ca: CaStatus<'_>) -> (Condition, Option<bool>) {
    let kind = "Provider";
    let initialized = |message: &str| condition(kind, Some(true), "ProviderInitialized", message);
    if let IdentityProvider::Spire(_) = provider {
        let message = "proxies get their identities from a SPIRE agent";
        return (initialized(message), Some(true));
    }
    match ca {
        CaStatus::Building => {
            let (reason, message) = ("ProviderInitializationError", "the CA is being set up");
            (condition(kind, None, reason, message), None)
        }
        CaStatus::Ready => (initialized("the CA is ready"), Some(true)),
        CaStatus::Failing {
            error,
            registered,
            lost,
            serving,
        } => {
            let reason = match error.kind() {
                _ if !registered => "ProviderNotFoundError",
                _ if lost => CA_LOST,
                ErrorKind::InvalidConfig | ErrorKind::Unsupported => "ProviderValidationError",
                _ => "ProviderInitializationError",
            };
            let also = match serving {
                true => "; what was set up before goes on issuing",
                false => "",
            };
            let message = format!("{error}{also}");
            (condition(kind, Some(false), reason, message), Some(serving))
        }
    }
}
