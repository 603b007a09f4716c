//! Which Dataplanes a MeshIdentity applies to.

use std::collections::BTreeMap;

use serde::Serialize;

use super::decode::{self, Cursor};

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
    match_labels: Option<BTreeMap<String, String>>,
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

    pub(super) fn wire(&self) -> Option<SelectorWire<'_>> {
        self.match_labels.as_ref().map(|match_labels| SelectorWire {
            dataplane: Some(DataplaneWire { match_labels }),
        })
    }
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "Selector")
)]
pub(super) struct SelectorWire<'w> {
    #[serde(skip_serializing_if = "Option::is_none")]
    dataplane: Option<DataplaneWire<'w>>,
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "DataplaneSelector")
)]
#[serde(rename_all = "camelCase")]
struct DataplaneWire<'w> {
    match_labels: &'w BTreeMap<String, String>,
}

pub(super) fn read(at: Cursor<'_>) -> Option<Selector> {
    let mut f = at.fields()?;
    let match_labels = f.opt("dataplane", |at| {
        let mut f = at.fields()?;
        let match_labels = match f.has("matchLabels") {
            true => f.opt("matchLabels", decode::string_map),
            // Whether this means all or nothing differs between readers.
            false => {
                f.know(&["matchLabels"]);
                f.missing(
                    "matchLabels",
                    "must be set: `matchLabels: {}` selects every Dataplane",
                )
            }
        };
        f.finish();
        match_labels
    });
    f.finish();
    Some(Selector { match_labels })
}
