//! A workload certificate from HashiCorp Vault.
//!
//! Without an address, it starts a Vault of its own and sets that up as the guide of `meshca-vault` tells operators to. The program is
//! what `MESHCA_VAULT_BIN` names; `cargo xtask servers build` makes one, and prints where it is.
//!
//! ```text
//! MESHCA_VAULT_BIN=… cargo run --example vault --features vault -- --out certs
//!
//! cargo run --example vault --features vault -- --address https://vault.example:8200 --ca-cert ca.pem \
//!     --mount kmesh-pki --auth kubernetes --auth-role control-plane
//! ```

#[path = "common/files.rs"]
mod files;
#[path = "common/outcome.rs"]
mod outcome;
#[path = "common/workload.rs"]
mod workload;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, ValueEnum};
use meshca::resource::{
    AppRoleAuth, AwsAuth, AwsAuthType, DataSource, KubernetesAuth, TlsAuth, VaultAuth, VaultConf,
    VaultTls,
};
use meshca::secret::SourceReader;
use meshca::vault::{VaultIssuer, VaultSettings};
use meshca::{MemorySecretStore, SystemClock, TrustDomain};
use meshca_testenv::servers::Vault;
use serde_json::json;

/// Has Vault sign one workload certificate.
#[derive(Parser)]
struct Args {
    /// The server. Without it, one is started.
    #[arg(long)]
    address: Option<String>,
    /// The Vault namespace.
    #[arg(long)]
    namespace: Option<String>,
    /// Where the PKI engine is mounted.
    #[arg(long, default_value = VaultConf::DEFAULT_MOUNT)]
    mount: String,
    /// The role of the PKI engine to sign under.
    #[arg(long, default_value = "mesh-dp")]
    role: String,
    /// A file with the CA of the server's certificate; otherwise those that this system trusts.
    #[arg(long)]
    ca_cert: Option<PathBuf>,
    /// How to log in.
    #[arg(long, value_enum, default_value = "token")]
    auth: Auth,
    /// The role to log in as: of Kubernetes or AWS, or the role ID of an AppRole.
    #[arg(long, default_value = "control-plane")]
    auth_role: String,
    /// A file with the secret to log in with: the token, the secret ID, the service account's token, or the client's key.
    #[arg(long)]
    secret_file: Option<PathBuf>,
    /// A file with the client certificate to log in with.
    #[arg(long)]
    client_cert: Option<PathBuf>,
    #[command(flatten)]
    wanted: workload::Wanted,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Auth {
    Token,
    AppRole,
    Kubernetes,
    Tls,
    Aws,
}

#[tokio::main]
async fn main() -> ExitCode {
    outcome::exit_code(run(&Args::parse()).await)
}

async fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let trust_domain = args.wanted.trust_domain()?;
    // Kept until the end: a Vault of our own goes with it.
    let (conf, _own) = match &args.address {
        Some(address) => (conf(args, address)?, None),
        None => {
            let vault = Vault::start().await.map_err(own_vault)?;
            println!("started      Vault {}", vault.version());
            let token = set_up(&vault, args, &trust_domain)
                .await
                .map_err(|error| error as Box<dyn Error>)?;
            let token = VaultAuth::Token(DataSource::InlineString(token.as_str().into()));
            (base(args, vault.address(), token), Some(vault))
        }
    };

    let clock = Arc::new(SystemClock::new());
    let settings = VaultSettings::new(conf, trust_domain).with_lifetime(args.wanted.lifetime());
    // A control plane has its own store here; this example names files.
    let sources = SourceReader::new(Arc::new(MemorySecretStore::new()), "default")?;
    let issuer = VaultIssuer::new(settings, sources, clock.clone())?;
    args.wanted.issue(&issuer, &*clock).await
}

/// The settings that a Mesh would hold in `conf.fromCp`.
fn conf(args: &Args, address: &str) -> Result<VaultConf, Box<dyn Error>> {
    let file = |path: &Option<PathBuf>, option: &str| {
        let path = path
            .as_ref()
            .ok_or(format!("{option} is needed for this --auth"))?;
        Ok::<_, Box<dyn Error>>(DataSource::File(std::path::absolute(path)?))
    };
    let secret = || file(&args.secret_file, "--secret-file");
    let role = args.auth_role.as_str();
    let auth = match args.auth {
        Auth::Token => VaultAuth::Token(secret()?),
        Auth::AppRole => VaultAuth::AppRole(AppRoleAuth::new(role, secret()?)),
        Auth::Tls => VaultAuth::Tls(TlsAuth::new(
            secret()?,
            file(&args.client_cert, "--client-cert")?,
        )),
        Auth::Kubernetes => {
            let mut auth = KubernetesAuth::new(role);
            if let Some(path) = &args.secret_file {
                auth.service_account_token_path = Some(std::path::absolute(path)?);
            }
            VaultAuth::Kubernetes(auth)
        }
        Auth::Aws => {
            let mut auth = AwsAuth::new(AwsAuthType::Iam);
            auth.role = Some(role.to_owned());
            VaultAuth::Aws(auth)
        }
    };
    let mut conf = base(args, address, auth);
    if args.ca_cert.is_some() {
        let mut tls = VaultTls::default();
        tls.ca_cert = Some(file(&args.ca_cert, "--ca-cert")?);
        conf.tls = Some(tls);
    }
    Ok(conf)
}

fn base(args: &Args, address: &str, auth: VaultAuth) -> VaultConf {
    let mut conf = VaultConf::new(address, &args.role, auth);
    conf.namespace.clone_from(&args.namespace);
    conf.pki = Some(args.mount.clone());
    conf
}

fn own_vault(error: meshca_testenv::servers::Error) -> Box<dyn Error> {
    format!(
        "no Vault can be started: {error}. Name one of yours with --address, or build one with `cargo xtask servers build`"
    )
    .into()
}

/// What the guide tells an operator to do; returns a token that may do no more than the policy says.
async fn set_up(
    vault: &Vault,
    args: &Args,
    domain: &TrustDomain,
) -> Result<String, meshca_testenv::servers::Error> {
    let (mount, role) = (&args.mount, &args.role);
    let engine = json!({"type": "pki", "config": {"max_lease_ttl": "87600h"}});
    vault.write(&format!("sys/mounts/{mount}"), engine).await?;
    let root = json!({"common_name": "Example root", "key_type": "ec", "ttl": "87600h"});
    vault
        .write(&format!("{mount}/root/generate/internal"), root)
        .await?;
    let settings = json!({
        "allowed_uri_sans": format!("spiffe://{domain}/*,kuma://*"),
        "require_cn": false,
        "use_csr_sans": false,
        "use_csr_common_name": false,
        "key_type": "any",
        "max_ttl": "720h",
        "no_store": true,
    });
    vault
        .write(&format!("{mount}/roles/{role}"), settings)
        .await?;
    let policy = format!(
        "path \"{mount}/sign/{role}\" {{ capabilities = [\"update\"] }}\n\
         path \"{mount}/roles/{role}\" {{ capabilities = [\"read\"] }}"
    );
    vault
        .write("sys/policies/acl/mesh", json!({"policy": policy}))
        .await?;
    let token = vault
        .write("auth/token/create", json!({"policies": ["mesh"]}))
        .await?;
    let token = token
        .pointer("/auth/client_token")
        .and_then(|token| token.as_str());
    Ok(token.ok_or("Vault gave no token")?.to_owned())
}
