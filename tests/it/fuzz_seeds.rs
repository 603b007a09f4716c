//! The seeds of the fuzz targets, through the functions that the targets call.

#[path = "../../fuzz/src/lib.rs"]
#[allow(
    clippy::disallowed_methods,
    dead_code,
    unreachable_pub,
    reason = "shared with `fuzz/`"
)]
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
    for file in fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        // A seed that is refused at once leads nowhere, unless that is what it is for.
        assert_eq!(
            entry(&fs::read(&path).unwrap()),
            !REFUSED.contains(&(target, name)),
            "{target}/{name}"
        );
    }
}

/// Seeds that must be refused.
const REFUSED: [(&str, &str); 12] = [
    ("csr", "key-of-odd-bits"),
    ("jwks_bundle", "keys-that-are-lists"),
    ("jwks_bundle", "list-for-an-object"),
    ("pem_bundle", "key-of-odd-bits"),
    ("pem_bundle", "lone-carriage-returns"),
    ("pem_bundle", "text-behind-the-end"),
    ("resource", "envelope-in-spec"),
    ("resource", "long-field-name"),
    ("resource", "mesh-in-a-mesh"),
    ("returned_chain", "foreign"),
    ("returned_chain", "key-usage-beyond-its-bits"),
    ("template", "liar"),
];

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
