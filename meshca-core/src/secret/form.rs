use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{SecretKey, SecretValue};
use crate::{Error, ErrorKind, Result};

/// The number's own field.
const FORMAT: &str = "format";

/// A kind of JSON object that one version keeps in a [`SecretStore`](super::SecretStore) and another one reads.
///
/// Control planes of two versions share a store during every update, and one that was taken back to an older version finds
/// what the newer one wrote. So each kind has a number for the way in which it is written, and these rules:
///
/// - The number is the field `format`. **An object without it is in format 1**: the first forms were written without a number,
///   and their readers refuse one.
/// - **A newer format is an error, and is left as it is**: a reader that rewrote it would drop what it does not know.
/// - **An unknown field is an error too**, if the type to read has `#[serde(deny_unknown_fields)]`, as it should. Who adds a
///   field takes the next number.
///
/// ```
/// use meshca_core::secret::{SecretKey, SecretValue, StoredForm};
///
/// const FORM: StoredForm = StoredForm::new("the list of zones", 1, "restore the secret from a backup");
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Zones {
///     names: Vec<String>,
/// }
///
/// let key = SecretKey::new("default", "zones")?;
/// let value = FORM.write(&Zones { names: vec!["east".to_owned()] })?;
/// assert_eq!(value.expose(), br#"{"names":["east"]}"#);
/// let zones: Zones = FORM.read(&key, &value)?;
/// assert_eq!(zones.names, ["east"]);
///
/// let newer = SecretValue::from(r#"{"format":2,"regions":[]}"#);
/// let error = FORM.read::<Zones>(&key, &newer).err().ok_or("it is newer")?;
/// assert!(error.to_string().contains("its format is 2"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct StoredForm {
    what: &'static str,
    newest: u32,
    advice: &'static str,
    /// Readers of the first version of some forms demand the number, and those of others refuse it.
    from_the_first: bool,
}

impl StoredForm {
    /// Describes a form for errors: `what` it is, the number that this version writes, and what to do with a
    /// damaged one, as in "restore the secret".
    pub const fn new(what: &'static str, newest: u32, advice: &'static str) -> Self {
        Self {
            what,
            newest,
            advice,
            from_the_first: false,
        }
    }

    /// Writes the number in format 1 as well.
    #[must_use]
    pub const fn numbered_from_the_first(self) -> Self {
        Self {
            from_the_first: true,
            ..self
        }
    }

    /// Reads what is stored under this key.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] with the name of the secret, if it is in a newer format or damaged.
    pub fn read<T: DeserializeOwned>(&self, key: &SecretKey, value: &SecretValue) -> Result<T> {
        let what = self.what;
        let damaged = |why: &str| self.damaged(key, why);
        let mut object: Map<String, Value> = serde_json::from_slice(value.expose())
            .map_err(|error| damaged("it is not a JSON object").with_source(error))?;
        let format = match object.remove(FORMAT) {
            None => 1,
            Some(number) => number
                .as_u64()
                .filter(|number| *number > 0)
                .ok_or_else(|| damaged("its format is not a number"))?,
        };
        let newest = self.newest;
        if format > u64::from(newest) {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "{what} cannot be read here; upgrade this replica to the version that wrote it (its format is {format}, and this \
                     version reads formats up to {newest}; nothing was changed)"
                ),
            )
            .with_context("secret", key));
        }
        serde_json::from_value(Value::Object(object))
            .map_err(|error| damaged(&format!("in format {format}, {error}")).with_source(error))
    }

    /// Returns the error for an object that was read and makes no sense.
    pub fn damaged(&self, key: &SecretKey, why: &str) -> Error {
        let (what, advice) = (self.what, self.advice);
        Error::new(
            ErrorKind::InvalidConfig,
            format!("{what} cannot be read; {advice} ({why}; nothing was changed)"),
        )
        .with_context("secret", key)
    }

    /// Writes it in the newest format.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] if it is not an object that JSON can express.
    pub fn write<T: Serialize>(&self, object: &T) -> Result<SecretValue> {
        let numbered = self.from_the_first || self.newest > 1;
        let json = serde_json::to_vec(&Numbered {
            format: numbered.then_some(self.newest),
            object,
        });
        json.map(SecretValue::new).map_err(|error| {
            let what = format!("could not write {}", self.what);
            Error::new(ErrorKind::Internal, what).with_source(error)
        })
    }
}

#[derive(Serialize)]
struct Numbered<'a, T> {
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<u32>,
    #[serde(flatten)]
    object: &'a T,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Thing {
        name: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        part: Option<Part>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Part {
        size: u32,
    }

    const FORM: StoredForm = StoredForm::new("the thing", 2, "restore it");

    fn key() -> SecretKey {
        SecretKey::new("default", "thing").unwrap()
    }

    #[test]
    fn the_number_decides_whether_it_is_read() {
        let restore = "restore it";
        let newer = "upgrade this replica to the version that wrote it";
        for (text, expected) in [
            (r#"{"name":"a"}"#, None),
            (r#"{"format":1,"name":"a"}"#, None),
            (r#"{"format":2,"name":"a"}"#, None),
            (
                r#"{"format":3,"other":1}"#,
                Some((
                    "its format is 3, and this version reads formats up to 2",
                    newer,
                )),
            ),
            (
                r#"{"format":18446744073709551615}"#,
                Some(("its format is 18446744073709551615", newer)),
            ),
            (
                r#"{"format":0,"name":"a"}"#,
                Some(("its format is not a number", restore)),
            ),
            (
                r#"{"format":"2","name":"a"}"#,
                Some(("its format is not a number", restore)),
            ),
            (
                r#"{"format":1.5,"name":"a"}"#,
                Some(("its format is not a number", restore)),
            ),
            (
                r#"{"format":2}"#,
                Some(("in format 2, missing field `name`", restore)),
            ),
            (
                r#"{"name":"a","size":1}"#,
                Some(("in format 1, unknown field `size`", restore)),
            ),
            (
                r#"{"name":"a","part":{"size":1,"format":1}}"#,
                Some(("unknown field `format`", restore)),
            ),
            ("[]", Some(("not a JSON object", restore))),
            ("", Some(("not a JSON object", restore))),
            (
                r#"{"name":"a"}{"name":"b"}"#,
                Some(("not a JSON object", restore)),
            ),
        ] {
            let read = FORM.read::<Thing>(&key(), &text.into());
            let Some((why, advice)) = expected else {
                assert_eq!(read.unwrap().name, "a");
                continue;
            };
            let error = read.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{text}");
            let said = error.to_string();
            assert!(
                said.contains(why) && said.contains(advice),
                "{text}: {said}"
            );
            assert!(
                said.contains("nothing was changed) (secret: default/thing)"),
                "{text}: {said}"
            );
        }
    }

    #[test]
    fn the_first_format_is_numbered_only_where_its_readers_want_it() {
        let thing = Thing {
            name: "a".to_owned(),
            part: None,
        };
        let first = StoredForm::new("the thing", 1, "");
        let written =
            |form: StoredForm| form.write(&thing).unwrap().expose_str().map(str::to_owned);
        assert_eq!(written(first).as_deref(), Some(r#"{"name":"a"}"#));
        assert_eq!(
            written(first.numbered_from_the_first()).as_deref(),
            Some(r#"{"format":1,"name":"a"}"#)
        );
        assert_eq!(written(FORM).as_deref(), Some(r#"{"format":2,"name":"a"}"#));
        let error = first.write(&["no object"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
    }

    proptest! {
        /// What is read is all that there was: nothing is dropped by who writes it again.
        #[test]
        fn what_is_read_and_written_loses_nothing(
            format in prop::option::of(0_u64..5),
            fields in prop::collection::btree_map("(name|part|size|[a-z]{1,6})", "[a-z]{0,4}", 0..4),
        ) {
            let mut object: Map<String, Value> = fields.into_iter().map(|(name, text)| (name, text.into())).collect();
            if let Some(format) = format {
                object.insert(FORMAT.to_owned(), format.into());
            }
            let stored = SecretValue::new(serde_json::to_vec(&object).unwrap());
            if let Ok(thing) = FORM.read::<Thing>(&key(), &stored) {
                object.insert(FORMAT.to_owned(), 2.into());
                let again = FORM.write(&thing).unwrap();
                let again: Map<String, Value> = serde_json::from_slice(again.expose()).unwrap();
                prop_assert_eq!(again, object);
            }
        }
    }
}
