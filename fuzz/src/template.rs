//! Templates: what a label says fills its place and does nothing else.

use std::collections::BTreeMap;

use meshca_core::spiffe::{
    NameTemplate, PathTemplate, TemplateError, TrustDomainInputs, TrustDomainTemplate, Workload,
};
use meshca_core::{SpiffeId, TrustDomain};

/// What the values stand for, in their order in the input.
const LABELS: [&str; 6] = [
    "k8s.kuma.io/namespace",
    "k8s.kuma.io/service-account",
    "kuma.io/workload",
    "app",
    "team",
    "env",
];
const TAG: &str = "kuma.io/service";

/// A template, then the values of mesh, zone, tag and labels, separated by NUL.
pub fn template(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split('\0');
    let template = parts.next().unwrap_or_default();
    let mut next = || parts.next().unwrap_or_default();
    let (mesh, zone, tag) = (next(), next(), next());
    let labels: BTreeMap<String, String> = LABELS
        .iter()
        .map(|key| ((*key).to_owned(), next().to_owned()))
        .collect();
    let benign: BTreeMap<String, String> = LABELS
        .iter()
        .map(|key| ((*key).to_owned(), "q0".to_owned()))
        .collect();

    let domain = trust_domain(
        template,
        &TrustDomainInputs::new(mesh, zone).with_labels(&labels),
    );
    let workload: Workload = labels
        .iter()
        .collect::<Vec<_>>()
        .into_iter()
        .map(own)
        .collect();
    let path = path(
        template,
        &workload,
        &benign.into_iter().collect::<Workload>(),
    );
    let name = common_name(template, &workload.with_tag(TAG, tag));
    domain || path || name
}

fn own<'a>((key, value): (&'a String, &'a String)) -> (&'a str, &'a str) {
    (key, value)
}

fn trust_domain(text: &str, inputs: &TrustDomainInputs<'_>) -> bool {
    let template = match TrustDomainTemplate::parse(text) {
        Ok(template) => template,
        Err(error) => return refused(text, &error),
    };
    assert_eq!(template.as_str(), text);
    let Ok(domain) = template.render(inputs) else {
        return false;
    };
    let name = domain.as_str();
    assert!((1..=255).contains(&name.len()), "{name}");
    assert!(
        name.bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')),
        "{name}"
    );
    assert_eq!(TrustDomain::new(name), Ok(domain.clone()));
    true
}

fn path(text: &str, workload: &Workload, benign: &Workload) -> bool {
    let template = match PathTemplate::parse(text) {
        Ok(template) => template,
        Err(error) => return refused(text, &error),
    };
    assert_eq!(template.as_str(), text);
    let domain = TrustDomain::new("prod.example.org").expect("a trust domain");
    let path = template.render_path(&domain, workload);
    let id = match template.render(&domain, workload) {
        Ok(id) => id,
        Err(error) => {
            assert!(
                path.is_err(),
                "only the path is accepted: {path:?}, {error}"
            );
            return false;
        }
    };
    assert_eq!(id.path(), path.expect("the path alone is accepted, too"));
    assert_eq!(*id.trust_domain(), domain);
    let whole = id.to_string();
    assert!(whole.len() <= 2048, "{whole}");
    let path = whole
        .strip_prefix("spiffe://prod.example.org/")
        .unwrap_or_else(|| panic!("not in the trust domain: {whole}"));
    for segment in path.split('/') {
        assert!(!matches!(segment, "" | "." | ".."), "{whole}");
        assert!(
            segment
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)),
            "{whole}"
        );
    }
    assert_eq!(SpiffeId::new(&whole), Ok(id.clone()));

    let segments = path.split('/').count();
    if let Some(written) = written_segments(text) {
        assert_eq!(segments, written, "`{text}` gives {whole}");
    }
    if let Ok(other) = template.render_path(&domain, benign) {
        assert_eq!(other.matches('/').count(), segments, "{other} and {whole}");
    }
    true
}

/// How many segments a template writes out, if that can be told without understanding it: no
/// slash comes from a string in an action.
fn written_segments(text: &str) -> Option<usize> {
    let (mut slashes, mut rest) = (0, text);
    while let Some((literal, action)) = rest.split_once("{{") {
        slashes += literal.matches('/').count();
        let end = action_end(action)?;
        let (action, after) = action.split_at(end);
        let plain = action.trim_start_matches("- ").trim_start();
        let value_of_a_proxy = ["label ", "."].iter().any(|start| plain.starts_with(start));
        if action.contains('/') && !value_of_a_proxy {
            return None;
        }
        rest = &after["}}".len()..];
    }
    Some(slashes + rest.matches('/').count())
}

/// Where `}}` stands outside of strings and comments.
fn action_end(action: &str) -> Option<usize> {
    let mut at = match action.find("/*") {
        Some(comment) if action[..comment].trim_matches([' ', '-']).is_empty() => {
            action.find("*/")?
        }
        _ => 0,
    };
    while !action.get(at..)?.starts_with("}}") {
        let rest = &action[at..];
        let first = rest.chars().next()?;
        at += match first {
            '"' => 1 + string_length(&rest[1..])?,
            '`' => 2 + rest[1..].find('`')?,
            _ => first.len_utf8(),
        };
    }
    Some(at)
}

/// The length of a string up to and with its closing quote.
fn string_length(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        match character {
            '"' if !escaped => return Some(at + 1),
            _ => escaped = character == '\\' && !escaped,
        }
    }
    None
}

fn common_name(text: &str, workload: &Workload) -> bool {
    let template = match NameTemplate::parse(text) {
        Ok(template) => template,
        Err(error) => return refused(text, &error),
    };
    assert_eq!(template.as_str(), text);
    let Ok(name) = template.render(workload) else {
        return false;
    };
    assert!((1..=64).contains(&name.len()), "{name}");
    for part in name.split('.') {
        assert!((1..=63).contains(&part.len()), "{name}");
        assert!(
            part.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)),
            "{name}"
        );
    }
    true
}

fn refused(text: &str, error: &TemplateError) -> bool {
    let offset = error.offset();
    assert!(text.get(offset.clone()).is_some(), "{offset:?} in {text:?}");
    assert!(!error.message().is_empty());
    false
}
