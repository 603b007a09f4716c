//! What takes time: each is a task that reports how it ended, even if it panics.

use std::sync::Arc;
use std::time::Duration;

use meshca_core::registry::{BackendConfig, BackendRegistry, BuildContext};
use meshca_core::{
    CertificateSpec, Clock, Error, ErrorKind, Identity, Issuer, IssuerExt, Result, RotationStep,
    TrustBundle,
};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{sleep, timeout};

use crate::BackendKey;
use crate::schedule::Ticket;

/// Which CA, as it was when the job began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CaRef {
    pub(super) mesh: u64,
    pub(super) key: BackendKey,
    pub(super) epoch: u64,
}

/// How a job ended.
pub(super) enum Done {
    Issued {
        ticket: Ticket,
        ca: CaRef,
        /// What was wanted when it began.
        want: u64,
        took: Duration,
        result: Result<Arc<Identity>>,
    },
    Built {
        ca: CaRef,
        result: Result<(Arc<dyn Issuer>, TrustBundle)>,
    },
    Looked {
        ca: CaRef,
        result: Result<TrustBundle>,
    },
    Rotated {
        ca: CaRef,
        step: RotationStep,
        result: Result<TrustBundle>,
    },
}

/// Says how a job ended when it is dropped: what nobody reports would be waited for for ever.
pub(super) struct Report {
    to: UnboundedSender<Done>,
    done: Option<Done>,
}

impl Report {
    /// Until it is told better, it reports a panic.
    pub(super) fn new(to: UnboundedSender<Done>, unless: impl FnOnce(Error) -> Done) -> Self {
        let panicked = Error::new(
            ErrorKind::Internal,
            "an issuer panicked: this is a bug in it",
        );
        Self {
            to,
            done: Some(unless(panicked)),
        }
    }

    pub(super) fn done(mut self, done: Done) {
        self.done = Some(done);
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            // The driver has ended.
            let _ = self.to.send(done);
        }
    }
}

/// Has one certificate issued.
pub(super) async fn issue(
    issuer: Arc<dyn Issuer>,
    spec: CertificateSpec,
    clock: Arc<dyn Clock>,
    limit: Duration,
) -> Result<Arc<Identity>> {
    let identity = within(limit, "did not issue", issuer.issue(&spec, &*clock)).await?;
    // A CA whose clock is ahead of ours: peers would refuse it for a moment. Verification has seen to it that it is no more than that.
    let usable = identity.certificate().usable_from();
    if let Ok(ahead) = usable.duration_since(clock.now()) {
        sleep(ahead.min(meshca_core::verify::CLOCK_SKEW)).await;
    }
    Ok(Arc::new(identity))
}

/// Builds an issuer, and reads its roots.
pub(super) async fn build(
    registry: Arc<BackendRegistry>,
    config: BackendConfig,
    context: BuildContext,
    limit: Duration,
) -> Result<(Arc<dyn Issuer>, TrustBundle)> {
    within(limit, "could not be set up", async {
        let issuer = registry.build(&config, &context).await?;
        let bundle = issuer.trust_bundle().await?;
        Ok((issuer, bundle))
    })
    .await
}

/// Reads the roots of an issuer again.
pub(super) async fn look(issuer: Arc<dyn Issuer>, limit: Duration) -> Result<TrustBundle> {
    within(
        limit,
        "did not say which roots it has",
        issuer.trust_bundle(),
    )
    .await
}

/// Takes an issuer a step further in the replacement of its CA.
pub(super) async fn rotate(
    issuer: Arc<dyn Issuer>,
    step: RotationStep,
    limit: Duration,
) -> Result<TrustBundle> {
    within(limit, "could not be rotated", async {
        if let Some(rotation) = issuer.rotation() {
            rotation.rotate(step).await?;
        }
        issuer.trust_bundle().await
    })
    .await
}

async fn within<T>(
    limit: Duration,
    what: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| {
        Err(Error::new(
            ErrorKind::Timeout,
            format!("the CA {what} within {limit:?}"),
        ))
    })
}
