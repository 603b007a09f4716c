//! What a plan must know beside the resources.

use std::collections::BTreeMap;

/// What a plan must know beside the resources.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlanOptions {
    /// The zone that the plan is for: the trust domain of a MeshIdentity may be another in each.
    pub zone: String,
    /// Some Dataplanes to give the new identities to before all get them.
    pub canary: Option<BTreeMap<String, String>>,
    /// Policies that tell peers apart by `kuma://` tags. They are none of the kinds that are read
    /// here, so the caller names them: `MeshTrafficPermission allow-shop`.
    pub tag_rules: Vec<String>,
}

impl PlanOptions {
    /// For this zone, all at once, and without policies that go by tags.
    pub fn new(zone: impl Into<String>) -> Self {
        Self {
            zone: zone.into(),
            canary: None,
            tag_rules: Vec::new(),
        }
    }

    /// The same, but new identities go to Dataplanes with these labels first. It needs a
    /// MeshIdentity to select them, so it has no effect between classic CAs.
    #[must_use]
    pub fn with_canary<N: Into<String>, V: Into<String>>(
        mut self,
        labels: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let labels = labels.into_iter();
        self.canary = Some(
            labels
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        );
        self
    }

    /// The same with a policy that tells peers apart by `kuma://` tags.
    #[must_use]
    pub fn with_tag_rule(mut self, policy: impl Into<String>) -> Self {
        self.tag_rules.push(policy.into());
        self
    }
}
