//! Envoy, the proxy that identities are for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use reqwest::{Client, Method, Url};
use serde_json::{Value, json};

use super::leash::{Folder, Leash};
use super::{Missing, Result, ask, client, granted, program, text};

/// How long its admin interface may take for an answer. It has none while it is [paused](Envoy::pause).
const PATIENCE: Duration = Duration::from_secs(10);

/// A running Envoy, with the bootstrap of a test, one worker, and two seconds for what drains.
///
/// The test decides where it listens, by a [`Port`](super::Port); the admin interface is ours, on a socket in its folder.
///
/// ```no_run
/// use std::time::Duration;
///
/// use meshca_testenv::servers::{Envoy, Port};
/// use serde_json::json;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), meshca_testenv::servers::Error> {
/// let port = Port::free()?;
/// let listener = json!({
///     "name": "web",
///     "address": {"socket_address": {"address": "127.0.0.1", "port_value": port.address().port()}},
///     "filter_chains": [{"filters": [{
///         "name": "envoy.filters.network.direct_response",
///         "typed_config": {
///             "@type": "type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config",
///             "response": {"inline_string": "hello"},
///         },
///     }]}],
/// });
/// let bootstrap = json!({
///     "node": {"id": "web-1", "cluster": "web"},
///     "static_resources": {"listeners": [listener]},
/// });
/// let envoy = Envoy::start(&bootstrap).await?;
/// envoy.until_live(Duration::from_secs(10)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Envoy {
    // Before the folder that it writes to.
    leash: Option<Leash>,
    program: PathBuf,
    admin: Client,
    version: String,
    folder: Folder,
}

impl Envoy {
    /// The program, from `MESHCA_ENVOY_BIN`.
    ///
    /// # Errors
    ///
    /// If the variable is not set, or names no file.
    pub fn program() -> Result<PathBuf, Missing> {
        program("MESHCA_ENVOY_BIN")
    }

    /// Starts one with a bootstrap, which has no `admin`, and waits until its admin interface answers.
    ///
    /// It may still wait for its clusters and secrets then, and listen nowhere: see [`until_live`](Self::until_live).
    ///
    /// # Errors
    ///
    /// If there is no program, or it refuses the bootstrap; with the end of its log.
    pub async fn start(bootstrap: &Value) -> Result<Self> {
        let program = Self::program()?;
        let folder = Folder::new("envoy")?;
        let socket = folder.file("admin.sock");
        let mut bootstrap = bootstrap.clone();
        let fields = bootstrap
            .as_object_mut()
            .ok_or("the bootstrap is no object")?;
        let admin = json!({"address": {"pipe": {"path": socket}}});
        if fields.insert("admin".to_owned(), admin).is_some() {
            return Err("the bootstrap has an `admin`, which is not the test's to choose".into());
        }
        std::fs::write(folder.file("envoy.json"), bootstrap.to_string())?;

        let admin = client()
            .timeout(PATIENCE)
            // A connection does not outlive the Envoy that it leads to.
            .pool_max_idle_per_host(0);
        #[cfg(unix)]
        let admin = admin.unix_socket(socket);
        let mut envoy = Self {
            leash: None,
            program,
            admin: admin.build()?,
            version: String::new(),
            folder,
        };
        envoy.restart().await?;
        let info = envoy.get("server_info").await?;
        // Of `COMMIT/VERSION/STATUS/BUILD/TLS`.
        let version = text(&info, "/version")?;
        envoy.version = version.split('/').nth(1).unwrap_or(&version).to_owned();
        Ok(envoy)
    }

    /// Its version, as it says.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Ends it as SIGKILL does.
    pub fn kill(&mut self) {
        self.leash = None;
    }

    /// Starts it again, after [`kill`](Self::kill) or not, with the same bootstrap; it knows nothing of what it was told before.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        let config = self.folder.file("envoy.json");
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(config);
        // Hot restart has Envoys on one machine talk to each other.
        command.args(["--concurrency", "1", "--disable-hot-restart"]);
        // By default a listener that was replaced, and the secrets that it had, are there for ten more minutes.
        command.args(["--drain-time-s", "2"]);
        command.args(["--log-level", "info"]);
        let ready = async || self.state().await.is_ok();
        self.leash = Some(Leash::start("envoy", &command, &self.folder, ready).await?);
        Ok(())
    }

    /// Has it end by itself, which closes its connections in an orderly way, and waits for that.
    ///
    /// # Errors
    ///
    /// If it does not end.
    pub async fn quit(&mut self) -> Result<()> {
        self.post("quitquitquit").await?;
        if let Some(leash) = &mut self.leash {
            leash.ended().await?;
        }
        self.leash = None;
        Ok(())
    }

    /// Stops it as SIGSTOP does: the system still accepts connections for it, and nobody answers.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub async fn pause(&self) -> Result<()> {
        self.leash()?.pause().await
    }

    /// Lets it go on after [`pause`](Self::pause), with what has come in meanwhile.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn resume(&self) -> Result<()> {
        self.leash()?.resume()
    }

    fn leash(&self) -> Result<&Leash> {
        Ok(self.leash.as_ref().ok_or("this Envoy was ended")?)
    }

    /// What it is about, as it says: `PRE_INITIALIZING` while it waits for clusters and their secrets, `INITIALIZING` while it waits
    /// for those of listeners, `LIVE` once it serves, `DRAINING` after it was told to fail health checks.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub async fn state(&self) -> Result<String> {
        text(&self.get("server_info").await?, "/state")
    }

    /// Waits until it serves: until its state is `LIVE`.
    ///
    /// # Errors
    ///
    /// If it ends, or takes longer; with the end of its log.
    pub async fn until_live(&self, within: Duration) -> Result<()> {
        let live = async || Ok::<_, super::Error>(self.state().await? == "LIVE");
        self.until("is not live", within, live).await
    }

    /// Waits until what it counts is as it should be, and returns that. The expression selects as in [`stats`](Self::stats).
    ///
    /// # Errors
    ///
    /// If it ends, or takes longer; with the end of its log.
    pub async fn until_stats(
        &self,
        expression: &str,
        within: Duration,
        wanted: impl Fn(&BTreeMap<String, u64>) -> bool,
    ) -> Result<BTreeMap<String, u64>> {
        let mut last = BTreeMap::new();
        let as_wanted = async || {
            last = self.stats(expression).await?;
            Ok(wanted(&last))
        };
        let waited = self.until("does not count it", within, as_wanted).await;
        match waited {
            Ok(()) => Ok(last),
            Err(error) => Err(format!("{last:?}: {error}").into()),
        }
    }

    /// An answer that does not come is waited for; one that cannot come, for it has ended, is not.
    async fn until(
        &self,
        otherwise: &str,
        within: Duration,
        mut done: impl AsyncFnMut() -> Result<bool>,
    ) -> Result<()> {
        let leash = self.leash()?;
        let waiting = async {
            loop {
                match done().await {
                    Ok(true) => return Ok(()),
                    Err(error) if refused(&*error) => {
                        return Err(format!("{error}; {}", leash.complaint()).into());
                    }
                    Ok(false) | Err(_) => {}
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(within, waiting).await {
            Ok(waited) => waited,
            Err(_) => Err(format!("it {otherwise} in {within:?}; {}", leash.complaint()).into()),
        }
    }

    /// Its counters and gauges by name, of those in whose names it finds the regular expression; all if that is empty.
    ///
    /// Workers tell the main thread what they have counted now and then: what has just happened may be missing.
    ///
    /// # Errors
    ///
    /// If it does not answer, or takes the expression for none.
    pub async fn stats(&self, expression: &str) -> Result<BTreeMap<String, u64>> {
        let mut url = url("stats")?;
        url.query_pairs_mut()
            .append_pair("format", "json")
            .append_pair("filter", expression);
        let answer: Value = serde_json::from_str(&self.ask(Method::GET, url).await?)?;
        let stats = answer.get("stats").and_then(Value::as_array);
        // Texts and histograms are among them, which have no number.
        Ok(stats
            .ok_or_else(|| format!("there are no stats in {answer}"))?
            .iter()
            .filter_map(|stat| {
                let name = stat.get("name")?.as_str()?;
                Some((name.to_owned(), stat.get("value")?.as_u64()?))
            })
            .collect())
    }

    /// The certificates that it uses, with their names, ends and serial numbers: `certificates` of `/certs`.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub async fn certs(&self) -> Result<Vec<Value>> {
        Ok(list(self.get("certs").await?, "certificates"))
    }

    /// What it goes by, of one kind: `dynamic_active_secrets`, `dynamic_warming_secrets`, `static_listeners` and the like.
    /// It says `[redacted]` for a private key.
    ///
    /// # Errors
    ///
    /// If it does not answer, or knows no such kind.
    pub async fn config_dump(&self, resource: &str) -> Result<Vec<Value>> {
        let dump = self
            .get(&format!("config_dump?resource={resource}"))
            .await?;
        Ok(list(dump, "configs"))
    }

    /// Asks the admin interface for JSON, such as `clusters?format=json`.
    ///
    /// # Errors
    ///
    /// If it does not answer, or not so.
    pub async fn get(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.get_text(path).await?)?)
    }

    /// Asks the admin interface, such as for `stats/prometheus`.
    ///
    /// # Errors
    ///
    /// If it does not answer, or with an error.
    pub async fn get_text(&self, path: &str) -> Result<String> {
        self.ask(Method::GET, url(path)?).await
    }

    /// Tells the admin interface to do something, such as `drain_listeners?graceful` or `logging?level=debug`.
    ///
    /// # Errors
    ///
    /// If it does not answer, or with an error.
    pub async fn post(&self, path: &str) -> Result<String> {
        self.ask(Method::POST, url(path)?).await
    }

    async fn ask(&self, method: Method, url: Url) -> Result<String> {
        let what = format!("{method} {}", url.path());
        granted(what, ask(self.admin.request(method, url)).await?)
    }

    /// What it has logged, also before it was restarted.
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    pub fn log(&self) -> Result<String> {
        let log = std::fs::read(self.folder.file("envoy.log"))?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }
}

/// Of the admin interface. The host is for HTTP: where to connect to is the socket.
fn url(path: &str) -> Result<Url> {
    Ok(Url::parse(&format!("http://envoy/{path}"))?)
}

/// Envoy leaves a list out that is empty.
fn list(mut answer: Value, name: &str) -> Vec<Value> {
    match answer.get_mut(name).map(Value::take) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

/// Whether nobody listens any more.
fn refused(error: &(dyn std::error::Error + 'static)) -> bool {
    error
        .downcast_ref::<reqwest::Error>()
        .is_some_and(reqwest::Error::is_connect)
}
