use std::path::{Component, Path};

use proptest::prelude::*;

use super::*;

#[test]
fn names_are_dns_subdomains() {
    let longest = "a".repeat(253);
    let too_long = "a".repeat(254);
    let cases = [
        ("default", true),
        ("default.ca-builtin-backend-1", true),
        ("a", true),
        ("0", true),
        ("a.b-c.0", true),
        (longest.as_str(), true),
        (too_long.as_str(), false),
        ("", false),
        (".", false),
        ("..", false),
        ("a..b", false),
        (".lock", false),
        ("a.", false),
        ("-a", false),
        ("a-", false),
        ("a.-b", false),
        ("a-.b", false),
        ("Default", false),
        ("a_b", false),
        ("a/b", false),
        ("a\\b", false),
        ("../a", false),
        ("a b", false),
        ("a\0", false),
        ("a\n", false),
        ("c:", false),
        ("é", false),
    ];
    for (name, valid) in cases {
        for (mesh, secret) in [(name, "s"), ("m", name)] {
            let key = SecretKey::new(mesh, secret);
            assert_eq!(key.is_ok(), valid, "{mesh:?}/{secret:?}");
            if let Err(error) = key {
                assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            }
        }
    }
}

#[test]
fn an_invalid_name_is_named_without_control_characters() {
    let error = SecretKey::new("default", "a\n\u{1b}[2J").unwrap_err();
    let text = error.to_string();
    assert!(text.contains(r#"secret name "a\n\u{1b}[2J""#), "{text}");
    assert!(
        SecretKey::new("..", "a")
            .unwrap_err()
            .to_string()
            .contains("mesh name")
    );
}

fn hostile_name() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        r"[a-z0-9.\-]{0,260}",
        r"[a-cA-C0./\\:\-\x00~ ]{0,8}",
    ]
}

proptest! {
    #[test]
    fn a_key_is_a_plain_file_name_or_an_error(mesh in hostile_name(), name in hostile_name()) {
        if let Ok(key) = SecretKey::new(mesh.as_str(), name.as_str()) {
            prop_assert_eq!((key.mesh(), key.name()), (mesh.as_str(), name.as_str()));
            for part in [key.mesh(), key.name()] {
                let components: Vec<_> = Path::new(part).components().collect();
                prop_assert_eq!(components, [Component::Normal(part.as_ref())]);
                prop_assert!(!part.starts_with('.'));
                prop_assert!(part.len() <= 253);
                prop_assert!(part.bytes().all(|byte| b"abcdefghijklmnopqrstuvwxyz0123456789-.".contains(&byte)));
            }
        }
    }
}
