//! Everything that takes time: each is a task that reports how it ended, even if it panics.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use meshca_core::registry::{BackendConfig, BackendRegistry, BuildContext};
use meshca_core::{
    CaRotation, CertificateSpec, Clock, Error, ErrorKind, Identity, Issuer, IssuingCa, Result,
    RotationStep, SecretStore, TrustBundle, TrustRoot,
};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, timeout};

use super::ids::{CaRef, MeshId};
use super::setup::Layer;
use crate::record::{Record, RootId};
use crate::schedule::Ticket;

/// How long the driver may wait to hear of certificates that are there.
pub(super) const TOGETHER: Duration = Duration::from_millis(2);

/// When one of several is too slow for the others to wait for it.
const SLOW: Duration = Duration::from_millis(10);

/// How long a CA above the one that signs may take to name its roots. Less than the limit of the
/// look that asks it, so that the roots of the CA itself are read all the same.
const ABOVE: Duration = Duration::from_secs(30);

/// A CA that was set up.
#[derive(Clone)]
pub(super) struct LiveCa {
    pub(super) issuing: IssuingCa,
    pub(super) rotation: Option<Arc<dyn CaRotation>>,
    /// The least time between two questions for its roots, however often the manager wants to
    /// ask: some CAs bill or throttle them.
    pub(super) trust_interval: Duration,
    /// The root of a CA that was made when this was built.
    pub(super) new_root: Option<TrustRoot>,
}

impl LiveCa {
    /// The roots with what is wrong with the CA, although it has named them.
    fn troubled(&self, roots: Roots) -> Roots {
        let trouble = self.rotation.as_ref().and_then(|rotation| rotation.lost());
        Roots { trouble, ..roots }
    }
}

/// A certificate to ask for.
pub(super) struct Order {
    pub(super) ticket: Ticket,
    /// What is wanted now: by the time it is there, it may be something else.
    pub(super) want: u64,
    pub(super) spec: CertificateSpec,
}

/// What one job asks one CA for.
pub(super) struct Batch {
    pub(super) ca: CaRef,
    pub(super) orders: Vec<Order>,
    /// Identities that nobody has any more. One is freed after each that is made: in the same task and with as many pieces of the same sizes,
    /// it leaves what the next is put into. Many at once, on another thread, cost the allocator as much as a tenth of a signature each.
    pub(super) spent: Vec<Arc<Identity>>,
}

/// What became of an [`Order`].
pub(super) struct Answer {
    pub(super) ticket: Ticket,
    pub(super) want: u64,
    pub(super) took: Duration,
    pub(super) result: Result<Arc<Identity>>,
}

/// How a job ended.
pub(super) enum Done {
    Issued {
        ca: CaRef,
        answers: Vec<Answer>,
    },
    /// Not asked for yet, and not by this job.
    Deferred {
        ca: CaRef,
        orders: Vec<Order>,
    },
    Built {
        ca: CaRef,
        result: Result<(LiveCa, Roots)>,
    },
    /// A look or a step of its rotation.
    Asked {
        ca: CaRef,
        result: Result<Roots>,
    },
    Checked {
        ca: CaRef,
        result: Result<()>,
    },
    Recorded {
        mesh: MeshId,
        /// The roots of which was to be stored that they are needed for longer.
        claims: BTreeMap<RootId, SystemTime>,
        /// What is stored: others may have stored something as well.
        result: Result<Record>,
    },
    /// What is stored of a mesh that is new here.
    Read {
        mesh: String,
        result: Result<Record>,
    },
}

/// The roots of a CA.
pub(super) struct Roots {
    pub(super) bundle: TrustBundle,
    /// What others may have handed out under one that is not among them any more.
    pub(super) record: Option<Record>,
    /// Why the CA could not be set up again by now.
    pub(super) trouble: Option<Error>,
}

/// What a CA had before, and where others say what they have handed out under that.
pub(super) struct Before {
    pub(super) bundle: Option<TrustBundle>,
    pub(super) mesh: String,
    pub(super) secrets: Arc<dyn SecretStore>,
}

impl Before {
    async fn roots(self, bundle: TrustBundle) -> Result<Roots> {
        let before = self.bundle.iter().flat_map(TrustBundle::roots);
        let lost = before.filter(|root| !bundle.contains(root.der())).count() > 0;
        let record = match lost {
            true => Some(Record::read(&*self.secrets, &self.mesh).await?),
            false => None,
        };
        Ok(Roots {
            bundle,
            record,
            trouble: None,
        })
    }
}

/// Reports how a job ended when it is dropped. The driver would wait for ever for a job without a
/// report.
pub(super) struct Report {
    to: UnboundedSender<Done>,
    done: Option<Done>,
}

impl Report {
    /// Until it is told better, it reports a panic.
    pub(super) fn new(to: UnboundedSender<Done>, unless: impl FnOnce(Error) -> Done) -> Self {
        Self {
            to,
            done: Some(unless(panicked())),
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

/// Has certificates of one CA issued, one after the other.
///
/// Those that a CA in this process signs take less time than waking the driver for each, so it hears of them together; of what takes
/// longer it hears at once.
pub(super) async fn issue(
    issuing: IssuingCa,
    batch: Batch,
    clock: Arc<dyn Clock>,
    limit: Duration,
    to: UnboundedSender<Done>,
) {
    let mut spent = batch.spent;
    let mut began = Instant::now();
    let mut heard = began;
    let mut report = Answers {
        to,
        ca: batch.ca,
        running: None,
        answers: Vec::with_capacity(batch.orders.len()),
        waiting: batch.orders.into(),
    };
    while let Some(order) = report.waiting.pop_front() {
        report.running = Some((order.ticket, order.want));
        // In a box, as is what only those need who wait: glibc's allocator puts in order what it has whenever it is asked for a kilobyte or
        // more, which took longer than all else that is done for a certificate here, and so this task is less.
        let mut work = Box::pin(issuing.issue(&order.spec, &*clock));
        // Whoever signs in this process is done at once, and needs no timer.
        let at_once = poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await;
        let result = match at_once {
            Poll::Ready(result) => result,
            Poll::Pending => {
                spent.clear();
                let mut work = Box::pin(within(limit, "did not issue", work));
                match timeout(SLOW, &mut work).await {
                    Ok(result) => result,
                    // Those behind it must not wait for one that is not so quick, or hangs.
                    Err(_) => {
                        report.defer();
                        work.await
                    }
                }
            }
        };
        let ended = Instant::now();
        report.running = None;
        report.answers.push(Answer {
            ticket: order.ticket,
            want: order.want,
            took: ended - began,
            result: result.map(Arc::new),
        });
        drop(spent.pop());
        if ended - heard >= TOGETHER {
            report.send();
            heard = ended;
        }
        began = ended;
    }
}

/// Reports what has been answered; when it is dropped, by a panic, also what has not, and gives back what was not begun.
struct Answers {
    to: UnboundedSender<Done>,
    ca: CaRef,
    running: Option<(Ticket, u64)>,
    waiting: VecDeque<Order>,
    answers: Vec<Answer>,
}

impl Answers {
    fn send(&mut self) {
        if !self.answers.is_empty() {
            let (ca, answers) = (self.ca.clone(), std::mem::take(&mut self.answers));
            // Unless the driver has ended.
            let _ = self.to.send(Done::Issued { ca, answers });
        }
    }

    fn defer(&mut self) {
        if !self.waiting.is_empty() {
            let (ca, orders) = (self.ca.clone(), std::mem::take(&mut self.waiting).into());
            let _ = self.to.send(Done::Deferred { ca, orders });
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if let Some((ticket, want)) = self.running.take() {
            self.answers.push(Answer {
                ticket,
                want,
                took: Duration::ZERO,
                result: Err(panicked()),
            });
        }
        self.send();
        self.defer();
    }
}

fn panicked() -> Error {
    Error::new(
        ErrorKind::Internal,
        "an issuer or a secret store panicked: this is a bug in it",
    )
}

/// Builds an issuer, and reads its roots.
pub(super) async fn build(
    registry: Arc<BackendRegistry>,
    config: BackendConfig,
    context: BuildContext,
    layers: Vec<Layer>,
    before: Before,
    limit: Duration,
) -> Result<(LiveCa, Roots)> {
    let (ca, bundle) = within(limit, "could not be set up", async {
        let built = registry.build(&config, &context).await?;
        let issuer = layers
            .iter()
            .fold(built.issuer, |issuer, layer| layer(&config, issuer));
        let trust_interval = issuer.capabilities().trust_interval();
        let issuing = IssuingCa::new(issuer);
        let bundle = issuing.refresh().await?;
        let live = LiveCa {
            issuing,
            rotation: built.rotation,
            trust_interval,
            new_root: built.new_root,
        };
        Ok((live, bundle))
    })
    .await?;
    Ok((ca, before.roots(bundle).await?))
}

/// Has a CA asked for its roots again, and first the CA above it.
pub(super) async fn look(ca: LiveCa, before: Before, limit: Duration) -> Result<Roots> {
    if let Some(rotation) = &ca.rotation {
        let followed = within(ABOVE, "above it did not say its roots", rotation.follow());
        if let Err(error) = followed.await {
            tracing::warn!(ca = %ca.issuing, %error, "the CA above could not be asked for its roots; those known stay trusted");
        }
    }
    let asked = ca.issuing.refresh();
    let bundle = within(limit, "did not say which roots it has", asked).await?;
    Ok(ca.troubled(before.roots(bundle).await?))
}

/// Has a CA say whether it would sign.
pub(super) async fn check(ca: LiveCa, limit: Duration) -> Result<()> {
    let checked = within(
        limit,
        "did not say whether it would sign",
        ca.issuing.check(),
    );
    for warning in checked.await?.warnings {
        tracing::debug!(ca = %ca.issuing, warning, "a CA was checked");
    }
    Ok(())
}

/// Takes a CA a step further in its replacement.
pub(super) async fn rotate(
    ca: LiveCa,
    step: RotationStep,
    before: Before,
    limit: Duration,
) -> Result<Roots> {
    let bundle = within(limit, "could not be rotated", async {
        if let Some(rotation) = &ca.rotation {
            rotation.rotate(step).await?;
        }
        ca.issuing.refresh().await
    })
    .await?;
    Ok(ca.troubled(before.roots(bundle).await?))
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
