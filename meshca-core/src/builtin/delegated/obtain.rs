//! Having an intermediate signed, and looking at it before anything depends on it.

use super::settings::{DelegatedSettings, MIN_INTERMEDIATE_LIFETIME};
use super::state::{DelegatedStore, Intermediate, State, as_pem, assemble};
use crate::time::{rfc3339, seconds};
use crate::{
    CertificateRequest, CertificateSpec, Clock, Error, ErrorKind, IssuedCertificate, Issuer,
    IssuingCa, PrivateKey, Result, TrustBundle, pem, x509,
};

/// An intermediate that nobody knows of yet.
pub(super) struct Obtained {
    pub(super) intermediate: Intermediate,
    pub(super) upstream_roots: Vec<String>,
}

/// Refuses an upstream that cannot do what it is for, without asking it.
pub(super) fn check_upstream(settings: &DelegatedSettings, upstream: &dyn Issuer) -> Result<()> {
    let capabilities = upstream.capabilities();
    let key_types = capabilities.key_types();
    let lacking = if !capabilities.intermediates() {
        "intermediate CAs; let it sign every leaf, or use another CA".to_owned()
    } else if !key_types.is_empty() && !key_types.contains(&settings.key_type) {
        format!("{} keys; choose another key type", settings.key_type)
    } else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("the upstream of a delegated CA cannot sign {lacking}"),
    )
    .with_context("upstream", upstream))
}

/// Asks the upstream for its roots. None at all is no answer to trust anything by.
pub(super) async fn roots_of(
    settings: &DelegatedSettings,
    upstream: &IssuingCa,
) -> Result<TrustBundle> {
    let named = |error: Error| error.with_context("upstream", upstream);
    let bundle = upstream.refresh().await.map_err(named)?;
    if *bundle.trust_domain() != settings.trust_domain {
        return Err(named(
            Error::new(
                ErrorKind::InvalidConfig,
                "the upstream of the delegated CA serves another trust domain",
            )
            .with_context("trust domain", &settings.trust_domain)
            .with_context("upstream's", bundle.trust_domain()),
        ));
    }
    if bundle.is_empty() {
        return Err(named(Error::new(
            ErrorKind::BadResponse,
            "the upstream of the delegated CA has no root",
        )));
    }
    Ok(bundle)
}

/// Has the next intermediate signed and proves it. Nothing is announced: until the caller does,
/// all that remains is a key, which the next attempt uses.
pub(super) async fn obtain(
    store: &DelegatedStore,
    upstream: &IssuingCa,
    clock: &dyn Clock,
    state: &State,
) -> Result<Obtained> {
    let settings = &store.settings;
    // All that can be known before a key is made and a certificate is paid for.
    check_upstream(settings, &**upstream)?;
    let named = |error: Error| error.with_context("upstream", upstream);
    upstream.check().await.map_err(named)?;
    let roots = roots_of(settings, upstream).await?;
    let mut upstream_roots = as_pem(&roots);
    // An upstream that does not have its root names an intermediate. Whether peers have the root is
    // known where the trust of all CAs is, and nothing is handed out without it.
    let bare = roots.ends().next().is_none();
    let proven = upstream.for_peers_with(roots.allow_partial_chains(bare));

    let number = state.last.saturating_add(1);
    let key = store.key_or_create(number).await?;
    let request = request(settings, &key, clock)?;
    let issued = proven.issue_for(&request, clock).await;
    let judged = issued.and_then(|issued| judge(settings, &issued, number, key, clock));
    if let Err(error) = &judged
        && let ErrorKind::BadResponse | ErrorKind::Unsupported = error.kind()
    {
        // An answer that is no good must not be the answer to the next request as well. If the store
        // cannot be written now, the key is tried once more, which is no worse than before.
        let _ = give_up(store, number).await;
    }
    let intermediate = judged?;
    // The upstream may have rotated between the two answers.
    if !upstream_roots.contains(&intermediate.root) {
        upstream_roots.push(intermediate.root.clone());
    }
    Ok(Obtained {
        intermediate,
        upstream_roots,
    })
}

fn request(
    settings: &DelegatedSettings,
    key: &PrivateKey,
    clock: &dyn Clock,
) -> Result<CertificateRequest> {
    // Named after its key, so that no two CAs above each other have one name, which would look
    // self-issued, and so that a retry asks for the same.
    let domain: String = settings.trust_domain.as_str().chars().take(40).collect();
    let digest = x509::fingerprint(key.public_key());
    let name = format!("{domain} intermediate {digest:.8}");
    let spec = CertificateSpec::intermediate(&settings.trust_domain, name)?
        .with_key_type(settings.key_type)
        .with_path_len(settings.path_len)
        .with_lifetime(settings.lifetime)
        .with_lifetime_policy(settings.lifetime_policy);
    CertificateRequest::for_key(spec, key, clock.now())
}

/// What the ordinary verification does not know: what the intermediate is for.
fn judge(
    settings: &DelegatedSettings,
    issued: &IssuedCertificate,
    number: u32,
    key: PrivateKey,
    clock: &dyn Clock,
) -> Result<Intermediate> {
    let now = clock.now();
    let mut intermediate = Intermediate {
        number,
        issued_at: seconds(now),
        not_after: 0,
        chain: issued.chain_pem(),
        root: pem::encode("CERTIFICATE", issued.root().der()),
    };
    let refused = |why: String| {
        Error::new(
            ErrorKind::BadResponse,
            format!("the intermediate that the upstream signed is refused: {why}"),
        )
    };
    let authority = assemble(&intermediate, key)
        .map_err(|error| refused(error.message().to_owned()).with_source(error))?;
    intermediate.not_after = seconds(authority.not_after);
    let remaining = intermediate.remaining(now);
    if remaining < MIN_INTERMEDIATE_LIFETIME {
        return Err(refused(format!(
            "it ends at {}, in {}s; {}s are the least that can be used, and {}s were asked for",
            rfc3339(authority.not_after),
            remaining.as_secs(),
            MIN_INTERMEDIATE_LIFETIME.as_secs(),
            settings.lifetime.as_secs(),
        )));
    }
    if settings.path_len > 0 && !authority.allows_intermediate(settings.path_len - 1) {
        return Err(refused(format!(
            "CAs were to stand below it, but its path length is less than the {} asked for",
            settings.path_len
        )));
    }
    Ok(intermediate)
}

/// Never uses this number again, unless somebody else announced it meanwhile.
async fn give_up(store: &DelegatedStore, number: u32) -> Result<()> {
    let update = store.update(|state| {
        Ok((state.last < number).then(|| State {
            last: number,
            ..state.clone()
        }))
    });
    let state = update.await?;
    if state.refers_to(number) {
        return Ok(());
    }
    store.delete_key(number).await
}
