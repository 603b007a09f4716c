//! AWS Private CA, as far as AWS documents it: moto with a plugin.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::leash::Folder;
use super::{Missing, Moto, Result, STARTUP, ask_json, client, granted, text};

/// The plugin, which says what it does and where AWS promises that.
const PLUGIN: &str = include_str!("aws.py");

/// What stands for a signature; nobody looks at more than its region and service.
const AUTHORIZATION: &str = "AWS4-HMAC-SHA256 Credential=test/20000101/us-east-1/acm-pca/aws4_request, \
    SignedHeaders=host, Signature=none";

/// A CA to be made by [`Aws::create_ca`].
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct AwsCaOptions {
    key_algorithm: Option<String>,
    parent: Option<String>,
    path_length: u8,
    short_lived: bool,
    lifetime_days: Option<u32>,
}

impl AwsCaOptions {
    /// A root with a P-256 key, for ten years, in general-purpose mode.
    pub fn new() -> Self {
        Self::default()
    }

    /// Its key, as AWS calls it: `EC_prime256v1`, `EC_secp384r1` or `RSA_2048`.
    pub fn with_key_algorithm(mut self, key_algorithm: impl Into<String>) -> Self {
        self.key_algorithm = Some(key_algorithm.into());
        self
    }

    /// Makes it a subordinate of the CA with this ARN.
    pub fn signed_by(mut self, arn: impl Into<String>) -> Self {
        self.parent = Some(arn.into());
        self
    }

    /// How many CAs may be below a subordinate, 3 at most. By default none. A root has no limit.
    pub fn with_path_length(mut self, path_length: u8) -> Self {
        self.path_length = path_length;
        self
    }

    /// Lets it issue certificates of seven days at most: the usage mode `SHORT_LIVED_CERTIFICATE`.
    pub fn short_lived(mut self) -> Self {
        self.short_lived = true;
        self
    }

    /// How long it lives from now on. By default, a subordinate lives as long as its parent.
    pub fn with_lifetime_days(mut self, days: u32) -> Self {
        self.lifetime_days = Some(days);
        self
    }
}

/// A running moto whose AWS Private CA keeps the promises of AWS's documentation; the rest is as in [`Moto`].
///
/// It can be told to be slow, throttled, broken or used up, and counts what it is asked.
#[derive(Debug)]
pub struct Aws {
    moto: Moto,
    client: Client,
    named: AtomicU32,
}

impl Aws {
    /// The interpreter that runs it: `python3` beside the program in `MESHCA_MOTO_BIN`.
    ///
    /// # Errors
    ///
    /// If the variable is not set, or names no file, or there is no interpreter beside it.
    pub fn program() -> Result<PathBuf, Missing> {
        let python = Moto::program()?.with_file_name("python3");
        match python.is_file() {
            true => Ok(python),
            false => Err(Missing {
                variable: "MESHCA_MOTO_BIN",
                path: Some(python),
            }),
        }
    }

    /// Starts one, with no CA yet.
    ///
    /// # Errors
    ///
    /// If there is no program, or it does not come up; with the end of its log.
    pub async fn start() -> Result<Self> {
        let folder = Folder::new("aws")?;
        let plugin = folder.file("aws.py");
        std::fs::write(&plugin, PLUGIN)?;
        let mut command = Command::new(Self::program()?);
        command.arg(plugin);
        Self::run(command, folder).await
    }

    /// Starts moto without the plugin, to see what it makes of requests by itself: certificates for a year, from CAs with RSA keys.
    /// There is nothing that could be [told](Self::control), and nothing is [counted](Self::calls).
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_plain() -> Result<Self> {
        let command = Command::new(Moto::program()?);
        Self::run(command, Folder::new("aws")?).await
    }

    async fn run(command: Command, folder: Folder) -> Result<Self> {
        Ok(Self {
            moto: Moto::run(command, folder).await?,
            client: client().build()?,
            named: AtomicU32::new(0),
        })
    }

    /// `http://127.0.0.1:PORT`, which is the endpoint of every service in every region.
    pub fn address(&self) -> String {
        self.moto.address()
    }

    /// Makes a CA, has its certificate issued by itself or its parent, imports that, and returns its ARN. It is active.
    ///
    /// # Errors
    ///
    /// AWS's own, such as for a parent that does not live as long.
    pub async fn create_ca(&self, options: &AwsCaOptions) -> Result<String> {
        let name = self.named.fetch_add(1, Ordering::Relaxed);
        let key_algorithm = options.key_algorithm.as_deref().unwrap_or("EC_prime256v1");
        let made = json!({
            "CertificateAuthorityType": match options.parent {
                Some(_) => "SUBORDINATE",
                None => "ROOT",
            },
            "CertificateAuthorityConfiguration": {
                "KeyAlgorithm": key_algorithm,
                "SigningAlgorithm": signing_algorithm(key_algorithm),
                // No two have the same, or a chain of them would look self-issued.
                "Subject": {"Organization": "meshca", "CommonName": format!("CA {name}")},
            },
            "UsageMode": match options.short_lived {
                true => "SHORT_LIVED_CERTIFICATE",
                false => "GENERAL_PURPOSE",
            },
        });
        let made = self.call("CreateCertificateAuthority", made).await?;
        let arn = text(&made, "/CertificateAuthorityArn")?;
        let ca = json!({"CertificateAuthorityArn": arn});
        let csr = self.call("GetCertificateAuthorityCsr", ca).await?;

        let signer = options.parent.as_deref().unwrap_or(&arn);
        let template = match options.parent {
            Some(_) => format!("SubordinateCACertificate_PathLen{}/V1", options.path_length),
            None => "RootCACertificate/V1".to_owned(),
        };
        let ca = json!({"CertificateAuthorityArn": signer});
        let described = self.call("DescribeCertificateAuthority", ca).await?;
        let key = "/CertificateAuthority/CertificateAuthorityConfiguration/KeyAlgorithm";
        let end = described.pointer("/CertificateAuthority/NotAfter");
        let validity = match (options.lifetime_days, end.and_then(Value::as_f64)) {
            (None, Some(end)) => json!({"Type": "ABSOLUTE", "Value": end as u64}),
            (days, _) => json!({"Type": "DAYS", "Value": days.unwrap_or(3650)}),
        };
        let order = json!({
            "CertificateAuthorityArn": signer,
            "Csr": STANDARD.encode(text(&csr, "/Csr")?),
            "SigningAlgorithm": signing_algorithm(&text(&described, key)?),
            "TemplateArn": format!("arn:aws:acm-pca:::template/{template}"),
            "Validity": validity,
        });
        let order = self.call("IssueCertificate", order).await?;
        let certificate = self
            .certificate(signer, &text(&order, "/CertificateArn")?)
            .await?;

        let mut import = json!({
            "CertificateAuthorityArn": arn,
            "Certificate": STANDARD.encode(text(&certificate, "/Certificate")?),
        });
        if let (Some(import), Some(_)) = (import.as_object_mut(), &options.parent) {
            let chain = text(&certificate, "/CertificateChain")?;
            import.insert("CertificateChain".to_owned(), STANDARD.encode(chain).into());
        }
        self.call("ImportCertificateAuthorityCertificate", import)
            .await?;
        Ok(arn)
    }

    /// Asks for a certificate until it is there: `Certificate`, and `CertificateChain` if it is not self-signed.
    ///
    /// # Errors
    ///
    /// AWS's own, or if it is still in progress after a minute.
    pub async fn certificate(&self, ca_arn: &str, arn: &str) -> Result<Value> {
        let body = json!({"CertificateAuthorityArn": ca_arn, "CertificateArn": arn});
        let begun = Instant::now();
        loop {
            let answer = self.request("GetCertificate", &body).await?;
            let pending = answer.1.get("__type") == Some(&json!("RequestInProgressException"));
            if !pending || begun.elapsed() > STARTUP {
                return granted("GetCertificate", answer);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Makes a CA `DISABLED`, or `ACTIVE` again.
    ///
    /// # Errors
    ///
    /// AWS's own.
    pub async fn set_status(&self, arn: &str, status: &str) -> Result<()> {
        let update = json!({"CertificateAuthorityArn": arn, "Status": status});
        self.call("UpdateCertificateAuthority", update)
            .await
            .map(drop)
    }

    /// Tells it how to behave. Members that are left out stay as they are:
    ///
    /// - `{"polls": 3}`: so often is each certificate in progress when it is asked for.
    /// - `{"fail": {"operation": "IssueCertificate", "error": "ThrottlingException", "message": "…", "status": 400,
    ///   "times": 2, "after": false}}`: errors to answer. With `after` the operation is done, and only its answer lost.
    ///   Several such calls add up; `null` forgets what is left of them.
    /// - `{"rate": {"IssueCertificate": 25}}`: requests per second, and at once; `null` takes that away.
    /// - `{"lifetime_quota": 10}`: certificates that each CA may issue, a root's own among them; `null` for any number.
    /// - `{"token_seconds": 300}`: how long an idempotency token is known. By default a minute.
    /// - `{"reset": true}`: all of this as it was at first, and every count back at zero. CAs and certificates stay.
    ///
    /// # Errors
    ///
    /// If it is not understood.
    pub async fn control(&self, settings: Value) -> Result<()> {
        let url = format!("{}/meshca/control", self.address());
        let answer = ask_json(self.client.post(url), Some(&settings)).await?;
        granted(settings, answer).map(drop)
    }

    /// How often each operation was called, whatever came of it, and in `issued`, by the ARN of the CA, how many
    /// certificates were made. An operation that was not called is missing.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub async fn calls(&self) -> Result<Value> {
        let url = format!("{}/meshca/calls", self.address());
        granted(&url, ask_json(self.client.get(&url), None).await?)
    }

    /// Calls an operation of AWS Private CA in `us-east-1`, and returns what it answers.
    ///
    /// # Errors
    ///
    /// AWS's own, with the operation, or if there is no answer.
    pub async fn call(&self, operation: &str, body: Value) -> Result<Value> {
        granted(operation, self.request(operation, &body).await?)
    }

    /// The same, for those who expect an error: the status and the body, in which `__type` names it.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub async fn request(&self, operation: &str, body: &Value) -> Result<(u16, Value)> {
        let request = self
            .client
            .post(self.address())
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", format!("ACMPrivateCA.{operation}"))
            .header("authorization", AUTHORIZATION);
        ask_json(request, Some(body)).await
    }
}

/// How such a key signs.
fn signing_algorithm(key_algorithm: &str) -> &'static str {
    match key_algorithm {
        "EC_secp384r1" => "SHA384WITHECDSA",
        ec if ec.starts_with("EC_") => "SHA256WITHECDSA",
        _ => "SHA256WITHRSA",
    }
}
