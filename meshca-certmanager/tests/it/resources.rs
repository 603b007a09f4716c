//! From what an operator wrote to a certificate from cert-manager.

#[test]
fn the_guide_has_the_rights_that_the_tests_act_with() {
    let rbac = include_str!("../../../examples/resources/cert-manager/rbac.yaml");
    assert!(include_str!("../../GUIDE.md").contains(rbac));
}

mod certmanager {
    mod kube {
        use std::sync::Arc;
        use std::time::Duration;

        use meshca_certmanager::KubeSecretStore;
        use meshca_core::registry::{BackendConfig, BackendRegistry, BuildContext};
        use meshca_core::resource::{Mesh, MeshIdentity, Resource};
        use meshca_core::spiffe::Workload;
        use meshca_core::{
            Clock, ErrorKind, Expect, Issuer, IssuingCa, KeyType, Observation, SecretKey,
            SecretStore,
        };
        use meshca_testenv::servers::{CertManager, Kube};
        use meshca_testkit::pki::TestCa;

        use crate::common::*;
        use crate::needs;

        const SEED: &str = "type: Mesh
name: default
mtls:
  enabledBackend: cm-1
  backends:
  - name: cm-1
    type: cert-manager
    dpCert: {rotation: {expiration: 2h}, requestTimeout: 15s}
    conf: {issuerName: mesh-ca, issuerKind: Issuer}
";
        const PRODUCT: &str = "type: Mesh
name: default
mtls:
  enabledBackend: cm-1
  backends:
  - name: cm-1
    type: certmanager
    conf:
      issuerRef: {name: mesh-ca, kind: Issuer, group: cert-manager.io}
      caCert: {secret: mesh-ca-root}
      commonName: '{{ tag \"kuma.io/service\" }}.mesh'
      dnsNames: ['{{ tag \"kuma.io/service\" }}.shop.svc']
";

        fn mesh(text: &str) -> Mesh {
            match Resource::parse(text).unwrap().into_iter().next().unwrap() {
                Resource::Mesh(mesh) => mesh,
                _ => panic!("a Mesh"),
            }
        }

        fn identity(mode: &str) -> MeshIdentity {
            let text = format!(
                "apiVersion: kuma.io/v1alpha1
kind: MeshIdentity
metadata: {{name: identity, namespace: {NAMESPACE}, labels: {{kuma.io/mesh: default}}}}
spec:
  selector: {{dataplane: {{matchLabels: {{}}}}}}
  spiffeID: {{trustDomain: example.org}}
  provider:
    type: Extension
    extension:
      name: certmanager
      config: {{mode: {mode}, issuerRef: {{name: mesh-ca}}, caCert: {{secret: mesh-ca-root}}}}
"
            );
            match Resource::parse(&text).unwrap().into_iter().next().unwrap() {
                Resource::MeshIdentity(identity) => identity,
                _ => panic!("a MeshIdentity"),
            }
        }

        /// Everything as a control plane on Kubernetes has it: its secrets are there as well.
        #[tokio::test(flavor = "multi_thread")]
        async fn both_models_with_secrets_in_kubernetes() {
            needs!();
            let kube = Kube::start().await.unwrap();
            let cert_manager = CertManager::start(&kube).await.unwrap();
            set_up(&kube).await;
            let root = TestCa::root("Example root", clock().now()).unwrap();
            ca_secret(&kube, NAMESPACE, &root).await;
            issuer_object(&kube, "Issuer").await;
            let client = client(&kube).await;
            let secrets = Arc::new(KubeSecretStore::new(client.clone(), NAMESPACE));
            let key = SecretKey::new("default", "mesh-ca-root").unwrap();
            let pem = root.pem().as_str().into();
            secrets.put(&key, pem, Expect::Absent).await.unwrap();
            let context = BuildContext::new("default", domain(), secrets.clone(), clock());
            let registry = BackendRegistry::new().with(meshca_certmanager::factory(
                client.clone(),
                NAMESPACE,
                "replica-1",
            ));
            let workload = Workload::new()
                .with_tag("kuma.io/service", "cart")
                .with_tag("version", "2");

            for (text, further) in [(SEED, false), (PRODUCT, true)] {
                let mesh = mesh(text);
                let backend = BackendConfig::classic(mesh.enabled_backend().unwrap());
                let issuer =
                    IssuingCa::new(registry.build(&backend, &context).await.unwrap().issuer);
                let report = issuer.check().await.unwrap();
                assert_eq!(report.warnings.is_empty(), further, "{:?}", report.warnings);
                let spec = backend.certificate_spec(id(), &workload).unwrap();
                let identity = issuer.issue(&spec, &*clock()).await.unwrap();
                let certificate = identity.certificate();
                assert_eq!(*certificate.spiffe_id(), id());
                let parsed = x509(&certificate.chain()[0]);
                for name in ["kuma://version/2", "kuma://kuma.io/service/cart"] {
                    assert!(parsed.contains(name), "{parsed}");
                }
                assert_eq!(parsed.contains("cart.shop.svc"), further, "{parsed}");
                assert_eq!(parsed.contains("cart.mesh"), further, "{parsed}");
                let longer = certificate.observations().iter().any(|seen| {
                    matches!(seen, Observation::LongerLifetime { granted, .. }
                        if *granted > Duration::from_secs(89 * 24 * 3600))
                });
                // Where `dpCert` says nothing, the issuer decides, and that is reported.
                assert_eq!(longer, further, "{:?}", certificate.observations());
            }

            for (mode, chain) in [("Leaf", 1), ("Intermediate", 2)] {
                let config = BackendConfig::modern(&identity(mode)).unwrap();
                let issuer =
                    IssuingCa::new(registry.build(&config, &context).await.unwrap().issuer);
                issuer.check().await.unwrap();
                let spec = config.certificate_spec(id(), &workload).unwrap();
                assert_eq!(spec.key_type(), KeyType::P256);
                let identity = issuer.issue(&spec, &*clock()).await.unwrap();
                assert_eq!(identity.certificate().chain().len(), chain, "{mode}");
                assert_eq!(identity.certificate().root().subject(), "CN=Example root");
            }

            // What the factory is not for, and a secret that is not there.
            let builtin = mesh(
                &SEED
                    .replace("cert-manager", "builtin")
                    .replace("    conf: {issuerName: mesh-ca, issuerKind: Issuer}\n", ""),
            );
            let backend = BackendConfig::classic(builtin.enabled_backend().unwrap());
            let factory = meshca_certmanager::factory(client, NAMESPACE, "replica-1");
            let error = meshca_core::IssuerFactory::build(&factory, &backend, &context)
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
            let gone = mesh(&PRODUCT.replace("mesh-ca-root", "gone"));
            let backend = BackendConfig::classic(gone.enabled_backend().unwrap());
            let issuer = registry.build(&backend, &context).await.unwrap().issuer;
            for error in [
                issuer.trust_bundle().await.unwrap_err(),
                issuer.check().await.unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
                assert!(error.to_string().contains("caCert"), "{error}");
            }
            // The wrong name of an issuer, for those who do not check.
            let unknown = mesh(&SEED.replace("mesh-ca", "gone").replace("15s", "2s"));
            let backend = BackendConfig::classic(unknown.enabled_backend().unwrap());
            let issuer = IssuingCa::new(registry.build(&backend, &context).await.unwrap().issuer);
            let spec = backend.certificate_spec(id(), &workload).unwrap();
            let error = issuer.issue(&spec, &*clock()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            assert!(error.to_string().contains("correct `issuerRef`"), "{error}");
            drop(cert_manager);
        }

        /// What is readable in a certificate, for looking for names.
        fn x509(der: &[u8]) -> String {
            String::from_utf8_lossy(der).into_owned()
        }
    }
}
