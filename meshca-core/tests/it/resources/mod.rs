//! Reading, checking and writing of mesh resources.

mod conversions;
mod hostile;
mod read;
mod round_trip;
#[cfg(feature = "schema")]
mod schema;
mod violations;

use std::path::{Path, PathBuf};

use meshca_core::resource::{Documents, Report, Resource};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples/resources")
        .join(name);
    std::fs::read_to_string(path).unwrap()
}

/// The one resource of a sound text.
fn one(text: impl AsRef<[u8]>) -> Resource {
    let documents = all(text);
    assert_eq!(documents.len(), 1);
    documents.into_iter().next().unwrap()
}

fn all(text: impl AsRef<[u8]>) -> Documents {
    Resource::parse(text).unwrap_or_else(|report| panic!("{report}"))
}

fn refused(text: impl AsRef<[u8]>) -> Report {
    Resource::parse(text).unwrap_err()
}
