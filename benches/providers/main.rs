//! Our side of `cargo xtask bench providers`: issuers on real servers, and bare clients beside them.
//!
//! It speaks like `speed.rs`: `CASE NANOSECONDS AT-ONCE` is answered with `OPERATIONS NANOSECONDS`, what goes wrong with
//! `error MESSAGE`. A server is started here with the first case that is about it (`MESHCA_VAULT_BIN` and so on); client and server
//! share the machine's cores.

mod acm;
mod certmanager;
mod vault;

use std::collections::HashMap;
use std::error::Error;
use std::io::{BufRead as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use meshca::{CertificateSpec, SpiffeId};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// A server, our issuer on it, and a bare client.
#[async_trait]
trait Provider: Send + Sync {
    /// One operation of a case.
    async fn run(&self, case: &str) -> Result<()>;

    /// For cases that are not about time: operations, and how many of something they took.
    async fn count(&self, case: &str) -> Result<Option<(usize, usize)>>;
}

/// What all of them are asked for.
fn spec() -> Result<CertificateSpec> {
    let id = SpiffeId::new("spiffe://example.org/ns/shop/sa/cart")?;
    Ok(CertificateSpec::workload(id).with_lifetime(Duration::from_secs(3600)))
}

fn main() -> Result<()> {
    // As a control plane that gives it one of its threads.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut providers = HashMap::new();
        let mut to = std::io::stdout();
        for line in std::io::stdin().lock().lines() {
            match answer(&mut providers, &line?).await {
                Ok(answer) => writeln!(to, "{answer}")?,
                Err(error) => writeln!(to, "error {error}")?,
            }
            to.flush()?;
        }
        Ok(())
    })
}

async fn answer(providers: &mut HashMap<String, Arc<dyn Provider>>, line: &str) -> Result<String> {
    let words: Vec<&str> = line.split(' ').collect();
    let [case, nanoseconds, at_once] = *words else {
        return Err(format!("`{line}` is not `CASE NANOSECONDS AT-ONCE`").into());
    };
    let name = case.split('-').next().unwrap_or_default();
    if !providers.contains_key(name) {
        let provider: Arc<dyn Provider> = match name {
            "acm" => Arc::new(acm::Bench::new().await?),
            "certmanager" => Arc::new(certmanager::Bench::new().await?),
            "vault" => Arc::new(vault::Bench::new().await?),
            _ => return Err(format!("there is no case `{case}`").into()),
        };
        providers.insert(name.to_owned(), provider);
    }
    let provider = providers.get(name).ok_or("the provider is not set up")?;
    if let Some((operations, count)) = provider.count(case).await? {
        return Ok(format!("{operations} {count}"));
    }
    let span = Duration::from_nanos(nanoseconds.parse()?);
    let begun = now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..at_once.parse()? {
        let (provider, case) = (Arc::clone(provider), case.to_owned());
        tasks.spawn(async move {
            let mut operations = 0;
            // One at least, however short the turn.
            loop {
                provider.run(&case).await?;
                operations += 1;
                if begun.elapsed() >= span {
                    return Result::<u64>::Ok(operations);
                }
            }
        });
    }
    let mut operations = 0;
    while let Some(done) = tasks.join_next().await {
        operations += done??;
    }
    Ok(format!("{operations} {}", begun.elapsed().as_nanos()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "what a benchmark is for is to take the time"
)]
fn now() -> Instant {
    Instant::now()
}
