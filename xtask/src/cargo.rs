//! Calling cargo, and what it says about the workspace.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::process::{self, Result};

/// `cargo` in the workspace's root, with the toolchain this task was started with, and these arguments between spaces.
pub(crate) fn cargo(arguments: &str) -> Command {
    let mut command = Command::new("cargo");
    command
        .current_dir(root())
        .args(arguments.split_whitespace());
    command
}

/// A checkout of the workspace, and where it is built.
pub(crate) struct Tree {
    root: PathBuf,
    /// Its own target directory; without one, the usual one.
    target: Option<PathBuf>,
}

impl Tree {
    /// This checkout.
    pub(crate) fn here() -> Self {
        Self {
            root: root(),
            target: None,
        }
    }

    /// Another checkout, which is built into a folder of its own.
    pub(crate) fn at(root: PathBuf, target: PathBuf) -> Self {
        Self {
            root,
            target: Some(target),
        }
    }

    fn cargo(&self, arguments: &str) -> Command {
        let mut command = cargo(arguments);
        command.current_dir(&self.root);
        if let Some(target) = &self.target {
            command.env("CARGO_TARGET_DIR", target);
        }
        command
    }
}

/// The workspace's root: where this crate's directory is.
pub(crate) fn root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

/// `git` in the workspace's root, with these arguments between spaces.
pub(crate) fn git(arguments: &str) -> Command {
    let mut git = Command::new("git");
    // In CI another user may own the clone; reading it is harmless all the same.
    git.current_dir(root())
        .args(["-c", "safe.directory=*"])
        .args(arguments.split_whitespace());
    git
}

/// A member of the workspace.
#[derive(Debug, Default)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// Its `Cargo.toml`.
    pub(crate) manifest: PathBuf,
    /// The oldest Rust it promises to build with.
    pub(crate) rust_version: Option<String>,
    /// Whether it may go to a registry.
    pub(crate) published: bool,
    /// The crates that its library may use, by the names that its code has for them.
    pub(crate) links: Vec<String>,
    /// The features that docs.rs builds it with, as arguments of cargo.
    pub(crate) docs_features: Vec<String>,
}

impl Package {
    /// What a registry calls it.
    pub(crate) fn full_name(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }

    /// Its folder, from the workspace's root.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        let folder = self
            .manifest
            .parent()
            .and_then(|folder| folder.strip_prefix(root()).ok());
        folder
            .map(PathBuf::from)
            .ok_or_else(|| format!("{} is outside the workspace", self.name))
    }
}

fn metadata() -> Result<Value> {
    let text = process::output(&mut cargo("metadata --format-version 1 --no-deps --locked"))?;
    serde_json::from_str(&text)
        .map_err(|error| format!("cannot read the answer of `cargo metadata`: {error}"))
}

/// All members of the workspace.
pub(crate) fn packages() -> Result<Vec<Package>> {
    let metadata = metadata()?;
    let packages = metadata
        .get("packages")
        .and_then(Value::as_array)
        .ok_or("the answer of `cargo metadata` has no packages")?;
    packages.iter().map(package).collect()
}

fn package(value: &Value) -> Result<Package> {
    let text = |field: &str| value.get(field).and_then(Value::as_str);
    Ok(Package {
        name: text("name")
            .ok_or("`cargo metadata` lists a package without a name")?
            .to_owned(),
        version: text("version").unwrap_or_default().to_owned(),
        docs_features: docs_features(value),
        manifest: text("manifest_path")
            .ok_or("`cargo metadata` lists a package without a manifest")?
            .into(),
        rust_version: text("rust_version").map(str::to_owned),
        // `publish = false` is an empty list of registries; absent means any.
        published: value
            .get("publish")
            .is_none_or(|to| to.as_array().is_none_or(|to| !to.is_empty())),
        links: list(value.get("dependencies"))
            .filter(|dependency| dependency.get("kind").is_some_and(Value::is_null))
            .filter_map(|dependency| {
                let rename = dependency.get("rename").filter(|name| name.is_string());
                let name = rename.or_else(|| dependency.get("name"))?.as_str()?;
                Some(name.replace('-', "_"))
            })
            .collect(),
    })
}

fn docs_features(package: &Value) -> Vec<String> {
    let Some(docs) = package.pointer("/metadata/docs/rs") else {
        return Vec::new();
    };
    if docs.get("all-features").and_then(Value::as_bool) == Some(true) {
        return vec!["--all-features".to_owned()];
    }
    list(docs.get("features"))
        .filter_map(Value::as_str)
        .flat_map(|name| ["--features".to_owned(), name.to_owned()])
        .collect()
}

fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

/// The directory that cargo builds into.
pub(crate) fn target_directory() -> Result<PathBuf> {
    metadata()?
        .get("target_directory")
        .and_then(Value::as_str)
        .map(PathBuf::from)
        .ok_or_else(|| "the answer of `cargo metadata` names no target directory".to_owned())
}

/// Builds a benchmark of the facade and returns its program. Quickly: with what the tests are built of;
/// otherwise as a release.
pub(crate) fn bench_executable(
    tree: &Tree,
    name: &str,
    features: &[&str],
    quickly: bool,
) -> Result<PathBuf> {
    let mut command = tree.cargo(BUILD);
    command.args(["--bench", name]);
    if quickly {
        command.args(["--workspace", "--all-features"]);
    } else {
        command
            .args(["--package", "meshca", "--profile", "bench"])
            .args(["--features", &features.join(",")]);
    }
    built(&mut command, name)
}

/// Builds an example of a member, and returns its program.
pub(crate) fn example_executable(package: &str, name: &str) -> Result<PathBuf> {
    built(
        cargo(BUILD).args(["--package", package, "--example", name]),
        name,
    )
}

/// Builds, and says in JSON where programs are.
const BUILD: &str = "build --locked --message-format json-render-diagnostics";

fn built(command: &mut Command, name: &str) -> Result<PathBuf> {
    let text = process::output(command)?;
    executable(&text, name).ok_or_else(|| format!("`{}` built no program", process::line(command)))
}

/// The program of this target in the messages of a build.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let target = message.get("target")?;
        let ours = target.get("name")?.as_str() == Some(name);
        let path = message.get("executable")?.as_str()?;
        ours.then(|| path.into())
    })
}

/// The toolchain of the oldest Rust that every member promises to build with.
pub(crate) fn msrv_toolchain() -> Result<String> {
    let packages = packages()?;
    let mut versions: Vec<_> = packages
        .iter()
        .map(|package| package.rust_version.as_deref())
        .collect();
    versions.sort_unstable();
    versions.dedup();
    match versions.as_slice() {
        [Some(version)] => Ok(toolchain_name(version)),
        [None] | [] => Err("no package states its `rust-version`".to_owned()),
        _ => Err("the packages differ in their `rust-version`: write `rust-version.workspace = true` in each".to_owned()),
    }
}

/// `1.89` names a moving toolchain for rustup; `1.89.0` is always the same one.
fn toolchain_name(rust_version: &str) -> String {
    match rust_version.split('.').count() {
        2 => format!("{rust_version}.0"),
        _ => rust_version.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toolchains_are_named_in_full() {
        assert_eq!(toolchain_name("1.89"), "1.89.0");
        assert_eq!(toolchain_name("1.89.1"), "1.89.1");
    }

    #[test]
    fn the_program_of_a_benchmark_is_found_in_what_cargo_says() {
        let messages = concat!(
            "not JSON\n",
            r#"{"reason":"compiler-artifact","target":{"name":"speed"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"other"},"executable":"target/other"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"speed"},"executable":"target/speed-1"}"#,
            "\n",
        );
        assert_eq!(executable(messages, "speed"), Some("target/speed-1".into()));
        assert_eq!(executable(messages, "none"), None);
    }

    #[test]
    fn a_library_links_what_is_no_dev_dependency_under_its_own_name_for_it() {
        let json = r#"{"name":"a","manifest_path":"/a/Cargo.toml","dependencies":[
            {"name":"serde-json","kind":null,"rename":null},
            {"name":"rustls-webpki","kind":null,"rename":"webpki"},
            {"name":"tempfile","kind":"dev","rename":null}]}"#;
        let package = package(&serde_json::from_str(json).unwrap()).unwrap();
        assert_eq!(package.links, ["serde_json", "webpki"]);
    }

    #[test]
    fn docs_are_built_with_the_features_that_the_manifest_says() {
        for (docs, arguments) in [
            ("{}", &[][..]),
            (
                r#"{"docs":{"rs":{"rustdoc-args":["--cfg","docsrs"]}}}"#,
                &[],
            ),
            (
                r#"{"docs":{"rs":{"all-features":true}}}"#,
                &["--all-features"],
            ),
            (
                r#"{"docs":{"rs":{"features":["a","b"]}}}"#,
                &["--features", "a", "--features", "b"],
            ),
        ] {
            let package = serde_json::from_str(&format!(r#"{{"metadata":{docs}}}"#)).unwrap();
            assert_eq!(docs_features(&package), arguments, "{docs}");
        }
    }

    #[test]
    fn an_empty_publish_list_means_not_published() {
        for (publish, published) in [("null", true), ("[\"crates-io\"]", true), ("[]", false)] {
            let json = format!(
                r#"{{"name":"a","manifest_path":"/a/Cargo.toml","rust_version":null,"publish":{publish}}}"#
            );
            let package = package(&serde_json::from_str(&json).unwrap()).unwrap();
            assert_eq!(package.published, published, "publish = {publish}");
        }
    }
}
