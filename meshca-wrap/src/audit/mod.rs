//! One record for every signature and every refusal.

mod json_lines;
mod record;
#[cfg(feature = "audit-tracing")]
mod tracing_sink;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use meshca_core::{
    Capabilities, CertificateRequest, CheckReport, Clock, Error, ErrorKind, Issuer, Result, Retry,
    SignedChain, TrustBundle,
};
use tokio::time::Instant;

pub use self::json_lines::{JsonLinesSink, Repair, SyncPolicy};
pub use self::record::{AuditRecord, Outcome, Refusal, Requested, Signed};
#[cfg(feature = "audit-tracing")]
pub use self::tracing_sink::TracingSink;

/// Where audit records go.
///
/// Called within `sign`, once for each call, before its result is handed on. An implementation that waits for
/// a disk keeps the calling thread for as long; one that sends records over a network hands them to a queue
/// of its own.
pub trait AuditSink: fmt::Debug + Send + Sync + 'static {
    /// Keeps a record.
    ///
    /// # Errors
    ///
    /// If it could not be kept. What follows from that is the [choice](OnLostRecord) of whoever set up the wrapper.
    fn record(&self, record: &AuditRecord) -> Result<()>;
}

impl<S: AuditSink + ?Sized> AuditSink for Arc<S> {
    fn record(&self, record: &AuditRecord) -> Result<()> {
        (**self).record(record)
    }
}

/// What to do with a certificate whose record could not be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnLostRecord {
    /// Hold it back: no certificate without a record.
    #[default]
    Refuse,
    /// Hand it out, and [count](Audited::lost) the loss: a full disk must not stop the mesh.
    Continue,
}

/// Writes one [record](AuditRecord) for every call of `sign`: who was to get a certificate with which names,
/// and what the CA signed, or why it refused.
///
/// The record says **signed**, not *issued*. An issuer returns what its CA sent, which meshca verifies
/// afterwards, outside of any wrapper; a certificate that is refused then was signed all the same, and for an
/// auditor it exists. What was signed is therefore read from the certificate itself: from that one in the
/// CA's answer which is for the key of the request. Names that were asked for and names that were signed
/// stand side by side in the record, and an answer without such a certificate is recorded as one.
///
/// A call that is dropped before it has an answer is recorded as cancelled; whether the CA signed is unknown
/// then. Nothing but `sign` is recorded. Whoever also wants to know what was handed out joins records by the
/// request's ID and the serial number with an [`IssuedCertificate`](meshca_core::IssuedCertificate).
///
/// No secret can be in a record: requests have none, and an error's message names settings, not their values.
/// The sources of an error, which may be anybody's, are left out.
#[derive(Clone, Debug, derive_more::Display)]
#[display("{inner}")]
pub struct Audited<I> {
    inner: I,
    sink: Arc<dyn AuditSink>,
    clock: Arc<dyn Clock>,
    on_lost: OnLostRecord,
    lost: Arc<AtomicU64>,
}

impl<I: Issuer> Audited<I> {
    /// With a sink, which several issuers may share as an `Arc`, and the clock that records are dated by.
    /// A certificate without a record is [held back](OnLostRecord::Refuse).
    pub fn new(inner: I, sink: impl AuditSink, clock: Arc<dyn Clock>) -> Self {
        Self {
            inner,
            sink: Arc::new(sink),
            clock,
            on_lost: OnLostRecord::default(),
            lost: Arc::new(AtomicU64::new(0)),
        }
    }

    /// What to do with a certificate whose record could not be kept.
    #[must_use]
    pub fn with_on_lost_record(mut self, on_lost: OnLostRecord) -> Self {
        self.on_lost = on_lost;
        self
    }

    /// How many records could not be kept, by this and its clones.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// A call of `sign`, recorded when it has an answer or is dropped.
struct Call<'a, I: Issuer> {
    audited: &'a Audited<I>,
    request: &'a CertificateRequest,
    began: Instant,
    recorded: bool,
}

impl<I: Issuer> Call<'_, I> {
    fn record(&mut self, outcome: Outcome) -> Result<()> {
        self.recorded = true;
        let audited = self.audited;
        let record = AuditRecord::new(
            audited.clock.now(),
            audited.inner.to_string(),
            self.request,
            outcome,
            self.began.elapsed(),
        );
        audited.sink.record(&record).inspect_err(|_| {
            audited.lost.fetch_add(1, Ordering::Relaxed);
        })
    }
}

impl<I: Issuer> Drop for Call<'_, I> {
    fn drop(&mut self) {
        if !self.recorded {
            // Nobody is there any more to be told; `lost` counts it.
            let _ = self.record(Outcome::Cancelled);
        }
    }
}

#[async_trait]
#[deny(
    clippy::missing_trait_methods,
    reason = "a forgotten method would silently lose what the inner one does"
)]
impl<I: Issuer> Issuer for Audited<I> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        let mut call = Call {
            audited: self,
            request,
            began: Instant::now(),
            recorded: false,
        };
        let answer = self.inner.sign(request).await;
        let recorded = call.record(Outcome::of(answer.as_ref(), request));
        match (answer, recorded) {
            (Ok(_), Err(lost)) if self.on_lost == OnLostRecord::Refuse => Err(Error::new(
                ErrorKind::Unavailable,
                "the CA signed, but the audit record could not be kept, so the certificate is held back; see why \
                 the audit sink fails, and try again",
            )
            .with_retry(Retry::Backoff)
            .with_source(lost)),
            (Err(error), Err(lost)) => Err(error.with_context("audit record lost", lost.message())),
            (answer, _) => answer,
        }
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.inner.trust_bundle().await
    }

    async fn check(&self) -> Result<CheckReport> {
        self.inner.check().await
    }
}

#[cfg(test)]
#[cfg(unix)]
mod sigkill;
#[cfg(test)]
mod tests;
