//! A workload certificate from cert-manager.
//!
//! It acts on the cluster that `KUBECONFIG` names (or the one that it runs in), by an issuer that is there. With `--set-up`, for a cluster to
//! play with, it first does what the guide of `meshca-certmanager` tells operators to: the control plane's namespace and rights, and
//! an issuer with a CA that it makes. It then acts as the control plane's service account, and no longer as whoever runs it.
//!
//! ```text
//! cargo xtask servers up            # prints the KUBECONFIG of a cluster with cert-manager
//! KUBECONFIG=… cargo run --example certmanager --features certmanager -- --set-up --out certs
//!
//! cargo run --example certmanager --features certmanager -- --kind ClusterIssuer --issuer corporate-ca --namespace mesh-system
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
use std::time::Duration;

use clap::Parser;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::AuthInfo;
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config};
use meshca::certmanager::{CertManagerIssuer, CertManagerSettings};
use meshca::resource::{CertManagerConf, DataSource, IssuerRef};
use meshca::secret::SourceReader;
use meshca::{MemorySecretStore, SystemClock};
use serde_json::{Value, json};

/// The account that the rights of the file are for.
const ACCOUNT: &str = "control-plane";

/// Has cert-manager sign one workload certificate.
#[derive(Parser)]
struct Args {
    /// The issuer.
    #[arg(long, default_value = "mesh-ca")]
    issuer: String,
    /// `Issuer`, `ClusterIssuer`, or the kind of an external one.
    #[arg(long, default_value = IssuerRef::DEFAULT_KIND)]
    kind: String,
    /// The API group of the kind.
    #[arg(long, default_value = IssuerRef::DEFAULT_GROUP)]
    group: String,
    /// Where the control plane and its requests are, and an `Issuer` as well.
    #[arg(long, default_value = "mesh-system")]
    namespace: String,
    /// A file with the root that the issuer leads to; otherwise the issuer is believed.
    #[arg(long)]
    ca_cert: Option<PathBuf>,
    #[command(flatten)]
    wanted: workload::Wanted,
    /// Sets up the namespace, the rights and an issuer with a new CA first. Not for a cluster that matters.
    #[arg(long)]
    set_up: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    outcome::exit_code(run(&Args::parse()).await)
}

async fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let mut config = Config::infer().await?;
    if args.set_up {
        config = set_up(config, args).await?;
    }
    let client = Client::try_from(config)?;

    let mut issuer = IssuerRef::new(&args.issuer);
    issuer.kind = Some(args.kind.clone());
    issuer.group = Some(args.group.clone());
    let mut conf = CertManagerConf::new(issuer);
    if let Some(path) = &args.ca_cert {
        conf.ca_cert = Some(DataSource::File(std::path::absolute(path)?));
    }
    // A control plane says the name of its pod.
    let instance = format!("example-{}", std::process::id());
    let trust_domain = args.wanted.trust_domain()?;
    let settings = CertManagerSettings::new(conf, trust_domain, &args.namespace, instance)?;
    // A control plane has its own store here, such as `KubeSecretStore`; this example names files.
    let sources = SourceReader::new(Arc::new(MemorySecretStore::new()), "default")?;
    let clock = Arc::new(SystemClock::new());
    let issuer = CertManagerIssuer::new(settings, client, sources, clock.clone());
    args.wanted.issue(issuer, &*clock).await
}

/// What the guide tells an operator to do. Returns how to reach the cluster as the control plane.
async fn set_up(mut config: Config, args: &Args) -> Result<Config, Box<dyn Error>> {
    let client = Client::try_from(config.clone())?;
    let namespace = &args.namespace;
    let core = |kind: &str, metadata: Value| json!({"apiVersion": "v1", "kind": kind, "metadata": metadata});
    let place = json!({"name": namespace});
    apply(&client, core("Namespace", place)).await?;
    let account = json!({"name": ACCOUNT, "namespace": namespace});
    apply(&client, core("ServiceAccount", account)).await?;
    // The rights, for this namespace.
    let rights = include_str!("resources/cert-manager/rbac.yaml").replace("mesh-system", namespace);
    for document in rights.split("\n---\n") {
        apply(&client, serde_saphyr::from_str(document)?).await?;
    }
    // ClusterIssuers have their secrets where cert-manager is.
    let (secrets, place) = match args.kind.as_str() {
        "ClusterIssuer" => ("cert-manager", json!({"name": args.issuer})),
        _ => (
            namespace.as_str(),
            json!({"name": args.issuer, "namespace": namespace}),
        ),
    };
    let mut root = rcgen::CertificateParams::default();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    root.key_usages = vec![
        rcgen::KeyUsagePurpose::KeyCertSign,
        rcgen::KeyUsagePurpose::CrlSign,
    ];
    root.distinguished_name
        .push(rcgen::DnType::CommonName, "Example mesh CA");
    let key = rcgen::KeyPair::generate()?;
    let certificate = root.self_signed(&key)?.pem();
    let name = format!("{}-example", args.issuer);
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": secrets},
        "stringData": {
            "tls.crt": certificate,
            "tls.key": key.serialize_pem(),
            "ca.crt": certificate,
        },
    });
    apply(&client, secret).await?;
    let issuer = json!({
        "apiVersion": "cert-manager.io/v1",
        "kind": args.kind,
        "metadata": place,
        "spec": {"ca": {"secretName": name}},
    });
    let issuers = apply(&client, issuer).await?;
    let mut patience = 100;
    while !is_ready(&issuers.get(&args.issuer).await?) {
        patience -= 1;
        if patience == 0 {
            return Err(format!("the {} `{}` is not ready", args.kind, args.issuer).into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let accounts: Api<ServiceAccount> = Api::namespaced(client, namespace);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            expiration_seconds: Some(3600),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let token = accounts
        .create_token_request(ACCOUNT, &PostParams::default(), &request)
        .await?;
    let token = token.status.and_then(|status| status.token);
    let token = token.ok_or("no token")?;
    println!(
        "set up       the service account {namespace}/{ACCOUNT}, its rights, and the {} `{}`",
        args.kind, args.issuer
    );
    config.auth_info = AuthInfo {
        token: Some(token.into()),
        ..AuthInfo::default()
    };
    Ok(config)
}

/// Creates an object, or changes what there is. Returns the API of its kind.
async fn apply(client: &Client, object: Value) -> Result<Api<DynamicObject>, Box<dyn Error>> {
    let text = |pointer: &str| {
        let text = object.pointer(pointer).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let version = text("/apiVersion");
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let kind = GroupVersionKind::gvk(group, version, &text("/kind"));
    let resource = ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> = match text("/metadata/namespace").as_str() {
        "" => Api::all_with(client.clone(), &resource),
        namespace => Api::namespaced_with(client.clone(), namespace, &resource),
    };
    let name = text("/metadata/name");
    let parameters = PatchParams::apply("meshca-example").force();
    api.patch(&name, &parameters, &Patch::Apply(&object))
        .await?;
    Ok(api)
}

fn is_ready(issuer: &DynamicObject) -> bool {
    let conditions = issuer.data.pointer("/status/conditions");
    let mut conditions = conditions.and_then(Value::as_array).into_iter().flatten();
    let is = |condition: &Value, field: &str, value: &str| {
        condition.get(field).and_then(Value::as_str) == Some(value)
    };
    conditions.any(|it| is(it, "type", "Ready") && is(it, "status", "True"))
}
