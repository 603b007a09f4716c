//! What the examples write: `cert.pem` (leaf, then intermediates), `key.pem` (0600) and `bundle.pem`.

use std::error::Error;
use std::io::Write as _;
use std::path::Path;

use meshca::{Identity, TrustBundle};

/// Writes an identity and the roots that its peers need into a folder, and says so.
pub(crate) fn write_out(
    folder: &Path,
    identity: &Identity,
    bundle: &TrustBundle,
) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    write_file(
        folder,
        "key.pem",
        identity.expose_key_pem()?.expose(),
        false,
    )?;
    write_file(folder, "cert.pem", identity.chain_pem().as_bytes(), true)?;
    write_file(folder, "bundle.pem", bundle.to_pem().as_bytes(), true)?;
    println!(
        "written      cert.pem, key.pem, bundle.pem in {}",
        folder.display()
    );
    Ok(())
}

/// All of a file or nothing of it. Temporary files are for their owner only from the start.
fn write_file(
    folder: &Path,
    name: &str,
    content: &[u8],
    public: bool,
) -> Result<(), Box<dyn Error>> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    #[cfg(unix)]
    if public {
        use std::os::unix::fs::PermissionsExt as _;
        file.as_file()
            .set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    #[cfg(not(unix))]
    let _ = public;
    file.persist(folder.join(name))?;
    Ok(())
}
