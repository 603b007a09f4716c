//! HashiCorp Vault, and a bare HTTP client beside it.
//!
//! | case | what |
//! |---|---|
//! | `vault` | `Issuer::sign` through `meshca-vault` |
//! | `vault-bare` | the same requests, posted by a bare hyper client that looks at the status only |
//! | `vault-issue` | key, CSR, `sign`, verification |
//! | `vault-memory` | bytes, not time: what an issuer holds that has signed once and waits |

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use meshca::resource::{DataSource, VaultAuth, VaultConf};
use meshca::secret::SourceReader;
use meshca::vault::{VaultIssuer, VaultSettings};
use meshca::{
    CertificateRequest, Clock as _, Issuer as _, IssuerExt as _, KeyType, MemorySecretStore,
    PrivateKey, SystemClock, TrustDomain,
};
use meshca_testenv::servers::Vault;
use serde_json::json;

use crate::{Provider, Result, spec};

/// Issuers of which the memory of one is told.
const IDLE_ISSUERS: usize = 100;

pub(crate) struct Bench {
    vault: Vault,
    issuer: VaultIssuer,
    request: CertificateRequest,
    bare: Client<HttpConnector, Full<Bytes>>,
    body: Bytes,
    /// Those whose memory was told: what was freed would be used again, and count as nothing.
    idle: Mutex<Vec<VaultIssuer>>,
}

impl Bench {
    pub(crate) async fn new() -> Result<Self> {
        let vault = Vault::start().await?;
        let engine = json!({"type": "pki", "config": {"max_lease_ttl": "87600h"}});
        vault.write("sys/mounts/pki", engine).await?;
        let root = json!({"common_name": "root", "key_type": "ec", "ttl": "87600h"});
        vault.write("pki/root/generate/internal", root).await?;
        let role = json!({
            "allowed_uri_sans": "spiffe://example.org/*",
            "require_cn": false,
            "use_csr_sans": false,
            "key_type": "any",
            "no_store": true,
        });
        vault.write("pki/roles/mesh", role).await?;
        let issuer = issuer(&vault)?;
        let key = PrivateKey::generate(KeyType::P256)?;
        let request = CertificateRequest::for_key(spec()?, &key, SystemClock::new().now())?;
        let body = json!({
            "csr": request.csr()?.to_pem(),
            "uri_sans": request.spiffe_id().to_string(),
            "ttl": "3600s",
            "format": "pem",
            "exclude_cn_from_sans": true,
        });
        Ok(Self {
            issuer,
            request,
            bare: Client::builder(TokioExecutor::new()).build_http(),
            body: body.to_string().into(),
            idle: Mutex::default(),
            vault,
        })
    }

    /// Bytes that an issuer holds, by what the process holds with many of them.
    async fn memory(&self) -> Result<usize> {
        let make = async |count: usize| {
            for _ in 0..count {
                let issuer = issuer(&self.vault)?;
                issuer.sign(&self.request).await?;
                self.idle.lock().map_err(|_| "poisoned")?.push(issuer);
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        };
        // The first ones warm up what is made once.
        make(10).await?;
        let before = resident()?;
        make(IDLE_ISSUERS).await?;
        Ok(resident()?.saturating_sub(before) / IDLE_ISSUERS)
    }
}

#[async_trait]
impl Provider for Bench {
    async fn run(&self, case: &str) -> Result<()> {
        match case {
            "vault" => {
                self.issuer.sign(&self.request).await?;
            }
            "vault-issue" => {
                self.issuer.issue(&spec()?, &SystemClock::new()).await?;
            }
            "vault-bare" => {
                let request =
                    http::Request::post(format!("{}/v1/pki/sign/mesh", self.vault.address()))
                        .header("x-vault-token", self.vault.root_token())
                        .body(Full::new(self.body.clone()))?;
                let response = self.bare.request(request).await?;
                let status = response.status();
                response.into_body().collect().await?;
                if !status.is_success() {
                    return Err(format!("Vault answered {status}").into());
                }
            }
            _ => return Err(format!("there is no case `{case}`").into()),
        }
        Ok(())
    }

    async fn count(&self, case: &str) -> Result<Option<(usize, usize)>> {
        match case {
            "vault-memory" => Ok(Some((1, self.memory().await?))),
            _ => Ok(None),
        }
    }
}

fn issuer(vault: &Vault) -> Result<VaultIssuer> {
    let token = VaultAuth::Token(DataSource::InlineString(vault.root_token().into()));
    let conf = VaultConf::new(vault.address(), "mesh", token);
    let settings = VaultSettings::new(conf, TrustDomain::new("example.org")?);
    let sources = SourceReader::new(Arc::new(MemorySecretStore::new()), "default")?;
    Ok(VaultIssuer::new(
        settings,
        sources,
        Arc::new(SystemClock::new()),
    )?)
}

/// Bytes of memory that the process holds (Linux).
fn resident() -> Result<usize> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: usize = text.split(' ').nth(1).ok_or("no resident size")?.parse()?;
    Ok(pages * 4096)
}
