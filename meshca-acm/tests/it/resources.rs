//! From what an operator wrote to a certificate from AWS Private CA.

mod moto {
    use std::sync::Arc;

    use meshca_core::registry::{BackendConfig, BackendRegistry, BuildContext};
    use meshca_core::resource::{Mesh, MeshIdentity, Resource};
    use meshca_core::spiffe::Workload;
    use meshca_core::{
        ErrorKind, Expect, IssuerFactory, IssuingCa, MemorySecretStore, SecretKey, SecretStore,
    };
    use meshca_testenv::servers::{Aws, AwsCaOptions};
    use serde_json::Value;

    use crate::common::*;
    use crate::needs;

    fn parse(text: &str) -> Resource {
        Resource::parse(text).unwrap().into_iter().next().unwrap()
    }

    fn mesh(text: &str) -> Mesh {
        match parse(text) {
            Resource::Mesh(mesh) => mesh,
            _ => panic!("a Mesh"),
        }
    }

    fn seed(arn: &str) -> String {
        format!(
            "type: Mesh
name: default
mtls:
  enabledBackend: aws-1
  backends:
  - name: aws-1
    type: acm
    dpCert: {{rotation: {{expiration: 2h}}, requestTimeout: 15s}}
    acm:
      arn: {arn}
      auth: {{awsCredentials: {{accessKey: {{secret: aws-access-key}}, accessKeySecret: {{secret: aws-secret-key}}}}}}
"
        )
    }

    fn product(arn: &str) -> String {
        seed(arn).replace("type: acm\n", "type: acmpca\n").replace(
            "    acm:\n",
            "    conf:\n      commonName: '{{ tag \"kuma.io/service\" }}.mesh'\n",
        )
    }

    fn identity(arn: &str, mode: &str) -> MeshIdentity {
        let text = format!(
            "type: MeshIdentity
name: identity
mesh: default
spec:
  selector: {{dataplane: {{matchLabels: {{}}}}}}
  provider:
    type: Extension
    extension:
      name: acmpca
      config:
        mode: {mode}
        arn: {arn}
        auth: {{awsCredentials: {{accessKey: {{secret: aws-access-key}}, accessKeySecret: {{secret: aws-secret-key}}}}}}
"
        );
        match parse(&text) {
            Resource::MeshIdentity(identity) => identity,
            _ => panic!("a MeshIdentity"),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn both_models_in_both_dialects() {
        needs!();
        let aws = Aws::start().await.unwrap();
        let arn = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        let store = Arc::new(MemorySecretStore::new());
        for (name, value) in [("aws-access-key", "AKIA"), ("aws-secret-key", "secret")] {
            let key = SecretKey::new("default", name).unwrap();
            store.put(&key, value.into(), Expect::Absent).await.unwrap();
        }
        let context = BuildContext::new("default", domain(), store, clock());
        let factory = || {
            meshca_acm::factory()
                .with_endpoint(aws.address())
                .with_fleet(1_000_000)
        };
        let registry = BackendRegistry::new().with(factory());
        let workload = Workload::new()
            .with_tag("kuma.io/service", "cart")
            .with_tag("version", "2");
        for text in [seed(&arn), product(&arn)] {
            let mesh = mesh(&text);
            let backend = BackendConfig::classic(mesh.enabled_backend().unwrap());
            let issuer = IssuingCa::new(registry.build(&backend, &context).await.unwrap().issuer);
            let warnings = issuer.check().await.unwrap().warnings;
            assert!(warnings[0].contains("1000000 workloads"), "{warnings:?}");
            let spec = backend.certificate_spec(id(), &workload).unwrap();
            let identity = issuer.issue(&spec, &*clock()).await.unwrap();
            assert_eq!(*identity.spiffe_id(), id());
            let der = String::from_utf8_lossy(&identity.certificate().chain()[0]).into_owned();
            assert!(der.contains("kuma://version/2"), "{der}");
            assert_eq!(
                der.contains("cart.mesh"),
                text.contains("commonName"),
                "{der}"
            );
        }
        for (mode, chain) in [("Leaf", 1), ("Intermediate", 2)] {
            let config = BackendConfig::modern(&identity(&arn, mode)).unwrap();
            let issuer = IssuingCa::new(registry.build(&config, &context).await.unwrap().issuer);
            let warnings = issuer.check().await.unwrap().warnings;
            assert_eq!(warnings.is_empty(), mode == "Intermediate", "{warnings:?}");
            let spec = config.certificate_spec(id(), &workload).unwrap();
            let identity = issuer.issue(&spec, &*clock()).await.unwrap();
            assert_eq!(identity.certificate().chain().len(), chain, "{mode}");
        }
        let builtin = mesh(
            "type: Mesh\nname: default\nmtls: {enabledBackend: a, backends: [{name: a, type: builtin}]}\n",
        );
        let backend = BackendConfig::classic(builtin.enabled_backend().unwrap());
        let error = factory().build(&backend, &context).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    }

    /// The blocks of the guide in this language.
    fn blocks(language: &str) -> Vec<&'static str> {
        let mut parts = include_str!("../../GUIDE.md").split("\n```");
        parts.next();
        let blocks = parts.step_by(2);
        blocks
            .filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'))
            .collect()
    }

    #[test]
    fn the_documents_of_the_guide() {
        let documents = blocks("yaml");
        let documents = documents.iter().filter(|block| block.starts_with("type:"));
        let mut types = Vec::new();
        for document in documents {
            let parsed = Resource::parse(*document).unwrap();
            assert_eq!(parsed.warnings().to_string(), "", "{document}");
            types.extend(parsed.into_iter().map(|it| it.kind()));
        }
        assert_eq!(types, ["Mesh", "MeshIdentity"]);
    }

    /// A condition on the template denies whatever has none.
    #[test]
    fn the_policies_of_the_guide() {
        let mut conditions = 0;
        for block in blocks("json") {
            let policy: Value = serde_json::from_str(block).unwrap();
            let statements = policy["Statement"].as_array().unwrap();
            let mut actions = Vec::new();
            for statement in statements {
                let named = &statement["Action"];
                let named = match named.as_array() {
                    Some(all) => all.clone(),
                    None => vec![named.clone()],
                };
                if statement.get("Condition").is_some() {
                    conditions += 1;
                    assert_eq!(named, ["acm-pca:IssueCertificate"]);
                }
                actions.extend(named.iter().map(|it| it.as_str().unwrap().to_owned()));
            }
            actions.sort();
            assert_eq!(
                actions,
                [
                    "acm-pca:DescribeCertificateAuthority",
                    "acm-pca:GetCertificate",
                    "acm-pca:GetCertificateAuthorityCertificate",
                    "acm-pca:IssueCertificate",
                ]
            );
        }
        assert_eq!(conditions, 1);
    }

    #[test]
    fn arns_are_judged_where_they_are_written() {
        let error = Resource::parse(seed("arn:aws:acm:eu-central-1:1:certificate/1")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("10:12") && text.contains("is not the ARN of a CA"),
            "{text}"
        );
        for odd in [
            "arn:aws:acm-pca:eu central-1:123456789012:certificate-authority/0a1b2c3d",
            "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/0a1b2c3d-…",
            "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/a/certificate/b",
        ] {
            let text = Resource::parse(seed(odd)).unwrap_err().to_string();
            assert!(
                text.contains("10:12") && text.contains("is not the ARN of a CA"),
                "{text}"
            );
        }
        // The seed's own, which stands for one.
        let placeholder = "arn:aws:acm-pca:region:account:certificate-authority/id";
        let placeholder = mesh(&seed(placeholder));
        let backend = placeholder.enabled_backend().unwrap();
        assert_eq!(backend.provider.type_name(), "acmpca");
    }
}
