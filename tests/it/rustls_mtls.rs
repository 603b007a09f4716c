//! The example `rustls_mtls`, as a new user runs it.

use crate::examples::example;

#[test]
fn identities_and_the_ca_are_rotated_under_load_and_nobody_notices() {
    for server in ["axum", "tonic"] {
        let mut command = example("rustls_mtls");
        command.args(["--server", server, "--rotations", "6", "--clients", "3"]);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}{errors}");
        assert!(text.contains("failed           0"), "{text}");
    }
}
