//! Our template language against the one that it is a part of, Go's `text/template`.

use std::collections::BTreeMap;

use meshca::TrustDomain;
use meshca::spiffe::{
    NameTemplate, PathTemplate, TemplateError, TrustDomainInputs, TrustDomainTemplate, Workload,
};
use serde_json::json;

use super::{ask, readers};

const CASES: usize = 6000;

/// SplitMix64: the same cases in every run, on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn one_in(&mut self, number: usize) -> bool {
        self.below(number) == 0
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Domain,
    Path,
    Name,
}

#[derive(Debug)]
struct Case {
    kind: Kind,
    text: String,
    mesh: String,
    zone: String,
    labels: BTreeMap<String, String>,
    tags: BTreeMap<String, Vec<String>>,
}

const KEYS: [&str; 3] = ["app", "team/x", "é"];
const WORKLOAD_LABELS: [(&str, &str); 3] = [
    ("k8s.kuma.io/namespace", "Namespace"),
    ("k8s.kuma.io/service-account", "ServiceAccount"),
    ("kuma.io/workload", "Workload"),
];

/// What a label may say.
const VALUES: &[&str] = &[
    "cart",
    "cart_v2",
    "a-b.c",
    "x",
    "eu-1",
    "aaa",
    "_",
    "9",
    "Cart",
    "",
    ".",
    "..",
    "a/b",
    "a b",
    "é",
    "<a>",
    "{{ .Mesh }}",
    "a&b",
];
const SOUND: usize = 8;

/// What Go knows and our language refuses, and what neither takes.
const FOREIGN: &[&str] = &[
    "if true",
    "end",
    "else",
    "range .",
    "with .Mesh",
    "define \"a\"",
    "template \"a\"",
    "block \"a\" .",
    "$x := .Mesh",
    "$",
    ".",
    "1",
    "1.5",
    "'a'",
    "true",
    "nil",
    "print 1",
    "printf \"%s\" \"a\"",
    "len \"a\"",
    "html \"a\"",
    "urlquery \"a\"",
    "index . \"Mesh\"",
    "and 1 2",
    "not true",
    "eq 1 1",
    ".Nope",
    ".mesh",
    ".Mesh.Zone",
    "label",
    "label app",
    "label 1",
    "label .Mesh",
    "label \"nope\"",
    "tag \"nope\"",
    "label \"app\" \"app\"",
    "replace",
    "replace \"a\"",
    "replace \"a\" \"b\"",
    "nope",
    "\"\\xff\"",
    "\"\\ud800\"",
    "\"\\q\"",
    "\"open",
    "`open",
    "(\"a\"",
    "\"a\")",
    "\"a\" \"b\"",
    "| \"a\"",
    "\"a\" |",
    "\"a\" | \"b\"",
    "break",
    "continue",
    "/* a */ \"b\"",
    "/* open",
    "",
    " ",
    "- ",
    " -",
    "\"a\"\"b\"",
    ".Mesh\"a\"",
    "label\"app\"",
    "call .Mesh",
    "js \"a\"",
    "slice \"abc\" 1",
    ".Mesh | label",
    "label | replace \"a\" \"b\"",
    "\"a\"|replace \"a\" \"b\"|replace `b` `c`",
    "replace \"\" \"-\" \"ab\"",
    "replace \"a\" \"\" \"ab\"",
    "(label (\"app\"))",
    "((\"a\"))",
    "\"a\" | label",
    "\"app\" | label | replace \"c\" \"C\"",
    ".Mesh .Zone",
    "replace .Mesh \"a\" \"prod\"",
    "-1",
    "\"a\" -",
    "\u{a0}\"a\"",
    "\"a\"\u{2003}",
    "\n\"a\"\n",
    "\t\"a\"\r\n",
];

fn string(random: &mut Random, text: &str) -> String {
    let escaped = || text.replace('\\', "\\\\").replace('"', "\\\"");
    match random.below(5) {
        0 if !text.contains('`') => format!("`{text}`"),
        1 => format!(
            "\"{}\"",
            text.chars()
                .map(|c| format!("\\u{:04x}", u32::from(c)))
                .collect::<String>()
        ),
        2 if text.is_ascii() => format!(
            "\"{}\"",
            text.bytes()
                .map(|b| format!("\\x{b:02X}"))
                .collect::<String>()
        ),
        _ => format!("\"{}\"", escaped()),
    }
}

fn source(random: &mut Random, kind: Kind) -> String {
    let key = KEYS[random.below(KEYS.len())];
    match (kind, random.below(6)) {
        (_, 0) => {
            let text = random.pick(&["a", "x-1", "b.c", "x", "é", "a b", "_", "/"]);
            string(random, text)
        }
        (Kind::Domain, 1 | 2) => random.pick(&[".Mesh", ".Zone"]).to_owned(),
        (Kind::Path, 1 | 2) => random
            .pick(&[".Namespace", ".ServiceAccount", ".Workload", ".TrustDomain"])
            .to_owned(),
        (Kind::Name, 1..=3) => format!("tag {}", string(random, key)),
        _ => format!("label {}", string(random, key)),
    }
}

fn pipeline(random: &mut Random, kind: Kind) -> String {
    let mut text = source(random, kind);
    if random.one_in(12) {
        return random.pick(FOREIGN).to_owned();
    }
    for _ in 0..[0, 0, 1, 1, 2, 4][random.below(6)] {
        let old = random.pick(&["_", "-", "a", "", ".", "cart", "é", "/", "aa"]);
        let new = random.pick(&["-", "_", "", "b", ".", "aa", "/", "é"]);
        let (old, new) = (string(random, old), string(random, new));
        text = match random.below(4) {
            0 => format!("replace {old} {new} ({text})"),
            1 => format!("{text}|replace {old} {new}"),
            2 => format!("({text}) | replace {old} {new}"),
            _ => format!("{text} | replace {old} {new}"),
        };
    }
    text
}

fn action(random: &mut Random, kind: Kind) -> String {
    if random.one_in(12) {
        return random
            .pick(&[
                "{{/* why */}}",
                "{{- /* why */ -}}",
                "{{/* a }} b */}}",
                "{{ /* a */ }}",
                "{{/* a */ -}}",
            ])
            .to_owned();
    }
    let (open, close) = match random.below(10) {
        0 => ("{{- ", " }}"),
        1 => ("{{ ", " -}}"),
        2 => ("{{-", "-}}"),
        3 => ("{{", "}}"),
        4 => ("{{  \t", "\n}}"),
        _ => ("{{ ", " }}"),
    };
    format!("{open}{}{close}", pipeline(random, kind))
}

fn template(random: &mut Random, kind: Kind) -> String {
    let mut text = String::new();
    for _ in 0..1 + random.below(3) {
        match kind {
            Kind::Path => text.push('/'),
            _ if !text.is_empty() => text.push('.'),
            _ => {}
        }
        for _ in 0..1 + random.below(2) {
            if random.one_in(16) {
                text.push_str(random.pick(&[" ", "\n", "\t ", "\u{a0}"]));
            }
            match random.below(8) {
                0 => text.push_str(random.pick(&[
                    "a", "ns", "b-c", "x_1", "A", "..", ".", "é", "}}", "{", "<a>", "%",
                ])),
                1 => text.push_str(random.pick(&["a", "ns", "b-c", "x_1"])),
                _ => text.push_str(&action(random, kind)),
            }
        }
    }
    // Now and then, something that nobody meant.
    if random.one_in(12) && !text.is_empty() {
        let at = (0..=random.below(text.len()))
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap();
        let piece = random.pick(&[
            "{{", "}}", "-", "\"", "`", "(", ")", "|", "/", " ", "\\", ".", "/*", "*/", "\u{0}",
        ]);
        if random.one_in(2) {
            text.truncate(at);
        }
        text.insert_str(at, piece);
    }
    text
}

fn case(random: &mut Random) -> Case {
    let kind = [Kind::Domain, Kind::Path, Kind::Name][random.below(3)];
    let value = |random: &mut Random| {
        let known = if random.one_in(10) {
            VALUES.len()
        } else {
            SOUND
        };
        VALUES[random.below(known)].to_owned()
    };
    let mut labels = BTreeMap::new();
    for key in KEYS.into_iter().chain(WORKLOAD_LABELS.map(|(key, _)| key)) {
        if !random.one_in(20) {
            labels.insert(key.to_owned(), value(random));
        }
    }
    let mut tags = BTreeMap::new();
    for key in KEYS {
        let count = if random.one_in(12) {
            random.below(3)
        } else {
            1
        };
        let mut values: Vec<_> = (0..count).map(|_| value(random)).collect();
        values.sort();
        values.dedup();
        tags.insert(key.to_owned(), values);
    }
    Case {
        kind,
        text: template(random, kind),
        mesh: value(random),
        zone: value(random),
        labels,
        tags,
    }
}

enum Ours {
    Rendered(String),
    NotParsed(TemplateError),
    NotRendered(String),
}

impl Case {
    fn domain() -> TrustDomain {
        TrustDomain::new("prod.example.org").unwrap()
    }

    fn workload(&self) -> Workload {
        let mut workload: Workload = self
            .labels
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        for (key, values) in &self.tags {
            for value in values {
                workload = workload.with_tag(key, value);
            }
        }
        workload
    }

    fn ours(&self) -> Ours {
        let rendered = match self.kind {
            Kind::Domain => TrustDomainTemplate::parse(&self.text).map(|template| {
                let inputs =
                    TrustDomainInputs::new(&self.mesh, &self.zone).with_labels(&self.labels);
                template.render(&inputs).map(|domain| domain.to_string())
            }),
            Kind::Path => PathTemplate::parse(&self.text).map(|template| {
                let (domain, workload) = (Self::domain(), self.workload());
                let path = template.render_path(&domain, &workload);
                let id = template.render(&domain, &workload);
                assert_eq!(
                    path.as_ref().ok().map(String::as_str),
                    id.as_ref().ok().map(|id| id.path())
                );
                path
            }),
            Kind::Name => {
                NameTemplate::parse(&self.text).map(|template| template.render(&self.workload()))
            }
        };
        match rendered {
            Ok(Ok(text)) => Ours::Rendered(text),
            Ok(Err(error)) => Ours::NotRendered(error.to_string()),
            Err(error) => Ours::NotParsed(error),
        }
    }

    fn question(&self) -> serde_json::Value {
        let (functions, variables) = match self.kind {
            Kind::Domain => (
                vec!["label", "replace"],
                BTreeMap::from([("Mesh", self.mesh.clone()), ("Zone", self.zone.clone())]),
            ),
            Kind::Path => {
                let mut variables: BTreeMap<_, _> = WORKLOAD_LABELS
                    .iter()
                    .filter_map(|(label, variable)| {
                        Some((*variable, self.labels.get(*label)?.clone()))
                    })
                    .collect();
                variables.insert("TrustDomain", Self::domain().to_string());
                (vec!["label", "replace"], variables)
            }
            Kind::Name => (vec!["tag", "label", "replace"], BTreeMap::new()),
        };
        json!({"ask": "template", "template": {
            "text": self.text,
            "functions": functions,
            "variables": variables,
            "labels": self.labels,
            "tags": self.tags,
        }})
    }

    /// Whether a result is what the template is for: by the rules, not by our code.
    fn is_sound(&self, text: &str) -> bool {
        let letters = |text: &str, upper: bool| {
            text.bytes().all(|byte| {
                byte.is_ascii_lowercase()
                    || byte.is_ascii_digit()
                    || b".-_".contains(&byte)
                    || (upper && byte.is_ascii_uppercase())
            })
        };
        match self.kind {
            Kind::Domain => (1..=255).contains(&text.len()) && letters(text, false),
            Kind::Path => text.strip_prefix('/').is_some_and(|path| {
                path.split('/')
                    .all(|part| !matches!(part, "" | "." | "..") && letters(part, true))
            }),
            Kind::Name => {
                text.len() <= 64
                    && text
                        .split('.')
                        .all(|part| !part.is_empty() && letters(part, true))
            }
        }
    }
}

/// Why we refuse a template that Go takes, although the result would do: "The language" in the
/// chapter on `spiffe`.
const REFUSED_WHEN_PARSING: &[&str] = &[
    // Go's other words, numbers and characters among them; `{{-1}}` is a number, too.
    "not supported",
    "must be followed by white space",
    "unknown function",
    "unknown variable",
    // A key is a string in quotes, so that the labels in use can be told from the template.
    "in quotes",
    // Escapes that do not make UTF-8, and literal text that no result can have.
    "UTF-8",
    "has only",
];

/// Why we refuse a value whose neighbours make up for it, "What is refused, and when".
const REFUSED_WHEN_RENDERING: &[&str] = &["has an empty value", "would change the shape", "`/`"];

#[test]
fn what_we_accept_gives_what_go_gives() {
    let Some(go) = readers() else { return };
    let mut random = Random(0x6d65_7368_6361);
    let cases: Vec<Case> = (0..CASES).map(|_| case(&mut random)).collect();
    let questions: Vec<_> = cases.iter().map(Case::question).collect();
    let (mut accepted, mut both_refuse, mut unsound, mut documented) = (0, 0, 0, 0);
    let mut undocumented = Vec::new();
    for (case, theirs) in cases.iter().zip(ask(go, &questions)) {
        let theirs = theirs.map(|value| value.as_str().unwrap().to_owned());
        match (case.ours(), theirs) {
            (Ours::Rendered(ours), theirs) => {
                assert_eq!(Ok(&ours), theirs.as_ref(), "{case:?}");
                assert!(case.is_sound(&ours), "{case:?} gives {ours:?}");
                accepted += 1;
            }
            (_, Err(_)) => both_refuse += 1,
            (_, Ok(theirs)) if !case.is_sound(&theirs) => unsound += 1,
            (Ours::NotParsed(error), Ok(_))
                if REFUSED_WHEN_PARSING
                    .iter()
                    .any(|why| error.message().contains(why)) =>
            {
                documented += 1;
            }
            (Ours::NotRendered(error), Ok(_))
                if REFUSED_WHEN_RENDERING.iter().any(|why| error.contains(why)) =>
            {
                documented += 1;
            }
            (Ours::NotParsed(error), Ok(theirs)) => {
                undocumented.push(format!("{:?}: {error}, and Go {theirs:?}", case.text));
            }
            (Ours::NotRendered(error), Ok(theirs)) => {
                undocumented.push(format!("{:?}: {error}, and Go {theirs:?}", case.text));
            }
        }
    }
    assert!(undocumented.is_empty(), "{}", undocumented.join("\n"));
    println!(
        "{accepted} the same, {both_refuse} refused by both, {unsound} of no use, {documented} documented refusals"
    );
    // Otherwise the generator is at fault, and nothing was compared.
    for count in [accepted, both_refuse, unsound, documented] {
        assert!(
            count > CASES / 100,
            "{accepted} {both_refuse} {unsound} {documented}"
        );
    }
    assert!(accepted > CASES / 4, "{accepted}");
}
