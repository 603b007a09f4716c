//! Moves of a live mesh: real plans, carried out by what real Envoys acknowledge, under load, while proxies come, go, stop and refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use meshca::BackendRegistry;
use meshca::identity::migration::{Next, Plan, PlanOptions, Requirement, plan};
use meshca::resource::Mode;
use meshca_testkit::pki::to_pem;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::counters::report;
use crate::envoy::control::{MESH, ZONE};
use crate::envoy::load::Load;
use crate::envoy::stubborn::{self, Stubborn};
use crate::envoy::world::{Options, SOON, Sidecar, World, parse, until};

/// Pairs of Envoys.
const PAIRS: usize = 3;
/// How long a move may take.
const WITHIN: Duration = Duration::from_secs(120);
/// How many requests there are at least between two steps.
const REQUESTS: usize = 500;
/// How often a plan says that it waits for nobody but those who hold it up on purpose, before they let it go on.
const PATIENCE: usize = 30;
/// How long proxies are waited for when the control plane has started.
const BACK_WITHIN: Duration = Duration::from_secs(12);
/// How much later than the others the last of them comes back.
const LATE: Duration = Duration::from_secs(4);
/// How long the CA to leave signs for.
const LIFETIME: &str = "10m";
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A move of a mesh.
pub(crate) struct Move {
    /// What it is called in the counters.
    pub(crate) name: &'static str,
    pub(crate) from: String,
    pub(crate) to: String,
    /// What inbounds do with plaintext, from the beginning to the end.
    pub(crate) mode: Mode,
    /// Behind this step it goes back to where it began.
    pub(crate) back_from: Option<usize>,
    /// After so long all that the CA to leave has signed has ended, and nothing that the other one has.
    pub(crate) ended: Duration,
    /// What happens, by the step that it happens in.
    pub(crate) disturbances: &'static [(usize, Disturbance)],
}

/// What happens in the middle of a move.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Disturbance {
    /// An Envoy is stopped before the step begins, until it is the only one that the plan waits for.
    Pause(&'static str),
    /// A proxy refuses what the step brings, until it is the only one that the plan waits for.
    Refuse,
    /// An Envoy starts before the step begins.
    Join(&'static str),
    /// An Envoy is restarted when the step has just begun.
    Restart(&'static str),
    /// The control plane is, while an Envoy is stopped that comes back later than all others.
    RestartControlPlane(&'static str),
}

/// Carries a move out, and proves that nobody was harmed and nothing is left.
pub(crate) async fn carry_out(registry: BackendRegistry, it: Move) {
    let begun = Instant::now();
    let mut options = Options::new(registry);
    (options.pairs, options.later) = (PAIRS, 1);
    let restarts = |(_, it): &(_, Disturbance)| matches!(it, Disturbance::RestartControlPlane(_));
    if it.disturbances.iter().any(restarts) || it.ended >= DAY {
        options.linger = Some(BACK_WITHIN);
    }
    let mut world = World::start(options, &it.from).await;
    let names = (0..PAIRS).flat_map(|n| [format!("s-{n}"), format!("c-{n}")]);
    let start = async |name: String| world.sidecar(&name).await;
    let sidecars = join_all(names.map(start)).await;
    let stubborn = Stubborn::start(world.socket());
    let mut load = Load::start();
    for sidecar in &sidecars {
        load.join(sidecar);
    }
    until("there is no load", async || load.requests() > 100).await;

    let there = plan(&parse(&it.from), &parse(&it.to), &PlanOptions::new(ZONE)).unwrap();
    println!("{there}");
    let mut mover = Mover {
        world: &mut world,
        sidecars: sidecars
            .into_iter()
            .map(|it| (it.name().to_owned(), it))
            .collect(),
        stubborn,
        load,
        holding: BTreeSet::new(),
        waited_for: BTreeSet::new(),
        roots: BTreeSet::new(),
        ended: it.ended,
        begun,
    };
    mover.follow(&there, it.disturbances, it.back_from).await;
    if it.back_from.is_some() {
        let now = mover.world.observe().await.resources;
        let back = there.rollback(&now).unwrap();
        println!("{back}");
        mover.follow(&back, &[], None).await;
    }
    mover.nothing_is_left().await;

    for (_, disturbance) in it.disturbances {
        let held_up = match disturbance {
            Disturbance::Pause(name) => name,
            Disturbance::Refuse => stubborn::NAME,
            _ => continue,
        };
        let waited_for = &mover.waited_for;
        assert!(waited_for.contains(held_up), "{held_up}: {waited_for:?}");
    }
    assert_eq!(mover.world.control.refusals(), [""; 0]);
    let events = Arc::clone(&mover.world.events);
    let refusals = events.with("refuses");
    assert!(
        refusals.iter().all(|it| it.contains("rather not")),
        "{refusals:?}"
    );

    let after = begun.elapsed();
    let counts = mover.load.end().await;
    let line = format!(
        "{}: {counts}, {} generations of secrets, {:.0} s",
        it.name,
        events.acknowledged(),
        after.as_secs_f64(),
    );
    counts.assert_good(it.mode);
    report(it.name, &line);
}

struct Mover<'a> {
    world: &'a mut World,
    sidecars: BTreeMap<String, Arc<Sidecar>>,
    stubborn: Stubborn,
    load: Load,
    /// Who holds the plan up on purpose.
    holding: BTreeSet<String>,
    /// Who was the only one that a plan waited for.
    waited_for: BTreeSet<String>,
    /// Every root that was ever believed, as PEM.
    roots: BTreeSet<String>,
    ended: Duration,
    begun: Instant,
}

impl Mover<'_> {
    /// Until the plan is done, or the gate behind a step is open.
    async fn follow(
        &mut self,
        plan: &Plan,
        disturbances: &[(usize, Disturbance)],
        until_behind: Option<usize>,
    ) {
        let deadline = Instant::now() + WITHIN;
        let (mut reached, mut patience, mut said) = (0, 0, String::new());
        let mut remembered = 0;
        loop {
            let mut observed = self.world.observe().await;
            self.see_roots();
            match plan.next(&observed) {
                Next::Apply { step, .. } if until_behind.is_some_and(|last| step > last) => return,
                Next::Apply { step, changes } => {
                    self.say(&format!("step {step}: {}", plan.steps()[step - 1].title));
                    let of_step = |(at, it): &(usize, Disturbance)| (*at == step).then_some(*it);
                    let now: Vec<_> = match step > reached {
                        true => disturbances.iter().filter_map(of_step).collect(),
                        false => Vec::new(),
                    };
                    reached = step;
                    // The mesh is used as it is before it changes again.
                    let enough = self.load.requests() + REQUESTS;
                    until("the load has ended", async || self.load.requests() > enough).await;
                    for disturbance in &now {
                        self.before(*disturbance).await;
                    }
                    for change in &changes {
                        change.apply_to(&mut observed.resources);
                    }
                    self.world.manager.apply(observed.resources).await.unwrap();
                    for disturbance in &now {
                        self.after(*disturbance).await;
                    }
                }
                Next::Wait { step, waiting } => {
                    let words: Vec<_> = waiting.iter().map(ToString::to_string).collect();
                    let words = format!("step {step} waits: {}", words.join("; "));
                    if words != said {
                        self.say(&words);
                        said = words;
                    }
                    let who: BTreeSet<_> =
                        waiting.iter().filter_map(|it| it.proxy.clone()).collect();
                    let on_purpose =
                        waiting.iter().all(|it| it.proxy.is_some()) && who.is_subset(&self.holding);
                    patience = if on_purpose { patience + 1 } else { 0 };
                    if patience == PATIENCE {
                        patience = 0;
                        self.let_go(who).await;
                    }
                    let forgets = |it: &Requirement| matches!(it, Requirement::Forgets(_));
                    let remembers = waiting.iter().all(|it| forgets(&it.requirement));
                    remembered = if remembers { remembered + 1 } else { 0 };
                    if remembered == PATIENCE {
                        // Nobody holds a certificate of the old CA, and all that it has signed must have ended.
                        self.world.clock.skip(self.ended);
                        if self.ended < DAY {
                            self.world.manager.apply(observed.resources).await.unwrap();
                        } else {
                            // No control plane believes that so much time has passed while it was running. The next one gets
                            // certificates from a CA with a clock of its own.
                            self.world.restart().await;
                        }
                    }
                    if Instant::now() > deadline {
                        let gate = self.world.manager.gate(MESH).await;
                        let why = self.world.handle("s-0").await.error();
                        panic!("it does not arrive: {said}\n{gate:?}\n{why:?}");
                    }
                    tokio::time::sleep(Duration::from_millis(30)).await;
                }
                Next::Done => return,
                other => panic!("{other:?}"),
            }
        }
    }

    fn say(&self, words: &str) {
        println!("{:5.1} s: {words}", self.begun.elapsed().as_secs_f64());
    }

    fn see_roots(&mut self) {
        for bundle in self.world.manager.mesh(MESH).trust().iter() {
            let roots = bundle.roots().iter().map(|root| to_pem(root.der()));
            self.roots.extend(roots);
        }
    }

    async fn before(&mut self, disturbance: Disturbance) {
        self.say(&format!("{disturbance:?}"));
        match disturbance {
            Disturbance::Pause(name) => {
                self.sidecars[name]
                    .envoy
                    .read()
                    .await
                    .pause()
                    .await
                    .unwrap();
                self.holding.insert(name.to_owned());
            }
            Disturbance::Refuse => {
                self.stubborn.refuse();
                self.holding.insert(stubborn::NAME.to_owned());
            }
            Disturbance::Join(name) => {
                let sidecar = self.world.sidecar(name).await;
                self.load.join(&sidecar);
                self.sidecars.insert(name.to_owned(), sidecar);
            }
            Disturbance::Restart(_) | Disturbance::RestartControlPlane(_) => {}
        }
    }

    async fn after(&mut self, disturbance: Disturbance) {
        match disturbance {
            Disturbance::Restart(name) => {
                // When no request is under way through it, as an orderly restart has it.
                let mut envoy = self.sidecars[name].envoy.write().await;
                envoy.restart().await.unwrap();
                envoy.until_live(SOON).await.unwrap();
            }
            Disturbance::RestartControlPlane(late) => {
                let envoy = &self.sidecars[late].envoy;
                envoy.read().await.pause().await.unwrap();
                self.world.restart().await;
                let going_on = Arc::clone(&self.sidecars[late]);
                tokio::spawn(async move {
                    tokio::time::sleep(LATE).await;
                    going_on.envoy.read().await.resume().unwrap();
                });
            }
            _ => {}
        }
    }

    /// Those who are waited for have made their point.
    async fn let_go(&mut self, who: BTreeSet<String>) {
        self.say(&format!("{who:?} go on"));
        for name in &who {
            self.holding.remove(name);
            match self.sidecars.get(name) {
                Some(sidecar) => sidecar.envoy.read().await.resume().unwrap(),
                None => {
                    assert!(self.stubborn.refused() > 0);
                    self.stubborn.give_in();
                }
            }
        }
        self.waited_for.extend(who);
    }

    /// Everyone shows what the manager has now, and nobody has heard of any other CA.
    async fn nothing_is_left(&self) {
        let mut current = BTreeSet::new();
        for sidecar in self.sidecars.values() {
            let identity = sidecar.until_shows_its_own(self.world).await;
            current.insert(to_pem(identity.certificate().root().der()));
        }
        assert_eq!(current.len(), 1, "{current:?}");
        let gone: Vec<_> = self.roots.difference(&current).collect();
        assert_eq!(gone.len(), 1, "{gone:?}");
        // In Base64 each line says something else, but for the first ones.
        let traces: Vec<&str> = gone
            .iter()
            .filter_map(|pem| pem.lines().rev().nth(2))
            .collect();
        let left = |text: &str| traces.iter().any(|trace| text.contains(trace));
        for (name, sidecar) in &self.sidecars {
            until(&format!("`{name}` knows the old CA"), async || {
                let envoy = sidecar.envoy.read().await;
                let dump = envoy.get_text("config_dump").await.unwrap();
                assert!(dump.contains("BEGIN CERTIFICATE"));
                !left(&dump)
            })
            .await;
        }
        until("the server of secrets knows the old CA", async || {
            let secrets = self.stubborn.secrets();
            assert!(secrets.contains("BEGIN CERTIFICATE"));
            !left(&secrets)
        })
        .await;
    }
}

// The meshes between which they move.

const STRICT: &str = "\n---\n{type: MeshTLS, name: all, mesh: default, spec: {targetRef: {kind: Mesh}, rules: [{default: {mode: Strict}}]}}";

/// The classic model: the first of these backends issues.
fn classic(mode: &str, backends: &[(&str, Value)]) -> String {
    let backend = |(name, provider): &(&str, Value)| {
        let mut backend = provider.clone();
        backend["name"] = json!(name);
        backend["mode"] = json!(mode);
        backend
    };
    let all: Vec<_> = backends.iter().map(backend).collect();
    json!({
        "type": "Mesh", "name": "default",
        "meshServices": {"mode": "Exclusive"},
        "mtls": {"enabledBackend": backends[0].0, "backends": all},
    })
    .to_string()
}

fn builtin_backend(lifetime: &str) -> Value {
    json!({"type": "builtin", "dpCert": {"rotation": {"expiration": lifetime}}})
}

fn vault_backend(from_cp: &Value) -> Value {
    json!({
        "type": "vault", "conf": {"fromCp": from_cp},
        "dpCert": {"rotation": {"expiration": "3d"}},
    })
}

/// MeshIdentity, and strict.
fn modern(name: &str, domain: &str, provider: &Value, root: Option<&str>) -> String {
    let mut text =
        json!({"type": "Mesh", "name": "default", "meshServices": {"mode": "Exclusive"}})
            .to_string();
    let identity = json!({
        "type": "MeshIdentity", "name": name, "mesh": "default",
        "spec": {
            "selector": {"dataplane": {"matchLabels": {}}},
            "spiffeID": {"trustDomain": domain},
            "provider": provider,
        },
    });
    write!(text, "\n---\n{identity}{STRICT}").unwrap();
    if let Some(root) = root {
        let trust = json!({
            "type": "MeshTrust", "name": name, "mesh": "default",
            "spec": {"trustDomain": domain, "caBundles": [{"type": "Pem", "pem": {"value": root}}]},
        });
        write!(text, "\n---\n{trust}").unwrap();
    }
    text
}

/// From the built-in CA of the classic model to Vault and MeshIdentity, by all four steps.
pub(crate) fn to_vault(provider: &Value, root: &str) -> Move {
    use Disturbance::{Join, Pause, Refuse, Restart};
    Move {
        name: "live migration",
        from: classic("STRICT", &[("ca-1", builtin_backend(LIFETIME))]),
        to: modern("vault", "example.org", provider, Some(root)),
        mode: Mode::Strict,
        back_from: None,
        ended: HOUR,
        disturbances: &[
            (1, Pause("s-2")),
            (1, Refuse),
            (3, Join("c-3")),
            (4, Restart("s-1")),
        ],
    }
}

/// From the built-in CA of the classic model to another one of that.
pub(crate) fn to_another_backend(from_cp: &Value) -> Move {
    use Disturbance::{Join, Pause, Refuse, Restart};
    Move {
        name: "live rotation of a classic CA",
        from: classic("STRICT", &[("ca-1", builtin_backend(LIFETIME))]),
        to: classic("STRICT", &[("ca-2", vault_backend(from_cp))]),
        mode: Mode::Strict,
        back_from: None,
        ended: HOUR,
        disturbances: &[
            (1, Refuse),
            (2, Join("c-3")),
            (1, Pause("c-1")),
            (2, Restart("s-0")),
        ],
    }
}

/// From one trust domain to another, each with a CA of its own.
pub(crate) fn to_another_domain() -> Move {
    use Disturbance::{Join, Pause, Refuse, Restart};
    let mut leaving = crate::issuers::bundled();
    leaving["bundled"]["certificateParameters"] = json!({"expiry": LIFETIME});
    let arriving = crate::issuers::bundled();
    Move {
        name: "live change of the trust domain",
        from: modern("old", "example.org", &leaving, None),
        to: modern("new", "example.com", &arriving, None),
        mode: Mode::Strict,
        back_from: None,
        ended: HOUR,
        disturbances: &[
            (1, Join("c-3")),
            (1, Pause("s-0")),
            (1, Refuse),
            (2, Restart("s-2")),
        ],
    }
}

/// The same while the control plane is restarted again and again.
pub(crate) fn with_restarts(from_cp: &Value) -> Move {
    use Disturbance::{Join, RestartControlPlane};
    Move {
        name: "live rotation with restarts of the control plane",
        disturbances: &[
            (1, RestartControlPlane("s-1")),
            (2, RestartControlPlane("c-2")),
            (2, Join("c-3")),
            (3, RestartControlPlane("s-0")),
        ],
        // The record is believed for a day longer.
        ended: DAY + HOUR,
        ..to_another_backend(from_cp)
    }
}

/// Some steps of the way to Vault, and back.
pub(crate) fn there_and_back(
    name: &'static str,
    provider: &Value,
    root: &str,
    back_from: usize,
) -> Move {
    use Disturbance::{Join, Pause, Refuse, Restart};
    Move {
        name,
        from: classic("PERMISSIVE", &[("ca-1", builtin_backend("30d"))]),
        to: modern("vault", "example.org", provider, Some(root)),
        mode: Mode::Permissive,
        back_from: Some(back_from),
        // What Vault has signed, for six hours.
        ended: 8 * HOUR,
        disturbances: &[
            (1, Refuse),
            (1, Pause("c-0")),
            (2, Join("c-3")),
            (3, Restart("s-1")),
        ],
    }
}
