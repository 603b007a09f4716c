//! Identities as they are used: by real Envoys, which get them from the real server of secrets, issued by real CAs.

mod app;
mod control;
mod load;
mod messages;
mod migration;
mod sidecars;
mod stubborn;
mod world;

use meshca::{BackendRegistry, builtin};
use meshca_testenv::needs;
use meshca_testenv::servers::Envoy;

use crate::envoy::world::{Protocol, Transport};
use crate::issuers::bundled;

fn registry() -> BackendRegistry {
    BackendRegistry::new().with(builtin::factory())
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_speak_by_the_builtin_ca_over_tcp() {
    needs!(Envoy::program());
    sidecars::speak_with_each_other(
        registry(),
        &bundled(),
        Transport::Tcp,
        Protocol::StateOfTheWorld,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_speak_by_secrets_that_come_over_tls() {
    needs!(Envoy::program());
    sidecars::speak_with_each_other(registry(), &bundled(), Transport::Tls, Protocol::Delta).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_are_renewed_under_load() {
    needs!(Envoy::program());
    sidecars::are_renewed_under_load(registry()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_refuse_other_domains() {
    needs!(Envoy::program());
    sidecars::refuse_other_domains(registry()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_of_a_spire_user_takes_its_secrets_here() {
    needs!(Envoy::program());
    sidecars::take_spires_names(registry()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_with_ten_secrets_and_a_long_node_comes_without_a_refusal() {
    needs!(Envoy::program());
    sidecars::come_with_long_nodes(registry()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_mesh_changes_its_trust_domain() {
    needs!(Envoy::program());
    migration::carry_out(registry(), migration::to_another_domain()).await;
}

mod vault {
    use meshca::vault;
    use meshca_testenv::needs;
    use meshca_testenv::servers::{Envoy, Vault};

    use super::registry;
    use crate::envoy::world::{Protocol, Transport};
    use crate::envoy::{migration, sidecars};
    use crate::issuers::{vault_from_cp, vault_provider, vault_root, vault_signs_for};

    #[tokio::test(flavor = "multi_thread")]
    async fn sidecars_speak_by_vault() {
        needs!(Envoy::program(), Vault::program());
        let server = Vault::start().await.unwrap();
        sidecars::speak_with_each_other(
            registry().with(vault::factory()),
            &vault_provider(&server).await,
            Transport::Unix,
            Protocol::StateOfTheWorld,
        )
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_live_mesh_moves_from_the_builtin_ca_to_vault() {
        needs!(Envoy::program(), Vault::program());
        let server = Vault::start().await.unwrap();
        let provider = vault_provider(&server).await;
        let it = migration::to_vault(&provider, &vault_root(&server).await);
        migration::carry_out(registry().with(vault::factory()), it).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_live_mesh_goes_back_from_the_third_step() {
        go_back("live rollback from step 3", 3).await;
    }

    /// Everyone has a certificate of Vault already.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_live_mesh_goes_back_from_the_fourth_step() {
        go_back("live rollback from step 4", 4).await;
    }

    async fn go_back(name: &'static str, from: usize) {
        needs!(Envoy::program(), Vault::program());
        let server = Vault::start().await.unwrap();
        let provider = vault_provider(&server).await;
        vault_signs_for(&server, "6h").await;
        let root = vault_root(&server).await;
        let it = migration::there_and_back(name, &provider, &root, from);
        migration::carry_out(registry().with(vault::factory()), it).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_live_mesh_moves_to_another_classic_ca() {
        needs!(Envoy::program(), Vault::program());
        let server = Vault::start().await.unwrap();
        let it = migration::to_another_backend(&vault_from_cp(&server).await);
        migration::carry_out(registry().with(vault::factory()), it).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_live_mesh_moves_while_its_control_plane_is_restarted() {
        needs!(Envoy::program(), Vault::program());
        let server = Vault::start().await.unwrap();
        let it = migration::with_restarts(&vault_from_cp(&server).await);
        migration::carry_out(registry().with(vault::factory()), it).await;
    }
}

mod kube {
    mod certmanager {
        use meshca::certmanager;
        use meshca_testenv::needs;
        use meshca_testenv::servers::{CertManager, Envoy, Kube};

        use crate::envoy::registry;
        use crate::envoy::sidecars;
        use crate::envoy::world::{Protocol, Transport};
        use crate::issuers::{certmanager_provider, kube_client};

        #[tokio::test(flavor = "multi_thread")]
        async fn sidecars_speak_by_cert_manager() {
            needs!(
                Envoy::program(),
                Kube::programs().and_then(|_| CertManager::program())
            );
            let kube = Kube::start().await.unwrap();
            let _cert_manager = CertManager::start(&kube).await.unwrap();
            let client = kube_client(&kube).await;
            sidecars::speak_with_each_other(
                registry().with(certmanager::factory(client, "default", "test")),
                &certmanager_provider(&kube).await,
                Transport::Mounted,
                Protocol::Delta,
            )
            .await;
        }
    }
}

mod moto {
    use meshca::acm;
    use meshca_testenv::needs;
    use meshca_testenv::servers::{Aws, Envoy};

    use super::registry;
    use crate::envoy::sidecars;
    use crate::envoy::world::{Protocol, Transport};
    use crate::issuers::aws_provider;

    #[tokio::test(flavor = "multi_thread")]
    async fn sidecars_speak_by_aws() {
        needs!(Envoy::program(), Aws::program());
        let aws = Aws::start().await.unwrap();
        sidecars::speak_with_each_other(
            registry().with(acm::factory().with_endpoint(aws.address())),
            &aws_provider(&aws).await,
            Transport::Unix,
            Protocol::Delta,
        )
        .await;
    }
}
