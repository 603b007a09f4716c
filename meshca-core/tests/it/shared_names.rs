//! A store in which all meshes share the names of secrets, as on Kubernetes.

use std::sync::{Arc, Mutex};

use crate::common::{FakeClock, domain, spec};
use async_trait::async_trait;
use meshca_core::registry::{BackendConfig, BuildContext};
use meshca_core::resource::{Bundled, BundledCa, IdentityProvider, MeshIdentity, Metadata};
use meshca_core::{
    BackendRegistry, Error, ErrorKind, Expect, IssuingCa, MemorySecretStore, Result, SecretKey,
    SecretStore, SecretValue, StoredSecret, Version,
};

#[derive(Debug, Default)]
struct SharedNames {
    inner: MemorySecretStore,
    owners: Mutex<std::collections::HashMap<String, String>>,
}

impl SharedNames {
    fn own(&self, key: &SecretKey) -> Result<SecretKey> {
        let owners = self.owners.lock().unwrap();
        match owners.get(key.name()) {
            Some(owner) if owner != key.mesh() => Err(Error::new(
                ErrorKind::Denied,
                "the secret belongs to another mesh",
            )),
            _ => SecretKey::new("all", key.name()),
        }
    }

    /// Everything of a mesh is deleted, as by its owner.
    async fn delete_all_of(&self, mesh: &str) {
        let owners = std::mem::take(&mut *self.owners.lock().unwrap());
        let (gone, kept): (Vec<_>, Vec<_>) =
            owners.into_iter().partition(|(_, owner)| owner == mesh);
        self.owners.lock().unwrap().extend(kept);
        for (name, _) in gone {
            let key = SecretKey::new("all", name).unwrap();
            if let Some(found) = self.inner.get(&key).await.unwrap() {
                self.inner.delete(&key, &found.version).await.unwrap();
            }
        }
    }
}

#[async_trait]
impl SecretStore for SharedNames {
    async fn get(&self, key: &SecretKey) -> Result<Option<StoredSecret>> {
        self.inner.get(&self.own(key)?).await
    }

    async fn put(&self, key: &SecretKey, value: SecretValue, expect: Expect) -> Result<Version> {
        let version = self.inner.put(&self.own(key)?, value, expect).await?;
        let (name, mesh) = (key.name().to_owned(), key.mesh().to_owned());
        self.owners.lock().unwrap().insert(name, mesh);
        Ok(version)
    }

    async fn delete(&self, key: &SecretKey, version: &Version) -> Result<()> {
        self.inner.delete(&self.own(key)?, version).await
    }
}

fn identity() -> BackendConfig {
    let bundled = Bundled::self_signed(BundledCa::Autogenerate);
    let identity = MeshIdentity::new(Metadata::universal("identity"));
    let identity = identity.with_provider(IdentityProvider::Bundled(bundled));
    BackendConfig::modern(&identity).unwrap()
}

#[tokio::test]
async fn mesh_identities_of_one_name_in_two_meshes_have_a_ca_each() {
    let (store, clock) = (Arc::new(SharedNames::default()), FakeClock::new());
    let registry = BackendRegistry::new().with(meshca_core::builtin::factory());
    let build = async |mesh: &str| {
        let clock = Arc::new(clock.clone());
        let context = BuildContext::new(mesh, domain(), store.clone(), clock);
        registry.build(&identity(), &context).await
    };
    let root = async |mesh: &str| {
        let issuing = IssuingCa::new(build(mesh).await.unwrap().issuer);
        let issued = issuing.issue(&spec(), &clock).await.unwrap();
        issued.certificate().root().fingerprint().to_owned()
    };
    let [a, b] = [root("a").await, root("b").await];
    assert_ne!(a, b);
    assert_eq!([root("a").await, root("b").await], [a, b.clone()]);
    // The product's names are free again, and `b` has its CA.
    store.delete_all_of("a").await;
    assert_eq!(root("b").await, b);
}
