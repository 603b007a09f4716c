//! What every [`SecretStore`] must do, as a test for yours too.
//!
//! ```
//! use meshca_core::MemorySecretStore;
//! use meshca_testkit::secret_store::{self, Names};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! secret_store::assert_contract(&MemorySecretStore::new(), Names::OfEachMesh).await;
//! # }
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "it is a test, which fails by panicking"
)]

use meshca_core::secret::{
    Expect, MAX_SECRET_SIZE, SecretKey, SecretStore, SecretStoreExt as _, SecretValue, Version,
};
use meshca_core::{Error, ErrorKind, Result, Retry};

/// Whether two meshes can have a secret of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Names {
    /// They can.
    OfEachMesh,
    /// The first mesh to use a name has it; whoever asks for it for another mesh is told so.
    Shared,
}

fn key(name: &str) -> SecretKey {
    SecretKey::new("default", name).unwrap()
}

/// Proves what every [`SecretStore`] owes its callers, on one that has no secrets in the meshes `default` and `other`. It
/// leaves some behind.
///
/// What several users of one store owe each other – a race that one wins – is for the store's own tests.
///
/// # Panics
///
/// If it does not keep the contract.
pub async fn assert_contract(store: &dyn SecretStore, names: Names) {
    let contract = Contract {
        store,
        token: key("token"),
        unknown: Version::new("unknown"),
    };
    let first = contract.is_created_once().await;
    let second = contract.is_changed_by_who_knows_its_state(&first).await;
    let other = contract.has_names_apart(names, &second).await;
    contract
        .is_deleted_by_who_knows_its_state(&first, second)
        .await;
    if let Some((key, version)) = other {
        let still = store.get(&key).await.unwrap();
        assert_eq!(still.map(|stored| stored.version), Some(version));
    }
    contract.makes_what_is_missing().await;
    contract.takes_any_value_and_name(names).await;
}

struct Contract<'a> {
    store: &'a dyn SecretStore,
    token: SecretKey,
    /// A version that the store has never given.
    unknown: Version,
}

impl Contract<'_> {
    async fn put(&self, value: &str, expect: Expect) -> Result<Version> {
        self.store.put(&self.token, value.into(), expect).await
    }

    fn refuses<T: std::fmt::Debug>(&self, result: Result<T>) {
        let (store, error) = (self.store, result.unwrap_err());
        assert_eq!(error.kind(), ErrorKind::Conflict, "{store:?}: {error}");
        assert_eq!(error.retry(), Retry::Never);
        assert!(
            error.to_string().contains("default/token"),
            "{store:?}: {error}"
        );
    }

    async fn holds(&self, value: &[u8], version: &Version) {
        let stored = self.store.get(&self.token).await.unwrap().unwrap();
        assert_eq!((stored.value.expose(), &stored.version), (value, version));
    }

    async fn is_empty(&self) {
        assert_eq!(self.store.get(&self.token).await.unwrap(), None);
    }

    async fn is_created_once(&self) -> Version {
        self.is_empty().await;
        self.refuses(self.store.delete(&self.token, &self.unknown).await);
        self.refuses(self.put("x", Expect::Version(self.unknown.clone())).await);
        self.is_empty().await;

        let first = self.put("one", Expect::Absent).await.unwrap();
        self.holds(b"one", &first).await;
        self.refuses(self.put("two", Expect::Absent).await);
        self.refuses(self.put("one", Expect::Absent).await);
        first
    }

    async fn is_changed_by_who_knows_its_state(&self, first: &Version) -> Version {
        self.refuses(self.put("x", Expect::Version(self.unknown.clone())).await);
        let second = self
            .put("two", Expect::Version(first.clone()))
            .await
            .unwrap();
        assert_ne!(*first, second);
        self.refuses(self.put("three", Expect::Version(first.clone())).await);
        self.holds(b"two", &second).await;
        second
    }

    /// Returns the secret of another mesh, if there can be one of this name.
    async fn has_names_apart(
        &self,
        names: Names,
        second: &Version,
    ) -> Option<(SecretKey, Version)> {
        let foreign = SecretKey::new("other", "token").unwrap();
        assert_eq!(self.store.get(&key("tok")).await.unwrap(), None);
        assert_eq!(self.store.get(&key("token.old")).await.unwrap(), None);
        let other = match names {
            Names::OfEachMesh => {
                assert_eq!(self.store.get(&foreign).await.unwrap(), None);
                let put = self.store.put(&foreign, "other".into(), Expect::Absent);
                Some(put.await.unwrap())
            }
            Names::Shared => {
                // No caller takes it for "there is none, so I make one".
                let error = self.store.get(&foreign).await.unwrap_err();
                assert!(error.to_string().contains("default"), "{error}");
                let put = self.store.put(&foreign, "other".into(), Expect::Absent);
                put.await.unwrap_err();
                None
            }
        };
        self.holds(b"two", second).await;
        other.map(|version| (foreign, version))
    }

    async fn is_deleted_by_who_knows_its_state(&self, first: &Version, second: Version) {
        self.refuses(self.store.delete(&self.token, first).await);
        self.refuses(self.store.delete(&self.token, &self.unknown).await);
        self.store.delete(&self.token, &second).await.unwrap();
        self.is_empty().await;
        self.refuses(self.store.delete(&self.token, &second).await);
        self.refuses(self.put("x", Expect::Version(second)).await);
    }

    async fn makes_what_is_missing(&self) {
        let make = || Ok("made".into());
        let made = self.store.get_or_create(&self.token, make).await.unwrap();
        let none = || panic!("there is one");
        let found = self.store.get_or_create(&self.token, none).await.unwrap();
        assert_eq!(made, found);
        self.store.delete(&self.token, &made.version).await.unwrap();

        // A value that cannot be made is not stored.
        let failed = || Err(Error::new(ErrorKind::Unavailable, "no entropy"));
        let error = self
            .store
            .get_or_create(&self.token, failed)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        self.is_empty().await;
    }

    async fn takes_any_value_and_name(&self, names: Names) {
        let store = self.store;
        for (name, value) in [
            ("bytes", (0..=255).collect()),
            ("none", Vec::new()),
            ("many", vec![0; MAX_SECRET_SIZE]),
        ] {
            let (key, value) = (key(name), SecretValue::new(value));
            let put = store.put(&key, value.clone(), Expect::Absent);
            put.await.unwrap();
            let stored = store.get(&key).await.unwrap().unwrap();
            assert_eq!(stored.value, value, "{name}");
        }
        let too_many = SecretValue::new(vec![0; MAX_SECRET_SIZE + 1]);
        let error = store
            .put(&self.token, too_many, Expect::Absent)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        self.is_empty().await;

        // The longest names.
        let mesh = match names {
            Names::OfEachMesh => "m".repeat(253),
            Names::Shared => "default".to_owned(),
        };
        let longest = SecretKey::new(mesh, "n".repeat(253)).unwrap();
        store
            .put(&longest, "x".into(), Expect::Absent)
            .await
            .unwrap();
        assert!(store.get(&longest).await.unwrap().is_some());
    }
}
