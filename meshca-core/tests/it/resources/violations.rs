//! What is wrong is said, all at once, with its place.

use std::fs;

use meshca_core::resource::{
    Backend, BuiltinConf, DataSource, FreeForm, Location, Mesh, MeshIdentity, Metadata, Mtls,
    ParseOptions, Provider, Resource, Severity, VaultAuth, VaultConf,
};
use meshca_core::{Error, ErrorKind};

use crate::common::Ca;
use crate::resources::{all, data, one, refused};

/// Every file in `tests/data/bad` has beside it the report that it must give.
#[test]
fn bad_documents_give_exactly_these_reports() {
    let mut files: Vec<_> = fs::read_dir(data("bad"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension != "txt"))
        .collect();
    files.sort();
    assert!(files.len() > 20);
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let report = ParseOptions::new()
            .source(name)
            .system_namespace("kong-mesh-system")
            .parse(fs::read(&path).unwrap())
            .unwrap_err();
        let expected = fs::read_to_string(data("bad").join(format!("{name}.txt"))).unwrap();
        assert_eq!(format!("{report}\n"), expected, "{name}");
    }
}

#[test]
fn a_violation_has_its_parts() {
    let report = ParseOptions::new()
        .source("mesh.yaml")
        .parse("type: Mesh\nname: default\nmtls: 1\n")
        .unwrap_err();
    assert_eq!(report.source_name(), Some("mesh.yaml"));
    let violation = &report.violations()[0];
    assert_eq!(violation.severity(), Severity::Error);
    assert_eq!(violation.path(), "mtls");
    assert_eq!(violation.message(), "expected a mapping, found a number");
    assert_eq!(
        violation
            .location()
            .map(|at: Location| (at.line(), at.column())),
        Some((3, 7))
    );
    assert_eq!(
        report.to_string(),
        "mesh.yaml:3:7: mtls: expected a mapping, found a number"
    );

    let error = Error::from(report.clone());
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert_eq!(error.message(), report.to_string());
}

#[test]
fn without_a_source_lines_begin_with_the_place() {
    assert_eq!(
        refused("type: Mesh\n").to_string(),
        "1:1: name: must be set"
    );
}

/// The field beside `type` says which type was meant.
#[test]
fn what_stands_beside_a_wrong_type_is_judged_too() {
    for (text, expected) in [
        (
            "{type: MeshIdentity, name: a, spec: {provider: {type: Spir, spire: {agent: {timeout: 5}}}}}",
            "1:55: spec.provider.type: unknown value `Spir`, did you mean `Spire`?\n\
             1:86: spec.provider.spire.agent.timeout: a duration needs a unit, such as `5s`",
        ),
        (
            "{type: MeshIdentity, name: a, spec: {provider: {type: Bundled, bundled: {ca: {\
             certificate: {file: {path: a}}, privateKey: {type: EnvVar, envVar: {name: A}}}}}}}",
            "1:92: spec.provider.bundled.ca.certificate.type: must be set\n\
             1:106: spec.provider.bundled.ca.certificate.file.path: must be an absolute path without `..`",
        ),
        (
            "{type: MeshTrust, name: a, spec: {trustDomain: a, caBundles: [{type: PEM, pem: {value: ''}}]}}",
            "1:70: spec.caBundles[0].type: unknown value `PEM`, did you mean `Pem`?\n\
             1:88: spec.caBundles[0].pem.value: must hold at least one certificate in PEM",
        ),
    ] {
        assert_eq!(refused(text).to_string(), expected, "{text}");
    }
}

#[test]
fn a_mesh_is_in_no_mesh() {
    for text in [
        "{type: Mesh, name: a, mesh: b, mtls: {}}",
        "{type: Mesh, name: a, mesh: b, spec: {mtls: {}}}",
    ] {
        assert_eq!(
            refused(text).to_string(),
            "1:23: mesh: a Mesh is in no mesh: remove this field",
            "{text}"
        );
    }
}

#[test]
fn what_only_deserves_a_warning_passes() {
    let cases = [
        (
            "token: {inlineString: s.secret}",
            "12:38: warning: mtls.backends[0].conf.fromCp.auth.token.inlineString: secret material in plain sight: \
             everyone who may read this resource has it; keep it in a secret of the mesh and name that here",
        ),
        (
            "token: {secret: a}\n        tls: {skipVerify: true}",
            "13:27: warning: mtls.backends[0].conf.fromCp.tls.skipVerify: any server is trusted with the token and \
             with every identity: set `caCert` instead",
        ),
        (
            "tls: {clientCert: {inlineString: PEM}, clientKey: {secret: key}}",
            "",
        ),
        (
            "aws: {type: IAM, role: r, iamServerIdHeader: vault.example}",
            "",
        ),
        (
            "aws: {type: IAM, mount: aws-prod, stsRegion: eu-central-1, stsEndpoint: vpc}",
            "",
        ),
        (
            "appRole: {roleId: id, secretId: {file: /a}, mount: teams/approle}",
            "",
        ),
        ("jwt: {token: {file: /a}, role: r, mount: gitlab}", ""),
    ];
    for (auth, warning) in cases {
        let documents = all(format!(
            "type: Mesh\nname: default\nmtls:\n  backends:\n  - name: a\n    type: vault\n    \
             dpCert: {{rotation: {{expiration: 1d}}}}\n    conf:\n      fromCp:\n        address: https://vault\n        \
             role: r\n        auth: {{{}}}{}\n",
            auth.split('\n').next().unwrap(),
            auth.split_once('\n')
                .map(|(_, rest)| format!("\n{rest}"))
                .unwrap_or_default()
        ));
        assert_eq!(documents.warnings().to_string(), warning, "{auth}");
        assert!(!documents.warnings().has_errors());
    }
}

#[test]
fn settings_of_vault_that_cannot_be_used() {
    let token = "auth: {token: {secret: t}}";
    for (settings, refusal) in [
        (
            format!("proxy: 'http://me:secret@proxy.example', {token}"),
            "proxy: is the name of an address or role in the options of the control plane",
        ),
        (
            format!("issuer: a, alsoTrust: [a/b], {token}"),
            "alsoTrust[0]: must not contain `/`",
        ),
        (
            format!("alsoTrust: [\"-----BEGIN CERTIFICATE-----\\nAAAA\"], {token}"),
            "alsoTrust[0]: must be the name of an issuer, or certificates in PEM: line 1",
        ),
        (
            format!("alsoTrust: [\"-----BEGIN PRIVATE KEY-----\\nAAAA\"], {token}"),
            "alsoTrust[0]: must be the name of an issuer, or certificates in PEM: line 1",
        ),
        (
            format!("caCert: {{secret: root}}, alsoTrust: [next], {token}"),
            "alsoTrust: does not go with `caCert`",
        ),
        (
            "auth: {aws: {type: IAM, stsRegion: EU Central}}".to_owned(),
            "auth.aws.stsRegion: must be a region of AWS",
        ),
        (
            "auth: {aws: {type: IAM, stsEndpoint: 'https://sts.example'}}".to_owned(),
            "auth.aws.stsEndpoint: is the name of an address or role in the options of the control plane",
        ),
        (
            "auth: {jwt: {role: r}}".to_owned(),
            "auth.jwt.token: must be set",
        ),
    ] {
        let text = format!(
            "{{type: Mesh, name: default, mtls: {{backends: [{{name: a, type: vault, dpCert: {{rotation: {{expiration: 1d}}}},
             conf: {{fromCp: {{address: 'https://vault', role: r, {settings}}}}}}}]}}}}"
        );
        let report = Resource::parse(&text).unwrap_err().to_string();
        let expected = format!("mtls.backends[0].conf.fromCp.{refusal}");
        assert!(report.contains(&expected), "{settings}: {report}");
        assert_eq!(report.lines().count(), 1, "{report}");
        assert!(!report.contains("secret@"), "{report}");
    }
}

#[test]
fn other_warnings() {
    let cases = [
        (
            "{type: MeshIdentity, name: a, spec: {provider: {type: Bundled, bundled: {insecureAllowSelfSigned: true, ca: \
             {certificate: {type: InsecureInline, insecureInline: {value: PEM}}, \
             privateKey: {type: InsecureInline, insecureInline: {value: PEM}}}}}}}",
            vec!["spec.provider.bundled.ca.privateKey.insecureInline.value"],
        ),
        (
            "{type: MeshTLS, name: a, labels: {kuma.io/mseh: b}, spec: {rules: [{default: {tlsVersion: {min: TLS10}}}]}}",
            vec!["labels", "spec.rules[0].default.tlsVersion.min"],
        ),
        (
            "{type: Mesh, name: a, mtls: {backends: [{name: a, type: acmpcs, conf: {a: 1}}]}}",
            vec!["mtls.backends[0].type"],
        ),
        (
            "{type: Mesh, name: a, mtls: {backends: [{name: a, type: step-ca, conf: {a: 1}}]}}",
            vec![],
        ),
        (
            "{type: MeshIdentity, name: a, spec: {provider: {type: Extension, extension: {name: valut}}}}",
            vec!["spec.provider.extension.name"],
        ),
    ];
    for (text, paths) in cases {
        let documents = all(text);
        let warned: Vec<_> = documents
            .warnings()
            .violations()
            .iter()
            .map(|violation| violation.path())
            .collect();
        assert_eq!(warned, paths, "{text}");
    }
}

#[test]
fn skipped_validation_warns_and_keeps_what_cannot_be_typed() {
    let text = "{type: Mesh, name: a, mtls: {skipValidation: true, enabledBackend: a, backends: [{name: a, type: vault, conf: {fromCp: {role: r}}}]}}";
    let documents = all(text);
    assert_eq!(documents.warnings().violations().len(), 3);
    let Resource::Mesh(mesh) = one(text) else {
        panic!()
    };
    let provider = &mesh.enabled_backend().unwrap().provider;
    assert!(provider.settings::<FreeForm>().is_some() && provider.type_name() == "vault");
    let again = one(Resource::from(mesh.clone()).to_yaml().unwrap());
    assert_eq!(again, Resource::from(mesh));

    let report = refused(text.replace("skipValidation: true", "skipValidation: false"));
    assert_eq!(report.errors().count(), 3);
}

#[test]
fn what_goes_with_issuer_name_is_refused_beside_issuer_ref() {
    let text = "{type: Mesh, name: a, mtls: {backends: [{name: a, type: certmanager, conf: {issuerRef: {name: a}, issuerKind: b}}]}}";
    assert_eq!(
        refused(text).to_string(),
        "1:99: mtls.backends[0].conf.issuerKind: goes with `issuerName`: write `issuerRef.kind`"
    );
}

#[test]
fn usages_and_annotations_of_cert_manager() {
    let mesh = |conf: &str| {
        format!(
            "{{type: Mesh, name: a, mtls: {{backends: [{{name: a, type: certmanager, conf: {{issuerRef: {{name: a}}, {conf}}}}}]}}}}"
        )
    };
    for (conf, words) in [
        ("usages: [cert sign]", "`digital signature`"),
        ("usages: []", "must name a usage, or be left out"),
        (
            "annotations: {cert-manager.io/private-key-secret-name: a}",
            "annotations of cert-manager itself",
        ),
        (
            "annotations: {a b: c}",
            "the key of an annotation is a name",
        ),
        (
            "annotations: {a/b/c: d}",
            "the key of an annotation is a name",
        ),
        ("annotations: {'': d}", "the key of an annotation is a name"),
        ("annotations: {a: [b]}", "expected a string"),
    ] {
        let report = refused(mesh(conf)).to_string();
        assert!(report.contains(words), "{conf}: {report}");
    }
    let documents = Resource::parse(mesh("usages: [client auth, digital signature]")).unwrap();
    let warnings = documents.warnings().to_string();
    assert!(
        warnings.contains("without `server auth`") && !warnings.contains("without `client auth`"),
        "{warnings}"
    );
    let fine = "usages: [client auth, server auth], annotations: {venafi.cert-manager.io/custom-fields: '[]', a: b}";
    assert_eq!(
        Resource::parse(mesh(fine)).unwrap().warnings().to_string(),
        ""
    );
}

#[test]
fn names_from_outside_cannot_forge_a_line() {
    let text = "type: Mesh\nname: a\nmtls:\n  \"x\\n1:1: forged\": 1\n  \"x\\n1:1: forged\": 2\n  backends: [{name: \"a\\nb\", type: \"c\\nd\"}]\n";
    let report = refused(text);
    assert_eq!(
        report.to_string().lines().count(),
        report.violations().len()
    );
    assert_eq!(report.violations()[0].path(), r#"mtls["x\n1:1: forged"]"#);
    assert_eq!(report.violations()[1].path(), r#"mtls["x\n1:1: forged"]"#);
}

#[test]
fn long_reports_are_cut() {
    let fields: String = (0..150)
        .map(|index| format!("  field{index}: 1\n"))
        .collect();
    let report = refused(format!("type: Mesh\nname: a\nmtls:\n{fields}"));
    assert_eq!(report.violations().len(), 100);
    assert!(report.to_string().ends_with("\nand 50 more violations"));
}

#[test]
fn resources_built_in_code_are_held_to_the_same_rules() {
    let mut mesh = Mesh::new(Metadata::universal("default"));
    mesh.mtls = Some(Mtls::with_backend(Backend::new(
        "ca-1",
        Provider::new(BuiltinConf::default()),
    )));
    assert!(Resource::from(mesh.clone()).validate().unwrap().is_empty());

    let token = VaultAuth::Token(DataSource::InlineString("s.secret".into()));
    let vault = VaultConf::new("https://vault.example", "a/b", token);
    let mtls = mesh.mtls.as_mut().unwrap();
    mtls.backends
        .push(Backend::new("ca-1", Provider::new(vault)));
    mtls.enabled_backend = Some("other".into());
    assert_eq!(
        Resource::from(mesh).validate().unwrap_err().to_string(),
        "mtls.backends[1].name: another backend is called `ca-1` as well: names must be unique\n\
         mtls.backends[1].dpCert.rotation.expiration: must be set: Vault needs the lifetime of every certificate \
         that is asked for\n\
         mtls.backends[1].conf.fromCp.role: must not contain `/`\n\
         warning: mtls.backends[1].conf.fromCp.auth.token.inlineString: secret material in plain sight: everyone \
         who may read this resource has it; keep it in a secret of the mesh and name that here\n\
         mtls.enabledBackend: no backend is called `other`: it is `ca-1`"
    );

    let mut mesh = Mesh::new(Metadata::universal("default"));
    let mut backend = Backend::new("a", Provider::free_form("theirs", Default::default()));
    backend.dp_cert.expiration = Some(std::time::Duration::from_nanos(1));
    mesh.mtls = Some(Mtls::with_backend(backend));
    let resource = Resource::from(mesh);
    let message =
        "cannot be written: a duration that this field cannot express: too long or too fine";
    assert_eq!(resource.validate().unwrap_err().to_string(), message);
    assert!(
        resource
            .to_yaml()
            .unwrap_err()
            .to_string()
            .contains("too fine")
    );
}

#[test]
fn other_formats_are_held_to_the_same_rules() {
    let json = serde_json::json!({
        "apiVersion": "kuma.io/v1alpha1", "kind": "MeshIdentity", "metadata": { "name": "id" },
        "spec": { "slector": {}, "provider": { "type": "Spire" } },
    });
    let error = serde_json::from_value::<Resource>(json.clone()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "spec.slector: unknown field, did you mean `selector`?"
    );
    let error =
        serde_json::from_str::<MeshIdentity>(r#"{"type": "Mesh", "name": "a"}"#).unwrap_err();
    assert_eq!(error.to_string(), "expected a MeshIdentity, found a Mesh");
    let error = serde_json::from_str::<Resource>(r#"{"type": "Mesh", "name": "a", "name": "b"}"#)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("the field `name` is given twice")
    );
    let deep = format!("{}1{}", r#"{"a":"#.repeat(100), "}".repeat(100));
    assert!(
        serde_json::from_str::<Resource>(&deep)
            .unwrap_err()
            .to_string()
            .contains("64 levels deep")
    );
}

/// Envoy accepts no chain that ends in an intermediate, so one without its root is good for nothing.
#[test]
fn a_mesh_trust_warns_of_intermediates_without_their_root() {
    let root = Ca::root("Corporate Root");
    let upper = root.below("Division CA");
    let lower = upper.below("Mesh CA");
    let stranger = Ca::root("Another Root");
    let bundle = |cas: &[&Ca]| {
        let pem: String = cas.iter().map(|ca| ca.pem()).collect();
        format!("{{type: Pem, pem: {{value: {}}}}}", serde_json::json!(pem))
    };
    let warned = |bundles: &[&[&Ca]]| {
        let bundles: Vec<_> = bundles.iter().map(|cas| bundle(cas)).collect();
        let bundles = bundles.join(", ");
        let text = format!(
            "{{type: MeshTrust, name: a, mesh: m, spec: {{trustDomain: example.org, caBundles: [{bundles}]}}}}"
        );
        let documents = Resource::parse(&text).unwrap();
        let warnings = documents.warnings().violations().iter();
        let warnings = warnings.map(|it| (it.path().to_owned(), it.message().to_owned()));
        warnings.collect::<Vec<_>>()
    };
    let of = |index: usize, anchor: &str, missing: &str| {
        (
            format!("spec.caBundles[{index}].pem.value"),
            format!(
                "`CN={anchor}` is an intermediate whose root is not here, and Envoy accepts no chain that ends in one: add the certificate of `CN={missing}`, unless another MeshTrust of this trust domain has it"
            ),
        )
    };
    let bare = [of(0, "Mesh CA", "Division CA")];
    assert_eq!(warned(&[&[&lower]]), bare);
    let upper_too = [
        of(0, "Mesh CA", "Corporate Root"),
        of(0, "Division CA", "Corporate Root"),
    ];
    assert_eq!(warned(&[&[&lower, &upper]]), upper_too);
    assert_eq!(warned(&[&[&stranger, &lower]]), bare);
    let second = of(1, "Mesh CA", "Division CA");
    assert_eq!(warned(&[&[&root], &[&lower]]), [second]);
    // The root stands in another bundle.
    assert_eq!(warned(&[&[&root]]), []);
    assert_eq!(warned(&[&[&lower], &[&upper, &root]]), []);
}

#[test]
fn a_mesh_trust_warns_of_what_is_left_out_of_its_trust() {
    let root = Ca::root("Corporate Root");
    // A byte of a UTF8String that is no UTF-8: Envoy would refuse the trust as a whole.
    let name = b"Corporate Root";
    let der = root.der.to_vec();
    let places = der.windows(name.len()).enumerate();
    let places: Vec<usize> = { places.filter(|(_, it)| it == name) }
        .map(|(at, _)| at)
        .collect();
    let mut damaged = der;
    for place in places {
        damaged[place] = 0xff;
    }
    let damaged = crate::common::pem(&damaged.into());
    for (pems, warnings) in [
        (vec![root.pem()], 0),
        (vec![root.pem(), damaged.clone()], 1),
        (vec![damaged.clone(), damaged], 2),
    ] {
        let bundles: Vec<_> = { pems.iter() }
            .map(|pem| format!("{{type: Pem, pem: {{value: {}}}}}", serde_json::json!(pem)))
            .collect();
        let text = format!(
            "{{type: MeshTrust, name: a, mesh: m, spec: {{trustDomain: example.org, caBundles: [{}]}}}}",
            bundles.join(", ")
        );
        let documents = Resource::parse(&text).unwrap();
        let found = documents.warnings().violations();
        assert_eq!(found.len(), warnings, "{found:?}");
        for (warning, index) in found.iter().rev().zip((0..pems.len()).rev()) {
            assert_eq!(warning.path(), format!("spec.caBundles[{index}].pem.value"));
            assert!(
                warning.message().contains("left out"),
                "{}",
                warning.message()
            );
        }
    }
}
