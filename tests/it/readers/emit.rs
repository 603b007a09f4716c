//! Every kind of certificate that we hand out.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use meshca::builtin::{BuiltinIssuer, CaSecrets, CaSettings, ProvidedCa};
use meshca::{
    CertificateRequest, CertificateSpec, Clock as _, IssuedCertificate, Issuer, IssuingCa, KeyType,
    MemorySecretStore, PrivateKey, SpiffeId, SystemClock, TrustBundle, TrustDomain,
};
use meshca_testkit::pki::{TestCa, TestCaOptions};

/// A certificate, and all that is known of it.
pub(crate) struct Emitted {
    pub(crate) name: String,
    pub(crate) request: CertificateRequest,
    pub(crate) issued: IssuedCertificate,
    pub(crate) key_pem: String,
    pub(crate) key_type: KeyType,
    pub(crate) ca_key_type: KeyType,
    pub(crate) bundle: TrustBundle,
    /// How many CAs stand between it and the root.
    pub(crate) intermediates: usize,
}

/// One of each kind.
pub(crate) static ALL: LazyLock<Vec<Emitted>> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(all())
});

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::new("prod.eu-1.mesh.local").unwrap()
}

fn workload() -> CertificateSpec {
    let id = SpiffeId::new("spiffe://prod.eu-1.mesh.local/ns/shop/sa/cart").unwrap();
    CertificateSpec::workload(id).with_lifetime(Duration::from_secs(3600))
}

struct Emitter {
    clock: Arc<SystemClock>,
    keys: BTreeMap<KeyType, PrivateKey>,
    emitted: Vec<Emitted>,
}

async fn all() -> Vec<Emitted> {
    let mut emitter = Emitter {
        clock: Arc::new(SystemClock::new()),
        keys: KeyType::ALL
            .into_iter()
            .map(|key_type| (key_type, PrivateKey::generate(key_type).unwrap()))
            .collect(),
        emitted: Vec::new(),
    };
    for ca in KeyType::ALL {
        let issuer = emitter.builtin(ca).await;
        for leaf in KeyType::ALL.into_iter().filter(|it| it.is_for_workloads()) {
            let name = format!("{leaf} under a built-in {ca}");
            emitter.add(&name, &issuer, workload(), leaf, ca, 0).await;
        }
    }
    let builtin = emitter.builtin(KeyType::P256).await;
    for (name, spec) in [
        (
            "with a common name",
            workload().with_common_name("cart.mesh"),
        ),
        (
            "with DNS names",
            workload()
                .with_dns_name("cart.shop.svc")
                .with_dns_name("*.cart_v2.shop.svc"),
        ),
        (
            "with URIs",
            workload()
                .with_uri("kuma://kuma.io/service/cart")
                .with_uri("kuma://version/v1"),
        ),
        (
            "an intermediate",
            CertificateSpec::intermediate(&domain(), "below").unwrap(),
        ),
        (
            "an intermediate that may have others below",
            CertificateSpec::intermediate(&domain(), "below")
                .unwrap()
                .with_path_len(2),
        ),
    ] {
        emitter
            .add(name, &builtin, spec, KeyType::P256, KeyType::P256, 0)
            .await;
    }
    let now = emitter.clock.now();
    for ca in [
        KeyType::P256,
        KeyType::P384,
        KeyType::Ed25519,
        KeyType::Rsa2048,
    ] {
        let with = |name: &str| TestCaOptions::new(name, now).with_key_type(ca);
        let root = TestCa::root_with(with("corporate root")).unwrap();
        let middle = root
            .intermediate_with(with("division").with_path_len(1))
            .unwrap();
        let lower = middle
            .intermediate_with(with("mesh").with_path_len(0))
            .unwrap();
        for (depth, provided) in [root, middle, lower].iter().enumerate() {
            let issuer = BuiltinIssuer::provided(
                domain(),
                ProvidedCa::from_pem(&provided.chain_pem(), &provided.key_pem().unwrap())
                    .unwrap()
                    .allow_self_signed(true),
                emitter.clock.clone(),
            )
            .unwrap();
            let issuer = IssuingCa::new(issuer);
            let name = format!("under a provided {ca} {depth} levels below the root");
            emitter
                .add(&name, &issuer, workload(), KeyType::P256, ca, depth)
                .await;
        }
    }
    emitter.emitted
}

impl Emitter {
    async fn builtin(&self, key_type: KeyType) -> IssuingCa<BuiltinIssuer> {
        let secrets = CaSecrets::for_backend("default", "ca-1").unwrap();
        let issuer = BuiltinIssuer::load_or_create(
            CaSettings::new(domain(), secrets).with_key_type(key_type),
            Arc::new(MemorySecretStore::new()),
            self.clock.clone(),
        );
        IssuingCa::new(issuer.await.unwrap())
    }

    async fn add(
        &mut self,
        name: &str,
        issuer: &IssuingCa<BuiltinIssuer>,
        spec: CertificateSpec,
        key_type: KeyType,
        ca_key_type: KeyType,
        intermediates: usize,
    ) {
        let key = &self.keys[&key_type];
        let request = CertificateRequest::for_key(spec, key, self.clock.now()).unwrap();
        let issued = issuer
            .issue_for(&request, &*self.clock)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let pem = key.expose_pem().unwrap();
        self.emitted.push(Emitted {
            name: name.to_owned(),
            request,
            issued,
            key_pem: pem.expose_str().unwrap().to_owned(),
            key_type,
            ca_key_type,
            bundle: issuer.trust_bundle().await.unwrap(),
            intermediates,
        });
    }
}

/// What a real Vault signs, under a root and under an intermediate; `None` where there is no Vault.
#[cfg(feature = "vault")]
pub(crate) static VAULT: LazyLock<Option<Vec<Emitted>>> = LazyLock::new(|| {
    if let Err(missing) = meshca_testenv::servers::Vault::program() {
        eprintln!(
            "\n*** {missing}: what others say of certificates from Vault was NOT tested. ***\n"
        );
        return None;
    }
    let runtime = tokio::runtime::Builder::new_current_thread();
    let emitted = { runtime }
        .enable_all()
        .build()
        .unwrap()
        .block_on(from_vault());
    Some(emitted)
});

#[cfg(feature = "vault")]
async fn from_vault() -> Vec<Emitted> {
    use meshca::resource::{DataSource, VaultAuth, VaultConf};
    use meshca::secret::SourceReader;
    use meshca::vault::{VaultIssuer, VaultSettings};
    use serde_json::json;

    let vault = meshca_testenv::servers::Vault::start().await.unwrap();
    let write = async |path: &str, body| vault.write(path, body).await.unwrap();
    for mount in ["root", "pki"] {
        let engine = json!({"type": "pki", "config": {"max_lease_ttl": "87600h"}});
        write(&format!("sys/mounts/{mount}"), engine).await;
        let role = json!({
            "allowed_uri_sans": "spiffe://prod.eu-1.mesh.local/*",
            "require_cn": false,
            "use_csr_sans": false,
            "key_type": "any",
            "no_store": true,
        });
        write(&format!("{mount}/roles/mesh"), role).await;
    }
    let root = json!({"common_name": "root", "key_type": "ec", "ttl": "87600h"});
    let root = write("root/root/generate/internal", root).await;
    let names = json!({"common_name": "issuing", "key_type": "ec"});
    let csr = write("pki/intermediate/generate/internal", names).await;
    let request = json!({"csr": csr["data"]["csr"], "common_name": "issuing", "ttl": "43800h"});
    let signed = write("root/root/sign-intermediate", request).await;
    let certificate = json!({"certificate": signed["data"]["certificate"]});
    write("pki/intermediate/set-signed", certificate).await;
    let root = json!({"pem_bundle": root["data"]["certificate"]});
    write("pki/issuers/import/cert", root).await;

    let clock = Arc::new(SystemClock::new());
    let mut all = Vec::new();
    for (mount, intermediates) in [("root", 0), ("pki", 1)] {
        let token = VaultAuth::Token(DataSource::InlineString(vault.root_token().into()));
        let mut conf = VaultConf::new(vault.address(), "mesh", token);
        conf.pki = Some(mount.to_owned());
        let sources = SourceReader::new(Arc::new(MemorySecretStore::new()), "default").unwrap();
        let settings = VaultSettings::new(conf, domain());
        let issuer = IssuingCa::new(VaultIssuer::new(settings, sources, clock.clone()).unwrap());
        for key_type in [KeyType::P256, KeyType::P384, KeyType::Rsa2048] {
            let key = PrivateKey::generate(key_type).unwrap();
            let request = CertificateRequest::for_key(workload(), &key, clock.now()).unwrap();
            let issued = issuer.issue_for(&request, &*clock).await.unwrap();
            all.push(Emitted {
                name: format!("{key_type} from Vault, {intermediates} CAs below the root"),
                request,
                issued,
                key_pem: key.expose_pem().unwrap().expose_str().unwrap().to_owned(),
                key_type,
                ca_key_type: KeyType::P256,
                bundle: issuer.trust_bundle().await.unwrap(),
                intermediates,
            });
        }
    }
    all
}
