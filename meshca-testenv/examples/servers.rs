//! Real servers that stay up until a file is gone: what `cargo xtask servers up` leaves behind.
//!
//! ```sh
//! cargo run -p meshca-testkit --features servers --example servers -- FILE
//! ```
//!
//! Starts those whose programs the environment names (see the module `servers`), writes how to reach them into FILE, and
//! ends when somebody removes it. A lock on the file tells that they run.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use meshca_testenv::servers::{Aws, AwsCaOptions, CertManager, Error, Kube, Vault};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let path = std::env::args_os()
        .nth(1)
        .ok_or("want the file to write to")?;
    let path = Path::new(&path);
    let mut file = lock(path)?;

    let mut text = String::new();
    let vault = match Vault::program() {
        Ok(_) => Some(Vault::start().await?),
        Err(missing) => {
            writeln!(text, "no Vault: {missing}")?;
            None
        }
    };
    if let Some(vault) = &vault {
        writeln!(text, "# Vault {}", vault.version())?;
        writeln!(text, "export VAULT_ADDR={}", vault.address())?;
        writeln!(text, "export VAULT_TOKEN={}", vault.root_token())?;
    }
    let kube = match Kube::programs() {
        Ok(_) => Some(Kube::start().await?),
        Err(missing) => {
            writeln!(text, "no Kubernetes: {missing}")?;
            None
        }
    };
    let kubeconfig = path.with_extension("kubeconfig");
    let mut _certmanager = None;
    if let Some(kube) = &kube {
        let mut file = secret(&kubeconfig)?;
        file.set_len(0)?;
        file.write_all(kube.kubeconfig(kube.admin_token()).as_bytes())?;
        writeln!(text, "# Kubernetes {}", kube.version())?;
        writeln!(text, "export KUBECONFIG={}", kubeconfig.display())?;
        match CertManager::program() {
            Ok(_) => {
                _certmanager = Some(CertManager::start(kube).await?);
                writeln!(text, "# with cert-manager in it")?;
            }
            Err(missing) => writeln!(text, "no cert-manager: {missing}")?,
        }
    }
    let aws = match Aws::program() {
        Ok(_) => Some(Aws::start().await?),
        Err(missing) => {
            writeln!(text, "no moto: {missing}")?;
            None
        }
    };
    if let Some(aws) = &aws {
        let arn = aws.create_ca(&AwsCaOptions::new()).await?;
        writeln!(text, "# moto, for AWS, with a CA in AWS Private CA")?;
        writeln!(text, "export AWS_ENDPOINT_URL={}", aws.address())?;
        writeln!(text, "export MESHCA_AWS_CA_ARN={arn}")?;
    }
    file.write_all(text.as_bytes())?;
    file.flush()?;

    while path.exists() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let _ = std::fs::remove_file(kubeconfig);
    Ok(())
}

/// The file, which is nobody else's.
fn lock(path: &Path) -> Result<File, Error> {
    let file = secret(path)?;
    file.try_lock()
        .map_err(|_| format!("{} is in use: they run already", path.display()))?;
    file.set_len(0)?;
    Ok(file)
}

/// A file that will hold tokens.
fn secret(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    Ok(options.open(path)?)
}
