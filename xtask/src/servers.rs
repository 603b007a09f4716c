//! Real servers for the tests: found or built once, kept in a cache, started by whoever needs them.
//!
//! The tests start the servers themselves (`meshca-testenv`), each with its own data and port. Here
//! the programs come from: a variable, `PATH`, or a build of `testenv/`.

mod build;
mod keep;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use crate::process::{self, Result};

#[derive(Subcommand)]
pub(crate) enum Action {
    /// Start them and leave them running; print how to reach them
    Up,
    /// Stop what `up` started
    Down,
    /// Say what `up` left running
    Status,
    /// Only build what is missing
    Build,
}

/// A program that tests start.
pub(crate) struct Program {
    /// The variable that tests take it from, and that overrides where it comes from.
    pub(crate) variable: &'static str,
    /// Its name on `PATH`, and in the build.
    name: &'static str,
    /// How it tells its version, if it does.
    version: Option<&'static [&'static str]>,
    server: &'static Server,
}

/// What is built together.
struct Server {
    /// Its folder in `testenv/`, and the module in which tests that need it live.
    name: &'static str,
    recipe: Recipe,
    /// What it is good for, as the object of "tests of …".
    proves: &'static str,
    /// Whether `up` starts it, too.
    up: bool,
}

const ISSUERS: &str = "issuers against the real server";

enum Recipe {
    /// Packages of the Go module, and flags for the linker.
    Go {
        packages: &'static [&'static str],
        ldflags: &'static str,
        /// What else comes from a module that it is built of, and belongs beside the programs.
        files: Option<Files>,
    },
    /// What `requirements.txt` names, in a virtual environment.
    Python {
        /// Whether a program on `PATH` will do. One in Python is a script of some environment, which may not have what we need.
        path: bool,
    },
}

/// Files of a Go module.
#[derive(Hash)]
struct Files {
    module: &'static str,
    /// Their folder in the module, and how their names start.
    folder: &'static str,
    prefix: &'static str,
    /// Their folder beside the programs.
    to: &'static str,
}

static VAULT: Server = Server {
    name: "vault",
    recipe: Recipe::Go {
        packages: &["."],
        ldflags: "-s -w",
        files: None,
    },
    proves: ISSUERS,
    up: true,
};
static KUBE: Server = Server {
    name: "kube",
    recipe: Recipe::Go {
        packages: &[
            "go.etcd.io/etcd/server/v3",
            "k8s.io/kubernetes/cmd/kube-apiserver",
        ],
        // Clients, cert-manager among them, read the version; without this it is none.
        ldflags: "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3",
        files: None,
    },
    proves: ISSUERS,
    up: true,
};
static CERTMANAGER: Server = Server {
    name: "certmanager",
    recipe: Recipe::Go {
        packages: &["."],
        ldflags: "-s -w",
        files: Some(Files {
            module: "github.com/cert-manager/cert-manager",
            folder: "deploy/crds",
            // Not those for ACME, which it does not do.
            prefix: "cert-manager.io_",
            to: "crds",
        }),
    },
    proves: ISSUERS,
    up: true,
};
static MOTO: Server = Server {
    name: "moto",
    recipe: Recipe::Python { path: false },
    proves: ISSUERS,
    up: true,
};
/// A package of Python's brings the program itself.
static ENVOY: Server = Server {
    name: "envoy",
    recipe: Recipe::Python { path: true },
    proves: "identities as Envoy uses them",
    // It would not know what to do.
    up: false,
};

pub(crate) static PROGRAMS: &[Program] = &[
    Program {
        variable: "MESHCA_VAULT_BIN",
        name: "vault",
        version: Some(&["version"]),
        server: &VAULT,
    },
    Program {
        variable: "MESHCA_KUBE_APISERVER_BIN",
        name: "kube-apiserver",
        version: Some(&["--version"]),
        server: &KUBE,
    },
    Program {
        variable: "MESHCA_ETCD_BIN",
        name: "etcd",
        version: Some(&["--version"]),
        server: &KUBE,
    },
    Program {
        variable: "MESHCA_CERTMANAGER_BIN",
        name: "certmanager",
        version: Some(&["version"]),
        server: &CERTMANAGER,
    },
    Program {
        variable: "MESHCA_MOTO_BIN",
        name: "moto_server",
        version: None,
        server: &MOTO,
    },
    Program {
        variable: "MESHCA_ENVOY_BIN",
        name: "envoy",
        version: Some(&["--version"]),
        server: &ENVOY,
    },
];

impl Program {
    /// The module in which tests that need it live.
    pub(crate) fn module(&self) -> &'static str {
        self.server.name
    }

    /// What those tests are of.
    pub(crate) fn proves(&self) -> &'static str {
        self.server.proves
    }

    /// Where it is, having built it if need be; or why it is nowhere, and what to do.
    pub(crate) fn obtain(&self) -> Result<PathBuf> {
        let path = match std::env::var_os(self.variable).filter(|path| !path.is_empty()) {
            Some(path) => {
                let path = PathBuf::from(path);
                if !path.is_file() {
                    return Err(format!(
                        "{} names {}, which is no file",
                        self.variable,
                        path.display()
                    ));
                }
                path
            }
            None => match self.on_path() {
                Some(path) => path,
                None => build::obtain(self.server)
                    .map_err(|why| format!("{why}; or set {} to the program", self.variable))?
                    .join(self.name),
            },
        };
        let Some(version) = self.version else {
            println!("{}: {}", self.name, path.display());
            return Ok(path);
        };
        let told = process::probe(&path, version).ok_or_else(|| {
            format!(
                "{} does not run: `{} {}` fails",
                self.name,
                path.display(),
                version.join(" ")
            )
        })?;
        let told = told.lines().next().unwrap_or_default();
        println!("{}: {told} ({})", self.name, path.display());
        Ok(path)
    }

    fn on_path(&self) -> Option<PathBuf> {
        match self.server.recipe {
            Recipe::Go { .. } | Recipe::Python { path: true } => process::on_path(self.name),
            Recipe::Python { path: false } => None,
        }
    }
}

/// The program that this variable is to name.
pub(crate) fn obtain(variable: &str) -> Result<PathBuf> {
    let program = PROGRAMS.iter().find(|program| program.variable == variable);
    program
        .ok_or_else(|| format!("no server is named by {variable}"))?
        .obtain()
}

/// Programs by their variables; an error tells everything that is missing.
fn obtain_all(which: impl Fn(&Server) -> bool) -> Result<Vec<(&'static str, PathBuf)>> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for program in PROGRAMS.iter().filter(|program| which(program.server)) {
        match program.obtain() {
            Ok(path) => found.push((program.variable, path)),
            Err(why) => missing.push(why),
        }
    }
    match missing.is_empty() {
        true => Ok(found),
        false => Err(missing.join("\nerror: ")),
    }
}

/// Runs one of the actions.
pub(crate) fn run(action: &Action) -> Result<ExitCode> {
    match action {
        Action::Build => {
            obtain_all(|_| true)?;
        }
        Action::Up => keep::up()?,
        Action::Down => keep::down()?,
        Action::Status => keep::status()?,
    }
    Ok(ExitCode::SUCCESS)
}
