//! Settings of HashiCorp Vault: `conf.fromCp`.

use std::path::PathBuf;

use serde::Serialize;

use super::super::datasource::DataSource;
#[cfg(feature = "schema")]
use super::super::free_form::FreeForm;
use super::super::settings::{self, Cursor, Dialect, Fields, Settings};
use crate::spiffe::NameTemplate;

/// How the control plane reaches Vault's PKI engine and asks it to sign.
///
/// In the document these settings are in `fromCp`, which says that the control plane asks, not the
/// proxies.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "VaultFromCp")
)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct VaultConf {
    /// The server: `https://vault.example:8200`.
    #[cfg_attr(feature = "schema", schemars(extend("pattern" = "^https?://")))]
    pub address: String,
    /// A Vault agent to ask instead of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_address: Option<String>,
    /// The Vault namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Where the PKI engine is mounted; `pki` if absent, see [`mount`](Self::mount).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pki: Option<String>,
    /// The role to sign under.
    pub role: String,
    /// The issuer to sign with, by name or ID; the engine's default if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// A template for the certificate's common name, such as `{{ tag "kuma.io/service" }}.mesh`. No
    /// common name if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub common_name: Option<NameTemplate>,
    /// How to trust the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<VaultTls>,
    /// How to log in.
    pub auth: VaultAuth,
}

impl VaultConf {
    /// The mount of the PKI engine where the document does not say.
    pub const DEFAULT_MOUNT: &'static str = "pki";

    /// What every Vault backend must say.
    pub fn new(address: impl Into<String>, role: impl Into<String>, auth: VaultAuth) -> Self {
        Self {
            address: address.into(),
            agent_address: None,
            namespace: None,
            pki: None,
            role: role.into(),
            issuer: None,
            common_name: None,
            tls: None,
            auth,
        }
    }

    /// The mount of the PKI engine.
    pub fn mount(&self) -> &str {
        self.pki.as_deref().unwrap_or(Self::DEFAULT_MOUNT)
    }
}

/// How to trust the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct VaultTls {
    /// The roots that the server's certificate must chain to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_cert: Option<DataSource>,
    /// Accepts any certificate. For development only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skip_verify: bool,
    /// The name that the server's certificate must have, if it is not the host of the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

/// How to log in: exactly one of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum VaultAuth {
    /// A token.
    Token(DataSource),
    /// A client certificate.
    Tls(TlsAuth),
    /// The AWS identity of the control plane.
    Aws(AwsAuth),
    /// The Kubernetes service account of the control plane.
    Kubernetes(KubernetesAuth),
    /// An AppRole.
    AppRole(AppRoleAuth),
}

/// Vault's `cert` auth method.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct TlsAuth {
    /// The private key.
    pub client_key: DataSource,
    /// The certificate.
    pub client_cert: DataSource,
}

impl TlsAuth {
    /// Both are needed.
    pub fn new(client_key: DataSource, client_cert: DataSource) -> Self {
        Self {
            client_key,
            client_cert,
        }
    }
}

/// Vault's `aws` auth method.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct AwsAuth {
    /// What Vault checks.
    #[serde(rename = "type")]
    pub auth_type: AwsAuthType,
    /// The role to log in as; Vault's own choice if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The value of `X-Vault-AWS-IAM-Server-ID` that Vault insists on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iam_server_id_header: Option<String>,
}

impl AwsAuth {
    /// No role and no header.
    pub fn new(auth_type: AwsAuthType) -> Self {
        Self {
            auth_type,
            role: None,
            iam_server_id_header: None,
        }
    }
}

/// What Vault's `aws` auth method checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub enum AwsAuthType {
    /// A signed request of an IAM principal.
    #[serde(rename = "IAM")]
    Iam,
    /// The identity document of an EC2 instance.
    #[serde(rename = "EC2")]
    Ec2,
}

/// Vault's `kubernetes` auth method.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct KubernetesAuth {
    /// The role to log in as.
    pub role: String,
    /// Where the auth method is mounted; `kubernetes` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount_path: Option<String>,
    /// Where the service account's token is; the usual place in a pod if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account_token_path: Option<PathBuf>,
}

impl KubernetesAuth {
    /// The usual mount and the usual token.
    pub fn new(role: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            mount_path: None,
            service_account_token_path: None,
        }
    }
}

/// Vault's `approle` auth method.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct AppRoleAuth {
    /// The role's ID.
    pub role_id: String,
    /// The secret ID.
    pub secret_id: DataSource,
    /// Where the auth method is mounted; `approle` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount_path: Option<String>,
}

impl AppRoleAuth {
    /// The usual mount.
    pub fn new(role_id: impl Into<String>, secret_id: DataSource) -> Self {
        Self {
            role_id: role_id.into(),
            secret_id,
            mount_path: None,
        }
    }
}

/// The field that says who asks.
#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "VaultSettings")
)]
#[serde(rename_all = "camelCase")]
struct Wire<'w> {
    from_cp: &'w VaultConf,
}

impl Settings for VaultConf {
    const TYPE: &'static str = "vault";
    const NEEDS_EXPIRATION: Option<&'static str> =
        Some("Vault needs the lifetime of every certificate that is asked for");

    fn read(f: &mut Fields<'_>) -> Option<Self> {
        f.required("fromCp", from_cp)
    }

    #[cfg(feature = "schema")]
    fn schema() -> Option<FreeForm> {
        settings::fragment::<Wire<'static>>()
    }

    fn common_name(&self) -> Option<&NameTemplate> {
        self.common_name.as_ref()
    }

    fn in_dialect(&self, _: Dialect) -> impl Serialize {
        Wire { from_cp: self }
    }
}

fn from_cp(at: Cursor<'_>) -> Option<VaultConf> {
    at.mapping(|f| {
        let address = f.required("address", address);
        let agent_address = f.opt("agentAddress", address_of_agent);
        let namespace = f.opt("namespace", settings::non_empty);
        let pki = f.opt("pki", mount);
        let role = f.required("role", segment);
        let issuer = f.opt("issuer", segment);
        let common_name = f.opt("commonName", settings::name_template);
        let tls = f.opt("tls", tls);
        let auth = f.required("auth", auth);
        Some(VaultConf {
            address: address?,
            agent_address,
            namespace,
            pki,
            role: role?,
            issuer,
            common_name,
            tls,
            auth: auth?,
        })
    })
}

fn url(at: Cursor<'_>) -> Option<(String, bool)> {
    let text = at.text()?;
    let (encrypted, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => return at.error("must be a URL that starts with `https://` or `http://`"),
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.contains('@') {
        return at.error("must not hold a user name or password");
    }
    if host.trim_start_matches(':').is_empty()
        || text.contains(|c: char| c.is_whitespace() || c.is_control())
    {
        return at.error("must be a URL with a host, such as `https://vault.example:8200`");
    }
    Some((text.to_owned(), encrypted))
}

fn address(at: Cursor<'_>) -> Option<String> {
    let (address, encrypted) = url(at)?;
    if !encrypted {
        at.warn(
            "the connection is not encrypted, so the token can be read on the way: use `https://`",
        );
    }
    Some(address)
}

/// An agent usually runs on the same host, without TLS.
fn address_of_agent(at: Cursor<'_>) -> Option<String> {
    url(at).map(|(address, _)| address)
}

/// Part of a request's path.
fn mount(at: Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    let path = text.trim_matches('/');
    let sound = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'%' | b'\\'))
    };
    match path.split('/').all(sound) {
        true => Some(path.to_owned()),
        false => at.error("must be a path of plain segments, such as `pki` or `teams/pki`"),
    }
}

fn segment(at: Cursor<'_>) -> Option<String> {
    let path = mount(at)?;
    match path.contains('/') || at.text()?.contains('/') {
        true => at.error("must not contain `/`"),
        false => Some(path),
    }
}

fn tls(at: Cursor<'_>) -> Option<VaultTls> {
    at.mapping(|f| {
        let ca_cert = f.opt("caCert", settings::public);
        let skip_verify = f.opt("skipVerify", |at| {
            let skip = settings::boolean(at)?;
            if skip {
                at.warn("any server is trusted with the token and with every identity: set `caCert` instead");
            }
            Some(skip)
        });
        let server_name = f.opt("serverName", settings::non_empty);
        Some(VaultTls {
            ca_cert,
            skip_verify: skip_verify.unwrap_or_default(),
            server_name,
        })
    })
}

fn auth(at: Cursor<'_>) -> Option<VaultAuth> {
    at.mapping(|f| {
        let one = f.exactly_one(&["token", "tls", "aws", "kubernetes", "appRole"]);
        let ways = [
            f.opt("token", settings::secret).map(VaultAuth::Token),
            f.opt("tls", tls_auth).map(VaultAuth::Tls),
            f.opt("aws", aws_auth).map(VaultAuth::Aws),
            f.opt("kubernetes", kubernetes_auth)
                .map(VaultAuth::Kubernetes),
            f.opt("appRole", app_role_auth).map(VaultAuth::AppRole),
        ];
        one.and(ways.into_iter().flatten().next())
    })
}

fn tls_auth(at: Cursor<'_>) -> Option<TlsAuth> {
    at.mapping(|f| {
        let client_key = f.required("clientKey", settings::secret);
        let client_cert = f.required("clientCert", settings::public);
        Some(TlsAuth {
            client_key: client_key?,
            client_cert: client_cert?,
        })
    })
}

fn aws_auth(at: Cursor<'_>) -> Option<AwsAuth> {
    at.mapping(|f| {
        let auth_type = f.required("type", |at| {
            at.choice(&[("IAM", AwsAuthType::Iam), ("EC2", AwsAuthType::Ec2)])
        });
        let role = f.opt("role", settings::non_empty);
        let iam_server_id_header = f.opt("iamServerIdHeader", settings::non_empty);
        Some(AwsAuth {
            auth_type: auth_type?,
            role,
            iam_server_id_header,
        })
    })
}

fn kubernetes_auth(at: Cursor<'_>) -> Option<KubernetesAuth> {
    at.mapping(|f| {
        let role = f.required("role", settings::non_empty);
        let mount_path = f.opt("mountPath", mount);
        let service_account_token_path = f
            .opt("serviceAccountTokenPath", settings::non_empty)
            .map(PathBuf::from);
        Some(KubernetesAuth {
            role: role?,
            mount_path,
            service_account_token_path,
        })
    })
}

fn app_role_auth(at: Cursor<'_>) -> Option<AppRoleAuth> {
    at.mapping(|f| {
        let role_id = f.required("roleId", settings::non_empty);
        let secret_id = f.required("secretId", settings::secret);
        let mount_path = f.opt("mountPath", mount);
        Some(AppRoleAuth {
            role_id: role_id?,
            secret_id: secret_id?,
            mount_path,
        })
    })
}
