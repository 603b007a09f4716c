//! The settings of a CA, whatever their type, and how documents spell them.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::free_form::FreeForm;
use super::node::Node;
use crate::LifetimePolicy;
use crate::spiffe::NameTemplate;

/// The two models in which a resource names a CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Model {
    /// A backend of a `Mesh`: `type` and `conf`.
    Classic,
    /// The provider of a `MeshIdentity`; an extension has `name` and `config`.
    Modern,
}

/// The spellings that a document uses, so that it is written the way it was read.
///
/// The default is the product's: `acmpca`, `certmanager`, settings in `conf`, `issuerRef`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Dialect {
    /// `acm` and `cert-manager` instead of `acmpca` and `certmanager`.
    pub(crate) short_type: bool,
    /// Settings in `acm` and `certManager` instead of `conf`.
    pub(crate) block: bool,
    /// `issuerName`, `issuerKind` and `issuerGroup` instead of `issuerRef`.
    pub(crate) flat_issuer: bool,
}

impl Dialect {
    /// `acm` and `cert-manager`, settings in a block of that name, `issuerName`.
    pub const NAMED_BLOCKS: Self = Self {
        short_type: true,
        block: true,
        flat_issuer: true,
    };
}

/// The spellings that documents have for one type. Only types that the resource format has always known have several; a
/// new type has [one](Self::ONE).
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Spelling {
    /// A second name of the type.
    pub(crate) alias: Option<&'static str>,
    /// The field of a backend that may hold the settings in place of `conf`.
    pub(crate) block: Option<&'static str>,
    /// `issuerName` may replace `issuerRef`.
    pub(crate) flat_issuer: bool,
    /// An extension may name the type. The CAs of the control plane are `Bundled` there.
    pub(crate) extension: bool,
}

impl Spelling {
    /// One name, and settings in `conf` or `config`.
    pub const ONE: Self = Self {
        alias: None,
        block: None,
        flat_issuer: false,
        extension: true,
    };
}

/// Settings of any type, as a document or code gave them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Conf {
    /// Read by the reader of their type.
    Typed(Arc<dyn AnySettings>),
    /// As they are in the document: no reader is known for their type.
    Free(FreeForm),
}

impl Conf {
    pub(crate) fn typed(&self) -> Option<&dyn AnySettings> {
        match self {
            Self::Typed(settings) => Some(&**settings),
            Self::Free(_) => None,
        }
    }

    pub(crate) fn get<T: 'static>(&self) -> Option<&T> {
        let settings: &dyn Any = match self {
            Self::Typed(settings) => &**settings,
            Self::Free(fields) => fields,
        };
        settings.downcast_ref()
    }
}

/// [`Settings`](super::settings::Settings) without their type.
pub(crate) trait AnySettings: Any + fmt::Debug + Send + Sync {
    fn equals(&self, other: &dyn AnySettings) -> bool;

    /// The settings as a document has them, fields in the order of the type.
    fn written(&self, dialect: Dialect) -> serde_json::Result<Node<'static>>;

    fn lifetime_policy(&self, model: Model, expiration: Option<Duration>) -> LifetimePolicy;

    fn common_name(&self) -> Option<&NameTemplate>;

    fn dns_names(&self) -> &[NameTemplate];

    fn holds_the_ca(&self) -> bool;
}

impl PartialEq for dyn AnySettings {
    fn eq(&self, other: &Self) -> bool {
        self.equals(other)
    }
}
