//! What no compiler looks at: files that name somebody's machine, and crates that the workspace's
//! lints do not reach. (That every `#[allow]` has a reason is a lint.)

use std::fs;

use super::{LeftOut, unless};
use crate::cargo;
use crate::process::{self, Result};

/// Directories under `/` that are somebody's own, or that two runs would fight over. A path below one
/// is right on one machine only.
const PERSONAL: &[&str] = &[
    "Users",
    "build",
    "builds",
    "home",
    "mnt",
    "root",
    "tmp",
    "work",
    "workspace",
];

pub(super) fn holds() -> Result<LeftOut> {
    let mut problems = Vec::new();
    let files = process::output(&mut cargo::git("ls-files -z"))?;
    for name in files.split_terminator('\0') {
        // Listed, but deleted in the working tree, or a link to a directory: nothing to read.
        let Ok(bytes) = fs::read(cargo::root().join(name)) else {
            continue;
        };
        for (number, line) in String::from_utf8_lossy(&bytes).lines().enumerate() {
            if let Some(path) = machine_path(line) {
                problems.push(format!(
                    "{name}:{}: `{path}…` is a path of one machine; make it relative, or use a temporary directory",
                    number + 1,
                ));
            }
        }
    }
    for package in cargo::packages()? {
        let manifest = fs::read_to_string(&package.manifest)
            .map_err(|error| format!("cannot read {}: {error}", package.manifest.display()))?;
        if !inherits_lints(&manifest) {
            problems.push(format!(
                "{} does not inherit the workspace's lints; add `[lints]` with `workspace = true`",
                package.manifest.display(),
            ));
        }
    }
    unless(&problems)
}

/// The beginning of an absolute path below a personal directory. Within a longer path or URL the
/// same letters are harmless: `pki/root/generate`.
fn machine_path(line: &str) -> Option<String> {
    line.match_indices('/').find_map(|(at, _)| {
        let before = line.get(..at)?.chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || "_-.~/*})>]$".contains(c)) {
            return None;
        }
        let rest = line.get(at + 1..)?;
        let directory = PERSONAL.iter().find(|directory| {
            rest.strip_prefix(**directory)
                .and_then(|rest| rest.strip_prefix('/'))
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_alphanumeric() || c == '.'))
        })?;
        Some(format!("/{directory}/"))
    })
}

fn inherits_lints(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(str::trim);
    lines.any(|line| line == "[lints]") && lines.next() == Some("workspace = true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_a_machine_are_found_and_paths_of_a_ca_are_not() {
        // Put together here, so that the gate does not find them in this file.
        for directory in PERSONAL {
            let path = ["", directory, "someone"].join("/");
            for line in [
                path.clone(),
                format!("see {path}/notes"),
                format!("let p = \"{path}\";"),
            ] {
                assert_eq!(
                    machine_path(&line),
                    Some(format!("/{directory}/")),
                    "{line}"
                );
            }
        }
        for line in [
            "vault write pki/root/generate/internal",
            "https://vault.example/v1/pki/root/sign-intermediate",
            "format!(\"{mount}/root/generate\")",
            "$HOME/build/out",
            "../home/notes",
            "spiffe://example.org/home/kitchen",
            "a / b, and/or",
            "`/home/`",
        ] {
            assert_eq!(machine_path(line), None, "{line}");
        }
    }

    #[test]
    fn a_manifest_without_the_workspaces_lints_is_found() {
        assert!(inherits_lints(
            "[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n"
        ));
        assert!(!inherits_lints("[package]\nname = \"a\"\n"));
        assert!(!inherits_lints("[lints]\nrust.unsafe_code = \"warn\"\n"));
    }
}
