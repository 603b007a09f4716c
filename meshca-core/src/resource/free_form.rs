//! Content that belongs to somebody else.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize as _, Serialize};
use serde_json::{Map, Value as Json};

use super::node::{Entry, Node};
use crate::{Error, ErrorKind, Result};

/// A mapping whose fields are not ours: the other sections of a `Mesh`, the settings of a third-party
/// CA. It is kept as it was read and written back unchanged.
///
/// [`Debug`](fmt::Debug) prints the names of the fields only, since a foreign setting may be a secret.
///
/// ```
/// use std::collections::BTreeMap;
///
/// use meshca_core::resource::FreeForm;
///
/// let free_form = FreeForm::from_serialize(&BTreeMap::from([("url", "https://ca.example")]))?;
/// assert_eq!(format!("{free_form:?}"), r#"FreeForm("url")"#);
/// # Ok::<(), meshca_core::Error>(())
/// ```
#[derive(Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(transparent)
)]
pub struct FreeForm(Map<String, Json>);

impl FreeForm {
    pub(crate) fn from_entries<'e>(entries: impl Iterator<Item = &'e Entry<'e>>) -> Self {
        Self(
            entries
                .map(|entry| (entry.key.to_string(), entry.value.to_json()))
                .collect(),
        )
    }

    pub(crate) fn with(&self, key: &str, value: Json) -> Self {
        let mut fields = self.0.clone();
        fields.insert(key.to_owned(), value);
        Self(fields)
    }

    /// Any value that serialises as a mapping.
    ///
    /// # Errors
    ///
    /// `InvalidConfig` if it serialises as something else or not at all.
    pub fn from_serialize(value: &(impl Serialize + ?Sized)) -> Result<Self> {
        match serde_json::to_value(value) {
            Ok(Json::Object(fields)) => Ok(Self(fields)),
            Ok(_) => {
                let message = "settings must be a mapping of names to values";
                Err(Error::new(ErrorKind::InvalidConfig, message))
            }
            Err(error) => {
                let message = "settings cannot be represented";
                Err(Error::new(ErrorKind::InvalidConfig, message).with_source(error))
            }
        }
    }

    /// Reads the content as a type of the caller's. The settings of a CA have [readers](super::settings) instead, which
    /// report every violation with its place.
    ///
    /// # Errors
    ///
    /// `InvalidConfig` if it does not fit. Neither place nor value is repeated: it may be a secret.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        let unfit = "the content does not fit the type that it is read as";
        serde_json::from_value(Json::Object(self.0.clone()))
            .map_err(|_| Error::new(ErrorKind::InvalidConfig, unfit))
    }

    pub(crate) fn to_node(&self) -> serde_json::Result<Node<'static>> {
        Node::deserialize(&self.0)
    }

    pub(crate) fn fields(&self) -> impl Iterator<Item = (&String, &Json)> {
        self.0.iter()
    }

    /// The names of the fields.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for FreeForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tuple = f.debug_tuple("FreeForm");
        for key in self.0.keys() {
            tuple.field(key);
        }
        tuple.finish()
    }
}
