//! A workload certificate from AWS Private CA.
//!
//! It acts under the AWS identity that is found where the SDK looks: environment, profile, web identity (EKS), container (ECS), instance
//! (EC2); or by the access key in two files.
//!
//! ```text
//! cargo run --example acm --features acm -- --arn arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/…
//!
//! cargo xtask servers up            # prints the address of a stand-in for AWS, and the ARN of a CA in it
//! AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any \
//!     cargo run --example acm --features acm -- --arn $MESHCA_AWS_CA_ARN --endpoint $AWS_ENDPOINT_URL --out certs
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

use clap::Parser;
use meshca::acm::{AcmIssuer, AcmSettings};
use meshca::resource::{AcmConf, AwsCredentials, DataSource};
use meshca::secret::SourceReader;
use meshca::{MemorySecretStore, SystemClock};

/// Has AWS Private CA sign one workload certificate. It is billed.
#[derive(Parser)]
struct Args {
    /// The CA.
    #[arg(long)]
    arn: String,
    /// Another address than AWS' own: a VPC endpoint, or a test server.
    #[arg(long)]
    endpoint: Option<String>,
    /// A file with the ID of an access key; otherwise the credentials that this process has.
    #[arg(long, requires = "secret_file")]
    access_key_file: Option<PathBuf>,
    /// A file with the access key itself.
    #[arg(long)]
    secret_file: Option<PathBuf>,
    /// A file with the root that the CA leads to; otherwise the CA is believed.
    #[arg(long)]
    ca_cert: Option<PathBuf>,
    #[command(flatten)]
    wanted: workload::Wanted,
    /// How many workloads there will be: says what that costs.
    #[arg(long)]
    fleet: Option<u64>,
}

#[tokio::main]
async fn main() -> ExitCode {
    outcome::exit_code(run(&Args::parse()).await)
}

async fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let file = |path: &PathBuf| std::path::absolute(path).map(DataSource::File);
    let mut conf = AcmConf::new(&args.arn);
    conf.ca_cert = args.ca_cert.as_ref().map(file).transpose()?;
    if let (Some(id), Some(secret)) = (&args.access_key_file, &args.secret_file) {
        conf.credentials = Some(AwsCredentials::new(file(id)?, file(secret)?));
    }
    let trust_domain = args.wanted.trust_domain()?;
    let mut settings = AcmSettings::new(conf, trust_domain)?.with_lifetime(args.wanted.lifetime());
    if let Some(endpoint) = &args.endpoint {
        settings = settings.with_endpoint(endpoint);
    }
    if let Some(fleet) = args.fleet {
        settings = settings.with_fleet(fleet);
    }
    let clock = Arc::new(SystemClock::new());
    // A control plane has its own store here; this example names files.
    let sources = SourceReader::new(Arc::new(MemorySecretStore::new()), "default")?;
    let issuer = AcmIssuer::new(settings, sources, clock.clone())?;
    args.wanted.issue(issuer, &*clock).await
}
