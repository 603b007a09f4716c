//! The states of a mesh, and everything that can happen in each.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use meshca_core::resource::{Mesh, Mode};
pub(super) use meshca_testkit::search::Violation;
use meshca_testkit::search::{self, Model, Transition};

use super::world::{self, Leaf, Names, Wanted};
use crate::BackendKey;
use crate::MeshResources;
use crate::migration::{Next, Observed, ObservedProxy, Plan, plan};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Presence {
    Ended,
    Connected,
    CutOff,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct P {
    class: u8,
    presence: Presence,
    trusts: u32,
    accepts: [u32; 2],
    leaf: Option<Leaf>,
    strict: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    plan: usize,
    resources: usize,
    ready: u32,
    proxies: Vec<P>,
}

/// How much is explored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// The class of each proxy.
    pub(super) proxies: &'static [usize],
    /// Whether the way back is taken, from everywhere.
    pub(super) back: bool,
    /// Whether, on the way back, it is turned once more, everywhere.
    pub(super) forth: bool,
    /// Whether roots and SPIFFE IDs reach a proxy in one piece: fewer states, for more proxies.
    pub(super) together: bool,
}

/// The extent of an exploration.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) states: usize,
    pub(super) transitions: usize,
    /// Plan, step and what `next` said of it.
    pub(super) outcomes: BTreeSet<(usize, usize, &'static str)>,
    /// The plans, by their numbers, whose end was reached.
    pub(super) done: BTreeSet<usize>,
    pub(super) plans: usize,
    pub(super) actions: BTreeMap<&'static str, usize>,
}

pub(super) struct Explorer {
    names: Names,
    extent: Extent,
    resources: Vec<(Observed, Wanted)>,
    plans: Vec<Plan>,
    /// The plan that a plan is left for at these resources.
    turns: HashMap<(usize, usize), usize>,
    was_strict: [bool; 2],
    universe: Vec<(BackendKey, Leaf)>,
    deciding: HashMap<(usize, usize, u32, Vec<P>), Next>,
    seen: Seen,
}

impl Explorer {
    pub(super) fn new(plan: Plan, extent: Extent) -> Self {
        let mut explorer = Self {
            names: Names::default(),
            extent,
            resources: Vec::new(),
            was_strict: [true; 2],
            universe: Vec::new(),
            turns: HashMap::new(),
            plans: Vec::new(),
            deciding: HashMap::new(),
            seen: Seen::default(),
        };
        for end in [plan.from().clone(), plan.to().clone()] {
            let backends = end.mesh.mtls.iter().flat_map(|it| &it.backends);
            let backends = backends.map(|it| BackendKey::Classic(it.name.clone()));
            let identities = end.identities.iter().filter(|it| it.provider.is_some());
            let identities = identities.map(|it| BackendKey::Modern(it.metadata.name.clone()));
            for issuer in backends.chain(identities) {
                let leaf = explorer.names.leaf(&issuer, &end);
                explorer.universe.push((issuer, leaf));
            }
        }
        explorer.plans.push(plan);
        explorer
    }

    fn intern(&mut self, resources: MeshResources) -> usize {
        let known = self.resources.iter();
        if let Some(index) = known.clone().position(|it| it.0.resources == resources) {
            return index;
        }
        let wanted = self.names.wanted(&resources);
        self.resources.push((Observed::new(resources), wanted));
        self.resources.len() - 1
    }

    fn first(&mut self) -> State {
        let mut from = self.plans[0].from().clone();
        let identities: Vec<_> = from
            .identities
            .iter()
            .map(|it| it.metadata.name.clone())
            .collect();
        for identity in identities {
            world::make_trust(&mut from, &identity);
        }
        let ready = from.identities.iter().filter(|it| it.provider.is_some());
        let ready: Vec<_> = ready
            .map(|it| BackendKey::Modern(it.metadata.name.clone()))
            .chain(
                from.mesh
                    .mtls
                    .iter()
                    .flat_map(|it| &it.backends)
                    .map(|it| BackendKey::Classic(it.name.clone())),
            )
            .collect();
        let ready = ready
            .into_iter()
            .fold(0, |mask, it| mask | 1 << self.names.issuer(it));
        let resources = self.intern(from);
        let wanted = self.resources[resources].1;
        self.was_strict = wanted.strict;
        let proxies = self.extent.proxies.iter();
        let proxies = proxies.map(|class| started(*class, &wanted)).collect();
        State {
            plan: 0,
            resources,
            ready,
            proxies,
        }
    }

    /// Explores everything, or stops at the first violation.
    pub(super) fn run(mut self) -> Result<Seen, Violation> {
        let found = search::explore(&mut self)?;
        Ok(Seen {
            states: found.states,
            transitions: found.transitions,
            actions: found.actions,
            plans: self.plans.len(),
            ..self.seen
        })
    }

    fn broken(&self, state: &State) -> Option<String> {
        let running = || {
            let all = state.proxies.iter().enumerate();
            all.filter(|(_, it)| it.presence != Presence::Ended)
        };
        for (number, proxy) in running() {
            if !proxy.strict && self.was_strict[usize::from(proxy.class)] {
                return Some(format!(
                    "proxy {number} accepts plaintext, and did not before"
                ));
            }
        }
        for (client_number, client) in running() {
            for (server_number, server) in running() {
                if client_number == server_number {
                    continue;
                }
                let (Some(shown), Some(answered)) = (client.leaf, server.leaf) else {
                    return Some("a proxy without a certificate".to_owned());
                };
                let names = format!("from proxy {client_number} to proxy {server_number}");
                if client.trusts & (1 << answered.root) == 0 {
                    return Some(format!(
                        "{names}: the client does not hold the server's root"
                    ));
                }
                if server.trusts & (1 << shown.root) == 0 {
                    return Some(format!(
                        "{names}: the server does not hold the client's root"
                    ));
                }
                if client.accepts[usize::from(server.class)] & (1 << answered.id) == 0 {
                    return Some(format!("{names}: the client expects another SPIFFE ID"));
                }
            }
        }
        None
    }

    fn next(&mut self, state: &State) -> Next {
        let running = state.proxies.iter().copied();
        let running: Vec<P> = running
            .filter(|it| it.presence != Presence::Ended)
            .collect();
        let key = (state.plan, state.resources, state.ready, running);
        if let Some(next) = self.deciding.get(&key) {
            return next.clone();
        }
        let (observed, wanted) = &mut self.resources[state.resources];
        // A CA whose roots are nowhere is not ready, however well it signs.
        let published = |issuer: &BackendKey| {
            let known = self.universe.iter().find(|(it, _)| it == issuer);
            known.is_some_and(|(_, leaf)| wanted.trusts & (1 << leaf.root) != 0)
        };
        observed.ready = self
            .names
            .issuers
            .iter()
            .enumerate()
            .filter(|(number, issuer)| state.ready & (1 << number) != 0 && published(issuer))
            .map(|(_, issuer)| issuer.clone())
            .collect();
        let universe = &self.universe;
        let proxy = |it: &P| {
            let mut proxy = ObservedProxy::new(world::proxy(usize::from(it.class)));
            proxy.connected = it.presence == Presence::Connected;
            let those = |holds: &dyn Fn(&Leaf) -> bool| {
                let known = universe.iter().filter(|(_, leaf)| holds(leaf));
                known.map(|(issuer, _)| issuer.clone()).collect()
            };
            proxy.trusts = those(&|leaf| it.trusts & (1 << leaf.root) != 0);
            proxy.accepts = those(&|leaf| {
                it.accepts
                    .iter()
                    .all(|accepted| accepted & (1 << leaf.id) != 0)
            });
            proxy.holds = it
                .leaf
                .map(|leaf| self.names.issuers[usize::from(leaf.issuer)].clone());
            proxy.mode = match it.strict {
                true => Mode::Strict,
                false => Mode::Permissive,
            };
            proxy
        };
        observed.proxies = key.3.iter().map(proxy).collect();
        let next = self.plans[state.plan].next(observed);
        self.deciding.insert(key, next.clone());
        next
    }

    fn following(&mut self, state: &State) -> Vec<(&'static str, String, State)> {
        let mut all = Vec::new();
        let next = self.next(state);
        let plan = state.plan;
        let repeated = match &next {
            Next::Apply { step, changes } => {
                self.seen.outcomes.insert((plan, *step, "apply"));
                let change = &changes[0];
                let after = self.change(state, |resources| change.apply_to(resources));
                all.push(("apply", format!("step {step}: {change}"), after));
                step.checked_sub(1)
            }
            Next::Wait { step, .. } => {
                self.seen.outcomes.insert((plan, *step, "wait"));
                Some(*step)
            }
            Next::Done => {
                self.seen.done.insert(plan);
                Some(self.plans[plan].steps().len())
            }
            Next::Diverged { resources } => {
                panic!("lost: {resources:?}\n{}", self.plans[plan]);
            }
        };
        // An operator who does it again.
        let changes = repeated.and_then(|it| self.plans[plan].steps().get(it.checked_sub(1)?));
        for change in changes.map(|step| step.changes.clone()).unwrap_or_default() {
            let after = self.change(state, |resources| change.apply_to(resources));
            all.push(("again", format!("again: {change}"), after));
        }
        // A CA that gets ready.
        let (observed, wanted) = &self.resources[state.resources];
        let (wanted, resources) = (*wanted, observed.resources.clone());
        let backends = |mesh: &Mesh| -> Vec<_> {
            let backends = mesh.mtls.iter().flat_map(|it| &it.backends);
            backends
                .map(|it| BackendKey::Classic(it.name.clone()))
                .collect()
        };
        let identities = resources
            .identities
            .iter()
            .filter(|it| it.provider.is_some());
        let identities = identities.map(|it| BackendKey::Modern(it.metadata.name.clone()));
        for issuer in identities.chain(backends(&resources.mesh)) {
            let number = self.names.issuer(issuer.clone());
            let mut after = self.change(state, |resources| {
                if let BackendKey::Modern(name) = &issuer {
                    world::make_trust(resources, name);
                }
            });
            after.ready |= 1 << number;
            if after != *state {
                all.push(("ready", format!("the CA of {issuer} is ready"), after));
            }
        }
        for (number, proxy) in state.proxies.iter().enumerate() {
            for (kind, after) in self.of_proxy(proxy, &wanted, state.ready) {
                let mut next = state.clone();
                next.proxies[number] = after;
                all.push((kind, format!("proxy {number}: {kind}"), next));
            }
        }
        if let Some(turned) = self.turn(state) {
            all.push(("turn", "turn round".to_owned(), turned));
        }
        all
    }

    fn change(&mut self, state: &State, change: impl FnOnce(&mut MeshResources)) -> State {
        let mut resources = self.resources[state.resources].0.resources.clone();
        change(&mut resources);
        let mut after = state.clone();
        after.resources = self.intern(resources);
        after
    }

    fn of_proxy(&self, proxy: &P, wanted: &Wanted, ready: u32) -> Vec<(&'static str, P)> {
        let mut all = Vec::new();
        let class = usize::from(proxy.class);
        let leaf = wanted.leaf[class].filter(|leaf| ready & (1 << leaf.issuer) != 0);
        match proxy.presence {
            Presence::Ended => {
                // Whoever gets no certificate does not start to serve.
                if leaf.is_some() {
                    all.push(("starts", started(class, wanted)));
                }
                return all;
            }
            Presence::CutOff => {
                let presence = Presence::Connected;
                all.push(("is connected again", P { presence, ..*proxy }));
            }
            Presence::Connected => {
                let presence = Presence::CutOff;
                all.push(("is cut off", P { presence, ..*proxy }));
                let (trusts, accepts) = (wanted.trusts, wanted.accepts);
                if self.extent.together {
                    all.push((
                        "gets roots and IDs",
                        P {
                            trusts,
                            accepts,
                            ..*proxy
                        },
                    ));
                } else {
                    all.push(("gets roots", P { trusts, ..*proxy }));
                    all.push(("gets IDs", P { accepts, ..*proxy }));
                }
                if leaf.is_some() {
                    all.push(("gets a certificate", P { leaf, ..*proxy }));
                }
                let strict = wanted.strict[class];
                all.push(("gets its mode", P { strict, ..*proxy }));
                // Restarted in place.
                if leaf.is_some() {
                    all.push(("restarts", started(class, wanted)));
                }
            }
        }
        all.push(("ends", ended(class)));
        all.retain(|(_, after)| after != proxy);
        all
    }

    /// Back, and forth again.
    fn turn(&mut self, state: &State) -> Option<State> {
        let may = match state.plan {
            0 => self.extent.back,
            // Plans that lead back are made from plan 0.
            _ => {
                self.extent.forth
                    && self
                        .turns
                        .iter()
                        .any(|((from, _), to)| *to == state.plan && *from == 0)
            }
        };
        if !may {
            return None;
        }
        let key = (state.plan, state.resources);
        let plan = match self.turns.get(&key) {
            Some(known) => *known,
            None => {
                let now = self.resources[state.resources].0.resources.clone();
                let turned = match state.plan {
                    0 => self.plans[0].rollback(&now),
                    _ => {
                        let (to, options) = (self.plans[0].to(), &self.plans[0].options);
                        plan(&now, &to.clone(), &options.clone())
                    }
                };
                let turned = turned.unwrap_or_else(|error| panic!("{error}\n{now:#?}"));
                self.plans.push(turned);
                self.turns.insert(key, self.plans.len() - 1);
                self.plans.len() - 1
            }
        };
        Some(State {
            plan,
            ..state.clone()
        })
    }
}

impl Model for Explorer {
    type State = State;

    fn start(&mut self) -> State {
        self.first()
    }

    fn violation(&mut self, state: &State) -> Option<String> {
        self.broken(state)
    }

    fn successors(&mut self, state: &State) -> Vec<Transition<State>> {
        let following = self.following(state).into_iter();
        let transition = |(kind, action, mut after): (&'static str, String, State)| {
            // Proxies of a kind are alike: their order is no difference.
            after.proxies.sort();
            Transition {
                kind,
                action,
                after,
                // The end of the plan that is followed is to be reached without turning round.
                forward: kind != "turn",
            }
        };
        following.map(transition).collect()
    }

    fn is_end(&mut self, state: &State) -> bool {
        self.next(state) == Next::Done
    }

    fn describe(&mut self, state: &State) -> Vec<String> {
        vec![
            format!("{:?}", state.proxies),
            format!("{:#?}", self.next(state)),
            self.plans[state.plan].to_string(),
        ]
    }
}

fn started(class: usize, wanted: &Wanted) -> P {
    P {
        class: u8::try_from(class).unwrap(),
        presence: Presence::Connected,
        trusts: wanted.trusts,
        accepts: wanted.accepts,
        leaf: wanted.leaf[class],
        strict: wanted.strict[class],
    }
}

fn ended(class: usize) -> P {
    P {
        class: u8::try_from(class).unwrap(),
        presence: Presence::Ended,
        trusts: 0,
        accepts: [0; 2],
        leaf: None,
        strict: true,
    }
}
