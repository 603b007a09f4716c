use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use super::shown::Shown;
use crate::{Error, ErrorKind, Result};

pub(crate) const NAMESPACE_LABEL: &str = "k8s.kuma.io/namespace";
pub(crate) const SERVICE_ACCOUNT_LABEL: &str = "k8s.kuma.io/service-account";
pub(crate) const WORKLOAD_LABEL: &str = "kuma.io/workload";

/// Where proxies run, which decides the [default path](super::PathTemplate::default_for).
///
/// The names are those of the label `kuma.io/env`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, derive_more::Display)]
#[display("{}", self.as_str())]
#[non_exhaustive]
pub enum Environment {
    /// On Kubernetes: a workload has a namespace and a service account.
    Kubernetes,
    /// Anywhere else: a workload has a name.
    Universal,
}

impl Environment {
    /// `kubernetes` or `universal`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Universal => "universal",
        }
    }
}

impl FromStr for Environment {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "kubernetes" => Ok(Self::Kubernetes),
            "universal" => Ok(Self::Universal),
            other => {
                let other = Shown(other);
                let message =
                    format!("`{other}` is not an environment: write `kubernetes` or `universal`");
                Err(Error::new(ErrorKind::InvalidConfig, message))
            }
        }
    }
}

/// What is known of a proxy: the labels of its Dataplane, and the tags that a classic Dataplane has.
///
/// Three labels have a variable of their own in a [`PathTemplate`](super::PathTemplate):
///
/// | variable | label |
/// |---|---|
/// | `.Namespace` | `k8s.kuma.io/namespace` |
/// | `.ServiceAccount` | `k8s.kuma.io/service-account` |
/// | `.Workload` | `kuma.io/workload` |
///
/// Anything may be put in here; what does not fit an identity is refused when a template is rendered.
///
/// ```
/// use meshca_core::spiffe::Workload;
///
/// let workload: Workload = [("app", "cart"), ("kuma.io/workload", "cart")].into_iter().collect();
/// let workload = workload.with_tag("kuma.io/service", "cart").with_tag("kuma.io/service", "cart-admin");
/// assert_eq!(workload.label("app"), Some("cart"));
/// assert_eq!(workload.tags()["kuma.io/service"].len(), 2);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Workload {
    labels: BTreeMap<String, String>,
    tags: BTreeMap<String, BTreeSet<String>>,
}

impl Workload {
    /// A workload of which nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads labels as they are written on a command line: `app=cart,kuma.io/workload=cart`.
    ///
    /// White space around keys and values is ignored, a value may be empty, and an empty text has no
    /// labels.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`](ErrorKind::InvalidRequest), with the byte at which the text is wrong: a pair
    /// without `=` or with a second one, an empty or repeated key, a comma too many.
    ///
    /// ```
    /// use meshca_core::spiffe::Workload;
    ///
    /// let error = Workload::from_label_list("app=cart,team").unwrap_err();
    /// assert_eq!(error.to_string(), "labels, byte 9: `team` has no value: write `key=value`");
    /// ```
    pub fn from_label_list(text: &str) -> Result<Self> {
        let mut workload = Self::new();
        if text.trim_ascii().is_empty() {
            return Ok(workload);
        }
        let mut next = 0;
        for pair in text.split(',') {
            let at = next + (pair.len() - pair.trim_ascii_start().len());
            next += pair.len() + 1;
            let wrong = |message: String| {
                let message = format!("labels, byte {at}: {message}");
                Err(Error::new(ErrorKind::InvalidRequest, message))
            };
            let pair = pair.trim_ascii();
            if pair.is_empty() {
                let message = "a label is missing before or after a comma: write `key=value`";
                return wrong(message.to_owned());
            }
            let Some((key, value)) = pair.split_once('=') else {
                return wrong(format!("`{}` has no value: write `key=value`", Shown(pair)));
            };
            let (key, value) = (key.trim_ascii_end(), value.trim_ascii_start());
            if key.is_empty() {
                return wrong("the key before `=` is empty".to_owned());
            }
            if value.contains('=') {
                return wrong(format!("`{}` has more than one `=`", Shown(pair)));
            }
            let before = workload.labels.insert(key.to_owned(), value.to_owned());
            if before.is_some() {
                return wrong(format!("label `{}` is given twice", Shown(key)));
            }
        }
        Ok(workload)
    }

    /// Sets a label, replacing its value if there is one.
    #[must_use]
    pub fn with_label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Adds a value of a tag: a classic Dataplane has one per inbound, and they may differ.
    #[must_use]
    pub fn with_tag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags
            .entry(key.into())
            .or_default()
            .insert(value.into());
        self
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    /// All labels.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// All tags, each with its distinct values.
    pub fn tags(&self) -> &BTreeMap<String, BTreeSet<String>> {
        &self.tags
    }
}

/// Collects labels; of a key that comes twice, the last value stays.
impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Workload {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let labels = labels.into_iter();
        Self {
            labels: labels
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
            tags: BTreeMap::new(),
        }
    }
}
