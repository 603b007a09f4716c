//! Secrets in Kubernetes, where the replicas of a control plane share them.

mod api;
mod cache;
mod follow;
mod object;

use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use kube::Client;
use kube::api::{DeleteParams, Preconditions};
use meshca_core::{
    Error, ErrorKind, Expect, Result, SecretKey, SecretStore, SecretValue, StoredSecret, Version,
};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::api::Api;
use self::cache::{Known, lock};
use self::follow::follow;
use self::object::{Object, TYPE, Written};
use crate::error::{code, from_kube};
use crate::rights::{Grant, require};

const RESOURCE: &str = "secrets";
/// What the store does.
const VERBS: [&str; 6] = ["get", "list", "watch", "create", "patch", "delete"];
/// The longest value of a label, and so the longest name of a mesh here.
const MAX_LABEL_LEN: usize = 63;

/// Keeps secrets as Kuma does on Kubernetes, so that those that operators have made are found.
///
/// | of the Secret | is |
/// |---|---|
/// | namespace | the one that this store was made for: the control plane's own |
/// | name | the name of the secret; all meshes share them |
/// | type | `system.kuma.io/secret` |
/// | label `kuma.io/mesh` | its mesh; `default` without the label |
/// | data | the key `value` |
///
/// Replicas share it: a write is refused with [`ErrorKind::Conflict`] unless the secret's `resourceVersion` is the one that was read.
/// Other labels, annotations and keys of a Secret stay as they are.
///
/// From the first call on, a task watches the namespace until the store is dropped. While it proves that it hears of every change, what is
/// known is not asked for again; while it does not, each [`get`](SecretStore::get) asks the API server. What is served is never older than
/// [`MAX_STORE_LAG`](meshca_core::secret::MAX_STORE_LAG). That there is *no* secret is never said
/// without having asked. It lives in a tokio runtime.
///
/// Values are wiped when nobody needs them any more. What `kube`'s HTTP client and the TLS library do with
/// the bytes that they send and receive is out of our hands: their buffers are not wiped.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use meshca_certmanager::KubeSecretStore;
/// use meshca_core::builtin::{BuiltinIssuer, CaSecrets, CaSettings};
/// use meshca_core::{SystemClock, TrustDomain};
///
/// # async fn run(client: kube::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let secrets = Arc::new(KubeSecretStore::new(client, "kuma-system"));
/// secrets.check().await?;
///
/// // All replicas that do this get the same CA.
/// let settings = CaSettings::new(TrustDomain::new("default")?, CaSecrets::for_backend("default", "ca-1")?);
/// let issuer = BuiltinIssuer::load_or_create(settings, secrets, Arc::new(SystemClock::new())).await?;
/// # drop(issuer);
/// # Ok(())
/// # }
/// ```
#[derive(derive_more::Debug)]
#[debug("KubeSecretStore {{ namespace: {:?}, .. }}", api.namespace)]
pub struct KubeSecretStore {
    api: Api,
    known: Arc<Known>,
    task: OnceLock<JoinSet<()>>,
}

impl KubeSecretStore {
    /// A store in this namespace. It asks nobody yet.
    ///
    /// `client` acts as the control plane's service account; the role that it needs is in
    /// `examples/resources/cert-manager/rbac.yaml` of the repository.
    pub fn new(client: Client, namespace: impl Into<String>) -> Self {
        Self {
            api: Api::new(client, namespace.into()),
            known: Arc::new(Mutex::default()),
            task: OnceLock::new(),
        }
    }

    /// Whether the control plane may do with secrets what this store does.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Denied`] with the verbs to add; else as the API server answers.
    pub async fn check(&self) -> Result<()> {
        let Api {
            client, namespace, ..
        } = &self.api;
        let grant = Grant {
            group: "",
            resource: RESOURCE,
            verbs: &VERBS,
            namespace: Some(namespace),
        };
        require(client, grant, "keep secrets").await
    }

    fn watched(&self) {
        self.task.get_or_init(|| {
            let mut task = JoinSet::new();
            task.spawn(follow(self.api.clone(), Arc::clone(&self.known)));
            task
        });
    }

    /// Asks the API server.
    async fn read(&self, key: &SecretKey) -> Result<Option<StoredSecret>> {
        match self.api.get(key.name()).await {
            Ok(object) => {
                let stored = stored(&object, key);
                lock(&self.known).read(object);
                stored.map(Some)
            }
            Err(error) if is_absent(&error) => {
                lock(&self.known).forget(key.name());
                Ok(None)
            }
            Err(error) => Err(failed(error, key, "read a secret", "get")),
        }
    }

    /// Refuses what is not a secret of this mesh in this version: the API server knows versions, and not whose it is.
    async fn require(&self, key: &SecretKey, expect: &Expect) -> Result<()> {
        let current = self.get(key).await?.map(|current| current.version);
        match expect.check(key, current.as_ref()) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.conflict(key, expect).await),
        }
    }

    /// What to say of a write that was refused: the present state, and what to do about it.
    async fn conflict(&self, key: &SecretKey, expect: &Expect) -> Error {
        let current = match self.read(key).await {
            Ok(current) => current,
            Err(error) => return error,
        };
        let version = current.as_ref().map(|current| &current.version);
        match expect.check(key, version) {
            Err(conflict) => conflict,
            // It is what was read, and a write on this condition can never be made.
            Ok(()) if matches!(expect, Expect::Version(version) if !is_version(version)) => Error::new(
                ErrorKind::Unsupported,
                "this API server numbers the states of its objects in a way of its own, so secrets cannot be changed safely through it: is it Kubernetes?",
            )
            .with_context("secret", key),
            Ok(()) => Error::new(
                ErrorKind::Conflict,
                "somebody else changed the secret at this very moment: read it again",
            )
            .with_context("secret", key),
        }
    }
}

#[async_trait]
impl SecretStore for KubeSecretStore {
    async fn get(&self, key: &SecretKey) -> Result<Option<StoredSecret>> {
        self.watched();
        let known = {
            let known = lock(&self.known);
            let object = known.get(key.name(), Instant::now());
            object.map(|object| stored(object, key))
        };
        match known {
            Some(stored) => stored.map(Some),
            None => self.read(key).await,
        }
    }

    async fn put(&self, key: &SecretKey, value: SecretValue, expect: Expect) -> Result<Version> {
        self.watched();
        value.check_size(key)?;
        if key.mesh().len() > MAX_LABEL_LEN {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("on Kubernetes the name of a mesh has at most {MAX_LABEL_LEN} characters: it is a label"),
            )
            .with_context("secret", key));
        }
        let (written, doing, verb) = match &expect {
            Expect::Absent => {
                let secret = Written::new(key, value);
                (self.api.create(&secret).await, "create a secret", "create")
            }
            Expect::Version(version) if is_version(version) => {
                self.require(key, &expect).await?;
                let change = Written::change(version, value);
                let written = self.api.change(key.name(), &change).await;
                (written, "change a secret", "patch")
            }
            // One that no Secret ever had.
            _ => return Err(self.conflict(key, &expect).await),
        };
        match written {
            Ok(object) => {
                let version = Version::new(object.metadata.resource_version.as_str());
                lock(&self.known).apply(object);
                Ok(version)
            }
            Err(error) if code(&error) == Some(409) => Err(self.conflict(key, &expect).await),
            Err(error) if verb == "patch" && is_absent(&error) => {
                Err(self.conflict(key, &expect).await)
            }
            Err(error) => Err(failed(error, key, doing, verb)),
        }
    }

    async fn delete(&self, key: &SecretKey, version: &Version) -> Result<()> {
        self.watched();
        let expect = Expect::Version(version.clone());
        if !is_version(version) {
            return Err(self.conflict(key, &expect).await);
        }
        self.require(key, &expect).await?;
        let parameters = DeleteParams {
            preconditions: Some(Preconditions {
                resource_version: Some(version.as_str().to_owned()),
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        };
        match self.api.delete(key.name(), &parameters).await {
            Ok(()) => {
                lock(&self.known).delete(key.name(), version.as_str());
                Ok(())
            }
            Err(error) if code(&error) == Some(409) || is_absent(&error) => {
                Err(self.conflict(key, &expect).await)
            }
            Err(error) => Err(failed(error, key, "delete a secret", "delete")),
        }
    }

    fn revision(&self) -> Option<u64> {
        Some(lock(&self.known).revision())
    }
}

/// What is in it, if it is a secret of this mesh.
fn stored(object: &Object, key: &SecretKey) -> Result<StoredSecret> {
    let error = |kind, message: String| Error::new(kind, message).with_context("secret", key);
    let refused = |message| Err(error(ErrorKind::InvalidConfig, message));
    if object.type_ != TYPE {
        return refused(format!(
            "there is a Secret `{}`, but of the type `{}`: make it anew with `type: {TYPE}`",
            key.name(),
            object.type_
        ));
    }
    if object.mesh() != key.mesh() {
        let why = format!(
            "the Secret `{}` belongs to the mesh `{}`, by its label `kuma.io/mesh`: on Kubernetes all meshes share the names of secrets, so use another one",
            key.name(),
            object.mesh()
        );
        return Err(error(ErrorKind::Denied, why));
    }
    match object.value() {
        Some(value) => Ok(StoredSecret::new(
            value.clone(),
            Version::new(object.metadata.resource_version.as_str()),
        )),
        None => refused(format!(
            "the Secret `{}` has no key `value` in its data: that is where the secret belongs",
            key.name()
        )),
    }
}

/// A number, as all that Kubernetes gives out. It answers anything else with an error that is none of a conflict.
fn is_version(version: &Version) -> bool {
    let number = version.as_str().parse::<u64>();
    number.is_ok_and(|number| number > 0)
}

/// Whether the API server itself says that there is no such secret: others on the way answer 404 as well.
fn is_absent(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    let kind = status.details.as_ref().map(|details| details.kind.as_str());
    status.code == 404 && status.reason == "NotFound" && kind == Some(RESOURCE)
}

fn failed(error: kube::Error, key: &SecretKey, doing: &str, verb: &str) -> Error {
    from_kube(error, doing, verb, RESOURCE).with_context("secret", key)
}
