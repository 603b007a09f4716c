//! Mesh resources: reading, checking and writing them.
//!
//! A control plane learns from resources which certificate authorities a mesh uses, who gets which identity
//! and whose certificates are believed. There are two models of that, and five kinds:
//!
//! | kind | model | what it says |
//! |---|---|---|
//! | [`Mesh`] | classic | `mtls`: the CAs of a mesh, one of which issues |
//! | [`MeshIdentity`] | modern | which Dataplanes get which SPIFFE ID, and from which CA |
//! | [`MeshTrust`] | modern | the roots of a trust domain |
//! | [`MeshTls`] | modern | how strictly proxies insist on mTLS |
//! | [`SecretResource`] | both | a key, a certificate or a token that the others name |
//!
//! # Two forms, two syntaxes
//!
//! On Kubernetes a resource is an object with `apiVersion`, `kind`, `metadata` and `spec`; everywhere else
//! (the field calls that *Universal*) it has a `type`, a `name` and a `mesh`. Either can be YAML or JSON, and one
//! text can hold many documents or a Kubernetes `List`. [`Resource::parse`] takes them all and remembers the
//! [`Form`]; [`Resource::to_yaml`] writes it again, [`Resource::to_yaml_as`] writes the other.
//!
//! ```
//! use meshca_core::resource::{Form, Resource, VaultConf};
//!
//! let text = "
//! apiVersion: kuma.io/v1alpha1
//! kind: Mesh
//! metadata:
//!   name: default
//! spec:
//!   meshServices:
//!     mode: Exclusive
//!   mtls:
//!     enabledBackend: vault-ca
//!     backends:
//!     - name: vault-ca
//!       type: vault
//!       dpCert:
//!         rotation:
//!           expiration: 1d
//!       conf:
//!         fromCp:
//!           address: http://vault.default:8200
//!           role: mesh-dp
//!           auth:
//!             token:
//!               secret: vault-token
//! ";
//! let documents = Resource::parse(text)?;
//! assert_eq!(
//!     documents.warnings().to_string(),
//!     "19:20: warning: spec.mtls.backends[0].conf.fromCp.address: the connection is not encrypted, so the \
//!      token can be read on the way: use `https://`"
//! );
//! for resource in documents {
//!     let Resource::Mesh(mesh) = &resource else { continue };
//!     let backend = mesh.enabled_backend().expect("mTLS is on");
//!     assert_eq!(backend.dp_cert.lifetime().as_secs(), 24 * 60 * 60);
//!     let Some(vault) = backend.provider.settings::<VaultConf>() else { continue };
//!     assert_eq!((vault.mount(), vault.role.as_str()), ("pki", "mesh-dp"));
//!
//!     // What is not ours is still there.
//!     let universal = resource.to_yaml_as(Form::Universal)?;
//!     assert!(universal.starts_with("type: Mesh\nname: default\n"));
//!     assert!(universal.contains("meshServices:\n  mode: Exclusive\n"));
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The settings of a CA are read by the reader of its type. Those of meshca's own types ([`VaultConf`],
//! [`CertManagerConf`], [`AcmConf`], …) are always known, so that a mesh can be checked without a client for any of them;
//! a third party [brings its own](settings). The field spells some of them in two ways (`acm` and `acmpca`,
//! `cert-manager` and `certmanager`, a block of that name or `conf`): both read into the same type, and [`Dialect`]
//! remembers which it was. The settings of a type without a reader are kept as a [`FreeForm`].
//!
//! # Reports
//!
//! Whatever is wrong is reported at once, with its place and what to do about it, and nothing is read in part: an
//! operator repairs a file in one go, and a misspelt field is never dropped in silence.
//!
//! ```
//! use meshca_core::resource::ParseOptions;
//!
//! let text = "\
//! type: Mesh
//! name: default
//! mtls:
//!   enabledBackend: vualt-ca
//!   backends:
//!   - name: vault-ca
//!     type: vault
//!     conf:
//!       fromCp:
//!         adress: https://vault.default:8200
//!         auth:
//!           token: {secret: vault-token, file: /run/token}
//! ";
//! let report = ParseOptions::new().source("mesh.yaml").parse(text).unwrap_err();
//! assert_eq!(report.to_string(), "\
//! mesh.yaml:4:19: mtls.enabledBackend: no backend is called `vualt-ca`, did you mean `vault-ca`?
//! mesh.yaml:6:5: mtls.backends[0].dpCert.rotation.expiration: must be set: Vault needs the lifetime of every certificate that is asked for
//! mesh.yaml:10:9: mtls.backends[0].conf.fromCp.role: must be set
//! mesh.yaml:10:9: mtls.backends[0].conf.fromCp.adress: unknown field, did you mean `address`?
//! mesh.yaml:12:18: mtls.backends[0].conf.fromCp.auth.token: exactly one of `secret`, `file`, `inline` and `inlineString` must be set, here are `secret` and `file`");
//! ```
//!
//! A [`Violation`] has these parts one by one. What works but will be regretted (a key in plain sight, `skipVerify`) is
//! a [`Severity::Warning`]: it does not stand in the way and comes with the [`Documents`].
//!
//! Other formats come in by way of serde: every kind implements `Deserialize`, by the same rules and without places. A
//! resource that was built in code is checked with [`Resource::validate`].
//!
//! # Limits
//!
//! Up to 16 MiB of text, 64 levels of nesting and 500 000 values, where an alias counts as all that it stands for.
//! Anchors, aliases and merge keys work; custom tags, duplicate fields and numbers that are not finite are refused.
//! Plain scalars follow the core schema of YAML 1.2: `yes` and `on` are texts.

mod any_settings;
mod datasource;
mod de;
mod declare;
mod decode;
#[cfg(feature = "schema")]
mod describe;
mod document;
mod duration;
mod field;
mod free_form;
mod kri;
pub mod labels;
mod mesh;
mod mesh_identity;
mod mesh_tls;
mod mesh_trust;
mod metadata;
mod node;
mod parse;
mod path;
mod provider;
mod scalar;
#[cfg(feature = "schema")]
mod schema;
mod secret;
mod selector;
pub mod settings;
mod template;
mod values;
mod violation;
mod words;

pub(crate) use any_settings::AnySettings;
pub use any_settings::Dialect;
pub use datasource::{DataSource, SecureDataSource};
#[cfg(feature = "builtin")]
pub(crate) use duration::MIN_CA_LIFETIME;
pub use free_form::FreeForm;
pub use kri::Kri;
pub use mesh::{Backend, DEFAULT_EXPIRATION, DpCert, Mesh, Mode, Mtls, RootChain};
#[cfg(feature = "builtin")]
pub(crate) use mesh_identity::SELF_SIGNED_NOT_ALLOWED;
pub use mesh_identity::{
    Bundled, BundledCa, Extension, ExtensionMode, IdentityProvider, MeshIdentity,
    MeshTrustCreation, Spire,
};
pub use mesh_tls::{MeshTls, TargetKind, TargetRef, TlsCipher, TlsRule, TlsVersion, TlsVersions};
pub use mesh_trust::{CaBundle, MeshTrust};
pub use metadata::{DEFAULT_MESH, Form, Metadata};
pub use parse::{Documents, ParseOptions, Resource};
pub(crate) use provider::OURS;
pub use provider::{
    AcmConf, AlsoTrust, AppRoleAuth, AwsAuth, AwsAuthType, AwsCredentials, BuiltinConf,
    CertManagerConf, CertManagerUsage, IssuerRef, JwtAuth, KubernetesAuth, ProvidedConf, Provider,
    TlsAuth, VaultAuth, VaultConf, VaultTls,
};
pub use secret::SecretResource;
pub use selector::Selector;
pub use violation::{Location, Report, Severity, Violation};
