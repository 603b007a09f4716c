//! The differences between our verdicts and those of others that are meant to be.
//!
//! The documentation of the module `meshca_core::verify` has a table of their kinds. `differences.txt` lists them, a
//! section for each kind and a line for each family of oddities. It is exact in both directions: a difference that it
//! does not list fails the test, and so does each that it lists and that does not occur.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::LazyLock;

use crate::oracle::Verdict;
use crate::oracle::cases::{Case, Part, Profile, Shape};
use crate::oracle::others::Sides;
use crate::oracle::ours::Ours;

const TABLE: &str = include_str!("differences.txt");

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Envoy,
    /// With TLS 1.2 at most. It is asked about keys of leaves.
    EnvoyTls12,
    OpenSsl,
    Go,
    GoSpiffe,
}

impl Who {
    const ALL: [Self; 5] = [
        Self::Envoy,
        Self::EnvoyTls12,
        Self::OpenSsl,
        Self::Go,
        Self::GoSpiffe,
    ];
}

/// Which of our verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Judge {
    Issued,
    Client,
    Server,
    /// Whether the CA above the leaf would be accepted as the answer to a request for one.
    Ca,
    /// Whether the bundle can be published at all.
    Bundle,
}

impl Judge {
    const ALL: [Self; 5] = [
        Self::Issued,
        Self::Client,
        Self::Server,
        Self::Ca,
        Self::Bundle,
    ];
}

/// Who refuses what the other accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refuses {
    We,
    They,
}

/// One verdict of ours and one of another, of a case with one oddity or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Question<'a> {
    part: Option<Part>,
    oddity: &'a str,
    shape: Shape,
    profile: Profile,
    who: Who,
    judge: Judge,
}

impl<'a> Question<'a> {
    fn of(case: &'a Case, profile: Profile, who: Who, judge: Judge) -> Self {
        let (part, oddity) = case.oddity();
        Self {
            part,
            oddity,
            shape: case.shape,
            profile,
            who,
            judge,
        }
    }
}

/// As a line of the table.
impl fmt::Display for Question<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = self
            .part
            .map_or("none".to_owned(), |part| format!("{part:?}"));
        let Self {
            oddity,
            shape,
            profile,
            who,
            judge,
            ..
        } = self;
        write!(
            f,
            "{part} | {shape:?} | {profile:?} | {who:?} | {judge:?} | {oddity}"
        )
    }
}

/// The names between spaces in a field of a line, of these; `*` stands for those that `usual` picks.
fn some<T: Copy + fmt::Debug>(field: &str, all: &[T], usual: impl Fn(T) -> bool) -> Vec<T> {
    if field == "*" {
        return all.iter().copied().filter(|one| usual(*one)).collect();
    }
    let find = |name: &str| {
        let mut all = all.iter().copied();
        all.find(|one| format!("{one:?}") == name)
            .unwrap_or_else(|| panic!("`{name}` in the table of differences"))
    };
    field.split_whitespace().map(find).collect()
}

/// Oddities of one family: `usages: none; empty`.
pub(crate) fn oddities(field: &str) -> impl Iterator<Item = String> {
    let (family, names) = field.split_once(": ").unwrap_or(("", field));
    names.split("; ").map(move |name| match family {
        "" => name.to_owned(),
        family => format!("{family}: {name}"),
    })
}

/// The lines of a table with its headings, without comments.
pub(crate) fn lines(table: &str) -> impl Iterator<Item = (&str, Vec<&str>)> {
    let mut heading = "";
    table.lines().filter_map(move |line| {
        if let Some(text) = line.strip_prefix("## ") {
            heading = text;
        }
        let fields = line.split(" | ").map(str::trim).collect::<Vec<_>>();
        let is_row = !line.is_empty() && !line.starts_with('#');
        is_row.then_some((heading, fields))
    })
}

/// A kind of difference, as the documentation lists it.
struct Kind {
    name: String,
    profiles: BTreeSet<Profile>,
    refuses: Refuses,
    /// Those who decide otherwise.
    others: BTreeSet<Who>,
}

/// The table of the documentation.
static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("meshca-core/src/verify/mod.rs");
    let text = std::fs::read_to_string(file).unwrap();
    let rows = text.lines().skip_while(|line| *line != "//! # Differences");
    let rows = rows.filter_map(|line| line.strip_prefix("//! | ")?.strip_suffix(" |"));
    // The first names the columns.
    rows.skip(1).map(Kind::read).collect()
});

impl Kind {
    fn read(row: &str) -> Self {
        let [name, profile, we, others, _] = row.split(" | ").collect::<Vec<_>>()[..] else {
            panic!("not a row of five columns: {row}");
        };
        let who = |name| match name {
            "Envoy" => Who::Envoy,
            "Envoy in TLS 1.2" => Who::EnvoyTls12,
            "OpenSSL" => Who::OpenSsl,
            "Go" => Who::Go,
            "go-spiffe" => Who::GoSpiffe,
            _ => panic!("`{name}` in `{row}`"),
        };
        Self {
            name: name.to_owned(),
            profiles: match profile {
                "both" => Profile::ALL.into(),
                "modern" => [Profile::Modern].into(),
                "classic" => [Profile::Classic].into(),
                _ => panic!("`{profile}` in `{row}`"),
            },
            refuses: match we.split(' ').next() {
                Some("refuse") => Refuses::We,
                Some("accept") => Refuses::They,
                _ => panic!("`{we}` in `{row}`"),
            },
            others: others.split(", ").map(who).collect(),
        }
    }

    fn named(name: &str) -> &'static Self {
        let mut kinds = KINDS.iter();
        kinds.find(|kind| kind.name == name).unwrap_or_else(|| {
            panic!("`{name}` is not in the table \"Differences\" of `meshca_core::verify`")
        })
    }
}

#[test]
fn the_documentation_has_the_kinds_of_differences_that_occur() {
    type Found = (BTreeSet<Profile>, BTreeSet<Who>);
    let mut found: BTreeMap<&str, Found> = BTreeMap::new();
    for (section, fields) in lines(TABLE) {
        let [_, _, profiles, who, _, _] = fields[..] else {
            panic!("not a line of six fields: {fields:?}");
        };
        let (all_profiles, all_others) = found.entry(section).or_default();
        all_profiles.extend(some(profiles, &Profile::ALL, |_| true));
        all_others.extend(some(who, &Who::ALL, |_| true));
    }
    for (section, (profiles, others)) in &found {
        let kind = Kind::named(section);
        assert_eq!(
            *others, kind.others,
            "others than the table says: {section}"
        );
        assert_eq!(
            *profiles, kind.profiles,
            "another profile than the table says: {section}"
        );
    }
    for Kind { name, .. } in KINDS.iter() {
        let shown = found.contains_key(name.as_str());
        assert!(
            shown,
            "`differences.txt` has no example of the kind `{name}`"
        );
    }
    let names: BTreeSet<_> = KINDS.iter().map(|kind| &kind.name).collect();
    assert_eq!(names.len(), KINDS.len(), "a kind is in the table twice");
}

/// Reads the table: each difference, and whether it has to be there. Of a line for any oddity (`*`), only the
/// difference of the sound case has to be.
fn expected(all: &[Case]) -> BTreeMap<Question<'_>, (Refuses, bool)> {
    let mut expected = BTreeMap::new();
    for (heading, fields) in lines(TABLE) {
        let refuses = Kind::named(heading).refuses;
        let [parts, shapes, profiles, who, judges, named] = fields[..] else {
            panic!("not a line of six fields: {fields:?}");
        };
        let names: Vec<_> = oddities(named).collect();
        let parts = some(parts, &Part::ALL, |_| true);
        let shapes = some(shapes, &Shape::ALL, |shape| {
            !matches!(shape, Shape::Bare | Shape::BareSent)
        });
        let profiles = some(profiles, &Profile::ALL, |_| true);
        let who = some(who, &Who::ALL, |_| true);
        let judges = some(judges, &Judge::ALL, |judge| judge != Judge::Bundle);
        for case in all.iter().filter(|case| shapes.contains(&case.shape)) {
            let (part, oddity) = case.oddity();
            let listed = part.is_some_and(|part| parts.contains(&part))
                && names.iter().any(|name| name == oddity);
            if !listed && named != "*" {
                continue;
            }
            let shape = case.shape;
            let asked = profiles.iter().flat_map(|profile| {
                let who = who.iter();
                who.flat_map(|who| judges.iter().map(|judge| (*profile, *who, *judge)))
            });
            for (profile, who, judge) in asked {
                // These have lines of their own: tags are refused whatever else there is.
                let tagged =
                    shape == Shape::Tagged && (profile == Profile::Modern || who == Who::GoSpiffe);
                if tagged && shapes != [Shape::Tagged] {
                    continue;
                }
                let question = Question::of(case, profile, who, judge);
                let (_, required) = expected.entry(question).or_insert((refuses, false));
                *required |= listed || part.is_none();
            }
        }
    }
    expected
}

/// Compares verdicts of cases with at most one oddity.
pub(crate) struct Book<'a> {
    cases: &'a [Case],
    asked: BTreeSet<Question<'a>>,
    /// With the reason of whoever refuses.
    found: BTreeMap<Question<'a>, (Refuses, String)>,
}

impl<'a> Book<'a> {
    pub(crate) fn new(cases: &'a [Case]) -> Self {
        Self {
            cases,
            asked: BTreeSet::new(),
            found: BTreeMap::new(),
        }
    }

    pub(crate) fn compare(
        &mut self,
        number: usize,
        who: Who,
        (judge, profile): (Judge, Profile),
        ours: &Verdict,
        theirs: &Verdict,
    ) {
        let question = Question::of(&self.cases[number], profile, who, judge);
        self.asked.insert(question);
        let difference = match (ours, theirs) {
            (Verdict::Refused(why), Verdict::Accepted) => (Refuses::We, why.clone()),
            (Verdict::Accepted, Verdict::Refused(why)) => (Refuses::They, why.clone()),
            _ => return,
        };
        self.found.insert(question, difference);
    }

    /// Compares both sides of a connection, and what is handed out with both at once.
    pub(crate) fn compare_sides(&mut self, number: usize, who: Who, ours: &Ours, theirs: &Sides) {
        let both = theirs.client.and(&theirs.server);
        // The request says of which profile it is. Requests of one for leaves of the other are among the oddities.
        let requested = self.cases[number].plan.profile();
        self.compare(number, who, (Judge::Issued, requested), &ours.issued, &both);
        for profile in Profile::ALL {
            let Sides { client, server } = ours.peer(profile);
            self.compare(
                number,
                who,
                (Judge::Client, profile),
                client,
                &theirs.client,
            );
            self.compare(
                number,
                who,
                (Judge::Server, profile),
                server,
                &theirs.server,
            );
        }
        if let Some(ca) = &ours.ca {
            self.compare(number, who, (Judge::Ca, Profile::Modern), ca, &both);
        }
    }

    /// Fails with the lines that the table lacks, and those that are wrong in it.
    pub(crate) fn finish(self) {
        let expected = expected(self.cases);
        let mut text = String::new();
        for (question, (refuses, why)) in &self.found {
            if expected.get(question).is_none_or(|(by, _)| by != refuses) {
                text += &format!("unexpected: {refuses:?}: {question} ({why})\n");
            }
        }
        for (question, (refuses, required)) in &expected {
            let found = self.found.contains_key(question);
            if *required && !found && self.asked.contains(question) {
                text += &format!("expected and not found: {refuses:?}: {question}\n");
            }
        }
        assert!(text.is_empty(), "\n{text}");
    }
}

/// Compares the verdicts of cases with two oddities with those that each of the oddities has alone.
///
/// A judge who refuses one of them refuses both, and a judge who accepts each of them accepts both. So the differences
/// are those of cases with one oddity. The table `pairs.txt` lists the exceptions, and is exact as well.
#[derive(Default)]
pub(crate) struct PairBook {
    asked: BTreeSet<String>,
    found: BTreeMap<String, String>,
}

impl PairBook {
    pub(crate) fn compare(&mut self, case: &Case, judge: &str, each: &Verdict, both: &Verdict) {
        self.asked.insert(judge.to_owned());
        let (does, why) = match (each, both) {
            (Verdict::Refused(why), Verdict::Accepted) => ("accept", why),
            (Verdict::Accepted, Verdict::Refused(why)) => ("refuse", why),
            _ => return,
        };
        let line = format!("{judge} | {does} | {}", case.name);
        self.found.insert(line, why.clone());
    }

    /// Fails with the lines that the table lacks, and those that are wrong in it.
    pub(crate) fn finish(self) {
        let mut expected = BTreeSet::new();
        for (_, fields) in lines(include_str!("pairs.txt")) {
            let [judges, does, pair] = fields[..] else {
                panic!("not a line of three fields: {fields:?}");
            };
            for judge in judges.split_whitespace() {
                // Other judges have two sides, which agree on all of these.
                let sides = [format!("{judge} client"), format!("{judge} server")];
                let names = sides.into_iter().chain([judge.to_owned()]);
                let asked = names.filter(|name| self.asked.contains(name));
                expected.extend(asked.map(|name| format!("{name} | {does} | {pair}")));
            }
        }
        let mut text = String::new();
        for (line, why) in self
            .found
            .iter()
            .filter(|(line, _)| !expected.contains(*line))
        {
            text += &format!("unexpected: {line} ({why})\n");
        }
        for line in expected
            .iter()
            .filter(|line| !self.found.contains_key(*line))
        {
            text += &format!("expected and not found: {line}\n");
        }
        assert!(text.is_empty(), "\n{text}");
    }
}
