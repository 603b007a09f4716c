//! The same cases under callgrind, run by `cargo xtask bench --instructions`: instructions instead of time.

#![allow(
    missing_docs,
    reason = "the macros of gungraun make items that take no documentation"
)]

mod cases;

use cases::Case;
use gungraun::prelude::*;

/// Signatures are not always of the same length, so one operation alone says less than a few. The name
/// of the function tells whoever reads the counts.
const TIMES: u64 = 20;

/// Sets up a case and runs it once, so that what happens only once (a library's tables, its random
/// number generator) is not counted.
fn warm(name: &str) -> Box<dyn Case> {
    match cases::set_up(name).and_then(|case| case.run(1).map(|()| case)) {
        Ok(case) => case,
        Err(error) => unusable(name, &*error),
    }
}

#[library_benchmark(setup = warm)]
#[bench::issue("issue")]
#[bench::issue_aws_lc_rs("issue-aws-lc-rs")]
#[bench::template("template")]
#[bench::verify("verify")]
#[bench::handshake("handshake")]
#[bench::verify_webpki("verify-webpki")]
fn times_20(case: Box<dyn Case>) -> Box<dyn Case> {
    counted(case, TIMES)
}

// A thousand documents at once are enough.
#[library_benchmark(setup = warm)]
#[bench::resources("resources")]
fn times_1(case: Box<dyn Case>) -> Box<dyn Case> {
    counted(case, 1)
}

/// Returns the case, so that taking it down is not counted.
fn counted(case: Box<dyn Case>, times: u64) -> Box<dyn Case> {
    match case.run(times) {
        Ok(()) => case,
        Err(error) => unusable("a case", &*error),
    }
}

#[expect(
    clippy::panic,
    reason = "the only way to make the runner report a failure"
)]
fn unusable(name: &str, error: &dyn std::error::Error) -> ! {
    panic!("{name}: {error}")
}

library_benchmark_group!(name = all, benchmarks = [times_20, times_1]);
main!(library_benchmark_groups = all);
