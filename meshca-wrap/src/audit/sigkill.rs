//! A process that writes records is killed, again and again.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;

/// Where the child is to write. Only the test that starts it sets this.
const FILE: &str = "MESHCA_TEST_AUDIT_FILE";
const CHILD: &str = "audit::sigkill::child_writes_until_it_is_killed";

/// Not a test: what [`no_line_is_torn`] starts. Does nothing on its own.
#[test]
fn child_writes_until_it_is_killed() {
    let Some(path) = std::env::var_os(FILE) else {
        return;
    };
    let sink = JsonLinesSink::open(path, SyncPolicy::System).unwrap();
    assert_eq!(sink.repaired(), None, "the one before has left a torn line");
    let process = std::process::id();
    let mut acknowledge = std::io::stdout();
    // Records of all lengths, made cheaply, so that it is mostly in `write` when it is killed.
    for number in 0usize.. {
        let filling = "x".repeat(number * 37 % 3000);
        let line = format!("{{\"name\":\"{process}-{number}\",\"filling\":\"{filling}\"}}\n");
        sink.append(line.into_bytes()).unwrap();
        if number % 50 == 0 {
            writeln!(acknowledge, "kept {process}-{number}").unwrap();
        }
    }
}

#[test]
fn no_line_is_torn() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let mut kept = BTreeSet::new();
    for round in 1..=20 {
        kept.extend(kill_after(&path, round));
        let text = std::fs::read_to_string(&path).unwrap();
        let (lines, rest) = text.rsplit_once('\n').unwrap();
        assert!(rest.chars().all(|char| char == ' '), "torn: {rest:?}");
        let found: BTreeSet<String> = lines
            .split('\n')
            .map(|line| {
                let json: serde_json::Value =
                    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
                json["name"].as_str().unwrap().to_owned()
            })
            .collect();
        let lost: Vec<_> = kept.difference(&found).collect();
        assert!(lost.is_empty(), "{lost:?}");
    }
    let sink = JsonLinesSink::open(&path, SyncPolicy::System).unwrap();
    assert_eq!(sink.repaired(), None);
}

/// Kills a writer when it has acknowledged so many records; returns those.
fn kill_after(path: &Path, acknowledged: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([CHILD, "--exact", "--nocapture", "--test-threads=1"])
        .env(FILE, path)
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut kept = Vec::new();
    let mut line = String::new();
    let mut killed = false;
    while output.read_line(&mut line).unwrap() > 0 {
        // The last line may be cut; then nobody was told.
        if let Some(name) = line
            .strip_suffix('\n')
            .and_then(|line| line.split_once("kept "))
        {
            kept.push(name.1.to_owned());
        }
        line.clear();
        if kept.len() >= acknowledged && !killed {
            child.kill().unwrap();
            killed = true;
        }
    }
    let status = child.wait().unwrap();
    assert!(killed, "it ended by itself: {status}");
    kept
}
