//! The door through which the built-in CA comes into a registry.

use std::sync::Arc;

use async_trait::async_trait;

use super::{BuiltinIssuer, CaSecrets, CaSettings, DEFAULT_MAX_LEAF_LIFETIME, ProvidedCa};
use crate::registry::{BackendConfig, BackendSettings, BuildContext, IssuerFactory};
use crate::resource::{BuiltinConf, BundledCa, Provider, SELF_SIGNED_NOT_ALLOWED};
use crate::secret::{SourceReader, SourceRef};
use crate::{Error, ErrorKind, Issuer, KeyType, Result, SecretValue};

/// Builds the types `builtin` and `provided` of a Mesh, and `Bundled` of a MeshIdentity.
pub fn factory() -> impl IssuerFactory {
    Factory
}

#[derive(Debug)]
struct Factory;

#[async_trait]
impl IssuerFactory for Factory {
    fn types(&self) -> Vec<String> {
        ["builtin", "provided", "Bundled"].map(str::to_owned).into()
    }

    async fn build(
        &self,
        config: &BackendConfig,
        context: &BuildContext,
    ) -> Result<Arc<dyn Issuer>> {
        let issuer = match config.settings() {
            BackendSettings::Provider(Provider::Builtin(conf)) => {
                let secrets = CaSecrets::for_backend(context.mesh(), config.name())?;
                stored(settings(conf, secrets, config, context)?, context).await?
            }
            BackendSettings::Provider(Provider::Provided(conf)) => {
                // The classic model has no setting for it: whoever provides a root means it.
                provided(
                    &context.sources()?,
                    (&conf.cert).into(),
                    (&conf.key).into(),
                    true,
                    config,
                    context,
                )
                .await?
            }
            BackendSettings::Bundled(bundled) => match &bundled.ca {
                BundledCa::Autogenerate if !bundled.insecure_allow_self_signed => {
                    return Err(Error::new(
                        ErrorKind::InvalidConfig,
                        SELF_SIGNED_NOT_ALLOWED,
                    ));
                }
                BundledCa::Autogenerate => {
                    let secrets = CaSecrets::for_identity(context.mesh(), config.name())?;
                    stored(
                        settings(&BuiltinConf::default(), secrets, config, context)?,
                        context,
                    )
                    .await?
                }
                BundledCa::Provided {
                    certificate,
                    private_key,
                } => {
                    let allowed = bundled.insecure_allow_self_signed;
                    provided(
                        &context.sources()?,
                        certificate.into(),
                        private_key.into(),
                        allowed,
                        config,
                        context,
                    )
                    .await?
                }
            },
            BackendSettings::Provider(_) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "the built-in CA does not build this type",
                ));
            }
        };
        Ok(Arc::new(issuer))
    }
}

fn settings(
    conf: &BuiltinConf,
    secrets: CaSecrets,
    config: &BackendConfig,
    context: &BuildContext,
) -> Result<CaSettings> {
    let mut settings = CaSettings::new(context.trust_domain().clone(), secrets)
        .with_max_leaf_lifetime(config.lifetime().max(DEFAULT_MAX_LEAF_LIFETIME));
    if let Some(bits) = conf.rsa_bits {
        let key_type = KeyType::rsa(bits).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidConfig,
                "`caCert.RSAbits` must be 2048, 3072 or 4096",
            )
            .with_context("RSAbits", bits)
        })?;
        settings = settings.with_key_type(key_type);
    }
    if let Some(lifetime) = conf.expiration {
        settings = settings.with_lifetime(lifetime);
    }
    Ok(settings)
}

async fn stored(settings: CaSettings, context: &BuildContext) -> Result<BuiltinIssuer> {
    BuiltinIssuer::load_or_create(
        settings,
        Arc::clone(context.secrets()),
        Arc::clone(context.clock()),
    )
    .await
}

async fn provided(
    sources: &SourceReader,
    certificate: SourceRef<'_>,
    key: SourceRef<'_>,
    allow_self_signed: bool,
    config: &BackendConfig,
    context: &BuildContext,
) -> Result<BuiltinIssuer> {
    let located = |error: Error| {
        error
            .with_context("certificate", certificate)
            .with_context("key", key)
    };
    let certificates = sources.read(certificate).await?;
    let private = sources.read(key).await?;
    let ca = ProvidedCa::from_pem(
        text(&certificates, "CA's certificate")?,
        text(&private, "CA's key")?,
    )
    .map_err(located)?;
    let issuer = BuiltinIssuer::provided(
        context.trust_domain().clone(),
        ca.allow_self_signed(allow_self_signed),
        Arc::clone(context.clock()),
    )
    .map_err(located)?;
    Ok(issuer.with_max_leaf_lifetime(config.lifetime().max(DEFAULT_MAX_LEAF_LIFETIME)))
}

fn text<'a>(value: &'a SecretValue, what: &str) -> Result<&'a str> {
    value.expose_str().ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidConfig,
            format!("the {what} is not PEM text"),
        )
    })
}
