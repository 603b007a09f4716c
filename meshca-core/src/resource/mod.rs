//! Mesh resources: reading, checking and writing them.

mod datasource;
mod de;
mod decode;
mod document;
mod duration;
mod free_form;
mod kri;
pub mod labels;
mod mesh;
mod mesh_identity;
mod mesh_tls;
mod mesh_trust;
mod metadata;
mod parse;
mod provider;
mod secret;
mod selector;
mod template;
mod violation;

pub use datasource::{DataSource, SecureDataSource};
pub use free_form::FreeForm;
pub use kri::Kri;
pub use mesh::{Backend, DEFAULT_EXPIRATION, DpCert, Mesh, Mode, Mtls, RootChain};
pub use mesh_identity::{
    Bundled, BundledCa, Extension, ExtensionMode, IdentityProvider, MeshIdentity, MeshTrustCreation, Spire,
};
pub use mesh_tls::{MeshTls, TargetKind, TargetRef, TlsCipher, TlsRule, TlsVersion, TlsVersions};
pub use mesh_trust::{CaBundle, MeshTrust};
pub use metadata::{DEFAULT_MESH, Form, Metadata};
pub use parse::{Documents, ParseOptions, Resource};
pub use provider::{
    AcmConf, AppRoleAuth, AwsAuth, AwsAuthType, AwsCredentials, BuiltinConf, CertManagerConf, Dialect, IssuerRef,
    KubernetesAuth, OtherConf, ProvidedConf, Provider, TlsAuth, VaultAuth, VaultConf, VaultTls,
};
pub use secret::SecretResource;
pub use selector::Selector;
pub use violation::{Location, Report, Severity, Violation};
