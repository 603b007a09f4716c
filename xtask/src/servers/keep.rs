//! Servers that stay up between commands, for interactive work.
//!
//! They hang on a process of their own, the example `servers` of `meshca-testenv`, which writes how to reach them into a
//! file and goes on until that file is gone.

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cargo;
use crate::process::{self, Result};

/// How long they may take to come up, or down.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where they say how to reach them, and what they print.
struct Files {
    state: PathBuf,
    log: PathBuf,
}

fn files() -> Result<Files> {
    let folder = cargo::target_directory()?.join("servers");
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(Files {
        state: folder.join("state"),
        log: folder.join("log"),
    })
}

impl Files {
    /// What they say, if they are up: whoever runs holds a lock on the file.
    fn running(&self) -> Option<String> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.state)
            .ok()?;
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => fs::read_to_string(&self.state).ok(),
            _ => None,
        }
    }

    fn wait_until(&self, mut done: impl FnMut() -> bool) -> bool {
        let step = Duration::from_millis(50);
        for _ in 0..(PATIENCE.as_millis() / step.as_millis()) {
            if done() {
                return true;
            }
            std::thread::sleep(step);
        }
        false
    }
}

pub(super) fn up() -> Result<()> {
    let files = files()?;
    if let Some(state) = files.running() {
        println!("they are up already\n{state}");
        return Ok(());
    }
    let executable = cargo::example_executable("meshca-testenv", "servers")?;
    let mut command = Command::new(executable);
    command.envs(super::obtain_all(|server| server.up)?);
    let log =
        File::create(&files.log).map_err(|error| format!("{}: {error}", files.log.display()))?;
    let errors = log.try_clone().map_err(|error| error.to_string())?;
    command
        .arg(&files.state)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors);
    // Ctrl-C is for whatever runs in the terminal then.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command
        .spawn()
        .map_err(|error| process::not_started(&command, &error))?;
    files.wait_until(|| {
        files.running().is_some_and(|state| !state.is_empty()) || child_ended(&mut child)
    });
    match files.running().filter(|state| !state.is_empty()) {
        Some(state) => {
            println!("{state}\nthey stay up until `cargo xtask servers down`");
            Ok(())
        }
        None => {
            // Or they come up after all, when nobody expects it.
            let _ = child.kill();
            let _ = child.wait();
            Err(format!(
                "they did not come up; the end of {}:\n{}",
                files.log.display(),
                fs::read_to_string(&files.log).unwrap_or_default()
            ))
        }
    }
}

fn child_ended(child: &mut std::process::Child) -> bool {
    matches!(child.try_wait(), Ok(Some(_)) | Err(_))
}

pub(super) fn down() -> Result<()> {
    let files = files()?;
    if files.running().is_none() {
        println!("there are none");
        let _ = fs::remove_file(&files.state);
        return Ok(());
    }
    // The lock outlives the name of the file.
    let file = File::open(&files.state).map_err(|error| error.to_string())?;
    fs::remove_file(&files.state).map_err(|error| error.to_string())?;
    match files.wait_until(|| file.try_lock().is_ok()) {
        true => println!("they are down"),
        false => return Err(format!("they do not end; see {}", files.log.display())),
    }
    Ok(())
}

pub(super) fn status() -> Result<()> {
    match files()?.running() {
        Some(state) => println!("{state}"),
        None => println!("there are none; `cargo xtask servers up` starts them"),
    }
    Ok(())
}
