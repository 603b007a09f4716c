//! moto, which stands for AWS.

use std::path::PathBuf;
use std::process::Command;

use super::leash::{Folder, Leash};
use super::port::Port;
use super::{Missing, Result, ask, client, granted, program};

/// A running moto: STS, IAM and AWS Private CA, each as far as it goes.
#[derive(Debug)]
pub struct Moto {
    // Before the folder that it writes to.
    _leash: Leash,
    port: Port,
    _folder: Folder,
}

impl Moto {
    /// The program, from `MESHCA_MOTO_BIN`: `moto_server`.
    ///
    /// # Errors
    ///
    /// If the variable is not set, or names no file.
    pub fn program() -> Result<PathBuf, Missing> {
        program("MESHCA_MOTO_BIN")
    }

    /// Starts one.
    ///
    /// # Errors
    ///
    /// If there is no program, or it does not come up; with the end of its log.
    pub async fn start() -> Result<Self> {
        Self::run(Command::new(Self::program()?), Folder::new("moto")?).await
    }

    /// Starts moto, or what has moto's arguments, on a free port.
    pub(super) async fn run(mut command: Command, folder: Folder) -> Result<Self> {
        let port = Port::free()?;
        let address = port.address();
        command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
        let ready = async || tokio::net::TcpStream::connect(address).await.is_ok();
        Ok(Self {
            _leash: Leash::start("moto", &command, &folder, ready).await?,
            port,
            _folder: folder,
        })
    }

    /// Calls an API of AWS that takes a form, such as IAM's, and returns its XML. moto checks no signature.
    ///
    /// # Errors
    ///
    /// moto's own, or if there is no answer.
    pub async fn form(&self, service: &str, form: &str) -> Result<String> {
        let scope = format!("Credential=test/20000101/us-east-1/{service}/aws4_request");
        let request = client()
            .build()?
            .post(self.address())
            .header("content-type", "application/x-www-form-urlencoded")
            .header(
                "authorization",
                format!("AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=none"),
            )
            .body(form.to_owned());
        granted(format_args!("{service} {form}"), ask(request).await?)
    }

    /// `http://127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("http://{}", self.port.address())
    }
}
