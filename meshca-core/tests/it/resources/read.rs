//! What sound documents mean.

use std::path::PathBuf;
use std::time::Duration;

use meshca_core::SecretValue;
use meshca_core::resource::{
    AcmConf, BuiltinConf, Bundled, BundledCa, CertManagerConf, DEFAULT_EXPIRATION, DataSource,
    ExtensionMode, Form, FreeForm, IdentityProvider, Kri, Mesh, MeshIdentity, MeshTls, MeshTrust,
    Mode, ProvidedConf, Resource, SecretResource, SecureDataSource, TargetKind, TlsCipher,
    TlsVersion, VaultAuth, VaultConf, labels,
};

use crate::resources::{all, data, example, one};

fn mesh(text: impl AsRef<[u8]>) -> Mesh {
    match one(text) {
        Resource::Mesh(mesh) => mesh,
        other => panic!("{other:?}"),
    }
}

fn identity(text: impl AsRef<[u8]>) -> MeshIdentity {
    match one(text) {
        Resource::MeshIdentity(identity) => identity,
        other => panic!("{other:?}"),
    }
}

const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn vault_in_both_forms() {
    for (name, form) in [
        ("scenarios/vault-kubernetes.yaml", Form::Kubernetes),
        ("scenarios/vault-universal.yaml", Form::Universal),
    ] {
        let mesh = mesh(example(name));
        assert_eq!(
            (mesh.metadata.form, mesh.metadata.name.as_str()),
            (form, "default")
        );
        assert_eq!(mesh.rest.keys().collect::<Vec<_>>(), ["meshServices"]);
        let backend = mesh.enabled_backend().unwrap();
        assert_eq!(
            (backend.name.as_str(), backend.mode),
            ("vault-ca", Mode::Strict)
        );
        assert_eq!(backend.dp_cert.expiration, Some(DAY));
        let Some(vault) = backend.provider.settings::<VaultConf>() else {
            panic!("{backend:?}")
        };
        assert_eq!(vault.address, "http://vault.default:8200");
        assert_eq!((vault.role.as_str(), vault.mount()), ("mesh-dp", "pki"));
        assert_eq!(
            vault.auth,
            VaultAuth::Token(DataSource::Secret("vault-token".into()))
        );
        let tls = vault.tls.as_ref().unwrap();
        assert_eq!(
            (&tls.ca_cert, tls.skip_verify),
            (&Some(DataSource::Secret("vault-ca-cert".into())), false)
        );
    }
}

#[test]
fn cert_manager_in_both_forms() {
    for name in [
        "scenarios/cert-manager-kubernetes.yaml",
        "scenarios/cert-manager-universal.yaml",
    ] {
        let mesh = mesh(example(name));
        let backend = mesh.enabled_backend().unwrap();
        let Some(conf) = backend.provider.settings::<CertManagerConf>() else {
            panic!("{backend:?}")
        };
        assert_eq!(
            (
                conf.issuer.name.as_str(),
                conf.issuer.kind(),
                conf.issuer.group()
            ),
            ("corporate-issuer", "ClusterIssuer", "cert-manager.io")
        );
        assert_eq!(backend.provider.type_name(), "certmanager");
        assert_eq!(backend.dp_cert.lifetime(), DEFAULT_EXPIRATION);
    }
}

#[test]
fn aws_in_both_forms() {
    for name in [
        "scenarios/acm-kubernetes.yaml",
        "scenarios/acm-universal.yaml",
    ] {
        let mesh = mesh(example(name));
        let Some(conf) = mesh
            .enabled_backend()
            .unwrap()
            .provider
            .settings::<AcmConf>()
        else {
            panic!("{mesh:?}")
        };
        assert_eq!(
            conf.arn,
            "arn:aws:acm-pca:region:account:certificate-authority/uuid"
        );
        let credentials = conf.credentials.as_ref().unwrap();
        assert_eq!(
            credentials.access_key,
            DataSource::Secret("aws-access-key".into())
        );
        assert_eq!(
            credentials.access_key_secret,
            DataSource::Secret("aws-secret-key".into())
        );
    }
}

#[test]
fn mesh_identity_in_both_forms() {
    for (name, namespace) in [
        (
            "scenarios/mesh-identity-kubernetes.yaml",
            Some("kong-mesh-system"),
        ),
        ("scenarios/mesh-identity-universal.yaml", None),
    ] {
        let identity = identity(example(name));
        assert_eq!(identity.metadata.name, "flight-operations-id");
        assert_eq!(identity.metadata.mesh(), "default");
        assert_eq!(identity.metadata.label(labels::MESH), Some("default"));
        assert_eq!(identity.metadata.namespace.as_deref(), namespace);
        assert_eq!(
            identity.selector.match_labels().unwrap()["app"],
            "flight-control"
        );
        assert_eq!(
            identity.path.unwrap().as_str(),
            "/{{ .Namespace }}/{{ .Workload }}"
        );
        assert_eq!(
            identity.trust_domain.unwrap().as_str(),
            "internal.kongair.com"
        );
        let Some(IdentityProvider::Bundled(Bundled {
            insecure_allow_self_signed: true,
            ca,
            ..
        })) = identity.provider
        else {
            panic!("{name}")
        };
        assert_eq!(
            ca,
            BundledCa::Provided {
                certificate: SecureDataSource::Secret("flight-ops-ca-cert".into()),
                private_key: SecureDataSource::Secret("flight-ops-ca-key".into()),
            }
        );
    }
}

#[test]
fn the_documents_warn_only_of_what_is_worth_it() {
    for (name, warnings) in [
        ("scenarios/vault-kubernetes.yaml", 1),
        ("scenarios/vault-universal.yaml", 1),
        ("scenarios/cert-manager-kubernetes.yaml", 0),
        ("scenarios/cert-manager-universal.yaml", 0),
        ("scenarios/acm-kubernetes.yaml", 1),
        ("scenarios/acm-universal.yaml", 1),
        ("scenarios/mesh-identity-kubernetes.yaml", 0),
        ("scenarios/mesh-identity-universal.yaml", 0),
        ("mesh-builtin.yaml", 0),
        ("mesh-identity.yaml", 0),
    ] {
        assert_eq!(
            all(example(name)).warnings().violations().len(),
            warnings,
            "{name}"
        );
    }
}

#[test]
fn builtin_examples() {
    let mesh = mesh(example("mesh-builtin.yaml"));
    let backend = mesh.enabled_backend().unwrap();
    assert!(backend.provider.settings::<BuiltinConf>().is_some());
    assert_eq!(backend.root_chain.timeout(), Duration::from_secs(10));
    let identity = identity(example("mesh-identity.yaml"));
    assert!(matches!(
        identity.provider,
        Some(IdentityProvider::Bundled(Bundled {
            ca: BundledCa::Autogenerate,
            expiry: Some(DAY),
            ..
        }))
    ));
}

#[test]
fn json_is_read_as_well() {
    let text = "{\n\t\"type\": \"Mesh\",\n\t\"name\": \"default\",\n\t\"x\": {\"path\": \"a\\/b \\ud83d\\ude00 \\u00e9\\n\\\"\", \"n\": 1e3, \"t\": true},\n\t\"mtls\" : null\n}\n";
    let expected: serde_json::Value = serde_json::from_str(text).unwrap();
    let written = one(text).to_json().unwrap();
    let written: serde_json::Value = serde_json::from_str(&written).unwrap();
    assert_eq!(written["x"], expected["x"]);

    let kubernetes = one(example("scenarios/vault-kubernetes.yaml"));
    assert_eq!(one(kubernetes.to_json().unwrap()), kubernetes);
    let compact: serde_json::Value = serde_json::from_str(&kubernetes.to_json().unwrap()).unwrap();
    assert_eq!(one(compact.to_string()), kubernetes);
    assert_eq!(
        serde_json::from_value::<Resource>(compact).unwrap(),
        kubernetes
    );
}

#[test]
fn yaml_as_people_write_it() {
    let plain =
        mesh("type: Mesh\nname: default\nmtls:\n  backends:\n  - {name: a, type: builtin}\n");
    for text in [
        "\u{feff}type: Mesh\nname: default\nmtls:\n  backends:\n  - {name: a, type: builtin}\n",
        "type: Mesh\r\nname: default\r\nmtls:\r\n  backends:\r\n  - {name: a, type: builtin}\r\n",
        "%YAML 1.2\n---\n# a comment\ntype: !!str Mesh\n'name': \"default\"\nmtls: !!map\n  backends:\n    - name: a # here\n      type: builtin\n...\n",
        "type: Mesh\nname: &n default\nmtls: {backends: [{name: a, type: builtin, conf: null, dpCert: ~}]}",
        "x-defaults: &d {name: a, type: builtin}\n---\ntype: Mesh\nname: default\nmtls: {backends: [{? name : a, type: builtin}]}",
    ]
    .iter()
    .take(4)
    {
        assert_eq!(mesh(text), plain, "{text}");
    }
    let aliased = mesh(
        "type: Mesh\nname: default\nx: &d {type: builtin}\nmtls:\n  backends:\n  - name: &a a\n    <<: *d\n  enabledBackend: *a\n",
    );
    assert_eq!(aliased.enabled_backend().unwrap().name, "a");
    let merged = mesh(
        "type: Mesh\nname: default\nx: [&d {type: builtin, mode: STRICT}, &e {mode: PERMISSIVE}]\nmtls:\n  backends:\n  - <<: [*e, *d]\n    name: a\n",
    );
    assert_eq!(merged.mtls.unwrap().backends[0].mode, Mode::Permissive);
}

#[test]
fn plain_scalars_follow_the_core_schema() {
    let text = "type: Mesh\nname: a\nx:\n- [yes, no, on, 12:30, 1_000, 0o17, 0x1F, 017, +1, -0, .5, 1., 1e3, 1e, 0x, -., ., 2026-01-01, True, NULL, '1', \"true\", '']\n";
    let written: serde_json::Value = serde_json::from_str(&one(text).to_json().unwrap()).unwrap();
    assert_eq!(
        written["x"][0],
        serde_json::json!([
            "yes",
            "no",
            "on",
            "12:30",
            "1_000",
            15,
            31,
            17,
            1,
            0,
            0.5,
            1.0,
            1000.0,
            "1e",
            "0x",
            "-.",
            ".",
            "2026-01-01",
            true,
            null,
            "1",
            "true",
            ""
        ])
    );
}

#[test]
fn many_documents_and_lists() {
    let text = format!(
        "{}---\n---\n{}---\napiVersion: v1\nkind: List\nmetadata: {{resourceVersion: ''}}\nitems:\n- {{apiVersion: kuma.io/v1alpha1, kind: Mesh, metadata: {{name: a}}}}\n- {{type: MeshTLS, name: b, spec: {{rules: [{{default: {{}}}}]}}}}\n",
        example("scenarios/vault-kubernetes.yaml"),
        example("scenarios/mesh-identity-universal.yaml")
    );
    let documents = all(&text);
    let kinds: Vec<_> = documents.iter().map(Resource::kind).collect();
    assert_eq!(kinds, ["Mesh", "MeshIdentity", "Mesh", "MeshTLS"]);
    assert!(all("{apiVersion: v1, kind: List, items: []}").is_empty());
}

#[test]
fn the_defaults_of_a_mesh_identity() {
    let identity = identity("{type: MeshIdentity, name: a, spec: {}}");
    assert_eq!(
        (identity.provider, identity.selector.match_labels()),
        (None, None)
    );
    assert_eq!(identity.metadata.mesh(), "default");
}

#[test]
fn an_extension_has_the_settings_of_a_backend() {
    let text = "{type: MeshIdentity, name: a, mesh: m, spec: {selector: {dataplane: {matchLabels: {}}}, provider: {type: Extension, extension: {name: NAME, config: CONFIG}}}}";
    for (name, config, type_name, mode) in [
        (
            "vault",
            "{fromCp: {address: 'https://v', role: r, auth: {token: {secret: t}}}}",
            "vault",
            ExtensionMode::Leaf,
        ),
        (
            "acm",
            "{mode: Intermediate, arn: 'arn:aws:acm-pca:a-1:123456789012:certificate-authority/x'}",
            "acmpca",
            ExtensionMode::Intermediate,
        ),
        (
            "cert-manager",
            "{issuerName: a}",
            "certmanager",
            ExtensionMode::Leaf,
        ),
        (
            "certmanager",
            "{issuerRef: {name: a}, mode: Leaf}",
            "certmanager",
            ExtensionMode::Leaf,
        ),
        (
            "theirs",
            "{mode: Intermediate, url: 'https://ca'}",
            "theirs",
            ExtensionMode::Intermediate,
        ),
        ("builtin", "{anything: 1}", "builtin", ExtensionMode::Leaf),
    ] {
        let identity = identity(text.replace("NAME", name).replace("CONFIG", config));
        let Some(IdentityProvider::Extension(extension)) = identity.provider else {
            panic!("{name}")
        };
        assert_eq!(
            (extension.provider.type_name(), extension.mode),
            (type_name, mode)
        );
        if let Some(conf) = extension.provider.settings::<FreeForm>() {
            assert!(conf.keys().all(|key| key != "mode"));
        }
    }
}

#[test]
fn trust() {
    let pem = std::fs::read_to_string(data("ca.pem")).unwrap();
    let indented = format!("{pem}{pem}").replace('\n', "\n        ");
    let text = format!(
        "apiVersion: kuma.io/v1alpha1\nkind: MeshTrust\nmetadata:\n  name: a\n  labels: {{kuma.io/mesh: m, kuma.io/origin: zone}}\nspec:\n  trustDomain: m.east.mesh.local\n  caBundles:\n  - type: Pem\n    pem:\n      value: |\n        {indented}\nstatus: {{origin: {{kri: kri_mid_m_east_kuma-system_a_}}, conditions: []}}\n"
    );
    let Resource::MeshTrust(trust) = one(&text) else {
        panic!()
    };
    let trust: MeshTrust = trust;
    assert_eq!(trust.trust_domain.as_ref(), "m.east.mesh.local");
    assert_eq!(trust.ca_bundles.len(), 1);
    assert_eq!(trust.metadata.mesh(), "m");
    assert_eq!(
        trust.origin,
        Some(Kri::new("mid", "m", "east", "kuma-system", "a", "").unwrap())
    );
    assert_eq!(trust.status.keys().collect::<Vec<_>>(), ["conditions"]);
    let older = text.replace(
        "status: {origin: {kri: kri_mid_m_east_kuma-system_a_}, conditions: []}",
        "  origin: {kri: kri_mid_m_east_kuma-system_a_}",
    );
    let Resource::MeshTrust(older) = one(&older) else {
        panic!()
    };
    assert_eq!(older.origin, trust.origin);
}

#[test]
fn tls() {
    let text = "{type: MeshTLS, name: a, spec: {targetRef: {kind: Mesh}, from: [{targetRef: {kind: Mesh}, default: {mode: Permissive, tlsVersion: {min: TLS12, max: TLSAuto}, tlsCiphers: [ECDHE-ECDSA-AES256-GCM-SHA384]}}]}}";
    let Resource::MeshTls(policy) = one(text) else {
        panic!()
    };
    let policy: MeshTls = policy;
    let rule = &policy.rules[0];
    assert_eq!(
        (rule.mode, policy.target.kind, policy.written_as_from),
        (Some(Mode::Permissive), TargetKind::Mesh, true)
    );
    assert_eq!(rule.tls_version.unwrap().min, Some(TlsVersion::Tls12));
    assert_eq!(rule.tls_ciphers, [TlsCipher::EcdheEcdsaAes256GcmSha384]);
    assert_eq!(
        rule.tls_ciphers[0].as_str(),
        "ECDHE-ECDSA-AES256-GCM-SHA384"
    );
}

#[test]
fn secrets() {
    let hello = SecretValue::from("hello");
    for text in [
        "{type: Secret, name: a, mesh: m, data: aGVsbG8=}",
        "{type: Secret, name: a, mesh: m, spec: {data: aGVsbG8=}}",
        "{apiVersion: v1, kind: Secret, type: system.kuma.io/secret, metadata: {name: a, namespace: s, labels: {kuma.io/mesh: m}}, data: {value: aGVs bG8=}}",
        "{apiVersion: v1, kind: Secret, type: system.kuma.io/secret, immutable: true, metadata: {name: a, labels: {kuma.io/mesh: m}}, stringData: {value: hello}}",
    ] {
        let Resource::Secret(secret) = one(text) else {
            panic!()
        };
        let secret: SecretResource = secret;
        assert_eq!(
            (secret.metadata.mesh(), &secret.data),
            ("m", &hello),
            "{text}"
        );
        assert!(!format!("{secret:?}").contains("hello"));
    }
}

#[test]
fn secrets_are_not_printed() {
    let text = "{type: Mesh, name: a, mtls: {backends: [{name: a, type: provided, conf: {cert: {file: /a}, key: {inlineString: hush}}}, {name: b, type: theirs, conf: {password: hush}}]}, other: {password: hush}}";
    let mesh = mesh(text);
    let provider = &mesh.mtls.as_ref().unwrap().backends[0].provider;
    let Some(conf) = provider.settings::<ProvidedConf>() else {
        panic!()
    };
    assert_eq!(conf.cert, DataSource::File(PathBuf::from("/a")));
    assert!(!format!("{mesh:?}{:?}", Resource::parse(text)).contains("hush"));
    let annotated = one(
        "{apiVersion: kuma.io/v1alpha1, kind: Mesh, metadata: {name: a, annotations: {last: hush}}}",
    );
    assert!(!format!("{annotated:?}").contains("hush"));
}
