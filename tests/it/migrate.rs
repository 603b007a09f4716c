//! The example `migrate` as an operator runs it.

use std::path::Path;

use crate::examples::example;

/// What it prints, and whether it succeeds.
fn migrate(arguments: &[&str]) -> (bool, String) {
    let resources = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/resources");
    let output = example("migrate")
        .args(arguments)
        .current_dir(resources)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    (output.status.success(), text + &errors)
}

const MOVE: [&str; 4] = ["--from", "migrate/mesh.yaml", "--to", "migrate/vault.yaml"];

#[test]
fn a_plan_is_printed() {
    let with = |more: &[&str]| migrate(&[&MOVE, more].concat());
    let cases: [(&[&str], &[&str]); 4] = [
        (
            &[],
            &[
                "The mesh `default` moves from the backend `ca-1` to the MeshIdentity `vault`.\n",
                "\n1. Assign identity: ",
                "\n6. Clean up: ",
            ],
        ),
        (&["--canary", "app=web"], &["\n4. Try it on a few: "]),
        (&["--mermaid"], &["sequenceDiagram\n"]),
        (
            &["--back-from", "4", "--yaml"],
            &[
                "\n1. Look first: ",
                "# delete the MeshIdentity `vault`",
                "type: MeshIdentity\nname: vault\n",
            ],
        ),
    ];
    for (arguments, expected) in cases {
        let (success, text) = with(arguments);
        assert!(success, "{arguments:?}: {text}");
        for part in expected {
            assert!(text.contains(part), "no `{part}` in:\n{text}");
        }
    }
    // What `--yaml` prints for the way there can be read again.
    let (_, text) = with(&["--yaml"]);
    let (_, yaml) = text.split_once("\n# 1.").unwrap();
    let resources = meshca::resource::Resource::parse(format!("# 1.{yaml}")).unwrap();
    assert_eq!(resources.len(), 7);
}

#[test]
fn what_is_in_the_way_is_printed_with_what_to_do_first() {
    let to = ["--to", "migrate/vault.yaml"];
    let cases: [(&[&str], &str); 4] = [
        (
            &[
                "--from",
                "migrate/mesh.yaml",
                "--policies",
                "migrate/policies.yaml",
            ],
            "- MeshTrafficPermission allow-shop: it tells peers apart by their `kuma://` tags",
        ),
        (
            &["--from", "scenarios/cert-manager-universal.yaml"],
            "- Mesh default: `meshServices.mode` is not `Exclusive`",
        ),
        (
            &["--from", "migrate/mesh.yaml", "--canary", "web"],
            "`web` is no label",
        ),
        (&["--from", "migrate/none.yaml"], "migrate/none.yaml: "),
    ];
    for (from, expected) in cases {
        let (success, text) = migrate(&[from, &to].concat());
        assert!(!success, "{text}");
        assert!(text.contains(expected), "no `{expected}` in:\n{text}");
        assert!(!text.contains("allow-flight-control"), "{text}");
    }
}
