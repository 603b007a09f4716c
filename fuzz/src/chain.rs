//! What a CA returned: whatever is accepted has exactly the requested names and the request's key.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use meshca_core::{
    CertificateRequest, CertificateSpec, LifetimePolicy, Profile, SignedChain, SpiffeId,
};
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa};
use rcgen::{KeyUsagePurpose, SanType, SerialNumber};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::*;

use super::pki::{Key, Pki, RequestKey, domain, key, now, sign, signed_part, workload_key};

struct World {
    pki: Pki,
    requests: [CertificateRequest; 3],
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let id = SpiffeId::new("spiffe://example.org/ns/shop/sa/cart").expect("a SPIFFE ID");
    let plain = CertificateSpec::workload(id).with_lifetime(Duration::from_secs(3600));
    let named = plain
        .clone()
        .with_common_name("cart.mesh")
        .with_dns_name("cart.shop.svc")
        .with_uri("kuma://kuma.io/service/cart")
        .with_lifetime_policy(LifetimePolicy::AcceptIssuer);
    let below = CertificateSpec::intermediate(&domain(), "below")
        .expect("a spec")
        .with_lifetime(Duration::from_secs(24 * 3600));
    World {
        pki: Pki::new(),
        requests: [
            (plain, workload_key()),
            (named, workload_key()),
            (below, key(9)),
        ]
        .map(|(spec, key)| CertificateRequest::for_key(spec, &key, now()).expect("a request")),
    }
});

/// What a record of the input stands for, by its first byte modulo their number.
#[derive(Clone, Copy)]
enum Record {
    /// A whole certificate.
    Raw,
    /// What is to be certified, and by whom: the CAs sign whatever they are told.
    SignedByIssuing,
    SignedByRoot,
    SignedByForeign,
    /// A certificate of the PKI; the record has no content.
    Issuing,
    Root,
    Cross,
    Foreign,
}

const RECORDS: [Record; 8] = [
    Record::Raw,
    Record::SignedByIssuing,
    Record::SignedByRoot,
    Record::SignedByForeign,
    Record::Issuing,
    Record::Root,
    Record::Cross,
    Record::Foreign,
];

/// A byte that chooses the request, then records: a byte for the kind, two for the length, the content.
pub fn returned_chain(data: &[u8]) -> bool {
    let Some((choice, mut rest)) = data.split_first() else {
        return false;
    };
    let World { pki, requests } = &*WORLD;
    let request = &requests[usize::from(*choice) % requests.len()];
    let mut chain = Vec::new();
    while let [kind, high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (content, next) = after.split_at(length);
        chain.push(match RECORDS[usize::from(*kind) % RECORDS.len()] {
            Record::Raw => content.to_vec().into(),
            Record::SignedByIssuing => sign(content, &pki.issuing.key).into(),
            Record::SignedByRoot => sign(content, &pki.root.key).into(),
            Record::SignedByForeign => sign(content, &pki.foreign.key).into(),
            Record::Issuing => pki.issuing.der.clone(),
            Record::Root => pki.root.der.clone(),
            Record::Cross => pki.cross.clone(),
            Record::Foreign => pki.foreign.der.clone(),
        });
        rest = next;
    }
    let count = chain.len();
    let sent = chain.clone();
    let issued = match SignedChain::new(chain).verify(request, &pki.bundle, now()) {
        Ok(issued) => issued,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    assert!(count <= meshca_core::verify::MAX_CERTIFICATES);
    assert!(pki.bundle.contains(issued.root().der()));
    assert!(issued.chain().iter().all(|one| sent.contains(one)));
    assert!(!issued.chain().contains(issued.root().der()));
    assert_eq!(issued.spiffe_id(), request.spiffe_id());
    judge(issued.chain(), issued.root().der(), request);
    true
}

/// Reads the chain with another parser than core does, by the rules and not by core's code.
fn judge(chain: &[CertificateDer<'_>], root: &CertificateDer<'_>, request: &CertificateRequest) {
    let parsed: Vec<X509Certificate<'_>> = chain.iter().chain([root]).map(read).collect();
    let leaf = &parsed[0];
    let spec = request.spec();
    let workload = spec.profile() == Profile::Workload;

    assert_eq!(leaf.public_key().raw, request.public_key().as_ref());

    let (mut uris, mut dns) = (Vec::new(), Vec::new());
    let names = leaf
        .subject_alternative_name()
        .expect("names that can be read");
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::URI(uri) => uris.push((*uri).to_owned()),
            GeneralName::DNSName(name) => dns.push((*name).to_owned()),
            other => panic!("a name that nobody asked for: {other:?}"),
        }
    }
    let mut wanted_uris: Vec<String> = spec.all_uris().collect();
    let mut wanted_dns = spec.dns_names().to_vec();
    for names in [&mut uris, &mut dns, &mut wanted_uris, &mut wanted_dns] {
        names.sort();
    }
    if workload || !uris.is_empty() {
        assert_eq!(uris, wanted_uris);
    }
    assert_eq!(dns, wanted_dns);
    if let Some(wanted) = spec.common_name() {
        let found: Vec<_> = leaf
            .subject()
            .iter_common_name()
            // Whatever the type of the string: the parser does not read the older ones.
            .map(|name| name.as_slice())
            .collect();
        assert_eq!(found, [wanted.as_bytes()]);
    }

    assert_eq!(leaf.is_ca(), !workload);
    let usage = leaf.key_usage().expect("a key usage that can be read");
    if let Some(usage) = usage {
        assert_eq!(usage.value.key_cert_sign(), !workload);
        assert!(!workload || usage.value.digital_signature());
        assert!(!workload || !usage.value.crl_sign());
    }
    if workload {
        let purposes = leaf.extended_key_usage();
        // Without the extension it is for every purpose.
        if let Some(purposes) = purposes.expect("purposes that can be read") {
            assert!(purposes.value.server_auth && purposes.value.client_auth);
        }
    }

    let now = unix(now());
    for (index, certificate) in parsed.iter().enumerate() {
        let validity = certificate.validity();
        assert!(
            validity.not_before.timestamp() <= now + 60,
            "begins too late"
        );
        assert!(validity.not_after.timestamp() > now, "has ended");
        assert!(validity.not_after >= leaf.validity().not_after, "outlived");
        assert!(
            index == 0 || certificate.is_ca(),
            "signed without being a CA"
        );
    }
    if spec.lifetime_policy() == LifetimePolicy::AtMostRequested {
        let lifetime = i64::try_from(spec.lifetime().as_secs()).expect("a lifetime");
        assert!(leaf.validity().not_after.timestamp() <= now + lifetime + 60 + 1);
    }
    for pair in parsed.windows(2) {
        let (below, above) = (&pair[0], &pair[1]);
        assert_eq!(below.issuer().as_raw(), above.subject().as_raw());
        // All CAs of this PKI have Ed25519 keys, and what it signs can only chain by such signatures.
        assert_eq!(
            below.signature_algorithm.algorithm.to_id_string(),
            "1.3.101.112"
        );
        aws_lc_rs::signature::UnparsedPublicKey::new(
            &aws_lc_rs::signature::ED25519,
            &above.public_key().subject_public_key.data,
        )
        .verify(below.tbs_certificate.as_ref(), &below.signature_value.data)
        .expect("a signature by the one above");
    }
}

fn read<'a>(der: &'a CertificateDer<'_>) -> X509Certificate<'a> {
    let (rest, certificate) = X509Certificate::from_der(der).expect("a certificate");
    assert!(rest.is_empty(), "something follows the certificate");
    certificate
}

fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).expect("a time");
    i64::try_from(since.as_secs()).expect("a time")
}

fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("a short record");
    [&[kind][..], &length.to_be_bytes(), content].concat()
}

pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let World { pki, requests } = &*WORLD;
    let mut seeds = Vec::new();
    let issuing = record(4, &[]);
    for (choice, request) in requests.iter().enumerate() {
        let choice = u8::try_from(choice).expect("few");
        let params = params(request);
        let name = ["plain", "named", "intermediate"][usize::from(choice)];
        let leaf = pki.issuing.sign(&params, &RequestKey(request));
        let of_root = pki.root.sign(&params, &RequestKey(request));
        let mut add = |what: &str, records: &[&[u8]]| {
            let seed = [&[choice][..], &records.concat()].concat();
            seeds.push((format!("{name}-{what}"), seed));
        };
        add("raw", &[&record(0, &leaf), &issuing]);
        add("signed", &[&record(1, &signed_part(&leaf)), &issuing]);
        add("by-root", &[&record(2, &signed_part(&of_root))]);
        add(
            "strangers",
            &[
                &record(7, &[]),
                &record(6, &[]),
                &issuing,
                &record(1, &signed_part(&leaf)),
                &record(5, &[]),
            ],
        );
    }
    let below = pki.issuing.params.clone();
    let second = signed_part(&pki.foreign.sign(&below, &Key(&pki.issuing.key)));
    seeds.push((
        "foreign".to_owned(),
        [&[0][..], &record(3, &second)].concat(),
    ));
    seeds
}

fn params(request: &CertificateRequest) -> CertificateParams {
    let spec = request.spec();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = spec.common_name() {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    let ascii = |name: &str| name.try_into().expect("an ASCII name");
    let uris = spec.all_uris().map(|uri| SanType::URI(ascii(&uri)));
    let dns = spec
        .dns_names()
        .iter()
        .map(|name| SanType::DnsName(ascii(name)));
    params.subject_alt_names = uris.chain(dns).collect();
    params.serial_number = Some(SerialNumber::from(vec![0x4d]));
    params.not_before = (now() - Duration::from_secs(10)).into();
    params.not_after = (now() + spec.lifetime()).into();
    params.use_authority_key_identifier_extension = true;
    match spec.profile() {
        Profile::Intermediate { path_len } => {
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(path_len));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        }
        _ => {
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ];
        }
    }
    params
}
