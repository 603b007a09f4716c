//! CAs beside the built-in one: each has a CA for every trust domain, and does to all of them what it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use meshca_core::registry::{BackendConfig, BuildContext, BuiltIssuer, IssuerFactory};
use meshca_core::{
    Capabilities, CertificateRequest, CheckReport, Error, ErrorKind, Issuer, Result, SignedChain,
    TrustBundle, TrustDomain,
};
use meshca_testkit::{Fault, FaultyIssuer};
use tokio::time::Instant;

use super::clock::SkewedClock;

pub(super) const TYPES: [&str; 2] = ["ca-a", "ca-b"];

/// What a CA does.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Conduct {
    Honest,
    Lies(Fault),
    /// It never answers.
    Hangs,
    /// It answers, and bills, and gives nothing.
    Refuses(ErrorKind),
    /// It cannot be reached.
    Down,
}

/// Lies that core must refuse: what is signed like that may be in no handle.
pub(super) fn lies() -> Vec<Fault> {
    vec![
        Fault::WrongKey,
        Fault::SecondSpiffeId,
        Fault::ExtraDnsName,
        Fault::MissingSan,
        Fault::CaCertificate,
        Fault::KeyCertSign,
        Fault::MissingClientEku,
        Fault::ExpiredLeaf,
        Fault::OverlongLeaf,
        Fault::NotBeforeAhead(Duration::from_secs(7200)),
        Fault::ForeignChain,
        Fault::IncompleteChain,
        Fault::Garbage,
        Fault::EmptyAnswer,
    ]
}

/// The roots of a CA in one trust domain.
#[derive(Debug)]
struct Roots {
    signs: Arc<FaultyIssuer>,
    announced: Option<Arc<FaultyIssuer>>,
    former: Option<Arc<FaultyIssuer>>,
}

#[derive(Debug)]
struct State {
    conduct: Conduct,
    domains: BTreeMap<TrustDomain, Roots>,
    /// What was signed as a lie.
    lies: BTreeSet<Vec<u8>>,
}

/// One CA, as its operators see it.
#[derive(Debug)]
pub(super) struct Ca {
    clock: SkewedClock,
    state: Mutex<State>,
}

impl Ca {
    pub(super) fn conduct(&self) -> Conduct {
        self.state.lock().unwrap().conduct.clone()
    }

    pub(super) fn behave(&self, conduct: Conduct) {
        self.state.lock().unwrap().conduct = conduct;
    }

    fn new_issuer(&self, domain: &TrustDomain) -> Arc<FaultyIssuer> {
        Arc::new(FaultyIssuer::new(domain.clone(), Arc::new(self.clock.clone())).unwrap())
    }

    /// Names its next root.
    pub(super) fn announce(&self) {
        for (domain, roots) in &mut self.state.lock().unwrap().domains {
            roots.announced = Some(self.new_issuer(domain));
        }
    }

    /// Signs under its next root: the announced one, or one that nobody has heard of.
    pub(super) fn switch(&self) {
        for (domain, roots) in &mut self.state.lock().unwrap().domains {
            let was_announced = roots.announced.is_some();
            let next = roots.announced.take();
            let next = next.unwrap_or_else(|| self.new_issuer(domain));
            let former = std::mem::replace(&mut roots.signs, next);
            roots.former = was_announced.then_some(former);
        }
    }

    /// Names its former root no more.
    pub(super) fn forget(&self) {
        for roots in self.state.lock().unwrap().domains.values_mut() {
            roots.former = None;
        }
    }

    pub(super) fn has_announced(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.domains.values().any(|it| it.announced.is_some())
    }

    pub(super) fn is_a_lie(&self, certificate: &[u8]) -> bool {
        self.state.lock().unwrap().lies.contains(certificate)
    }
}

/// The roots that CAs named last, by the replica that asked, the CA's type and name, and the trust domain, with when
/// they became others.
#[derive(Clone, Debug, Default)]
pub(super) struct Told(Arc<Mutex<BTreeMap<Asker, Answer>>>);

type Asker = (usize, String, String, TrustDomain);

#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) roots: BTreeSet<String>,
    pub(super) since: Instant,
}

impl Told {
    /// Whether the CA of this name has named a root when it was asked last, by any replica.
    pub(super) fn is_named(&self, name: &str, root: &str) -> bool {
        let all = self.0.lock().unwrap();
        let mut of_name = all.iter().filter(|((_, _, it, _), _)| it == name);
        of_name.any(|(_, answer)| answer.roots.contains(root))
    }

    /// When the CA of this name was another one last, for a replica.
    pub(super) fn changed(&self, replica: usize, name: &str) -> Option<Instant> {
        let all = self.0.lock().unwrap();
        let of_name = all
            .iter()
            .filter(|((by, _, it, _), _)| *by == replica && it == name);
        of_name.map(|(_, answer)| answer.since).max()
    }

    /// A replica has set up a CA: what it was before says nothing.
    pub(super) fn tap(
        &self,
        replica: usize,
        config: &BackendConfig,
        issuer: Arc<dyn Issuer>,
    ) -> Arc<dyn Issuer> {
        Arc::new(Tap {
            issuer,
            replica,
            of: config.type_name().to_owned(),
            name: config.name().to_owned(),
            told: self.clone(),
            is_new: Mutex::new(true),
        })
    }
}

/// Hears what a CA says of its roots.
#[derive(Debug)]
struct Tap {
    issuer: Arc<dyn Issuer>,
    replica: usize,
    of: String,
    name: String,
    told: Told,
    is_new: Mutex<bool>,
}

impl fmt::Display for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.issuer.fmt(f)
    }
}

#[async_trait]
impl Issuer for Tap {
    fn capabilities(&self) -> Capabilities {
        self.issuer.capabilities()
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        self.issuer.sign(request).await
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        let bundle = self.issuer.trust_bundle().await?;
        let roots = bundle.roots().iter().map(|it| it.fingerprint().to_owned());
        let new = Answer {
            roots: roots.collect(),
            since: Instant::now(),
        };
        let domain = bundle.trust_domain().clone();
        let asker = (self.replica, self.of.clone(), self.name.clone(), domain);
        let is_new = std::mem::take(&mut *self.is_new.lock().unwrap());
        let mut all = self.told.0.lock().unwrap();
        let known = all
            .get(&asker)
            .is_some_and(|it| it.roots == new.roots && !is_new);
        if !known {
            all.insert(asker, new);
        }
        Ok(bundle)
    }

    async fn check(&self) -> Result<CheckReport> {
        self.issuer.check().await
    }
}

/// All CAs.
#[derive(Clone, Debug)]
pub(super) struct Cas(BTreeMap<&'static str, Arc<Ca>>);

impl Cas {
    pub(super) fn new(clock: &SkewedClock) -> Self {
        let new = |name: &'static str| {
            let ca = Ca {
                clock: clock.clone(),
                state: Mutex::new(State {
                    conduct: Conduct::Honest,
                    domains: BTreeMap::new(),
                    lies: BTreeSet::new(),
                }),
            };
            (name, Arc::new(ca))
        };
        Self(TYPES.map(new).into())
    }

    pub(super) fn get(&self, name: &str) -> &Arc<Ca> {
        &self.0[name]
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Ca>> {
        self.0.values()
    }
}

#[async_trait]
impl IssuerFactory for Cas {
    fn types(&self) -> Vec<String> {
        self.0.keys().map(|it| (*it).to_owned()).collect()
    }

    async fn build(&self, config: &BackendConfig, context: &BuildContext) -> Result<BuiltIssuer> {
        let ca = Arc::clone(self.get(config.type_name()));
        let domain = context.trust_domain().clone();
        let first = ca.new_issuer(&domain);
        let mut state = ca.state.lock().unwrap();
        state.domains.entry(domain.clone()).or_insert(Roots {
            signs: first,
            announced: None,
            former: None,
        });
        drop(state);
        Ok(Arc::new(Front { ca, domain }).into())
    }
}

/// A CA in one trust domain, as managers see it.
#[derive(Debug, derive_more::Display)]
#[display("a CA of {domain}")]
struct Front {
    ca: Arc<Ca>,
    domain: TrustDomain,
}

#[async_trait]
impl Issuer for Front {
    fn capabilities(&self) -> Capabilities {
        let state = self.ca.state.lock().unwrap();
        state.domains[&self.domain].signs.capabilities()
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<SignedChain> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let (conduct, signs) = {
            let state = self.ca.state.lock().unwrap();
            let signs = Arc::clone(&state.domains[&self.domain].signs);
            (state.conduct.clone(), signs)
        };
        match conduct {
            Conduct::Honest => signs.sign(request).await,
            Conduct::Lies(fault) => {
                signs.misbehave_once(fault);
                let chain = signs.sign(request).await?;
                let leaf = chain.certificates().first().map(|it| it.to_vec());
                self.ca.state.lock().unwrap().lies.extend(leaf);
                Ok(chain)
            }
            Conduct::Hangs => std::future::pending().await,
            Conduct::Refuses(kind) => Err(Error::new(kind, "it refuses")),
            Conduct::Down => Err(Error::new(ErrorKind::Unavailable, "it is down")),
        }
    }

    async fn trust_bundle(&self) -> Result<TrustBundle> {
        let (conduct, named) = {
            let state = self.ca.state.lock().unwrap();
            let roots = &state.domains[&self.domain];
            let named = [
                Some(Arc::clone(&roots.signs)),
                roots.announced.clone(),
                roots.former.clone(),
            ];
            (state.conduct.clone(), named)
        };
        match conduct {
            Conduct::Down => return Err(Error::new(ErrorKind::Unavailable, "it is down")),
            Conduct::Hangs => std::future::pending().await,
            _ => {}
        }
        let mut bundle = TrustBundle::new(self.domain.clone(), [])?;
        for issuer in named.into_iter().flatten() {
            bundle = bundle.union(&issuer.trust_bundle().await?)?;
        }
        Ok(bundle)
    }

    async fn check(&self) -> Result<CheckReport> {
        Ok(CheckReport::new())
    }
}
