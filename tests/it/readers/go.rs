//! What Go's `crypto/x509` and `text/template`, and go-spiffe, say: `testenv/readers` asks them.

mod spiffe;
mod templates;
#[cfg(feature = "rustls")]
mod tls;
mod x509;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The program, built once in each run; `None`, loudly, where that is not possible.
pub(crate) fn readers() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let built = build();
            if let Err(why) = &built {
                eprintln!(
                    "\n*** {why}: what Go says of our certificates, IDs, bundles and templates was NOT tested. \
                     Install Go as `testenv/readers/go.mod` wants it (https://go.dev/dl). ***\n"
                );
            }
            built.ok()
        })
        .as_deref()
}

fn build() -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("testenv/readers");
    let go = |arguments: &[&str]| {
        let mut command = Command::new("go");
        command
            .current_dir(&source)
            // Not another Go than the one that is there.
            .env("GOTOOLCHAIN", "local")
            .env("GOFLAGS", "-mod=readonly")
            .env("CGO_ENABLED", "0")
            .args(arguments);
        command.output()
    };
    let fetched = go(&["mod", "download"]).map_err(|error| format!("go not found ({error})"))?;
    if !fetched.status.success() {
        let why = String::from_utf8_lossy(&fetched.stderr);
        return Err(format!("go cannot fetch the modules ({})", why.trim()));
    }
    // Two runs may build at once; a file is replaced as a whole.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let scratch = tempfile::tempdir_in(folder).unwrap();
    let name = format!("meshca-readers{}", std::env::consts::EXE_SUFFIX);
    let fresh = scratch.path().join(&name);
    let built = go(&["build", "-o", fresh.to_str().unwrap(), "."]).unwrap();
    let complaints = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "go build: {complaints}");
    let program = folder.join(name);
    std::fs::rename(fresh, &program).unwrap();
    Ok(program)
}

/// What Go answers to each question: a value or an error.
pub(crate) fn ask(program: &Path, questions: &[Value]) -> Vec<Result<Value, String>> {
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // Besides the reading, lest both sides wait for the other to go on.
        scope.spawn(move || {
            for question in questions {
                writeln!(stdin, "{question}").unwrap();
            }
        });
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<_> = text
        .lines()
        .map(|line| {
            let mut answer: Value = serde_json::from_str(line).unwrap();
            match answer.get("error") {
                Some(error) => Err(error.as_str().unwrap().to_owned()),
                None => Ok(answer["value"].take()),
            }
        })
        .collect();
    assert_eq!(answers.len(), questions.len());
    answers
}
