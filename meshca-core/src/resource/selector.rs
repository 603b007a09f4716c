//! Which Dataplanes a MeshIdentity applies to.

use std::collections::BTreeMap;

use super::declare::mapping;
use super::field::{Group, optional, required};
use super::values;

mapping! {
    /// Selects Dataplanes by their labels.
    ///
    /// ```
    /// use std::collections::BTreeMap;
    /// use meshca_core::resource::Selector;
    ///
    /// let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    /// assert!(Selector::all().matches(&labels));
    /// assert!(Selector::labels([("app", "web")]).matches(&labels));
    /// assert!(!Selector::labels([("app", "web"), ("tier", "front")]).matches(&labels));
    /// assert!(!Selector::none().matches(&labels));
    /// ```
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct Selector {
        match_labels: Option<BTreeMap<String, String>> = optional("dataplane", Group(
            // Whether its absence means all or nothing differs between readers.
            required("matchLabels", values::string_map).or_say("must be set: `matchLabels: {}` selects every Dataplane"),
        )),
    }
}

impl Selector {
    /// Matches nothing, like a resource without a `selector` or without its `dataplane`.
    pub fn none() -> Self {
        Self::default()
    }

    /// Matches every Dataplane: `matchLabels: {}`.
    pub fn all() -> Self {
        Self {
            match_labels: Some(BTreeMap::new()),
        }
    }

    /// Matches Dataplanes that have all of these labels.
    pub fn labels<N: Into<String>, V: Into<String>>(
        labels: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        Self {
            match_labels: Some(
                labels
                    .into_iter()
                    .map(|(name, value)| (name.into(), value.into()))
                    .collect(),
            ),
        }
    }

    /// The labels that a Dataplane must have; `None` if it matches nothing. The more there are, the
    /// more specific the selector is.
    pub fn match_labels(&self) -> Option<&BTreeMap<String, String>> {
        self.match_labels.as_ref()
    }

    /// Whether a Dataplane with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.as_ref().is_some_and(|wanted| {
            wanted
                .iter()
                .all(|(name, value)| labels.get(name) == Some(value))
        })
    }
}
