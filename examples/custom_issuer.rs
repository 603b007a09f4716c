//! A CA that meshca does not know, added without touching meshca.
//!
//! What a third party writes: [`Settings`] with their reader, an [`Issuer`] that talks to its CA, an [`IssuerFactory`]
//! that builds one from the settings. What it gets: both resource models, a report of everything that is wrong with the
//! settings in a file, verification of all that its CA returns, and wrappers for retries, limits and audit. The CA runs in
//! this process, so that nothing needs to be set up; replace [`CompanyCa`] by calls to yours.
//!
//! ```text
//! cargo run --example custom_issuer --features retry,rate-limit,timeout,audit
//! ```

#[path = "common/outcome.rs"]
mod outcome;

use std::error::Error as StdError;
use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use clap::Parser;
use meshca::registry::{BackendConfig, BuildContext, BuiltIssuer};
use meshca::resource::settings::{self, Cursor, Fields, Model, Settings, SettingsType};
use meshca::resource::{DataSource, FreeForm, ParseOptions, Resource};
use meshca::spiffe::{NameTemplate, TrustDomainInputs, Workload};
use meshca::wrap::{Audited, JsonLinesSink, Rate, RateLimited, Retrying, SyncPolicy, TimeLimited};
use meshca::{
    Capabilities, CertificateRequest, CheckReport, Clock, Error, ErrorKind, Expect, Issuer,
    IssuerFactory, IssuingCa, LifetimePolicy, MemorySecretStore, Result, SecretKey,
    SecretStore as _, SecretValue, SignedChain, SpiffeId, SystemClock, TrustBundle, TrustDomain,
};
use meshca_testkit::conformance::{self, Subject};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use serde_json::json;
use x509_cert::der::Decode as _;
use x509_cert::request::CertReq;

/// The name by which resources call it.
const TYPE: &str = "my-ca";

// ---- What a third party writes -------------------------------------------------------------

/// `conf` of a backend, `config` of an extension.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct MyCaConf {
    address: String,
    token: DataSource,
    #[serde(skip_serializing_if = "Option::is_none")]
    signs_per_second: Option<NonZeroU32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    common_name: Option<NameTemplate>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dns_names: Vec<NameTemplate>,
}

impl MyCaConf {
    const DEFAULT_RATE: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);
    const DEFAULT_TIMEOUT: u32 = 10;
}

impl Settings for MyCaConf {
    const TYPE: &'static str = TYPE;

    /// Asks for all fields before it unwraps one, so that a report has everything that is wrong.
    fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let address = fields.required("address", address);
        let token = fields.required("token", settings::secret);
        let signs_per_second = fields.opt("signsPerSecond", positive);
        let timeout_seconds = fields.opt("timeoutSeconds", settings::integer);
        let common_name = fields.opt("commonName", settings::name_template);
        let dns_names = fields.list("dnsNames", settings::name_template);
        Some(Self {
            address: address?,
            token: token?,
            signs_per_second,
            timeout_seconds,
            common_name,
            dns_names,
        })
    }

    /// For editors: it becomes part of `Mesh::json_schema_with` and `MeshIdentity::json_schema_with`.
    fn schema() -> Option<FreeForm> {
        let text = json!({ "type": "string" });
        FreeForm::from_serialize(&json!({
            "description": "Which of the company's CAs signs",
            "type": "object",
            "properties": {
                "address": { "type": "string", "pattern": "^https://" },
                "token": { "type": "object" },
                "signsPerSecond": { "type": "integer", "minimum": 1 },
                "timeoutSeconds": { "type": "integer", "minimum": 0 },
                "commonName": text,
                "dnsNames": { "type": "array", "items": text },
            },
            "required": ["address", "token"],
        }))
        .ok()
    }

    /// The CA decides how long certificates live. By default a longer lifetime than the requested one is refused.
    fn lifetime_policy(&self, _: Model, _: Option<Duration>) -> LifetimePolicy {
        LifetimePolicy::AcceptIssuer
    }

    fn common_name(&self) -> Option<&NameTemplate> {
        self.common_name.as_ref()
    }

    fn dns_names(&self) -> &[NameTemplate] {
        &self.dns_names
    }
}

fn address(at: Cursor<'_>) -> Option<String> {
    match at.text()? {
        address if address.starts_with("https://") => Some(address.to_owned()),
        _ => at.error("must be a URL that begins with `https://`"),
    }
}

fn positive(at: Cursor<'_>) -> Option<NonZeroU32> {
    let number = NonZeroU32::new(settings::integer(at)?);
    number.or_else(|| at.error("must be at least 1"))
}

/// Builds issuers for both models.
#[derive(Debug)]
struct MyCaFactory {
    audit: Arc<JsonLinesSink>,
}

#[async_trait]
impl IssuerFactory for MyCaFactory {
    fn settings(&self) -> Vec<SettingsType> {
        vec![SettingsType::of::<MyCaConf>()]
    }

    async fn build(&self, config: &BackendConfig, context: &BuildContext) -> Result<BuiltIssuer> {
        let conf: &MyCaConf = config.settings()?;
        let token = context.sources()?.read(&conf.token).await?;
        let ca = CompanyCa::connect(context.trust_domain(), context.clock().now())?;
        let issuer = MyCa {
            address: conf.address.clone(),
            token,
            trust_domain: context.trust_domain().clone(),
            clock: Arc::clone(context.clock()),
            ca,
        };

        // From the inside: how long one call may take, how many there may be, how often to try, and
        // one record for each signature, however often it was tried.
        let limit = conf.timeout_seconds.unwrap_or(MyCaConf::DEFAULT_TIMEOUT);
        let issuer = TimeLimited::new(issuer).with_sign(Duration::from_secs(limit.into()));
        let rate = conf.signs_per_second.unwrap_or(MyCaConf::DEFAULT_RATE);
        let issuer = RateLimited::new(issuer).with_sign(Rate::per_second(rate));
        let issuer = Retrying::new(issuer);
        let (audit, clock) = (Arc::clone(&self.audit), Arc::clone(context.clock()));
        Ok(Arc::new(Audited::new(issuer, audit, clock)).into())
    }
}

/// Translates between meshca and the CA: it verifies nothing and sees no private key.
#[derive(Debug)]
struct MyCa {
    address: String,
    token: SecretValue,
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
    ca: CompanyCa,
}

impl fmt::Display for MyCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{TYPE} at {}", self.address)
    }
}

#[async_trait]
impl Issuer for MyCa {
    fn capabilities(&self) -> Capabilities {
        // What the CA cannot do is refused before it is asked. It does not honour lifetimes.
        Capabilities::new()
            .with_dns_names(true)
            .with_extra_uris(true)
            .with_common_name(true)
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        if request.spiffe_id().trust_domain() != &self.trust_domain {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "this CA signs for one trust domain only",
            )
            .with_context("trust domain", &self.trust_domain)
            .with_context("SPIFFE ID", request.spiffe_id()));
        }
        let spec = request.spec();
        let order = Order {
            csr: request.csr()?.der(),
            uris: spec.all_uris().collect(),
            dns_names: spec.dns_names().to_vec(),
            common_name: spec.common_name().map(str::to_owned),
            not_before: self.clock.now() - BACKDATE,
        };
        let answer = self.ca.sign(&self.token, order).map_err(|(status, why)| {
            let kind = match status {
                400 => ErrorKind::InvalidRequest,
                401 => ErrorKind::Unauthenticated,
                _ => ErrorKind::Denied,
            };
            Error::new(kind, why).with_context("status", status)
        })?;
        Ok(SignedChain::new(answer))
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        TrustBundle::new(self.trust_domain.clone(), [self.ca.root.clone()])
    }

    async fn check(&self) -> Result<CheckReport> {
        if self.ca.knows(&self.token) {
            Ok(CheckReport::new())
        } else {
            Err(Error::new(
                ErrorKind::Unauthenticated,
                "the CA does not accept the token: put a valid one into the place that `token` names",
            ))
        }
    }
}

// ---- A stand-in for the CA -----------------------------------------------------------------

/// The company's CA, which would be somewhere else.
struct CompanyCa {
    issuer: rcgen::Issuer<'static, KeyPair>,
    root: Der,
    signed: AtomicU64,
}

/// The lifetime of each of its certificates.
const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// For peers whose clocks are a little behind.
const BACKDATE: Duration = Duration::from_secs(10);

type Der = CertificateDer<'static>;

impl CompanyCa {
    fn connect(trust_domain: &TrustDomain, now: SystemTime) -> Result<Self> {
        let make = || {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            let name = format!("Example company CA for {trust_domain}");
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.not_before = (now - BACKDATE).into();
            params.not_after = (now + Duration::from_secs(3650 * 24 * 3600)).into();
            let root = params.self_signed(&key)?.der().clone();
            Ok((rcgen::Issuer::new(params, key), root))
        };
        let (issuer, root) = make().map_err(|error: rcgen::Error| {
            Error::new(ErrorKind::Internal, "could not make the example's CA").with_source(error)
        })?;
        Ok(Self {
            issuer,
            root,
            signed: AtomicU64::new(0),
        })
    }

    fn knows(&self, token: &SecretValue) -> bool {
        token.expose() == b"only-an-example"
    }

    /// Answers with a certificate, or with a status and a reason.
    fn sign(
        &self,
        token: &SecretValue,
        order: Order<'_>,
    ) -> std::result::Result<[Der; 1], (u16, String)> {
        if !self.knows(token) {
            return Err((401, "the token is not valid".to_owned()));
        }
        let certificate = self
            .make(order)
            .map_err(|error| (400, format!("the order is not acceptable: {error}")))?;
        Ok([certificate.der().clone()])
    }

    fn make(&self, order: Order<'_>) -> std::result::Result<rcgen::Certificate, Box<dyn StdError>> {
        let key = P256Key::of(order.csr)?;
        let mut params = CertificateParams::new(order.dns_names)?;
        for uri in order.uris {
            params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        }
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = order.common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let number = self.signed.fetch_add(1, Ordering::Relaxed) + 1;
        params.serial_number = Some(SerialNumber::from(number));
        params.not_before = order.not_before.into();
        params.not_after = (order.not_before + LIFETIME).into();
        Ok(params.signed_by(&key, &self.issuer)?)
    }
}

/// What the CA is sent: the CSR for the key, and everything else beside it, as most CAs want it.
struct Order<'a> {
    csr: &'a [u8],
    uris: Vec<String>,
    dns_names: Vec<String>,
    common_name: Option<String>,
    not_before: SystemTime,
}

/// The public key of a CSR.
struct P256Key(Vec<u8>);

impl P256Key {
    fn of(csr: &[u8]) -> std::result::Result<Self, Box<dyn StdError>> {
        let csr = CertReq::from_der(csr)?;
        let key = csr.info.public_key.subject_public_key.raw_bytes();
        if key.len() != 65 {
            return Err("only P-256 keys are signed".into());
        }
        Ok(Self(key.to_vec()))
    }
}

impl PublicKeyData for P256Key {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl fmt::Debug for CompanyCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompanyCa").finish_non_exhaustive()
    }
}

// ---- What the control plane does -----------------------------------------------------------

/// Issues a certificate for each of the two models from a CA that meshca does not know.
#[derive(Parser)]
struct Args {
    /// A folder with a Mesh, a MeshIdentity and their Secret.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/resources/custom"))]
    resources: PathBuf,
    /// Where to append the audit records.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/custom-issuer/audit.jsonl"))]
    audit: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    outcome::exit_code(run(&Args::parse()).await)
}

async fn run(args: &Args) -> std::result::Result<(), Box<dyn StdError>> {
    if let Some(folder) = args.audit.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let audit = JsonLinesSink::open(&args.audit, SyncPolicy::System)?;
    if let Some(repair) = audit.repaired() {
        eprintln!("the audit log was damaged: {repair:?}");
    }
    let registry = meshca::backend_registry().with(MyCaFactory {
        audit: Arc::new(audit),
    });

    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let secrets = Arc::new(MemorySecretStore::new());
    let workload = Workload::from_label_list("app=checkout,kuma.io/service=checkout")?;
    let options = ParseOptions::new().settings(registry.settings());
    for resource in read(&args.resources, &options)? {
        let (from, config, trust_domain, spiffe_id): (_, _, _, SpiffeId) = match &resource {
            Resource::Secret(secret) => {
                let key = SecretKey::new("default", &secret.metadata.name)?;
                secrets
                    .put(&key, secret.data.clone(), Expect::Absent)
                    .await?;
                continue;
            }
            Resource::Mesh(mesh) => {
                let backend = mesh.enabled_backend().ok_or("the mesh has no backend")?;
                (
                    format!("Mesh {}, backend {}", mesh.metadata.name, backend.name),
                    BackendConfig::classic(backend),
                    mesh.trust_domain()?,
                    mesh.spiffe_id_of(&workload)?,
                )
            }
            Resource::MeshIdentity(identity) => {
                let inputs = TrustDomainInputs::new("default", "zone-1");
                let trust_domain = identity
                    .trust_domain
                    .clone()
                    .unwrap_or_default()
                    .render(&inputs)?;
                let path = identity.path.as_ref().ok_or("the identity has no path")?;
                let spiffe_id = path.render(&trust_domain, &workload)?;
                (
                    format!("MeshIdentity {}", identity.metadata.name),
                    BackendConfig::modern(identity).ok_or("the identity has no provider")?,
                    trust_domain,
                    spiffe_id,
                )
            }
            _ => continue,
        };

        let context = BuildContext::new(
            "default",
            trust_domain,
            Arc::clone(&secrets) as _,
            Arc::clone(&clock),
        );
        let ca = IssuingCa::new(registry.build(&config, &context).await?.issuer);
        prove(ca.issuer(), &spiffe_id, &clock).await?;

        let spec = config.certificate_spec(spiffe_id, &workload)?;
        let identity = ca.issue(&spec, &clock).await?;
        let certificate = identity.certificate();
        println!("from         {from}, type {}", config.type_name());
        println!("SPIFFE ID    {}", certificate.spiffe_id());
        println!("issuer       {} ({ca})", certificate.issuer());
        println!("valid        {}", certificate.validity());
        println!("verified     {}\n", certificate.proof());
    }
    println!("audit        {}", args.audit.display());
    Ok(())
}

/// Has the conformance kit prove that the issuer does what every issuer must do.
async fn prove(
    issuer: &Arc<dyn Issuer>,
    subject: &SpiffeId,
    clock: &Arc<dyn Clock>,
) -> std::result::Result<(), Box<dyn StdError>> {
    for warning in issuer.check().await?.warnings {
        println!("warning      {warning}");
    }
    let subject = Subject::new(&**issuer, &**clock, subject.clone());
    let report = conformance::run_all(&subject).await;
    println!("{report}");
    match report.passed() {
        true => Ok(()),
        false => Err("the issuer does not keep the contract".into()),
    }
}

/// The resources of a folder, secrets first.
fn read(
    folder: &Path,
    options: &ParseOptions,
) -> std::result::Result<Vec<Resource>, Box<dyn StdError>> {
    let mut resources = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let file = entry?.path();
        let text = std::fs::read(&file)?;
        let source = file.display().to_string();
        resources.extend(options.clone().source(source).parse(text)?);
    }
    resources.sort_by_key(|resource| match resource {
        Resource::Secret(_) => 0,
        Resource::Mesh(_) => 1,
        _ => 2,
    });
    Ok(resources)
}
