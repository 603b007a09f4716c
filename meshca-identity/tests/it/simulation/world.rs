//! The world of one seed: replicas over one store, CAs, proxies, operators, and what befalls them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use meshca_core::ErrorKind;
use meshca_identity::{Handle, TrustVersion};
use tokio::time::Instant;

use super::cas::{Cas, Conduct, TYPES, Told, lies};
use super::clock::SkewedClock;
use super::dice::Dice;
use super::invariants::{Violation, Watch};
use super::proxies::{MANNERS, Manner, Proxy};
use super::replica::{Parts, Replica};
use super::report::{Fault, Matrix};
use super::spec::{Kind, MESHES, Spec};
use super::store::{Store, Trouble};
use super::{EVENTS, HOUR, S};
use crate::world::pass;

/// Who misbehaves in a seed. Where everybody does, each hides what the others do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cast {
    pub(super) proxies: bool,
    pub(super) cas: bool,
    pub(super) store: bool,
    pub(super) clocks: bool,
    pub(super) operators: bool,
    pub(super) restarts: bool,
}

/// What a handle of a removed mesh had then.
pub(super) struct Ghost {
    pub(super) handle: Handle,
    pub(super) serial: Option<String>,
    pub(super) version: TrustVersion,
}

/// How many events are not settled yet.
const RECENT: usize = 6;

/// How many handles of removed meshes are kept.
const GHOSTS: usize = 8;

pub(super) struct World {
    pub(super) dice: Dice,
    pub(super) cast: Cast,
    pub(super) truth: SkewedClock,
    pub(super) parts: Parts,
    pub(super) replicas: Vec<Replica>,
    pub(super) specs: [Spec; 2],
    pub(super) proxies: Vec<Proxy>,
    pub(super) ghosts: Vec<Ghost>,
    pub(super) watch: Watch,
    pub(super) matrix: Matrix,
    /// What happened in the last steps, with the mesh and the replica that it happened to: it takes time to settle.
    now: VecDeque<(Fault, Option<usize>, Option<usize>)>,
    /// By when a clock that was set wrong is right again: a clock that is ahead for a day costs CAs.
    right_by: Vec<Option<Instant>>,
    numbered: usize,
    pub(super) trace: Vec<String>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        for _ in 0..8 {
            dice.below(2);
        }
        let often = |dice: &mut Dice| dice.below(5) < 3;
        let cast = Cast {
            proxies: often(&mut dice),
            cas: often(&mut dice),
            store: often(&mut dice),
            clocks: often(&mut dice),
            operators: often(&mut dice),
            restarts: often(&mut dice),
        };
        let truth = SkewedClock::right(Instant::now());
        let parts = Parts {
            store: Arc::new(Store::default()),
            cas: Cas::new(&truth),
            told: Told::default(),
            acknowledgements: dice.below(4) > 0,
            seed,
        };
        let count = dice.below(3) + 1;
        let begun = Instant::now();
        let start = |number| Replica::start(number, 0, SkewedClock::right(begun), &parts);
        let mut replicas: Vec<Replica> = (0..count).map(start).collect();
        let specs = [Spec::drawn(&mut dice), Spec::drawn(&mut dice)];
        for replica in &mut replicas {
            replica.pending.extend(specs.into_iter().enumerate());
        }
        let mut proxies = Vec::new();
        for number in 0..dice.below(4) + 4 {
            // Two in the first mesh at least, on different replicas where there are some.
            let mesh = usize::from(number > 2 && dice.one_in(3));
            let replica = number % count;
            proxies.push(Proxy::new(mesh, number, 0, replica));
        }
        let begins = format!("{cast:?}, {count} replicas, {specs:?}, {parts:?}");
        Self {
            cast,
            truth,
            right_by: vec![None; count],
            replicas,
            specs,
            numbered: proxies.len(),
            proxies,
            ghosts: Vec::new(),
            watch: Watch::default(),
            matrix: Matrix::default(),
            now: VecDeque::new(),
            trace: vec![
                begins
                    .split(", Parts")
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            ],
            parts,
            dice,
        }
    }

    /// Runs it to its end.
    pub(super) async fn run(&mut self) -> Result<(), Violation> {
        for step in 0..EVENTS {
            if self.now.len() > RECENT || self.dice.one_in(4) {
                self.now.pop_front();
            }
            self.follow().await;
            let event = self.event().await;
            let wait = self.dice.pick(&[
                Duration::ZERO,
                S,
                10 * S,
                60 * S,
                300 * S,
                900 * S,
                1800 * S,
                HOUR,
                2 * HOUR,
            ]);
            let at = self.truth_passed().as_secs();
            self.trace
                .push(format!("{step} at {at} s: {event}, then {wait:?}"));
            if step % 12 == 0 {
                self.parts.store.back_up();
            }
            self.note_phases().await;
            for _ in 0..3 {
                pass(wait / 3 + Duration::from_millis(1)).await;
                self.check().await?;
                self.heed();
            }
        }
        self.end().await
    }

    fn truth_passed(&self) -> Duration {
        use meshca_core::Clock as _;
        let now = self.truth.now();
        now.duration_since(meshca_testkit::FakeClock::start())
            .unwrap()
    }

    /// What is of use to find out why a rule was broken.
    pub(super) async fn explain(&mut self) {
        self.trace.extend(self.parts.store.rotations());
        for replica in &self.replicas {
            for mesh in MESHES {
                if let Ok(gate) = replica.manager.gate(mesh).await {
                    let line = format!("{}: {mesh}: {gate:?}", replica.number);
                    self.trace.push(line);
                }
            }
        }
    }

    /// Replicas take what operators wrote, and proxies connect.
    async fn follow(&mut self) {
        for n in 0..self.replicas.len() {
            if self.right_by[n].is_some_and(|by| by <= Instant::now()) {
                self.set_clock(n, 0);
            }
            if self.dice.below(4) > 0
                && let Err(error) = self.replicas[n].catch_up().await
            {
                self.trace
                    .push(format!("  replica {n} cannot apply: {error}"));
            }
        }
        if self.dice.one_in(4) {
            self.confirm_lost_cas().await;
        }
        self.reconnect().await;
        self.heed();
    }

    /// Connects those who are not, or whose mesh was removed.
    async fn reconnect(&mut self) {
        for proxy in &mut self.proxies {
            if let Some(handle) = proxy.handle.take_if(|it| it.is_removed()) {
                let identity = handle.identity();
                self.ghosts.push(Ghost {
                    serial: identity.map(|it| it.certificate().serial().to_owned()),
                    version: handle.trust_version(),
                    handle,
                });
                if self.ghosts.len() > GHOSTS {
                    self.ghosts.remove(0);
                }
            }
            let tenant = self.specs[proxy.mesh].tenant;
            if proxy.tenant != tenant {
                // The mesh is another tenant's, and has proxies of its own.
                self.numbered += 1;
                let number = self.numbered;
                *proxy = Proxy::new(proxy.mesh, number, tenant, proxy.replica);
            }
            let replica = &self.replicas[proxy.replica];
            if proxy.handle.is_none() && replica.applied[proxy.mesh].is_some() {
                proxy.connect(replica).await;
            }
        }
    }

    /// Proxies do with their trust what they do.
    fn heed(&mut self) {
        for proxy in &mut self.proxies {
            let life = self.replicas[proxy.replica].life;
            proxy.act(life, &mut self.dice);
        }
    }

    fn set_clock(&mut self, replica: usize, ahead: i64) {
        self.replicas[replica].clock.set(ahead);
        let within = u64::try_from(self.dice.below(20)).unwrap() + 1;
        self.right_by[replica] = (ahead != 0).then(|| Instant::now() + within as u32 * HOUR);
        self.watch.disturbed(replica);
    }

    async fn event(&mut self) -> String {
        let cast = self.cast;
        let all: [(bool, usize); 7] = [
            (cast.proxies, 0),
            (cast.cas, 1),
            (cast.store, 2),
            (cast.clocks, 3),
            (cast.operators, 4),
            (cast.restarts, 5),
            (true, 6),
        ];
        let there: Vec<usize> = all.iter().filter(|it| it.0).map(|it| it.1).collect();
        match self.dice.pick(&there) {
            0 => self.proxy_event(),
            1 => self.ca_event(),
            2 => self.store_event(),
            3 => self.clock_event(),
            4 => self.operator_event().await,
            5 => self.restart_event().await,
            _ => self.usual_event(),
        }
    }

    fn proxy_event(&mut self) -> String {
        let n = self.dice.below(self.proxies.len());
        let manner = match self.dice.one_in(2) {
            true => Manner::Prompt,
            false => self.dice.pick(&MANNERS),
        };
        let proxy = &mut self.proxies[n];
        proxy.manner = manner;
        format!("{} is {manner:?}", proxy.name)
    }

    fn ca_event(&mut self) -> String {
        let name = self.dice.pick(&TYPES);
        let ca = Arc::clone(self.parts.cas.get(name));
        match self.dice.below(8) {
            0 => {
                ca.announce();
                self.now.push_back((Fault::AnnouncesARoot, None, None));
                format!("{name} announces a root")
            }
            1 if ca.has_announced() => {
                ca.switch();
                format!("{name} signs under the root that it has announced")
            }
            1 => {
                ca.switch();
                self.now.push_back((Fault::ChangesItsRoot, None, None));
                format!("{name} signs under another root")
            }
            2 => {
                ca.forget();
                format!("{name} forgets its former root")
            }
            3 | 4 => {
                ca.behave(Conduct::Honest);
                format!("{name} is honest")
            }
            _ => {
                let conduct = match self.dice.below(5) {
                    0 => Conduct::Lies(self.dice.pick(&lies())),
                    1 => Conduct::Hangs,
                    2 | 3 => Conduct::Down,
                    _ => Conduct::Refuses(
                        self.dice
                            .pick(&[ErrorKind::Denied, ErrorKind::Unauthenticated]),
                    ),
                };
                ca.behave(conduct.clone());
                format!("{name} {conduct:?}")
            }
        }
    }

    fn store_event(&mut self) -> String {
        let n = self.dice.below(self.replicas.len());
        let store = &self.parts.store;
        match self.dice.below(9) {
            0 => {
                store.roll_back();
                self.now.push_back((Fault::RollsBack, None, None));
                "the store is rolled back".to_owned()
            }
            1..5 => {
                store.set_trouble(n, None);
                format!("the store works for {n}")
            }
            _ => {
                let trouble = self.dice.pick(&[
                    Trouble::Fails,
                    Trouble::Delays(2 * S),
                    Trouble::Delays(20 * S),
                    Trouble::Loses,
                    Trouble::Tears,
                ]);
                store.set_trouble(n, Some(trouble));
                format!("the store {trouble:?} for {n}")
            }
        }
    }

    fn clock_event(&mut self) -> String {
        let n = self.dice.below(self.replicas.len());
        let day = 24 * 3600;
        let ahead = self.dice.pick(&[
            0,
            0,
            120,
            3600,
            day,
            10 * day,
            85 * day,
            -600,
            -7200,
            -3 * day,
        ]);
        self.set_clock(n, ahead);
        format!("the clock of {n} is {ahead} s ahead")
    }

    async fn operator_event(&mut self) -> String {
        // What was removed comes back soon.
        let gone = self.specs.iter().position(|it| it.kind == Kind::Gone);
        let mesh = gone.unwrap_or(self.dice.below(MESHES.len()));
        let before = self.specs[mesh];
        let mut spec = before;
        let fault = match self.dice.below(8) {
            _ if before.kind == Kind::Gone => {
                spec.kind = Spec::some_kind(&mut self.dice);
                spec.tenant += usize::from(!self.dice.one_in(3));
                match spec.tenant == before.tenant {
                    true => Fault::AppliesAgain,
                    false => Fault::ReusesTheName,
                }
            }
            0 | 1 => {
                spec.kind = Kind::Gone;
                Fault::Removes
            }
            2 => {
                spec.kind = Kind::Off;
                Fault::ChangesTheProvider
            }
            3 | 4 => {
                spec.domain += 1;
                Fault::ChangesTheTrustDomain
            }
            5 | 6 => {
                spec.kind = Spec::some_kind(&mut self.dice);
                Fault::ChangesTheProvider
            }
            _ => {
                spec.edits += 1;
                Fault::Edits
            }
        };
        self.specs[mesh] = spec;
        for replica in &mut self.replicas {
            replica.pending.push_back((mesh, spec));
        }
        self.now.push_back((fault, Some(mesh), None));
        format!("{}: {fault:?}: {spec:?}", MESHES[mesh])
    }

    async fn restart_event(&mut self) -> String {
        let n = self.dice.below(self.replicas.len());
        self.now.push_back((Fault::Restarts, None, Some(n)));
        for proxy in self.proxies.iter_mut().filter(|it| it.replica == n) {
            proxy.handle = None;
        }
        self.ghosts.clear();
        let in_order = self.dice.one_in(2);
        let before = self.replicas.remove(n);
        let new = before.restarted(in_order, &self.parts).await;
        self.replicas.insert(n, new);
        self.watch.restarted(n);
        let _ = self.replicas[n].catch_up().await;
        self.reconnect().await;
        format!("replica {n} restarts, in order: {in_order}")
    }

    /// Nobody misbehaves.
    fn usual_event(&mut self) -> String {
        let n = self.dice.below(self.proxies.len());
        let replicas = self.replicas.len();
        match self.dice.below(6) {
            0 => {
                let to = self.dice.below(replicas);
                let proxy = &mut self.proxies[n];
                proxy.handle = None;
                proxy.replica = to;
                format!("{} connects to {to}", proxy.name)
            }
            1 => {
                let to = self.dice.below(replicas);
                self.replicas[to].manager.secrets_changed();
                self.watch.begun_anew(to);
                format!("{to} is told that secrets have changed")
            }
            2 if self.proxies.len() < 9 => {
                self.numbered += 1;
                let mesh = self.dice.below(MESHES.len());
                let to = self.dice.below(replicas);
                let tenant = self.specs[mesh].tenant;
                self.proxies
                    .push(Proxy::new(mesh, self.numbered, tenant, to));
                format!("one more proxy of {}", MESHES[mesh])
            }
            _ => "nothing".to_owned(),
        }
    }

    /// Which faults there are now, for a mesh on a replica.
    fn faults(&self, replica: usize, mesh: usize) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (fault, of, on) in &self.now {
            let applies = match fault {
                Fault::AnnouncesARoot | Fault::ChangesItsRoot => {
                    self.specs[mesh].vendor().is_some()
                }
                _ => true,
            };
            if applies && of.is_none_or(|it| it == mesh) && on.is_none_or(|it| it == replica) {
                faults.push(*fault);
            }
        }
        let here = self.proxies.iter();
        let here = here.filter(|it| it.replica == replica && it.mesh == mesh);
        faults.extend(here.filter_map(|it| match it.manner {
            Manner::Prompt => None,
            Manner::Late => Some(Fault::AcknowledgesLate),
            Manner::Silent => Some(Fault::NeverAcknowledges),
            Manner::False => Some(Fault::AcknowledgesFalsely),
            Manner::Refuses => Some(Fault::RefusesTrust),
        }));
        let vendor = self.specs[mesh].vendor();
        let conduct = vendor.map(|it| self.parts.cas.get(it).conduct());
        faults.extend(conduct.and_then(|it| match it {
            Conduct::Honest => None,
            Conduct::Lies(_) => Some(Fault::Lies),
            Conduct::Hangs => Some(Fault::Hangs),
            Conduct::Refuses(_) => Some(Fault::RefusesToSign),
            Conduct::Down => Some(Fault::IsDown),
        }));
        let trouble = self.parts.store.trouble(replica);
        faults.extend(trouble.map(|it| match it {
            Trouble::Fails => Fault::StoreFails,
            Trouble::Delays(_) => Fault::StoreDelays,
            Trouble::Loses => Fault::StoreLoses,
            Trouble::Tears => Fault::StoreTears,
        }));
        let clocks = || self.replicas.iter().map(|it| it.clock.ahead());
        let ahead = self.replicas[replica].clock.ahead();
        faults.extend((ahead > 0).then_some(Fault::ClockIsAhead));
        faults.extend((ahead < 0).then_some(Fault::ClockIsBehind));
        faults.extend((clocks().max() != clocks().min()).then_some(Fault::ClocksDiffer));
        faults
    }

    async fn note_phases(&mut self) {
        for replica in 0..self.replicas.len() {
            for mesh in 0..MESHES.len() {
                if let Some(phase) = self.phase(replica, mesh).await {
                    for fault in self.faults(replica, mesh) {
                        self.matrix.met(fault, phase);
                    }
                }
            }
        }
    }

    /// All is well again, and stays so.
    async fn end(&mut self) -> Result<(), Violation> {
        for proxy in &mut self.proxies {
            proxy.manner = Manner::Prompt;
        }
        for ca in self.parts.cas.all() {
            ca.behave(Conduct::Honest);
        }
        for n in 0..self.replicas.len() {
            self.parts.store.set_trouble(n, None);
            if self.replicas[n].clock.ahead() != 0 {
                self.set_clock(n, 0);
            }
        }
        for mesh in 0..MESHES.len() {
            if !self.specs[mesh].is_on() {
                self.specs[mesh].kind = Kind::Classic;
                let spec = self.specs[mesh];
                for replica in &mut self.replicas {
                    replica.pending.push_back((mesh, spec));
                }
            }
        }
        self.trace
            .push(format!("the end, at {} s", self.truth_passed().as_secs()));
        for n in 0..self.replicas.len() {
            if let Err(error) = self.replicas[n].catch_up().await {
                return Err(Violation::new("resources are taken", error));
            }
        }
        self.reconnect().await;
        for round in 0..12 {
            self.confirm_lost_cas().await;
            self.heed();
            pass(600 * S).await;
            self.heed();
            if round % 3 == 0 {
                self.check().await?;
            }
        }
        self.parts.store.is_healed();
        self.everybody_has_what_is_due().await?;
        for _ in 0..14 {
            pass(HOUR / 2).await;
            self.heed();
            pass(HOUR / 2).await;
            self.heed();
            self.check().await?;
        }
        self.everybody_has_what_is_due().await
    }

    /// Operators give up the CAs whose secrets are lost, when they are told of it.
    async fn confirm_lost_cas(&mut self) {
        for ((n, mesh), backend) in std::mem::take(&mut self.watch.lost) {
            let manager = &self.replicas[n].manager;
            let confirmed = manager.confirm_new_ca(MESHES[mesh], &backend, "the backup is lost");
            let outcome = match confirmed.await {
                Ok(()) => "confirmed".to_owned(),
                Err(error) => error.to_string(),
            };
            self.trace.push(format!(
                "  {n}: a new CA for {backend} of {}: {outcome}",
                MESHES[mesh]
            ));
            self.watch.begun_anew(n);
        }
    }
}
