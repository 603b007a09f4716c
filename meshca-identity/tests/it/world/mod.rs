//! A mesh in a test: a CA that does as told, resources as text, and time that is paused.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use meshca_core::builtin::{BuiltinIssuer, ProvidedCa};
use meshca_core::registry::{
    BackendConfig, BackendRegistry, BuildContext, BuiltIssuer, IssuerFactory,
};
use meshca_core::resource::{DataSource, Resource};
use meshca_core::spiffe::{Environment, Workload};
use meshca_core::{
    Capabilities, CertificateRequest, CheckReport, Clock, Error, ErrorKind, Issuer,
    MemorySecretStore, Result, SignedChain, TrustBundle,
};
use meshca_identity::manager::{DriverTask, Event, Observer};
use meshca_identity::select::SelectOptions;
use meshca_identity::{Handle, Manager, ManagerOptions, MeshResources};
use meshca_testkit::{FaultyIssuer, TokioClock};

/// A CA that does as told; the CAs behind it can be exchanged.
pub(crate) struct Ca {
    state: Mutex<State>,
    /// How often it was asked to sign.
    pub(crate) asked: AtomicUsize,
    pub(crate) at_once: AtomicUsize,
    pub(crate) most_at_once: AtomicUsize,
    /// It fails in the building of its issuer.
    pub(crate) unbuildable: AtomicBool,
    pub(crate) builds: AtomicUsize,
    /// How often it was asked for its roots.
    pub(crate) looks: AtomicUsize,
    pub(crate) checks: AtomicUsize,
}

struct State {
    signing: Option<Arc<FaultyIssuer>>,
    also_trusted: Vec<Arc<FaultyIssuer>>,
    error: Option<ErrorKind>,
    latency: Duration,
}

impl Ca {
    pub(crate) fn down(&self, error: Option<ErrorKind>) {
        self.state.lock().unwrap().error = error;
    }

    pub(crate) fn slow(&self, latency: Duration) {
        self.state.lock().unwrap().latency = latency;
    }

    pub(crate) fn issuer(&self) -> Arc<FaultyIssuer> {
        self.state.lock().unwrap().signing.clone().unwrap()
    }

    /// Signs with this one from now on, and names the roots of these.
    pub(crate) fn exchange(
        &self,
        signing: Arc<FaultyIssuer>,
        also_trusted: Vec<Arc<FaultyIssuer>>,
    ) {
        let mut state = self.state.lock().unwrap();
        state.signing = Some(signing);
        state.also_trusted = also_trusted;
    }

    pub(crate) fn times_asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[derive(Clone)]
struct Front(Arc<Ca>);

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("scripted")
    }
}

impl fmt::Display for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scripted CA")
    }
}

struct AtOnce<'a>(&'a Ca);

impl Drop for AtOnce<'_> {
    fn drop(&mut self) {
        self.0.at_once.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Issuer for Front {
    fn capabilities(&self) -> Capabilities {
        self.0.issuer().capabilities()
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        let now = self.0.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most_at_once.fetch_max(now, Ordering::SeqCst);
        let _at_once = AtOnce(&self.0);
        let (signing, error, latency) = {
            let state = self.0.state.lock().unwrap();
            (state.signing.clone().unwrap(), state.error, state.latency)
        };
        tokio::time::sleep(latency).await;
        match error {
            Some(kind) => Err(Error::new(kind, "it was told to fail")),
            None => signing.sign(request).await,
        }
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.0.looks.fetch_add(1, Ordering::SeqCst);
        let (signing, others) = {
            let state = self.0.state.lock().unwrap();
            (state.signing.clone().unwrap(), state.also_trusted.clone())
        };
        let mut bundle = signing.trust_bundle().await?;
        for other in others {
            bundle = bundle.union(&other.trust_bundle().await?)?;
        }
        Ok(bundle)
    }

    async fn check(&self) -> Result<CheckReport> {
        self.0.checks.fetch_add(1, Ordering::SeqCst);
        let error = self.0.state.lock().unwrap().error;
        match error {
            Some(kind) => Err(Error::new(kind, "it was told to fail")),
            None => Ok(CheckReport::new()),
        }
    }
}

/// Builds the CAs of a test, by the names of their types.
#[derive(Clone, Default)]
pub(crate) struct Cas(Arc<Mutex<BTreeMap<String, Arc<Ca>>>>);

impl Cas {
    pub(crate) fn get(&self, name: &str) -> Arc<Ca> {
        let mut all = self.0.lock().unwrap();
        let new = || {
            Arc::new(Ca {
                state: Mutex::new(State {
                    signing: None,
                    also_trusted: Vec::new(),
                    error: None,
                    latency: Duration::from_millis(5),
                }),
                asked: AtomicUsize::new(0),
                at_once: AtomicUsize::new(0),
                most_at_once: AtomicUsize::new(0),
                unbuildable: AtomicBool::new(false),
                builds: AtomicUsize::new(0),
                looks: AtomicUsize::new(0),
                checks: AtomicUsize::new(0),
            })
        };
        Arc::clone(all.entry(name.to_owned()).or_insert_with(new))
    }
}

impl fmt::Debug for Cas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cas")
    }
}

#[async_trait]
impl IssuerFactory for Cas {
    fn types(&self) -> Vec<String> {
        vec!["ca-a".to_owned(), "ca-b".to_owned(), "ca-c".to_owned()]
    }

    async fn build(&self, config: &BackendConfig, context: &BuildContext) -> Result<BuiltIssuer> {
        let ca = self.get(config.type_name());
        ca.builds.fetch_add(1, Ordering::SeqCst);
        if ca.unbuildable.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "it cannot be built"));
        }
        let mut state = ca.state.lock().unwrap();
        if state.signing.is_none() {
            let domain = context.trust_domain().clone();
            let issuer = FaultyIssuer::new(domain, Arc::clone(context.clock()))?;
            state.signing = Some(Arc::new(issuer));
        }
        drop(state);
        Ok(Arc::new(Front(ca)).into())
    }
}

/// Builds a CA that stands for one elsewhere: its certificate and key are secrets of the mesh.
#[derive(Debug)]
struct Held;

#[async_trait]
impl IssuerFactory for Held {
    fn types(&self) -> Vec<String> {
        vec!["held".to_owned()]
    }

    async fn build(&self, _: &BackendConfig, context: &BuildContext) -> Result<BuiltIssuer> {
        let sources = context.sources()?;
        let read = async |name: &str| {
            let value = sources.read(&DataSource::Secret(name.to_owned())).await?;
            Ok::<_, Error>(value.expose_str().unwrap().to_owned())
        };
        let ca = ProvidedCa::from_pem(&read("ca.crt").await?, &read("ca.key").await?)?;
        let (domain, clock) = (context.trust_domain().clone(), context.clock());
        let issuer = BuiltinIssuer::provided(domain, ca, Arc::clone(clock))?;
        Ok(Arc::new(issuer).into())
    }
}

/// What was observed, one line each, without serial numbers.
#[derive(Debug, Default)]
pub(crate) struct Log(pub(crate) Mutex<Vec<String>>);

impl Observer for Log {
    fn observe(&self, event: &Event<'_>) {
        let text = event.to_string();
        let text = text.split(" (serial").next().unwrap_or_default().to_owned();
        self.0.lock().unwrap().push(text);
    }
}

impl Log {
    pub(crate) fn count(&self, part: &str) -> usize {
        self.0
            .lock()
            .unwrap()
            .iter()
            .filter(|it| it.contains(part))
            .count()
    }
}

pub(crate) struct World {
    pub(crate) manager: Manager,
    pub(crate) clock: TokioClock,
    pub(crate) secrets: Arc<MemorySecretStore>,
    pub(crate) cas: Cas,
    pub(crate) log: Arc<Log>,
    pub(crate) driver: DriverTask,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut ManagerOptions)) -> Self {
        let secrets = Arc::new(MemorySecretStore::new());
        Self::on(TokioClock::new(), secrets, Cas::default(), change)
    }

    /// A control plane after this one, at the same secret store and the same CAs.
    pub(crate) async fn restarted(self, change: impl FnOnce(&mut ManagerOptions)) -> Self {
        self.driver.stop().await.unwrap();
        Self::on(self.clock, self.secrets, self.cas, change)
    }

    pub(crate) fn on(
        clock: TokioClock,
        secrets: Arc<MemorySecretStore>,
        cas: Cas,
        change: impl FnOnce(&mut ManagerOptions),
    ) -> Self {
        let registry = BackendRegistry::new()
            .with(meshca_core::builtin::factory())
            .with(Held)
            .with(cas.clone());
        let mut options = ManagerOptions::new(SelectOptions::new("east", Environment::Universal));
        options.seed = Some(1);
        change(&mut options);
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let (manager, driver) = Manager::new(registry, secrets.clone(), shared, options);
        let log = Arc::new(Log::default());
        Self {
            driver: driver.with_observer(log.clone()).spawn(),
            manager,
            clock,
            secrets,
            cas,
            log,
        }
    }

    /// With one MeshIdentity for all, by the CA `ca-a`.
    pub(crate) async fn with_ca(change: impl FnOnce(&mut ManagerOptions)) -> Self {
        let world = Self::with(change);
        world
            .apply(&(OFF.to_owned() + &identity("id", "ca-a")))
            .await;
        world
    }

    pub(crate) async fn apply(&self, text: &str) {
        self.manager.apply(resources(text)).await.unwrap();
    }

    pub(crate) async fn connect(&self, name: &str) -> Handle {
        self.manager
            .connect("default", name, workload(name))
            .await
            .unwrap()
    }
}

pub(crate) fn workload(name: &str) -> Workload {
    Workload::from_label_list(&format!(
        "app=web,kuma.io/workload={name},kuma.io/service={name}"
    ))
    .unwrap()
}

pub(crate) fn resources(text: &str) -> MeshResources {
    MeshResources::from_resources(Resource::parse(text).unwrap()).unwrap()
}

/// A mesh with a classic CA of this type.
pub(crate) fn classic(ca: &str) -> String {
    format!(
        "{{type: Mesh, name: default, mtls: {{enabledBackend: one, backends: [{{name: one, type: {ca}, conf: {{}}}}]}}}}\n"
    )
}

/// A MeshIdentity for all, by a CA of this type.
pub(crate) fn identity(name: &str, ca: &str) -> String {
    format!(
        "---\n{{type: MeshIdentity, name: {name}, mesh: default, spec: {{selector: {{dataplane: {{matchLabels: {{}}}}}}, \
         spiffeID: {{trustDomain: example.org}}, provider: {{type: Extension, extension: {{name: {ca}, config: {{}}}}}}}}}}\n"
    )
}

pub(crate) const OFF: &str = "{type: Mesh, name: default}\n";
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// Lets time pass.
pub(crate) async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}
