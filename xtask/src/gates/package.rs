//! What a registry would get builds by itself, and so does its documentation: each `.crate` is unpacked
//! outside the repository, beside nothing but the others.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{LeftOut, unless};
use crate::cargo::{self, Package, cargo};
use crate::process::{self, Result};
use crate::tools;

/// Set by the repository's `.cargo/config.toml`, also for this program. Users do not have it.
const OURS_ALONE: &str = "K8S_OPENAPI_ENABLED_VERSION";

pub(super) fn holds() -> Result<LeftOut> {
    let packages: Vec<_> = cargo::packages()?
        .into_iter()
        .filter(|package| package.published)
        .collect();
    let target = cargo::target_directory()?;
    // Without the lock file, which names the siblings as a registry has them.
    let mut pack = cargo("package --quiet --no-verify --allow-dirty --exclude-lockfile");
    for package in &packages {
        pack.args(["--package", &package.name]);
    }
    process::run(&mut pack)?;

    let folder = unpacked_folder()?;
    let license = read(&cargo::root().join("LICENSE"))?;
    let mut problems = Vec::new();
    for package in &packages {
        unpack(
            &target
                .join("package")
                .join(format!("{}.crate", package.full_name())),
            &folder,
        )?;
        let copy = folder.join(package.full_name()).join("LICENSE");
        if read(&copy).ok().as_ref() != Some(&license) {
            problems.push(format!(
                "{}: the package has no LICENSE, or another one than the repository: link it, as \
                 `ln -s ../LICENSE` does",
                package.name
            ));
        }
    }
    write(&folder.join("Cargo.toml"), workspace(&packages))?;
    // The versions that everything else is tested with.
    write(
        &folder.join("Cargo.lock"),
        read(&cargo::root().join("Cargo.lock"))?,
    )?;
    for package in &packages {
        println!("  {}", package.name);
        for task in [&["check"][..], &["doc", "--no-deps"]] {
            let mut command = Command::new("cargo");
            command
                .current_dir(&folder)
                .env_remove(OURS_ALONE)
                .env("RUSTFLAGS", "-D warnings")
                .env("RUSTDOCFLAGS", "-D warnings")
                .env("CARGO_TARGET_DIR", target.join("unpacked"))
                .args(task)
                .args(["--quiet", "--package", &package.name])
                .args(&package.docs_features);
            if let Err(failure) = process::run(&mut command) {
                problems.push(format!("{}, unpacked: {failure}; see above", package.name));
            }
        }
    }
    unless(&problems)
}

/// An empty folder that cargo reaches no configuration of the repository from, the same one each time
/// for this clone: cargo would keep what it built for any other.
fn unpacked_folder() -> Result<PathBuf> {
    let mut clone = DefaultHasher::new();
    cargo::root().hash(&mut clone);
    let folder = tools::cache()?
        .join("unpacked")
        .join(format!("{:016x}", clone.finish()));
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .map_err(|error| format!("cannot empty {}: {error}", folder.display()))?;
    }
    fs::create_dir_all(&folder)
        .map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
    Ok(folder)
}

fn unpack(file: &Path, folder: &Path) -> Result<()> {
    // With the time of now: in the package, every file has the same, and cargo would miss a change.
    process::run(
        Command::new("tar")
            .arg("-xzmf")
            .arg(file)
            .arg("-C")
            .arg(folder),
    )
}

/// A workspace of the unpacked packages, which find each other as if they came from the registry.
fn workspace(packages: &[Package]) -> String {
    let members: Vec<_> = packages
        .iter()
        .map(|package| format!("\"{}\"", package.full_name()))
        .collect();
    let mut text = format!(
        "[workspace]\nresolver = \"3\"\nmembers = [{}]\n\n[patch.crates-io]\n",
        members.join(", ")
    );
    for package in packages {
        text += &format!(
            "{} = {{ path = \"{}\" }}\n",
            package.name,
            package.full_name()
        );
    }
    text
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))
}

fn write(file: &Path, text: String) -> Result<()> {
    fs::write(file, text).map_err(|error| format!("cannot write {}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packages_find_each_other_in_their_workspace() {
        let package = |name: &str| Package {
            name: name.to_owned(),
            version: "1.2.3".to_owned(),
            ..Package::default()
        };
        assert_eq!(
            workspace(&[package("a"), package("b")]),
            "[workspace]\nresolver = \"3\"\nmembers = [\"a-1.2.3\", \"b-1.2.3\"]\n\n[patch.crates-io]\n\
             a = { path = \"a-1.2.3\" }\nb = { path = \"b-1.2.3\" }\n"
        );
    }
}
