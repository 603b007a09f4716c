//! Certificates: asking for them, and what becomes of what a CA answers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meshca_core::spiffe::Workload;
use meshca_core::{Error, ErrorKind, Identity};

use super::Engine;
use super::workloads::Target;
use crate::manager::backend::untrusted;
use crate::manager::event::Event;
use crate::manager::health::Health;
use crate::manager::ids::CaRef;
use crate::manager::job::{self, Answer, Batch, Order, Roots};
use crate::manager::outbox::Later;
use crate::manager::workloads::{Tracked, held};
use crate::schedule::{Fault, LaneId, Now, Outcome, Ticket};
use crate::select::Unready;

impl Engine {
    pub(super) fn issue(&mut self, ticket: Ticket) {
        match self.order(ticket) {
            Some((lane, order)) => self.outbox.orders.entry(lane).or_default().push(order),
            None => {
                // Something else is wanted by now, or there is nobody to ask.
                let now = self.clockwork.now();
                self.review(ticket);
                self.scheduler.finished(ticket, Outcome::Discarded, now);
            }
        }
    }

    /// What to ask for, if that is what the scheduler has been told.
    fn order(&self, ticket: Ticket) -> Option<(LaneId, Order)> {
        let tracked = self.workloads.get(ticket)?;
        let lane = tracked.lane;
        let want = tracked.want.as_ref()?;
        if !self.is_settled(tracked) {
            // What stands in for another CA may have to stand in no more.
            let Target::Issue {
                lane: now,
                want: is,
            } = self.target(tracked)
            else {
                return None;
            };
            if now != lane || is.number != want.number {
                return None;
            }
            self.meshes.of_lane(&self.lanes, lane)?.1.life.issuer()?;
        }
        let order = Order {
            ticket,
            want: want.number,
            spec: want.spec.clone(),
        };
        Some((lane, order))
    }

    /// Whether what a workload is to have is what it would be found to be now. Whatever may change that has it [reviewed](Self::review), so
    /// selecting once more would find what was found; only where another CA may stand in does that depend on CAs that nobody looked at.
    fn is_settled(&self, tracked: &Tracked) -> bool {
        let backend = || {
            let mesh = self.meshes.get(tracked.mesh)?;
            let (_, key) = self.lanes.owner(tracked.lane)?;
            mesh.backends.get(&**key)
        };
        self.setup.options.select.unready == Unready::Wait
            && backend().is_some_and(|backend| {
                backend.life.issuer().is_some() && backend.reach.refused.is_none()
            })
    }

    /// Has the certificates of this turn asked for: each for itself, or several by one task where their CA is quicker than a task.
    pub(super) fn start_orders(&mut self) {
        for (lane, orders) in std::mem::take(&mut self.outbox.orders) {
            let Some((ca, backend)) = self.meshes.of_lane(&self.lanes, lane) else {
                self.discard(orders);
                continue;
            };
            let Some(live) = backend.life.issuer() else {
                self.discard(orders);
                continue;
            };
            let limit = backend.wanted.config.request_timeout();
            let limit = limit.unwrap_or(self.setup.options.request_timeout);
            let together = backend.together();
            let mut orders = orders.into_iter();
            while orders.len() > 0 {
                let orders: Vec<Order> = orders.by_ref().take(together).collect();
                let batch = Batch {
                    ca: ca.clone(),
                    spent: self.outbox.spent(orders.len()),
                    orders,
                };
                let issuing = match &backend.reach.beyond {
                    Some(peers) => live.issuing.for_peers_with(peers.clone()),
                    None => live.issuing.clone(),
                };
                let clock = Arc::clone(&self.setup.shared.clock);
                self.clockwork
                    .start_reporting(|to| job::issue(issuing, batch, clock, limit, to));
            }
        }
        // Keys are not kept for longer than it takes to wipe them.
        self.outbox.spent.clear();
    }

    fn discard(&mut self, orders: Vec<Order>) {
        let now = self.clockwork.now();
        for order in orders {
            self.scheduler
                .finished(order.ticket, Outcome::Discarded, now);
        }
    }

    /// One of those that were asked for together takes longer than all of them should: the others are asked for by themselves, within the
    /// limit for what takes its time.
    pub(super) fn not_together(&mut self, ca: &CaRef, orders: Vec<Order>) {
        if let Some(backend) = self.meshes.current(ca) {
            backend.takes = None;
            let lane = backend.lane;
            self.scheduler.set_batch(lane, 1);
        }
        self.discard(orders);
    }

    /// What a CA has answered to some of those that it was asked for.
    pub(super) fn answered(&mut self, ca: &CaRef, answers: Vec<Answer>) {
        if let Some(backend) = self.meshes.current(ca) {
            // Of those that succeeded: a CA that refuses is quick, and says nothing about how long one takes. The one in the middle, as one that
            // something else kept from the processor says nothing either; and the average of the last few of these.
            let succeeded = answers.iter().filter(|it| it.result.is_ok());
            let mut took: Vec<Duration> = succeeded.map(|it| it.took).collect();
            took.sort_unstable();
            if let Some(took) = took.get(took.len() / 2) {
                let before = backend.takes.unwrap_or(*took);
                backend.takes = Some((before * 7 + *took) / 8);
            }
            let (lane, together) = (backend.lane, backend.together());
            self.scheduler.set_batch(lane, together);
        }
        let now = self.clockwork.now();
        for answer in answers {
            self.issued(ca, answer, now);
        }
    }

    fn issued(&mut self, ca: &CaRef, answer: Answer, now: Now) {
        let Answer {
            ticket,
            want,
            took,
            result,
        } = answer;
        let result = match result {
            Ok(identity) => identity,
            Err(error) => return self.failed(ticket, ca, want, &error, now),
        };
        let wanted = self.workloads.get(ticket).is_some_and(|it| it.wants(want));
        let outcome = Outcome::Issued(held(&result));
        if !wanted {
            // Something else is wanted by now, and may be there already.
            self.scheduler.finished(ticket, outcome, now);
            return self.settle_for_what_is_held(ticket);
        }
        match self.admit(ca, &result) {
            Admitted::Yes => {
                let ahead = result.certificate().usable_from().duration_since(now.wall);
                self.scheduler.finished(ticket, outcome, now);
                // From here on its root stays published, also if it is handed out in a moment only.
                let under = self.meshes.get_mut(ca.mesh).and_then(|mesh| {
                    let certificate = result.certificate();
                    let domain = certificate.spiffe_id().trust_domain();
                    let until = certificate.validity().not_after();
                    mesh.ledger.hold(&ca.key, domain, certificate.root(), until)
                });
                let mesh = self.meshes.get(ca.mesh);
                if mesh.is_some_and(|it| it.ledger.is_stale()) {
                    // The first under a root: the next tick stores it for a control plane that
                    // comes after this one.
                    self.clockwork.wake_by(now.up);
                }
                let later = Later {
                    under,
                    ticket,
                    ca: ca.clone(),
                    want,
                    took,
                    identity: result,
                };
                match ahead {
                    // A CA whose clock is ahead of ours: peers would refuse it for a moment. Verification has seen to it that it is no
                    // more than that.
                    Ok(ahead) if !ahead.is_zero() => {
                        self.outbox.keep(now.up.saturating_add(ahead), later);
                    }
                    _ => self.hand_out(later),
                }
                self.settle_for_what_is_held(ticket);
                if self.setup.options.acknowledgements {
                    self.pause_lanes(ca.mesh);
                }
            }
            Admitted::NotYet => {
                self.scheduler.finished(ticket, Outcome::Discarded, now);
                self.pause_lanes(ca.mesh);
            }
            Admitted::No(error) => self.failed(ticket, ca, want, &error, now),
        }
    }

    /// If it holds what it is to have, and its CA stands for that, nothing more is asked for.
    fn settle_for_what_is_held(&mut self, ticket: Ticket) {
        let Some(tracked) = self.workloads.get(ticket) else {
            return;
        };
        let holds = tracked.held.is_some_and(|held| tracked.wants(held));
        if !holds || !self.scheduler.is_waiting(ticket) {
            return;
        }
        let lane = tracked.lane;
        if let Some(identity) = tracked.cell.identity()
            && self.meshes.names_root(&self.lanes, lane, &identity)
        {
            self.scheduler.adopt(ticket, lane, held(&identity));
        }
    }

    /// Hands out certificates that have become valid.
    pub(super) fn hand_out_later(&mut self, now: Now) {
        while let Some(later) = self.outbox.next_valid(now.up) {
            let tracked = self.workloads.get(later.ticket);
            if tracked.is_some_and(|it| it.wants(later.want)) {
                self.hand_out(later);
            }
        }
    }

    /// Whether peers can accept what was issued: trust comes first.
    ///
    /// The order is: the root that the CA signs under is noted, then published, then the gate is
    /// asked. The gate measures by the noted root, and it is shut for a root that is not
    /// published.
    fn admit(&mut self, ca: &CaRef, identity: &Identity) -> Admitted {
        let certificate = identity.certificate();
        let (domain, root) = (certificate.spiffe_id().trust_domain(), certificate.root());
        let Some(mesh) = self.meshes.get_mut(ca.mesh) else {
            return Admitted::NotYet;
        };
        let Some(backend) = mesh.backends.get_mut(&*ca.key) else {
            return Admitted::NotYet;
        };
        if backend.signs_under.as_ref() != Some(root) {
            backend.signs_under = Some(root.clone());
        }
        if !mesh.ledger.holds(domain, root) {
            if !backend.wanted.distributed {
                return Admitted::No(untrusted(root));
            }
            // The CA has changed under us, and verification heard of it first. A look finds out
            // what else has changed. Or the CA never named this root, and an operator has just
            // taken it out of a MeshTrust.
            let named = backend.life.issuer().and_then(|it| it.issuing.known());
            let named = named.is_some_and(|named| named.contains(root.der()));
            let bundle = backend.bundle.as_ref().filter(|_| named);
            let bundle = bundle.map(|bundle| bundle.with_root(root.der().clone()));
            if let Some(Ok(bundle)) = bundle {
                let record = None;
                let roots = Roots {
                    bundle,
                    record,
                    trouble: None,
                };
                self.take_roots(ca, roots);
            }
            self.look_now(ca);
        }
        let Some(mesh) = self.meshes.get(ca.mesh) else {
            return Admitted::NotYet;
        };
        let backend = mesh.backends.get(&*ca.key);
        let may = backend.is_some_and(|backend| mesh.may_sign(backend));
        match (may, mesh.ledger.holds(domain, root)) {
            (true, true) => Admitted::Yes,
            // Nothing more is signed before they do.
            (false, _) => Admitted::NotYet,
            (true, false) => Admitted::No(Error::new(
                ErrorKind::Internal,
                "the root of this certificate could not be published",
            )),
        }
    }

    /// Publishes a certificate for its workload. Its root is published already, and is kept by
    /// `under`.
    fn hand_out(&mut self, later: Later) {
        let Later {
            ticket,
            ca,
            want,
            took,
            identity,
            under,
        } = later;
        let certificate = identity.certificate();
        let (spiffe_id, not_after) = (certificate.spiffe_id(), certificate.validity().not_after());
        let Some(tracked) = self.workloads.get_mut(ticket) else {
            return;
        };
        tracked.held = Some(want);
        // Nearly always the same as before; what is shared is in memory that nobody has touched for hours, and is not touched for nothing.
        let same = |before: &Arc<Workload>| Arc::ptr_eq(before, &tracked.workload);
        if !tracked.held_for.as_ref().is_some_and(same) {
            tracked.held_for = Some(Arc::clone(&tracked.workload));
        }
        tracked.from = tracked.lane;
        tracked.under = under;
        let Some(tracked) = self.workloads.get(ticket) else {
            return;
        };
        let cell = &tracked.cell;
        cell.prepare_issuer(&ca.key);
        let before = cell.set_identity(Some(Arc::clone(&identity)));
        cell.set_issuer(&ca.key);
        cell.set_error(None);
        cell.set_health(Health::Fresh);
        cell.announce();
        let Some(mesh) = self.meshes.get(ca.mesh) else {
            return;
        };
        let (mesh, workload) = (mesh.cell.name.as_str(), &*tracked.name);
        let (backend, serial) = (&*ca.key, certificate.serial());
        self.setup.observe(&match &before {
            None => Event::Issued {
                mesh,
                workload,
                backend,
                spiffe_id,
                serial,
                not_after,
                took,
            },
            Some(before) => Event::Renewed {
                mesh,
                workload,
                backend,
                before: before.spiffe_id(),
                spiffe_id,
                serial,
                not_after,
                took,
            },
        });
        self.outbox.spent.extend(before);
    }

    fn failed(&mut self, ticket: Ticket, ca: &CaRef, want: u64, error: &Error, now: Now) {
        let outcome = Outcome::Failed {
            retry: error.retry(),
            fault: Fault::of(error.kind()),
        };
        self.scheduler.finished(ticket, outcome, now);
        self.watch_outage(ca, now.up);
        let Some(tracked) = self.workloads.get(ticket) else {
            return;
        };
        if !tracked.wants(want) {
            // It says something about the CA, and nothing about what is wanted now.
            return self.settle_for_what_is_held(ticket);
        }
        let (cell, name) = (Arc::clone(&tracked.cell), Arc::clone(&tracked.name));
        cell.set_error(Some(error.clone()));
        let stale = match cell.identity() {
            Some(identity) if is_valid(&identity, now.wall) => cell.set_health(Health::Stale),
            _ => false,
        };
        cell.announce();
        let Some(mesh) = self.meshes.cell(ca.mesh) else {
            return;
        };
        let (mesh, workload) = (mesh.name.as_str(), &*name);
        self.setup.observe(&Event::Failing {
            mesh,
            workload,
            backend: &ca.key,
            error,
        });
        if stale {
            self.setup.observe(&Event::Stale { mesh, workload });
        }
    }

    /// Its renewal is overdue, and nothing has failed: it waits for a CA that is left alone, or for proxies that do not trust a root yet.
    pub(super) fn late(&mut self, ticket: Ticket) {
        let Some(tracked) = self.workloads.get(ticket) else {
            return;
        };
        let (cell, name) = (Arc::clone(&tracked.cell), Arc::clone(&tracked.name));
        if cell.health() != Health::Fresh {
            return;
        }
        let mesh = self.meshes.cell(tracked.mesh);
        cell.set_health(Health::Stale);
        if cell.error().is_none() {
            cell.set_error(Some(Error::new(
                ErrorKind::Unavailable,
                "its renewal waits: its CA is left alone after failures, or proxies have not acknowledged a new root (see `Manager::gate`)",
            )));
        }
        cell.announce();
        if let Some(mesh) = mesh {
            self.setup.observe(&Event::Stale {
                mesh: &mesh.name,
                workload: &name,
            });
        }
    }

    pub(super) fn expired(&mut self, ticket: Ticket) {
        let Some(tracked) = self.workloads.get(ticket) else {
            return;
        };
        let (cell, name) = (Arc::clone(&tracked.cell), Arc::clone(&tracked.name));
        let mesh = self.meshes.cell(tracked.mesh);
        if cell.set_health(Health::Expired) {
            cell.announce();
            if let Some(mesh) = mesh {
                self.setup.observe(&Event::Expired {
                    mesh: &mesh.name,
                    workload: &name,
                });
            }
        }
    }
}

/// Whether something that was issued may be handed out.
enum Admitted {
    Yes,
    /// Not before proxies trust its root.
    NotYet,
    No(Error),
}

fn is_valid(identity: &Identity, wall: SystemTime) -> bool {
    identity.certificate().validity().not_after() > wall
}
