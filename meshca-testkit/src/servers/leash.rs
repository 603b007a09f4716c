//! A process that does not outlive us.

use std::fs::File;
use std::future::Future;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use super::{Result, STARTUP};

/// Runs what its arguments say until that ends, or until the standard input does: until whoever holds the other end of that
/// pipe closes it, or is gone. A shell's background process would ignore an interrupt, hence the traps.
const SCRIPT: &str = r#"exec 3<&0
"$@" </dev/null 3<&- &
program=$!
{ cat <&3 >/dev/null; kill -9 $program; } 2>/dev/null &
leash=$!
exec 3<&-
trap 'kill -9 $program $leash 2>/dev/null' EXIT
trap 'exit 1' INT TERM HUP
wait $program
"#;

/// A program on a pipe.
#[derive(Debug)]
pub(super) struct Leash {
    name: &'static str,
    shell: Child,
    pipe: Option<ChildStdin>,
    log: PathBuf,
}

impl Leash {
    /// Starts a program whose output goes to a file, after what is there.
    pub(super) fn start(name: &'static str, command: &Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let mut shell = Command::new("sh");
        shell.args(["-c", SCRIPT, "sh"]);
        shell.arg(command.get_program()).args(command.get_args());
        for (variable, value) in command.get_envs() {
            if let Some(value) = value {
                shell.env(variable, value);
            }
        }
        let mut shell = shell
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .map_err(|error| format!("cannot start {name} by `sh`: {error}"))?;
        Ok(Self {
            name,
            pipe: shell.stdin.take(),
            shell,
            log: log.to_owned(),
        })
    }

    /// Ends the program as SIGKILL does, and waits for that.
    pub(super) fn kill(&mut self) {
        drop(self.pipe.take());
        // It cannot fail: the shell is ours, and was not waited for before.
        let _ = self.shell.wait();
    }

    /// Waits until it is up, which `ready` tells; an error, with what it said, if it ends before or takes too long.
    pub(super) async fn until<F: Future<Output = bool>>(
        &mut self,
        mut ready: impl FnMut() -> F,
    ) -> Result<()> {
        let begun = tokio::time::Instant::now();
        while !ready().await {
            if self.shell.try_wait()?.is_some() {
                return Err(format!("it ended; {}", self.complaint()).into());
            }
            if begun.elapsed() > STARTUP {
                return Err(format!("it does not answer; {}", self.complaint()).into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// What the program said last, and where the rest is.
    fn complaint(&self) -> String {
        let mut text = String::new();
        let read = File::open(&self.log).and_then(|mut log| log.read_to_string(&mut text));
        if let Err(error) = read {
            return format!("{}: its log cannot be read: {error}", self.name);
        }
        let lines: Vec<_> = text.lines().rev().take(15).collect();
        let mut tail: Vec<_> = lines.into_iter().rev().collect();
        if tail.is_empty() {
            tail.push("(it said nothing)");
        }
        format!(
            "{}: the end of {}:\n{}",
            self.name,
            self.log.display(),
            tail.join("\n")
        )
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The folder of a server, which is kept if the test that used it fails.
#[derive(Debug)]
pub(super) struct Folder(Option<tempfile::TempDir>);

impl Folder {
    pub(super) fn new(name: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("meshca-{name}-"))
            .tempdir()?;
        Ok(Self(Some(folder)))
    }

    pub(super) fn path(&self) -> &Path {
        self.0
            .as_ref()
            .map_or(Path::new(""), tempfile::TempDir::path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(folder) = self.0.take()
        {
            let path = folder.keep();
            eprintln!("the server's log and data are kept in {}", path.display());
        }
    }
}
