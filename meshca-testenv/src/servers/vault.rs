//! HashiCorp Vault.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::leash::{Folder, Leash};
use super::port::Port;
use super::tls::tls;
use super::{Missing, Result, STARTUP, ask_json, granted, program, text, within};

/// What a [`Vault`] is started with.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct VaultOptions {
    tls: bool,
}

impl VaultOptions {
    /// Plain HTTP.
    pub fn new() -> Self {
        Self::default()
    }

    /// HTTPS, with a certificate for `127.0.0.1` and `localhost` from a CA of its own; clients may show certificates.
    pub fn with_tls(mut self) -> Self {
        self.tls = true;
        self
    }
}

/// A running Vault, initialised and unsealed, with nothing mounted yet.
///
/// The methods that take a path are the operator's: they use the root token.
#[derive(Debug)]
pub struct Vault {
    // Before the folder that it writes to.
    leash: Option<Leash>,
    program: PathBuf,
    port: Port,
    url: String,
    client: Client,
    ca_pem: Option<String>,
    root_token: String,
    unseal_key: String,
    version: String,
    folder: Folder,
}

impl Vault {
    /// The program, from `MESHCA_VAULT_BIN`.
    ///
    /// # Errors
    ///
    /// If the variable is not set, or names no file.
    pub fn program() -> Result<PathBuf, Missing> {
        program("MESHCA_VAULT_BIN")
    }

    /// Starts one that speaks plain HTTP.
    ///
    /// # Errors
    ///
    /// If there is no program, or it does not come up; with the end of its log.
    pub async fn start() -> Result<Self> {
        Self::start_with(VaultOptions::new()).await
    }

    /// Starts one with options.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_with(options: VaultOptions) -> Result<Self> {
        let program = Self::program()?;
        let folder = Folder::new("vault")?;
        let port = Port::free()?;
        let address = port.address();
        let (ca_pem, client) = tls(&folder)?;
        let scheme = if options.tls { "https" } else { "http" };
        let url = format!("{scheme}://{address}");
        let listener = json!({
            "address": address.to_string(),
            "tls_disable": !options.tls,
            "tls_cert_file": folder.file("tls.pem"),
            "tls_key_file": folder.file("tls.key"),
        });
        let config = json!({
            "storage": {"file": {"path": folder.file("data")}},
            "listener": {"tcp": listener},
            "disable_mlock": true,
            "api_addr": url,
            "log_level": "info",
        });
        std::fs::write(folder.file("vault.json"), config.to_string())?;
        let mut vault = Self {
            leash: None,
            program,
            port,
            url,
            client,
            ca_pem: options.tls.then_some(ca_pem),
            root_token: String::new(),
            unseal_key: String::new(),
            version: String::new(),
            folder,
        };
        vault.restart_sealed().await?;
        vault.version = text(&vault.health().await?.1, "/version")?;
        let shares = json!({"secret_shares": 1, "secret_threshold": 1});
        let (_, made) = vault.request("", "PUT", "sys/init", Some(shares)).await?;
        vault.root_token = text(&made, "/root_token")?;
        vault.unseal_key = text(&made, "/keys_base64/0")?;
        vault.unseal().await?;
        Ok(vault)
    }

    async fn health(&self) -> Result<(u16, Value)> {
        self.request("", "GET", "sys/health", None).await
    }

    /// `http://127.0.0.1:PORT`, or `https://…`.
    pub fn address(&self) -> &str {
        &self.url
    }

    /// Where it listens.
    pub fn socket_addr(&self) -> SocketAddr {
        self.port.address()
    }

    /// May do everything.
    pub fn root_token(&self) -> &str {
        &self.root_token
    }

    /// Its version, as it says.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The CA of its own certificate, if it speaks TLS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// Ends it as SIGKILL does. Its data stays.
    pub fn kill(&mut self) {
        self.leash = None;
    }

    /// Starts it again, after [`kill`](Self::kill) or not, at the same address and with the same data; unsealed.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub async fn restart(&mut self) -> Result<()> {
        self.restart_sealed().await?;
        self.unseal().await
    }

    /// The same, but it stays sealed.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub async fn restart_sealed(&mut self) -> Result<()> {
        self.kill();
        let config = self.folder.file("vault.json");
        let mut command = Command::new(&self.program);
        command.args(["server", &format!("-config={}", config.display())]);
        // Whatever it says of itself: until it is initialized and unsealed, that is an error status.
        let ready = async || {
            let health = self.health().await;
            health.is_ok_and(|(_, health)| health.get("version").is_some())
        };
        self.leash = Some(Leash::start("vault", &command, &self.folder, ready).await?);
        Ok(())
    }

    /// Seals it.
    ///
    /// # Errors
    ///
    /// If it cannot be reached.
    pub async fn seal(&self) -> Result<()> {
        self.write("sys/seal", json!({})).await.map(drop)
    }

    /// Unseals it, and waits until it works.
    ///
    /// # Errors
    ///
    /// If it does not within a minute.
    pub async fn unseal(&self) -> Result<()> {
        let key = json!({"key": self.unseal_key});
        self.request("", "PUT", "sys/unseal", Some(key)).await?;
        let active = async || Ok(matches!(self.health().await, Ok((200, _))));
        match within(STARTUP, active).await? {
            true => Ok(()),
            false => Err("Vault was unsealed and does not become active".into()),
        }
    }

    /// Reads a path.
    ///
    /// # Errors
    ///
    /// Vault's own, with the path.
    pub async fn read(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, None).await
    }

    /// Writes to a path.
    ///
    /// # Errors
    ///
    /// Vault's own, with the path.
    pub async fn write(&self, path: &str, body: Value) -> Result<Value> {
        self.ask("POST", path, Some(body)).await
    }

    /// Changes parts of what is at a path (JSON Merge Patch, RFC 7396), as `vault patch` does.
    ///
    /// # Errors
    ///
    /// Vault's own, with the path.
    pub async fn patch(&self, path: &str, body: Value) -> Result<Value> {
        self.ask("PATCH", path, Some(body)).await
    }

    /// Lists a path.
    ///
    /// # Errors
    ///
    /// Vault's own, with the path.
    pub async fn list(&self, path: &str) -> Result<Value> {
        self.ask("LIST", path, None).await
    }

    /// Deletes a path.
    ///
    /// # Errors
    ///
    /// Vault's own, with the path.
    pub async fn delete(&self, path: &str) -> Result<Value> {
        self.ask("DELETE", path, None).await
    }

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let answer = self.request(&self.root_token, method, path, body).await?;
        granted(format_args!("{method} {path}"), answer)
    }

    /// Makes any request, with any token or none, and returns the status and the body.
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
        let url = format!("{}/v1/{path}", self.url);
        let merges = method == Method::PATCH;
        let mut request = self.client.request(method, url);
        if merges {
            request = request.header("content-type", "application/merge-patch+json");
        }
        if !token.is_empty() {
            request = request.header("x-vault-token", token);
        }
        ask_json(request, body.as_ref()).await
    }
}
