//! Settings of the CAs in the control plane: one that makes its own root, and one whose certificate and key are provided.

use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::super::datasource::DataSource;
use super::super::declare::{Mapping, mapping};
use super::super::duration;
use super::super::field::{Described, defaulted, optional, required};
#[cfg(feature = "schema")]
use super::super::free_form::FreeForm;
use super::super::settings::{self, Cursor, Dialect, Fields, Settings, Spelling};

/// A MeshIdentity has the type `Bundled` for these.
const CLASSIC_ONLY: Spelling = Spelling {
    extension: false,
    ..Spelling::ONE
};

mapping! {
    /// Settings of the built-in CA.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct BuiltinConf as "BuiltinCaCert" {
        /// `caCert.RSAbits`: the size of the root's RSA key, 2048, 3072 or 4096. Absent: the CA chooses.
        pub rsa_bits: Option<u32> =
            optional("RSAbits", Described(rsa_bits, || json!({ "enum": [2048, 3072, 4096] }))),
        /// `caCert.expiration`: the lifetime of the root, 1 hour or more. Absent: 10 years.
        pub expiration: Option<Duration> = optional("expiration", duration::mesh_ca_lifetime()),
    }
}

mapping! {
    struct BuiltinSettings {
        ca_cert: BuiltinConf = defaulted("caCert", <BuiltinConf as Mapping>::read),
    }
}

mapping! {
    /// Settings of a CA whose certificate and key are provided.
    #[derive(Clone, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct ProvidedConf as "ProvidedSettings" {
        /// The CA's certificate, with the intermediates that lead to its root if it is not one itself.
        pub cert: DataSource = required("cert", settings::public),
        /// The CA's private key.
        pub key: DataSource = required("key", settings::secret),
    }
}

impl ProvidedConf {
    /// Both are needed.
    pub fn new(cert: DataSource, key: DataSource) -> Self {
        Self { cert, key }
    }
}

impl Settings for BuiltinConf {
    const TYPE: &'static str = "builtin";
    const SPELLING: Spelling = CLASSIC_ONLY;

    fn read(f: &mut Fields<'_>) -> Option<Self> {
        BuiltinSettings::read_fields(f).map(|settings| settings.ca_cert)
    }

    #[cfg(feature = "schema")]
    fn schema() -> Option<FreeForm> {
        settings::fragment::<BuiltinSettings>()
    }

    fn in_dialect(&self, _: Dialect) -> impl Serialize {
        BuiltinSettings {
            ca_cert: self.clone(),
        }
    }
}

fn rsa_bits(at: Cursor<'_>) -> Option<u32> {
    match settings::integer(at)? {
        bits @ (2048 | 3072 | 4096) => Some(bits),
        _ => at.error("must be 2048, 3072 or 4096"),
    }
}

impl Settings for ProvidedConf {
    const TYPE: &'static str = "provided";
    const SPELLING: Spelling = CLASSIC_ONLY;

    fn read(f: &mut Fields<'_>) -> Option<Self> {
        Self::read_fields(f)
    }

    #[cfg(feature = "schema")]
    fn schema() -> Option<FreeForm> {
        settings::fragment::<Self>()
    }

    fn holds_the_ca(&self) -> bool {
        true
    }
}
