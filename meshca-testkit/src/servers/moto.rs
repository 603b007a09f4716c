//! moto, which stands for AWS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::leash::{Folder, Leash};
use super::{Missing, Result, STARTUP, free_address, program};

/// A running moto: STS, IAM and AWS Private CA, each as far as it goes.
#[derive(Debug)]
pub struct Moto {
    // Before the folder that it writes to.
    _leash: Leash,
    address: SocketAddr,
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
        let program = Self::program()?;
        let folder = Folder::new("moto")?;
        let address = free_address()?;
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
        let leash = Leash::start("moto", &command, &folder.path().join("moto.log"))?;
        let up = async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(STARTUP, up).await.is_err() {
            return Err(format!("moto does not answer; {}", leash.complaint()).into());
        }
        Ok(Self {
            _leash: leash,
            address,
            _folder: folder,
        })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("http://{}", self.address)
    }
}
