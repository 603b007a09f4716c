//! A Kubernetes API server on etcd, without nodes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::leash::{Folder, Leash};
use super::port::Port;
use super::tls::tls;
use super::{Missing, Result, ask_json, granted, program, text};

/// A running API server: RBAC, service accounts with real tokens, no controllers.
#[derive(Debug)]
pub struct Kube {
    // Before the folder that they write to.
    apiserver: Option<Leash>,
    _etcd: Leash,
    _etcd_ports: [Port; 2],
    program: PathBuf,
    etcd_url: String,
    port: Port,
    client: Client,
    ca_pem: String,
    /// Who may do everything (`--token-auth-file`): unknown to others on this machine.
    admin_token: String,
    version: String,
    folder: Folder,
}

impl Kube {
    /// The programs, from `MESHCA_KUBE_APISERVER_BIN` and `MESHCA_ETCD_BIN`.
    ///
    /// # Errors
    ///
    /// If a variable is not set, or names no file.
    pub fn programs() -> Result<(PathBuf, PathBuf), Missing> {
        Ok((
            program("MESHCA_KUBE_APISERVER_BIN")?,
            program("MESHCA_ETCD_BIN")?,
        ))
    }

    /// Starts both.
    ///
    /// # Errors
    ///
    /// If there is no program, or one does not come up; with the end of its log.
    pub async fn start() -> Result<Self> {
        let (program, etcd) = Self::programs()?;
        let folder = Folder::new("kube")?;
        let (ca_pem, client) = tls(&folder)?;
        let accounts = rcgen::KeyPair::generate()?;
        std::fs::write(folder.file("accounts.key"), accounts.serialize_pem())?;
        std::fs::write(folder.file("accounts.pub"), accounts.public_key_pem())?;
        let mut random = [0; 16];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| "no randomness")?;
        let admin_token = BASE64_URL_SAFE_NO_PAD.encode(random);
        let admin = format!("{admin_token},admin,admin,system:masters\n");
        std::fs::write(folder.file("tokens.csv"), admin)?;

        let (clients, peers) = (Port::free()?, Port::free()?);
        let etcd_url = format!("http://{}", clients.address());
        let peer_url = format!("http://{}", peers.address());
        let mut command = Command::new(etcd);
        command
            .arg(format!("--data-dir={}", folder.file("etcd").display()))
            .arg(format!("--listen-client-urls={etcd_url}"))
            .arg(format!("--advertise-client-urls={etcd_url}"))
            .arg(format!("--listen-peer-urls={peer_url}"))
            .arg(format!("--initial-advertise-peer-urls={peer_url}"))
            .arg(format!("--initial-cluster=default={peer_url}"))
            .arg("--unsafe-no-fsync");
        let mut kube = Self {
            apiserver: None,
            // The API server waits for it.
            _etcd: Leash::start("etcd", &command, &folder, async || true).await?,
            _etcd_ports: [clients, peers],
            program,
            etcd_url,
            port: Port::free()?,
            client,
            ca_pem,
            admin_token,
            version: String::new(),
            folder,
        };
        kube.restart_apiserver().await?;
        let (_, version) = kube
            .request(&kube.admin_token, "GET", "version", None)
            .await?;
        kube.version = text(&version, "/gitVersion")?;
        Ok(kube)
    }

    async fn is_ok(&self, path: &str) -> bool {
        let answer = self.request(&self.admin_token, "GET", path, None).await;
        matches!(answer, Ok((200, _)))
    }

    /// Ends the API server as SIGKILL does; etcd keeps what it knew.
    pub fn kill_apiserver(&mut self) {
        self.apiserver = None;
    }

    /// Starts the API server again, at the same address.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub async fn restart_apiserver(&mut self) -> Result<()> {
        self.kill_apiserver();
        let at = |name: &str| self.folder.file(name).display().to_string();
        let mut command = Command::new(&self.program);
        command
            .arg(format!("--etcd-servers={}", self.etcd_url))
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--secure-port={}", self.port.address().port()))
            .arg(format!("--cert-dir={}", at("certs")))
            .arg(format!("--tls-cert-file={}", at("tls.pem")))
            .arg(format!("--tls-private-key-file={}", at("tls.key")))
            .arg(format!("--service-account-key-file={}", at("accounts.pub")))
            .arg(format!(
                "--service-account-signing-key-file={}",
                at("accounts.key")
            ))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--token-auth-file={}", at("tokens.csv")))
            .arg("--authorization-mode=RBAC")
            .arg("--service-cluster-ip-range=10.0.0.0/24")
            .arg("--endpoint-reconciler-type=none")
            .arg("--disable-admission-plugins=ServiceAccount");
        // `default` comes last, when the hooks that make the RBAC roles have run.
        let ready =
            async || self.is_ok("readyz").await && self.is_ok("api/v1/namespaces/default").await;
        self.apiserver = Some(Leash::start("kube-apiserver", &command, &self.folder, ready).await?);
        Ok(())
    }

    /// `https://127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("https://{}", self.port.address())
    }

    /// Where the API server listens.
    pub fn socket_addr(&self) -> SocketAddr {
        self.port.address()
    }

    /// The CA of the API server's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// May do everything.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// A kubeconfig for the bearer of a token.
    pub fn kubeconfig(&self, token: &str) -> String {
        let ca = STANDARD.encode(&self.ca_pem);
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "test",
                "cluster": {"server": self.address(), "certificate-authority-data": ca},
            }],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        });
        format!("{config:#}\n")
    }

    /// Its version, as it says.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Makes any request, and returns the status and the body; what is not JSON as a string.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub async fn request(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<(u16, Value)> {
        let method = Method::from_bytes(method.as_bytes())?;
        let url = format!("https://{}/{path}", self.port.address());
        let request = self.client.request(method, url).bearer_auth(token);
        ask_json(request, body.as_ref()).await
    }

    /// Makes an object, as the admin.
    ///
    /// # Errors
    ///
    /// The API server's own, with the path.
    pub async fn create(&self, path: &str, object: Value) -> Result<Value> {
        let answer = self
            .request(&self.admin_token, "POST", path, Some(object))
            .await?;
        granted(format_args!("POST {path}"), answer)
    }

    /// Makes a service account.
    ///
    /// # Errors
    ///
    /// The API server's own.
    pub async fn create_service_account(&self, namespace: &str, name: &str) -> Result<()> {
        let path = format!("api/v1/namespaces/{namespace}/serviceaccounts");
        let account =
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        self.create(&path, account).await.map(drop)
    }

    /// A token of a service account, by the TokenRequest API; for the API server itself if no audience is named. It lives for at
    /// least ten minutes.
    ///
    /// # Errors
    ///
    /// The API server's own.
    pub async fn token_for(
        &self,
        namespace: &str,
        name: &str,
        audiences: &[&str],
        lifetime: Duration,
    ) -> Result<String> {
        let path = format!("api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": audiences, "expirationSeconds": lifetime.as_secs()},
        });
        let answer = self.create(&path, request).await?;
        text(&answer, "/status/token")
    }
}
