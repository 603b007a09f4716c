//! What is measured: each case is set up once and then repeated as often as is asked for.

mod issue;
pub(crate) mod resources;
mod template;
mod verify;

use std::error::Error;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// What went wrong, for whoever started the benchmark.
pub(crate) type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Something to measure.
pub(crate) trait Case: Send + Sync {
    /// Does it this many times. Several threads may do so at once.
    fn run(&self, times: u64) -> Result<()>;
}

/// How a case is set up.
type SetUp = fn() -> Result<Box<dyn Case>>;

/// All cases: ours, and the bare libraries that bound what ours can reach.
const CASES: [(&str, SetUp); 7] = [
    ("issue", issue::builtin),
    ("issue-aws-lc-rs", issue::aws_lc_rs),
    ("template", template::path),
    ("resources", resources::parse_validate),
    ("verify", verify::leaf),
    ("handshake", verify::peer),
    ("verify-webpki", verify::webpki),
];

/// Sets up the case of this name.
pub(crate) fn set_up(name: &str) -> Result<Box<dyn Case>> {
    let (_, set_up) = CASES
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| format!("no case is called `{name}`"))?;
    set_up()
}

/// A case made of a closure that does it once.
struct Each<F>(F);

impl<F: Fn() -> Result<()> + Send + Sync> Case for Each<F> {
    fn run(&self, times: u64) -> Result<()> {
        (0..times).try_for_each(|_| (self.0)())
    }
}

fn each(once: impl Fn() -> Result<()> + Send + Sync + 'static) -> Result<Box<dyn Case>> {
    Ok(Box::new(Each(once)))
}

/// The built-in CA waits for nothing, so no runtime has a part in what is measured.
fn ready<T>(future: impl Future<Output = T>) -> Result<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Ok(value),
        Poll::Pending => {
            Err("the built-in CA waits for something, which a benchmark cannot".into())
        }
    }
}
