//! The programs that measure: built, started, and asked for one turn after the other.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::plan::{Bench, Contender, Program};
use crate::cargo::{self, Tree};
use crate::process::{self, Result};
use crate::servers;

/// What the providers are started from.
const SERVERS: [&str; 5] = [
    "MESHCA_CERTMANAGER_BIN",
    "MESHCA_ETCD_BIN",
    "MESHCA_KUBE_APISERVER_BIN",
    "MESHCA_MOTO_BIN",
    "MESHCA_VAULT_BIN",
];

/// Why a program cannot be run here, and what to do about it.
pub(super) struct Missing(pub(super) String);

impl From<String> for Missing {
    fn from(why: String) -> Self {
        Self(why)
    }
}

/// A program that waits for its turn. It ends when it is dropped.
pub(super) struct Running {
    pub(super) executable: PathBuf,
    child: Child,
    /// Closed to end it.
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

/// The programs that measure ours for these benches.
pub(super) fn of_ours(benches: &[Bench]) -> BTreeSet<Program> {
    benches.iter().map(|bench| bench.ours.program).collect()
}

/// Builds and starts a program of this tree. Ours leaves the documents that the others read.
pub(super) fn start(
    program: Program,
    smoke: bool,
    target: &Path,
    documents: &Path,
    tree: &Tree,
) -> Result<Running, Missing> {
    let command = match program {
        Program::Ours => {
            println!("building meshca's side");
            Command::new(cargo::bench_executable(tree, "speed", &[], smoke)?)
        }
        Program::ControlPlane => {
            let mut command = Command::new(build_peer("control-plane", target)?);
            // Go would otherwise collect its garbage on a second core.
            command.env("GOMAXPROCS", "1").arg(documents);
            command
        }
        Program::StepCa => Command::new(build_peer("step-ca", target)?),
        Program::Manager => {
            println!("building the manager");
            let executable = cargo::bench_executable(tree, "manager", &["identity"], smoke)?;
            let mut command = Command::new(executable);
            // Identities that are held, and that are renewed at once.
            command.args(match smoke {
                true => ["500", "200"],
                false => ["1000000", "100000"],
            });
            command
        }
        Program::Xds => xds(tree, smoke, "tcp")?,
        Program::XdsUnix => xds(tree, smoke, "unix")?,
        Program::Providers => {
            let mut variables = Vec::new();
            for variable in SERVERS {
                variables.push((variable, servers::obtain(variable)?));
            }
            println!("building the providers");
            let features = ["acm", "certmanager", "vault"];
            let executable = cargo::bench_executable(tree, "providers", &features, smoke)?;
            let mut command = Command::new(executable);
            command.envs(variables);
            command
        }
    };
    let mut running = Running::start(command)?;
    if program == Program::Ours {
        if let Some(directory) = documents.parent() {
            fs::create_dir_all(directory)
                .map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
        }
        running.ask(&format!("documents {}", documents.display()))?;
    }
    Ok(running)
}

fn xds(tree: &Tree, smoke: bool, transport: &str) -> Result<Command> {
    println!("building the server of secrets");
    let mut command = Command::new(cargo::bench_executable(tree, "xds", &["xds"], smoke)?);
    // Proxies, and those of them that stop reading.
    command.args(match smoke {
        true => ["50", "5"],
        false => ["5000", "100"],
    });
    command.arg(transport);
    Ok(command)
}

/// The Go command: on `PATH`, or where Go's own installer puts it.
pub(super) fn go() -> Option<PathBuf> {
    process::on_path("go").or_else(|| {
        let installed = PathBuf::from("/usr/local/go/bin/go");
        installed.is_file().then_some(installed)
    })
}

fn build_peer(name: &str, target: &Path) -> Result<PathBuf, Missing> {
    let Some(go) = go() else {
        return Err(Missing(
            "Go not found; install it from https://go.dev/dl or with the system's packages"
                .to_owned(),
        ));
    };
    println!("building the peer {name}");
    let executable = target
        .join("bench")
        .join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    let mut build = Command::new(go);
    build
        .current_dir(cargo::root().join("benches").join("peers"))
        .arg("build")
        .arg("-o")
        .arg(&executable)
        .arg(format!("./{name}"));
    process::run(&mut build).map_err(|failure| {
        format!("{failure}; its modules come over the network the first time, see above")
    })?;
    Ok(executable)
}

impl Running {
    fn start(mut command: Command) -> Result<Self> {
        let executable = PathBuf::from(command.get_program());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|error| process::not_started(&command, &error))?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(format!("cannot talk to {}", executable.display()));
        };
        Ok(Self {
            executable,
            child,
            to: Some(to),
            from: BufReader::new(from),
        })
    }

    /// Nanoseconds for one operation of this contender, over one turn.
    pub(super) fn turn(&mut self, contender: &Contender, turn: Duration) -> Result<f64> {
        let Contender { case, threads, .. } = contender;
        let answer = self.ask(&format!("{case} {} {threads}", turn.as_nanos()))?;
        per_operation(&answer)
            .ok_or_else(|| format!("{}: cannot read `{answer}`", self.executable.display()))
    }

    fn ask(&mut self, question: &str) -> Result<String> {
        let lost = |error: std::io::Error| {
            format!(
                "lost {} at `{question}`: {error}",
                self.executable.display()
            )
        };
        let mut answer = String::new();
        if let Some(to) = &mut self.to {
            writeln!(to, "{question}").map_err(lost)?;
            to.flush().map_err(lost)?;
        }
        self.from.read_line(&mut answer).map_err(lost)?;
        match answer.trim_end() {
            "" => Err(format!(
                "{} ended at `{question}`; what it said is above",
                self.executable.display()
            )),
            answer => match answer.strip_prefix("error ") {
                Some(message) => Err(format!(
                    "{} at `{question}`: {message}",
                    self.executable.display()
                )),
                None => Ok(answer.to_owned()),
            },
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.to = None;
        // It has nothing left to read, so it ends; how, nobody needs to know any more.
        let _ = self.child.wait();
    }
}

/// Reads `OPERATIONS NANOSECONDS`.
fn per_operation(answer: &str) -> Option<f64> {
    let (operations, nanoseconds) = answer.split_once(' ')?;
    let (operations, nanoseconds): (f64, f64) =
        (operations.parse().ok()?, nanoseconds.parse().ok()?);
    (operations > 0.0 && nanoseconds > 0.0).then(|| nanoseconds / operations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_operations_and_nanoseconds() {
        assert_eq!(per_operation("4 1000"), Some(250.0));
        for answer in ["", "4", "0 1000", "4 -1", "written"] {
            assert_eq!(per_operation(answer), None, "{answer}");
        }
    }
}
