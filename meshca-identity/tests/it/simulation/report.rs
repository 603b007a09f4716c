//! How often each fault met each phase of a rotation.

use std::collections::BTreeMap;
use std::fmt;

/// Where a mesh on a replica is in the replacement of its CA's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// All trust one root.
    None,
    /// There is another root that signs nothing yet, and all trust it.
    Prepared,
    /// The same, and not all trust it.
    Waits,
    /// It has begun to sign, within four hours, or something is held under another root.
    Activated,
    /// All hold something under it, and another root is trusted still.
    Retiring,
}

pub(super) const PHASES: [Phase; 5] = [
    Phase::None,
    Phase::Prepared,
    Phase::Waits,
    Phase::Activated,
    Phase::Retiring,
];

/// What goes wrong, by who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    NeverAcknowledges,
    AcknowledgesFalsely,
    AcknowledgesLate,
    RefusesTrust,
    Lies,
    Hangs,
    IsDown,
    RefusesToSign,
    AnnouncesARoot,
    ChangesItsRoot,
    StoreFails,
    StoreDelays,
    StoreLoses,
    StoreTears,
    RollsBack,
    ClockIsAhead,
    ClockIsBehind,
    ClocksDiffer,
    Edits,
    ChangesTheProvider,
    ChangesTheTrustDomain,
    Removes,
    AppliesAgain,
    ReusesTheName,
    Restarts,
}

const FAULTS: [Fault; 25] = {
    use Fault::*;
    [
        NeverAcknowledges,
        AcknowledgesFalsely,
        AcknowledgesLate,
        RefusesTrust,
        Lies,
        Hangs,
        IsDown,
        RefusesToSign,
        AnnouncesARoot,
        ChangesItsRoot,
        StoreFails,
        StoreDelays,
        StoreLoses,
        StoreTears,
        RollsBack,
        ClockIsAhead,
        ClockIsBehind,
        ClocksDiffer,
        Edits,
        ChangesTheProvider,
        ChangesTheTrustDomain,
        Removes,
        AppliesAgain,
        ReusesTheName,
        Restarts,
    ]
};

#[derive(Clone, Debug, Default)]
pub(super) struct Matrix(BTreeMap<(Fault, Phase), usize>);

impl Matrix {
    pub(super) fn met(&mut self, fault: Fault, phase: Phase) {
        *self.0.entry((fault, phase)).or_default() += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (cell, count) in &other.0 {
            *self.0.entry(*cell).or_default() += count;
        }
    }

    /// What never met.
    pub(super) fn gaps(&self) -> Vec<(Fault, Phase)> {
        let all = FAULTS
            .iter()
            .flat_map(|fault| PHASES.map(|it| (*fault, it)));
        all.filter(|cell| !self.0.contains_key(cell)).collect()
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:22}", "")?;
        for phase in PHASES {
            write!(f, "{:>10}", format!("{phase:?}"))?;
        }
        for fault in FAULTS {
            write!(f, "\n{:22}", format!("{fault:?}"))?;
            for phase in PHASES {
                let count = self.0.get(&(fault, phase)).copied().unwrap_or_default();
                write!(f, "{count:>10}")?;
            }
        }
        Ok(())
    }
}
