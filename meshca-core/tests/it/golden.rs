//! Every version reads the forms that commit 3213fda stored, and leaves newer forms as they are.
//!
//! The directory `golden/3213fda` is a `DirSecretStore` as that commit left it, with a mesh for each
//! state that a CA can be in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::common::{DAY, FakeClock, domain};
use meshca_core::builtin::delegated::{DelegatedIssuer, DelegatedSecrets, DelegatedSettings};
use meshca_core::builtin::{BuiltinIssuer, CaSecrets, CaSettings, RELOAD_INTERVAL};
use meshca_core::{
    CertificateRequest, CertificateSpec, Clock, DirSecretStore, ErrorKind, Expect, Issuer, KeyType,
    PrivateKey, Result, SecretKey, SecretStore, SecretValue, SignedChain, TrustBundle,
};
use serde_json::{Map, Value, json};

/// A copy of the golden directory, with the modes that no repository keeps.
struct Golden {
    dir: tempfile::TempDir,
    store: Arc<DirSecretStore>,
    clock: FakeClock,
}

impl Golden {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/3213fda");
        copy(&from, dir.path());
        let store = Arc::new(DirSecretStore::open(dir.path()).unwrap());
        let clock = FakeClock::new();
        clock.advance(RELOAD_INTERVAL);
        Self { dir, store, clock }
    }

    /// Every byte of a mesh.
    fn secrets(&self, mesh: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = fs::read_dir(self.dir.path().join(mesh)).unwrap();
        let files = files.map(|file| file.unwrap().path());
        let files = files.filter(|file| !file.ends_with(".lock"));
        files
            .map(|file| (file.clone(), fs::read(file).unwrap()))
            .collect()
    }

    fn certificates(&self, mesh: &str, names: &[&str]) -> TrustBundle {
        let read = |name: &&str| fs::read_to_string(self.dir.path().join(mesh).join(name)).unwrap();
        let text: String = names.iter().map(read).collect();
        TrustBundle::from_pem(domain(), &text).unwrap()
    }

    async fn json(&self, key: &SecretKey) -> Option<Map<String, Value>> {
        let stored = self.store.get(key).await.unwrap()?;
        Some(serde_json::from_slice(stored.value.expose()).unwrap())
    }

    async fn put(&self, key: &SecretKey, object: &Map<String, Value>) {
        let expect = match self.store.get(key).await.unwrap() {
            Some(stored) => Expect::Version(stored.version),
            None => Expect::Absent,
        };
        let value = serde_json::to_vec(object).unwrap();
        self.store
            .put(key, SecretValue::new(value), expect)
            .await
            .unwrap();
    }

    async fn load(&self, stored: &Stored) -> Result<Ca> {
        let store: Arc<dyn SecretStore> = self.store.clone();
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let Kind::Delegated = stored.kind else {
            let ca = BuiltinIssuer::load_or_create(stored.settings(), store, clock).await?;
            return Ok(Ca::Builtin(ca));
        };
        let upstream = CaSecrets::for_backend("company", "company")?;
        let upstream = CaSettings::new(domain(), upstream);
        let upstream = BuiltinIssuer::load_or_create(upstream, store.clone(), clock.clone());
        let upstream = Arc::new(upstream.await?);
        let secrets = DelegatedSecrets::new(stored.mesh, "mesh-ca")?;
        let settings = DelegatedSettings::new(domain(), secrets);
        let ca = DelegatedIssuer::load_or_create(settings, upstream, store, clock).await?;
        Ok(Ca::Delegated(ca))
    }
}

fn copy(from: &Path, to: &Path) {
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            fs::write(&to, fs::read(entry.path()).unwrap()).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Classic,
    Modern,
    Delegated,
}

/// A mesh in the directory.
struct Stored {
    mesh: &'static str,
    kind: Kind,
    /// The secrets with the roots that are trusted.
    roots: &'static [&'static str],
}

const STORED: [Stored; 9] = [
    Stored {
        mesh: "first",
        kind: Kind::Classic,
        roots: &["first.ca-builtin-cert-ca-1"],
    },
    Stored {
        mesh: "prepared",
        kind: Kind::Classic,
        roots: &[
            "prepared.ca-builtin-cert-ca-1",
            "prepared.ca-builtin-cert-ca-1.g2",
        ],
    },
    Stored {
        mesh: "activated",
        kind: Kind::Classic,
        roots: &[
            "activated.ca-builtin-cert-ca-1.g2",
            "activated.ca-builtin-cert-ca-1",
        ],
    },
    Stored {
        mesh: "all",
        kind: Kind::Classic,
        roots: &[
            "all.ca-builtin-cert-ca-1.g2",
            "all.ca-builtin-cert-ca-1.g3",
            "all.ca-builtin-cert-ca-1",
        ],
    },
    Stored {
        mesh: "identity",
        kind: Kind::Modern,
        roots: &["everyone-root-ca"],
    },
    delegated("delegated-first"),
    delegated("delegated-prepared"),
    delegated("delegated-activated"),
    delegated("delegated-all"),
];

const fn delegated(mesh: &'static str) -> Stored {
    Stored {
        mesh,
        kind: Kind::Delegated,
        roots: &["../company/company.ca-builtin-cert-company"],
    }
}

impl Stored {
    fn settings(&self) -> CaSettings {
        let secrets = match self.kind {
            Kind::Modern => CaSecrets::for_identity(self.mesh, "everyone"),
            _ => CaSecrets::for_backend(self.mesh, "ca-1"),
        };
        CaSettings::new(domain(), secrets.unwrap())
    }

    /// The secret that says in which format all of them are.
    fn state(&self) -> SecretKey {
        let name = match self.kind {
            Kind::Classic => format!("{}.ca-builtin-cert-ca-1.rotation", self.mesh),
            Kind::Modern => "everyone-root-ca.rotation".to_owned(),
            Kind::Delegated => "mesh-ca".to_owned(),
        };
        SecretKey::new(self.mesh, name).unwrap()
    }
}

enum Ca {
    Builtin(BuiltinIssuer),
    Delegated(DelegatedIssuer),
}

impl Ca {
    fn issuer(&self) -> &dyn Issuer {
        match self {
            Self::Builtin(ca) => ca,
            Self::Delegated(ca) => ca,
        }
    }

    async fn prepare(&self) -> Result<()> {
        match self {
            Self::Builtin(ca) => ca.prepare_next().await.map(drop),
            Self::Delegated(ca) => ca.prepare_next().await.map(drop),
        }
    }

    async fn activate(&self) -> Result<()> {
        match self {
            Self::Builtin(ca) => ca.activate_next().await,
            Self::Delegated(ca) => ca.activate_next().await,
        }
    }

    async fn retire(&self) -> Result<()> {
        match self {
            Self::Builtin(ca) => ca.retire().await,
            Self::Delegated(ca) => ca.retire().await,
        }
    }

    async fn reload(&self) -> Result<()> {
        match self {
            Self::Builtin(ca) => ca.reload().await,
            Self::Delegated(ca) => ca.reload().await,
        }
    }

    /// Signs a leaf and has it verified by the roots that are trusted now.
    async fn sign(&self, now: std::time::SystemTime) {
        let key = PrivateKey::generate(KeyType::P256).unwrap();
        let request = CertificateRequest::for_key(crate::common::spec(), &key, now).unwrap();
        let chain = self.issuer().sign(&request).await.unwrap();
        let chain = SignedChain::new(chain.certificates().iter().cloned());
        let bundle = self.issuer().trust_bundle().await.unwrap();
        chain.verify(&request, &bundle, now).unwrap();
    }
}

#[tokio::test]
async fn what_was_stored_is_read_and_not_written_again() {
    let golden = Golden::new();
    for stored in STORED {
        let before = golden.secrets(stored.mesh);
        let ca = golden.load(&stored).await.unwrap();
        ca.sign(golden.clock.now()).await;
        let bundle = ca.issuer().trust_bundle().await.unwrap();
        let expected = golden.certificates(stored.mesh, stored.roots);
        assert_eq!(bundle.roots(), expected.roots(), "{}", stored.mesh);
        assert!(golden.secrets(stored.mesh) == before, "{}", stored.mesh);
    }
}

/// On the way, only fields are written that a replica of that commit knows: it refuses others.
#[tokio::test]
async fn what_was_stored_is_replaced_step_by_step() {
    const KNOWN: [&str; 7] = [
        "active",
        "next",
        "retiring",
        "longestLeaf",
        "revision",
        "last",
        "upstreamRoots",
    ];
    for stored in STORED {
        let golden = Golden::new();
        let ca = golden.load(&stored).await.unwrap();
        let before = ca.issuer().trust_bundle().await.unwrap();
        ca.prepare().await.unwrap();
        golden.clock.advance(RELOAD_INTERVAL);
        ca.activate().await.unwrap();
        ca.sign(golden.clock.now()).await;
        golden.clock.advance(20 * DAY);
        ca.retire().await.unwrap();
        ca.sign(golden.clock.now()).await;
        let after = ca.issuer().trust_bundle().await.unwrap();
        let kept = before
            .roots()
            .iter()
            .filter(|root| after.contains(root.der()));
        assert!(kept.count() > 0, "{}", stored.mesh);
        let state = golden.json(&stored.state()).await.unwrap();
        for field in state.keys() {
            assert!(KNOWN.contains(&field.as_str()), "{}: {field}", stored.mesh);
        }
    }
}

#[tokio::test]
async fn a_newer_format_is_reported_and_left_alone() {
    for stored in STORED {
        let golden = Golden::new();
        let running = golden.load(&stored).await.unwrap();
        let mut state = golden.json(&stored.state()).await.unwrap_or_default();
        state.insert("format".to_owned(), json!(2));
        golden.put(&stored.state(), &state).await;
        let before = golden.secrets(stored.mesh);

        let mut outcomes = vec![("a start", golden.load(&stored).await.map(drop))];
        outcomes.push(("a look", running.reload().await));
        outcomes.push(("a check", running.issuer().check().await.map(drop)));
        outcomes.push(("Prepare", running.prepare().await));
        outcomes.push(("Activate", running.activate().await));
        outcomes.push(("Retire", running.retire().await));
        if let Ca::Builtin(ca) = &running {
            let spec = CertificateSpec::intermediate(&domain(), "below").unwrap();
            let key = PrivateKey::generate(KeyType::P256).unwrap();
            let spec = spec.with_lifetime(90 * DAY);
            let request = CertificateRequest::for_key(spec, &key, golden.clock.now()).unwrap();
            // It would be stored that something lives for so long.
            outcomes.push(("an intermediate", ca.sign(&request).await.map(drop)));
        }
        for (what, outcome) in outcomes {
            let error = outcome.expect_err(what);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{what}: {error}");
            let said = error.to_string();
            let name = format!("(secret: {})", stored.state());
            for part in ["upgrade this replica", "its format is 2", name.as_str()] {
                assert!(said.contains(part), "{}, {what}: {said}", stored.mesh);
            }
        }
        // What it has read before signs on, for as long as that is known to be trusted.
        running.sign(golden.clock.now()).await;
        assert!(golden.secrets(stored.mesh) == before, "{}", stored.mesh);
    }
}

/// At each level: an older reader that let it pass would drop it with its next write.
#[tokio::test]
async fn a_field_that_is_not_known_is_refused_and_left_alone() {
    let mut places = BTreeSet::new();
    for stored in STORED {
        let golden = Golden::new();
        let Some(state) = golden.json(&stored.state()).await else {
            continue;
        };
        let running = golden.load(&stored).await.unwrap();
        for path in objects(&Value::Object(state.clone()), "") {
            let mut changed = Value::Object(state.clone());
            let object = changed.pointer_mut(&path).unwrap().as_object_mut().unwrap();
            object.insert("alien".to_owned(), json!(1));
            golden
                .put(&stored.state(), changed.as_object().unwrap())
                .await;
            let before = golden.secrets(stored.mesh);
            for outcome in [
                golden.load(&stored).await.map(drop),
                running.prepare().await,
                running.activate().await,
                running.retire().await,
            ] {
                let error = outcome.unwrap_err().to_string();
                assert!(error.contains("unknown field `alien`"), "{error}");
            }
            assert!(golden.secrets(stored.mesh) == before, "{}", stored.mesh);
            places.insert((stored.kind == Kind::Delegated, path));
        }
    }
    let places: Vec<&str> = places.iter().map(|(_, path)| path.as_str()).collect();
    assert_eq!(
        places,
        [
            "",
            "/next",
            "/retiring/0",
            "",
            "/active",
            "/next",
            "/next/intermediate",
            "/retiring/0"
        ]
    );
}

/// Where the objects in a document are, as JSON pointers.
fn objects(value: &Value, at: &str) -> Vec<String> {
    let below: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (format!("{at}/{name}"), value))
            .collect(),
        Value::Array(items) => (0..)
            .zip(items)
            .map(|(index, value)| (format!("{at}/{index}"), value))
            .collect(),
        _ => Vec::new(),
    };
    let here = value.is_object().then(|| at.to_owned());
    let below = below.iter().flat_map(|(at, value)| objects(value, at));
    here.into_iter().chain(below).collect()
}

/// Objects are named after it, and CAs recognise a request by it: see `RequestId`.
#[test]
fn a_request_has_the_id_that_it_had() {
    let golden = Golden::new();
    let key = golden.dir.path().join("first/first.ca-builtin-key-ca-1");
    let key = PrivateKey::from_pem(&fs::read_to_string(key).unwrap()).unwrap();
    for (spec, id) in [
        (crate::common::spec(), "f2dbb016afaf971f6fb150e06932f84a"),
        (
            CertificateSpec::intermediate(&domain(), "below").unwrap(),
            "4c8e098ce7c1ef75dc3560900af1d2f1",
        ),
    ] {
        let request = CertificateRequest::for_key(spec, &key, golden.clock.now()).unwrap();
        assert_eq!(request.id().to_string(), id);
    }
}
