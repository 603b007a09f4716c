//! Reading, checking and writing of mesh resources.

use std::path::PathBuf;

use meshca_core::resource::{ParseOptions, Resource};

#[test]
fn show() {
    let mut files: Vec<_> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/bad")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    for path in files {
        if path.extension().unwrap() == "txt" { continue; }
        let name = path.file_name().unwrap().to_str().unwrap();
        let report = ParseOptions::new().source(name).system_namespace("kong-mesh-system").parse(std::fs::read(&path).unwrap()).unwrap_err();
        println!("{report}\n");
        std::fs::write(path.parent().unwrap().join(format!("{name}.txt")), format!("{report}\n")).unwrap();
    }
}
