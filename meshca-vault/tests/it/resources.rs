//! From what an operator wrote to a certificate from Vault.

mod vault {
    use std::sync::Arc;

    use meshca_core::registry::{BackendConfig, BuildContext};
    use meshca_core::resource::{MeshIdentity, Resource};
    use meshca_core::spiffe::Workload;
    use meshca_core::{BackendRegistry, ErrorKind, Issuer, IssuingCa, MemorySecretStore};
    use meshca_testenv::servers::Vault;
    use serde_json::json;

    use crate::common::*;
    use meshca_testenv::needs;

    fn read(text: &str) -> Resource {
        Resource::parse(text).unwrap().into_iter().next().unwrap()
    }

    async fn build(config: &BackendConfig, store: &Arc<MemorySecretStore>) -> IssuingCa {
        let context = BuildContext::new(MESH, domain(), store.clone(), clock());
        let registry = BackendRegistry::new().with(meshca_vault::factory());
        IssuingCa::new(registry.build(config, &context).await.unwrap().issuer)
    }

    /// The settings of both models; what follows `auth:` is indented like this.
    fn settings(vault: &Vault) -> String {
        format!(
            "fromCp: {{address: '{}', role: mesh-dp, auth: {{token: {{secret: vault-token}}}}}}",
            vault.address()
        )
    }

    #[tokio::test]
    async fn a_backend_of_a_mesh() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let store = secrets(&[("vault-token", &token(&vault, json!({})).await)]).await;
        let Resource::Mesh(mesh) = read(&format!(
            "type: Mesh
name: default
mtls:
  enabledBackend: vault-1
  backends:
  - name: vault-1
    type: vault
    dpCert: {{rotation: {{expiration: 1h}}, requestTimeout: 5s}}
    conf: {{{}}}",
            settings(&vault)
        )) else {
            panic!("a Mesh")
        };
        let backend = BackendConfig::classic(mesh.enabled_backend().unwrap());
        let issuer = build(&backend, &store).await;
        issuer.check().await.unwrap();

        // Classic certificates carry the tags.
        let workload = Workload::new()
            .with_tag("kuma.io/service", "cart")
            .with_tag("version", "2");
        let spec = backend.certificate_spec(id(), &workload).unwrap();
        let identity = issuer.issue(&spec, &*clock()).await.unwrap();
        assert_eq!(*identity.spiffe_id(), id());

        let mut without_tags = role();
        without_tags["allowed_uri_sans"] = json!("spiffe://example.org/*");
        vault
            .write("pki/roles/mesh-dp", without_tags)
            .await
            .unwrap();
        // One that was signed with the role as it was counts, until the next check.
        issuer.check().await.unwrap();
        for error in [
            issuer.check().await.unwrap_err(),
            issuer.issue(&spec, &*clock()).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Denied);
            assert!(error.to_string().contains("`kuma://*`"), "{error}");
        }
    }

    #[tokio::test]
    async fn an_extension_that_signs_an_intermediate() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let store = secrets(&[("vault-token", &token(&vault, json!({})).await)]).await;
        let identity = |mode: &str| -> MeshIdentity {
            match read(&format!(
                "type: MeshIdentity
name: identity
mesh: default
spec:
  selector: {{dataplane: {{matchLabels: {{}}}}}}
  provider:
    type: Extension
    extension: {{name: vault, config: {{mode: {mode}, {}}}}}",
                settings(&vault)
            )) {
                Resource::MeshIdentity(identity) => identity,
                _ => panic!("a MeshIdentity"),
            }
        };
        for (mode, chain) in [("Leaf", 1), ("Intermediate", 2)] {
            let config = BackendConfig::modern(&identity(mode)).unwrap();
            let issuer = build(&config, &store).await;
            issuer.check().await.unwrap();
            let spec = config.certificate_spec(id(), &Workload::new()).unwrap();
            let identity = issuer.issue(&spec, &*clock()).await.unwrap();
            assert_eq!(identity.certificate().chain().len(), chain, "{mode}");
            assert_eq!(identity.certificate().root().subject(), "CN=Example root");
        }
    }
}
