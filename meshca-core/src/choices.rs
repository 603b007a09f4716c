//! What an embedder lets resources choose from.

use std::collections::BTreeMap;

use crate::{Error, ErrorKind, Result};

/// Values under names: the proxies, endpoints or roles of a control plane, of which a resource
/// may name one.
///
/// The author of a resource must not decide where the credentials of the control plane go. So the
/// addresses are options of a [factory](crate::IssuerFactory), and a resource has only a name.
///
/// ```
/// use meshca_core::ErrorKind;
/// use meshca_core::registry::Choices;
///
/// let proxies = Choices::new("proxy").with("egress", "http://proxy.example:3128");
/// assert_eq!(proxies.choose(Some("egress"))?, Some(&"http://proxy.example:3128"));
/// assert_eq!(proxies.choose(None)?, None);
///
/// let error = proxies.choose(Some("http://evil.example")).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidConfig);
/// # Ok::<(), meshca_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Choices<T> {
    setting: &'static str,
    named: BTreeMap<String, T>,
    default: Option<T>,
}

impl<T> Choices<T> {
    /// No choice. `setting`: the field by which resources choose, for messages.
    pub fn new(setting: &'static str) -> Self {
        Self {
            setting,
            named: BTreeMap::new(),
            default: None,
        }
    }

    /// Adds one under a name. Of two with the same name, the last counts.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: T) -> Self {
        self.named.insert(name.into(), value);
        self
    }

    /// Sets the one for resources that name none.
    #[must_use]
    pub fn with_default(mut self, value: T) -> Self {
        self.default = Some(value);
        self
    }

    /// The one that a resource names, or the default if it names none.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for a name that there is not, with those that there are.
    pub fn choose(&self, name: Option<&str>) -> Result<Option<&T>> {
        let Some(name) = name else {
            return Ok(self.default.as_ref());
        };
        self.named.get(name).map(Some).ok_or_else(|| {
            let known = self.named.keys().map(String::as_str).collect::<Vec<_>>();
            let known = match known.join("`, `") {
                none if none.is_empty() => "none".to_owned(),
                known => format!("`{known}`"),
            };
            let setting = self.setting;
            let why = format!(
                "this control plane has nothing under the name in `{setting}` (it has: {known}). A resource names what the options of the control plane define: correct the name, or define it there"
            );
            Error::new(ErrorKind::InvalidConfig, why).with_context(setting, name.escape_debug())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_chooses_and_nothing_else_does() {
        let choices = Choices::new("proxy").with("a", 1).with("b", 2).with("a", 3);
        assert_eq!(choices.choose(Some("a")).unwrap(), Some(&3));
        assert_eq!(choices.choose(None).unwrap(), None);
        let choices = choices.with_default(4);
        assert_eq!(choices.choose(None).unwrap(), Some(&4));
        for unknown in ["", "c", "A", "http://a"] {
            let error = choices.choose(Some(unknown)).unwrap_err().to_string();
            assert!(error.contains("(it has: `a`, `b`)"), "{error}");
        }
        let error = Choices::<u8>::new("role").choose(Some("x")).unwrap_err();
        assert!(error.to_string().contains("(it has: none)"), "{error}");
    }
}
