//! The labels that have a meaning to a mesh. The prefixes `kuma.io/` and `k8s.kuma.io/` are reserved.

/// The mesh that a resource belongs to (Kubernetes form; absent means `default`).
pub const MESH: &str = "kuma.io/mesh";
/// The zone that a resource comes from.
pub const ZONE: &str = "kuma.io/zone";
/// The environment of a zone: `kubernetes` or `universal`.
pub const ENV: &str = "kuma.io/env";
/// Which control plane a resource was applied to: `global` or `zone`.
pub const ORIGIN: &str = "kuma.io/origin";
/// The name that people gave, where a synchronised copy had to be renamed.
pub const DISPLAY_NAME: &str = "kuma.io/display-name";
/// The service of a Dataplane.
pub const SERVICE: &str = "kuma.io/service";
/// The workload of a Dataplane.
pub const WORKLOAD: &str = "kuma.io/workload";
/// Whether a resource is synchronised between zones: `enabled` or `disabled`.
pub const KDS_SYNC: &str = "kuma.io/kds-sync";
/// The Kubernetes namespace of a Dataplane.
pub const K8S_NAMESPACE: &str = "k8s.kuma.io/namespace";
/// The Kubernetes service account of a Dataplane.
pub const K8S_SERVICE_ACCOUNT: &str = "k8s.kuma.io/service-account";

/// All of the above.
pub(crate) const KNOWN: [&str; 10] = [
    MESH,
    ZONE,
    ENV,
    ORIGIN,
    DISPLAY_NAME,
    SERVICE,
    WORKLOAD,
    KDS_SYNC,
    K8S_NAMESPACE,
    K8S_SERVICE_ACCOUNT,
];
