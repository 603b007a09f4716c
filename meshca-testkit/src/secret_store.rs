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
use meshca_core::{Error, ErrorKind, Retry};

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
    let conflict = |error: Error| {
        assert_eq!(error.kind(), ErrorKind::Conflict, "{store:?}: {error}");
        assert_eq!(error.retry(), Retry::Never);
        assert!(
            error.to_string().contains("default/token"),
            "{store:?}: {error}"
        );
    };
    let token = key("token");
    let unknown = Version::new("unknown");

    // Nothing is there.
    assert_eq!(store.get(&token).await.unwrap(), None);
    conflict(store.delete(&token, &unknown).await.unwrap_err());
    let put = store.put(&token, "x".into(), Expect::Version(unknown.clone()));
    conflict(put.await.unwrap_err());
    assert_eq!(store.get(&token).await.unwrap(), None);

    // It is created, once.
    let first = store
        .put(&token, "one".into(), Expect::Absent)
        .await
        .unwrap();
    let stored = store.get(&token).await.unwrap().unwrap();
    assert_eq!(
        (stored.value.expose(), &stored.version),
        (&b"one"[..], &first)
    );
    conflict(
        store
            .put(&token, "two".into(), Expect::Absent)
            .await
            .unwrap_err(),
    );
    conflict(
        store
            .put(&token, "one".into(), Expect::Absent)
            .await
            .unwrap_err(),
    );

    // It is changed by whoever knows its state.
    let put = store.put(&token, "x".into(), Expect::Version(unknown.clone()));
    conflict(put.await.unwrap_err());
    let second = store
        .put(&token, "two".into(), Expect::Version(first.clone()))
        .await
        .unwrap();
    assert_ne!(first, second);
    let put = store.put(&token, "three".into(), Expect::Version(first.clone()));
    conflict(put.await.unwrap_err());
    let stored = store.get(&token).await.unwrap().unwrap();
    assert_eq!(
        (stored.value.expose(), &stored.version),
        (&b"two"[..], &second)
    );

    // Meshes and names are apart.
    let foreign = SecretKey::new("other", "token").unwrap();
    assert_eq!(store.get(&key("tok")).await.unwrap(), None);
    assert_eq!(store.get(&key("token.old")).await.unwrap(), None);
    let other = match names {
        Names::OfEachMesh => {
            assert_eq!(store.get(&foreign).await.unwrap(), None);
            let put = store.put(&foreign, "other".into(), Expect::Absent);
            Some(put.await.unwrap())
        }
        Names::Shared => {
            // Nobody takes it for "there is none, so I make one".
            let error = store.get(&foreign).await.unwrap_err();
            assert!(error.to_string().contains("default"), "{error}");
            let put = store.put(&foreign, "other".into(), Expect::Absent);
            put.await.unwrap_err();
            None
        }
    };
    let stored = store.get(&token).await.unwrap().unwrap();
    assert_eq!(
        (stored.value.expose(), &stored.version),
        (&b"two"[..], &second)
    );

    // It is deleted by whoever knows its state, and can be created again.
    conflict(store.delete(&token, &first).await.unwrap_err());
    conflict(store.delete(&token, &unknown).await.unwrap_err());
    store.delete(&token, &second).await.unwrap();
    assert_eq!(store.get(&token).await.unwrap(), None);
    conflict(store.delete(&token, &second).await.unwrap_err());
    conflict(
        store
            .put(&token, "x".into(), Expect::Version(second))
            .await
            .unwrap_err(),
    );
    if other.is_some() {
        let still = store.get(&foreign).await.unwrap();
        assert_eq!(still.map(|it| it.version), other);
    }
    let made = store
        .get_or_create(&token, || Ok("made".into()))
        .await
        .unwrap();
    let found = store
        .get_or_create(&token, || panic!("there is one"))
        .await
        .unwrap();
    assert_eq!(made, found);
    store.delete(&token, &made.version).await.unwrap();

    // A value that cannot be made is not stored.
    let failed = || Err(Error::new(ErrorKind::Unavailable, "no entropy"));
    let error = store.get_or_create(&token, failed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(store.get(&token).await.unwrap(), None);

    // Any bytes, none, and as many as are allowed.
    let bytes: Vec<u8> = (0..=255).collect();
    for (name, value) in [
        ("bytes", bytes),
        ("none", Vec::new()),
        ("many", vec![0; MAX_SECRET_SIZE]),
    ] {
        let value = SecretValue::new(value);
        store
            .put(&key(name), value.clone(), Expect::Absent)
            .await
            .unwrap();
        assert_eq!(
            store.get(&key(name)).await.unwrap().unwrap().value,
            value,
            "{name}"
        );
    }
    let too_many = SecretValue::new(vec![0; MAX_SECRET_SIZE + 1]);
    let error = store
        .put(&token, too_many, Expect::Absent)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert_eq!(store.get(&token).await.unwrap(), None);

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
