//! An issuer that says what it was asked, and answers as it is told to.

#![allow(
    dead_code,
    reason = "the tests of one feature use a part of it, and all features together use all"
)]

use std::collections::VecDeque;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use meshca_core::{
    CaRotation, Capabilities, CertificateRequest, CertificateSpec, CheckReport, Clock, Error,
    IssuedCertificate, Issuer, PrivateKey, RequestId, Result, RotationStep, SignedChain, SpiffeId,
    TrustBundle, TrustDomain,
};

/// What an issuer can be asked, beside its capabilities.
pub(crate) const OPERATIONS: [&str; 4] = ["sign", "trust_bundle", "refresh_trust_bundle", "check"];

/// Asks for one of [`OPERATIONS`].
pub(crate) async fn call(issuer: &dyn Issuer, operation: &str) -> Result<()> {
    match operation {
        "sign" => issuer.sign(&request("cart")).await.map(drop),
        "trust_bundle" => issuer.trust_bundle().await.map(drop),
        "refresh_trust_bundle" => issuer.refresh_trust_bundle().await.map(drop),
        _ => issuer.check().await.map(drop),
    }
}

/// A request for a workload of this name.
pub(crate) fn request(name: &str) -> CertificateRequest {
    let id = SpiffeId::new(format!("spiffe://example.org/{name}")).unwrap();
    let spec = CertificateSpec::workload(id);
    let key = PrivateKey::generate(spec.key_type()).unwrap();
    CertificateRequest::for_key(spec, &key, SystemTime::UNIX_EPOCH).unwrap()
}

/// A wall clock that stands still.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Still(pub(crate) u64);

impl Clock for Still {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.0)
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Passes,
    Signs(SignedChain),
    Fails(Error),
    Later(Duration, Box<Answer>),
}

impl Answer {
    pub(crate) fn later(self, wait: Duration) -> Self {
        Self::Later(wait, Box::new(self))
    }
}

/// Passes unless it was given other answers.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    answers: Mutex<VecDeque<Answer>>,
    calls: Mutex<Vec<&'static str>>,
    requests: Mutex<Vec<RequestId>>,
    dropped: AtomicUsize,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn with_answers(self, answers: impl IntoIterator<Item = Answer>) -> Self {
        self.answers.lock().unwrap().extend(answers);
        self
    }

    pub(crate) fn answer(&self, answer: Answer) {
        self.answers.lock().unwrap().push_back(answer);
    }

    pub(crate) fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().clone()
    }

    pub(crate) fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    pub(crate) fn requests(&self) -> Vec<RequestId> {
        self.requests.lock().unwrap().clone()
    }

    /// How many calls were dropped before they had an answer.
    pub(crate) fn dropped(&self) -> usize {
        self.dropped.load(Ordering::Relaxed)
    }

    async fn called(&self, operation: &'static str) -> Result<SignedChain> {
        struct Unanswered<'a>(Option<&'a AtomicUsize>);
        impl Drop for Unanswered<'_> {
            fn drop(&mut self) {
                if let Some(dropped) = self.0 {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }

        self.calls.lock().unwrap().push(operation);
        let mut unanswered = Unanswered(Some(&self.dropped));
        let mut answer = self
            .answers
            .lock()
            .unwrap()
            .pop_front()
            .unwrap_or(Answer::Passes);
        while let Answer::Later(wait, then) = answer {
            tokio::time::sleep(wait).await;
            answer = *then;
        }
        unanswered.0 = None;
        match answer {
            Answer::Fails(error) => Err(error),
            Answer::Signs(chain) => Ok(chain),
            _ => Ok(SignedChain::new([])),
        }
    }
}

impl fmt::Display for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("recorder")
    }
}

#[async_trait]
impl Issuer for Recorder {
    fn capabilities(&self) -> Capabilities {
        self.calls.lock().unwrap().push("capabilities");
        Capabilities::new().with_dns_names(true)
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        self.requests.lock().unwrap().push(request.id().clone());
        self.called("sign").await
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        self.called("trust_bundle").await?;
        TrustBundle::new(TrustDomain::new("example.org").unwrap(), [])
    }

    async fn refresh_trust_bundle(&self) -> Result<TrustBundle> {
        self.called("refresh_trust_bundle").await?;
        TrustBundle::new(TrustDomain::new("example.org").unwrap(), [])
            .map(|bundle| bundle.with_sequence(2))
    }

    async fn check(&self) -> Result<CheckReport> {
        self.called("check").await?;
        Ok(CheckReport::new().with_warning("recorded"))
    }

    async fn settled(
        &self,
        request: &CertificateRequest,
        outcome: Result<&IssuedCertificate, &Error>,
    ) {
        assert!(outcome.is_err());
        self.requests.lock().unwrap().push(request.id().clone());
        self.calls.lock().unwrap().push("settled");
    }

    fn rotation(&self) -> Option<&dyn CaRotation> {
        Some(self)
    }
}

#[async_trait]
impl CaRotation for Recorder {
    fn due(&self) -> Option<RotationStep> {
        Some(RotationStep::Retire)
    }

    async fn rotate(&self, _: RotationStep) -> Result<()> {
        self.calls.lock().unwrap().push("rotate");
        Ok(())
    }
}
