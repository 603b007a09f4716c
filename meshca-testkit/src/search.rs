//! Breadth-first search through every state that a model can reach.
//!
//! A model is a start, a function from a state to the states that can follow, and what must hold
//! in each. The search visits every state once, so the model has to be finite. The trace of a
//! violation is as short as any.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;

/// Everything that can happen, and what must hold whatever happens.
pub trait Model {
    /// Everything that decides on what follows. States that are alike are to be equal.
    type State: Clone + Eq + Hash;

    /// The first state.
    fn start(&mut self) -> Self::State;

    /// The rule that this state breaks.
    fn violation(&mut self, state: &Self::State) -> Option<String>;

    /// Everything that can happen next.
    fn successors(&mut self, state: &Self::State) -> Vec<Transition<Self::State>>;

    /// Whether this is an end that must stay within reach, from everywhere and by
    /// [`Transition::forward`] ones alone.
    fn is_end(&mut self, state: &Self::State) -> bool;

    /// Describes a state from which no end is within reach.
    fn describe(&mut self, state: &Self::State) -> Vec<String>;
}

/// Something that can happen.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "models make them")]
pub struct Transition<S> {
    /// What is counted.
    pub kind: &'static str,
    /// What a trace says.
    pub action: String,
    /// The state after it.
    pub after: S,
    /// Whether it counts as progress towards an end.
    pub forward: bool,
}

/// The extent of a search that found nothing wrong.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Seen {
    /// States.
    pub states: usize,
    /// Transitions between them.
    pub transitions: usize,
    /// Transitions of each kind.
    pub actions: BTreeMap<&'static str, usize>,
}

/// A rule that is broken, and how it came to that.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Violation {
    /// The rule.
    pub what: String,
    /// The actions that lead there.
    pub trace: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  {}", self.what, self.trace.join("\n  "))
    }
}

/// Visits every state of a model.
///
/// # Errors
///
/// The first violation, or a state from which no end can be reached.
pub fn explore<M: Model>(model: &mut M) -> Result<Seen, Violation> {
    let mut seen = Seen::default();
    let start = model.start();
    let mut states = vec![start.clone()];
    // For the trace: the state that each was reached from first, and how.
    let mut parents: Vec<(usize, String)> = vec![(0, "start".to_owned())];
    let mut index = HashMap::from([(start, 0)]);
    // The states from which each can be reached by a step forward.
    let mut before: Vec<Vec<usize>> = vec![Vec::new()];
    let mut current = 0;
    while let Some(state) = states.get(current).cloned() {
        if let Some(what) = model.violation(&state) {
            let trace = trace(&parents, current);
            return Err(Violation { what, trace });
        }
        for next in model.successors(&state) {
            seen.transitions += 1;
            *seen.actions.entry(next.kind).or_default() += 1;
            let number = *index.entry(next.after).or_insert_with_key(|after| {
                states.push(after.clone());
                parents.push((current, next.action));
                before.push(Vec::new());
                states.len() - 1
            });
            if next.forward
                && let Some(before) = before.get_mut(number)
            {
                before.push(current);
            }
        }
        current += 1;
    }
    no_dead_end(model, &states, &before)?;
    seen.states = states.len();
    Ok(seen)
}

fn trace(parents: &[(usize, String)], mut at: usize) -> Vec<String> {
    let mut trace = Vec::new();
    while at != 0
        && let Some((parent, action)) = parents.get(at)
    {
        trace.push(action.clone());
        at = *parent;
    }
    trace.reverse();
    trace
}

/// From everywhere there is a way to an end.
fn no_dead_end<M: Model>(
    model: &mut M,
    states: &[M::State],
    before: &[Vec<usize>],
) -> Result<(), Violation> {
    let mut reach: Vec<bool> = states.iter().map(|state| model.is_end(state)).collect();
    let ends = reach.iter().enumerate().filter(|(_, end)| **end);
    let mut open: Vec<usize> = ends.map(|(number, _)| number).collect();
    while let Some(number) = open.pop() {
        for earlier in before.get(number).into_iter().flatten() {
            if let Some(reached) = reach.get_mut(*earlier)
                && !std::mem::replace(reached, true)
            {
                open.push(*earlier);
            }
        }
    }
    let stuck = states.iter().zip(reach).find(|(_, reached)| !reached);
    match stuck {
        None => Ok(()),
        Some((state, _)) => Err(Violation {
            what: "a dead end".to_owned(),
            trace: model.describe(state),
        }),
    }
}
