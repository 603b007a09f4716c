//! One table of chains, judged as the answer of a CA and as the certificates of a peer. Where the two
//! verdicts differ, the table says why.

use std::time::{Duration, SystemTime};

use crate::common::*;
use meshca_core::pki_types::CertificateDer;
use meshca_core::{CertificateRequest, CertificateSpec, KeyType, PrivateKey, SignedChain};
use meshca_core::{LifetimePolicy, TrustBundle};
use meshca_identity::TrustBundles;
use meshca_identity::rustls023::{PeerPolicy, PeerVerifier};
use meshca_testkit::FakeClock;
use meshca_testkit::pki::TestCa;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints,
    PublicKeyData, SanType,
};
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const WEB: &str = "spiffe://example.org/web";
const DNS: &str = "web.example.org";

const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const NAME_CONSTRAINTS: &[u64] = &[2, 5, 29, 30];
/// `keyCertSign`, and a bit beyond those that it says it has (X.690 §11.2.1: it must be zero).
const STRAY_BITS: &[u8] = &[0x03, 0x02, 0x02, 0x05];
const ANY_PURPOSE: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::Any;

type Der = CertificateDer<'static>;

fn start() -> SystemTime {
    FakeClock::start()
}

#[derive(Clone)]
struct Ca {
    params: CertificateParams,
    key: std::sync::Arc<KeyPair>,
    der: Der,
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = (start() - DAY).into();
    params.not_after = (start() + 30 * DAY).into();
    params
}

impl Ca {
    fn root(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = ca_params("root");
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        let key = key.into();
        Self { params, key, der }
    }

    fn below(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = ca_params(name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.issuer()).unwrap();
        let (key, der) = (key.into(), der.der().clone());
        Self { params, key, der }
    }

    /// The same name and key in another certificate, signed by itself.
    fn renewed(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = self.params.clone();
        params.serial_number = Some(7_u64.into());
        change(&mut params);
        let der = params.self_signed(&*self.key).unwrap().der().clone();
        let key = std::sync::Arc::clone(&self.key);
        Self { params, key, der }
    }

    /// The same name and key, certified by another CA.
    fn certified_by(&self, other: &Ca) -> Der {
        let der = self.params.signed_by(&*self.key, &other.issuer()).unwrap();
        der.der().clone()
    }

    fn issuer(&self) -> rcgen::Issuer<'_, &KeyPair> {
        rcgen::Issuer::from_params(&self.params, &*self.key)
    }
}

/// The P-256 key of a request.
struct RequestKey<'a>(&'a CertificateRequest);

impl PublicKeyData for RequestKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        let spki = self.0.public_key();
        &spki[spki.len() - 65..]
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// The verdicts on a chain: of the control plane that asked a CA for it, of a server whose client
/// shows it, and of a client whose server does.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Taken {
    issued: bool,
    as_client: bool,
    as_server: bool,
}

const BY_ALL: Taken = Taken {
    issued: true,
    as_client: true,
    as_server: true,
};
const BY_NONE: Taken = Taken {
    issued: false,
    as_client: false,
    as_server: false,
};
/// An issued certificate must hold for longer, and for more, than one handshake.
const BY_PEERS: Taken = Taken {
    issued: false,
    ..BY_ALL
};

struct Table {
    request: CertificateRequest,
    with_dns: CertificateRequest,
    own: TestCa,
    wrong: Vec<String>,
    rows: usize,
}

impl Table {
    fn new() -> Self {
        let request = |spec: CertificateSpec| {
            let spec = spec
                .with_lifetime(HOUR)
                .with_lifetime_policy(LifetimePolicy::AcceptIssuer);
            let key = PrivateKey::generate(KeyType::P256).unwrap();
            CertificateRequest::for_key(spec, &key, start()).unwrap()
        };
        Self {
            request: request(workload(WEB)),
            with_dns: request(workload(WEB).with_dns_name(DNS)),
            own: ca("own"),
            wrong: Vec::new(),
            rows: 0,
        }
    }

    fn leaf_params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(WEB.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.not_before = (start() - HOUR).into();
        params.not_after = (start() + DAY).into();
        params
    }

    fn leaf(&self, ca: &Ca) -> Der {
        self.changed(ca, |_| {})
    }

    fn changed(&self, ca: &Ca, change: impl FnOnce(&mut CertificateParams)) -> Der {
        let mut params = self.leaf_params();
        change(&mut params);
        let leaf = params.signed_by(&RequestKey(&self.request), &ca.issuer());
        leaf.unwrap().der().clone()
    }

    fn named(&self, ca: &Ca) -> Der {
        let mut params = self.leaf_params();
        let name = SanType::DnsName(DNS.try_into().unwrap());
        params.subject_alt_names.push(name);
        let leaf = params.signed_by(&RequestKey(&self.with_dns), &ca.issuer());
        leaf.unwrap().der().clone()
    }

    fn row(&mut self, what: &str, taken: Taken, roots: &[&Der], chain: &[&Der]) {
        self.row_at(start(), what, taken, roots, chain);
    }

    /// Asks for all three verdicts, and notes the row if one is not as expected.
    fn row_at(
        &mut self,
        now: SystemTime,
        what: &str,
        expected: Taken,
        roots: &[&Der],
        chain: &[&Der],
    ) {
        let roots = roots.iter().map(|der| (*der).clone());
        let bundle = TrustBundle::new(domain("example.org"), roots).unwrap();
        let chain: Vec<Der> = chain.iter().map(|der| (*der).clone()).collect();
        let for_dns = self.with_dns.public_key();
        let request = if chain[0]
            .windows(for_dns.len())
            .any(|key| key == for_dns.as_ref())
        {
            &self.with_dns
        } else {
            &self.request
        };
        let issued = SignedChain::new(chain.clone())
            .verify(request, &bundle, now)
            .map(drop)
            .map_err(|error| error.to_string());
        let verifier = self.verifier(&bundle, now);
        // The time of rustls is not looked at.
        let never = UnixTime::since_unix_epoch(Duration::ZERO);
        let as_client = verifier
            .verify_client_cert(&chain[0], &chain[1..], never)
            .map(drop)
            .map_err(|error| error.to_string());
        let name = ServerName::try_from("not-looked-at.example").unwrap();
        let as_server = verifier
            .verify_server_cert(&chain[0], &chain[1..], &name, &[], never)
            .map(drop)
            .map_err(|error| error.to_string());
        let taken = Taken {
            issued: issued.is_ok(),
            as_client: as_client.is_ok(),
            as_server: as_server.is_ok(),
        };
        self.rows += 1;
        if taken != expected {
            self.wrong.push(format!(
                "{what}: expected {expected:?}, and\n  issued: {issued:?}\n  as client: {as_client:?}\n  as server: {as_server:?}"
            ));
        }
    }

    fn verifier(&self, bundle: &TrustBundle, now: SystemTime) -> std::sync::Arc<PeerVerifier> {
        let mut trust = TrustBundles::new();
        trust.add(bundle).unwrap();
        let ours = credentials(&self.own, "spiffe://example.org/ours", trust);
        let settings = settings(PeerPolicy::SameDomain, &FakeClock::at(now));
        settings.verifier(&ours).unwrap()
    }

    fn done(self) {
        assert!(
            self.wrong.is_empty(),
            "{} of {} rows:\n{}",
            self.wrong.len(),
            self.rows,
            self.wrong.join("\n")
        );
    }
}

#[test]
fn a_chain_leads_from_the_leaf_to_a_root_that_is_held() {
    let mut table = Table::new();
    let root = Ca::root(|_| {});
    let one = root.below("one", |_| {});
    let two = one.below("two", |_| {});
    let (direct, below_one, below_two) = (table.leaf(&root), table.leaf(&one), table.leaf(&two));
    let held: &[&Der] = &[&root.der];
    table.row("below the root", BY_ALL, held, &[&direct]);
    table.row("one CA between", BY_ALL, held, &[&below_one, &one.der]);
    table.row(
        "two between",
        BY_ALL,
        held,
        &[&below_two, &two.der, &one.der],
    );
    table.row(
        "in another order, with the root and a stranger",
        BY_ALL,
        held,
        &[
            &below_two,
            &root.der,
            &one.der,
            &Ca::root(|_| {}).der,
            &two.der,
        ],
    );
    table.row("one is missing", BY_NONE, held, &[&below_two, &two.der]);
    table.row(
        "the intermediate itself is held",
        BY_NONE,
        &[&one.der],
        &[&below_two, &two.der],
    );
    table.row(
        "it and its root are held",
        BY_ALL,
        &[&root.der, &one.der],
        &[&below_two, &two.der],
    );
    table.row("nothing is held", BY_NONE, &[], &[&direct]);
    let stranger = Ca::root(|_| {});
    table.row(
        "another root of the same name",
        BY_NONE,
        &[&stranger.der],
        &[&direct],
    );
    table.row(
        "that one beside the right one",
        BY_ALL,
        &[&stranger.der, &root.der],
        &[&direct],
    );
    let bridge = root.certified_by(&stranger);
    table.row(
        "by a cross-signed root",
        BY_ALL,
        &[&stranger.der],
        &[&below_one, &one.der, &root.der, &bridge],
    );
    let mut altered = direct.to_vec();
    let last = altered.len() - 1;
    altered[last] ^= 1;
    table.row(
        "the signature is altered",
        BY_NONE,
        held,
        &[&Der::from(altered)],
    );
    // Peers send what they like; a CA that sends this is not understood.
    let junk = Der::from(vec![0x30, 0x03, 0x02, 0x01, 0x01]);
    table.row(
        "what is no certificate, off the path",
        BY_PEERS,
        held,
        &[&direct, &junk],
    );
    let deep: Vec<Ca> = (0..7).fold(vec![root.clone()], |mut cas, level| {
        cas.push(cas[level].below(&format!("level {level}"), |_| {}));
        cas
    });
    for (depth, taken) in [(6, BY_ALL), (7, BY_NONE)] {
        let leaf = table.leaf(&deep[depth]);
        let mut chain = vec![&leaf];
        chain.extend(deep[1..=depth].iter().rev().map(|ca| &ca.der));
        table.row(&format!("{depth} CAs between"), taken, held, &chain);
    }
    table.done();
}

#[test]
fn every_certificate_of_the_path_is_valid_and_so_is_the_root() {
    let mut table = Table::new();
    let root = Ca::root(|_| {});
    let held: &[&Der] = &[&root.der];
    let expired = |params: &mut CertificateParams| params.not_after = (start() - HOUR).into();
    let tomorrow = |params: &mut CertificateParams| params.not_before = (start() + DAY).into();
    let leaf = table.changed(&root, |leaf| expired(leaf));
    table.row("an expired leaf", BY_NONE, held, &[&leaf]);
    let leaf = table.changed(&root, |leaf| {
        tomorrow(leaf);
        leaf.not_after = (start() + 2 * DAY).into();
    });
    table.row("a leaf from tomorrow", BY_NONE, held, &[&leaf]);
    for (what, change) in [
        ("expired", expired as fn(&mut CertificateParams)),
        ("from tomorrow", tomorrow as fn(&mut CertificateParams)),
    ] {
        let ca = root.below("issuing", change);
        let leaf = table.leaf(&ca);
        let what_ca = format!("an intermediate {what}");
        table.row(&what_ca, BY_NONE, held, &[&leaf, &ca.der]);
        let sound = ca.renewed(|_| {});
        let mut again = sound.params.clone();
        again.not_before = (start() - DAY).into();
        again.not_after = (start() + 30 * DAY).into();
        let again = Ca {
            params: again,
            ..sound
        };
        let again = again.certified_by(&root);
        table.row(
            &format!("{what_ca}, and the same renewed"),
            BY_ALL,
            held,
            &[&leaf, &ca.der, &again],
        );
        let ca = Ca::root(change);
        let leaf = table.leaf(&ca);
        table.row(&format!("a root {what}"), BY_NONE, &[&ca.der], &[&leaf]);
    }
    let leaf = table.leaf(&root);
    let end = start() + DAY;
    let second = Duration::from_secs(1);
    // An issued certificate must have some time left.
    table.row_at(end, "at its very end", BY_PEERS, held, &[&leaf]);
    table.row_at(end - second, "a second before", BY_ALL, held, &[&leaf]);
    table.row_at(end + second, "a second later", BY_NONE, held, &[&leaf]);

    // Peers would refuse an issued certificate from the end of its issuer on. A handshake is now.
    let soon = |params: &mut CertificateParams| params.not_after = (start() + HOUR).into();
    let ca = root.below("issuing", soon);
    let leaf = table.leaf(&ca);
    let outlives = "a leaf that outlives";
    table.row(
        &format!("{outlives} an intermediate"),
        BY_PEERS,
        held,
        &[&leaf, &ca.der],
    );
    let ca = Ca::root(soon);
    let leaf = table.leaf(&ca);
    table.row(
        &format!("{outlives} the root"),
        BY_PEERS,
        &[&ca.der],
        &[&leaf],
    );
    table.done();
}

/// A renewed root has the name and key of the one it renews, so a path leads to both of them.
#[test]
fn of_roots_with_one_name_and_key_one_that_fits_is_enough_for_peers() {
    let mut table = Table::new();
    let root = Ca::root(|_| {});
    let leaf = table.leaf(&root);
    let issuing = root.below("issuing", |_| {});
    let below = table.leaf(&issuing);
    let expired = root.renewed(|root| root.not_after = (start() - HOUR).into());
    let ends_soon = root.renewed(|root| root.not_after = (start() + HOUR).into());
    let of_tomorrow = root.renewed(|root| {
        root.not_before = (start() + DAY).into();
        root.not_after = (start() + 60 * DAY).into();
    });
    let signs_crls = root.renewed(|root| {
        root.key_usages = vec![KeyUsagePurpose::CrlSign];
        root.not_after = (start() + 60 * DAY).into();
    });
    let flat = root.renewed(|root| {
        root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        root.not_after = (start() + 60 * DAY).into();
    });
    let signs_crls_and_ends = root.renewed(|root| {
        root.key_usages = vec![KeyUsagePurpose::CrlSign];
        root.not_after = (start() + 2 * DAY).into();
    });
    // Envoy takes the first of that name, whatever its dates. An issued certificate must suit the
    // root that stays for longest.
    for (what, other, taken) in [
        ("the same expired", &expired, BY_ALL),
        ("one that the leaf outlives", &ends_soon, BY_ALL),
        (
            "one that ends sooner and may not sign",
            &signs_crls_and_ends,
            BY_ALL,
        ),
        (
            "one from tomorrow that lasts longer",
            &of_tomorrow,
            BY_PEERS,
        ),
        (
            "one that lasts longer and may not sign",
            &signs_crls,
            BY_PEERS,
        ),
    ] {
        table.row(what, taken, &[&root.der, &other.der], &[&leaf]);
        let turned = format!("{what}, first");
        table.row(&turned, taken, &[&other.der, &root.der], &[&leaf]);
    }
    let chain: &[&Der] = &[&below, &issuing.der];
    let what = "one that lasts longer and may have no CA below";
    table.row(what, BY_PEERS, &[&root.der, &flat.der], chain);
    table.row(what, BY_PEERS, &[&flat.der, &root.der], chain);
    let what = "neither of two fits";
    table.row(what, BY_NONE, &[&expired.der, &signs_crls.der], &[&leaf]);
    table.done();
}

#[test]
fn cas_are_cas_and_only_so_many_deep() {
    let mut table = Table::new();
    let limit = |most: u8| {
        move |params: &mut CertificateParams| {
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(most));
        }
    };
    for (most, between, taken) in [
        (0, 0, BY_ALL),
        (0, 1, BY_NONE),
        (1, 1, BY_ALL),
        (1, 2, BY_NONE),
        (2, 2, BY_ALL),
    ] {
        for below_the_root in [false, true] {
            let root = Ca::root(|params| {
                if !below_the_root {
                    limit(most)(params);
                }
            });
            let mut cas = vec![root.clone()];
            if below_the_root {
                cas.push(root.below("limited", limit(most)));
            }
            for level in 0..between {
                cas.push(cas[cas.len() - 1].below(&format!("level {level}"), |_| {}));
            }
            let leaf = table.leaf(&cas[cas.len() - 1]);
            let mut chain = vec![&leaf];
            chain.extend(cas[1..].iter().rev().map(|ca| &ca.der));
            let what =
                format!("{between} below a limit of {most}, not at the root: {below_the_root}");
            table.row(&what, taken, &[&root.der], &chain);
        }
    }
    // RFC 5280 §6.1.4 (l): a CA that has certified its own next key does not count.
    let root = Ca::root(limit(0));
    let next = root.below("root", |_| {});
    let leaf = table.leaf(&next);
    table.row(
        "self-issued under a root with a limit of 0",
        BY_ALL,
        &[&root.der],
        &[&leaf, &next.der],
    );
    let root = Ca::root(|_| {});
    let no_extension = |params: &mut CertificateParams| params.is_ca = IsCa::NoCa;
    let says_no = |params: &mut CertificateParams| params.is_ca = IsCa::ExplicitNoCa;
    for (what, change) in [
        ("no CA", no_extension as fn(&mut CertificateParams)),
        ("explicitly no CA", says_no as fn(&mut CertificateParams)),
    ] {
        let not_a_ca = root.below("not a CA", change);
        let leaf = table.leaf(&not_a_ca);
        table.row(what, BY_NONE, &[&root.der], &[&leaf, &not_a_ca.der]);
    }
    let leaf = table.changed(&root, says_no);
    table.row(
        "a leaf that says it is no CA",
        BY_ALL,
        &[&root.der],
        &[&leaf],
    );
    let leaf = table.changed(&root, |leaf| {
        leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
    table.row("a CA as leaf", BY_NONE, &[&root.der], &[&leaf]);
    table.done();
}

#[test]
fn key_usages_bind_leaves_and_cas() {
    let mut table = Table::new();
    let root = Ca::root(|_| {});
    let held: &[&Der] = &[&root.der];
    let none = |params: &mut CertificateParams| params.key_usages.clear();
    let crl_only =
        |params: &mut CertificateParams| params.key_usages = vec![KeyUsagePurpose::CrlSign];
    let raw = |content: &'static [u8]| {
        move |params: &mut CertificateParams| {
            params.key_usages.clear();
            let usage = CustomExtension::from_oid_content(KEY_USAGE, content.to_vec());
            params.custom_extensions.push(usage);
        }
    };
    type Change = Box<dyn Fn(&mut CertificateParams)>;
    let twice = |params: &mut CertificateParams| {
        let usage = CustomExtension::from_oid_content(KEY_USAGE, vec![0x03, 0x02, 0x02, 0x04]);
        params.custom_extensions.push(usage);
    };
    let cases: [(&str, Change, Taken); 5] = [
        ("no key usage", Box::new(none), BY_ALL),
        ("may sign CRLs only", Box::new(crl_only), BY_NONE),
        ("by hand", Box::new(raw(&[0x03, 0x02, 0x02, 0x04])), BY_ALL),
        ("not a bit string", Box::new(raw(&[0x05, 0x00])), BY_NONE),
        ("stray bits", Box::new(raw(STRAY_BITS)), BY_NONE),
    ];
    for (what, change, taken) in cases {
        let ca = root.below("issuing", &change);
        let leaf = table.leaf(&ca);
        let below = format!("an intermediate: {what}");
        table.row(&below, taken, held, &[&leaf, &ca.der]);
        let ca = Ca::root(&change);
        let leaf = table.leaf(&ca);
        table.row(&format!("a root: {what}"), taken, &[&ca.der], &[&leaf]);
    }
    let ca = root.below("issuing", twice);
    let leaf = table.leaf(&ca);
    table.row("an intermediate: twice", BY_NONE, held, &[&leaf, &ca.der]);
    let leaf = |usages: &[KeyUsagePurpose]| {
        let usages = usages.to_vec();
        move |params: &mut CertificateParams| params.key_usages = usages
    };
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign, KeyEncipherment};
    for (what, change, taken) in [
        ("none", leaf(&[]), BY_NONE),
        ("encipherment", leaf(&[KeyEncipherment]), BY_NONE),
        ("both", leaf(&[DigitalSignature, KeyEncipherment]), BY_ALL),
        ("CRLs", leaf(&[DigitalSignature, CrlSign]), BY_NONE),
        ("certs", leaf(&[DigitalSignature, KeyCertSign]), BY_NONE),
    ] {
        let leaf = table.changed(&root, change);
        table.row(&format!("a leaf: {what}"), taken, held, &[&leaf]);
    }
    let leaf = table.changed(&root, raw(&[0x03, 0x02, 0x07, 0x80]));
    table.row("a leaf: by hand", BY_ALL, held, &[&leaf]);
    // `digitalSignature`, and `encipherOnly` in the bits beyond the length.
    let leaf = table.changed(&root, raw(&[0x03, 0x02, 0x07, 0x81]));
    table.row("a leaf: stray bits", BY_NONE, held, &[&leaf]);
    table.done();
}

#[test]
fn purposes_bind_the_whole_path() {
    use ExtendedKeyUsagePurpose::{ClientAuth, CodeSigning, ServerAuth};
    let mut table = Table::new();
    let root = Ca::root(|_| {});
    let held: &[&Der] = &[&root.der];
    let as_client = Taken {
        as_client: true,
        ..BY_NONE
    };
    let as_server = Taken {
        as_server: true,
        ..BY_NONE
    };
    let for_both = [CodeSigning, ClientAuth, ServerAuth];
    // A workload is client and server, so an issued certificate is for both, or for any purpose. The
    // purposes of a root bind all certificates below it.
    let cases: [(&str, &[ExtendedKeyUsagePurpose], [Taken; 3]); 6] = [
        ("none", &[], [BY_ALL; 3]),
        ("both", &for_both, [BY_ALL; 3]),
        ("client", &[ClientAuth], [as_client; 3]),
        ("server", &[ServerAuth], [as_server; 3]),
        ("code", &[CodeSigning], [BY_NONE; 3]),
        ("any", &[ANY_PURPOSE], [BY_NONE; 3]),
    ];
    for (what, purposes, [of_leaf, of_intermediate, of_root]) in cases {
        let set = |params: &mut CertificateParams| {
            params.extended_key_usages = purposes.to_vec();
        };
        let leaf = table.changed(&root, set);
        table.row(&format!("a leaf for {what}"), of_leaf, held, &[&leaf]);
        let ca = root.below("issuing", set);
        let leaf = table.leaf(&ca);
        table.row(
            &format!("an intermediate for {what}"),
            of_intermediate,
            held,
            &[&leaf, &ca.der],
        );
        let ca = Ca::root(set);
        let leaf = table.leaf(&ca);
        let what = format!("a root for {what}");
        table.row(&what, of_root, &[&ca.der], &[&leaf]);
    }
    table.done();
}

#[test]
fn constraints_and_critical_extensions_bind() {
    let mut table = Table::new();
    let permits = |name: &str| {
        let permitted_subtrees = vec![GeneralSubtree::DnsName(name.to_owned())];
        move |params: &mut CertificateParams| {
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees,
                excluded_subtrees: Vec::new(),
            });
        }
    };
    let forbids = |name: &str| {
        let excluded_subtrees = vec![GeneralSubtree::DnsName(name.to_owned())];
        move |params: &mut CertificateParams| {
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: Vec::new(),
                excluded_subtrees,
            });
        }
    };
    // NameConstraints { permitted: [uniformResourceIdentifier "example.org"] }
    let of_uris = |params: &mut CertificateParams| {
        let mut content = vec![0x30, 0x11, 0xa0, 0x0f, 0x30, 0x0d, 0x86, 0x0b];
        content.extend(b"example.org");
        let mut constraints = CustomExtension::from_oid_content(NAME_CONSTRAINTS, content);
        constraints.set_criticality(true);
        params.custom_extensions.push(constraints);
    };
    let unknown = |params: &mut CertificateParams| {
        let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 1], vec![5, 0]);
        unknown.set_criticality(true);
        params.custom_extensions.push(unknown);
    };
    type Change = Box<dyn Fn(&mut CertificateParams)>;
    let cases: [(&str, Change, [Taken; 2]); 5] = [
        (
            "the domain",
            Box::new(move |it| permits("example.org")(it)),
            [BY_ALL; 2],
        ),
        (
            "another domain",
            Box::new(move |it| permits("example.net")(it)),
            [BY_ALL, BY_NONE],
        ),
        (
            "all but the domain",
            Box::new(move |it| forbids("example.org")(it)),
            [BY_ALL, BY_NONE],
        ),
        ("URIs", Box::new(of_uris), [BY_NONE; 2]),
        ("unknown and critical", Box::new(unknown), [BY_NONE; 2]),
    ];
    for (what, change, [with_id, with_dns]) in cases {
        let root = Ca::root(|_| {});
        let limited = root.below("issuing", &change);
        let leaf = table.leaf(&limited);
        let named = table.named(&limited);
        let at = format!("an intermediate limited to {what}");
        table.row(&at, with_id, &[&root.der], &[&leaf, &limited.der]);
        table.row(&at, with_dns, &[&root.der], &[&named, &limited.der]);
        // Of an anchor, only its constraints are looked at.
        if what == "unknown and critical" {
            continue;
        }
        let limited = Ca::root(&change);
        let leaf = table.leaf(&limited);
        let named = table.named(&limited);
        let at = format!("a root limited to {what}");
        table.row(&at, with_id, &[&limited.der], &[&leaf]);
        table.row(&at, with_dns, &[&limited.der], &[&named]);
    }
    table.done();
}
