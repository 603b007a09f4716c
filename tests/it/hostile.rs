//! Resources whose author wants the control plane's own files, variables and credentials, and a
//! server of the author's that records what arrives.

use std::fs;
use std::path::Path;
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

/// The content of the file. It is fit for a header, so that it would be sent.
const SECRET: &str = "s.the-token-of-the-control-plane";
/// Set wherever tests run.
const VARIABLE: &str = "PATH";
const ARN: &str = "arn:aws:acm-pca:us-east-1:123456789012:certificate-authority/11111111-1111-1111-1111-111111111111";

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

/// What may be tried with each provider.
fn resources(server: &str, file: &Path) -> Vec<String> {
    let file = file.display();
    let vault = |auth: &str| format!("{{fromCp: {{address: '{server}', role: r, auth: {auth}}}}}");
    let tokens = [
        format!("{{token: {{file: {file}}}}}"),
        format!("{{appRole: {{roleId: r, secretId: {{file: {file}}}}}}}"),
        format!("{{kubernetes: {{role: r, serviceAccountTokenPath: {file}}}}}"),
        "{kubernetes: {role: r}}".to_owned(),
        format!("{{tls: {{clientCert: {{file: {file}}}, clientKey: {{file: {file}}}}}}}"),
        "{aws: {role: r, type: IAM}}".to_owned(),
    ];
    let mut all: Vec<_> = tokens
        .iter()
        .flat_map(|auth| {
            let conf = vault(auth);
            let extension =
                format!("{{type: Extension, extension: {{name: vault, config: {conf}}}}}");
            [classic("vault", &conf), modern(&extension)]
        })
        .collect();
    all.extend([
        classic(
            "vault",
            &format!("{{fromCp: {{address: '{server}', role: r, tls: {{caCert: {{file: {file}}}}}, auth: {{token: {{inlineString: mine}}}}}}}}"),
        ),
        // The endpoint is one that the control plane offers.
        classic(
            "acmpca",
            &format!("{{arn: '{ARN}', endpoint: theirs, auth: {{awsCredentials: {{accessKey: {{file: {file}}}, accessKeySecret: {{inlineString: mine}}}}}}}}"),
        ),
        classic(
            "acmpca",
            &format!("{{arn: '{ARN}', endpoint: theirs, auth: {{awsCredentials: {{accessKey: {{inlineString: mine}}, accessKeySecret: {{inlineString: mine}}, sessionToken: {{file: {file}}}}}}}}}"),
        ),
        classic("acmpca", &format!("{{arn: '{ARN}', endpoint: theirs}}")),
        classic("acmpca", &format!("{{arn: '{ARN}', endpoint: theirs, assumeRole: theirs}}")),
        classic(
            "certmanager",
            &format!("{{issuerRef: {{name: a}}, caCert: {{file: {file}}}}}"),
        ),
        classic(
            "provided",
            &format!("{{cert: {{file: {file}}}, key: {{file: {file}}}}}"),
        ),
        modern(&format!(
            "{{type: Bundled, bundled: {{ca: {{certificate: {{type: File, file: {{path: {file}}}}}, privateKey: {{type: EnvVar, envVar: {{name: {VARIABLE}}}}}}}}}}}"
        )),
    ]);
    all
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
    let resource = Resource::parse(text).unwrap().into_iter().next().unwrap();
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
    let standard = base64::engine::general_purpose::STANDARD_NO_PAD;
    vec![
        value.to_owned(),
        standard.encode(value),
        value.bytes().map(|byte| format!("{byte:02x}")).collect(),
    ]
}

struct Author {
    server: CannedServer,
    told: Vec<String>,
}

impl Author {
    /// Tries everything.
    async fn tries(local: &LocalSources, file: &Path) -> Self {
        let server = CannedServer::start().await.unwrap();
        for _ in 0..1000 {
            server.answer(CannedResponse::json(400, "{}"));
        }
        let registry = registry(&server.url());
        let mut told = Vec::new();
        for text in resources(&server.url(), file) {
            told.push(serve(&registry, &text, local.clone()).await);
        }
        Self { server, told }
    }

    /// Everything that arrived, and that was said.
    fn knows(&self, value: &str) -> bool {
        let arrived = self.server.requests().into_iter();
        let mut all = arrived.map(|request| format!("{request:?} {}", request.text()));
        let mut all = all.by_ref().collect::<Vec<_>>();
        all.extend(self.told.iter().cloned());
        let forms = forms(value);
        all.iter()
            .any(|text| forms.iter().any(|form| text.contains(form)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_byte_of_a_file_or_variable_gets_out() {
    let temp = tempfile::tempdir().unwrap();
    let (file, public) = (temp.path().join("token"), temp.path().join("public"));
    fs::write(&file, SECRET).unwrap();
    fs::create_dir(&public).unwrap();
    let variable = std::env::var(VARIABLE).unwrap();
    let listed = ListedSources::new()
        .with_folder(&public)
        .with_variable("MESH_PUBLIC");
    for local in [LocalSources::Refused, LocalSources::Listed(listed)] {
        let author = Author::tries(&local, &file).await;
        assert!(!author.knows(SECRET), "{local:?}");
        assert!(!author.knows(&variable), "{local:?}");
        for told in &author.told {
            // Something did arrive, without anything of ours: an inline token, say.
            assert!(!told.contains("Ok("), "{told}");
        }
    }
    // The test would see it.
    let author = Author::tries(&LocalSources::Allowed, &file).await;
    assert!(author.knows(SECRET));
    // And what is listed is sent to wherever the resource says.
    let listed = ListedSources::new().with_folder(temp.path());
    let author = Author::tries(&LocalSources::Listed(listed), &file).await;
    assert!(author.knows(SECRET));
}
