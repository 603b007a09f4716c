//! The example `rustls_mtls`, as a new user runs it.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]
#![cfg(feature = "rustls")]

use std::process::Command;

#[test]
fn identities_and_the_ca_are_rotated_under_load_and_nobody_notices() {
    // Cargo builds examples next to the tests that it runs.
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap().parent().unwrap().join("examples");
    let program = folder.join(format!("rustls_mtls{}", std::env::consts::EXE_SUFFIX));
    assert!(
        program.exists(),
        "run `cargo build --examples --all-features` first"
    );
    for server in ["axum", "tonic"] {
        let mut command = Command::new(&program);
        command.args(["--server", server, "--rotations", "6", "--clients", "3"]);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}{errors}");
        assert!(text.contains("failed           0"), "{text}");
    }
}
