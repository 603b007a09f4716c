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

use std::collections::BTreeMap;
use std::fmt;

use meshca::TrustBundle;

use crate::oracle::cases::{Case, mutations, pairs, singles};
use crate::oracle::differences::{Book, Judge, Who};

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
    let all = mutations();
    judge(&singles(&all), true);
}

#[test]
fn certificates_with_two_oddities_are_judged_as_others_judge_them() {
    let all = mutations();
    judge(&pairs(&all, 16), false);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn certificates_with_one_oddity_are_judged_as_envoy_judges_them() {
    meshca_testenv::needs!(meshca_testenv::servers::Envoy::program());
    let all = mutations();
    let cases = singles(&all);
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
    let verdicts = envoy::judge(&asked).await;
    let mut accepted = 0;
    for (number, theirs) in readable.iter().zip(&verdicts) {
        let ours = ours::judge(&cases[*number]);
        let both = theirs.client.and(&theirs.server);
        accepted += usize::from(both.is_accepted());
        let mut compare = |judge, ours, theirs| {
            book.compare(*number, Who::Envoy, judge, ours, theirs);
        };
        compare(Judge::Issued, &ours.issued, &both);
        compare(Judge::Client, &ours.client, &theirs.client);
        compare(Judge::Server, &ours.server, &theirs.server);
    }
    let (count, refused) = (verdicts.len(), verdicts.len() - accepted);
    eprintln!("{count} cases for Envoy; accepted: {accepted}, refused: {refused}");
    eprintln!("{} bundles that are not published", bundles.len());
    for (anchors, number, ours) in bundles {
        let theirs = envoy::reads(anchors).await;
        book.compare(number, Who::Envoy, Judge::Bundle, &ours, &theirs);
    }
    book.finish(true);
}

fn judge(cases: &[Case], complete: bool) {
    let mut book = Book::new(cases);
    let verdicts: Vec<_> = cases.iter().map(ours::judge).collect();
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut count = |who, verdict: &Verdict| {
        let (accepted, refused) = counts.entry(who).or_default();
        *(if verdict.is_accepted() {
            accepted
        } else {
            refused
        }) += 1;
    };
    for ours in &verdicts {
        count("issued", &ours.issued);
        count("as client", &ours.client);
        count("as server", &ours.server);
    }
    let mut compare = |who: Who, number: usize, client: &Verdict, server: &Verdict| {
        count(who.name(), &client.and(server));
        let ours = &verdicts[number];
        book.compare(
            number,
            who,
            Judge::Issued,
            &ours.issued,
            &client.and(server),
        );
        book.compare(number, who, Judge::Client, &ours.client, client);
        book.compare(number, who, Judge::Server, &ours.server, server);
    };
    if let Some(all) = others::openssl(cases) {
        for (number, it) in all.iter().enumerate() {
            compare(Who::OpenSsl, number, &it.client, &it.server);
        }
    }
    if let Some(all) = others::go(cases) {
        for (number, it) in all.iter().enumerate() {
            compare(Who::Go, number, &it.x509.client, &it.x509.server);
            // It does not look at purposes, and its user's rules are those of an SVID.
            compare(Who::GoSpiffe, number, &it.spiffe, &it.spiffe);
        }
    }
    eprintln!("{} cases; accepted and refused:", cases.len());
    for (who, (accepted, refused)) in &counts {
        eprintln!("  {who}: {accepted}, {refused}");
    }
    book.finish(complete);
}
