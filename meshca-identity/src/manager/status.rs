//! The status of a MeshIdentity, as the field writes it.

use std::fmt;

use meshca_core::resource::{IdentityProvider, MeshIdentity, MeshTrustCreation};
use meshca_core::{Error, ErrorKind};

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
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Condition {
    /// `SpiffeIDProvider`, `Provider`, `MeshTrustCreated` or `Ready`.
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

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            reason,
            message,
            ..
        } = self;
        write!(f, "{kind}={} {reason}: {message}", self.status_str())
    }
}

impl IdentityStatus {
    /// The condition of this type.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|it| it.kind == kind)
    }
}

/// What is known of the CA behind a MeshIdentity.
pub(crate) enum CaState<'a> {
    /// Being set up.
    Building,
    Ready,
    Failing {
        error: &'a Error,
        registered: bool,
        /// Whether what was set up before goes on.
        serving: bool,
    },
}

/// The conditions of a MeshIdentity.
pub(crate) fn of(
    identity: &MeshIdentity,
    spiffe: Result<(), Error>,
    ca: CaState<'_>,
    trust: Result<(), Error>,
) -> IdentityStatus {
    let condition = |kind, status, reason, message: &str| Condition {
        kind,
        status,
        reason,
        message: message.to_owned(),
    };
    let mut conditions = Vec::new();
    match &spiffe {
        Ok(()) => conditions.push(condition(
            "SpiffeIDProvider",
            Some(true),
            "SpiffeIDProvided",
            "SPIFFE IDs can be made",
        )),
        Err(error) => {
            let message = error.to_string();
            conditions.push(condition(
                "SpiffeIDProvider",
                Some(false),
                "Failure",
                &message,
            ));
            conditions.push(condition("Ready", Some(false), "Failure", &message));
            return status(identity, conditions);
        }
    }
    let Some(provider) = &identity.provider else {
        conditions.push(condition(
            "Ready",
            Some(false),
            "PartiallyReady",
            "SPIFFE ID only: there is no provider, so nothing is issued",
        ));
        return status(identity, conditions);
    };
    let ready = match provider {
        IdentityProvider::Spire(_) => {
            conditions.push(condition(
                "Provider",
                Some(true),
                "ProviderInitialized",
                "proxies get their identities from a SPIRE agent",
            ));
            Some(true)
        }
        _ => {
            let (found, state) = match ca {
                CaState::Building => (
                    condition(
                        "Provider",
                        None,
                        "ProviderInitializationError",
                        "the CA is being set up",
                    ),
                    None,
                ),
                CaState::Ready => (
                    condition(
                        "Provider",
                        Some(true),
                        "ProviderInitialized",
                        "the CA is ready",
                    ),
                    Some(true),
                ),
                CaState::Failing {
                    error,
                    registered,
                    serving,
                } => {
                    let reason = match error.kind() {
                        _ if !registered => "ProviderNotFoundError",
                        ErrorKind::InvalidConfig | ErrorKind::Unsupported => {
                            "ProviderValidationError"
                        }
                        _ => "ProviderInitializationError",
                    };
                    let also = match serving {
                        true => "; what was set up before goes on issuing",
                        false => "",
                    };
                    let message = format!("{error}{also}");
                    (
                        condition("Provider", Some(false), reason, &message),
                        Some(serving),
                    )
                }
            };
            conditions.push(found);
            state
        }
    };
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
        conditions.push(match &trust {
            Ok(()) => condition(
                "MeshTrustCreated",
                Some(true),
                "MeshTrustCreated",
                "its roots are in a MeshTrust of its name",
            ),
            Err(error) => condition(
                "MeshTrustCreated",
                Some(false),
                "MeshTrustCreationError",
                &error.to_string(),
            ),
        });
    }
    conditions.push(match ready {
        Some(true) if trusted => condition(
            "Ready",
            Some(true),
            "Ready",
            "workloads get their identities",
        ),
        None => condition("Ready", None, "PartiallyReady", "the CA is being set up"),
        _ => condition(
            "Ready",
            Some(false),
            "Failure",
            "workloads that it selects get no identity: see the other conditions",
        ),
    });
    status(identity, conditions)
}

fn status(identity: &MeshIdentity, conditions: Vec<Condition>) -> IdentityStatus {
    IdentityStatus {
        name: identity.metadata.name.clone(),
        namespace: identity.metadata.namespace.clone(),
        conditions,
    }
}
