//! cert-manager's controllers.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::leash::{Folder, Leash};
use super::{Kube, Missing, Result, granted, program};

/// Where the secrets of its ClusterIssuers are; the namespace exists when [`CertManager::start`] returns.
const NAMESPACE: &str = "cert-manager";

/// cert-manager in a [`Kube`]: its API, the issuers of kind CA and SelfSigned, and the approver, which approves every request.
///
/// It does not keep the API server: whoever owns both drops this one first, and it survives restarts of the other.
#[derive(Debug)]
pub struct CertManager {
    // Before the folder that it writes to.
    leash: Option<Leash>,
    program: PathBuf,
    options: CertManagerOptions,
    folder: Folder,
}

/// How cert-manager runs.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct CertManagerOptions {
    without: Vec<String>,
    api_rate: Option<u32>,
}

impl CertManagerOptions {
    /// As it comes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves out one of its controllers, by its name: without `certificaterequests-approver`, requests wait for somebody else's
    /// approval.
    pub fn without(mut self, controller: impl Into<String>) -> Self {
        self.without.push(controller.into());
        self
    }

    /// Requests to the API server per second. By default 20, as operators have it, which is some seven certificates.
    pub fn with_api_rate(mut self, qps: u32) -> Self {
        self.api_rate = Some(qps);
        self
    }

    fn controllers(&self) -> String {
        let without = self.without.iter();
        without.fold("*".to_owned(), |all, name| format!("{all},-{name}"))
    }
}

impl CertManager {
    /// The program, from `MESHCA_CERTMANAGER_BIN`; its CustomResourceDefinitions are in the folder `crds` beside it.
    ///
    /// # Errors
    ///
    /// If the variable is not set, or names no file.
    pub fn program() -> Result<PathBuf, Missing> {
        program("MESHCA_CERTMANAGER_BIN")
    }

    /// Installs it, and waits until its API can be used.
    ///
    /// # Errors
    ///
    /// If there is no program, or it does not come up; with the end of its log.
    pub async fn start(kube: &Kube) -> Result<Self> {
        Self::start_with(kube, CertManagerOptions::default()).await
    }

    /// The same, with options.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_with(kube: &Kube, options: CertManagerOptions) -> Result<Self> {
        let program = Self::program()?;
        let folder = Folder::new("certmanager")?;
        let config = kube.kubeconfig(kube.admin_token());
        std::fs::write(folder.file("kubeconfig"), config)?;
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE},
        });
        let path = "api/v1/namespaces";
        let made = kube
            .request(kube.admin_token(), "POST", path, Some(namespace))
            .await?;
        // An earlier cert-manager on this API server may have left it.
        if made.0 != 409 {
            granted(format_args!("POST {path}"), made)?;
        }
        let mut this = Self {
            leash: None,
            program,
            options,
            folder,
        };
        this.restart(kube).await?;
        Ok(this)
    }

    /// Ends it as SIGKILL does. What is in the API server stays.
    pub fn kill(&mut self) {
        self.leash = None;
    }

    /// Starts it again, after [`kill`](Self::kill) or not.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub async fn restart(&mut self, kube: &Kube) -> Result<()> {
        self.kill();
        let crds = self.program.with_file_name("crds");
        let kubeconfig = self.folder.file("kubeconfig");
        let mut command = Command::new(&self.program);
        command
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--crds={}", crds.display()))
            .arg(format!("--cluster-resource-namespace={NAMESPACE}"))
            .arg(format!("--controllers={}", self.options.controllers()));
        if let Some(qps) = self.options.api_rate {
            command
                .arg(format!("--kube-api-qps={qps}"))
                .arg(format!("--kube-api-burst={qps}"));
        }
        let ready = async || serves_its_api(kube).await;
        self.leash = Some(Leash::start("cert-manager", &command, &self.folder, ready).await?);
        Ok(())
    }

    /// The namespace of the secrets that ClusterIssuers name.
    pub fn namespace(&self) -> &str {
        NAMESPACE
    }
}

/// Whether the API server has all of the definitions at work, and not only the first of them.
async fn serves_its_api(kube: &Kube) -> bool {
    let path = "apis/cert-manager.io/v1";
    let Ok((200, answer)) = kube.request(kube.admin_token(), "GET", path, None).await else {
        return false;
    };
    let names: Vec<_> = answer
        .pointer("/resources")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|resource| resource.get("name")?.as_str())
        .collect();
    ["certificaterequests", "clusterissuers", "issuers"]
        .iter()
        .all(|name| names.contains(name))
}
