//! A backend of a type that meshca does not know: it comes in by the door of ours, and is as good there.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use meshca_core::registry::{
    BackendConfig, BackendRegistry, BuildContext, BuiltIssuer, IssuerFactory,
};
use meshca_core::resource::settings::{self, Cursor, Fields, Model, Settings, SettingsType};
use meshca_core::resource::{
    AcmConf, Backend, BuiltinConf, CertManagerConf, DataSource, Documents, Extension,
    ExtensionMode, FreeForm, IdentityProvider, IssuerRef, Mesh, MeshIdentity, Metadata, Mtls,
    ParseOptions, ProvidedConf, Provider, Report, Resource, VaultConf,
};
use meshca_core::spiffe::{NameTemplate, Workload};
use meshca_core::{
    Error, ErrorKind, LifetimePolicy, MemorySecretStore, Result, SpiffeId, SystemClock,
    TrustDomain, builtin,
};
use proptest::prelude::*;
use serde::{Serialize, Serializer};

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Speed {
    Slow,
    Quick,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct StepSettings {
    url: String,
    token: DataSource,
    #[serde(skip_serializing_if = "Option::is_none")]
    speed: Option<Speed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    common_name: Option<NameTemplate>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dns_names: Vec<NameTemplate>,
}

impl Settings for StepSettings {
    const TYPE: &'static str = "step-ca";

    fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let url = fields.required("url", url);
        let token = fields.required("token", settings::secret);
        let speed = fields.opt("speed", |at| {
            at.choice(&[("slow", Speed::Slow), ("quick", Speed::Quick)])
        });
        let common_name = fields.opt("commonName", settings::name_template);
        let dns_names = fields.list("dnsNames", settings::name_template);
        Some(Self {
            url: url?,
            token: token?,
            speed,
            common_name,
            dns_names,
        })
    }

    fn schema() -> Option<FreeForm> {
        let text = serde_json::json!({ "type": "string" });
        FreeForm::from_serialize(&serde_json::json!({
            "type": "object",
            "properties": {
                "url": { "type": "string", "pattern": "^https://" },
                "token": { "type": "object" },
                "speed": { "enum": ["slow", "quick"] },
                "commonName": text,
                "dnsNames": { "type": "array", "items": text },
            },
            "required": ["url", "token"],
        }))
        .ok()
    }

    fn lifetime_policy(&self, _: Model, _: Option<Duration>) -> LifetimePolicy {
        LifetimePolicy::AcceptIssuer
    }

    fn common_name(&self) -> Option<&NameTemplate> {
        self.common_name.as_ref()
    }

    fn dns_names(&self) -> &[NameTemplate] {
        &self.dns_names
    }
}

fn url(at: Cursor<'_>) -> Option<String> {
    match at.text()? {
        url if url.starts_with("https://") => Some(url.to_owned()),
        _ => at.error("must begin with `https://`"),
    }
}

/// Builds no issuer: it tells what it was to build one of.
#[derive(Debug)]
struct StepFactory;

#[async_trait]
impl IssuerFactory for StepFactory {
    fn settings(&self) -> Vec<SettingsType> {
        vec![SettingsType::of::<StepSettings>()]
    }

    async fn build(&self, config: &BackendConfig, _: &BuildContext) -> Result<BuiltIssuer> {
        let conf: &StepSettings = config.settings()?;
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("{} cannot be reached", conf.url),
        ))
    }
}

fn registry() -> BackendRegistry {
    BackendRegistry::new().with(StepFactory)
}

fn parse(text: impl AsRef<[u8]>) -> std::result::Result<Documents, Report> {
    ParseOptions::new()
        .settings(registry().settings())
        .parse(text)
}

/// Both models with the same settings.
fn both(conf: &str) -> String {
    format!(
        "{{type: Mesh, name: default, mtls: {{enabledBackend: a, backends: [{{name: a, type: step-ca, conf: {conf}}}]}}}}\n---\n\
         {{type: MeshIdentity, name: a, spec: {{provider: {{type: Extension, extension: {{name: step-ca, config: {conf}}}}}}}}}"
    )
}

const CONF: &str = "{url: 'https://ca', token: {secret: step-token}, speed: quick, commonName: '{{ label \"app\" }}', \
                    dnsNames: ['{{ label \"app\" }}.example']}";

fn configs(documents: &Documents) -> Vec<BackendConfig> {
    documents
        .iter()
        .map(|resource| match resource {
            Resource::Mesh(mesh) => BackendConfig::classic(mesh.enabled_backend().unwrap()),
            Resource::MeshIdentity(identity) => BackendConfig::modern(identity).unwrap(),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn context() -> BuildContext {
    BuildContext::new(
        "default",
        TrustDomain::new("default").unwrap(),
        Arc::new(MemorySecretStore::new()),
        Arc::new(SystemClock::new()),
    )
}

#[test]
fn all_violations_are_reported_in_their_place() {
    let text = "\
type: Mesh
name: default
mtls:
  enabledBackend: corporate
  backends:
  - name: corporate
    type: step-ca
    conf:
      urll: https://ca.example
      token: {secert: step-token}
      speed: quik
      dnsNames: [7, '{{ label']
  - name: spare
    type: step-ca
  - {name: other, type: step-cb}
---
type: MeshIdentity
name: id
spec:
  provider:
    type: Extension
    extension:
      name: step-ca
      config: {mode: Leaf, url: ca.example, token: {inlineString: hush}}
";
    let report = parse(text).unwrap_err();
    assert_eq!(
        report.to_string(),
        "9:7: mtls.backends[0].conf.urll: unknown field, did you mean `url`?\n\
         10:15: mtls.backends[0].conf.token.secert: unknown field, did you mean `secret`?\n\
         11:14: mtls.backends[0].conf.speed: unknown value `quik`, did you mean `quick`?\n\
         12:18: mtls.backends[0].conf.dnsNames[0]: expected a string, found a number: put it in quotes\n\
         12:21: mtls.backends[0].conf.dnsNames[1]: common name template, byte 0: `{{` is never closed: `}}` is missing\n\
         13:5: mtls.backends[1].conf: must be set\n\
         15:25: warning: mtls.backends[2].type: `step-cb` is not a type that is known here, did you mean `step-ca`? \
         Otherwise it must be registered\n\
         24:33: spec.provider.extension.config.url: must begin with `https://`\n\
         24:67: warning: spec.provider.extension.config.token.inlineString: secret material in plain sight: everyone \
         who may read this resource has it; keep it in a secret of the mesh and name that here"
    );
}

#[test]
fn the_ca_decides_on_names_and_lifetimes() {
    for config in configs(&parse(both(CONF)).unwrap()) {
        let id = SpiffeId::new("spiffe://default/web").unwrap();
        let workload = Workload::new().with_label("app", "web");
        let spec = config.certificate_spec(id, &workload).unwrap();
        assert_eq!(spec.lifetime(), DAY);
        assert_eq!(spec.lifetime_policy(), LifetimePolicy::AcceptIssuer);
        assert_eq!(spec.common_name(), Some("web"));
        assert_eq!(spec.dns_names(), ["web.example"]);
    }
}

/// Resources that serde read, and those that were parsed without the registry.
#[tokio::test]
async fn settings_that_were_not_read_with_the_document_are_read_later() {
    let documents = Resource::parse(both(CONF)).unwrap();
    for config in configs(&documents) {
        assert!(config.settings::<FreeForm>().is_ok());
        let read = registry().resolve(&config).unwrap();
        let conf = read.settings::<StepSettings>().unwrap();
        assert_eq!(conf.speed, Some(Speed::Quick));
        let error = registry().build(&config, &context()).await.unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("https://ca cannot be reached"),
            "{error}"
        );
    }

    let documents = Resource::parse(both("{urll: a, speed: 1}")).unwrap();
    for (config, field) in configs(&documents).iter().zip(["conf", "config"]) {
        let expected = format!(
            "{field}.token: must be set\n{field}.urll: unknown field, did you mean `url`?\n\
             {field}.speed: expected a string, found a number: put it in quotes"
        );
        let mut expected: Vec<_> = expected.lines().collect();
        expected.sort_unstable();
        for error in [
            registry().resolve(config).unwrap_err(),
            registry().build(config, &context()).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            let text = error.to_string();
            let mut lines: Vec<_> = text.split(" (").next().unwrap().lines().collect();
            lines.sort_unstable();
            assert_eq!(lines, expected);
        }
    }
}

#[test]
fn a_type_of_ours_whose_checks_were_skipped_is_judged_when_it_is_built() {
    let text = "{type: Mesh, name: a, mtls: {skipValidation: true, enabledBackend: a, \
                backends: [{name: a, type: cert-manager, certManager: {issuerNam: r}}]}}";
    let documents = Resource::parse(text).unwrap();
    let config = &configs(&documents)[0];
    assert_eq!(config.type_name(), "certmanager");
    let error = BackendRegistry::new().resolve(config).unwrap_err();
    assert_eq!(
        error.to_string(),
        "conf.issuerNam: unknown field, did you mean `issuerName`?"
    );
    let again = documents.iter().next().unwrap().to_yaml().unwrap();
    assert!(
        again.contains("type: cert-manager\n    certManager:\n      issuerNam: r"),
        "{again}"
    );
    assert_eq!(
        Resource::parse(again).unwrap().iter().next(),
        documents.iter().next()
    );
}

#[test]
fn resources_are_written_as_they_were_read() {
    let documents = parse(both(CONF)).unwrap();
    for resource in &documents {
        for text in [resource.to_yaml().unwrap(), resource.to_json().unwrap()] {
            assert_eq!(
                parse(&text).unwrap().iter().next(),
                Some(resource),
                "{text}"
            );
        }
    }

    let mut mesh = Mesh::new(Metadata::universal("default"));
    let settings = StepSettings {
        url: "ca".into(),
        token: DataSource::Secret("token".into()),
        speed: None,
        common_name: None,
        dns_names: Vec::new(),
    };
    mesh.mtls = Some(Mtls::with_backend(Backend::new(
        "a",
        Provider::new(settings),
    )));
    let options = ParseOptions::new().settings(registry().settings());
    assert_eq!(
        options.validate(&mesh.into()).unwrap_err().to_string(),
        "mtls.backends[0].conf.url: must begin with `https://`"
    );
}

/// Settings that are refused, and nothing is said.
#[derive(Debug, PartialEq, Serialize)]
struct Silent;

impl Settings for Silent {
    const TYPE: &'static str = "silent";
    const NEEDS_EXPIRATION: Option<&'static str> = Some("it is so");

    fn read(_: &mut Fields<'_>) -> Option<Self> {
        None
    }
}

#[test]
fn a_reader_cannot_refuse_in_silence() {
    let text = "{type: Mesh, name: a, mtls: {backends: [{name: a, type: silent, conf: {}}]}}";
    let silent = SettingsType::of::<Silent>();
    let report = ParseOptions::new()
        .settings([silent])
        .parse(text)
        .unwrap_err();
    assert_eq!(
        report.to_string(),
        "1:41: mtls.backends[0].dpCert.rotation.expiration: must be set: it is so"
    );
    let text = text.replace("conf", "dpCert: {rotation: {expiration: 1d}}, conf");
    let report = ParseOptions::new()
        .settings([silent])
        .parse(&text)
        .unwrap_err();
    assert_eq!(
        report.to_string(),
        "1:109: mtls.backends[0].conf: these settings are refused, and their reader does not say why"
    );
}

#[cfg(feature = "schema")]
#[test]
fn the_schema_knows_the_settings() {
    use meshca_core::resource::Form;

    let types = registry().settings();
    for (schema, definition, field) in [
        (
            Mesh::json_schema_with(Form::Universal, &types),
            "Backend",
            "conf",
        ),
        (
            MeshIdentity::json_schema_with(Form::Universal, &types),
            "Extension",
            "config",
        ),
    ] {
        let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
        let conditions = schema["$defs"][definition]["allOf"].as_array().unwrap();
        let ours = conditions
            .iter()
            .find(|it| it["if"].to_string().contains("step-ca"))
            .unwrap();
        let settings = &ours["then"]["properties"][field];
        assert_eq!(
            settings["properties"]["url"]["pattern"], "^https://",
            "{settings:#}"
        );
        assert_eq!(
            settings["additionalProperties"], false,
            "unknown fields are errors"
        );
        assert_eq!(ours["then"]["required"], serde_json::json!([field]));
    }
}

// ---- Ours come in by the same door -------------------------------------------------------------

/// A type of ours under another name, so that nothing in the core can know it by its name.
macro_rules! renamed {
    ($name:ident, $conf:ty, $type:literal) => {
        #[derive(Debug, PartialEq)]
        struct $name($conf);

        impl Serialize for $name {
            fn serialize<S: Serializer>(
                &self,
                serializer: S,
            ) -> std::result::Result<S::Ok, S::Error> {
                Serialize::serialize(&self.0, serializer)
            }
        }

        impl Settings for $name {
            const TYPE: &'static str = $type;
            const NEEDS_EXPIRATION: Option<&'static str> = <$conf>::NEEDS_EXPIRATION;

            fn read(fields: &mut Fields<'_>) -> Option<Self> {
                <$conf as Settings>::read(fields).map(Self)
            }

            fn lifetime_policy(
                &self,
                model: Model,
                expiration: Option<Duration>,
            ) -> LifetimePolicy {
                self.0.lifetime_policy(model, expiration)
            }

            fn common_name(&self) -> Option<&NameTemplate> {
                Settings::common_name(&self.0)
            }

            fn dns_names(&self) -> &[NameTemplate] {
                Settings::dns_names(&self.0)
            }

            fn holds_the_ca(&self) -> bool {
                self.0.holds_the_ca()
            }
        }
    };
}

renamed!(OtherBuiltin, BuiltinConf, "xx-builtin");
renamed!(OtherProvided, ProvidedConf, "xx-provided");
renamed!(OtherVault, VaultConf, "xx-vault");
renamed!(OtherAcm, AcmConf, "xx-acmpca");
renamed!(OtherCertManager, CertManagerConf, "xx-certmanager");

const OURS: [&str; 5] = ["builtin", "provided", "vault", "acmpca", "certmanager"];

fn renamed() -> [SettingsType; 5] {
    [
        SettingsType::of::<OtherBuiltin>(),
        SettingsType::of::<OtherProvided>(),
        SettingsType::of::<OtherVault>(),
        SettingsType::of::<OtherAcm>(),
        SettingsType::of::<OtherCertManager>(),
    ]
}

/// A value that fits somewhere, or nearly.
fn value() -> BoxedStrategy<String> {
    let leaf = prop::sample::select(vec![
        "https://vault.example",
        "role",
        "'{{ label \"app\" }}'",
        "'{{ label'",
        "1d",
        "7",
        "2048",
        "true",
        "null",
        "''",
        "IAM",
        "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/11111111-2222-3333-4444-555555555555",
    ])
    .prop_map(str::to_owned);
    leaf.prop_recursive(4, 40, 6, |inner| {
        let name = prop::sample::select(vec![
            "fromCp", "address", "adress", "role", "auth", "token", "tls", "aws", "type", "secret", "secert", "inline",
            "commonName", "dnsNames", "issuerRef", "issuerName", "issuerKind", "name", "arn", "caCert", "cert", "key",
            "RSAbits", "expiration", "awsCredentials", "accessKey", "accessKeySecret", "clientKey", "clientCert",
        ]);
        prop_oneof![
            3 => prop::collection::btree_map(name, inner.clone(), 0..6).prop_map(|fields| {
                let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
                format!("{{{}}}", fields.join(", "))
            }),
            1 => prop::collection::vec(inner, 0..3).prop_map(|items| format!("[{}]", items.join(", "))),
        ]
    })
    .boxed()
}

/// Settings of our types: sound ones, to be varied, and any.
fn conf() -> BoxedStrategy<String> {
    let sound = prop::sample::select(vec![
        "{}",
        "{caCert: {RSAbits: 2048, expiration: 1y}}",
        "{cert: {file: /a}, key: {secret: key}}",
        "{fromCp: {address: 'https://vault', role: r, commonName: '{{ label \"app\" }}', auth: {token: {secret: t}}}}",
        "{fromCp: {address: 'http://vault', role: a/b, auth: {aws: {type: IAM}, token: {secret: t}}}}",
        "{arn: 'arn:aws:acm-pca:a:b:certificate-authority/c', commonName: '{{ label \"app\" }}'}",
        "{issuerRef: {name: a, kind: B}, dnsNames: ['{{ label \"app\" }}.example']}",
        "{issuerRef: {nam: a}, dnsNames: ['{{ label \"app\" }}.example']}",
    ])
    .prop_map(str::to_owned);
    prop_oneof![sound, value()].boxed()
}

fn read(text: &str) -> std::result::Result<Documents, Report> {
    ParseOptions::new().settings(renamed()).parse(text)
}

/// What is read and reported, without the name of the type.
fn outcome(text: &str) -> (String, Vec<String>) {
    match read(text) {
        Err(report) => (report.to_string().replace("xx-", ""), Vec::new()),
        Ok(documents) => {
            let specs = configs(&documents)
                .iter()
                .map(|config| {
                    let id = SpiffeId::new("spiffe://default/web").unwrap();
                    let workload = Workload::new().with_label("app", "web");
                    let spec = config.certificate_spec(id, &workload).unwrap();
                    format!("{spec:?} {}", config.holds_the_ca())
                })
                .collect();
            (documents.warnings().to_string().replace("xx-", ""), specs)
        }
    }
}

proptest! {
    /// Nothing in the core depends on the name of a type: under another one, our settings have the same violations in the
    /// same places, and ask for the same certificates.
    #[test]
    fn ours_have_no_door_of_their_own(kind in 0..5_usize, expires in any::<bool>(), skip in any::<bool>(), conf in conf()) {
        let name = OURS[kind];
        let mesh = |prefix: &str, conf: &str| {
            let expiration = if expires { ", dpCert: {rotation: {expiration: 1d}}" } else { "" };
            format!(
                "type: Mesh\nname: default\nmtls:\n  skipValidation: {skip}\n  enabledBackend: a\n  backends:\n  - name: a\n    \
                 type: {prefix}{name}\n    conf: {conf}\n  - {{name: b, type: builtin{expiration}}}\n  - {{name: c{expiration}\n     , \
                 type: {prefix}{name}\n     , conf: {conf}}}\n"
            )
        };
        let ours = mesh("", &conf);
        prop_assert_eq!(outcome(&ours), outcome(&mesh("xx-", &conf)));
        // A factory of ours hands out the reader that is known without it.
        let registry = BackendRegistry::new().with(builtin::factory());
        let read = ParseOptions::new().settings(registry.settings()).parse(&ours);
        prop_assert_eq!(read, Resource::parse(&ours));

        // The CAs of the control plane are `Bundled` in the modern model.
        if kind >= 2 {
            let identity = |prefix: &str| {
                format!(
                    "type: MeshIdentity\nname: a\nspec:\n  provider:\n    type: Extension\n    extension:\n      \
                     name: {prefix}{name}\n      config: {conf}\n"
                )
            };
            prop_assert_eq!(outcome(&identity("")), outcome(&identity("xx-")));
        }
    }

    /// Whether our settings are read with the document or by a registry later makes no difference but for the places.
    #[test]
    fn what_is_read_later_is_the_same(kind in 0..5_usize, conf in conf()) {
        // Settings that are absent are reported as a whole.
        prop_assume!(conf != "null");
        let name = OURS[kind];
        let text = format!(
            "{{type: Mesh, name: default, mtls: {{enabledBackend: a, backends: [{{name: a, type: NAME, \
             dpCert: {{rotation: {{expiration: 1d}}}}, conf: {conf}}}]}}}}"
        );
        let at_once = Resource::parse(text.replace("NAME", name));
        // A type that is not known here yet.
        let later = Resource::parse(text.replace("NAME", &format!("xx-{name}")));
        let Ok(later) = later else {
            prop_assert!(at_once.is_err(), "the text itself is wrong");
            return Ok(());
        };
        let registry = renamed().into_iter().fold(BackendRegistry::new(), |registry, kind| registry.with(Reader(kind)));
        let resolved = registry.resolve(&configs(&later)[0]);
        let messages = |report: &Report| {
            let mut lines: Vec<_> = report
                .errors()
                .map(|it| format!("{}: {}", it.path().trim_start_matches("mtls.backends[0]."), it.message()))
                .collect();
            lines.sort();
            lines
        };
        match (at_once, resolved) {
            (Ok(_), Ok(_)) => {}
            (Err(report), Err(error)) => {
                let mut lines: Vec<_> = error
                    .to_string()
                    .lines()
                    .filter(|it| !it.starts_with("warning: "))
                    .map(str::to_owned)
                    .collect();
                lines.sort();
                prop_assert_eq!(messages(&report), lines);
            }
            (at_once, resolved) => prop_assert!(false, "{at_once:?}\n{resolved:?}"),
        }
    }
}

/// Only reads.
#[derive(Debug)]
struct Reader(SettingsType);

#[async_trait]
impl IssuerFactory for Reader {
    fn settings(&self) -> Vec<SettingsType> {
        vec![self.0]
    }

    async fn build(&self, config: &BackendConfig, _: &BuildContext) -> Result<BuiltIssuer> {
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("{} is only read", config.type_name()),
        ))
    }
}

#[test]
fn a_provider_that_is_built_in_code_has_its_policy() {
    let conf = CertManagerConf::new(IssuerRef::new("a"));
    let identity = MeshIdentity::new(Metadata::universal("a")).with_provider(
        IdentityProvider::Extension(Extension::new(Provider::new(conf))),
    );
    let config = BackendConfig::modern(&identity).unwrap();
    let id = SpiffeId::new("spiffe://default/web").unwrap();
    let spec = config.certificate_spec(id, &Workload::new()).unwrap();
    assert_eq!(spec.lifetime_policy(), LifetimePolicy::AcceptIssuer);
}

/// Settings that need no field.
#[derive(Debug, PartialEq, Serialize)]
struct NoSettings;

impl Settings for NoSettings {
    const TYPE: &'static str = "in-house";

    fn read(_: &mut Fields<'_>) -> Option<Self> {
        Some(Self)
    }
}

#[test]
fn settings_without_a_field_keep_their_mode_when_they_are_written() {
    let mut extension = Extension::new(Provider::new(NoSettings));
    extension.mode = ExtensionMode::Intermediate;
    let identity = MeshIdentity::new(Metadata::universal("a").with_mesh("default"))
        .with_provider(IdentityProvider::Extension(extension));
    let text = Resource::from(identity.clone()).to_yaml().unwrap();
    let types = [SettingsType::of::<NoSettings>()];
    let documents = ParseOptions::new().settings(types).parse(&text).unwrap();
    assert_eq!(
        documents.iter().next(),
        Some(&Resource::from(identity)),
        "{text}"
    );
}
