//! Builds servers from `testenv/` into a cache folder outside the repository.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::{Files, Recipe, Server};
use crate::cargo;
use crate::process::{self, Result};
use crate::tools;

/// Written last: a folder without it is of a build that did not end.
const COMPLETE: &str = "complete";
/// How long a build is kept that nobody uses.
const UNUSED: Duration = Duration::from_secs(14 * 24 * 3600);
/// How often a build says that it is still at it.
const PROGRESS: Duration = Duration::from_secs(30);

/// The folder with a server's programs, built if it is not there yet.
///
/// It is named after what it is built from, so a change of that is a new folder. Two runs at once: the second waits.
pub(super) fn obtain(server: &Server) -> Result<PathBuf> {
    let name = server.name;
    let source = cargo::root().join("testenv").join(name);
    let toolchain = server.recipe.toolchain()?;
    let cache = tools::cache()?.join("servers");
    let folder = cache.join(format!(
        "{name}-{:016x}",
        digest(server, &source, &toolchain)?
    ));
    let programs = server.recipe.programs(&folder);
    let complete = folder.join(COMPLETE);
    if complete.is_file() {
        // Its time says when it was used last.
        let _ = fs::write(&complete, "\n");
        return Ok(programs);
    }

    let failed = |what: &Path| {
        let what = what.display().to_string();
        move |error: std::io::Error| format!("{what}: {error}")
    };
    fs::create_dir_all(&cache).map_err(failed(&cache))?;
    let lock = cache.join(format!("{name}.lock"));
    let lock = File::create(&lock).map_err(failed(&lock))?;
    if lock.try_lock().is_err() {
        println!("{name}: waiting for another run that builds it");
        lock.lock().map_err(failed(&cache))?;
    }
    if complete.is_file() {
        return Ok(programs);
    }
    if folder.exists() {
        println!("{name}: an earlier build was interrupted; going on where it stopped");
    } else {
        println!("{name}: building it in {} (once)", folder.display());
    }
    fs::create_dir_all(&folder).map_err(failed(&folder))?;
    server.recipe.build(name, &source, &folder, &toolchain)?;
    fs::write(&complete, "\n").map_err(failed(&complete))?;
    forget_others(&cache, name, &folder);
    Ok(programs)
}

/// Of everything that makes a difference to the result. It may differ between versions of Rust, which costs a build.
fn digest(server: &Server, source: &Path, toolchain: &Toolchain) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    toolchain.version.hash(&mut hasher);
    match &server.recipe {
        Recipe::Go {
            packages,
            ldflags,
            files,
        } => {
            (packages, ldflags).hash(&mut hasher);
            if let Some(files) = files {
                files.hash(&mut hasher);
            }
        }
        // It makes none to what is installed.
        Recipe::Python { .. } => {}
    }
    let mut files: Vec<PathBuf> = fs::read_dir(source)
        .map_err(|error| format!("{}: {error}", source.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    for file in files {
        file.file_name().hash(&mut hasher);
        fs::read(&file)
            .map_err(|error| format!("{}: {error}", file.display()))?
            .hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// Removes what other versions of `testenv/` were built into, once nobody has used it for days: another checkout may be testing with it now.
fn forget_others(cache: &Path, name: &str, keep: &Path) {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        let other = path.file_name().is_some_and(|file| {
            file.to_str()
                .and_then(|file| file.strip_prefix(name))
                .is_some_and(|rest| rest.starts_with('-'))
        });
        let used = fs::metadata(path.join(COMPLETE)).and_then(|it| it.modified());
        let unused = used.is_ok_and(|used| used.elapsed().is_ok_and(|age| age > UNUSED));
        if other && path != keep && unused {
            println!("{name}: removing {}, which is out of date", path.display());
            let _ = fs::remove_dir_all(path);
        }
    }
}

struct Toolchain {
    program: PathBuf,
    version: String,
}

impl Recipe {
    fn toolchain(&self) -> Result<Toolchain> {
        let (names, arguments, install): (&[&str], &[&str], &str) = match self {
            Self::Go { .. } => (
                &["go", "/usr/local/go/bin/go"],
                &["version"],
                "Go not found: install it from https://go.dev/dl",
            ),
            Self::Python { .. } => (
                &["python3"],
                &["--version"],
                "Python not found: install python3 with its module venv, from the system's packages",
            ),
        };
        let found = names.iter().find_map(|name| {
            process::probe(name, arguments).map(|version| Toolchain {
                program: PathBuf::from(name),
                version,
            })
        });
        found.ok_or_else(|| install.to_owned())
    }

    /// Where in its folder the programs are.
    fn programs(&self, folder: &Path) -> PathBuf {
        folder.join("bin")
    }

    fn build(&self, name: &str, source: &Path, folder: &Path, toolchain: &Toolchain) -> Result<()> {
        match self {
            Self::Go {
                packages,
                ldflags,
                files,
            } => {
                let bin = self.programs(folder);
                fs::create_dir_all(&bin).map_err(|error| format!("{}: {error}", bin.display()))?;
                let mut command = go(toolchain, source);
                command
                    .args(["build", "-trimpath", "-ldflags", ldflags, "-o"])
                    .arg(bin.join(""))
                    .args(*packages);
                patiently(name, &mut command).map_err(|why| {
                    format!("{why}; its modules come over the network the first time (GOPROXY says from where)")
                })?;
                // Go names a program after the last element of its path, but for a version: etcd's is `server`.
                let server = bin.join("server");
                if server.is_file() {
                    fs::rename(&server, bin.join("etcd")).map_err(|error| error.to_string())?;
                }
                if let Some(files) = files {
                    files.copy(&mut go(toolchain, source), &bin)?;
                }
                Ok(())
            }
            Self::Python { .. } => {
                let mut make = Command::new(&toolchain.program);
                make.args(["-m", "venv", "--clear"]).arg(folder);
                process::run(&mut make).map_err(|why| {
                    format!("{why}; the system may have its module venv in a package of its own")
                })?;
                let mut install = Command::new(self.programs(folder).join("python3"));
                install
                    .args([
                        "-m",
                        "pip",
                        "install",
                        "--quiet",
                        "--disable-pip-version-check",
                        "-r",
                    ])
                    .arg(source.join("requirements.txt"));
                patiently(name, &mut install).map_err(|why| {
                    format!("{why}; its packages come over the network the first time")
                })
            }
        }
    }
}

/// Go, as `testenv/` says, and not as this machine happens to be set up.
fn go(toolchain: &Toolchain, source: &Path) -> Command {
    let mut command = Command::new(&toolchain.program);
    command
        .current_dir(source)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly")
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off");
    command
}

impl Files {
    /// Copies them from where Go keeps the module; not with their permissions, for there nobody may write to them.
    fn copy(&self, go: &mut Command, bin: &Path) -> Result<()> {
        let module = process::output(go.args(["list", "-m", "-f", "{{.Dir}}", self.module]))?;
        let (from, to) = (
            Path::new(module.trim()).join(self.folder),
            bin.join(self.to),
        );
        let copy = || -> std::io::Result<usize> {
            fs::create_dir_all(&to)?;
            let mut copied = 0;
            for entry in fs::read_dir(&from)? {
                let entry = entry?;
                if entry
                    .file_name()
                    .as_encoded_bytes()
                    .starts_with(self.prefix.as_bytes())
                {
                    fs::write(to.join(entry.file_name()), fs::read(entry.path())?)?;
                    copied += 1;
                }
            }
            Ok(copied)
        };
        match copy() {
            Ok(0) => Err(format!(
                "{}: no file there is {}…",
                from.display(),
                self.prefix
            )),
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{} to {}: {error}", from.display(), to.display())),
        }
    }
}

/// Runs a command that takes minutes, and says now and then that it still does.
fn patiently(name: &str, command: &mut Command) -> Result<()> {
    let line = process::line(command);
    println!("{name}: `{line}`");
    let mut child = command
        .stdin(Stdio::null())
        .spawn()
        .map_err(|error| process::not_started(command, &error))?;
    let (ended, waiting) = channel::<()>();
    let status = std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut waited = Duration::ZERO;
            while waiting.recv_timeout(PROGRESS) == Err(RecvTimeoutError::Timeout) {
                waited += PROGRESS;
                println!("{name}: still building ({} s)", waited.as_secs());
            }
        });
        let status = child.wait();
        drop(ended);
        status
    });
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{line}` failed ({status})")),
        Err(error) => Err(format!("lost `{line}`: {error}")),
    }
}
