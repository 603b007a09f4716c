//! A leaf below one root, as a CA elsewhere returns it.

use std::hint::black_box;
use std::time::UNIX_EPOCH;

use meshca::peer::Peer;
use meshca::{
    CertificateRequest, Clock, Issuer, KeyType, PrivateKey, Proof, SignedChain, SystemClock,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::issue::{issuer, spec};
use super::{Case, Result, each, ready};

/// The CA's answer to a request, and what it is verified against.
struct Answer {
    request: CertificateRequest,
    chain: SignedChain,
    bundle: meshca::TrustBundle,
    clock: SystemClock,
}

fn answer() -> Result<Answer> {
    let clock = SystemClock::new();
    let issuer = issuer(clock)?;
    let key = PrivateKey::generate(KeyType::P256)?;
    let request = CertificateRequest::for_key(spec()?, &key, clock.now())?;
    let signed = ready(issuer.sign(&request))??;
    Ok(Answer {
        // The certificates alone: what came over a network has no memory of how it was made.
        chain: SignedChain::new(signed.certificates().iter().cloned()),
        bundle: ready(issuer.trust_bundle())??,
        request,
        clock,
    })
}

/// Ours: every rule of the `verify` module.
pub(super) fn leaf() -> Result<Box<dyn Case>> {
    let Answer {
        request,
        chain,
        bundle,
        clock,
    } = answer()?;
    let certificate = chain.clone().verify(&request, &bundle, clock.now())?;
    if certificate.proof() != Proof::Signatures {
        return Err("the chain is not verified by its signatures".into());
    }
    each(move || {
        black_box(chain.clone().verify(&request, &bundle, clock.now())?);
        Ok(())
    })
}

/// Ours in a handshake: who the client is, by the same certificate.
pub(super) fn peer() -> Result<Box<dyn Case>> {
    let Answer {
        chain,
        bundle,
        clock,
        ..
    } = answer()?;
    let leaf = chain.certificates().first().cloned().ok_or("no leaf")?;
    each(move || {
        let peer = Peer::client(black_box(&leaf), &[]);
        let roots_of = |_: &_| Some(&bundle);
        black_box(peer.prove(roots_of, webpki::ALL_VERIFICATION_ALGS, clock.now())?);
        Ok(())
    })
}

/// The path alone: names, validity, extended key usage, signature.
pub(super) fn webpki() -> Result<Box<dyn Case>> {
    let Answer {
        chain,
        bundle,
        clock,
        ..
    } = answer()?;
    let leaf = chain.certificates().first().cloned().ok_or("no leaf")?;
    let root: CertificateDer<'static> = bundle.roots().first().ok_or("no root")?.der().clone();
    let anchors = [anchor_from_trusted_cert(&root)?.to_owned()];
    each(move || {
        let now = UnixTime::since_unix_epoch(clock.now().duration_since(UNIX_EPOCH)?);
        let leaf = EndEntityCert::try_from(black_box(&leaf))?;
        black_box(leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &[],
            now,
            KeyUsage::server_auth(),
            None,
            None,
        )?);
        Ok(())
    })
}
