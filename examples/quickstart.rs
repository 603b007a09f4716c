//! From what an operator wrote to a certificate that peers accept.
//!
//! Reads a Mesh and a MeshIdentity, creates or loads the CA in a state folder, issues for one
//! workload, and prints what an operator wants to see.
//!
//! ```text
//! cargo run --example quickstart
//! cargo run --example quickstart -- --workload app=flight-control,k8s.kuma.io/namespace=ops,… --out certs
//! ```

#[path = "common/files.rs"]
mod files;
#[path = "common/outcome.rs"]
mod outcome;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use meshca::registry::{BackendConfig, BuildContext};
use meshca::resource::{Form, Mesh, MeshIdentity, ParseOptions, Resource, SecretResource};
use meshca::spiffe::{Environment, Workload};
use meshca::{
    CertificateRequest, Clock, DirSecretStore, Expect, Identity, IssuingCa, PrivateKey, SecretKey,
    SecretStore, SignedChain, SpiffeId, SystemClock, TrustDomain,
};

/// Issues one workload certificate from mesh resources.
#[derive(Parser)]
struct Args {
    /// A file, or a folder of files: Mesh, MeshIdentity and Secret in YAML or JSON.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/resources"))]
    resources: PathBuf,
    /// The labels of the workload: k=v,k=v.
    #[arg(
        long,
        default_value = "app=flight-control,k8s.kuma.io/namespace=kong-air,k8s.kuma.io/service-account=flight-control,\
                         kuma.io/workload=flight-control,kuma.io/service=flight-control"
    )]
    workload: String,
    /// Where the CA is kept. Two runs on one folder use one CA.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/quickstart"))]
    state: PathBuf,
    /// Where to write cert.pem (leaf, then intermediates), key.pem (0600) and bundle.pem.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The zone that the control plane runs in.
    #[arg(long, default_value = "default")]
    zone: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    outcome::exit_code(run(&Args::parse()).await)
}

async fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let resources = Resources::read(&args.resources)?;
    let workload = Workload::from_label_list(&args.workload)?;
    let wanted = resources.decide(&workload, &args.zone)?;

    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let store: Arc<dyn SecretStore> = Arc::new(DirSecretStore::open(&args.state)?);
    for secret in &resources.secrets {
        keep(secret, &*store).await?;
    }

    // Everything above is what a control plane knows anyway; this is what meshca does with it.
    let context = BuildContext::new(&wanted.mesh, wanted.trust_domain, store, Arc::clone(&clock));
    let built = meshca::backend_registry()
        .build(&wanted.backend, &context)
        .await?;
    let ca = IssuingCa::new(built.issuer);
    let spec = wanted
        .backend
        .certificate_spec(wanted.spiffe_id, &workload)?;
    let key = PrivateKey::generate(spec.key_type())?;
    let request = CertificateRequest::for_key(spec, &key, clock.now())?;
    let certificate = ca.issue_for(&request, &clock).await?;
    let bundle = ca.trust(&clock).await?;

    // A peer has no more than the chain and the bundle. Does that convince it?
    let as_a_peer =
        SignedChain::new(certificate.chain().to_vec()).verify(&request, &bundle, clock.now())?;

    println!("from         {}", wanted.from);
    println!("SPIFFE ID    {}", certificate.spiffe_id());
    println!("issuer       {} ({ca})", certificate.issuer());
    println!("serial       {}", certificate.serial());
    println!("valid        {}", certificate.validity());
    println!("key          {}", key.key_type());
    println!("chain        {}", certificate.path().join(" <- "));
    println!("verified     {}", certificate.proof());
    println!("as a peer    {}", as_a_peer.proof());
    for observation in certificate.observations() {
        println!("note         {observation}");
    }
    for root in bundle.roots() {
        println!(
            "trust        {} (sha256 {})",
            root.subject(),
            root.fingerprint()
        );
    }
    if let Some(folder) = &args.out {
        files::write_out(folder, &Identity::new(certificate, key)?, &bundle)?;
    }
    Ok(())
}

#[derive(Default)]
struct Resources {
    meshes: Vec<Mesh>,
    identities: Vec<MeshIdentity>,
    secrets: Vec<SecretResource>,
}

/// What is to be issued, and by whom.
struct Wanted {
    from: String,
    mesh: String,
    trust_domain: TrustDomain,
    spiffe_id: SpiffeId,
    backend: BackendConfig,
}

impl Resources {
    fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let mut files = Vec::new();
        if path.is_dir() {
            for entry in std::fs::read_dir(path)? {
                let path = entry?.path();
                let is_resource = path.extension().is_some_and(|extension| {
                    ["yaml", "yml", "json"]
                        .iter()
                        .any(|known| extension == *known)
                });
                if is_resource && path.is_file() {
                    files.push(path);
                }
            }
            files.sort();
        } else {
            files.push(path.to_owned());
        }
        let mut resources = Self::default();
        for file in files {
            let text =
                std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
            let documents = ParseOptions::new()
                .source(file.display().to_string())
                .parse(text)?;
            if !documents.warnings().is_empty() {
                eprintln!("{}", documents.warnings());
            }
            for resource in documents {
                match resource {
                    Resource::Mesh(mesh) => resources.meshes.push(mesh),
                    Resource::MeshIdentity(identity) => resources.identities.push(identity),
                    Resource::Secret(secret) => resources.secrets.push(secret),
                    _ => {}
                }
            }
        }
        Ok(resources)
    }

    /// The modern model if a MeshIdentity selects the workload – the one with the most labels,
    /// then the first by name –, else the classic one.
    fn decide(&self, workload: &Workload, zone: &str) -> Result<Wanted, Box<dyn Error>> {
        let mut selecting: Vec<_> = self
            .identities
            .iter()
            .filter(|identity| identity.selector.matches(workload.labels()))
            .collect();
        selecting.sort_by_key(|identity| {
            (
                std::cmp::Reverse(
                    identity
                        .selector
                        .match_labels()
                        .map_or(0, |labels| labels.len()),
                ),
                &identity.metadata.name,
            )
        });
        if let Some(identity) = selecting.first() {
            return modern(identity, workload, zone);
        }
        for mesh in &self.meshes {
            if let Some(backend) = mesh.enabled_backend() {
                return Ok(Wanted {
                    from: format!(
                        "Mesh {}, backend {} ({})",
                        mesh.metadata.name,
                        backend.name,
                        backend.provider.type_name()
                    ),
                    mesh: mesh.metadata.name.clone(),
                    trust_domain: mesh.trust_domain()?,
                    spiffe_id: mesh.spiffe_id_of(workload)?,
                    backend: BackendConfig::classic(backend),
                });
            }
        }
        Err("no MeshIdentity selects the workload, and no Mesh has an enabled backend".into())
    }
}

fn modern(
    identity: &MeshIdentity,
    workload: &Workload,
    zone: &str,
) -> Result<Wanted, Box<dyn Error>> {
    let metadata = &identity.metadata;
    let environment = match metadata.form {
        Form::Universal => Environment::Universal,
        _ => Environment::Kubernetes,
    };
    let trust_domain = identity.trust_domain_in(zone)?;
    let spiffe_id = identity.spiffe_id_of(&trust_domain, workload, environment)?;
    let backend = BackendConfig::modern(identity).ok_or_else(|| {
        format!(
            "MeshIdentity {} has no provider that issues certificates",
            metadata.name
        )
    })?;
    Ok(Wanted {
        from: format!("MeshIdentity {} ({})", metadata.name, backend.type_name()),
        mesh: metadata.mesh().to_owned(),
        spiffe_id,
        trust_domain,
        backend,
    })
}

/// Puts a Secret resource where data sources look for it.
async fn keep(secret: &SecretResource, store: &dyn SecretStore) -> meshca::Result<()> {
    let key = SecretKey::new(secret.metadata.mesh(), &secret.metadata.name)?;
    let expect = match store.get(&key).await? {
        Some(found) if found.value == secret.data => return Ok(()),
        Some(found) => Expect::Version(found.version),
        None => Expect::Absent,
    };
    store
        .put(&key, secret.data.clone(), expect)
        .await
        .map(|_| ())
}
