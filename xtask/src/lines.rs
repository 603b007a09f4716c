//! `cargo xtask lines`: how much code there is, at any commit, counted the same way.

mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use self::scan::Scanned;
use crate::cargo;
use crate::process::{self, Result};

/// Count the lines of code of every member of the workspace, per crate and in total.
///
/// A line of code has at least a part of a token that is neither a comment nor a doc comment. Counted are the Rust
/// files that a crate's `src/lib.rs`, `src/main.rs`, `src/bin/*.rs` or `build.rs` reach through `mod`, xtask's
/// included. Not counted is what only tests reach: items under `#[cfg(test)]` and the files of such modules, and
/// the folders `tests`, `benches` and `examples`. Other languages, and packages outside the workspace (`fuzz`), are
/// not counted.
///
/// Functions over 100 lines (from `fn` to the closing brace) and files over 600 (without their test items) are
/// listed after the table.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Options {
    /// Count this commit instead of the working tree; nothing is checked out
    #[arg(long, value_name = "COMMIT")]
    at: Option<String>,
    /// Count this commit as well, and show the difference
    #[arg(long, value_name = "COMMIT")]
    since: Option<String>,
}

/// The longest function and file that are not listed.
const LONGEST_FUNCTION: usize = 100;
const LONGEST_FILE: usize = 600;

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let now = Count::of(&Tree::at(options.at.as_deref())?)?;
    let before = match options.since.as_deref() {
        Some(commit) => Some(Count::of(&Tree::at(Some(commit))?)?),
        None => None,
    };
    print!(
        "{}",
        table(&now.crates, before.as_ref().map(|count| &count.crates))
    );
    for long in &now.long {
        println!("{long}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Lines of code by crate, and what is longer than it should be.
#[derive(Debug, Default)]
struct Count {
    crates: BTreeMap<String, usize>,
    long: Vec<String>,
}

impl Count {
    fn of(tree: &Tree) -> Result<Self> {
        let mut count = Self::default();
        for member in members(&tree.read(Path::new("Cargo.toml"))?)? {
            let manifest = tree.read(&member.join("Cargo.toml"))?;
            let name = package_name(&manifest)
                .ok_or_else(|| format!("{}: no name in Cargo.toml", member.display()))?;
            let mut lines = 0;
            for (file, scanned) in reached(tree, roots(tree, &member))? {
                lines += scanned.code;
                count.long.extend(long(&file, &scanned));
            }
            count.crates.insert(name.to_owned(), lines);
        }
        Ok(count)
    }
}

fn long(file: &Path, scanned: &Scanned) -> Vec<String> {
    let mut long = Vec::new();
    if scanned.lines > LONGEST_FILE {
        long.push(format!("{}: {} lines", file.display(), scanned.lines));
    }
    for function in &scanned.functions {
        if function.lines > LONGEST_FUNCTION {
            let (name, line) = (&function.name, function.line);
            long.push(format!(
                "{}:{line}: fn {name}: {} lines",
                file.display(),
                function.lines
            ));
        }
    }
    long
}

/// The words that paths begin with in a crate of the working tree: every crate that it uses is among them.
pub(crate) fn path_starts(member: &Path) -> Result<BTreeSet<String>> {
    let tree = Tree::at(None)?;
    let files = reached(&tree, roots(&tree, member))?;
    Ok(files
        .into_values()
        .flat_map(|scanned| scanned.path_starts)
        .collect())
}

/// The files of the working tree, or of a commit.
#[derive(Debug)]
struct Tree {
    commit: Option<String>,
    files: BTreeSet<PathBuf>,
}

impl Tree {
    fn at(commit: Option<&str>) -> Result<Self> {
        let mut list = match commit {
            Some(_) => cargo::git("ls-tree -r -z --name-only"),
            None => cargo::git("ls-files -z --cached --others --exclude-standard"),
        };
        let files = process::output(list.args(commit))?;
        Ok(Self {
            commit: commit.map(str::to_owned),
            files: files.split_terminator('\0').map(PathBuf::from).collect(),
        })
    }

    fn read(&self, file: &Path) -> Result<String> {
        match &self.commit {
            Some(commit) => {
                let what = format!("{commit}:{}", file.display());
                process::output(cargo::git("show").arg(what))
            }
            None => fs::read_to_string(cargo::root().join(file))
                .map_err(|error| format!("cannot read {}: {error}", file.display())),
        }
    }
}

/// The folders of the workspace's members, the root's own package first.
fn members(manifest: &str) -> Result<Vec<PathBuf>> {
    let list = manifest
        .split_once("\nmembers = [")
        .and_then(|(_, rest)| rest.split_once(']'))
        .ok_or("Cargo.toml: no list of members")?
        .0;
    let mut members = vec![PathBuf::new()];
    members.extend(list.split('"').skip(1).step_by(2).map(PathBuf::from));
    Ok(members)
}

fn package_name(manifest: &str) -> Option<&str> {
    let (_, package) = manifest.split_once("[package]")?;
    let line = package
        .lines()
        .find_map(|line| line.strip_prefix("name = "))?;
    Some(line.trim().trim_matches('"'))
}

/// The files from which a crate is compiled.
fn roots(tree: &Tree, member: &Path) -> Vec<PathBuf> {
    let programs = member.join("src/bin");
    let named = ["src/lib.rs", "src/main.rs", "build.rs"].map(|name| member.join(name));
    let mut roots: Vec<_> = tree.files.iter().cloned().collect();
    roots.retain(|file| named.contains(file) || file.parent() == Some(&programs));
    roots
}

/// These files, and those that they reach through `mod`, outside tests.
fn reached(tree: &Tree, roots: Vec<PathBuf>) -> Result<BTreeMap<PathBuf, Scanned>> {
    let mut files = BTreeMap::new();
    // With each, the folder where its modules are.
    let mut next: Vec<_> = roots
        .into_iter()
        .map(|root| {
            let folder = root.parent().map(Path::to_owned).unwrap_or_default();
            (root, folder)
        })
        .collect();
    while let Some((file, folder)) = next.pop() {
        let scanned = Scanned::of(&tree.read(&file)?)
            .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        for module in &scanned.modules {
            let inner = folder.join(module);
            let beside = inner.with_extension("rs");
            let found = [beside, inner.join("mod.rs")]
                .into_iter()
                .find(|candidate| tree.files.contains(candidate));
            let found =
                found.ok_or_else(|| format!("{}: no file of module `{module}`", file.display()))?;
            next.push((found, inner));
        }
        files.insert(file, scanned);
    }
    Ok(files)
}

/// One line for each crate that is there now or was there before, and the total.
fn table(now: &BTreeMap<String, usize>, before: Option<&BTreeMap<String, usize>>) -> String {
    let names: BTreeSet<_> = now
        .keys()
        .chain(before.into_iter().flat_map(BTreeMap::keys))
        .collect();
    let lines_of =
        |count: &BTreeMap<String, usize>, name: &String| count.get(name).copied().unwrap_or(0);
    let row = |name: &str, now: usize, before: Option<usize>| match before {
        Some(before) => {
            let difference = i128::try_from(now).unwrap_or(0) - i128::try_from(before).unwrap_or(0);
            format!("{name:<20} {before:>7} {now:>7} {difference:>+7}\n")
        }
        None => format!("{name:<20} {now:>7}\n"),
    };
    let mut text = String::new();
    for name in names {
        text += &row(
            name,
            lines_of(now, name),
            before.map(|count| lines_of(count, name)),
        );
    }
    text + &row(
        "total",
        now.values().sum(),
        before.map(|count| count.values().sum()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_members_are_the_root_and_those_of_the_list() {
        let manifest = "[workspace]\nmembers = [\"a\", \"b/c\"]\nexclude = [\"fuzz\"]\n\n[package]\nname = \"x\"\n";
        assert_eq!(
            members(manifest).unwrap(),
            ["", "a", "b/c"].map(PathBuf::from)
        );
        let lines = manifest.replace("[\"a\", \"b/c\"]", "[\n  \"a\",\n  \"b/c\",\n]");
        assert_eq!(members(&lines).unwrap(), members(manifest).unwrap());
        assert_eq!(package_name(manifest), Some("x"));
        assert!(members("[package]\n").is_err());
    }

    #[test]
    fn every_file_of_this_program_but_the_tests_is_reached() {
        let tree = Tree::at(None).unwrap();
        let files = reached(&tree, roots(&tree, Path::new("xtask"))).unwrap();
        for file in [
            "xtask/src/main.rs",
            "xtask/src/lines/scan.rs",
            "xtask/src/gates/deny.rs",
        ] {
            assert!(files.contains_key(Path::new(file)), "{file}");
        }
        // A file of a module under `#[cfg(test)]` is not.
        let core = reached(&tree, roots(&tree, Path::new("meshca-core"))).unwrap();
        assert!(core.contains_key(Path::new("meshca-core/src/verify/path.rs")));
        assert!(!core.contains_key(Path::new("meshca-core/src/secret/dir/tests.rs")));
    }

    #[test]
    fn the_difference_is_that_of_the_crates_and_of_the_total() {
        let before = BTreeMap::from([("a".to_owned(), 10), ("gone".to_owned(), 5)]);
        let now = BTreeMap::from([("a".to_owned(), 7), ("new".to_owned(), 1)]);
        let table = table(&now, Some(&before));
        let rows: Vec<Vec<_>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            rows,
            [
                ["a", "10", "7", "-3"],
                ["gone", "5", "0", "-5"],
                ["new", "0", "1", "+1"],
                ["total", "15", "8", "-7"]
            ]
        );
    }

    #[test]
    fn what_is_too_long_is_listed() {
        let body = "    let _ = 1;\n".repeat(LONGEST_FUNCTION);
        let text = format!("fn short() {{}}\nfn long() {{\n{body}}}\n");
        let listed = |text: &str| long(Path::new("a.rs"), &Scanned::of(text).unwrap());
        assert_eq!(listed(&text), ["a.rs:2: fn long: 102 lines"]);
        let text = "// a comment\n".repeat(LONGEST_FILE + 1);
        assert_eq!(listed(&text), ["a.rs: 601 lines"]);
        assert!(listed(&format!("#[cfg(test)]\nmod tests {{\n{text}}}\n")).is_empty());
    }
}
