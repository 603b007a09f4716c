//! When an answer's certificate and the CAs above it end, by what is written in them.

use meshca_core::{KeyType, PrivateKey, SignedChain};
use rustls_pki_types::CertificateDer;

use crate::common::{Ca, DAY, HOUR, ca_params, request, start};

fn ending(name: &str, days: u32) -> rcgen::CertificateParams {
    let mut params = ca_params(name);
    params.not_after = (start() + days * DAY).into();
    params
}

#[test]
fn the_first_end_on_the_path_that_lasts_longest() {
    let root = Ca::root_with(ending("root", 30));
    let short = root.below_with(ending("issuing", 10));
    let long = root.below_with(ending("issuing", 40));
    let request = request(&PrivateKey::generate(KeyType::P256).unwrap());
    let leaf = short.leaf(&request, |_| {});
    // The same name and key, for longer; and another CA of the same name.
    let renewed = ending("issuing", 20).signed_by(&short.key, &root.issuer());
    let renewed = renewed.unwrap().der().clone();
    let other = Ca::root_with(ending("other", 1));
    let cases: [(Vec<&CertificateDer<'_>>, bool, Option<u32>); 9] = [
        (vec![&leaf, &short.der, &root.der], false, Some(10)),
        // In any order, with strangers.
        (
            vec![&root.der, &other.der, &short.der, &leaf],
            false,
            Some(10),
        ),
        // The root is known, or it is not.
        (vec![&leaf, &short.der], true, Some(10)),
        (vec![&leaf, &short.der], false, Some(10)),
        // Of two certificates of one CA, the better one counts.
        (vec![&leaf, &short.der, &renewed], true, Some(20)),
        // One that did not sign does not count, whatever its name.
        (vec![&leaf, &long.der], true, None),
        (vec![&leaf], true, None),
        (vec![&root.der, &short.der], true, None),
        (vec![], true, None),
    ];
    for (number, (chain, known, days)) in cases.into_iter().enumerate() {
        let chain = SignedChain::new(chain.into_iter().cloned());
        let bundle = root.bundle();
        let ends = chain.ends(&request, known.then_some(&bundle));
        assert_eq!(
            ends.map(|ends| (ends.certificate, ends.issuers)),
            days.map(|days| (start() + HOUR, start() + days * DAY)),
            "case {number}"
        );
    }
}

/// Certificates of a CA that is certified by another, and that by the first.
#[test]
fn a_loop_of_cas_has_an_end() {
    let (one, other) = (Ca::root("one"), Ca::root("other"));
    let request = request(&PrivateKey::generate(KeyType::P256).unwrap());
    let chain = SignedChain::new([
        one.leaf(&request, |_| {}),
        one.cross_signed_by(&other),
        other.cross_signed_by(&one),
    ]);
    assert_eq!(
        chain.ends(&request, None).unwrap().issuers,
        start() + 365 * DAY
    );
}
