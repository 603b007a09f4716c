//! The order in which a plan changes how strict proxies are, and the proxies to look at.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use meshca_core::resource::{MeshTls, Mode, labels};
use meshca_core::spiffe::Workload;

use super::plan::Change;
use crate::MeshResources;
use crate::tls::{self, Decider, Demand, Proxy, Rank, TlsPolicy};

/// Makes proxies that stand for all for which up to so many policies decide, one after the other, in
/// these states of a mesh.
///
/// At most one policy decides for a proxy at a time. For each set of policies that can decide one
/// after the other, there is a proxy that has what these demand and nothing else. A real proxy for
/// which they decide has more, so it is targeted by at least as many policies: a policy that does
/// not overrule these there does not overrule them here. Its mode is therefore the same at all
/// times.
///
/// A set has at most one policy that is in all states, because of two that are always there the
/// same one always prevails. This keeps the number small in a mesh with many policies of which few
/// change.
pub(super) fn kinds(states: &[&MeshResources], deciders: usize) -> Vec<Proxy> {
    let always = |it: &MeshTls| states.iter().all(|state| state.tls.contains(it));
    let (mut constant, mut changing) = (Vec::new(), Vec::new());
    for policy in states.iter().flat_map(|it| &it.tls) {
        let known = match always(policy) {
            true => &mut constant,
            false => &mut changing,
        };
        if !known.contains(&policy) {
            known.push(policy);
        }
    }
    let demands = |all: Vec<_>| all.into_iter().filter_map(Demand::of).collect::<Vec<_>>();
    let (constant, changing) = (demands(constant), demands(changing));

    // Each with the place of the first policy that may still join it, so that no set is made twice.
    let mut sets: Vec<(usize, Proxy)> = zones(states).into_iter().map(|it| (0, it)).collect();
    let mut kinds: Vec<Proxy> = sets.iter().map(|it| it.1.clone()).collect();
    for _ in 0..deciders {
        for (_, proxy) in &sets {
            kinds.extend(constant.iter().filter_map(|it| it.joined_to(proxy)));
        }
        let larger = sets.iter().flat_map(|(first, proxy)| {
            let all = changing.iter().enumerate().skip(*first);
            all.filter_map(|(place, it)| Some((place + 1, it.joined_to(proxy)?)))
        });
        sets = larger.collect();
        kinds.extend(sets.iter().map(|it| it.1.clone()));
    }
    kinds
}

/// Returns whether a proxy refuses plaintext.
pub(super) fn is_strict(resources: &MeshResources, proxy: &Proxy) -> bool {
    TlsPolicy::mode_of(resources, proxy).value == Mode::Strict
}

/// Returns whether a MeshTLS decides for every proxy of a zone, so that the mode does not depend
/// on the mesh's backend.
pub(super) fn covers_all(resources: &MeshResources, zone: &str) -> bool {
    let anywhere = Workload::new();
    let here = Workload::new().with_label(labels::ZONE, zone);
    [anywhere, here].into_iter().all(|workload| {
        let by = TlsPolicy::mode_of(resources, &Proxy::new("", workload)).by;
        matches!(by, Decider::MeshTls(_))
    })
}

/// Makes a proxy without a name for each zone that policies tell apart, one for any other zone,
/// and one that does not say its zone.
fn zones(states: &[&MeshResources]) -> Vec<Proxy> {
    let policies = states.iter().flat_map(|it| &it.tls);
    let named = policies.flat_map(|it| {
        let wanted = it.target.labels.get(labels::ZONE);
        [it.metadata.label(labels::ZONE), wanted.map(String::as_str)]
    });
    // No zone has a name with a space.
    let zones: BTreeSet<&str> = named.flatten().chain(["another zone"]).collect();
    let labelled = zones
        .into_iter()
        .map(|it| Workload::new().with_label(labels::ZONE, it));
    let all = std::iter::once(Workload::new()).chain(labelled);
    all.map(|it| Proxy::new("", it)).collect()
}

/// Returns the changes to all that is to be, in an order in which the mode of a proxy changes at
/// most once. Policies are added from the strongest to the weakest, then removed from the weakest
/// to the strongest. So the policy that decided before decides until it is removed or overruled by
/// the one that decides at the end. Only where a policy is replaced in place, another one can
/// decide in between.
pub(super) fn final_changes(now: &[MeshTls], to: &[MeshTls]) -> Vec<Change> {
    let find = |all: &'_ [MeshTls], wanted: &MeshTls| {
        all.iter().find(|it| key(it) == key(wanted)).cloned()
    };
    let mut wanted: Vec<MeshTls> = to
        .iter()
        .filter_map(|policy| match find(now, policy) {
            Some(stored) if tls::decides_alike(&stored, policy) => None,
            Some(stored) => Some(tls::in_place_of(policy, &stored)),
            None => Some(policy.clone()),
        })
        .collect();
    wanted.sort_by_cached_key(|policy| Reverse(Rank::of(policy)));
    let mut gone: Vec<&MeshTls> = now.iter().filter(|it| find(to, it).is_none()).collect();
    gone.sort_by_cached_key(|policy| Rank::of(policy));
    let put = |policy: MeshTls| {
        let why = match tls::stated_mode(&policy) {
            _ if Demand::of(&policy).is_none() => "is for show and decides nothing",
            Some(Mode::Strict) => "plaintext is refused",
            Some(_) => "plaintext is accepted as well, where this policy says so",
            None => "says nothing of plaintext",
        };
        Change::put(policy, why)
    };
    let delete = |policy: &MeshTls| {
        Change::delete("MeshTLS", &policy.metadata, "the mesh is to be without it")
    };
    let puts = wanted.into_iter().map(put);
    puts.chain(gone.into_iter().map(delete)).collect()
}

/// Returns the policies that are to be, but accepting plaintext. They change nothing for a mesh
/// whose backend accepts it.
pub(super) fn permissive(to: &[MeshTls]) -> Vec<Change> {
    to.iter()
        .map(|policy| {
            let mut policy = policy.clone();
            for rule in &mut policy.rules {
                rule.mode = Some(Mode::Permissive);
            }
            Change::put(
                policy,
                "says what the mesh's backend says so far, so that the mesh does not need it any more; plaintext is still accepted",
            )
        })
        .collect()
}

fn key(policy: &MeshTls) -> (Option<&str>, &str) {
    let metadata = &policy.metadata;
    (metadata.namespace.as_deref(), &metadata.name)
}
