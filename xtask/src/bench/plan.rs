//! What is measured, against what, and what is wanted of it.

use std::collections::BTreeSet;

use Program::{ControlPlane, Manager, Ours, Providers, StepCa, Xds, XdsUnix};

use crate::process::Result;

/// A program that measures its own cases when it is told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Program {
    /// `benches/speed.rs`: ours, and the bare Rust libraries.
    Ours,
    /// `benches/peers/control-plane`: what a control plane in Go does.
    ControlPlane,
    /// `benches/peers/step-ca`.
    StepCa,
    /// `benches/manager.rs`: what the manager costs beside its certificates.
    Manager,
    /// `benches/xds`: what the server of secrets costs for each proxy, over TCP.
    Xds,
    /// The same over Unix sockets, where the kernel does less.
    XdsUnix,
    /// `benches/providers`: issuers on real servers, and bare clients of these.
    Providers,
}

impl Program {
    /// What is missing without it.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Ours => "everything",
            Self::ControlPlane => "the comparisons with Go",
            Self::StepCa => "the comparison with step-ca",
            Self::Manager => "the manager",
            Self::Xds => "the server of secrets",
            Self::XdsUnix => "the server of secrets on Unix sockets",
            Self::Providers => "the providers",
        }
    }
}

/// Somebody who does what a case is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contender {
    /// The name in the table.
    pub(super) name: &'static str,
    /// Which program measures it, under which name, on how many threads.
    pub(super) program: Program,
    pub(super) case: &'static str,
    pub(super) threads: u32,
}

/// A comparison of ours with a contender or a limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Against {
    pub(super) what: What,
    /// The ratio that we want to reach; reported, and nothing fails below it.
    pub(super) wanted: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    Contender(Contender),
    /// Nanoseconds for one operation.
    Limit(f64),
}

/// Cases of `benches/instructions.rs`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    pub(super) ours: &'static str,
    /// The bare library that bounds ours, and its case.
    pub(super) bare: Option<(&'static str, &'static str)>,
}

/// What numbers are in, and how many nanoseconds that is. Some programs answer with bytes or calls instead.
type Unit = (&'static str, f64);

const NS: Unit = ("ns", 1.0);
const US: Unit = ("µs", 1e3);
const MS: Unit = ("ms", 1e6);
const BYTES: Unit = ("B", 1.0);
const KIB: Unit = ("KiB", 1024.0);
const CALLS: Unit = ("calls", 1.0);

/// One of ours, and everything that it is compared with.
#[derive(Clone, Debug)]
pub(super) struct Bench {
    pub(super) bench: &'static str,
    pub(super) case: &'static str,
    pub(super) unit: Unit,
    pub(super) ours: Contender,
    pub(super) against: Vec<Against>,
    /// Its instruction counts, where the processor is all that matters.
    pub(super) counted: Option<Counted>,
}

impl Bench {
    /// A case of this program, on one thread.
    fn of(
        bench: &'static str,
        case: &'static str,
        unit: Unit,
        program: Program,
        run: &'static str,
    ) -> Self {
        Self {
            bench,
            case,
            unit,
            ours: Contender {
                name: "meshca",
                program,
                case: run,
                threads: 1,
            },
            against: Vec::new(),
            counted: None,
        }
    }

    /// Runs ours, and the contenders that are named after this, on so many threads.
    fn threads(mut self, threads: u32) -> Self {
        self.ours.threads = threads;
        self
    }

    fn than(mut self, what: What, wanted: Option<f64>) -> Self {
        self.against.push(Against { what, wanted });
        self
    }

    fn against(
        self,
        name: &'static str,
        program: Program,
        case: &'static str,
        wanted: Option<f64>,
    ) -> Self {
        let threads = self.ours.threads;
        let contender = Contender {
            name,
            program,
            case,
            threads,
        };
        self.than(What::Contender(contender), wanted)
    }

    /// A limit that is to be kept.
    fn at_most(self, limit: f64) -> Self {
        self.than(What::Limit(limit), Some(1.0))
    }

    /// What nothing depends on, and everybody would notice.
    fn no_more_than(self, limit: f64) -> Self {
        self.than(What::Limit(limit), None)
    }

    fn counted(mut self, ours: &'static str, bare: Option<(&'static str, &'static str)>) -> Self {
        self.counted = Some(Counted { ours, bare });
        self
    }

    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.bench, self.case)
    }

    /// Ours first, then the others.
    pub(super) fn contenders(&self) -> impl Iterator<Item = &Contender> {
        let others = self
            .against
            .iter()
            .filter_map(|against| match &against.what {
                What::Contender(contender) => Some(contender),
                What::Limit(_) => None,
            });
        std::iter::once(&self.ours).chain(others)
    }
}

/// All of them, in the order in which they are measured.
fn benches() -> Vec<Bench> {
    vec![
        Bench::of("issue", "builtin-p256", US, Ours, "issue")
            .against("aws-lc-rs", Ours, "issue-aws-lc-rs", Some(0.85))
            .against("go", ControlPlane, "issue", Some(5.0))
            .against("go-ca-kept", ControlPlane, "issue-ca-kept", None)
            .against("step-ca", StepCa, "issue", None)
            .counted("issue", Some(("aws-lc-rs", "issue_aws_lc_rs"))),
        Bench::of("issue", "builtin-p256-2-threads", US, Ours, "issue")
            .against("1-thread", Ours, "issue", Some(1.8))
            .threads(2)
            // What the machine itself gives: less than two cores leave less than twice as much.
            .against("aws-lc-rs-2-threads", Ours, "issue-aws-lc-rs", None),
        Bench::of("template", "path", NS, Ours, "template")
            .at_most(200.0)
            .against("go-parsed", ControlPlane, "template-parsed", Some(5.0))
            .against("go-per-call", ControlPlane, "template-per-call", None)
            .counted("template", None),
        Bench::of("resources", "parse-validate", MS, Ours, "resources")
            .against("go", ControlPlane, "resources", Some(2.0))
            .counted("resources", None),
        Bench::of("verify", "leaf", US, Ours, "verify")
            .against("webpki", Ours, "verify-webpki", Some(0.9))
            .counted("verify", Some(("webpki", "verify_webpki"))),
        Bench::of("handshake", "peer", US, Ours, "handshake")
            .against("webpki", Ours, "verify-webpki", Some(0.9))
            .counted("handshake", Some(("webpki", "verify_webpki"))),
        // Before the others, while no memory has been freed that it could be put into.
        manager("memory", BYTES).at_most(1536.0),
        manager("event", US).at_most(5e3),
        manager("read", NS).at_most(50.0),
        // CPU of all threads: at most a tenth more than the certificates alone.
        manager("storm", US)
            .against("bare", Manager, "bare", Some(0.909))
            .against("dropped", Manager, "dropped", None),
        // As with the manager. The kernel's part of a connection is in neither process.
        xds("memory", KIB).at_most(40.0 * 1024.0),
        // CPU for each proxy until it has received it: at most three times that of encoding and writing the same.
        xds("push", US).against("written", Xds, "written", Some(0.333)),
        Bench::of("xds", "push-unix", US, XdsUnix, "push")
            .against("written", XdsUnix, "written", None),
        xds("acknowledge", US).no_more_than(1e6),
        xds("p50", MS).no_more_than(1e9),
        xds("p99", MS).no_more_than(1e9),
        // Proxies that do not read are nobody else's loss.
        xds("p99-slow", MS).against("p99", Xds, "p99", Some(0.8)),
        xds("first", US).no_more_than(1e6),
        xds("connect", US).no_more_than(1e6),
        xds("connect-cpu", US).no_more_than(1e6),
        provider("vault-sign-1", "vault", 1, HTTP, None),
        provider("vault-sign-8", "vault", 8, HTTP, None),
        provider("vault-sign-64", "vault", 64, HTTP, Some(0.95)),
        provider("vault-issue-64", "vault-issue", 64, HTTP, None),
        Bench::of(
            "providers",
            "vault-idle-issuer",
            KIB,
            Providers,
            "vault-memory",
        )
        .no_more_than(128.0 * 1024.0),
        provider("acm-sign-1", "acm", 1, SDK, None),
        provider("acm-sign-64", "acm", 64, SDK, Some(0.95)),
        provider("acm-issue-64", "acm-issue", 64, SDK, None),
        provider("certmanager-1", "certmanager", 1, KUBE, None),
        provider("certmanager-64", "certmanager", 64, KUBE, Some(0.9)),
        Bench::of(
            "providers",
            "certmanager-calls",
            CALLS,
            Providers,
            "certmanager-calls",
        )
        .threads(64)
        .at_most(2.2),
    ]
}

/// What the manager costs.
fn manager(case: &'static str, unit: Unit) -> Bench {
    Bench::of("manager", case, unit, Manager, case)
}

/// What the server of secrets costs.
fn xds(case: &'static str, unit: Unit) -> Bench {
    Bench::of("xds", case, unit, Xds, case)
}

/// A bare client of a real server, by its name and case.
type Bare = (&'static str, &'static str);

/// It does no more than post to Vault what ours posts.
const HTTP: Bare = ("bare-http", "vault-bare");
/// A loop of the two calls of the AWS SDK.
const SDK: Bare = ("bare-sdk", "acm-bare");
/// A loop that creates requests for cert-manager, waits for them by a watch, and deletes them.
const KUBE: Bare = ("bare-kube", "certmanager-bare");

/// One of ours on a real server, with this many requests in flight: `case` in the table, `run` in the program.
fn provider(
    case: &'static str,
    run: &'static str,
    at_once: u32,
    (name, bare): Bare,
    wanted: Option<f64>,
) -> Bench {
    Bench::of("providers", case, US, Providers, run)
        .threads(at_once)
        .against(name, Providers, bare, wanted)
}

/// The benches whose names start as one of these; all if there are none.
pub(super) fn chosen(names: &[String]) -> Result<Vec<Bench>> {
    let mut benches = benches();
    for name in names {
        if !benches.iter().any(|bench| bench.name().starts_with(name)) {
            let all: Vec<String> = benches.iter().map(Bench::name).collect();
            return Err(format!(
                "no benchmark starts with `{name}`; there are {}",
                all.join(", ")
            ));
        }
    }
    benches.retain(|bench| {
        names.is_empty() || names.iter().any(|name| bench.name().starts_with(name))
    });
    Ok(benches)
}

/// The programs that these need, ours first: it writes what the others read.
pub(super) fn programs(benches: &[Bench]) -> BTreeSet<Program> {
    benches
        .iter()
        .flat_map(Bench::contenders)
        .map(|contender| contender.program)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose_by_how_they_start() {
        let names = |given: &[&str]| -> Vec<String> {
            let given: Vec<String> = given.iter().map(|&name| name.to_owned()).collect();
            chosen(&given).unwrap().iter().map(Bench::name).collect()
        };
        assert_eq!(names(&[]).len(), benches().len());
        assert_eq!(names(&["verify"]), ["verify/leaf"]);
        assert_eq!(
            names(&["verify/leaf", "issue"]),
            [
                "issue/builtin-p256",
                "issue/builtin-p256-2-threads",
                "verify/leaf"
            ]
        );
        let error = chosen(&["nothing".to_owned()]).unwrap_err();
        assert!(error.contains("template/path"), "{error}");
    }

    #[test]
    fn only_the_programs_that_are_needed_are_started() {
        let chosen = chosen(&["verify".to_owned()]).unwrap();
        assert_eq!(Vec::from_iter(programs(&chosen)), [Program::Ours]);
        assert_eq!(programs(&benches()).len(), 7);
    }
}
