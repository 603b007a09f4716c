//! Settings of the CAs in the control plane: one that makes its own root, and one whose certificate and key are provided.

use std::time::Duration;

use serde::Serialize;

use super::super::datasource::DataSource;
use super::super::duration;
#[cfg(feature = "schema")]
use super::super::free_form::FreeForm;
use super::super::settings::{self, Cursor, Fields, Settings, Spelling};

/// A MeshIdentity has the type `Bundled` for these.
const CLASSIC_ONLY: Spelling = Spelling {
    extension: false,
    ..Spelling::ONE
};

/// Settings of the built-in CA.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(into = "BuiltinWire")]
#[non_exhaustive]
pub struct BuiltinConf {
    /// `caCert.RSAbits`: the size of the root's RSA key, 2048, 3072 or 4096. Absent: the CA chooses.
    pub rsa_bits: Option<u32>,
    /// `caCert.expiration`: the lifetime of the root. Absent: 10 years.
    pub expiration: Option<Duration>,
}

/// Settings of a CA whose certificate and key are provided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "ProvidedSettings")
)]
#[non_exhaustive]
pub struct ProvidedConf {
    /// The CA's certificate, with the intermediates that lead to its root if it is not one itself.
    pub cert: DataSource,
    /// The CA's private key.
    pub key: DataSource,
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
        Some(f.opt("caCert", ca_cert).unwrap_or_default())
    }

    #[cfg(feature = "schema")]
    fn schema() -> Option<FreeForm> {
        settings::fragment::<BuiltinWire>()
    }
}

fn ca_cert(at: Cursor<'_>) -> Option<BuiltinConf> {
    at.mapping(|f| {
        let rsa_bits = f.opt("RSAbits", |at| match settings::integer(at)? {
            bits @ (2048 | 3072 | 4096) => Some(bits),
            _ => at.error("must be 2048, 3072 or 4096"),
        });
        let expiration = f.opt("expiration", duration::mesh_lifetime);
        Some(BuiltinConf {
            rsa_bits,
            expiration,
        })
    })
}

impl Settings for ProvidedConf {
    const TYPE: &'static str = "provided";
    const SPELLING: Spelling = CLASSIC_ONLY;

    fn read(f: &mut Fields<'_>) -> Option<Self> {
        let cert = f.required("cert", settings::public);
        let key = f.required("key", settings::secret);
        Some(Self {
            cert: cert?,
            key: key?,
        })
    }

    #[cfg(feature = "schema")]
    fn schema() -> Option<FreeForm> {
        settings::fragment::<Self>()
    }

    fn holds_the_ca(&self) -> bool {
        true
    }
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "BuiltinSettings")
)]
#[serde(rename_all = "camelCase")]
struct BuiltinWire {
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_cert: Option<CaCertWire>,
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "BuiltinCaCert")
)]
struct CaCertWire {
    #[serde(rename = "RSAbits", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(extend("enum" = [2048, 3072, 4096, null])))]
    rsa_bits: Option<u32>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "duration::serialize_mesh"
    )]
    #[cfg_attr(feature = "schema", schemars(with = "Option<duration::MeshDuration>"))]
    expiration: Option<Duration>,
}

impl From<BuiltinConf> for BuiltinWire {
    fn from(conf: BuiltinConf) -> Self {
        Self {
            ca_cert: (conf != BuiltinConf::default()).then_some(CaCertWire {
                rsa_bits: conf.rsa_bits,
                expiration: conf.expiration,
            }),
        }
    }
}
