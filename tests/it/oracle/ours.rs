//! Our own verdicts.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use meshca::identity::rustls023::{PeerPolicy, PeerRule, PeerVerifier, Settings};
use meshca::identity::{Credentials, TrustBundles};
use meshca::{
    CertificateRequest, CertificateSpec, Clock, Identity, LifetimePolicy, PrivateKey, SignedChain,
    SpiffeId, SystemClock, TrustBundle, TrustDomain,
};
use rustls::client::danger::ServerCertVerifier as _;
use rustls::server::danger::ClientCertVerifier as _;
use rustls_pki_types::{ServerName, UnixTime};

use crate::oracle::Verdict;
use crate::oracle::cases::{Case, ID, LOWER, Plan, Profile, Shape};
use crate::oracle::certificate::{Draft, NOW};
use crate::oracle::others::Sides;

pub(crate) struct Ours {
    /// Whether it would be handed out.
    pub(crate) issued: Verdict,
    /// Whether a rustls server believes it, and a rustls client, by the rules of each profile.
    pub(crate) modern: Sides,
    pub(crate) classic: Sides,
    /// Whether the CA above it would be accepted as the answer to a request for one, if there is a way to ask.
    pub(crate) ca: Option<Verdict>,
}

impl Ours {
    pub(crate) fn peer(&self, profile: Profile) -> &Sides {
        match profile {
            Profile::Modern => &self.modern,
            Profile::Classic => &self.classic,
        }
    }
}

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

/// This many seconds from now.
fn after(seconds: i64) -> SystemTime {
    *NOW + Duration::from_secs(seconds.try_into().unwrap())
}

fn request(plan: &Plan) -> Result<CertificateRequest, String> {
    let mut spec = CertificateSpec::workload(SpiffeId::new(ID).unwrap())
        .with_lifetime(Duration::from_secs(24 * 3600))
        .with_lifetime_policy(match plan.may_last {
            true => LifetimePolicy::AcceptIssuer,
            false => LifetimePolicy::AtMostRequested,
        });
    for name in &plan.dns {
        spec = spec.with_dns_name(*name);
    }
    for uri in &plan.uris {
        spec = spec.with_uri(*uri);
    }
    if let Some(name) = plan.common_name {
        spec = spec.with_common_name(name);
    }
    let request = CertificateRequest::for_csr(spec, plan.leaf.key.csr(), after(plan.returned));
    request.map_err(|error| error.to_string())
}

/// A request for a CA that signs leaves, for the key of this one. `None` if it has a key that we do not read.
fn requested_ca(ca: &Draft) -> Option<CertificateRequest> {
    let spec = CertificateSpec::intermediate(&domain(), LOWER).unwrap();
    let spec = spec.with_lifetime_policy(LifetimePolicy::AcceptIssuer);
    let key = PrivateKey::from_pem(&ca.key.pair.serialize_pem()).ok()?;
    Some(CertificateRequest::for_key(spec, &key, *NOW).unwrap())
}

/// Of a workload that verifies its peers.
static IDENTITY: LazyLock<Arc<Identity>> = LazyLock::new(|| {
    let case = Plan::sound().build(String::new(), Shape::Direct, Vec::new());
    let request = request(&case.plan).unwrap();
    let bundle = TrustBundle::new(domain(), case.anchors).unwrap();
    let issued = SignedChain::new(case.sent);
    let issued = issued.verify(&request, &bundle, *NOW).unwrap();
    let key = PrivateKey::from_pem(&case.plan.leaf.key.pair.serialize_pem()).unwrap();
    Arc::new(Identity::new(issued, key).unwrap())
});

fn verifier(bundle: &TrustBundle, tags: bool) -> Arc<PeerVerifier> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let mut trust = TrustBundles::new();
    trust.add(bundle).unwrap();
    Settings::new(PeerPolicy::SameDomain, provider, clock)
        .allow_tags(tags)
        .verifier(&Credentials::new(IDENTITY.clone(), trust))
        .unwrap()
}

pub(crate) fn judge(case: &Case) -> Ours {
    let bundle = match TrustBundle::new(domain(), case.anchors.iter().cloned()) {
        Ok(bundle) => bundle,
        // It is never published.
        Err(error) => {
            let refused = || Verdict::refused(&error);
            let sides = || Sides {
                client: refused(),
                server: refused(),
            };
            return Ours {
                issued: refused(),
                modern: sides(),
                classic: sides(),
                ca: { case.ca() }.and_then(requested_ca).map(|_| refused()),
            };
        }
    };
    let issued = request(&case.plan).and_then(|request| {
        let chain = SignedChain::new(case.sent.iter().cloned());
        let issued = chain.verify(&request, &bundle, after(case.plan.returned));
        issued.map(drop).map_err(|error| error.to_string())
    });
    let ca = { case.ca() }.and_then(requested_ca).map(|request| {
        let chain = SignedChain::new(case.sent[1..].iter().cloned());
        chain.verify(&request, &bundle, *NOW).map(drop).into()
    });
    let peer = |profile| {
        let verifier = verifier(&bundle, profile == Profile::Classic);
        let (leaf, others) = case.sent.split_first().unwrap();
        let now = UnixTime::now();
        let client = verifier.verify_client_cert(leaf, others, now).map(drop);
        let name = ServerName::try_from("unused.example").unwrap();
        let server = verifier.verify_server_cert(leaf, others, &name, &[], now);
        let explain =
            |error: rustls::Error| PeerRule::explain(&error).unwrap_or_else(|| error.to_string());
        Sides {
            client: client.map_err(explain).into(),
            server: server.map(drop).map_err(explain).into(),
        }
    };
    Ours {
        issued: issued.into(),
        modern: peer(Profile::Modern),
        classic: peer(Profile::Classic),
        ca,
    }
}
