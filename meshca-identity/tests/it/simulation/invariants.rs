//! What must hold at every step. The [module](super) says why.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::SystemTime;

use meshca_core::{Clock as _, Identity, TrustDomain};
use meshca_identity::manager::{Assignment, Health};
use meshca_identity::{BackendKey, Handle};
use tokio::time::Instant;

use super::cas::Conduct;
use super::replica::Entry;
use super::report::Phase;
use super::spec::{MESHES, Spec};
use super::world::World;
use super::{CALM, DAY, HOUR, LONGEST};

/// Which rule was broken, and how.
#[derive(Debug)]
pub(super) struct Violation {
    pub(super) rule: &'static str,
    what: String,
}

impl Violation {
    pub(super) fn new(rule: &'static str, what: impl fmt::Display) -> Self {
        let what = what.to_string();
        Self { rule, what }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

/// The rule that is not kept yet.
pub(super) const ACROSS: &str = "trust before use across replicas";

/// How many secrets two meshes have at most, with CAs that are replaced every day.
const MOST_SECRETS: usize = 60;

/// A mesh on a replica.
type Place = (usize, usize);

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Whether [`ACROSS`] is a rule.
    pub(super) across: bool,
    /// The roots, by when they were seen first.
    seen: BTreeMap<String, usize>,
    /// When something was handed out first under a root.
    used: BTreeMap<String, Instant>,
    /// When the last certificate under a root ends.
    ends: BTreeMap<String, SystemTime>,
    calm: BTreeMap<Place, Instant>,
    unreasoned: BTreeMap<(Place, String), Instant>,
    refusals: BTreeMap<(usize, String, String), VecDeque<Instant>>,
    events: BTreeMap<usize, VecDeque<Instant>>,
    doubted: BTreeMap<Place, Instant>,
    /// Where a proxy has refused trust: nobody is left behind there for roots of before.
    refused: BTreeSet<Place>,
    /// CAs of which operators were told that they are lost.
    pub(super) lost: BTreeSet<(Place, BackendKey)>,
    /// When something was handed out that was not looked at yet, by replica, mesh and workload.
    handed_out: BTreeMap<(usize, String, String), Instant>,
    pub(super) most_events: usize,
    pub(super) most_secrets: usize,
}

impl Watch {
    /// The clock of a replica was set.
    pub(super) fn disturbed(&mut self, replica: usize) {
        self.calm.retain(|(it, _), _| *it != replica);
    }

    /// CAs were told to be asked again.
    pub(super) fn begun_anew(&mut self, replica: usize) {
        self.refusals.retain(|(it, ..), _| *it != replica);
    }

    pub(super) fn restarted(&mut self, replica: usize) {
        self.disturbed(replica);
        self.begun_anew(replica);
        self.events.remove(&replica);
        self.doubted.retain(|(it, _), _| *it != replica);
        self.unreasoned.retain(|((it, _), _), _| *it != replica);
        self.refused.retain(|(it, _)| *it != replica);
    }
}

fn fingerprint(identity: &Identity) -> &str {
    identity.certificate().root().fingerprint()
}

impl World {
    /// Everything that must hold now.
    pub(super) async fn check(&mut self) -> Result<(), Violation> {
        for n in 0..self.replicas.len() {
            self.hear(n)?;
        }
        let refusing = self.proxies.iter().filter(|it| it.has_refused);
        let refusing = refusing.map(|it| (it.replica, it.mesh));
        self.watch.refused.extend(refusing);
        self.identities_are_sound()?;
        self.nothing_new_for_the_removed()?;
        for replica in 0..self.replicas.len() {
            for mesh in 0..MESHES.len() {
                self.trust_has_a_reason((replica, mesh))?;
                self.all_is_well_where_it_is_calm((replica, mesh))?;
            }
        }
        self.nothing_grows().await
    }

    /// Takes note of what a replica has told.
    fn hear(&mut self, n: usize) -> Result<(), Violation> {
        for entry in self.replicas[n].log.take() {
            let events = self.watch.events.entry(n).or_default();
            events.push_back(entry.at);
            self.hear_one(n, entry)?;
        }
        let events = self.watch.events.entry(n).or_default();
        events.retain(|at| at.elapsed() < HOUR);
        self.watch.most_events = self.watch.most_events.max(events.len());
        let most = 200 + 60 * self.proxies.len();
        match events.len() > most {
            true => Err(Violation::new(
                "nothing is unbounded",
                format!("{} events of {n} in an hour", events.len()),
            )),
            false => Ok(()),
        }
    }

    fn hear_one(&mut self, n: usize, entry: Entry) -> Result<(), Violation> {
        let mesh = MESHES.iter().position(|it| *it == entry.mesh);
        match entry.kind {
            "issued" | "renewed" => {
                let workload = entry.workload.clone().unwrap_or_default();
                let key = (n, entry.mesh.clone(), workload);
                self.watch.handed_out.insert(key, entry.at);
            }
            // Each attempt is told, and most are the same.
            "failing" if self.trace.last().is_some_and(|it| it.contains(&entry.text)) => {}
            _ => self.trace.push(format!("  {n}: {}", entry.text)),
        }
        if entry.kind == "clock_doubted"
            && let Some(mesh) = mesh
        {
            self.watch.doubted.insert((n, mesh), entry.at);
        }
        if entry.kind == "backend_failing"
            && (entry.text.contains("confirm_new_ca") || entry.text.contains("were deleted"))
            && let (Some(mesh), Some(backend)) = (mesh, &entry.backend)
        {
            let place = (n, mesh);
            self.watch.calm.remove(&place);
            self.watch.lost.insert((place, backend.clone()));
        }
        if entry.kind == "proxy_released" {
            let released = self.proxies.iter_mut().filter(|it| {
                Some(it.mesh) == mesh
                    && it.replica == n
                    && Some(&it.name) == entry.workload.as_ref()
            });
            released.for_each(|it| it.released = true);
        }
        if entry.refused
            && let Some(BackendKey::Classic(name) | BackendKey::Modern(name)) = entry.backend
        {
            return self.count_refusal(n, entry.mesh, name, entry.at);
        }
        Ok(())
    }

    fn count_refusal(
        &mut self,
        n: usize,
        mesh: String,
        name: String,
        at: Instant,
    ) -> Result<(), Violation> {
        let anew = self.parts.told.changed(n, &name);
        let key = (n, mesh.clone(), name.clone());
        let refusals = self.watch.refusals.entry(key).or_default();
        refusals.push_back(at);
        let counts =
            |it: &Instant| at.duration_since(*it) < DAY && anew.is_none_or(|anew| anew < *it);
        refusals.retain(counts);
        match refusals.len() > 24 {
            true => Err(Violation::new(
                "a CA that refuses is asked 24 times a day",
                format!(
                    "replica {n} has asked `{name}` of {mesh} {} times",
                    refusals.len()
                ),
            )),
            false => Ok(()),
        }
    }

    /// What handles give.
    fn identities_are_sound(&mut self) -> Result<(), Violation> {
        for n in 0..self.proxies.len() {
            let proxy = &self.proxies[n];
            let Some(handle) = &proxy.handle else {
                continue;
            };
            let Some(identity) = handle.identity() else {
                let spec = self.replicas[proxy.replica].applied[proxy.mesh];
                let may_be = spec.is_none_or(|it| !it.is_on()) || self.is_pending(proxy.mesh);
                if proxy.seen.is_some()
                    && !may_be
                    && handle.assignment() != Assignment::Nobody
                    && !handle.is_removed()
                {
                    let what = format!("{} has lost its identity", proxy.name);
                    return Err(Violation::new("nothing valid is taken away", what));
                }
                self.proxies[n].seen = None;
                continue;
            };
            let certificate = identity.certificate();
            let bundle = handle.trust();
            let domain = certificate.spiffe_id().trust_domain();
            let root = certificate.root();
            let is_trusted = { bundle.get(domain) }.is_some_and(|it| it.contains(root.der()));
            // A clock that is set back makes it valid again, and brings no root back.
            let now = self.replicas[proxy.replica].clock.now();
            let now = now.max(self.truth.now());
            let has_ended = certificate.validity().not_after() < now;
            if !is_trusted && !has_ended {
                let what = format!("{}: {}", proxy.name, root.fingerprint());
                return Err(Violation::new("an identity is in its own trust", what));
            }
            let serial = certificate.serial().to_owned();
            if proxy.seen.as_ref() == Some(&serial) {
                continue;
            }
            self.is_sound(n, &identity)?;
            self.proxies[n].seen = Some(serial);
        }
        Ok(())
    }

    fn is_pending(&self, mesh: usize) -> bool {
        let mut replicas = self.replicas.iter();
        replicas.any(|it| it.pending.iter().any(|(of, _)| *of == mesh))
    }

    /// An identity that was not seen before.
    fn is_sound(&mut self, n: usize, identity: &Identity) -> Result<(), Violation> {
        let proxy = &self.proxies[n];
        let certificate = identity.certificate();
        let leaf = certificate.chain().first().map(|it| it.to_vec());
        let leaf = leaf.unwrap_or_default();
        let (name, mesh) = (proxy.name.as_str(), MESHES[proxy.mesh]);
        if self.parts.cas.all().any(|it| it.is_a_lie(&leaf)) {
            return Err(Violation::new("nothing unverified is handed out", name));
        }
        let end = certificate.validity().not_after();
        let root = fingerprint(identity).to_owned();
        let last = self.watch.ends.entry(root.clone()).or_insert(end);
        *last = end.max(*last);
        let count = self.watch.seen.len();
        self.watch.seen.entry(root.clone()).or_insert(count);
        let key = (proxy.replica, mesh.to_owned(), name.to_owned());
        let Some(then) = self.watch.handed_out.remove(&key) else {
            return Ok(());
        };
        self.watch.used.entry(root).or_insert(then);
        self.peers_trust(n, identity, then)
    }

    /// Peers trust an identity that was handed out then.
    fn peers_trust(&self, n: usize, identity: &Identity, then: Instant) -> Result<(), Violation> {
        let (proxy, certificate) = (&self.proxies[n], identity.certificate());
        let domain = certificate.spiffe_id().trust_domain();
        if !self.parts.acknowledgements {
            return Ok(());
        }
        let replica = &self.replicas[proxy.replica];
        for peer in self.proxies.iter().filter(|it| it.mesh == proxy.mesh) {
            let is_here = peer.replica == proxy.replica;
            let is_owed = match is_here {
                true => peer.is_owed(replica.number, replica.life, then),
                false => self.watch.across && peer.is_grounded() && !peer.released,
            };
            if is_owed && !peer.trusts(domain, certificate.root()) {
                let rule = match is_here {
                    true => "trust before use",
                    false => ACROSS,
                };
                let what = format!(
                    "{} of replica {} does not trust the root {} of {} of replica {}",
                    peer.name,
                    peer.replica,
                    fingerprint(identity),
                    proxy.name,
                    proxy.replica,
                );
                return Err(Violation::new(rule, what));
            }
        }
        Ok(())
    }

    fn nothing_new_for_the_removed(&self) -> Result<(), Violation> {
        for ghost in &self.ghosts {
            let identity = ghost.handle.identity();
            let serial = identity.map(|it| it.certificate().serial().to_owned());
            if serial != ghost.serial || ghost.handle.trust_version() != ghost.version {
                let what = format!("{:?}", ghost.handle);
                return Err(Violation::new("a removed handle gets nothing new", what));
            }
        }
        Ok(())
    }

    /// Whether a root has a source or a certificate that may be valid by the clock of a replica, and the margins.
    fn has_reason(&self, (n, _): Place, spec: &Spec, root: &str) -> bool {
        let mut backends = spec.backends().iter();
        if backends.any(|it| self.parts.told.is_named(it, root)) {
            return true;
        }
        let now = self.replicas[n].clock.now();
        // A record is ahead of its needs by as much as they last, and kept for a day longer.
        let margin = LONGEST + DAY + HOUR;
        let end = self.watch.ends.get(root);
        end.is_some_and(|end| now <= *end + margin)
    }

    fn trust_has_a_reason(&mut self, place: Place) -> Result<(), Violation> {
        let (n, mesh) = place;
        let replica = &self.replicas[n];
        let Some(spec) = replica.applied[mesh] else {
            self.watch.unreasoned.retain(|(it, _), _| *it != place);
            return Ok(());
        };
        let trust = replica.manager.mesh(MESHES[mesh]).trust();
        let roots = trust.iter().flat_map(|it| it.roots());
        let roots: BTreeSet<String> = roots.map(|it| it.fingerprint().to_owned()).collect();
        // What a clock that is wrong has signed, and nobody has seen, may last for months.
        let doubted = self.cast.clocks || self.watch.doubted.contains_key(&place);
        let without = |root: &&String| !doubted && !self.has_reason(place, &spec, root);
        let without: BTreeSet<String> = roots.iter().filter(without).cloned().collect();
        for root in roots {
            let count = self.watch.seen.len();
            self.watch.seen.entry(root).or_insert(count);
        }
        let unreasoned = &mut self.watch.unreasoned;
        unreasoned.retain(|(it, root), _| *it != place || without.contains(root));
        for root in without {
            let since = unreasoned.entry((place, root.clone()));
            let since = since.or_insert_with(Instant::now);
            if since.elapsed() > 2 * HOUR {
                let what = format!("{root} in {} of replica {n}", MESHES[mesh]);
                return Err(Violation::new("trust has a living reason", what));
            }
        }
        Ok(())
    }

    /// Whether nothing keeps a mesh of a replica from its work, or one proxy at most that may be left behind.
    fn is_calm(&self, (n, mesh): Place) -> Option<bool> {
        let (replica, spec) = (&self.replicas[n], self.specs[mesh]);
        let vendors = match spec.kind {
            super::spec::Kind::Two => super::cas::TYPES.to_vec(),
            _ => spec.vendor().into_iter().collect(),
        };
        let mut conducts = vendors.iter().map(|it| self.parts.cas.get(it).conduct());
        let mut lost = self.watch.lost.iter();
        let is_well = replica.applied[mesh] == Some(spec)
            && !lost.any(|(place, _)| *place == (n, mesh))
            && spec.is_on()
            && replica.clock.ahead() == 0
            && !self.parts.store.is_injured()
            && self.parts.store.trouble(n).is_none()
            && conducts.all(|it| it == Conduct::Honest);
        let here = || {
            self.proxies
                .iter()
                .filter(|it| (it.replica, it.mesh) == (n, mesh))
        };
        let lagging = || here().filter(|it| it.lags());
        let waits = self.parts.acknowledgements && lagging().next().is_some();
        let refused = waits && self.watch.refused.contains(&(n, mesh));
        (is_well && !refused && (!waits || lagging().count() == 1)).then_some(waits)
    }

    fn all_is_well_where_it_is_calm(&mut self, place: Place) -> Result<(), Violation> {
        let Some(waits) = self.is_calm(place) else {
            self.watch.calm.remove(&place);
            return Ok(());
        };
        let since = self.watch.calm.entry(place).or_insert_with(Instant::now);
        if since.elapsed() < CALM {
            return Ok(());
        }
        let now = self.replicas[place.0].clock.now();
        let here = self
            .proxies
            .iter()
            .filter(|it| (it.replica, it.mesh) == place);
        for proxy in here {
            let Some(handle) = &proxy.handle else {
                continue;
            };
            let identity = handle.identity();
            // One that begins in the future, by a clock that was ahead, is kept until it would have been renewed.
            let is_valid = { identity.as_ref() }
                .is_some_and(|it| now < it.certificate().validity().not_after());
            // One that has nothing yet may have to wait for a laggard, as long as nobody loses by that.
            if !(is_valid || waits && identity.is_none()) {
                let validity = identity.map(|it| it.certificate().validity());
                let what = format!(
                    "{} in {} of replica {} is {}, {validity:?}, {:?}, at {now:?}",
                    proxy.name,
                    MESHES[place.1],
                    place.0,
                    handle.health(),
                    handle.error(),
                );
                return Err(Violation::new("nobody is without what can be had", what));
            }
        }
        Ok(())
    }

    async fn nothing_grows(&mut self) -> Result<(), Violation> {
        let secrets = self.parts.store.len();
        self.watch.most_secrets = self.watch.most_secrets.max(secrets);
        // A CA that a wrong clock has made is kept for as long as something under it may be valid.
        let most = match self.cast.clocks {
            true => 3 * MOST_SECRETS,
            false => MOST_SECRETS,
        };
        if secrets > most {
            let what = format!("{:?}", self.parts.store.names());
            return Err(Violation::new("nothing is unbounded", what));
        }
        for replica in &self.replicas {
            let stats = replica.manager.stats().await.unwrap();
            if stats.meshes > MESHES.len() {
                return Err(Violation::new("nothing is unbounded", format!("{stats:?}")));
            }
        }
        Ok(())
    }

    /// All have been well for some time.
    pub(super) async fn everybody_has_what_is_due(&self) -> Result<(), Violation> {
        let rule = "all is well in the end";
        for proxy in &self.proxies {
            let spec = self.specs[proxy.mesh];
            let Some(handle) = &proxy.handle else {
                return Err(Violation::new(rule, format!("{} is alone", proxy.name)));
            };
            let wrong = |what: &str| {
                let statuses = handle.mesh().identity_statuses();
                let what = format!(
                    "{} of replica {}: {what}, {}, {:?}, {:?}, {statuses:?}",
                    proxy.name,
                    proxy.replica,
                    handle.health(),
                    handle.error(),
                    handle.identity().map(|it| it.certificate().validity()),
                );
                Err(Violation::new(rule, what))
            };
            let Some(identity) = handle.identity() else {
                return wrong("it has nothing");
            };
            let certificate = identity.certificate();
            if certificate.spiffe_id().to_string()
                != spec.spiffe_id(MESHES[proxy.mesh], &proxy.name)
            {
                return wrong("it is somebody else");
            }
            if handle.health() != Health::Fresh {
                return wrong("it is not well");
            }
            if certificate.validity().not_after() <= self.truth.now() {
                return wrong("it is not valid");
            }
            let named = spec.backends().iter();
            let root = fingerprint(&identity);
            if !named.clone().any(|it| self.parts.told.is_named(it, root)) {
                return wrong("its CA has another root");
            }
            let domain = certificate.spiffe_id().trust_domain();
            self.all_trust(proxy.mesh, domain, &identity)?;
        }
        Ok(())
    }

    fn all_trust(
        &self,
        mesh: usize,
        domain: &TrustDomain,
        identity: &Identity,
    ) -> Result<(), Violation> {
        let peers = self.proxies.iter().filter(|it| it.mesh == mesh);
        for peer in peers {
            if !peer.trusts(domain, identity.certificate().root()) {
                let what = format!(
                    "{} of replica {} does not trust {}, of {}",
                    peer.name,
                    peer.replica,
                    fingerprint(identity),
                    identity.spiffe_id(),
                );
                return Err(Violation::new("all trust each other in the end", what));
            }
        }
        Ok(())
    }

    /// Where a mesh on a replica is in a rotation; `None` without identities.
    pub(super) async fn phase(&self, n: usize, mesh: usize) -> Option<Phase> {
        let (replica, spec) = (&self.replicas[n], self.specs[mesh]);
        replica.applied[mesh].filter(Spec::is_on)?;
        let domain = TrustDomain::new(spec.trust_domain(MESHES[mesh])).ok()?;
        let trust = replica.manager.mesh(MESHES[mesh]).trust();
        let bundle = trust.get(&domain)?;
        let mut roots: Vec<&str> = bundle.roots().iter().map(|it| it.fingerprint()).collect();
        if roots.len() < 2 {
            return Some(Phase::None);
        }
        roots.sort_by_key(|it| self.watch.seen.get(*it).copied().unwrap_or(usize::MAX));
        let here = self.proxies.iter();
        let here = here.filter(|it| (it.replica, it.mesh) == (n, mesh));
        let handles = here.filter_map(|it| it.handle.as_ref());
        let held: BTreeSet<String> = handles
            .filter_map(Handle::identity)
            .map(|it| fingerprint(&it).to_owned())
            .collect();
        let newest = roots.pop()?;
        let Some(used) = self.watch.used.get(newest) else {
            let gate = replica.manager.gate(MESHES[mesh]).await.ok()?;
            return Some(match gate.is_open() {
                true => Phase::Prepared,
                false => Phase::Waits,
            });
        };
        let is_new = used.elapsed() < 4 * HOUR;
        let is_left = held.iter().any(|it| it != newest);
        Some(match is_new || is_left {
            true => Phase::Activated,
            false => Phase::Retiring,
        })
    }
}
