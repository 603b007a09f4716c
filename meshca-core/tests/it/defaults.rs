//! The defaults table of the crate page.

use std::time::Duration;

use crate::common::{DAY, HOUR, spiffe_id, start};
use meshca_core::resource::{
    Backend, BuiltinConf, CertManagerConf, IdentityProvider, IssuerRef, MeshTrustCreation, Mode,
    Provider, Resource, VaultConf,
};
use meshca_core::secret::{LocalSources, MAX_SECRET_SIZE};
use meshca_core::verify::CLOCK_SKEW;
use meshca_core::{CertificateSpec, KeyType, LifetimePolicy, RenewalPolicy};

#[test]
fn the_defaults_of_the_crate_page() {
    let spec = CertificateSpec::workload(spiffe_id());
    assert_eq!(spec.lifetime(), DAY);
    assert_eq!(spec.lifetime_policy(), LifetimePolicy::AtMostRequested);
    assert_eq!(spec.key_type(), KeyType::P256);

    assert_eq!(CLOCK_SKEW, Duration::from_secs(60));
    let (issued, end) = (start(), start() + 10 * HOUR);
    let policy = RenewalPolicy::default();
    assert_eq!(policy.renew_at(issued, end, 0.0), issued + 5 * HOUR);
    assert_eq!(policy.renew_at(issued, end, 1.0), issued + 6 * HOUR);

    let backend = Backend::new("ca-1", Provider::new(BuiltinConf::default()));
    assert_eq!(backend.mode, Mode::Strict);
    assert_eq!(backend.dp_cert.lifetime(), DAY);
    assert_eq!(backend.root_chain.timeout(), Duration::from_secs(10));

    let documents = Resource::parse(
        "{type: Mesh, name: default, mtls: {backends: [{name: v, type: vault,
          dpCert: {rotation: {expiration: 1d}},
          conf: {fromCp: {address: 'https://vault', role: r, auth: {token: {secret: t}}}}}]}}
---
{type: MeshIdentity, name: i, mesh: default, spec: {provider: {type: Bundled,
  bundled: {insecureAllowSelfSigned: true, autogenerate: {enabled: true}}}}}",
    )
    .unwrap();
    for resource in documents {
        match resource {
            Resource::Mesh(mesh) => {
                let backends = mesh.mtls.unwrap().backends;
                let first = backends.first();
                let Some(vault) = first.and_then(|it| it.provider.settings::<VaultConf>()) else {
                    panic!("{backends:?}")
                };
                assert_eq!(vault.mount(), "pki");
                assert_eq!(vault.proxy, None);
            }
            Resource::MeshIdentity(identity) => {
                let Some(IdentityProvider::Bundled(bundled)) = identity.provider else {
                    panic!("{identity:?}")
                };
                assert_eq!(bundled.mesh_trust_creation, MeshTrustCreation::Enabled);
                assert_eq!(bundled.lifetime(), DAY);
            }
            other => panic!("{other:?}"),
        }
    }
    let issuer = IssuerRef::new("corp");
    assert_eq!(
        (issuer.kind(), issuer.group()),
        ("Issuer", "cert-manager.io")
    );
    let usages = CertManagerConf::new(issuer)
        .usages()
        .iter()
        .map(|it| it.as_str())
        .collect::<Vec<_>>();
    assert_eq!(
        usages,
        [
            "digital signature",
            "key encipherment",
            "server auth",
            "client auth"
        ]
    );
    assert_eq!(LocalSources::default(), LocalSources::Allowed);
    assert_eq!(MAX_SECRET_SIZE, 1 << 20);
}
