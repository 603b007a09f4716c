//! What each crate must never link, read off `cargo tree`, and what it would link for nothing, read off its code.

use std::collections::BTreeSet;

use super::LeftOut;
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Features {
    Default,
    All,
}

use Features::{All, Default};

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
    row("meshca-core", &[Default, All], &[NETWORK, KUBE, AWS, VAULT]),
    row("meshca-vault", &[Default, All], &[KUBE, AWS]),
    row("meshca-certmanager", &[Default, All], &[AWS, VAULT]),
    row("meshca-acm", &[Default, All], &[KUBE, VAULT]),
    // Resources are explained, and migrations planned, without what a control plane runs.
    row(
        "meshca-policy",
        &[Default, All],
        &[NETWORK, TLS, KUBE, AWS, VAULT, PROVIDERS, ENGINE],
    ),
    row(
        "meshca-identity",
        &[Default, All],
        &[KUBE, AWS, VAULT, PROVIDERS],
    ),
    row(
        "meshca-xds",
        &[Default, All],
        &[KUBE, AWS, VAULT, PROVIDERS],
    ),
    row(
        "meshca-wrap",
        &[Default, All],
        &[KUBE, AWS, VAULT, PROVIDERS],
    ),
    // Third parties test their own issuers with it, so it must not bring ours along.
    row("meshca-testkit", &[Default], &[KUBE, AWS, VAULT, PROVIDERS]),
    // The facade brings in what is asked for; nobody asked yet.
    row(
        "meshca",
        &[Default],
        &[NETWORK, KUBE, AWS, VAULT, PROVIDERS],
    ),
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
                features.text(),
                crates(&tree).len()
            );
            problems.extend(found.iter().map(|name| {
                let Row { package, .. } = row;
                format!(
                    "{package} with {} links `{name}`, which it must never do; `cargo tree -p {package} \
                     -e normal --target all {} -i {name}` shows how it got in",
                    features.text(),
                    features.flag().unwrap_or_default(),
                )
            }));
        }
    }
    if problems.is_empty() {
        Ok(Vec::new())
    } else {
        Err(problems.join("\n"))
    }
}

impl Features {
    fn flag(self) -> Option<&'static str> {
        match self {
            Default => None,
            All => Some("--all-features"),
        }
    }

    fn text(self) -> &'static str {
        match self {
            Default => "default features",
            All => "all features",
        }
    }
}

/// One crate per line, for every platform: `name v1.2.3 …`.
fn tree(package: &str, features: Features) -> Result<String> {
    let mut command = cargo();
    command.args([
        "tree",
        "--locked",
        "--package",
        package,
        "--edges",
        "normal",
        "--target",
        "all",
    ]);
    command
        .args(["--prefix", "none", "--format", "{p}"])
        .args(features.flag());
    process::output(&mut command)
}

/// The names of the crates in a tree.
fn crates(tree: &str) -> BTreeSet<&str> {
    tree.lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

/// The crates in a tree that the patterns forbid.
fn forbidden<'a>(tree: &'a str, never: &[&[&str]]) -> BTreeSet<&'a str> {
    let any = |name: &str, wanted: bool| {
        never
            .iter()
            .copied()
            .flatten()
            .map(|text| Pattern::parse(text))
            .any(|pattern| {
                pattern.is_some_and(|pattern| pattern.forbids == wanted && pattern.matches(name))
            })
    };
    crates(tree)
        .into_iter()
        .filter(|name| any(name, true) && !any(name, false))
        .collect()
}

/// `name`, `prefix-*`, or `!name` for an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pattern<'a> {
    forbids: bool,
    name: &'a str,
    prefix: bool,
}

impl<'a> Pattern<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (forbids, text) = match text.strip_prefix('!') {
            Some(rest) => (false, rest),
            None => (true, text),
        };
        let (name, prefix) = match text.strip_suffix('*') {
            Some(name) => (name, true),
            None => (text, false),
        };
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        (!name.is_empty() && name.chars().all(fits)).then_some(Self {
            forbids,
            name,
            prefix,
        })
    }

    fn matches(self, crate_name: &str) -> bool {
        if self.prefix {
            crate_name.starts_with(self.name)
        } else {
            crate_name == self.name
        }
    }
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
                assert!(
                    Pattern::parse(pattern).is_some(),
                    "{}: `{pattern}`",
                    row.package
                );
            }
        }
        let names: BTreeSet<_> = TABLE.iter().map(|row| row.package).collect();
        assert_eq!(names.len(), TABLE.len(), "a crate has two rows");
    }

    #[test]
    fn patterns_are_names_prefixes_and_exceptions() {
        for (text, forbids, name, prefix) in [
            ("tokio", true, "tokio", false),
            ("aws-*", true, "aws-", true),
            ("!aws-lc-rs", false, "aws-lc-rs", false),
        ] {
            assert_eq!(
                Pattern::parse(text),
                Some(Pattern {
                    forbids,
                    name,
                    prefix
                }),
                "{text}"
            );
        }
        for text in ["", "*", "!", "a*b", "a b", "!!a", "A"] {
            assert_eq!(Pattern::parse(text), None, "{text}");
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
