//! Our side of `cargo xtask bench`: measures what it is told to, round by round.
//!
//! It answers one line on standard input with one on standard output, until the input ends:
//!
//! | asked | answered |
//! |---|---|
//! | `CASE NANOSECONDS THREADS`: run the case for that long | `OPERATIONS NANOSECONDS`, of all threads together |
//! | `documents FILE`: write the documents of `resources` there, as a JSON list of texts | `written` |
//!
//! What goes wrong is answered by `error MESSAGE`. The programs in `peers` do the same, so that one
//! side waits while the other is measured.

mod cases;

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use cases::{Case, Result};

fn main() -> Result<()> {
    let mut ready = BTreeMap::new();
    let mut to = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        match answer(&line?, &mut ready) {
            Ok(answer) => writeln!(to, "{answer}")?,
            Err(error) => writeln!(to, "error {error}")?,
        }
        to.flush()?;
    }
    Ok(())
}

fn answer(line: &str, ready: &mut BTreeMap<String, Box<dyn Case>>) -> Result<String> {
    if let Some(file) = line.strip_prefix("documents ") {
        std::fs::write(
            file,
            serde_json::to_string(&cases::resources::documents()?)?,
        )?;
        return Ok("written".to_owned());
    }
    let words: Vec<&str> = line.split(' ').collect();
    let [name, nanoseconds, threads] = *words else {
        return Err(format!("`{line}` is not `CASE NANOSECONDS THREADS`").into());
    };
    if !ready.contains_key(name) {
        ready.insert(name.to_owned(), cases::set_up(name)?);
    }
    let case = ready.get(name).ok_or("the case is not set up")?;
    let span = Duration::from_nanos(nanoseconds.parse()?);
    let (operations, took) = measure(&**case, span, threads.parse()?)?;
    Ok(format!("{operations} {}", took.as_nanos()))
}

/// Runs a case for this long on each of the threads.
fn measure(case: &dyn Case, span: Duration, threads: usize) -> Result<(u64, Duration)> {
    let batch = batch(case, span)?;
    if threads == 1 {
        return until(case, span, batch);
    }
    let together = Barrier::new(threads);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    together.wait();
                    until(case, span, batch)
                })
            })
            .collect();
        let mut total = (0, Duration::ZERO);
        for thread in running {
            let (operations, took) = thread.join().map_err(|_| "a thread panicked")??;
            total = (total.0 + operations, total.1.max(took));
        }
        Ok(total)
    })
}

/// How often to repeat the case between two looks at the clock: for a fiftieth of the time.
fn batch(case: &dyn Case, span: Duration) -> Result<u64> {
    let mut batch = 1;
    loop {
        let begun = now();
        case.run(batch)?;
        if begun.elapsed() >= span / 50 {
            return Ok(batch);
        }
        batch *= 2;
    }
}

fn until(case: &dyn Case, span: Duration, batch: u64) -> Result<(u64, Duration)> {
    let begun = now();
    let mut operations = 0;
    loop {
        case.run(batch)?;
        operations += batch;
        let took = begun.elapsed();
        if took >= span {
            return Ok((operations, took));
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "what a benchmark is for is to take the time"
)]
fn now() -> Instant {
    Instant::now()
}
