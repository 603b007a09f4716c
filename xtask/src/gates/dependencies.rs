//! What each crate must never link, read off `cargo tree`, and what it would link for nothing, read off its code.

use std::collections::BTreeSet;

use super::{LeftOut, unless};
use crate::cargo::{self, cargo};
use crate::lines;
use crate::process::{self, Result};

/// Runtimes, HTTP and gRPC: who embeds a crate without them chooses them alone.
const NETWORK: &[&str] = &[
    "tokio",
    "tokio-*",
    "mio",
    "async-std",
    "smol",
    "h2",
    "hyper",
    "hyper-*",
    "reqwest",
    "ureq",
    "tonic",
    "tonic-*",
];
/// The Kubernetes client and the resource types.
const KUBE: &[&str] = &["kube", "kube-*", "k8s-openapi"];
/// The AWS SDK, but not AWS-LC, the cryptographic library: that shares only the prefix.
const AWS: &[&str] = &["aws-*", "!aws-lc-rs", "!aws-lc-sys"];
/// The Vault client.
const VAULT: &[&str] = &["vaultrs"];
/// TLS connections: who wants them chooses how.
const TLS: &[&str] = &["rustls", "tokio-rustls", "native-tls", "openssl"];
/// Our own providers.
const PROVIDERS: &[&str] = &["meshca-vault", "meshca-certmanager", "meshca-acm"];

/// Our own crates that wait for something.
const ENGINE: &[&str] = &["meshca-identity", "meshca-xds"];

/// One crate, and what it never links.
struct Row {
    package: &'static str,
    features: &'static [Features],
    never: &'static [&'static [&'static str]],
}

/// The flag of cargo for these features.
type Features = Option<&'static str>;

const DEFAULT: &[Features] = &[None];
const BOTH: &[Features] = &[None, Some("--all-features")];

const fn row(
    package: &'static str,
    features: &'static [Features],
    never: &'static [&'static [&'static str]],
) -> Row {
    Row {
        package,
        features,
        never,
    }
}

/// The "never links" column of `ARCHITECTURE.md`. Every published crate has a row; a row for a crate
/// that is still to come waits for it.
const TABLE: &[Row] = &[
    row("meshca-core", BOTH, &[NETWORK, KUBE, AWS, VAULT]),
    row("meshca-vault", BOTH, &[KUBE, AWS]),
    row("meshca-certmanager", BOTH, &[AWS, VAULT]),
    row("meshca-acm", BOTH, &[KUBE, VAULT]),
    // Resources are explained, and migrations planned, without what a control plane runs.
    row(
        "meshca-policy",
        BOTH,
        &[NETWORK, TLS, KUBE, AWS, VAULT, PROVIDERS, ENGINE],
    ),
    row("meshca-identity", BOTH, &[KUBE, AWS, VAULT, PROVIDERS]),
    row("meshca-xds", BOTH, &[KUBE, AWS, VAULT, PROVIDERS]),
    row("meshca-wrap", BOTH, &[KUBE, AWS, VAULT, PROVIDERS]),
    // Third parties test their own issuers with it, so it must not bring ours along.
    row("meshca-testkit", DEFAULT, &[KUBE, AWS, VAULT, PROVIDERS]),
    // The facade brings in what is asked for; nobody asked yet.
    row("meshca", DEFAULT, &[NETWORK, KUBE, AWS, VAULT, PROVIDERS]),
];

pub(super) fn holds() -> Result<LeftOut> {
    let packages = cargo::packages()?;
    let published: Vec<_> = packages
        .iter()
        .filter(|package| package.published)
        .map(|package| package.name.clone())
        .collect();
    let mut problems = without_row(&published, TABLE);
    for package in packages {
        let folder = package.folder()?;
        let used = lines::path_starts(&folder)?;
        problems.extend(unused(&package.links, &used).map(|name| {
            format!(
                "{} depends on `{name}` and does not use it: remove it",
                package.name
            )
        }));
    }
    for row in TABLE {
        if !published.iter().any(|package| package == row.package) {
            println!("  {}: not in the workspace yet", row.package);
            continue;
        }
        for features in row.features {
            let tree = tree(row.package, *features)?;
            let found = forbidden(&tree, row.never);
            println!(
                "  {} with {}: {} crates",
                row.package,
                features.map_or("default features", |_| "all features"),
                crates(&tree).len()
            );
            problems.extend(found.iter().map(|name| {
                let Row { package, .. } = row;
                format!(
                    "{package} with {} links `{name}`, which it must never do; `cargo tree -p {package} \
                     -e normal --target all {} -i {name}` shows how it got in",
                    features.map_or("default features", |_| "all features"),
                    features.unwrap_or_default(),
                )
            }));
        }
    }
    unless(&problems)
}

/// One crate per line, for every platform: `name v1.2.3 …`.
fn tree(package: &str, features: Features) -> Result<String> {
    let tree = "tree --locked --edges normal --target all --prefix none --format {p}";
    process::output(cargo(tree).args(["--package", package]).args(features))
}

/// The names of the crates in a tree.
fn crates(tree: &str) -> BTreeSet<&str> {
    tree.lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

/// The crates in a tree that the patterns forbid: `name`, `prefix-*`, or `!name` for an exception.
fn forbidden<'a>(tree: &'a str, never: &[&[&str]]) -> BTreeSet<&'a str> {
    let patterns = || never.iter().copied().flatten();
    let is_excepted = |name: &str| patterns().any(|it| it.strip_prefix('!') == Some(name));
    let is_forbidden = |name: &str| {
        patterns().any(|it| match it.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => *it == name,
        })
    };
    let mut crates = crates(tree);
    crates.retain(|name| is_forbidden(name) && !is_excepted(name));
    crates
}

/// Dependencies that no path in the code begins with.
fn unused<'a>(links: &'a [String], used: &BTreeSet<String>) -> impl Iterator<Item = &'a String> {
    links.iter().filter(|name| !used.contains(*name))
}

/// Published crates that nobody wrote a row for, such as after a change of name.
fn without_row(published: &[String], table: &[Row]) -> Vec<String> {
    published
        .iter()
        .filter(|package| !table.iter().any(|row| row.package == package.as_str()))
        .map(|package| {
            format!("{package} has no row in the table of `xtask/src/gates/dependencies.rs`: say what it never links")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_parses_and_says_something() {
        for row in TABLE {
            assert!(
                !row.features.is_empty() && !row.never.is_empty(),
                "{}",
                row.package
            );
            for pattern in row.never.iter().copied().flatten() {
                assert!(is_pattern(pattern), "{}: `{pattern}`", row.package);
            }
        }
        let names: BTreeSet<_> = TABLE.iter().map(|row| row.package).collect();
        assert_eq!(names.len(), TABLE.len(), "a crate has two rows");
    }

    /// A prefix is never an exception.
    fn is_pattern(text: &str) -> bool {
        let name = text.strip_prefix('!').or_else(|| text.strip_suffix('*'));
        let name = name.unwrap_or(text);
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        !name.is_empty() && name.chars().all(fits)
    }

    #[test]
    fn patterns_are_names_prefixes_and_exceptions() {
        for text in ["tokio", "aws-*", "!aws-lc-rs"] {
            assert!(is_pattern(text), "{text}");
        }
        for text in ["", "*", "!", "a*b", "a b", "!!a", "A", "!a-*"] {
            assert!(!is_pattern(text), "{text}");
        }
    }

    #[test]
    fn what_is_forbidden_is_found_in_a_tree() {
        let tree = "meshca-core v0.1.0 (/somewhere/meshca-core)\n\
                    async-trait v0.1.92 (proc-macro)\n\
                    aws-lc-rs v1.19.0\n\
                    aws-lc-sys v0.47.0\n\
                    aws-sdk-acmpca v1.126.0\n\
                    tokio v1.54.0\n\
                    tokio v1.54.0 (*)\n\
                    tokio-macros v2.7.2 (proc-macro)\n\
                    hyperloglog v1.0.0\n\
                    tokiolike v1.0.0\n";
        for (never, found) in [
            (&[AWS][..], &["aws-sdk-acmpca"][..]),
            (&[NETWORK], &["tokio", "tokio-macros"]),
            (
                &[NETWORK, AWS],
                &["aws-sdk-acmpca", "tokio", "tokio-macros"],
            ),
            (&[KUBE, VAULT, PROVIDERS], &[]),
        ] {
            assert_eq!(
                forbidden(tree, never).into_iter().collect::<Vec<_>>(),
                found
            );
        }
        assert!(forbidden("", &[NETWORK]).is_empty());
    }

    #[test]
    fn a_dependency_that_is_not_used_is_noticed() {
        let links = ["serde".to_owned(), "tower".to_owned()];
        let used = BTreeSet::from(["serde".to_owned(), "std".to_owned()]);
        assert_eq!(unused(&links, &used).collect::<Vec<_>>(), ["tower"]);
    }

    #[test]
    fn a_published_crate_without_a_row_is_noticed() {
        let published = ["meshca-core".to_owned(), "meshca-consul".to_owned()];
        let problems = without_row(&published, TABLE);
        assert_eq!(problems.len(), 1);
        assert!(problems.concat().starts_with("meshca-consul has no row"));
    }
}
