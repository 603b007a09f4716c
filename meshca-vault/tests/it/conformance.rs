//! Vault keeps the contract: with every kind of CA, by every way to log in.

mod vault {
    use std::sync::Arc;
    use std::time::Duration;

    use async_trait::async_trait;
    use meshca_core::builtin::{DelegatedIssuer, DelegatedSecrets, DelegatedSettings};
    use meshca_core::resource::{
        AppRoleAuth, DataSource, KubernetesAuth, TlsAuth, VaultAuth, VaultConf, VaultTls,
    };
    use meshca_core::{
        CertificateRequest, CertificateSpec, Clock, ErrorKind, Issuer, KeyType, PrivateKey, Result,
        SpiffeId, TrustBundle,
    };
    use meshca_testenv::servers::{Vault, VaultOptions};
    use meshca_testkit::conformance::{self, Rotation, Subject};
    use meshca_vault::VaultSettings;
    use serde_json::json;

    use crate::common::*;
    use meshca_testenv::needs;

    /// `name`: of the report, which `cargo xtask test` has kept.
    async fn prove(
        name: &str,
        vault: &Vault,
        issuer: &dyn Issuer,
        rotation: Option<&dyn Rotation>,
    ) {
        let clock = clock();
        let elsewhere = SpiffeId::new("spiffe://example.com/ns/shop/sa/cart").unwrap();
        let mut subject = rsa_keys()
            .iter()
            .fold(Subject::new(issuer, &*clock, id()), Subject::with_key)
            .with_server(format!("Vault {}", vault.version()))
            .with_refusal(CertificateSpec::workload(elsewhere), ErrorKind::Denied);
        if issuer.capabilities().max_lifetime().is_none() {
            // The role's word; a delegated CA has no roles.
            let refused = CertificateSpec::workload(id()).with_common_name("other.example.net");
            subject = subject.with_refusal(refused, ErrorKind::Denied);
        }
        if let Some(rotation) = rotation {
            subject = subject.with_rotation(rotation);
        }
        let report = conformance::run_all(&subject).await;
        println!("{report}");
        if let Some(folder) = std::env::var_os("MESHCA_CONFORMANCE_REPORTS") {
            report.save(folder, &format!("vault-{name}")).unwrap();
        }
        report.assert_passed();
    }

    /// As operators replace a root in one mount: the next one first, then as the default.
    struct NextRoot<'a>(&'a Vault);

    #[async_trait]
    impl Rotation for NextRoot<'_> {
        async fn prepare(&self) -> Result<()> {
            let root = json!({"common_name": "Next root", "issuer_name": "next", "key_type": "ec", "ttl": "87600h"});
            self.0
                .write("pki/root/rotate/internal", root)
                .await
                .unwrap();
            Ok(())
        }

        async fn activate(&self) -> Result<()> {
            self.0
                .write("pki/root/replace", json!({"default": "next"}))
                .await
                .unwrap();
            Ok(())
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn with_a_root_of_each_kind_of_key() {
        needs!(Vault::program());
        for key_type in ["ec", "rsa", "ed25519"] {
            let vault = Vault::start().await.unwrap();
            set_up(&vault, key_type).await;
            let issuer = with_token(&vault).await;
            prove(
                &format!("root-{key_type}"),
                &vault,
                &*issuer,
                Some(&NextRoot(&vault)),
            )
            .await;
        }
    }

    /// A mount whose CA is an intermediate under the root of another mount; the root's certificate.
    async fn set_up_intermediate(vault: &Vault, key_type: &str) -> String {
        mount(vault, "root").await;
        mount(vault, "pki").await;
        let root = json!({"common_name": "Offline root", "key_type": key_type, "ttl": "87600h"});
        let root = vault
            .write("root/root/generate/internal", root)
            .await
            .unwrap();
        let csr = json!({"common_name": "Issuing CA", "key_type": key_type});
        let csr = vault
            .write("pki/intermediate/generate/internal", csr)
            .await
            .unwrap();
        let signed =
            json!({"csr": csr["data"]["csr"], "common_name": "Issuing CA", "ttl": "43800h"});
        let signed = vault
            .write("root/root/sign-intermediate", signed)
            .await
            .unwrap();
        let certificate = json!({"certificate": signed["data"]["certificate"]});
        vault
            .write("pki/intermediate/set-signed", certificate)
            .await
            .unwrap();
        roles(vault).await;
        root["data"]["certificate"].as_str().unwrap().to_owned()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn with_an_intermediate_whose_root_is_imported() {
        needs!(Vault::program());
        for key_type in ["ec", "rsa", "ed25519"] {
            let vault = Vault::start().await.unwrap();
            let root = set_up_intermediate(&vault, key_type).await;
            let issuer = with_token(&vault).await;

            // It is a CA without it, for peers that have the root from elsewhere.
            let named = issuer.trust_bundle().await.unwrap();
            let named: Vec<_> = named.roots().iter().map(|it| it.subject()).collect();
            assert_eq!(named, ["CN=Issuing CA"]);
            let report = issuer.check().await.unwrap();
            let text = report.warnings.join("\n");
            assert!(text.contains("intermediate CA `CN=Issuing CA`"), "{text}");
            assert!(
                text.contains("vault write pki/issuers/import/cert pem_bundle=@root.pem"),
                "{text}"
            );
            let error = issuer.issue(&spec(), &*clock()).await.unwrap_err();
            assert!(error.to_string().contains("is an intermediate"), "{error}");
            let peers = TrustBundle::from_pem(domain(), &root).unwrap();
            let issued = issuer.for_peers_with(peers).issue(&spec(), &*clock()).await;
            let root_of_peers = issued.unwrap().certificate().root().subject();
            assert_eq!(root_of_peers, "CN=Offline root");

            vault
                .write("pki/issuers/import/cert", json!({"pem_bundle": root}))
                .await
                .unwrap();
            prove(&format!("intermediate-{key_type}"), &vault, &*issuer, None).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn under_a_delegated_issuer() {
        needs!(Vault::program());
        for (name, below_a_root) in [("delegated-root", true), ("delegated-intermediate", false)] {
            let vault = Vault::start().await.unwrap();
            if below_a_root {
                set_up(&vault, "ec").await;
            } else {
                let root = set_up_intermediate(&vault, "ec").await;
                let root = json!({"pem_bundle": root});
                vault.write("pki/issuers/import/cert", root).await.unwrap();
            }
            let store = secrets(&[("vault-token", &token(&vault, json!({})).await)]).await;
            let settings = settings(vault.address(), token_auth()).with_intermediates(true);
            let upstream = bare(settings, &store);
            let issuer = DelegatedIssuer::load_or_create(
                DelegatedSettings::new(
                    domain(),
                    DelegatedSecrets::for_identity(MESH, "delegated").unwrap(),
                ),
                Arc::new(upstream),
                store,
                clock(),
            )
            .await
            .unwrap();
            prove(name, &vault, &issuer, None).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn with_an_app_role() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        vault
            .write("sys/auth/approle", json!({"type": "approle"}))
            .await
            .unwrap();
        let role = json!({"token_policies": "mesh", "token_ttl": "1h"});
        vault
            .write("auth/approle/role/control-plane", role)
            .await
            .unwrap();
        let role_id = vault
            .read("auth/approle/role/control-plane/role-id")
            .await
            .unwrap();
        let secret = vault
            .write("auth/approle/role/control-plane/secret-id", json!({}))
            .await
            .unwrap();
        let store = secrets(&[("secret-id", secret["data"]["secret_id"].as_str().unwrap())]).await;
        let auth = VaultAuth::AppRole(AppRoleAuth::new(
            role_id["data"]["role_id"].as_str().unwrap(),
            DataSource::Secret("secret-id".to_owned()),
        ));
        let issuer = issuer(settings(vault.address(), auth), &store);
        prove("approle", &vault, &*issuer, None).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn with_a_client_certificate_over_tls() {
        needs!(Vault::program());
        let vault = Vault::start_with(VaultOptions::new().with_tls())
            .await
            .unwrap();
        set_up(&vault, "ec").await;
        let ca = meshca_testkit::pki::TestCa::root("Clients", clock().now()).unwrap();
        let client = |spec: CertificateSpec| {
            let key = PrivateKey::generate(KeyType::P256).unwrap();
            let request = CertificateRequest::for_key(spec, &key, clock().now()).unwrap();
            let leaf = ca.sign(&request, clock().now()).unwrap();
            let key = key.expose_pem().unwrap();
            (
                meshca_testkit::pki::to_pem(&leaf),
                key.expose_str().unwrap().to_owned(),
            )
        };
        let (certificate, key) = client(spec().with_common_name("control-plane"));
        vault
            .write("sys/auth/cert", json!({"type": "cert"}))
            .await
            .unwrap();
        let accepted = json!({"certificate": ca.chain_pem(), "token_policies": "mesh"});
        vault
            .write("auth/cert/certs/control-plane", accepted)
            .await
            .unwrap();
        let store = secrets(&[
            ("client-cert", &certificate),
            ("client-key", &key),
            ("vault-ca", vault.ca_pem().unwrap()),
        ])
        .await;
        let secret = |name: &str| DataSource::Secret(name.to_owned());
        let auth = VaultAuth::Tls(TlsAuth::new(secret("client-key"), secret("client-cert")));
        let mut conf = VaultConf::new(vault.address(), ROLE, auth);
        let mut tls = VaultTls::default();
        tls.ca_cert = Some(secret("vault-ca"));
        conf.tls = Some(tls);
        let settings = VaultSettings::new(conf, domain());
        prove("tls", &vault, &*issuer(settings.clone(), &store), None).await;

        // Vault answers such a one with an internal error.
        let (certificate, key) = client(spec());
        put(&store, "client-cert", &certificate).await;
        put(&store, "client-key", &key).await;
        let error = issuer(settings, &store).check().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
        assert!(error.to_string().contains("needs a common name"), "{error}");
    }

    mod kube {
        use meshca_testenv::servers::Kube;

        use super::*;

        #[tokio::test(flavor = "multi_thread")]
        async fn with_a_service_account() {
            needs!(Vault::program(), Kube::programs());
            let (vault, kube) = tokio::join!(Vault::start(), Kube::start());
            let (vault, kube) = (vault.unwrap(), kube.unwrap());
            println!("Kubernetes {}", kube.version());
            set_up(&vault, "ec").await;
            kube.create_service_account("default", "control-plane")
                .await
                .unwrap();
            kube.create_service_account("default", "vault")
                .await
                .unwrap();
            let binding = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": "vault-reviews-tokens"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator"},
                "subjects": [{"kind": "ServiceAccount", "name": "vault", "namespace": "default"}],
            });
            kube.create(
                "apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
                binding,
            )
            .await
            .unwrap();
            let hour = Duration::from_secs(3600);
            let reviewer = kube.token_for("default", "vault", &[], hour).await.unwrap();
            let jwt = kube
                .token_for("default", "control-plane", &["vault"], hour)
                .await
                .unwrap();

            vault
                .write("sys/auth/kubernetes", json!({"type": "kubernetes"}))
                .await
                .unwrap();
            let config = json!({
                "kubernetes_host": kube.address(),
                "kubernetes_ca_cert": kube.ca_pem(),
                "token_reviewer_jwt": reviewer,
            });
            vault.write("auth/kubernetes/config", config).await.unwrap();
            let role = json!({
                "bound_service_account_names": "control-plane",
                "bound_service_account_namespaces": "default",
                "audience": "vault",
                "token_policies": "mesh",
            });
            vault
                .write("auth/kubernetes/role/control-plane", role)
                .await
                .unwrap();

            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("token");
            std::fs::write(&path, format!("{jwt}\n")).unwrap();
            let mut auth = KubernetesAuth::new("control-plane");
            auth.service_account_token_path = Some(path.clone());
            let settings = settings(vault.address(), VaultAuth::Kubernetes(auth.clone()));
            let store = secrets(&[]).await;
            prove(
                "kubernetes",
                &vault,
                &*issuer(settings.clone(), &store),
                None,
            )
            .await;

            // The token of somebody else.
            let other = kube
                .token_for("default", "vault", &["vault"], hour)
                .await
                .unwrap();
            std::fs::write(&path, other).unwrap();
            let error = issuer(settings, &store).check().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unauthenticated);
            let text = error.to_string();
            assert!(
                text.contains("does its role `control-plane` name this service account"),
                "{text}"
            );
        }
    }

    #[cfg(feature = "aws-auth")]
    mod moto {
        use meshca_core::resource::{AwsAuth, AwsAuthType};
        use meshca_testenv::servers::Moto;

        use super::*;

        #[tokio::test(flavor = "multi_thread")]
        async fn with_an_aws_identity() {
            needs!(Vault::program(), Moto::program());
            let (vault, moto) = tokio::join!(Vault::start(), Moto::start());
            let (vault, moto) = (vault.unwrap(), moto.unwrap());
            set_up(&vault, "ec").await;
            moto.form(
                "iam",
                "Action=CreateUser&UserName=control-plane&Version=2010-05-08",
            )
            .await
            .unwrap();
            let key = moto
                .form(
                    "iam",
                    "Action=CreateAccessKey&UserName=control-plane&Version=2010-05-08",
                )
                .await
                .unwrap();
            let part = |name: &str| {
                let (_, rest) = key.split_once(&format!("<{name}>")).unwrap();
                rest.split_once('<').unwrap().0.to_owned()
            };
            vault
                .write("sys/auth/aws-prod", json!({"type": "aws"}))
                .await
                .unwrap();
            let config = json!({
                "sts_endpoint": moto.address(),
                "iam_endpoint": moto.address(),
                "sts_region": "eu-central-1",
                "access_key": "vault",
                "secret_key": "vault",
                "iam_server_id_header_value": "vault.example.org",
            });
            vault
                .write("auth/aws-prod/config/client", config)
                .await
                .unwrap();
            let role = json!({
                "auth_type": "iam",
                "bound_iam_principal_arn": "arn:aws:iam::123456789012:user/control-plane",
                "resolve_aws_unique_ids": false,
                "token_policies": "mesh",
            });
            vault
                .write("auth/aws-prod/role/control-plane", role)
                .await
                .unwrap();

            let mut auth = AwsAuth::new(AwsAuthType::Iam);
            auth.role = Some("control-plane".to_owned());
            auth.iam_server_id_header = Some("vault.example.org".to_owned());
            auth.mount = Some("aws-prod".to_owned());
            auth.sts_region = Some("eu-central-1".to_owned());
            let log_in = |auth: &AwsAuth| {
                settings(vault.address(), VaultAuth::Aws(auth.clone())).with_aws_access_key(
                    part("AccessKeyId"),
                    part("SecretAccessKey").as_str().into(),
                    None,
                )
            };
            let store = secrets(&[]).await;
            prove("aws", &vault, &*issuer(log_in(&auth), &store), None).await;

            auth.iam_server_id_header = None;
            let error = issuer(log_in(&auth), &store).check().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unauthenticated);
            assert!(error.to_string().contains("iamServerIdHeader"), "{error}");
            assert!(
                !error.to_string().contains(&part("SecretAccessKey")),
                "{error}"
            );
        }
    }
}
