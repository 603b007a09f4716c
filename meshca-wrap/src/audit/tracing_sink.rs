//! Records as events of `tracing`.

use meshca_core::Result;

use super::{AuditRecord, AuditSink, Outcome};

/// Hands each record to [`tracing`](https://docs.rs/tracing) as one event with the target `meshca::audit`: at
/// level `INFO` what was signed, at `WARN` what was refused or cancelled.
///
/// The fields have the names of the [JSON form](AuditRecord), flat; values are escaped, so that none can
/// forge a line of a log. `tracing` does not say whether anybody listens: where a record must not be lost,
/// use the [`JsonLinesSink`](super::JsonLinesSink).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct TracingSink;

impl TracingSink {
    /// The sink.
    pub fn new() -> Self {
        Self
    }
}

/// The target of the events.
const TARGET: &str = "meshca::audit";

macro_rules! event {
    ($level:ident, $record:ident, $text:literal, $($field:tt)*) => {
        tracing::event!(
            target: TARGET,
            tracing::Level::$level,
            outcome = $record.outcome.as_str(),
            spiffe_id = $record.spiffe_id,
            issuer = %$record.issuer.escape_debug(),
            request_id = $record.request_id,
            profile = $record.profile,
            requested_uris = ?$record.requested.uris,
            requested_dns_names = ?$record.requested.dns_names,
            requested_common_name = ?$record.requested.common_name,
            requested_lifetime_secs = $record.requested.lifetime.as_secs(),
            duration_ms = $record.duration.as_secs_f64() * 1e3,
            $($field)*
            $text
        )
    };
}

impl AuditSink for TracingSink {
    fn record(&self, record: &AuditRecord) -> Result<()> {
        let time = |time: Option<_>| time.map(crate::rfc3339);
        match &record.outcome {
            Outcome::Signed(signed) => event!(
                INFO, record, "certificate signed",
                serial = signed.serial,
                certificate_issuer = ?signed.issuer,
                certificate_subject = ?signed.subject,
                not_before = time(signed.not_before),
                not_after = time(signed.not_after),
                lifetime_secs = signed.lifetime_secs,
                names = ?signed.names,
                note = ?signed.note,
            ),
            Outcome::Refused(refusal) => event!(
                WARN, record, "certificate refused",
                kind = refusal.kind,
                error = %refusal.message.escape_debug(),
            ),
            Outcome::Cancelled => event!(WARN, record, "certificate request cancelled",),
        }
        Ok(())
    }
}
