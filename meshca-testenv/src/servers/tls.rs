//! The certificates of servers on this machine.

use reqwest::{Certificate, Client};

use super::leash::Folder;
use super::{Result, client};

/// Makes a certificate for `127.0.0.1` and `localhost`, in `tls.pem` and `tls.key`. Returns it, and a client that trusts only it.
pub(super) fn tls(folder: &Folder) -> Result<(String, Client)> {
    let made =
        rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()])?;
    let pem = made.cert.pem();
    std::fs::write(folder.file("tls.pem"), &pem)?;
    std::fs::write(folder.file("tls.key"), made.signing_key.serialize_pem())?;
    let client = client().tls_certs_only([Certificate::from_pem(pem.as_bytes())?]);
    Ok((pem, client.build()?))
}
