//! The secrets that one proxy may have, at one moment.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::google::protobuf::Any;
use meshca_core::resource::{Kri, MeshIdentity};
use meshca_core::spiffe::Workload;
use meshca_core::{Identity, Result, TrustBundle};
use meshca_identity::manager::{Health, MeshView};
use meshca_identity::{BackendKey, Handle, MeshResources, TrustBundles, TrustVersion};

use crate::names;
use crate::secrets::{
    bundle_secret, identity_secret, identity_version, packed, packed_identity, trust_secret,
    trust_version,
};
use crate::standing::Standing;
use crate::stream::Secrets;

/// The secrets that one proxy may have, by the [names] that it may use for them: its own identity and the trust of its mesh,
/// and nothing else.
///
/// The [server](crate::server) makes them for each change. A control plane with a snapshot cache of its own makes them itself whenever
/// [`Handle::changed`] says so, puts what its resources refer to into the cache, and tells the handle what was
/// [acknowledged](Handle::acknowledge).
///
/// ```
/// # use std::sync::Arc;
/// # use meshca_core::registry::BackendRegistry;
/// # use meshca_core::resource::Resource;
/// # use meshca_core::spiffe::{Environment, Workload};
/// # use meshca_core::{MemorySecretStore, SystemClock, builtin};
/// # use meshca_identity::select::SelectOptions;
/// # use meshca_identity::{Manager, ManagerOptions, MeshResources};
/// use meshca_xds::{ProxySecrets, names};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let registry = BackendRegistry::new().with(builtin::factory());
/// # let options = ManagerOptions::new(SelectOptions::new("east", Environment::Universal));
/// # let secrets = Arc::new(MemorySecretStore::new());
/// # let (manager, driver) = Manager::new(registry, secrets, Arc::new(SystemClock::new()), options);
/// # let driver = driver.spawn();
/// # let documents = Resource::parse("
/// # {type: Mesh, name: default}
/// # ---
/// # type: MeshIdentity
/// # name: everyone
/// # mesh: default
/// # spec:
/// #   selector: {dataplane: {matchLabels: {}}}
/// #   spiffeID: {trustDomain: example.org}
/// #   provider: {type: Bundled, bundled: {insecureAllowSelfSigned: true, autogenerate: {enabled: true}}}
/// # ")?;
/// # manager.apply(MeshResources::from_resources(documents)?).await?;
/// let workload = Arc::new(Workload::from_label_list("kuma.io/workload=web")?);
/// let mut handle = manager.connect("default", "web-1", Arc::clone(&workload)).await?;
/// handle.ready().await?;
///
/// let secrets = ProxySecrets::of(&handle, &workload);
/// let identity = secrets.get("kri_mid_default_east__everyone_")?.ok_or("its identity")?;
/// let trust = secrets.get(names::SYSTEM_TRUST_BUNDLE)?.ok_or("the trust")?;
/// // … which the proxy has taken into use:
/// handle.acknowledge(secrets.trust_version());
///
/// // Nobody gets what is another's.
/// assert!(secrets.get("kri_mid_default_east__somebody-else_")?.is_none());
/// # driver.stop().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, derive_more::Debug)]
pub struct ProxySecrets {
    #[debug("{:?}", mesh.name())]
    mesh: MeshView,
    #[debug(skip)]
    workload: Arc<Workload>,
    #[debug(skip)]
    identities: Arc<Identities>,
    #[debug("{:?}", own.as_ref().map(|own| &own.identity))]
    own: Option<Own>,
    #[debug("{:?}", trust.bundles)]
    trust: Arc<TrustSecrets>,
    trust_version: TrustVersion,
}

#[derive(Clone)]
struct Own {
    identity: Arc<Identity>,
    by: Arc<BackendKey>,
    version: Arc<str>,
}

impl ProxySecrets {
    /// What a proxy may have now. The workload is the one that it [connected](meshca_identity::Manager::connect) as.
    pub fn of(handle: &Handle, workload: &Arc<Workload>) -> Self {
        Self::with(handle, workload, &MeshCache::default())
    }

    /// The same, where what is known of the mesh already is not worked out again.
    pub(crate) fn with(handle: &Handle, workload: &Arc<Workload>, cache: &MeshCache) -> Self {
        let mesh = handle.mesh();
        let (trust, identities) = cache.of(&mesh, handle.trust(), mesh.resources());
        let mut new = Self {
            mesh,
            workload: Arc::clone(workload),
            identities,
            own: None,
            trust,
            trust_version: handle.trust_version(),
        };
        new.update(handle, workload, cache);
        new
    }

    /// What it may have now, of which most is what it had before.
    pub(crate) fn update(&mut self, handle: &Handle, workload: &Arc<Workload>, cache: &MeshCache) {
        // An identity that has ended opens no door. Whoever has it keeps it, and nobody gets it anew.
        let issued = handle
            .issued()
            .filter(|_| handle.health() != Health::Expired);
        // The identity first, so that its root is in the trust; the number before the trust that it is acknowledged by.
        self.trust_version = handle.trust_version();
        let trust = handle.trust();
        let resources = self.mesh.resources();
        self.own = issued.map(|(identity, by)| {
            let known = self
                .own
                .take()
                .filter(|own| Arc::ptr_eq(&own.identity, &identity));
            let version = match known {
                Some(own) => own.version,
                None => identity_version(&identity).into(),
            };
            Own {
                identity,
                by,
                version,
            }
        });
        if !Arc::ptr_eq(&self.trust.bundles, &trust) || !self.identities.are_of(&resources) {
            (self.trust, self.identities) = cache.of(&self.mesh, trust, resources);
        }
        if !Arc::ptr_eq(&self.workload, workload) {
            self.workload = Arc::clone(workload);
        }
    }

    /// The secret of this name, if it is [ready](Standing::Ready).
    ///
    /// # Errors
    ///
    /// Those of [`identity_secret`].
    pub fn get(&self, name: &str) -> Result<Option<Secret>> {
        Ok(match self.meaning(name) {
            Meaning::Identity(own) => Some(identity_secret(name, &own.identity)?),
            Meaning::Trust => Some(trust_secret(name, &self.trust.bundles)),
            Meaning::Bundle(bundle) => Some(bundle_secret(name, bundle)),
            Meaning::Pending | Meaning::Foreign => None,
        })
    }

    /// The version of the secret of this name, if it is ready: the same for the same content, in every process.
    pub fn version(&self, name: &str) -> Option<Arc<str>> {
        match self.meaning(name) {
            Meaning::Identity(own) => Some(Arc::clone(&own.version)),
            Meaning::Trust => Some(Arc::clone(&self.trust.version)),
            Meaning::Bundle(bundle) => self
                .trust
                .versions
                .get(bundle.trust_domain().as_ref())
                .cloned(),
            Meaning::Pending | Meaning::Foreign => None,
        }
    }

    /// How it stands with a name.
    pub fn standing(&self, name: &str) -> Standing {
        match self.meaning(name) {
            Meaning::Identity(_) | Meaning::Trust | Meaning::Bundle(_) => Standing::Ready,
            Meaning::Pending => Standing::Pending,
            Meaning::Foreign => Standing::Foreign,
        }
    }

    /// The version of the trust in here, for [`Handle::acknowledge`].
    pub fn trust_version(&self) -> TrustVersion {
        self.trust_version
    }

    fn meaning(&self, name: &str) -> Meaning<'_> {
        let own = || {
            self.own
                .as_ref()
                .map_or(Meaning::Pending, Meaning::Identity)
        };
        let trust = || match self.trust.bundles.is_empty() {
            true => Meaning::Pending,
            false => Meaning::Trust,
        };
        let bundle = |domain: &str| {
            let found = self
                .trust
                .bundles
                .iter()
                .find(|it| it.trust_domain().as_ref() == domain && !it.is_empty());
            found.map_or(Meaning::Pending, Meaning::Bundle)
        };
        let mesh = self.mesh.name();
        match name {
            names::SPIRE_IDENTITY => own(),
            names::SYSTEM_TRUST_BUNDLE | names::SPIRE_ALL_BUNDLES => trust(),
            names::SPIRE_BUNDLE => match &self.own {
                Some(own) => bundle(own.identity.spiffe_id().trust_domain().as_ref()),
                None => Meaning::Pending,
            },
            name if names::is_classic_identity(name, mesh) => own(),
            name if names::is_classic_trust(name, mesh) => trust(),
            name => match name.strip_prefix("spiffe://") {
                Some(domain) if !domain.contains('/') => bundle(domain),
                Some(_) => match &self.own {
                    Some(own) if own.identity.spiffe_id().to_string() == name => {
                        Meaning::Identity(own)
                    }
                    Some(_) => Meaning::Foreign,
                    None => Meaning::Pending,
                },
                None => self.modern(name),
            },
        }
    }

    fn is_of(&self, kri: &str, by: &BackendKey) -> bool {
        let (Ok(kri), BackendKey::Modern(name)) = (kri.parse::<Kri>(), by) else {
            return false;
        };
        kri.short() == "mid"
            && kri.mesh() == self.mesh.name()
            && kri.zone() == self.mesh.zone()
            && kri.name() == name
    }

    /// A MeshIdentity by its KRI: the one that issued, or one that selects this workload and has not yet.
    fn modern(&self, kri: &str) -> Meaning<'_> {
        let Some(identity) = self.identities.named(kri) else {
            // The MeshIdentity is gone, and what it has issued is still this proxy's.
            return match &self.own {
                Some(own) if self.is_of(kri, &own.by) => Meaning::Identity(own),
                _ => Meaning::Foreign,
            };
        };
        match &self.own {
            Some(own) if matches!(&*own.by, BackendKey::Modern(name) if *name == identity.metadata.name) => {
                Meaning::Identity(own)
            }
            _ if identity.selector.matches(self.workload.labels()) => Meaning::Pending,
            _ => Meaning::Foreign,
        }
    }
}

/// The trust of a mesh at one version.
#[derive(Clone, Debug)]
pub(crate) struct Trust {
    secrets: Arc<TrustSecrets>,
    version: TrustVersion,
}

/// A proxy refuses the newest trust: it is given what it accepted last until there is other trust.
#[derive(Clone, Debug)]
pub(crate) struct Fallback {
    /// The content that it refuses, by its version.
    pub(crate) refused: Arc<str>,
    pub(crate) accepted: Trust,
}

impl ProxySecrets {
    /// The trust in here.
    pub(crate) fn trust(&self) -> Trust {
        Trust {
            secrets: Arc::clone(&self.trust),
            version: self.trust_version,
        }
    }

    /// What the proxy falls back to as it refuses the trust in here; `None` if that is what it accepted last.
    pub(crate) fn fallback(&self, accepted: &Trust) -> Option<Fallback> {
        (accepted.secrets.version != self.trust.version).then(|| Fallback {
            refused: Arc::clone(&self.trust.version),
            accepted: accepted.clone(),
        })
    }

    /// Puts the trust that the proxy accepted last in the place of the one that it refuses; returns whether that is in here still.
    pub(crate) fn fall_back(&mut self, to: &Fallback) -> bool {
        let refused = self.trust.version == to.refused;
        if refused {
            self.trust = Arc::clone(&to.accepted.secrets);
            self.trust_version = to.accepted.version;
        }
        refused
    }
}

impl Secrets for ProxySecrets {
    fn standing(&self, name: &str) -> Standing {
        self.standing(name)
    }

    fn version(&self, name: &str) -> Option<Arc<str>> {
        self.version(name)
    }

    fn trust_version(&self) -> TrustVersion {
        self.trust_version
    }

    fn is_trust(&self, name: &str) -> bool {
        name == names::SYSTEM_TRUST_BUNDLE
            || name == names::SPIRE_BUNDLE
            || name == names::SPIRE_ALL_BUNDLES
            || names::is_classic_trust(name, self.mesh.name())
            || name
                .strip_prefix("spiffe://")
                .is_some_and(|rest| !rest.contains('/'))
    }

    fn packed(&self, name: &str) -> Result<Option<Any>> {
        Ok(match self.meaning(name) {
            Meaning::Identity(own) => Some(packed_identity(name, &own.identity)?),
            Meaning::Trust => Some(self.trust.packed(name)),
            Meaning::Bundle(bundle) => Some(packed(&bundle_secret(name, bundle))),
            Meaning::Pending | Meaning::Foreign => None,
        })
    }
}

/// What a name stands for.
enum Meaning<'a> {
    Identity(&'a Own),
    Trust,
    Bundle(&'a TrustBundle),
    Pending,
    Foreign,
}

/// The trust of a mesh, encoded once for all its proxies.
#[derive(Debug)]
pub(crate) struct TrustSecrets {
    bundles: Arc<TrustBundles>,
    version: Arc<str>,
    /// Of each trust domain alone.
    versions: BTreeMap<String, Arc<str>>,
    system: OnceLock<Any>,
    classic: OnceLock<Any>,
}

impl TrustSecrets {
    fn new(bundles: Arc<TrustBundles>) -> Self {
        let each = bundles.iter().map(|bundle| {
            let version = trust_version([bundle]).into();
            (bundle.trust_domain().to_string(), version)
        });
        Self {
            version: trust_version(bundles.iter()).into(),
            versions: each.collect(),
            bundles,
            system: OnceLock::new(),
            classic: OnceLock::new(),
        }
    }

    fn packed(&self, name: &str) -> Any {
        let cell = match name {
            names::SYSTEM_TRUST_BUNDLE => &self.system,
            names::SPIRE_ALL_BUNDLES => return packed(&trust_secret(name, &self.bundles)),
            // There is one such name in a mesh.
            _ => &self.classic,
        };
        cell.get_or_init(|| packed(&trust_secret(name, &self.bundles)))
            .clone()
    }
}

/// The MeshIdentities of a mesh, by what proxies call them.
#[derive(Debug)]
struct Identities {
    resources: Option<Arc<MeshResources>>,
    /// In the order of the resources.
    kris: Vec<Option<String>>,
}

impl Identities {
    fn new(resources: Option<Arc<MeshResources>>, zone: &str) -> Self {
        let all = resources.iter().flat_map(|it| &it.identities);
        let kris = all.map(|it| Some(it.metadata.kri("mid", zone)?.to_string()));
        Self {
            kris: kris.collect(),
            resources,
        }
    }

    fn are_of(&self, resources: &Option<Arc<MeshResources>>) -> bool {
        match (&self.resources, resources) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        }
    }

    fn named(&self, kri: &str) -> Option<&MeshIdentity> {
        let at = self.kris.iter().position(|it| it.as_deref() == Some(kri))?;
        self.resources.as_ref()?.identities.get(at)
    }
}

/// What the proxies of each mesh have in common, as it was seen last.
#[derive(Debug, Default)]
pub(crate) struct MeshCache(Mutex<BTreeMap<String, Common>>);

type Common = (Arc<TrustSecrets>, Arc<Identities>);

impl MeshCache {
    fn of(
        &self,
        mesh: &MeshView,
        bundles: Arc<TrustBundles>,
        resources: Option<Arc<MeshResources>>,
    ) -> Common {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(mesh.name());
        let trust = match known {
            Some((trust, _)) if Arc::ptr_eq(&trust.bundles, &bundles) => Arc::clone(trust),
            _ => Arc::new(TrustSecrets::new(bundles)),
        };
        let identities = match known {
            Some((_, identities)) if identities.are_of(&resources) => Arc::clone(identities),
            _ => Arc::new(Identities::new(resources, mesh.zone())),
        };
        let common = (trust, identities);
        all.insert(mesh.name().to_owned(), common.clone());
        common
    }
}
