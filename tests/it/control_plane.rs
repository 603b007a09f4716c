//! The example `control_plane`, as a new user runs it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use crate::examples::example;

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_file_that_is_changed_is_in_force_a_moment_later() {
    let source =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/resources/control-plane/mesh.yaml");
    let text = fs::read_to_string(source).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mesh.yaml");
    fs::write(&file, &text).unwrap();

    let mut command = example("control_plane");
    command.arg("--resources").arg(&file).args(["--for", "120"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut running = Running(command.spawn().unwrap());
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    // In any order: the proxies are followed by a task each.
    let mut until = |parts: &[&str]| {
        let mut missing = parts.to_vec();
        while !missing.is_empty() {
            let line = lines.next().map(Result::unwrap);
            let line = line.unwrap_or_else(|| panic!("it ended without {missing:?}"));
            missing.retain(|part| !line.contains(part));
        }
    };
    until(&[
        "proxy-1: push spiffe://default.example.org/workload/web",
        "proxy-2: push spiffe://default.example.org/workload/db",
    ]);
    // Replaced as a whole: it may be read at any moment.
    let next = folder.path().join("next.yaml");
    fs::write(&next, text.replace("example.org", "example.net")).unwrap();
    fs::rename(&next, &file).unwrap();
    until(&["push spiffe://default.example.net/workload/"]);
}
