//! What is written reads back as the same.

use std::time::Duration;

use meshca_core::SecretValue;
use meshca_core::resource::*;
use meshca_core::spiffe::{NameTemplate, PathTemplate, TrustDomain, TrustDomainTemplate};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use crate::resources::{data, example, one};

/// In either syntax and by way of serde.
#[track_caller]
fn reads_back(resource: &Resource) {
    let yaml = resource.to_yaml().unwrap();
    assert_eq!(one(&yaml), *resource, "{yaml}");
    let json = resource.to_json().unwrap();
    assert_eq!(one(&json), *resource, "{json}");
    assert_eq!(serde_json::from_str::<Resource>(&json).unwrap(), *resource);
    resource.validate().unwrap();
}

#[test]
fn a_whole_mesh_survives() {
    let text = std::fs::read_to_string(data("mesh-full.yaml")).unwrap();
    let mesh = one(&text);
    reads_back(&mesh);
    let json: serde_json::Value = serde_json::from_str(&mesh.to_json().unwrap()).unwrap();
    assert_eq!(
        json["spec"]["metrics"]["backends"][0]["conf"]["big"],
        u64::MAX
    );
    assert_eq!(
        json["spec"]["metrics"]["backends"][0]["conf"]["negative"],
        i64::MIN
    );
    assert_eq!(json["spec"]["tracing"]["backends"][0]["sampling"], 99.5);
    assert_eq!(json["metadata"]["generation"], 7);
    assert_eq!(
        json["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:mtls"],
        serde_json::json!({})
    );

    let universal = one(mesh.to_yaml_as(Form::Universal).unwrap());
    let (Resource::Mesh(mesh), Resource::Mesh(universal)) = (mesh, universal) else {
        panic!()
    };
    assert_eq!((&mesh.mtls, &mesh.rest), (&universal.mtls, &universal.rest));
    assert!(universal.metadata.rest.is_empty());
}

#[test]
fn the_dialect_is_kept() {
    for name in [
        "acm-kubernetes",
        "acm-universal",
        "cert-manager-kubernetes",
        "cert-manager-universal",
    ] {
        let text = example(&format!("scenarios/{name}.yaml"));
        let resource = one(&text);
        reads_back(&resource);
        let written = resource.to_yaml().unwrap();
        for spelling in [
            "type: acm",
            "acm:",
            "type: cert-manager",
            "certManager:",
            "issuerName:",
        ] {
            assert_eq!(
                text.contains(spelling),
                written.contains(spelling),
                "{spelling}: {written}"
            );
        }
    }
    for text in [
        "{type: Mesh, name: a, mtls: {backends: [{name: a, type: acm, conf: {arn: 'arn:aws:acm-pca:a-1:123456789012:certificate-authority/x'}}]}}",
        "{type: Mesh, name: a, mtls: {backends: [{name: a, type: certmanager, certManager: {issuerRef: {name: a}}}]}}",
        "{type: Mesh, name: a, mtls: {backends: [{name: a, type: cert-manager, conf: {issuerName: a}}]}}",
        "{type: MeshIdentity, name: a, spec: {provider: {type: Extension, extension: {name: cert-manager, config: {issuerName: a}}}}}",
    ] {
        reads_back(&one(text));
    }
}

#[test]
fn the_forms_convert() {
    for (from, to) in [
        (
            "scenarios/mesh-identity-kubernetes.yaml",
            "scenarios/mesh-identity-universal.yaml",
        ),
        (
            "scenarios/vault-kubernetes.yaml",
            "scenarios/vault-universal.yaml",
        ),
        (
            "scenarios/cert-manager-kubernetes.yaml",
            "scenarios/cert-manager-universal.yaml",
        ),
        (
            "scenarios/acm-kubernetes.yaml",
            "scenarios/acm-universal.yaml",
        ),
    ] {
        assert_eq!(
            one(one(example(from)).to_yaml_as(Form::Universal).unwrap()),
            one(example(to))
        );
        let kubernetes = one(one(example(to)).to_json_as(Form::Kubernetes).unwrap());
        assert_eq!(kubernetes.metadata().form, Form::Kubernetes);
        assert_eq!(
            kubernetes.metadata().mesh,
            one(example(from)).metadata().mesh
        );
    }
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?"
}

/// Texts that a careless writer would not put in quotes.
fn text() -> BoxedStrategy<String> {
    prop_oneof![
        "[a-zA-Z0-9/_.-]{1,20}",
        "\\PC{1,20}",
        "[ -~\n\t]{1,100}",
        prop::sample::select(vec![
            "true",
            "no",
            "null",
            "~",
            "1",
            "0x1F",
            "1e3",
            ".5",
            "-",
            "- a",
            "a: b",
            "#",
            "a #b",
            "{",
            "[a]",
            "*a",
            "&a",
            "!a",
            "|",
            ">",
            "%",
            "@",
            "`",
            "'",
            "\"",
            " a",
            "a ",
            "a\n",
            "\na",
            "\n",
            "\t",
            "---",
            "...",
            "<<",
            "=",
            "?",
            "2026-01-01",
            "\u{feff}a",
            "\u{85}",
            "\u{2028}",
            "a\r\nb",
            "\\",
            "y",
            "0o7",
            "1_000",
            "12:30:45",
            "\u{7f}",
            "a\u{0}b",
            "-----BEGIN X-----\nAAAA\n-----END X-----\n",
        ])
        .prop_map(str::to_owned),
    ]
    .prop_filter("no NUL", |text| !text.contains('\0'))
    .boxed()
}

fn labels() -> BoxedStrategy<std::collections::BTreeMap<String, String>> {
    btree_map(
        "[a-z]{1,8}(/[a-z]{1,8})?",
        prop_oneof![text(), Just(String::new())],
        0..4,
    )
    .boxed()
}

fn json(depth: u32) -> BoxedStrategy<serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        // Of few digits, since serde_json reads others inexactly.
        any::<i32>().prop_map(|number| (f64::from(number) / 256.0).into()),
        text().prop_map(Into::into),
        Just(serde_json::Value::from("")),
    ];
    leaf.prop_recursive(depth, 20, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Into::into),
            btree_map(text(), inner, 0..4)
                .prop_map(|fields| serde_json::Value::Object(fields.into_iter().collect())),
        ]
    })
    .boxed()
}

fn free_form(prefix: &'static str) -> BoxedStrategy<FreeForm> {
    btree_map("[a-z]{1,6}", json(3), 0..4)
        .prop_map(move |fields| {
            let fields: std::collections::BTreeMap<_, _> = fields
                .into_iter()
                .map(|(key, value)| (format!("{prefix}{key}"), value))
                .collect();
            FreeForm::from_serialize(&fields).unwrap()
        })
        .boxed()
}

/// A `Mesh` has no mesh; the others may name one.
fn metadata(in_mesh: bool) -> BoxedStrategy<Metadata> {
    (
        any::<bool>(),
        name(),
        option::of(name()),
        option::of(name()),
        labels(),
        labels(),
        any::<bool>(),
    )
        .prop_map(
            move |(kubernetes, name, mesh, namespace, labels, annotations, stored)| {
                let mut metadata = if kubernetes {
                    Metadata::kubernetes(name)
                } else {
                    Metadata::universal(name)
                };
                metadata.mesh = mesh.filter(|_| in_mesh);
                metadata.labels = labels;
                if kubernetes {
                    metadata.namespace = namespace.filter(|_| in_mesh);
                    metadata.annotations = annotations;
                }
                if stored {
                    let key = if kubernetes { "uid" } else { "creationTime" };
                    metadata.rest =
                        FreeForm::from_serialize(&serde_json::json!({ key: "x" })).unwrap();
                }
                metadata
            },
        )
        .boxed()
}

fn secret() -> BoxedStrategy<SecretValue> {
    text()
        .prop_map(|text| SecretValue::from(text.as_str()))
        .boxed()
}

fn source() -> BoxedStrategy<DataSource> {
    prop_oneof![
        text().prop_map(DataSource::Secret),
        text().prop_map(|path| DataSource::File(path.into())),
        vec(any::<u8>(), 1..40).prop_map(|bytes| DataSource::Inline(SecretValue::new(bytes))),
        secret().prop_map(DataSource::InlineString),
    ]
    .boxed()
}

fn secure_source() -> BoxedStrategy<SecureDataSource> {
    prop_oneof![
        "/[a-z]{1,8}/[a-z]{1,8}".prop_map(|path| SecureDataSource::File(path.into())),
        text().prop_map(SecureDataSource::Secret),
        "[A-Z_]{1,10}".prop_map(SecureDataSource::EnvVar),
        secret().prop_map(SecureDataSource::InsecureInline),
    ]
    .boxed()
}

fn common_name() -> BoxedStrategy<NameTemplate> {
    prop::sample::select(vec![
        r#"{{ tag "kuma.io/service" }}.mesh"#,
        r#"{{ tag "a" | replace "_" "-" }}"#,
        "fixed",
    ])
    .prop_map(|text| NameTemplate::parse(text).unwrap())
    .boxed()
}

fn vault() -> BoxedStrategy<VaultConf> {
    let auth = prop_oneof![
        source().prop_map(VaultAuth::Token),
        (source(), source()).prop_map(|(key, cert)| VaultAuth::Tls(TlsAuth::new(key, cert))),
        (any::<bool>(), option::of(text()), option::of(text())).prop_map(|(iam, role, header)| {
            let mut auth = AwsAuth::new(if iam {
                AwsAuthType::Iam
            } else {
                AwsAuthType::Ec2
            });
            (auth.role, auth.iam_server_id_header) = (role, header);
            VaultAuth::Aws(auth)
        }),
        (
            option::of(name()),
            option::of("[a-z]{2}-[a-z]+-[1-9]"),
            option::of(Just("vpc".to_owned()))
        )
            .prop_map(|(mount, region, endpoint)| {
                let mut auth = AwsAuth::new(AwsAuthType::Iam);
                (auth.mount, auth.sts_region, auth.sts_endpoint) = (mount, region, endpoint);
                VaultAuth::Aws(auth)
            }),
        (source(), option::of(text()), option::of(name())).prop_map(|(token, role, mount)| {
            let mut auth = JwtAuth::new(token);
            (auth.role, auth.mount) = (role, mount);
            VaultAuth::Jwt(auth)
        }),
        (text(), option::of(name()), option::of(text())).prop_map(|(role, mount, path)| {
            let mut auth = KubernetesAuth::new(role);
            (auth.mount, auth.service_account_token_path) = (mount, path.map(Into::into));
            VaultAuth::Kubernetes(auth)
        }),
        (text(), source(), option::of(name())).prop_map(|(role, secret, mount)| {
            let mut auth = AppRoleAuth::new(role, secret);
            auth.mount = mount;
            VaultAuth::AppRole(auth)
        }),
    ];
    let tls =
        (option::of(source()), any::<bool>(), option::of(text())).prop_map(|(ca, skip, name)| {
            let mut tls = VaultTls::default();
            (tls.ca_cert, tls.skip_verify, tls.server_name) = (ca, skip, name);
            tls
        });
    let options = (
        option::of("[a-z]{1,5}/[a-z]{1,5}"),
        option::of(name()),
        option::of(text()),
        option::of(common_name()),
    );
    let trust = prop_oneof![
        vec(name().prop_map(AlsoTrust::Issuer), 0..3).prop_map(|also| (also, None)),
        Just((
            vec![AlsoTrust::Pem(
                include_str!("../../data/root.pem").to_owned()
            )],
            None
        )),
        source().prop_map(|roots| (Vec::new(), Some(roots))),
    ];
    (name(), auth, option::of(tls), options, trust, any::<bool>())
        .prop_map(|(role, auth, tls, options, trust, agent)| {
            let mut vault = VaultConf::new("https://vault.example:8200", role, auth);
            (vault.also_trust, vault.ca_cert) = trust;
            vault.proxy = agent.then(|| "egress".to_owned());
            (vault.pki, vault.issuer, vault.namespace, vault.common_name) = options;
            vault.tls = tls;
            vault.agent_address = agent.then(|| "http://127.0.0.1:8100".to_owned());
            vault
        })
        .boxed()
}

fn acm() -> BoxedStrategy<AcmConf> {
    (
        option::of(common_name()),
        option::of(source()),
        option::of((source(), source())),
    )
        .prop_map(|(name, ca, credentials)| {
            let mut conf = AcmConf::new("arn:aws:acm-pca:a-1:123456789012:certificate-authority/x");
            (conf.common_name, conf.ca_cert) = (name, ca);
            conf.credentials = credentials.map(|(key, secret)| AwsCredentials::new(key, secret));
            conf
        })
        .boxed()
}

fn cert_manager() -> BoxedStrategy<CertManagerConf> {
    (
        text(),
        option::of(text()),
        option::of(text()),
        option::of(source()),
        option::of(common_name()),
        vec(common_name(), 0..3),
    )
        .prop_map(|(name, kind, group, ca, common_name, dns_names)| {
            let mut issuer = IssuerRef::new(name);
            (issuer.kind, issuer.group) = (kind, group);
            let mut conf = CertManagerConf::new(issuer);
            (conf.ca_cert, conf.common_name, conf.dns_names) = (ca, common_name, dns_names);
            conf
        })
        .boxed()
}

fn external() -> BoxedStrategy<(Provider, Dialect)> {
    prop_oneof![
        (vault().prop_map(Provider::new), Just(Dialect::default())),
        (acm().prop_map(Provider::new), Just(Dialect::default())),
        (
            cert_manager().prop_map(Provider::new),
            Just(Dialect::default())
        ),
        ("x[a-z]{6,9}", free_form("z"))
            .prop_map(|(name, conf)| (Provider::free_form(name, conf), Dialect::default())),
    ]
    .boxed()
}

fn millis() -> BoxedStrategy<Duration> {
    prop_oneof![
        1_u64..100_000_000_000,
        (1_u64..10_000).prop_map(|hours| hours * 3_600_000)
    ]
    .prop_map(Duration::from_millis)
    .boxed()
}

fn provider() -> BoxedStrategy<(Provider, Dialect)> {
    let builtin = (
        option::of(prop::sample::select(vec![2048, 3072, 4096])),
        option::of(millis()),
    )
        .prop_map(|(bits, expiration)| {
            let mut conf = BuiltinConf::default();
            (conf.rsa_bits, conf.expiration) = (bits, expiration);
            (Provider::new(conf), Dialect::default())
        });
    let provided = (source(), source()).prop_map(|(cert, key)| {
        (
            Provider::new(ProvidedConf::new(cert, key)),
            Dialect::default(),
        )
    });
    prop_oneof![
        builtin,
        provided,
        external(),
        (
            cert_manager().prop_map(Provider::new),
            Just(Dialect::NAMED_BLOCKS)
        ),
    ]
    .boxed()
}

fn mode() -> BoxedStrategy<Mode> {
    prop::sample::select(vec![Mode::Strict, Mode::Permissive]).boxed()
}

fn mesh() -> BoxedStrategy<Resource> {
    let backend = (
        provider(),
        mode(),
        millis(),
        option::of(millis()),
        option::of(millis()),
    )
        .prop_map(|((provider, dialect), mode, expiration, timeout, root)| {
            let mut backend = Backend::new("", provider);
            (backend.mode, backend.dialect) = (mode, dialect);
            backend.dp_cert.expiration = Some(expiration);
            backend.dp_cert.request_timeout = timeout;
            backend.root_chain.request_timeout = root;
            backend
        });
    let mtls = (
        vec(backend, 0..4),
        any::<bool>(),
        any::<prop::sample::Index>(),
    )
        .prop_map(|(mut backends, skip, enabled)| {
            for (index, backend) in backends.iter_mut().enumerate() {
                backend.name = format!("ca-{index}");
            }
            let mut mtls = Mtls::default();
            mtls.enabled_backend = (!backends.is_empty())
                .then(|| backends[enabled.index(backends.len())].name.clone());
            mtls.skip_validation = skip;
            mtls.backends = backends;
            mtls
        });
    (
        metadata(false),
        option::of(mtls),
        free_form("zz"),
        free_form(""),
    )
        .prop_map(|(metadata, mtls, rest, status)| {
            let mut mesh = Mesh::new(metadata);
            (mesh.mtls, mesh.rest, mesh.status) = (mtls, rest, status);
            mesh.into()
        })
        .boxed()
}

fn identity() -> BoxedStrategy<Resource> {
    let selector = prop_oneof![Just(Selector::none()), labels().prop_map(Selector::labels)];
    let ca = prop_oneof![
        Just(BundledCa::Autogenerate),
        (secure_source(), secure_source()).prop_map(|(certificate, private_key)| {
            BundledCa::Provided {
                certificate,
                private_key,
            }
        }),
    ];
    let creation = prop::sample::select(vec![
        MeshTrustCreation::Enabled,
        MeshTrustCreation::Disabled,
    ]);
    let go = (1..=i64::MAX as u64).prop_map(Duration::from_nanos);
    let bundled = (ca, any::<bool>(), creation, option::of(go.clone())).prop_map(
        |(ca, self_signed, creation, expiry)| {
            // A CA that is made signs itself.
            let self_signed = self_signed || ca == BundledCa::Autogenerate;
            let mut bundled = Bundled::self_signed(ca);
            (
                bundled.insecure_allow_self_signed,
                bundled.mesh_trust_creation,
                bundled.expiry,
            ) = (self_signed, creation, expiry);
            IdentityProvider::Bundled(bundled)
        },
    );
    let spire = option::of(go).prop_map(|timeout| {
        let mut spire = Spire::default();
        spire.agent_timeout = timeout;
        IdentityProvider::Spire(spire)
    });
    let extension = (external(), any::<bool>()).prop_map(|((provider, dialect), leaf)| {
        let mut extension = Extension::new(provider);
        extension.dialect = dialect;
        extension.mode = if leaf {
            ExtensionMode::Leaf
        } else {
            ExtensionMode::Intermediate
        };
        IdentityProvider::Extension(extension)
    });
    let domain = prop::sample::select(vec![
        "example.org",
        "{{ .Mesh }}.{{ .Zone }}.mesh.local",
        r#"{{ label "a" }}"#,
    ]);
    let path = prop::sample::select(vec![
        "/a",
        "/ns/{{ .Namespace }}/sa/{{ .ServiceAccount }}",
        r#"/{{ label "a" }}"#,
    ]);
    (
        metadata(true),
        selector,
        option::of(prop_oneof![bundled, spire, extension]),
        option::of(domain),
        option::of(path),
        free_form(""),
    )
        .prop_map(|(metadata, selector, provider, domain, path, status)| {
            let mut identity = MeshIdentity::new(metadata).with_selector(selector);
            identity.provider = provider;
            identity.trust_domain = domain.map(|text| TrustDomainTemplate::parse(text).unwrap());
            identity.path = path.map(|text| PathTemplate::parse(text).unwrap());
            identity.status = status;
            identity.into()
        })
        .boxed()
}

fn trust() -> BoxedStrategy<Resource> {
    let pem = std::fs::read_to_string(data("ca.pem")).unwrap();
    (
        metadata(true),
        1_usize..4,
        vec(1_usize..3, 1..3),
        option::of((name(), name())),
        free_form(""),
    )
        .prop_map(move |(metadata, _, bundles, origin, status)| {
            let mut trust = MeshTrust::new(
                metadata,
                TrustDomain::new("example.org").unwrap(),
                CaBundle::Pem(String::new()),
            );
            trust.ca_bundles = bundles
                .into_iter()
                .map(|count| CaBundle::Pem(pem.repeat(count)))
                .collect();
            trust.origin =
                origin.map(|(mesh, name)| Kri::new("mid", &mesh, "", "", &name, "").unwrap());
            trust.status = status;
            trust.into()
        })
        .boxed()
}

fn tls() -> BoxedStrategy<Resource> {
    let ciphers = vec(
        prop::sample::select(vec![
            TlsCipher::EcdheEcdsaAes128GcmSha256,
            TlsCipher::EcdheEcdsaAes256GcmSha384,
            TlsCipher::EcdheEcdsaChacha20Poly1305,
            TlsCipher::EcdheRsaAes128GcmSha256,
            TlsCipher::EcdheRsaAes256GcmSha384,
            TlsCipher::EcdheRsaChacha20Poly1305,
        ]),
        0..4,
    );
    let version = |versions: Vec<TlsVersion>| option::of(prop::sample::select(versions));
    let versions = option::of((
        version(vec![
            TlsVersion::Auto,
            TlsVersion::Tls10,
            TlsVersion::Tls11,
            TlsVersion::Tls12,
        ]),
        version(vec![TlsVersion::Auto, TlsVersion::Tls12, TlsVersion::Tls13]),
    ));
    let rule = (option::of(mode()), versions, ciphers).prop_map(|(mode, versions, ciphers)| {
        let mut rule = TlsRule::default();
        rule.mode = mode;
        rule.tls_version = versions.map(|(min, max)| {
            let mut versions = TlsVersions::default();
            (versions.min, versions.max) = (min, max);
            versions
        });
        rule.tls_ciphers = ciphers;
        rule
    });
    let target = option::of((
        option::of(text()),
        option::of(text()),
        labels(),
        option::of(text()),
    ))
    .prop_map(|target| {
        let mut reference = TargetRef::default();
        if let Some(fields) = target {
            reference.kind = TargetKind::Dataplane;
            (
                reference.name,
                reference.namespace,
                reference.labels,
                reference.section_name,
            ) = fields;
        }
        reference
    });
    (
        metadata(true),
        vec(rule, 1..3),
        target,
        any::<bool>(),
        free_form(""),
    )
        .prop_map(|(metadata, mut rules, target, from, status)| {
            if target.kind == TargetKind::Dataplane {
                for rule in &mut rules {
                    *rule = TlsRule::with_mode(rule.mode.unwrap_or_default());
                }
            }
            let mut policy = MeshTls::new(metadata, TlsRule::default());
            (
                policy.rules,
                policy.target,
                policy.written_as_from,
                policy.status,
            ) = (rules, target, from, status);
            policy.into()
        })
        .boxed()
}

fn secret_resource() -> BoxedStrategy<Resource> {
    (metadata(true), vec(any::<u8>(), 1..50))
        .prop_map(|(metadata, data)| SecretResource::new(metadata, SecretValue::new(data)).into())
        .boxed()
}

pub(crate) fn any_resource() -> BoxedStrategy<Resource> {
    prop_oneof![mesh(), identity(), trust(), tls(), secret_resource()].boxed()
}

/// In another form, without what the other form has no place for.
fn portable(resource: &Resource, form: Form) -> Resource {
    let mut there = one(resource.to_yaml_as(form).unwrap());
    let metadata = there.metadata_mut();
    metadata.namespace = None;
    metadata.annotations.clear();
    metadata.rest = FreeForm::default();
    there
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_written_reads_back(resource in any_resource()) {
        reads_back(&resource);
        for form in [Form::Kubernetes, Form::Universal] {
            let there = portable(&resource, form);
            prop_assert_eq!(there.metadata().form, form);
            let back = portable(&there, resource.metadata().form);
            prop_assert_eq!(portable(&back, form), there);
        }
    }
}
