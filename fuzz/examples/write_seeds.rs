//! Writes the seeds that cannot be written by hand into `seeds/`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for (target, name, content) in meshca_fuzz::binary_seeds() {
        std::fs::create_dir_all(seeds.join(target))?;
        std::fs::write(seeds.join(target).join(name), content)?;
    }
    Ok(())
}
