//! The settings of a CA, read by a reader that its provider brings.
//!
//! A provider describes its settings by a type that implements [`Settings`]. Its
//! [factory](crate::IssuerFactory::settings) hands out the [`SettingsType`], and
//! [`ParseOptions::settings`](super::ParseOptions::settings) takes it: a report then has all violations at once, each with
//! its line and column. meshca's own types come in by the same door. Their readers are in this crate and not beside their
//! clients, so that a tool that only checks resources links no client.
//!
//! # How a reader works
//!
//! [`Settings::read`] asks [`Fields`] for each field by its name. The value is read by one of the functions here, or by a
//! function of the provider's own from a [`Cursor`] to an `Option`. `None` means that a violation was recorded. A reader
//! asks for *all* fields first and unwraps afterwards, so that one report has everything that is wrong. A field that it did
//! not ask for is unknown. The report has that by itself, with the name that was probably meant.
//!
//! ```
//! use std::time::Duration;
//!
//! use meshca_core::resource::settings::{self, Cursor, Fields, Settings};
//! use meshca_core::resource::{DataSource, ParseOptions};
//!
//! #[derive(Debug, PartialEq, serde::Serialize)]
//! #[serde(rename_all = "camelCase")]
//! struct StepSettings {
//!     url: String,
//!     token: DataSource,
//!     #[serde(skip_serializing_if = "Option::is_none")]
//!     retries: Option<u32>,
//! }
//!
//! impl Settings for StepSettings {
//!     const TYPE: &'static str = "step-ca";
//!
//!     fn read(fields: &mut Fields<'_>) -> Option<Self> {
//!         let url = fields.required("url", url);
//!         let token = fields.required("token", settings::secret);
//!         let retries = fields.opt("retries", settings::integer);
//!         Some(Self { url: url?, token: token?, retries })
//!     }
//! }
//!
//! fn url(at: Cursor<'_>) -> Option<String> {
//!     match at.text()? {
//!         url if url.starts_with("https://") => Some(url.to_owned()),
//!         _ => at.error("must begin with `https://`"),
//!     }
//! }
//!
//! let text = "\
//! type: Mesh
//! name: default
//! mtls:
//!   backends:
//!   - name: corporate
//!     type: step-ca
//!     conf:
//!       url: ca.example
//!       token: {secert: step-token}
//!       retires: 3
//! ";
//! let step = settings::SettingsType::of::<StepSettings>();
//! let report = ParseOptions::new().settings([step]).parse(text).unwrap_err();
//! assert_eq!(report.to_string(), "\
//! 8:12: mtls.backends[0].conf.url: must begin with `https://`
//! 9:15: mtls.backends[0].conf.token.secert: unknown field, did you mean `secret`?
//! 10:7: mtls.backends[0].conf.retires: unknown field, did you mean `retries`?");
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

pub(crate) use super::any_settings::Dialect;
use super::any_settings::{AnySettings, Conf};
pub use super::any_settings::{Model, Spelling};
pub use super::datasource::{public, secret};
pub use super::decode::{Cursor, Fields, SettingsType};
pub use super::duration::mesh as duration;
use super::free_form::FreeForm;
use super::node::Node;
pub use super::template::name as name_template;
pub use super::values::{boolean, integer, non_empty};
use crate::LifetimePolicy;
use crate::spiffe::NameTemplate;

/// The settings of one type of CA: `conf` of a backend, `config` of an extension.
///
/// The module has [an example](self#how-a-reader-works).
///
/// [`Serialize`] writes what [`read`](Self::read) reads: resources are written back by it.
pub trait Settings: fmt::Debug + PartialEq + Serialize + Send + Sync + Sized + 'static {
    /// The name of the type: `type` of a backend, `name` of an extension.
    const TYPE: &'static str;

    /// Says why a backend of this type must set `dpCert.rotation.expiration`, if it must.
    const NEEDS_EXPIRATION: Option<&'static str> = None;

    #[doc(hidden)]
    const SPELLING: Spelling = Spelling::ONE;

    /// Reads the settings. Returns `None` after a violation, and asks for all fields before it unwraps one.
    fn read(fields: &mut Fields<'_>) -> Option<Self>;

    /// Returns the JSON Schema (draft 2020-12) of the settings, in one piece: no `$ref` and no `$defs`. It becomes part of
    /// the schemas of [`Mesh`](super::Mesh) and [`MeshIdentity`](super::MeshIdentity). The default takes any mapping.
    ///
    /// Fields that are not in `required` may be null, and objects with `properties` have no others, as in the rest of
    /// those schemas.
    fn schema() -> Option<FreeForm> {
        None
    }

    /// Decides what happens to a certificate whose lifetime differs from the requested one. By default a longer one is
    /// refused; a CA that decides on lifetimes itself needs [`LifetimePolicy::AcceptIssuer`].
    ///
    /// `expiration` is the lifetime that the operator set. In the modern model an extension has no setting for it.
    fn lifetime_policy(&self, model: Model, expiration: Option<Duration>) -> LifetimePolicy {
        let _ = (model, expiration);
        LifetimePolicy::default()
    }

    /// Returns the template of the certificates' common name. They have none by default.
    fn common_name(&self) -> Option<&NameTemplate> {
        None
    }

    /// Returns the templates of DNS names beside the SPIFFE ID. There are none by default.
    fn dns_names(&self) -> &[NameTemplate] {
        &[]
    }

    /// Returns `true` if the settings name the certificate and key of the CA itself. Their owner replaces them without a
    /// change of the resource, so the manager builds such an issuer again when secrets may have changed.
    fn holds_the_ca(&self) -> bool {
        false
    }

    #[doc(hidden)]
    fn in_dialect(&self, _: Dialect) -> impl Serialize {
        self
    }
}

impl<T: Settings> AnySettings for T {
    fn equals(&self, other: &dyn AnySettings) -> bool {
        let other: &dyn std::any::Any = other;
        other.downcast_ref() == Some(self)
    }

    fn written(&self, dialect: Dialect) -> serde_json::Result<Node<'static>> {
        // By way of text, since a `serde_json::Value` would sort the fields.
        serde_json::from_str(&serde_json::to_string(&self.in_dialect(dialect))?)
    }

    fn lifetime_policy(&self, model: Model, expiration: Option<Duration>) -> LifetimePolicy {
        Settings::lifetime_policy(self, model, expiration)
    }

    fn common_name(&self) -> Option<&NameTemplate> {
        Settings::common_name(self)
    }

    fn dns_names(&self) -> &[NameTemplate] {
        Settings::dns_names(self)
    }

    fn holds_the_ca(&self) -> bool {
        Settings::holds_the_ca(self)
    }
}

impl SettingsType {
    /// Settings of this type.
    pub const fn of<T: Settings>() -> Self {
        Self {
            name: T::TYPE,
            needs_expiration: T::NEEDS_EXPIRATION,
            spelling: T::SPELLING,
            read: |fields| Some(Conf::Typed(Arc::new(T::read(fields)?))),
            #[cfg(feature = "schema")]
            schema: T::schema,
        }
    }

    /// Adds it in place of another of this name.
    pub(crate) fn add_to(self, types: &mut Vec<Self>) {
        types.retain(|it| it.name != self.name);
        types.push(self);
    }

    /// The name of the type: [`Settings::TYPE`].
    pub fn name(&self) -> &'static str {
        self.name
    }
}

/// The schema of a type of ours, in one piece.
#[cfg(feature = "schema")]
pub(crate) fn fragment<T: schemars::JsonSchema>() -> Option<FreeForm> {
    let mut settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
    settings.inline_subschemas = true;
    FreeForm::from_serialize(&T::json_schema(&mut settings.into_generator())).ok()
}
