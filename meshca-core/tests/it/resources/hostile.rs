//! Input that is meant to hurt.

use std::time::{Duration, Instant};

use meshca_core::resource::Resource;
use proptest::prelude::*;

use crate::resources::refused;

/// How long this thread has been computing: what other processes do meanwhile does not count. Where
/// the system does not tell, the time of the day has to do.
#[allow(
    clippy::disallowed_methods,
    reason = "measures real time, which nothing else here depends on"
)]
fn time_used(since: Instant) -> Duration {
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .map_or_else(|| since.elapsed(), Duration::from_nanos)
}

/// The first line of the report, which must come within a second even from a debug build.
#[track_caller]
#[allow(
    clippy::disallowed_methods,
    reason = "measures real time, which nothing else here depends on"
)]
fn quickly_refused(text: impl AsRef<[u8]>) -> String {
    let start = Instant::now();
    let before = time_used(start);
    let report = refused(&text).to_string();
    let took = time_used(start).saturating_sub(before);
    assert!(took < Duration::from_secs(1), "took {took:?}: {report}");
    report.lines().next().unwrap().to_owned()
}

#[test]
fn too_large() {
    let message = "1:1: the input has 95 MiB, more than the 16 MiB that are read";
    assert_eq!(quickly_refused(vec![b'a'; 100_000_000]), message);
}

#[test]
fn too_deep() {
    let block: String = (0..10_000)
        .map(|level| format!("{}a:\n", " ".repeat(level % 2000)))
        .collect();
    assert!(quickly_refused(block).contains(":"));
    let block: String = (0..1000)
        .map(|level| format!("{}a:\n", " ".repeat(level)))
        .collect();
    assert_eq!(
        quickly_refused(block),
        "65:65: nested more than 64 levels deep"
    );
    let dashes = "- ".repeat(10_000);
    assert_eq!(
        quickly_refused(dashes),
        "1:129: nested more than 64 levels deep"
    );
    for (open, column) in [("[", 65), ("{a: ", 257), (r#"{"a":"#, 321), ("[{a: ", 161)] {
        assert_eq!(
            quickly_refused(open.repeat(10_000)),
            format!("1:{column}: nested more than 64 levels deep"),
            "{open}"
        );
    }
    assert!(quickly_refused("? ".repeat(10_000)).contains("1:"));
    // After a `?`, a name may be as long as it likes; but nobody writes it like that.
    let name = format!("type: Mesh\nname: a\n? {}\n: 1\n", "n".repeat(1200));
    assert!(quickly_refused(name).contains("a field name of more than 1000 characters"));
    assert!(quickly_refused("!".repeat(10_000)).contains("1:1: "));
}

#[test]
fn aliases_that_multiply() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..20 {
        let before = level - 1;
        text.push_str(&format!(
            "a{level}: &a{level} [{}]\n",
            vec![format!("*a{before}"); 10].join(", ")
        ));
    }
    assert!(quickly_refused(text).contains("anchors and aliases repeat more than 20000 values"));

    let long = format!(
        "a: &a \"{}\\n\"\nb: [{}]\n",
        "x".repeat(100_000),
        "*a, ".repeat(100_000)
    );
    assert!(quickly_refused(long).contains("anchors and aliases repeat"));

    assert!(quickly_refused("a: &a [*a]\n").contains("an alias inside the value it stands for"));
    let nested = (0..40).fold("a: ".to_owned(), |text, level| format!("{text}&n{level} ["))
        + &"x,".repeat(100_000)
        + &"]".repeat(40);
    assert!(quickly_refused(nested).contains("anchors and aliases repeat"));

    let mut deep = "a0: &a0 [x]\n".to_owned();
    for level in 1..70 {
        deep.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    assert!(quickly_refused(deep).contains("nested more than 64 levels deep"));
}

#[test]
fn many_mistakes() {
    let fields: String = (0..20_000)
        .map(|index| format!("  enabledBackend{index}: 1\n"))
        .collect();
    assert!(
        quickly_refused(format!("type: Mesh\nname: a\nmtls:\n{fields}")).contains("unknown field")
    );
    let same = "  a: 1\n".repeat(20_000);
    assert!(quickly_refused(format!("type: Mesh\nname: a\nmtls:\n{same}")).contains("given twice"));
    let items = "- 1\n".repeat(20_000);
    let report = quickly_refused(format!(
        "type: Mesh\nname: a\nmtls:\n  backends:\n  {}",
        items.replace('\n', "\n  ")
    ));
    assert_eq!(
        report,
        "5:5: mtls.backends[0]: expected a mapping, found a number"
    );
    assert!(quickly_refused("---\n1\n".repeat(10_000)).contains("expected a resource"));
}

#[test]
fn many_near_misses() {
    let ciphers = "ECDHE-RSA-AES128-GCM-SHA265, ".repeat(20_000);
    let text = format!(
        "type: MeshTLS\nname: a\nspec:\n  rules:\n  - default:\n      tlsCiphers: [{ciphers}]\n"
    );
    assert!(quickly_refused(text).contains("did you mean"));
    let labels: String = (0..20_000)
        .map(|index| format!("  kuma.io/servic{index}: a\n"))
        .collect();
    assert!(
        quickly_refused(format!("type: Mesh\nlabels:\n{labels}")).contains("name: must be set")
    );
    let backends: String = (0..10_000)
        .map(|index| format!("  - {{name: a{index}, type: vualt}}\n"))
        .collect();
    let report = quickly_refused(format!(
        "type: Mesh\nname: a\nmtls:\n  enabledBackend: other\n  backends:\n{backends}"
    ));
    assert!(report.ends_with(" or 9988 others"), "{report}");
    let own: String = (0..10_000)
        .map(|index| format!("  a{index}: 1\n"))
        .collect();
    let merges = "*m, ".repeat(5_000);
    assert!(
        quickly_refused(format!(
            "type: Mesh\nx: &m {{b: 1}}\nmtls:\n  <<: [{merges}]\n{own}"
        ))
        .contains("must be set")
    );
}

#[test]
fn not_text() {
    assert_eq!(
        quickly_refused(b"\x7fELF\x02\x01\x01\x00"),
        "1:8: this is not text: it contains a NUL byte"
    );
    assert_eq!(
        quickly_refused(b"\x1f\x8b\x08"),
        "1:2: this is not text: YAML and JSON are UTF-8"
    );
    assert_eq!(
        quickly_refused(b"a: \xff"),
        "1:4: this is not text: YAML and JSON are UTF-8"
    );
    for empty in [
        "",
        " \n",
        "---\n...\n---\n",
        "# nothing\n",
        "null",
        "~\n---\n",
    ] {
        assert_eq!(
            quickly_refused(empty),
            "1:1: there is no resource in it",
            "{empty:?}"
        );
    }
}

#[test]
fn every_prefix_and_every_damaged_byte_of_a_document() {
    let text = include_str!("../../data/mesh-full.yaml");
    for (index, _) in text.char_indices().step_by(7) {
        let _ = Resource::parse(&text[..index]);
        for byte in [b'\0', b'{', b'\t', 0xff, b'"', b'&', b'-'] {
            let mut damaged = text.as_bytes().to_vec();
            damaged[index] = byte;
            if index % 5 == 0 {
                let _ = Resource::parse(&damaged);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        let _ = Resource::parse(text);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Resource::parse(bytes);
    }

    #[test]
    fn anything_that_looks_like_yaml_is_read_or_refused(
        text in "(type: Mesh\n|name: a\n|mtls:\n|  backends:\n|  - |[a-z]{1,3}: |[0-9.eE+-]{1,5}|&a |\\*a|<<: |!![a-z]+ |[\\[\\]{},:?|>\"'#%@\n ]){0,30}"
    ) {
        let _ = Resource::parse(text);
    }

    #[test]
    fn numbers_are_those_of_json(number in any::<i64>(), large in any::<u64>(), real in any::<f64>().prop_filter("finite", |real| real.is_finite())) {
        let text = serde_json::json!({ "type": "Mesh", "name": "a", "x": { "a": number, "b": large, "c": real } }).to_string();
        let written = crate::resources::one(&text).to_json().unwrap();
        prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&written).unwrap(), serde_json::from_str::<serde_json::Value>(&text).unwrap());
    }
}
