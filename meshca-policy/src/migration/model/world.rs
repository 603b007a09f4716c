//! What resources mean to proxies.

use std::collections::BTreeSet;

use meshca_core::resource::{
    CaBundle, IdentityProvider, MeshIdentity, MeshTrust, MeshTrustCreation, Metadata, Mode,
};
use meshca_core::spiffe::{Environment, Workload};

use crate::BackendKey;
use crate::MeshResources;
use crate::select::{IdentityRules, SelectOptions};
use crate::tls::{Proxy, TlsPolicy};

pub(super) const ZONE: &str = "zone-1";

/// Labels of the two kinds of proxies that there are.
pub(super) const CLASSES: [&str; 2] = ["web", "db"];

pub(super) fn proxy(class: usize) -> Proxy {
    let name = CLASSES[class];
    let workload = Workload::new()
        .with_label("app", name)
        .with_label("kuma.io/service", name)
        .with_label("kuma.io/workload", name);
    Proxy::new(name, workload)
}

/// What the control plane would send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) trusts: u32,
    pub(super) accepts: [u32; 2],
    pub(super) leaf: [Option<Leaf>; 2],
    pub(super) strict: [bool; 2],
}

/// A certificate: its root and its SPIFFE ID, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Leaf {
    pub(super) issuer: u8,
    pub(super) root: u8,
    pub(super) id: u8,
}

/// Numbers for all that has a name.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) issuers: Vec<BackendKey>,
    roots: Vec<(String, String)>,
    ids: Vec<String>,
}

fn number<T: PartialEq>(all: &mut Vec<T>, one: T) -> u8 {
    let index = all.iter().position(|it| *it == one).unwrap_or_else(|| {
        all.push(one);
        all.len() - 1
    });
    assert!(index < 32, "a set is a u32");
    u8::try_from(index).unwrap()
}

/// The roots of a CA, as a MeshTrust has them here.
pub(super) fn pem(identity: &str) -> CaBundle {
    CaBundle::Pem(format!("root of {identity}"))
}

/// Whether the control plane makes the MeshTrust by itself.
fn makes_trust(identity: &MeshIdentity) -> bool {
    match &identity.provider {
        Some(IdentityProvider::Bundled(it)) => it.mesh_trust_creation == MeshTrustCreation::Enabled,
        Some(IdentityProvider::Extension(_)) => true,
        _ => false,
    }
}

/// The CA of a MeshIdentity has become ready: its roots are appended to the MeshTrust of the same
/// name.
pub(super) fn make_trust(resources: &mut MeshResources, identity: &str) {
    let Some(identity) = resources
        .identities
        .iter()
        .find(|it| it.metadata.name == identity && makes_trust(it))
    else {
        return;
    };
    let name = &identity.metadata.name;
    let domain = identity.trust_domain_in(ZONE).unwrap();
    match resources
        .trusts
        .iter_mut()
        .find(|it| it.metadata.name == *name)
    {
        Some(trust) if trust.ca_bundles.contains(&pem(name)) => {}
        Some(trust) => trust.ca_bundles.push(pem(name)),
        None => {
            let metadata = Metadata::universal(name.clone()).with_mesh(resources.name());
            resources
                .trusts
                .push(MeshTrust::new(metadata, domain, pem(name)));
        }
    }
}

impl Names {
    pub(super) fn issuer(&mut self, issuer: BackendKey) -> u8 {
        number(&mut self.issuers, issuer)
    }

    fn root(&mut self, domain: &str, root: &str) -> u8 {
        number(&mut self.roots, (domain.to_owned(), root.to_owned()))
    }

    /// A kind of SPIFFE ID: the classic one, or that of a trust domain and a template.
    fn id(&mut self, identity: Option<&MeshIdentity>) -> u8 {
        let id = identity.map_or_else(
            || "classic".to_owned(),
            |it| format!("{} {:?}", it.trust_domain_in(ZONE).unwrap(), it.path),
        );
        number(&mut self.ids, id)
    }

    /// The certificate that an issuer gives.
    pub(super) fn leaf(&mut self, issuer: &BackendKey, resources: &MeshResources) -> Leaf {
        let (root, id) = match issuer {
            BackendKey::Classic(name) => (self.root(resources.name(), name), self.id(None)),
            BackendKey::Modern(name) => {
                let identity = resources.identities.iter();
                let identity = identity
                    .clone()
                    .find(|it| it.metadata.name == *name)
                    .unwrap();
                let domain = identity.trust_domain_in(ZONE).unwrap();
                let CaBundle::Pem(pem) = pem(name) else {
                    unreachable!()
                };
                (self.root(domain.as_ref(), &pem), self.id(Some(identity)))
            }
        };
        Leaf {
            issuer: self.issuer(issuer.clone()),
            root,
            id,
        }
    }

    pub(super) fn wanted(&mut self, resources: &MeshResources) -> Wanted {
        let mut trusts = BTreeSet::new();
        if resources.mesh.enabled_backend().is_some() {
            for backend in resources.mesh.mtls.iter().flat_map(|it| &it.backends) {
                trusts.insert(self.root(resources.name(), &backend.name));
            }
        }
        for trust in &resources.trusts {
            for bundle in &trust.ca_bundles {
                let CaBundle::Pem(pem) = bundle else {
                    unreachable!()
                };
                trusts.insert(self.root(trust.trust_domain.as_ref(), pem));
            }
        }
        let rules = IdentityRules::new(resources, SelectOptions::new(ZONE, Environment::Universal));
        let classes = [0, 1].map(|class| {
            let proxy = proxy(class);
            let workload = &proxy.workload;
            let selection = rules.select(workload, |_| Ok(()));
            let mut accepts = BTreeSet::new();
            if resources.mesh.enabled_backend().is_some() {
                accepts.insert(self.id(None));
            }
            for identity in &resources.identities {
                let domain = identity.trust_domain_in(ZONE).unwrap();
                let id = identity.spiffe_id_of(&domain, workload, Environment::Universal);
                let id = id.unwrap();
                let mut shown = selection.announced().chain(selection.spiffe_id());
                if shown.any(|it| *it == id) {
                    accepts.insert(self.id(Some(identity)));
                }
            }
            let issuer = selection.assigned.issuer();
            let leaf = issuer.map(|issuer| self.leaf(&issuer, resources));
            let mode = TlsPolicy::mode_of(resources, &proxy).value;
            (mask(accepts), leaf, mode == Mode::Strict)
        });
        Wanted {
            trusts: mask(trusts),
            accepts: classes.map(|it| it.0),
            leaf: classes.map(|it| it.1),
            strict: classes.map(|it| it.2),
        }
    }
}

fn mask(numbers: BTreeSet<u8>) -> u32 {
    numbers.into_iter().fold(0, |mask, it| mask | 1 << it)
}
