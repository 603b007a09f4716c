//! The product that answers, so that messages name it.

use serde::Deserialize;

/// The server at the address, as far as it has shown itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, derive_more::Display)]
pub(crate) enum Product {
    /// It has not said, or a proxy hides it.
    #[default]
    #[display("the server")]
    Unknown,
    #[display("Vault")]
    Vault,
    #[display("OpenBao")]
    OpenBao,
}

/// What both answer at `sys/health`.
#[derive(Deserialize)]
struct Health {
    version: String,
    /// Vault has said since 1.16 whether it is the Enterprise edition.
    enterprise: Option<bool>,
}

impl Product {
    /// Reads the answer to `sys/health`. OpenBao began with version 2.0, from Vault 1.14.
    pub(crate) fn of_health(body: &[u8]) -> Self {
        let Ok(health) = serde_json::from_slice::<Health>(body) else {
            return Self::Unknown;
        };
        let major = health.version.trim_start_matches('v').split('.').next();
        match (
            health.enterprise,
            major.and_then(|it| it.parse::<u32>().ok()),
        ) {
            (Some(_), _) | (None, Some(0 | 1)) => Self::Vault,
            (None, Some(_)) => Self::OpenBao,
            (None, None) => Self::Unknown,
        }
    }

    /// The name of its command-line program. OpenBao's takes the same commands as Vault's.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::OpenBao => "bao",
            Self::Unknown | Self::Vault => "vault",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_known_by_its_health() {
        for (body, product) in [
            (r#"{"version":"1.21.0","enterprise":false}"#, Product::Vault),
            (r#"{"version":"2.0.0","enterprise":true}"#, Product::Vault),
            (r#"{"version":"1.11.3+ent"}"#, Product::Vault),
            (r#"{"version":"0.11.6"}"#, Product::Vault),
            (r#"{"version":"2.6.0"}"#, Product::OpenBao),
            (
                r#"{"version":"2.6.0-beta1","cluster_name":"vault-cluster-1"}"#,
                Product::OpenBao,
            ),
            (r#"{"version":""}"#, Product::Unknown),
            (r#"{"status":"ok"}"#, Product::Unknown),
            ("<html>", Product::Unknown),
            ("", Product::Unknown),
        ] {
            assert_eq!(Product::of_health(body.as_bytes()), product, "{body}");
        }
    }
}
