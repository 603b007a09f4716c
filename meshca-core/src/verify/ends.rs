//! When a certificate ends, and when the CAs above it do: for issuers whose CA signs past its own
//! end.

use std::time::SystemTime;

use crate::x509::Parsed;
use crate::{CertificateRequest, SignedChain, TrustBundle};

/// More CAs than any chain has. Certificates that cross-sign each other make loops.
const DEPTH: usize = 8;

/// The ends that an answer shows, by what is written in it. Nothing of it is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChainEnds {
    /// The end of the certificate for the key of the request.
    pub certificate: SystemTime,
    /// The end of the CA above it that ends first.
    pub issuers: SystemTime,
}

impl SignedChain {
    /// Reads when the certificate for this request ends, and when the first of the CAs above it
    /// does. Peers refuse what outlives its CA from then on, so [`verify`](Self::verify) refuses it
    /// at once. An issuer whose CA signs past its own end asks again, for what is left.
    ///
    /// CAs are looked for among the certificates of the answer and in `roots`, by name and
    /// signature. Where several paths lead up, the one that lasts longest counts. `None` if the
    /// certificate or a CA above it is not there or cannot be read.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use meshca_core::{CertificateRequest, CertificateSpec, SignedChain, SpiffeId};
    /// /// Returns for how long to ask instead.
    /// fn left(answer: &SignedChain, request: &CertificateRequest) -> Option<Duration> {
    ///     let ends = answer.ends(request, None)?;
    ///     let outlived = ends.certificate > ends.issuers;
    ///     outlived.then(|| ends.issuers.duration_since(request.created()).ok()).flatten()
    /// }
    /// ```
    pub fn ends(
        &self,
        request: &CertificateRequest,
        roots: Option<&TrustBundle>,
    ) -> Option<ChainEnds> {
        let roots = roots.map(TrustBundle::roots).unwrap_or_default().iter();
        let roots: Vec<_> = roots.map(|root| root.der().clone()).collect();
        let sent = self.certificates().iter().take(super::MAX_CERTIFICATES);
        let all: Vec<Parsed<'_>> = sent
            .chain(&roots)
            .filter_map(|der| Parsed::read(der).ok())
            .collect();
        let (leaves, authorities): (Vec<_>, Vec<_>) = all
            .iter()
            .partition(|one| one.public_key == *request.public_key());
        leaves
            .into_iter()
            .filter_map(|leaf| {
                Some(ChainEnds {
                    certificate: leaf.validity.not_after(),
                    issuers: above(leaf, &authorities, DEPTH)?,
                })
            })
            // Verification takes the one that fits.
            .max_by_key(|ends| ends.issuers)
    }
}

/// The end of the first CA above, on the path that lasts longest.
fn above(one: &Parsed<'_>, authorities: &[&Parsed<'_>], depth: usize) -> Option<SystemTime> {
    let depth = depth.checked_sub(1)?;
    authorities
        .iter()
        .filter(|ca| ca.der != one.der && ca.subject_name() == one.issuer_name())
        .filter(|ca| one.is_signed_by(&ca.public_key))
        .map(|ca| {
            let end = ca.validity.not_after();
            match ca.is_self_issued() {
                true => end,
                false => above(ca, authorities, depth).map_or(end, |above| end.min(above)),
            }
        })
        .max()
}
