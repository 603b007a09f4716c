//! What is measured, against what, and what is wanted of it.

use std::collections::BTreeSet;

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

/// One of ours, and everything that it is compared with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bench {
    pub(super) bench: &'static str,
    pub(super) case: &'static str,
    /// What the numbers are in, and how many nanoseconds that is.
    pub(super) unit: (&'static str, f64),
    pub(super) ours: Contender,
    pub(super) against: &'static [Against],
    /// Its instruction counts, where the processor is all that matters.
    pub(super) counted: Option<Counted>,
}

impl Bench {
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

const fn ours(case: &'static str) -> Contender {
    Contender {
        name: "meshca",
        program: Program::Ours,
        case,
        threads: 1,
    }
}

const fn against(name: &'static str, program: Program, case: &'static str, wanted: f64) -> Against {
    Against {
        what: What::Contender(Contender {
            name,
            program,
            case,
            threads: 1,
        }),
        wanted: if wanted > 0.0 { Some(wanted) } else { None },
    }
}

/// A limit that is to be kept.
const fn at_most(limit: f64) -> Against {
    Against {
        what: What::Limit(limit),
        wanted: Some(1.0),
    }
}

/// What nothing depends on, and everybody would notice.
const fn no_more_than(limit: f64) -> Against {
    Against {
        what: What::Limit(limit),
        wanted: None,
    }
}

const fn counted(
    ours: &'static str,
    bare: Option<(&'static str, &'static str)>,
) -> Option<Counted> {
    Some(Counted { ours, bare })
}

/// For [`against`]: nothing in particular is wanted.
const NOTHING: f64 = 0.0;

const BENCHES: &[Bench] = &[
    Bench {
        bench: "issue",
        case: "builtin-p256",
        unit: ("µs", 1e3),
        ours: ours("issue"),
        against: &[
            against("aws-lc-rs", Program::Ours, "issue-aws-lc-rs", 0.85),
            against("go", Program::ControlPlane, "issue", 5.0),
            against(
                "go-ca-kept",
                Program::ControlPlane,
                "issue-ca-kept",
                NOTHING,
            ),
            against("step-ca", Program::StepCa, "issue", NOTHING),
        ],
        counted: counted("issue", Some(("aws-lc-rs", "issue_aws_lc_rs"))),
    },
    Bench {
        bench: "issue",
        case: "builtin-p256-2-threads",
        unit: ("µs", 1e3),
        ours: Contender {
            threads: 2,
            ..ours("issue")
        },
        against: &[
            against("1-thread", Program::Ours, "issue", 1.8),
            // What the machine itself gives: less than two cores leave less than twice as much.
            Against {
                what: What::Contender(Contender {
                    name: "aws-lc-rs-2-threads",
                    program: Program::Ours,
                    case: "issue-aws-lc-rs",
                    threads: 2,
                }),
                wanted: None,
            },
        ],
        counted: None,
    },
    Bench {
        bench: "template",
        case: "path",
        unit: ("ns", 1.0),
        ours: ours("template"),
        against: &[
            Against {
                what: What::Limit(200.0),
                wanted: Some(1.0),
            },
            against("go-parsed", Program::ControlPlane, "template-parsed", 5.0),
            against(
                "go-per-call",
                Program::ControlPlane,
                "template-per-call",
                NOTHING,
            ),
        ],
        counted: counted("template", None),
    },
    Bench {
        bench: "resources",
        case: "parse-validate",
        unit: ("ms", 1e6),
        ours: ours("resources"),
        against: &[against("go", Program::ControlPlane, "resources", 2.0)],
        counted: counted("resources", None),
    },
    Bench {
        bench: "verify",
        case: "leaf",
        unit: ("µs", 1e3),
        ours: ours("verify"),
        against: &[against("webpki", Program::Ours, "verify-webpki", 0.9)],
        counted: counted("verify", Some(("webpki", "verify_webpki"))),
    },
    Bench {
        bench: "handshake",
        case: "peer",
        unit: ("µs", 1e3),
        ours: ours("handshake"),
        against: &[against("webpki", Program::Ours, "verify-webpki", 0.9)],
        counted: counted("handshake", Some(("webpki", "verify_webpki"))),
    },
    // Before the others, while no memory has been freed that it could be put into. The program answers with bytes.
    manager("memory", ("B", 1.0), &[at_most(1536.0)]),
    manager("event", ("µs", 1e3), &[at_most(5e3)]),
    manager("read", ("ns", 1.0), &[at_most(50.0)]),
    // CPU of all threads: at most a tenth more than the certificates alone.
    manager(
        "storm",
        ("µs", 1e3),
        &[
            against("bare", Program::Manager, "bare", 0.909),
            against("dropped", Program::Manager, "dropped", 0.0),
        ],
    ),
    // As with the manager. The kernel's part of a connection is in neither process.
    xds("memory", ("KiB", 1024.0), &[at_most(40.0 * 1024.0)]),
    // CPU for each proxy until it has received it: at most three times that of encoding and writing the same.
    xds(
        "push",
        ("µs", 1e3),
        &[against("written", Program::Xds, "written", 0.333)],
    ),
    Bench {
        case: "push-unix",
        ..alone(
            "xds",
            Program::XdsUnix,
            "push",
            ("µs", 1e3),
            &[against("written", Program::XdsUnix, "written", NOTHING)],
        )
    },
    xds("acknowledge", ("µs", 1e3), &[no_more_than(1e6)]),
    xds("p50", ("ms", 1e6), &[no_more_than(1e9)]),
    xds("p99", ("ms", 1e6), &[no_more_than(1e9)]),
    // Proxies that do not read are nobody else's loss.
    xds(
        "p99-slow",
        ("ms", 1e6),
        &[against("p99", Program::Xds, "p99", 0.8)],
    ),
    xds("first", ("µs", 1e3), &[no_more_than(1e6)]),
    xds("connect", ("µs", 1e3), &[no_more_than(1e6)]),
    xds("connect-cpu", ("µs", 1e3), &[no_more_than(1e6)]),
    vault("vault-sign-1", 1, &[bare_http(1, None)]),
    vault("vault-sign-8", 8, &[bare_http(8, None)]),
    vault("vault-sign-64", 64, &[bare_http(64, Some(0.95))]),
    provider("vault-issue-64", "vault-issue", 64, &[bare_http(64, None)]),
    Bench {
        bench: "providers",
        case: "vault-idle-issuer",
        // The program answers with bytes where the others answer with nanoseconds.
        unit: ("KiB", 1024.0),
        ours: Contender {
            name: "meshca",
            program: Program::Providers,
            case: "vault-memory",
            threads: 1,
        },
        against: &[Against {
            what: What::Limit(128.0 * 1024.0),
            wanted: None,
        }],
        counted: None,
    },
    acm("acm-sign-1", 1, &[bare_sdk(1, None)]),
    acm("acm-sign-64", 64, &[bare_sdk(64, Some(0.95))]),
    provider("acm-issue-64", "acm-issue", 64, &[bare_sdk(64, None)]),
    certmanager("certmanager-1", 1, &[bare_kube(1, None)]),
    certmanager("certmanager-64", 64, &[bare_kube(64, Some(0.9))]),
    Bench {
        bench: "providers",
        case: "certmanager-calls",
        // The program answers with calls of the API server.
        unit: ("calls", 1.0),
        ours: Contender {
            name: "meshca",
            program: Program::Providers,
            case: "certmanager-calls",
            threads: 64,
        },
        against: &[Against {
            what: What::Limit(2.2),
            wanted: Some(1.0),
        }],
        counted: None,
    },
];

/// What the manager costs.
const fn manager(
    case: &'static str,
    unit: (&'static str, f64),
    against: &'static [Against],
) -> Bench {
    alone("manager", Program::Manager, case, unit, against)
}

/// What the server of secrets costs.
const fn xds(case: &'static str, unit: (&'static str, f64), against: &'static [Against]) -> Bench {
    alone("xds", Program::Xds, case, unit, against)
}

/// What a program that is about one part only measures of it.
const fn alone(
    bench: &'static str,
    program: Program,
    case: &'static str,
    unit: (&'static str, f64),
    against: &'static [Against],
) -> Bench {
    Bench {
        bench,
        case,
        unit,
        ours: Contender {
            name: "meshca",
            program,
            case,
            threads: 1,
        },
        against,
        counted: None,
    }
}

/// Signatures of what stands for AWS, with this many requests in flight.
const fn acm(case: &'static str, at_once: u32, against: &'static [Against]) -> Bench {
    provider(case, "acm", at_once, against)
}

/// A loop of the SDK's two calls.
const fn bare_sdk(at_once: u32, wanted: Option<f64>) -> Against {
    bare("bare-sdk", "acm-bare", at_once, wanted)
}

/// Certificates from cert-manager, with this many requests in flight.
const fn certmanager(case: &'static str, at_once: u32, against: &'static [Against]) -> Bench {
    provider(case, "certmanager", at_once, against)
}

/// A loop that creates requests, waits for them by a watch, and deletes them.
const fn bare_kube(at_once: u32, wanted: Option<f64>) -> Against {
    bare("bare-kube", "certmanager-bare", at_once, wanted)
}

/// Vault's signatures, with this many requests in flight.
const fn vault(case: &'static str, at_once: u32, against: &'static [Against]) -> Bench {
    provider(case, "vault", at_once, against)
}

/// A client of Vault that does no more than post what ours posts.
const fn bare_http(at_once: u32, wanted: Option<f64>) -> Against {
    bare("bare-http", "vault-bare", at_once, wanted)
}

/// One of ours on a real server: `case` in the table, `run` in the program.
const fn provider(
    case: &'static str,
    run: &'static str,
    at_once: u32,
    against: &'static [Against],
) -> Bench {
    Bench {
        bench: "providers",
        case,
        unit: ("µs", 1e3),
        ours: Contender {
            name: "meshca",
            program: Program::Providers,
            case: run,
            threads: at_once,
        },
        against,
        counted: None,
    }
}

/// A bare client of the same server.
const fn bare(name: &'static str, run: &'static str, at_once: u32, wanted: Option<f64>) -> Against {
    Against {
        what: What::Contender(Contender {
            name,
            program: Program::Providers,
            case: run,
            threads: at_once,
        }),
        wanted,
    }
}

/// The benches whose names start as one of these; all if there are none.
pub(super) fn chosen(names: &[String]) -> Result<Vec<Bench>> {
    for name in names {
        if !BENCHES.iter().any(|bench| bench.name().starts_with(name)) {
            let all: Vec<String> = BENCHES.iter().map(Bench::name).collect();
            return Err(format!(
                "no benchmark starts with `{name}`; there are {}",
                all.join(", ")
            ));
        }
    }
    Ok(BENCHES
        .iter()
        .filter(|bench| names.is_empty() || names.iter().any(|name| bench.name().starts_with(name)))
        .copied()
        .collect())
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
        assert_eq!(names(&[]).len(), BENCHES.len());
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
        let benches = chosen(&["verify".to_owned()]).unwrap();
        assert_eq!(Vec::from_iter(programs(&benches)), [Program::Ours]);
        assert_eq!(programs(BENCHES).len(), 7);
    }
}
