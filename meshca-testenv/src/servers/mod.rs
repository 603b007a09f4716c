//! Real servers for tests, each with its own data and port, on loopback, gone when it is dropped.
//!
//! A mock of a CA does what its author believed the CA does. These are the CAs themselves: HashiCorp Vault, a
//! Kubernetes API server with etcd, cert-manager, and moto, which stands for AWS; and Envoy, which uses what they sign.
//!
//! | server | program | also needs |
//! |---|---|---|
//! | [`Vault`] | `MESHCA_VAULT_BIN` | |
//! | [`Kube`] | `MESHCA_KUBE_APISERVER_BIN` | `MESHCA_ETCD_BIN` |
//! | [`CertManager`] | `MESHCA_CERTMANAGER_BIN` | a [`Kube`], and the folder `crds` beside the program |
//! | [`Moto`] | `MESHCA_MOTO_BIN` | |
//! | [`Aws`] | `MESHCA_MOTO_BIN` | `python3` beside the program |
//! | [`Envoy`] | `MESHCA_ENVOY_BIN` | a bootstrap, and a [`Port`] for each of its listeners |
//!
//! The variables name programs; nothing is looked for, downloaded or built here. In meshca's own repository
//! `cargo xtask test` sets them. Where one is not set, [`Missing`] says so, and a test that needs the server leaves itself out:
//!
//! ```no_run
//! use meshca_testenv::servers::Vault;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), meshca_testenv::servers::Error> {
//! if let Err(missing) = Vault::program() {
//!     eprintln!("left out: {missing}");
//!     return Ok(());
//! }
//! let vault = Vault::start().await?;
//! vault.write("sys/mounts/pki", serde_json::json!({"type": "pki"})).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Nothing is left behind
//!
//! A server ends with the value that stands for it, and with the process that started it, however that ends: it
//! hangs on a pipe that the system closes. Its log is kept, and its place printed, if the test that
//! used it panics.

mod aws;
mod certmanager;
mod envoy;
mod kube;
mod leash;
mod moto;
mod port;
mod tls;
mod vault;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Client, ClientBuilder, RequestBuilder};
use serde_json::Value;
use tokio::time::{sleep, timeout};

pub use aws::{Aws, AwsCaOptions};
pub use certmanager::{CertManager, CertManagerOptions};
pub use envoy::Envoy;
pub use kube::Kube;
pub use moto::Moto;
pub use port::Port;
pub use vault::{Vault, VaultOptions};

/// Leaves a test out, and says so, where a program that it needs is [missing](Missing).
///
/// ```
/// use meshca_testenv::servers::Vault;
///
/// async fn a_test() {
///     meshca_testenv::needs!(Vault::program());
///     let vault = Vault::start().await.unwrap();
///     # drop(vault);
/// }
/// ```
#[macro_export]
macro_rules! needs {
    ($($program:expr),+ $(,)?) => {
        $(if let Err(missing) = $program {
            eprintln!("left out: {missing}");
            return;
        })+
    };
}

/// What goes wrong with a server under test. It is for people.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What a call to a server gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How long a server may take to come up.
const STARTUP: Duration = Duration::from_secs(60);

/// A program that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Missing {
    /// The variable that is to name it.
    pub variable: &'static str,
    /// The program that it names in vain; `None` if it is not set.
    pub path: Option<PathBuf>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variable = self.variable;
        match &self.path {
            None => write!(f, "{variable} is not set"),
            Some(path) => write!(f, "{variable} names {}, which is no file", path.display()),
        }
    }
}

impl std::error::Error for Missing {}

fn program(variable: &'static str) -> Result<PathBuf, Missing> {
    let path = std::env::var_os(variable).filter(|path| !path.is_empty());
    let path = path.map(PathBuf::from);
    let file = path.clone().filter(|path| path.is_file());
    file.ok_or(Missing { variable, path })
}

/// Asks repeatedly, for this long at most, and returns whether the answer became yes.
async fn within<F: Future<Output = Result<bool>>>(
    time: Duration,
    mut done: impl FnMut() -> F,
) -> Result<bool> {
    let waiting = async {
        while !done().await? {
            sleep(Duration::from_millis(10)).await;
        }
        Ok(true)
    };
    timeout(time, waiting).await.unwrap_or(Ok(false))
}

/// A client for servers on this machine: without a proxy, and with three minutes for an answer. A
/// server that is loaded on purpose, on a machine that is busy as well, has needed more than half a
/// minute.
fn client() -> ClientBuilder {
    Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(180))
}

/// Makes a request, and returns the status and the body.
async fn ask(request: RequestBuilder) -> Result<(u16, String)> {
    let response = request.send().await?;
    Ok((response.status().as_u16(), response.text().await?))
}

/// Makes a request with JSON, or without a body. Of the answer, nothing is `null`, and what is not JSON a string.
async fn ask_json(request: RequestBuilder, body: Option<&Value>) -> Result<(u16, Value)> {
    let request = match body {
        Some(body) => request.json(body),
        None => request,
    };
    let (status, text) = ask(request).await?;
    let answer = match text.as_str() {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
    };
    Ok((status, answer))
}

/// The body of a successful answer; an error that says what was asked for otherwise.
fn granted<T: fmt::Display>(what: impl fmt::Display, answer: (u16, T)) -> Result<T> {
    match answer {
        (200..=299, body) => Ok(body),
        (status, body) => Err(format!("{what}: {status} {body}").into()),
    }
}

/// A text in an answer.
fn text(answer: &Value, pointer: &str) -> Result<String> {
    let value = answer.pointer(pointer).and_then(|value| value.as_str());
    Ok(value
        .ok_or_else(|| format!("there is no {pointer} in {answer}"))?
        .to_owned())
}
