//! Secrets of Kubernetes as they travel: no more is read of them than is needed, and values are wiped.
//!
//! [`k8s_openapi`]'s own type would keep copies of the value in plain vectors, and all annotations with it: `kubectl apply` writes the
//! whole secret into one.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use meshca_core::{SecretKey, SecretValue, Version};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::json;
use zeroize::Zeroizing;

/// The type of the secrets that a mesh's resources name, as Kuma has it.
pub(super) const TYPE: &str = "system.kuma.io/secret";
/// The label that names the mesh.
const MESH_LABEL: &str = "kuma.io/mesh";
/// The mesh of a secret without the label.
const DEFAULT_MESH: &str = "default";

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Object {
    pub(super) metadata: Meta,
    #[serde(default, rename = "type")]
    pub(super) type_: String,
    #[serde(default)]
    data: Option<Data>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Meta {
    pub(super) name: String,
    pub(super) resource_version: String,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Data {
    #[serde(default)]
    value: Option<Base64>,
}

/// A page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    pub(super) metadata: PageMeta,
    #[serde(default)]
    pub(super) items: Vec<Object>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PageMeta {
    pub(super) resource_version: String,
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
}

impl Object {
    pub(super) fn mesh(&self) -> &str {
        let label = self.metadata.labels.as_ref();
        label
            .and_then(|labels| labels.get(MESH_LABEL))
            .map_or(DEFAULT_MESH, String::as_str)
    }

    pub(super) fn value(&self) -> Option<&SecretValue> {
        self.data.as_ref()?.value.as_ref().map(|value| &value.0)
    }
}

/// Wiped, as a whole and in parts.
#[derive(Clone, Debug)]
struct Base64(SecretValue);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        // The library's own message shows the offending bytes.
        let bytes = STANDARD.decode(text.as_bytes());
        let bytes = bytes.map_err(|_| D::Error::custom("the value of a secret is not base64"))?;
        Ok(Self(SecretValue::new(bytes)))
    }
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = Zeroizing::new(String::new());
        STANDARD.encode_string(self.0.expose(), &mut text);
        serializer.serialize_str(&text)
    }
}

/// The body of a request that writes a secret.
#[derive(Serialize)]
pub(super) struct Written {
    #[serde(flatten)]
    about: serde_json::Value,
    data: Data,
}

impl Written {
    /// A secret that is created.
    pub(super) fn new(key: &SecretKey, value: SecretValue) -> Self {
        let about = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": TYPE,
            "metadata": {"name": key.name(), "labels": {MESH_LABEL: key.mesh()}},
        });
        Self::of(about, value)
    }

    /// The merge patch that changes a secret if it is in this state.
    pub(super) fn change(version: &Version, value: SecretValue) -> Self {
        let about = json!({"metadata": {"resourceVersion": version.as_str()}});
        Self::of(about, value)
    }

    fn of(about: serde_json::Value, value: SecretValue) -> Self {
        let value = Some(Base64(value));
        let data = Data { value };
        Self { about, data }
    }
}
