//! Settings of HashiCorp Vault: `conf.fromCp`.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::json;

use super::super::datasource::DataSource;
use super::super::declare::{Mapping, Words as _, mapping, one_of, words};
use super::super::field::{Codec as _, Described, Each, defaulted, optional, required, spelt};
#[cfg(feature = "schema")]
use super::super::free_form::FreeForm;
use super::super::settings::{self, Cursor, Dialect, Fields, Settings};
use super::option_name;
use crate::pem;
use crate::spiffe::NameTemplate;

mapping! {
    /// How the control plane reaches Vault's PKI engine and asks it to sign.
    ///
    /// In the document these settings are in `fromCp`, which says that the control plane asks, not the
    /// proxies.
    #[derive(Clone, Debug, PartialEq)]
    #[non_exhaustive]
    pub struct VaultConf as "VaultFromCp" {
        /// The server: `https://vault.example:8200`.
        pub address: String = required("address", Described(address, || json!({ "pattern": "^https?://" }))),
        /// A Vault agent to ask instead of the server.
        pub agent_address: Option<String> = optional("agentAddress", address_of_agent),
        /// The name of a proxy among the options of the control plane, through which every connection goes. The one that is
        /// its default if absent, or none, whatever the environment says.
        pub proxy: Option<String> = optional("proxy", option_name),
        /// The Vault namespace.
        pub namespace: Option<String> = optional("namespace", settings::non_empty),
        /// Where the PKI engine is mounted; `pki` if absent, see [`mount`](Self::mount).
        pub pki: Option<String> = optional("pki", mount),
        /// The role to sign under.
        pub role: String = required("role", segment),
        /// The issuer to sign with, by name or ID; the engine's default if absent.
        /// Its chain alone is trusted then.
        pub issuer: Option<String> = optional("issuer", segment),
        /// What is trusted beside the issuers that may sign, so that the next root is known before it signs.
        pub also_trust: Vec<AlsoTrust> = defaulted("alsoTrust", Each(spelt(AlsoTrust::read, AlsoTrust::text))),
        /// The roots, outright: the engine is not asked for them, and those that it has count for nothing.
        pub ca_cert: Option<DataSource> = optional("caCert", settings::public),
        /// A template for the certificate's common name, such as `{{ tag "kuma.io/service" }}.mesh`. No
        /// common name if absent.
        pub common_name: Option<NameTemplate> = optional("commonName", settings::name_template),
        /// How to trust the server.
        pub tls: Option<VaultTls> = optional("tls", VaultTls::read),
        /// How to log in.
        pub auth: VaultAuth = required("auth", VaultAuth::read),
    }
}

impl VaultConf {
    /// The mount of the PKI engine where the document does not say.
    pub const DEFAULT_MOUNT: &'static str = "pki";

    /// What every Vault backend must say.
    pub fn new(address: impl Into<String>, role: impl Into<String>, auth: VaultAuth) -> Self {
        Self {
            address: address.into(),
            agent_address: None,
            proxy: None,
            namespace: None,
            pki: None,
            role: role.into(),
            issuer: None,
            also_trust: Vec::new(),
            ca_cert: None,
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

mapping! {
    struct VaultSettings {
        from_cp: VaultConf = required("fromCp", from_cp),
    }
}

/// Reads all settings, and judges those together that do not go together.
fn from_cp(at: Cursor<'_>) -> Option<VaultConf> {
    at.mapping(|f| {
        let conf = VaultConf::read_fields(f);
        if f.has("caCert") && f.has("alsoTrust") {
            return f.refuse(
                "alsoTrust",
                "does not go with `caCert`, which names all roots: put this one there",
            );
        }
        conf
    })
}

/// A CA that is trusted beside those that sign.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AlsoTrust {
    /// An issuer of the mount, by name or ID: the roots that its chain leads to.
    Issuer(String),
    /// Root certificates in PEM.
    Pem(String),
}

impl AlsoTrust {
    fn read(at: Cursor<'_>) -> Option<Self> {
        let text = at.text()?;
        if !text.contains("-----BEGIN ") {
            return segment(at).map(Self::Issuer);
        }
        match pem::certificates(text) {
            Ok(certificates) if certificates.is_empty() => at.error("holds no certificate"),
            Ok(_) => Some(Self::Pem(text.to_owned())),
            Err(error) => at.error(format_args!(
                "must be the name of an issuer, or certificates in PEM: {error}"
            )),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Issuer(text) | Self::Pem(text) => text.clone(),
        }
    }
}

impl Settings for VaultConf {
    const TYPE: &'static str = "vault";
    const NEEDS_EXPIRATION: Option<&'static str> =
        Some("Vault needs the lifetime of every certificate that is asked for");

    fn read(f: &mut Fields<'_>) -> Option<Self> {
        VaultSettings::read_fields(f).map(|settings| settings.from_cp)
    }

    #[cfg(feature = "schema")]
    fn schema() -> Option<FreeForm> {
        settings::fragment::<VaultSettings>()
    }

    fn common_name(&self) -> Option<&NameTemplate> {
        self.common_name.as_ref()
    }

    fn in_dialect(&self, _: Dialect) -> impl Serialize {
        VaultSettings {
            from_cp: self.clone(),
        }
    }
}

mapping! {
    /// How to trust the server.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct VaultTls {
        /// The roots that the server's certificate must chain to.
        pub ca_cert: Option<DataSource> = optional("caCert", settings::public),
        /// Accepts any certificate. For development only.
        pub skip_verify: bool = defaulted("skipVerify", skip_verify),
        /// The name that the server's certificate must have, if it is not the host of the address.
        pub server_name: Option<String> = optional("serverName", settings::non_empty),
    }
}

one_of! {
    /// How to log in: exactly one of these.
    #[derive(Clone, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    pub enum VaultAuth {
        /// A token.
        Token(DataSource) = ("token", settings::secret),
        /// A client certificate.
        Tls(TlsAuth) = ("tls", TlsAuth::read),
        /// The AWS identity of the control plane.
        Aws(AwsAuth) = ("aws", AwsAuth::read),
        /// The Kubernetes service account of the control plane.
        Kubernetes(KubernetesAuth) = ("kubernetes", KubernetesAuth::read),
        /// An AppRole.
        AppRole(AppRoleAuth) = ("appRole", AppRoleAuth::read),
        /// A JSON Web Token of an identity provider, by Vault's `jwt` auth method (which is its `oidc` method as well).
        Jwt(JwtAuth) = ("jwt", JwtAuth::read),
    }
}

mapping! {
    /// Vault's `cert` auth method.
    #[derive(Clone, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct TlsAuth {
        /// The private key.
        pub client_key: DataSource = required("clientKey", settings::secret),
        /// The certificate.
        pub client_cert: DataSource = required("clientCert", settings::public),
        /// Where the auth method is mounted; `cert` if absent.
        pub mount: Option<String> = optional("mount", mount),
    }
}

impl TlsAuth {
    /// Both are needed. At the usual mount.
    pub fn new(client_key: DataSource, client_cert: DataSource) -> Self {
        Self {
            client_key,
            client_cert,
            mount: None,
        }
    }
}

mapping! {
    /// Vault's `aws` auth method.
    #[derive(Clone, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct AwsAuth {
        /// What Vault checks.
        pub auth_type: AwsAuthType = required("type", AwsAuthType::read),
        /// The role to log in as; Vault's own choice if absent.
        pub role: Option<String> = optional("role", settings::non_empty),
        /// The value of `X-Vault-AWS-IAM-Server-ID` that Vault insists on.
        pub iam_server_id_header: Option<String> = optional("iamServerIdHeader", settings::non_empty),
        /// Where the auth method is mounted; `aws` if absent.
        pub mount: Option<String> = optional("mount", mount),
        /// The region of STS that the request is signed for: Vault's `sts_region`. If absent, that of `stsEndpoint`, or the
        /// global endpoint.
        pub sts_region: Option<String> = optional("stsRegion", region),
        /// The name of an endpoint of STS among the options of the control plane, which the request is made out to: Vault's
        /// `sts_endpoint`, such as a VPC endpoint. If absent, its default one, or that of the region.
        pub sts_endpoint: Option<String> = optional("stsEndpoint", option_name),
    }
}

impl AwsAuth {
    /// No role and no header, the usual mount, and the global endpoint of STS.
    pub fn new(auth_type: AwsAuthType) -> Self {
        Self {
            auth_type,
            role: None,
            iam_server_id_header: None,
            mount: None,
            sts_region: None,
            sts_endpoint: None,
        }
    }
}

words! {
    /// What Vault's `aws` auth method checks.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[non_exhaustive]
    pub enum AwsAuthType {
        /// A signed request of an IAM principal.
        Iam = "IAM",
        /// The identity document of an EC2 instance.
        Ec2 = "EC2",
    }
}

mapping! {
    /// Vault's `kubernetes` auth method.
    #[derive(Clone, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct KubernetesAuth {
        /// The role to log in as.
        pub role: String = required("role", settings::non_empty),
        /// Where the auth method is mounted; `kubernetes` if absent.
        pub mount: Option<String> = optional("mount", mount),
        /// Where the service account's token is; the usual place in a pod if absent.
        pub service_account_token_path: Option<PathBuf> = optional("serviceAccountTokenPath", path),
    }
}

impl KubernetesAuth {
    /// The usual mount and the usual token.
    pub fn new(role: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            mount: None,
            service_account_token_path: None,
        }
    }
}

mapping! {
    /// Vault's `approle` auth method.
    #[derive(Clone, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct AppRoleAuth {
        /// The role's ID.
        pub role_id: String = required("roleId", settings::non_empty),
        /// The secret ID.
        pub secret_id: DataSource = required("secretId", settings::secret),
        /// Where the auth method is mounted; `approle` if absent.
        pub mount: Option<String> = optional("mount", mount),
    }
}

impl AppRoleAuth {
    /// The usual mount.
    pub fn new(role_id: impl Into<String>, secret_id: DataSource) -> Self {
        Self {
            role_id: role_id.into(),
            secret_id,
            mount: None,
        }
    }
}

mapping! {
    /// Vault's `jwt` auth method, which takes tokens of OpenID Connect providers as well.
    #[derive(Clone, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct JwtAuth {
        /// The token that an identity provider gave the control plane. It is read again at each login.
        pub token: DataSource = required("token", settings::secret),
        /// The role to log in as; the `default_role` of the auth method if absent.
        pub role: Option<String> = optional("role", settings::non_empty),
        /// Where the auth method is mounted; `jwt` if absent.
        pub mount: Option<String> = optional("mount", mount),
    }
}

impl JwtAuth {
    /// The default role at the usual mount.
    pub fn new(token: DataSource) -> Self {
        Self {
            token,
            role: None,
            mount: None,
        }
    }
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

/// A region of AWS becomes part of a host's name and of a signature.
fn region(at: Cursor<'_>) -> Option<String> {
    let text = settings::non_empty(at)?;
    let sound = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match text.bytes().all(sound) {
        true => Some(text),
        false => at.error("must be a region of AWS, such as `eu-central-1`"),
    }
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

fn path(at: Cursor<'_>) -> Option<PathBuf> {
    settings::non_empty(at).map(PathBuf::from)
}

fn skip_verify(at: Cursor<'_>) -> Option<bool> {
    let skip = settings::boolean(at)?;
    if skip {
        at.warn(
            "any server is trusted with the token and with every identity: set `caCert` instead",
        );
    }
    Some(skip)
}
