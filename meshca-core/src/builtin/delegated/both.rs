//! The rotation of a delegated CA and of the CA above it, where both are in this process.

use std::sync::Arc;

use async_trait::async_trait;

use super::DelegatedIssuer;
use crate::{CaRotation, Error, ErrorKind, Result, Retry, RotationStep};

/// Drives both. A CA above that nobody replaces ends, and everything below it with it.
pub(in crate::builtin) struct BothCas {
    below: Arc<DelegatedIssuer>,
    above: Arc<dyn CaRotation>,
}

impl BothCas {
    pub(in crate::builtin) fn new(below: Arc<DelegatedIssuer>, above: Arc<dyn CaRotation>) -> Self {
        Self { below, above }
    }

    /// The step that is due, and whether it is one of the CA above.
    ///
    /// `Activate` may wait for proxies, and must not hold up a next intermediate in the meantime,
    /// unless there can be none before it.
    fn next(&self) -> Option<(RotationStep, bool)> {
        let (below, above) = (self.below.rotation_due(), self.above.due());
        let below_first = match above {
            Some(RotationStep::Activate) => {
                below == Some(RotationStep::Prepare) && !self.below.has_failed()
            }
            Some(_) => false,
            None => true,
        };
        match below_first {
            true => below.map(|step| (step, false)),
            false => above.map(|step| (step, true)),
        }
    }
}

#[async_trait]
impl CaRotation for BothCas {
    fn due(&self) -> Option<RotationStep> {
        self.next().map(|(step, _)| step)
    }

    fn lost(&self) -> Option<Error> {
        self.below.lost().or_else(|| self.above.lost())
    }

    async fn follow(&self) -> Result<()> {
        self.below.follow_upstream().await.map(drop)
    }

    async fn rotate(&self, step: RotationStep) -> Result<()> {
        // The driver has asked for this step, and made sure of what it needs.
        let is_above = match self.next() {
            Some((due, is_above)) if due == step => is_above,
            _ => false,
        };
        if !is_above {
            return self.below.rotate(step).await;
        }
        if step == RotationStep::Activate {
            // Another replica may have prepared it. The driver has waited for proxies to trust what
            // is published below, and not for what is not.
            let known = self.below.published();
            if self.below.follow_upstream().await? != known {
                let why = "the next root was published a moment ago; proxies may not trust it yet";
                return Err(Error::new(ErrorKind::Unavailable, why).with_retry(Retry::Backoff));
            }
        }
        self.above.rotate(step).await?;
        // The next root is published below as soon as it is above.
        self.below.follow_upstream().await.map(drop)
    }
}
