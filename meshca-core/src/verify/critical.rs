//! Critical extensions about certificate policies, for a library that knows none of them.
//!
//! webpki refuses a certificate with a critical extension that it does not know, and it knows none of
//! those about policies. A path that needs no policy is valid whatever they say (RFC 5280 §6.1.5 (g)),
//! and [`usages`](crate::usages) has refused the one extension that demands policies. So webpki is
//! shown a copy of the certificate in which they are not critical. The copy differs in these bytes
//! alone, and its signature is verified over the bytes of the original.

use der::oid::AssociatedOid;
use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm,
};
use x509_cert::ext::pkix::{
    CertificatePolicies, InhibitAnyPolicy, PolicyConstraints, PolicyMappings,
};

use crate::x509::Parsed;

/// A copy of a certificate, and what was signed of the original.
#[derive(Debug)]
pub(super) struct Uncritical<'a> {
    pub(super) der: CertificateDer<'a>,
    signed: std::ops::Range<usize>,
    original: &'a [u8],
}

impl<'a> Uncritical<'a> {
    /// `None` where no copy is needed.
    pub(super) fn of(certificate: &Parsed<'a>) -> Option<Self> {
        let extensions = certificate.extensions().iter();
        let critical = extensions.filter(|one| {
            one.critical
                && [
                    CertificatePolicies::OID,
                    PolicyMappings::OID,
                    PolicyConstraints::OID,
                    InhibitAnyPolicy::OID,
                ]
                .contains(&one.id)
        });
        let mut copy: Option<Vec<u8>> = None;
        for extension in critical {
            let value = within(certificate.der, extension.value())?;
            // Before the value stand its header, and before that `01 01 ff`: true.
            let header = match value.len() {
                0..0x80 => 2,
                0x80..0x100 => 3,
                _ => 4,
            };
            let end = value.start.checked_sub(header)?;
            let flag = copy
                .get_or_insert_with(|| certificate.der.to_vec())
                .get_mut(end.checked_sub(3)?..end)?;
            match flag {
                [0x01, 0x01, critical @ 0xff] => *critical = 0,
                _ => return None,
            }
        }
        let original = certificate.tbs_der();
        Some(Self {
            der: CertificateDer::from(copy?),
            signed: within(certificate.der, original)?,
            original,
        })
    }

    pub(super) fn is_of(&self, certificate: &Parsed<'_>) -> bool {
        self.original == certificate.tbs_der()
    }
}

/// The place of a part in its whole.
fn within(whole: &[u8], part: &[u8]) -> Option<std::ops::Range<usize>> {
    let start = (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
    let end = start.checked_add(part.len())?;
    (whole.get(start..end)? == part).then_some(start..end)
}

/// An algorithm that verifies the signature of a copy over the original.
#[derive(Debug)]
pub(super) struct OfOriginals<'a> {
    pub(super) algorithm: &'a dyn SignatureVerificationAlgorithm,
    pub(super) copies: &'a [Uncritical<'a>],
}

impl SignatureVerificationAlgorithm for OfOriginals<'_> {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let mut copies = self.copies.iter();
        let copy = copies.find(|copy| copy.der.get(copy.signed.clone()) == Some(message));
        let message = copy.map_or(message, |copy| copy.original);
        self.algorithm
            .verify_signature(public_key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.algorithm.fips()
    }
}
