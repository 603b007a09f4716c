//! The seeds of the fuzz targets, through the functions that the targets call.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "tests, and targets shared with `fuzz/`"
)]

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::fs;
use std::path::Path;

fn feed(target: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target);
    let (_, entry) = fuzz::TARGETS
        .into_iter()
        .find(|(name, _)| *name == target)
        .unwrap();
    let mut refused = Vec::new();
    let mut accepted = 0;
    for file in fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        if entry(&fs::read(&path).unwrap()) {
            accepted += 1;
        } else {
            refused.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    // A seed that is refused at once leads nowhere.
    refused.retain(|name| !EXPECTED_REFUSALS.contains(&(target, name)));
    assert!(refused.is_empty(), "{target} refuses {refused:?}");
    assert!(accepted > 0, "{target} has no seeds");
}

/// Seeds that are there to be refused, each for one reason.
const EXPECTED_REFUSALS: [(&str, &str); 2] = [("returned_chain", "foreign"), ("template", "liar")];

#[test]
fn csr() {
    feed("csr");
}

#[test]
fn jwks_bundle() {
    feed("jwks_bundle");
}

#[test]
fn pem_bundle() {
    feed("pem_bundle");
}

#[test]
fn resource() {
    feed("resource");
}

#[test]
fn returned_chain() {
    feed("returned_chain");
}

#[test]
fn template() {
    feed("template");
}

/// The corpora of a fuzzer are hostile by nature; each input that found a defect is kept here.
#[test]
fn every_target_stands_any_short_input() {
    for (name, entry) in fuzz::TARGETS {
        for first in 0..=255_u8 {
            for data in [&[first][..], &[first, 0x30, 0x80], &[first, 0xff, 0xff, 0]] {
                assert!(
                    !entry(data) || name == "template" || name == "resource",
                    "{name} accepts {data:?}"
                );
            }
        }
    }
}
