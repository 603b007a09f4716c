//! A process that does not outlive us.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::{Result, STARTUP, within};

/// Runs what its arguments but the first say until that ends, or until the standard input does: until whoever holds the other end
/// of that pipe closes it, or is gone. The first is a file for the program's process ID. A shell's background process would ignore an
/// interrupt, hence the traps.
const SCRIPT: &str = r#"exec 3<&0
pid=$1
shift
"$@" </dev/null 3<&- &
program=$!
echo $program >"$pid"
{ cat <&3 >/dev/null; kill -9 $program; } 2>/dev/null &
leash=$!
exec 3<&-
trap 'kill -9 $program $leash 2>/dev/null' EXIT
trap 'exit 1' INT TERM HUP
wait $program
"#;

/// How long a program may take to stop or end when it is told to.
const OBEDIENCE: Duration = Duration::from_secs(30);

/// A program on a pipe.
#[derive(Debug)]
pub(super) struct Leash {
    name: &'static str,
    shell: Child,
    pipe: Option<ChildStdin>,
    log: PathBuf,
    pid: PathBuf,
}

impl Leash {
    /// Starts a program whose output goes to a file in this folder, after what is there, and waits until it is up, which `ready` tells;
    /// an error, with what it said, if it ends before or takes too long.
    pub(super) async fn start<F: Future<Output = bool>>(
        name: &'static str,
        command: &Command,
        folder: &Folder,
        mut ready: impl FnMut() -> F,
    ) -> Result<Self> {
        let log = folder.file(&format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        let pid = log.with_extension("pid");
        let mut shell = Command::new("sh");
        shell.args(["-c", SCRIPT, "sh"]).arg(&pid);
        shell.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let mut shell = shell
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .map_err(|error| format!("cannot start {name} by `sh`: {error}"))?;
        let mut leash = Self {
            name,
            pipe: shell.stdin.take(),
            shell,
            log,
            pid,
        };
        let up_or_ended = || {
            let (ended, ready) = (leash.shell.try_wait(), ready());
            async move { Ok(ready.await || ended?.is_some()) }
        };
        let in_time = within(STARTUP, up_or_ended).await?;
        let why = match leash.shell.try_wait()? {
            None if in_time => return Ok(leash),
            None => "does not answer",
            Some(_) => "ended",
        };
        Err(format!("it {why}; {}", leash.complaint()).into())
    }

    /// Waits until it has ended by itself.
    pub(super) async fn ended(&mut self) -> Result<()> {
        let ended = || {
            let ended = self.shell.try_wait();
            async { Ok(ended?.is_some()) }
        };
        match within(OBEDIENCE, ended).await? {
            true => Ok(()),
            false => Err(format!("it does not end; {}", self.complaint()).into()),
        }
    }

    /// Stops the program as SIGSTOP does, until it is resumed or killed. It has been up.
    pub(super) async fn pause(&self) -> Result<()> {
        let pid = self.signal("STOP")?;
        // The signal was only sent: each thread stops when it sees it.
        match within(OBEDIENCE, async || Ok(stopped(&pid))).await? {
            true => Ok(()),
            false => Err(format!("{} does not stop", self.name).into()),
        }
    }

    /// Lets it go on.
    pub(super) fn resume(&self) -> Result<()> {
        self.signal("CONT").map(drop)
    }

    /// Sends a signal to the program itself, and returns its process ID.
    fn signal(&self, signal: &str) -> Result<String> {
        let pid = std::fs::read_to_string(&self.pid)?.trim().to_owned();
        // `kill` is part of every shell, and a program of its own on some systems only.
        let sent = Command::new("sh")
            .args(["-c", r#"kill -s "$1" "$2""#, "sh", signal, &pid])
            .stdin(Stdio::null())
            .output()?;
        match sent.status.success() {
            true => Ok(pid),
            false => {
                let why = String::from_utf8_lossy(&sent.stderr);
                Err(format!("{} gets no SIG{signal}: {}", self.name, why.trim()).into())
            }
        }
    }

    /// What the program said last, and where the rest is.
    pub(super) fn complaint(&self) -> String {
        let text = match std::fs::read_to_string(&self.log) {
            Ok(text) if text.is_empty() => "(it said nothing)".to_owned(),
            Ok(text) => text,
            Err(error) => return format!("{}: its log cannot be read: {error}", self.name),
        };
        let mut lines: Vec<_> = text.lines().collect();
        let tail = lines.split_off(lines.len().saturating_sub(15)).join("\n");
        format!("{}: the end of {}:\n{tail}", self.name, self.log.display())
    }
}

/// Ends the program as SIGKILL does, and waits for that.
impl Drop for Leash {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // It cannot fail: the shell is ours, and was not waited for before.
        let _ = self.shell.wait();
    }
}

/// Whether all threads of a process have stopped, where the system tells: Linux does.
fn stopped(pid: &str) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    threads.into_iter().flatten().flatten().all(|thread| {
        // `PID (NAME) STATE …`; a name may have parentheses itself. A thread without a file is gone.
        match std::fs::read_to_string(thread.path().join("stat")) {
            Ok(stat) => stat
                .rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('T')),
            Err(_) => true,
        }
    })
}

/// The folder of a server, which is kept if the test that used it fails.
#[derive(Debug)]
pub(super) struct Folder(TempDir);

impl Folder {
    pub(super) fn new(name: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("meshca-{name}-"))
            .tempdir()?;
        Ok(Self(folder))
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.disable_cleanup(true);
            let path = self.0.path().display();
            eprintln!("the server's log and data are kept in {path}");
        }
    }
}
