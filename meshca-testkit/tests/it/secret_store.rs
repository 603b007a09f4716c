//! The stores of meshca-core keep the contract.

use std::sync::Arc;

use meshca_core::{DirSecretStore, MemorySecretStore, SecretStore};
use meshca_testkit::secret_store::{Names, assert_contract};

#[tokio::test]
async fn memory() {
    assert_contract(&MemorySecretStore::new(), Names::OfEachMesh).await;
    let shared: Arc<dyn SecretStore> = Arc::new(MemorySecretStore::new());
    assert_contract(&shared, Names::OfEachMesh).await;
}

#[tokio::test]
async fn folder() {
    let temp = tempfile::tempdir().unwrap();
    let store = DirSecretStore::open(temp.path().join("secrets")).unwrap();
    assert_contract(&store, Names::OfEachMesh).await;
}
