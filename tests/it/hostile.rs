//! Resources whose author wants the control plane's own files, variables and credentials, and a
//! server of the author's that records what arrives.

use std::fs;
use std::iter;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use base64::Engine as _;
use meshca::registry::{BackendConfig, BackendRegistry, BuildContext};
use meshca::resource::Resource;
use meshca::secret::{ListedSources, LocalSources};
use meshca::{
    CertificateRequest, CertificateSpec, Clock, Issuer, KeyType, MemorySecretStore, PrivateKey,
    Result, SpiffeId, SystemClock, TrustDomain,
};
use meshca_testenv::http::{CannedResponse, CannedServer};
use meshca_testkit::pki::TestCa;

/// The content of a file. It is fit for a header, so that it would be sent.
const TOKEN: &str = "s.the-token-of-the-control-plane";
/// What Kubernetes mounts for a pod: a JSON Web Token.
const SERVICE_ACCOUNT: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6Im1lc2gifQ.eyJpc3MiOiJodHRwczovL2t1YmVybmV0ZXMuZGVmYXVsdC5zdmMiLCJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6bWVzaC1zeXN0ZW06Y29udHJvbC1wbGFuZSJ9.c2lnbmF0dXJl";
/// The control plane's own identity at AWS, in the environment.
const ACCESS_KEY: &str = "AKIACONTROLPLANE";
const SECRET_KEY: &str = "secret-key-of-the-control-plane";
const SESSION_TOKEN: &str = "session-token-of-the-control-plane";
/// A variable with a token, and its name.
const VARIABLE: (&str, &str) = ("MESH_VAULT_TOKEN", "s.the-token-in-a-variable");
/// Variables with the certificate and the key of a CA, some of which resources may name.
const MINE: [&str; 2] = ["MESH_CA_CERTIFICATE", "MESH_CA_KEY"];
const LISTED: [&str; 2] = ["MESH_PUBLIC_CERTIFICATE", "MESH_PUBLIC_KEY"];
/// Where the child of the test finds its files.
const FOLDER: &str = "MESHCA_TEST_FOLDER";
const ARN: &str = "arn:aws:acm-pca:us-east-1:123456789012:certificate-authority/11111111-1111-1111-1111-111111111111";

/// What a resource tries to have sent to the author's server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    /// A file that the resource names.
    File,
    /// The AWS identity of the control plane.
    Identity,
    /// What no setting of the product can have sent. It is tried all the same.
    Refused,
}

struct Attempt {
    text: String,
    wants: Wants,
}

fn classic(kind: &str, conf: &str) -> String {
    let expiration = "dpCert: {rotation: {expiration: 1h}}";
    format!(
        "{{type: Mesh, name: default, mtls: {{backends: [{{name: a, type: {kind}, {expiration}, conf: {conf}}}]}}}}"
    )
}

fn modern(provider: &str) -> String {
    format!(
        "{{type: MeshIdentity, name: a, mesh: default, spec: {{selector: {{dataplane: {{matchLabels: {{}}}}}}, spiffeID: {{trustDomain: example.org}}, provider: {provider}}}}}"
    )
}

/// The ways in which a variable could be named: that of other settings, and shorter ones.
fn variables() -> [String; 3] {
    let variable = VARIABLE.0;
    [
        format!("{{type: EnvVar, envVar: {{name: {variable}}}}}"),
        format!("{{envVar: {{name: {variable}}}}}"),
        format!("{{env: {variable}}}"),
    ]
}

/// A file, and variables, as the source of something that is sent.
fn sources(file: &Path) -> Vec<(String, Wants)> {
    let named = format!("{{file: {}}}", file.display());
    let variables = variables().map(|variable| (variable, Wants::Refused));
    iter::once((named, Wants::File)).chain(variables).collect()
}

/// Settings of Vault.
fn vault(server: &str, file: &Path, account: &Path) -> Vec<(String, Wants)> {
    let mut auths = Vec::new();
    for (source, wants) in [sources(file), sources(account)].concat() {
        auths.extend([
            (format!("{{token: {source}}}"), wants),
            (
                format!("{{appRole: {{roleId: r, secretId: {source}}}}}"),
                wants,
            ),
            (format!("{{jwt: {{token: {source}}}}}"), wants),
        ]);
    }
    for path in [file, account] {
        let path = path.display();
        auths.extend([
            (
                format!("{{kubernetes: {{role: r, serviceAccountTokenPath: {path}}}}}"),
                Wants::File,
            ),
            (
                format!("{{tls: {{clientCert: {{file: {path}}}, clientKey: {{file: {path}}}}}}}"),
                Wants::Refused,
            ),
        ]);
    }
    auths.extend([
        ("{kubernetes: {role: r}}".to_owned(), Wants::Refused),
        ("{aws: {role: r, type: IAM}}".to_owned(), Wants::Identity),
    ]);
    let mine = "{token: {inlineString: mine}}";
    let config = |auth: &str, more: &str| {
        format!("{{fromCp: {{address: '{server}', role: r, auth: {auth}{more}}}}}")
    };
    let mut all: Vec<_> = auths
        .iter()
        .map(|(auth, wants)| (config(auth, ""), *wants))
        .collect();
    for (source, _) in sources(file) {
        for more in [
            format!(", caCert: {source}"),
            format!(", tls: {{caCert: {source}}}"),
        ] {
            all.push((config(mine, &more), Wants::Refused));
        }
    }
    all
}

/// Settings of AWS Private CA. The endpoint and the role are of those that the control plane offers.
fn aws(file: &Path) -> Vec<(String, Wants)> {
    let config = |more: &str| format!("{{arn: '{ARN}', endpoint: theirs{more}}}");
    let mine = "{inlineString: mine}";
    let keys = |id: &str, key: &str, token: &str| {
        format!(
            ", auth: {{awsCredentials: {{accessKey: {id}, accessKeySecret: {key}, sessionToken: {token}}}}}"
        )
    };
    let mut all = vec![
        (config(""), Wants::Identity),
        (config(", assumeRole: theirs"), Wants::Identity),
    ];
    for (source, wants) in sources(file) {
        let ca_cert = format!(", caCert: {source}{}", keys(mine, mine, mine));
        all.extend([
            (config(&keys(&source, mine, mine)), wants),
            (config(&keys(mine, mine, &source)), wants),
            // This one only signs.
            (config(&keys(mine, &source, mine)), Wants::Refused),
            (config(&ca_cert), Wants::Refused),
        ]);
    }
    all
}

/// What may be tried with each provider, in both models.
fn attempts(server: &str, folder: &Path) -> Vec<Attempt> {
    let (file, account) = (folder.join("token"), folder.join("account"));
    let mut configs = Vec::new();
    for (config, wants) in vault(server, &file, &account) {
        configs.push(("vault", config, wants));
    }
    for (config, wants) in aws(&file) {
        configs.push(("acmpca", config, wants));
    }
    for (source, _) in sources(&file) {
        let config = format!("{{issuerRef: {{name: a}}, caCert: {source}}}");
        configs.push(("certmanager", config, Wants::Refused));
    }
    let mut all = Vec::new();
    for (kind, config, wants) in configs {
        let extension = format!("{{name: {kind}, config: {config}}}");
        let extension = format!("{{type: Extension, extension: {extension}}}");
        for text in [classic(kind, &config), modern(&extension)] {
            all.push(Attempt { text, wants });
        }
    }
    let named = format!("{{type: File, file: {{path: {}}}}}", file.display());
    let [variable, ..] = variables();
    for text in [
        classic(
            "provided",
            &format!(
                "{{cert: {{file: {0}}}, key: {{file: {0}}}}}",
                file.display()
            ),
        ),
        bundled(&named, &variable),
        bundled(&variable, &named),
    ] {
        let wants = Wants::Refused;
        all.push(Attempt { text, wants });
    }
    all
}

fn bundled(certificate: &str, key: &str) -> String {
    modern(&format!(
        "{{type: Bundled, bundled: {{insecureAllowSelfSigned: true, ca: {{certificate: {certificate}, privateKey: {key}}}}}}}"
    ))
}

fn registry(server: &str) -> BackendRegistry {
    let kube = kube::Config::new(server.parse().unwrap());
    let kube = kube::Client::try_from(kube).unwrap();
    let role =
        meshca::acm::AssumedRole::new("arn:aws:iam::123456789012:role/a").with_sts_endpoint(server);
    let acm = meshca::acm::factory()
        .with_named_endpoint("theirs", server)
        .with_named_role("theirs", role);
    BackendRegistry::new()
        .with(meshca::builtin::factory())
        .with(meshca::vault::factory())
        .with(meshca::certmanager::factory(
            kube,
            "mesh-system",
            "replica-1",
        ))
        .with(acm)
}

/// Takes a resource through all that a control plane does with it, and returns what its author
/// reads.
async fn serve(registry: &BackendRegistry, text: &str, local: LocalSources) -> String {
    let resource = match Resource::parse(text) {
        Ok(resources) => resources.into_iter().next().unwrap(),
        Err(error) => return format!("{error} {error:?}"),
    };
    let config = match &resource {
        Resource::Mesh(mesh) => BackendConfig::classic(&mesh.mtls.as_ref().unwrap().backends[0]),
        Resource::MeshIdentity(identity) => BackendConfig::modern(identity).unwrap(),
        other => panic!("{other:?}"),
    };
    let domain = TrustDomain::new("example.org").unwrap();
    let (secrets, clock) = (
        Arc::new(MemorySecretStore::new()),
        Arc::new(SystemClock::new()),
    );
    let context = BuildContext::new("default", domain, secrets, clock.clone());
    let context = context.with_local_sources(local);
    let issuer = match registry.build(&config, &context).await {
        Ok(built) => built.issuer,
        Err(error) => return format!("{error} {error:?}"),
    };
    let id = SpiffeId::new("spiffe://example.org/a").unwrap();
    let key = PrivateKey::generate(KeyType::P256).unwrap();
    let spec = CertificateSpec::workload(id);
    let request = CertificateRequest::for_key(spec, &key, clock.now()).unwrap();
    let limit = std::time::Duration::from_secs(2);
    let told = async {
        let told: [Result<()>; 3] = [
            issuer.check().await.map(drop),
            issuer.trust_bundle().await.map(drop),
            issuer.sign(&request).await.map(drop),
        ];
        format!("{told:?}")
    };
    tokio::time::timeout(limit, told).await.unwrap_or_default()
}

/// The forms in which a value could leave.
fn forms(value: &str) -> Vec<String> {
    let mut forms = vec![
        value.to_owned(),
        value.bytes().map(|byte| format!("{byte:02x}")).collect(),
    ];
    // Base64 of a text that holds the value, wherever it begins there.
    for before in 0..3 {
        let text = [&vec![0; before], value.as_bytes()].concat();
        let whole = text.len() - text.len() % 3;
        let encoded = base64::engine::general_purpose::STANDARD.encode(&text[..whole]);
        // The first group is of other bytes, too.
        forms.push(encoded[if before == 0 { 0 } else { 4 }..].to_owned());
    }
    forms
}

fn holds(text: &str, value: &str) -> bool {
    forms(value).iter().any(|form| text.contains(form))
}

/// What one attempt has brought.
struct Outcome {
    attempt: Attempt,
    /// All that the author can read: requests at the server, and errors.
    known: String,
    issued: bool,
}

impl Outcome {
    fn knows(&self, values: &[&str]) -> bool {
        values.iter().any(|value| holds(&self.known, value))
    }
}

/// Tries everything.
async fn outcomes(local: &LocalSources, folder: &Path) -> Vec<Outcome> {
    let server = CannedServer::start().await.unwrap();
    let registry = registry(&server.url());
    let mut outcomes = Vec::new();
    for attempt in attempts(&server.url(), folder) {
        let before = server.requests().len();
        while server.remaining() < 50 {
            server.answer(CannedResponse::json(400, "{}"));
        }
        let told = serve(&registry, &attempt.text, local.clone()).await;
        let mut known = told.clone();
        for request in server.requests().split_off(before) {
            known.push_str(&format!("{request:?} {}", request.text()));
        }
        outcomes.push(Outcome {
            attempt,
            known,
            issued: told.contains("Ok("),
        });
    }
    outcomes
}

const ALL: [&str; 6] = [
    TOKEN,
    SERVICE_ACCOUNT,
    ACCESS_KEY,
    SECRET_KEY,
    SESSION_TOKEN,
    VARIABLE.1,
];

/// Takes all resources through the control plane, with what the next test has put into its environment.
#[tokio::test(flavor = "multi_thread")]
async fn child_with_secrets() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let folder = Path::new(&folder);
    let public = ListedSources::new()
        .with_folder(folder.join("public"))
        .with_variable(LISTED[0])
        .with_variable(LISTED[1]);
    let files = ListedSources::new().with_folder(folder);
    let identity = ListedSources::new().with_identity();
    for (local, sent) in [
        (LocalSources::Refused, &[][..]),
        (LocalSources::Listed(public.clone()), &[]),
        // What may be sent is sent, wherever the resource says. So the test would see it.
        (LocalSources::Listed(files), &[Wants::File]),
        (LocalSources::Listed(identity), &[Wants::Identity]),
        (LocalSources::Allowed, &[Wants::File, Wants::Identity]),
    ] {
        for outcome in outcomes(&local, folder).await {
            let Attempt { text, wants } = &outcome.attempt;
            let (values, others) = match wants {
                Wants::File => (&ALL[..2], &ALL[2..]),
                Wants::Identity => (&ALL[2..5], &[ALL[0], ALL[1], ALL[3], ALL[5]][..]),
                Wants::Refused => (&ALL[..0], &ALL[..]),
            };
            let known = &outcome.known;
            assert_eq!(
                outcome.knows(values),
                sent.contains(wants),
                "{local:?} {text}: {known}"
            );
            assert!(!outcome.knows(others), "{local:?} {text}: {known}");
            assert!(!outcome.issued, "{local:?} {text}: {known}");
            // The usual place of the token is not looked at, let alone told of.
            if text.contains("kubernetes: {role: r}") && local != LocalSources::Allowed {
                assert!(known.contains("does not read"), "{text}: {known}");
            }
        }
    }

    // A CA in variables signs where these are on the list, and nowhere else.
    let registry = registry("http://127.0.0.1:9");
    let source = |name: &str| format!("{{type: EnvVar, envVar: {{name: {name}}}}}");
    for (local, names, signs) in [
        (LocalSources::Refused, LISTED, false),
        (LocalSources::Listed(public.clone()), LISTED, true),
        (LocalSources::Listed(public), MINE, false),
        (LocalSources::Allowed, MINE, true),
    ] {
        let text = bundled(&source(names[0]), &source(names[1]));
        let told = serve(&registry, &text, local).await;
        let issued = told == "[Ok(()), Ok(()), Ok(())]";
        assert_eq!(issued, signs, "{names:?}: {told}");
        assert_eq!(told.contains("does not read"), !signs, "{told}");
    }
    fs::write(folder.join("done"), "").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_byte_of_a_file_or_variable_gets_out() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    fs::write(folder.join("token"), TOKEN).unwrap();
    fs::write(folder.join("account"), SERVICE_ACCOUNT).unwrap();
    fs::create_dir(folder.join("public")).unwrap();
    let profile = format!(
        "[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    );
    fs::write(folder.join("profile"), profile).unwrap();
    let ca = TestCa::root("Mesh", SystemClock::new().now()).unwrap();
    let key = ca.key_pem().unwrap();

    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "hostile::child_with_secrets"]);
    child.env(FOLDER, folder);
    child.env(VARIABLE.0, VARIABLE.1);
    for [certificate, private] in [MINE, LISTED] {
        child.env(certificate, ca.pem()).env(private, &key);
    }
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_SESSION_TOKEN", SESSION_TOKEN),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/own"),
    ] {
        child.env(name, value);
    }
    for (name, file) in [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "account"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "token"),
        ("AWS_SHARED_CREDENTIALS_FILE", "profile"),
    ] {
        child.env(name, folder.join(file));
    }
    let output = tokio::task::spawn_blocking(move || child.output());
    let output = output.await.unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(folder.join("done").exists(), "{output:?}");
}
