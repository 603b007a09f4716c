//! The example `envoy_sds`, as a new user runs it, with Envoy and without.

use crate::examples::example;

fn run(arguments: &[&str]) -> String {
    let output = example("envoy_sds").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    text
}

#[test]
fn without_envoy_the_configurations_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().display().to_string();
    let text = run(&["--envoy", "no-such-envoy", "--folder", &place]);
    assert!(text.contains("not found    no-such-envoy"), "{text}");
    for name in ["server", "client"] {
        let file = std::fs::read(folder.path().join(format!("{name}.json"))).unwrap();
        let bootstrap: serde_json::Value = serde_json::from_slice(&file).unwrap();
        assert_eq!(bootstrap["node"]["id"], name);
    }
}

mod envoy {
    use meshca_testenv::needs;
    use meshca_testenv::servers::Envoy;

    #[test]
    fn two_of_them_answer_before_and_after_the_ca_is_exchanged() {
        needs!(Envoy::program());
        let program = Envoy::program().unwrap().display().to_string();
        let text = super::run(&["--envoy", &program]);
        let answer = "answered     hello from the server, to spiffe://example.org/workload/client";
        assert_eq!(text.matches(answer).count(), 2, "{text}");
    }
}
