//! One verdict: certificates and chains, right and wrong in every way that we could think of, are judged by us and
//! by those whose connections depend on it.
//!
//! Each case is asked of our verification of what a CA returns, of the verifier that rustls gets from us, of
//! OpenSSL, Go's `crypto/x509` and go-spiffe; chosen ones also of a real Envoy. A difference that is not among the
//! [expected ones](differences) fails the test, and so does an expected one that does not occur.

mod cases;
mod certificate;
mod differences;
#[cfg(unix)]
mod envoy;
mod others;
mod ours;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use meshca::TrustBundle;

use crate::counters::report;
use crate::oracle::cases::{Case, KINDS, Part, Profile, Shape, alone, mutations, pairs, singles};
use crate::oracle::certificate::SHA_1;
use crate::oracle::differences::{Book, Judge, PairBook, Who};
use crate::oracle::others::Sides;
use crate::oracle::ours::Ours;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accepted,
    Refused(String),
}

impl Verdict {
    fn refused(why: &impl fmt::Display) -> Self {
        Self::Refused(why.to_string())
    }

    fn is_accepted(&self) -> bool {
        *self == Self::Accepted
    }

    /// For both sides of a connection.
    fn and(&self, other: &Self) -> Self {
        match self {
            Self::Accepted => other.clone(),
            Self::Refused(_) => self.clone(),
        }
    }
}

impl<E: fmt::Display> From<Result<(), E>> for Verdict {
    fn from(result: Result<(), E>) -> Self {
        match result {
            Ok(()) => Self::Accepted,
            Err(error) => Self::refused(&error),
        }
    }
}

#[test]
fn certificates_with_one_oddity_are_judged_as_others_judge_them() {
    let cases = one_oddity();
    let mut book = Book::new(&cases);
    let all = judge("one oddity", &cases);
    every_kind_is_accepted_and_refused(&cases, &all);
    for (number, verdicts) in all.iter().enumerate() {
        for (who, theirs) in &verdicts.others {
            book.compare_sides(number, *who, &verdicts.ours, theirs);
        }
    }
    book.finish();
}

#[test]
fn certificates_with_two_oddities_are_judged_as_if_they_had_one() {
    let all = mutations();
    let (alone, cases) = (alone(&all), pairs(&all, 16));
    let single: BTreeMap<_, Verdicts> = { alone.iter() }
        .map(|case| case.oddity())
        .zip(judge("each of two oddities alone", &alone))
        .collect();
    let mut book = PairBook::default();
    for (case, verdicts) in cases.iter().zip(judge("two oddities", &cases)) {
        let [first, second] = case.mutations[..] else {
            panic!("{} has no two oddities", case.name);
        };
        let [first, second] = [first, second].map(|(part, name)| {
            let verdicts = &single[&(Some(part), name)];
            verdicts.named().collect::<BTreeMap<_, _>>()
        });
        for (judge, both) in verdicts.named() {
            if let Some((one, two)) = first.get(&judge).zip(second.get(&judge)) {
                book.compare(case, &judge, &one.and(two), both);
            }
        }
    }
    book.finish();
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn certificates_with_one_oddity_are_judged_as_envoy_judges_them() {
    meshca_testenv::needs!(meshca_testenv::servers::Envoy::program());
    let mut cases = one_oddity();
    // No rule of Envoy is about tags.
    cases.retain(|case| case.shape != Shape::Tagged || case.mutations.is_empty());
    let mut book = Book::new(&cases);
    let mut readable = Vec::new();
    let mut bundles: Vec<(&Vec<_>, usize, Verdict)> = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        match TrustBundle::new(ours::domain(), case.anchors.iter().cloned()) {
            Ok(_) => readable.push(number),
            // Envoy does not start with a bundle that it cannot read. Each is asked once.
            Err(error)
                if !bundles
                    .iter()
                    .any(|(anchors, ..)| *anchors == &case.anchors) =>
            {
                bundles.push((&case.anchors, number, Verdict::refused(&error)));
            }
            Err(_) => {}
        }
    }
    let asked: Vec<_> = readable.iter().map(|number| &cases[*number]).collect();
    let verdicts = envoy::judge(&asked, envoy::Newest::Tls13).await;
    let mut accepted = 0;
    for (number, theirs) in readable.iter().zip(&verdicts) {
        let ours = ours::judge(&cases[*number]);
        let both = theirs.client.and(&theirs.server);
        accepted += usize::from(both.is_accepted());
        book.compare_sides(*number, Who::Envoy, &ours, theirs);
    }
    let (count, refused) = (verdicts.len(), verdicts.len() - accepted);
    report(
        "oracle Envoy",
        &format!(
            "the oracle, by Envoy: {count} cases: {accepted} accepted, {refused} refused; {} bundles that are not published",
            bundles.len()
        ),
    );
    for (anchors, number, ours) in bundles {
        let theirs = envoy::reads(anchors).await;
        book.compare(
            number,
            Who::Envoy,
            (Judge::Bundle, Profile::Modern),
            &ours,
            &theirs,
        );
    }
    // What Envoy makes of a key depends on the version.
    readable.retain(|number| match cases[*number].oddity() {
        (Some(part), oddity) => part == Part::Leaf && oddity.starts_with("key: "),
        (None, _) => cases[*number].shape != Shape::Tagged,
    });
    let asked: Vec<_> = readable.iter().map(|number| &cases[*number]).collect();
    let verdicts = envoy::judge(&asked, envoy::Newest::Tls12).await;
    for (number, theirs) in readable.iter().zip(&verdicts) {
        let ours = ours::judge(&cases[*number]);
        book.compare_sides(*number, Who::EnvoyTls12, &ours, theirs);
    }
    book.finish();
}

fn one_oddity() -> Vec<Case> {
    let mut cases = singles(&mutations());
    // Without a signature that verifies, nobody accepts these, and they show nothing.
    cases.retain(|case| {
        let (part, oddity) = case.oddity();
        oddity != "signature: sha-1" || part == Some(Part::Root) || *SHA_1
    });
    cases
}

/// Of each kind of mutation, we accept some and refuse some: of leaves, of CAs between, and of trust anchors.
fn every_kind_is_accepted_and_refused(cases: &[Case], all: &[Verdicts]) {
    let mut seen = BTreeSet::new();
    for (case, verdicts) in cases.iter().zip(all) {
        let (Some(part), oddity) = case.oddity() else {
            continue;
        };
        let family = oddity.split(": ").next().unwrap();
        let kind = KINDS
            .iter()
            .find(|(_, families)| families.contains(&family));
        let (kind, _) = kind.unwrap_or_else(|| panic!("`{oddity}` is of no kind"));
        // With nothing but an intermediate to trust, all are refused, and tags by the modern rules.
        if !matches!(case.shape, Shape::Bare | Shape::BareSent | Shape::Tagged) {
            let ours = &verdicts.ours;
            let peers = Profile::ALL.map(|profile| ours.peer(profile));
            let peers = peers.into_iter().flat_map(|it| [&it.client, &it.server]);
            for verdict in peers.chain([&ours.issued]) {
                seen.insert((*kind, part, verdict.is_accepted()));
            }
        }
    }
    let questions = KINDS
        .iter()
        .flat_map(|(kind, _)| Part::ALL.map(|part| (*kind, part)));
    let questions = questions.flat_map(|(kind, part)| [(kind, part, true), (kind, part, false)]);
    let missing: Vec<_> = questions.filter(|one| !seen.contains(one)).collect();
    assert_eq!(missing, NOT_THERE, "kind, whose, whether accepted");
}

/// Nothing of these kinds is accepted (`true`) or refused, for a reason.
const NOT_THERE: &[(&str, Part, bool)] = &[
    // The sound leaf has none.
    ("path lengths", Part::Leaf, true),
    // An anchor is a name and a key.
    ("policies", Part::Root, false),
    // The sound ones have version 3; earlier ones cannot say what they are for.
    ("versions", Part::Leaf, true),
    ("versions", Part::Intermediate, true),
];

/// What everybody says of one case, on both sides of a connection.
struct Verdicts {
    ours: Ours,
    others: Vec<(Who, Sides)>,
}

/// Asks everybody but Envoy about all cases, and prints the counts.
fn judge(what: &str, cases: &[Case]) -> Vec<Verdicts> {
    let ours = cases.iter().map(|case| Verdicts {
        ours: ours::judge(case),
        others: Vec::new(),
    });
    let mut all: Vec<_> = ours.collect();
    let openssl = others::openssl(cases).into_iter().flatten();
    for (verdicts, it) in all.iter_mut().zip(openssl) {
        verdicts.others.push((Who::OpenSsl, it));
    }
    let go = others::go(cases).into_iter().flatten();
    for (verdicts, it) in all.iter_mut().zip(go) {
        verdicts.others.push((Who::Go, it.x509));
        verdicts.others.push((Who::GoSpiffe, it.spiffe));
    }
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (name, verdict) in all.iter().flat_map(Verdicts::named) {
        let (accepted, refused) = counts.entry(name).or_default();
        match verdict {
            Verdict::Accepted => *accepted += 1,
            Verdict::Refused(_) => *refused += 1,
        }
    }
    let counts = counts
        .iter()
        .map(|(name, (accepted, refused))| format!("{name} {accepted}/{refused}"))
        .collect::<Vec<_>>()
        .join(", ");
    report(
        &format!("oracle {what}"),
        &format!(
            "the oracle, {what}: {} cases, accepted/refused: {counts}",
            cases.len()
        ),
    );
    all
}

impl Verdicts {
    /// All verdicts, by the names of judges in the tables.
    fn named(&self) -> impl Iterator<Item = (String, &Verdict)> {
        let Ours { issued, ca, .. } = &self.ours;
        let ours = { ca.iter().map(|ca| ("ca", ca)) }.chain([("issued", issued)]);
        let ours = ours.map(|(name, verdict)| (name.to_owned(), verdict));
        let peers = Profile::ALL.map(|it| (format!("{it:?}"), self.ours.peer(it)));
        let others = { self.others.iter() }.map(|(who, sides)| (format!("{who:?}"), sides));
        let sides = peers.into_iter().chain(others).flat_map(|(who, sides)| {
            let sides = [("client", &sides.client), ("server", &sides.server)];
            sides.map(|(side, verdict)| (format!("{who} {side}"), verdict))
        });
        ours.chain(sides)
    }
}
