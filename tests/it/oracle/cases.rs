//! Certificates that are right, and one or two things wrong with them at a time.

use rustls_pki_types::CertificateDer;

use crate::oracle::certificate::{
    ALT_NAMES, AUTHORITY_KEY, CONSTRAINTS, CRL_POINTS, DAY, Draft, Extension, INHIBIT_ANY,
    KEY_USAGE, Key, Kind, NAME_CONSTRAINTS, NETSCAPE_TYPE, POLICIES, POLICY_CONSTRAINTS,
    POLICY_MAPPINGS, PURPOSES, SUBJECT_KEY, Signing, UTF8, Value, Whose, name, oid, sequence, tlv,
};

/// Which certificates there are, which are sent, and which are trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shape {
    /// A leaf under a root.
    Direct,
    /// With a CA between them.
    Below,
    /// With two.
    Deep,
    /// The CA between them is trusted, its root is not there.
    Bare,
    /// The CA between them is sent and trusted, its root is not there.
    BareSent,
    /// The root and the CA between them are trusted, and the leaf is sent alone.
    Both,
    /// As `Below`, with a leaf of the classic model: a tag is requested, and stands behind the SPIFFE ID.
    Tagged,
}

impl Shape {
    pub(crate) const ALL: [Self; 7] = [
        Self::Direct,
        Self::Below,
        Self::Deep,
        Self::Bare,
        Self::BareSent,
        Self::Both,
        Self::Tagged,
    ];

    /// The sound certificates.
    fn plan(self) -> Plan {
        let mut plan = Plan::sound();
        if self == Self::Tagged {
            let both = names(&[&uri(ID), &uri(TAG)]);
            plan.leaf.set(&ALT_NAMES, Some((true, both)));
            plan.uris = vec![TAG];
        }
        plan
    }
}

/// The rules for names of leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Profile {
    /// Those of an X.509-SVID.
    Modern,
    /// Those of the product: tags may follow the SPIFFE ID.
    Classic,
}

impl Profile {
    pub(crate) const ALL: [Self; 2] = [Self::Modern, Self::Classic];
}

/// The certificates of a case before they are signed.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) leaf: Draft,
    pub(crate) lower: Draft,
    pub(crate) upper: Draft,
    pub(crate) root: Draft,
    /// What the leaf's names are beside its SPIFFE ID: they are requested.
    pub(crate) dns: Vec<&'static str>,
    pub(crate) uris: Vec<&'static str>,
    pub(crate) common_name: Option<&'static str>,
    /// Whether it may last for longer than requested, which is a day.
    pub(crate) may_last: bool,
    /// When the CA returned it, in seconds from now.
    pub(crate) returned: i64,
}

pub(crate) const ID: &str = "spiffe://example.org/ns/shop/sa/cart";

const TAG: &str = "kuma://kuma.io/service/cart";

/// The common name of the CA above the leaf.
pub(crate) const LOWER: &str = "Mesh CA";

fn uri(text: &str) -> Vec<u8> {
    tlv(0x86, &[text.as_bytes()])
}

fn dns(text: &str) -> Vec<u8> {
    tlv(0x82, &[text.as_bytes()])
}

fn names(all: &[&[u8]]) -> Vec<u8> {
    sequence(all)
}

/// The usages by the numbers of RFC 5280 §4.2.1.3, in one or two bytes.
fn usages(bits: &[u8]) -> Vec<u8> {
    let mut bytes = [0_u8; 2];
    for bit in bits {
        bytes[usize::from(bit / 8)] |= 0x80 >> (bit % 8);
    }
    let length = if bytes[1] != 0 { 2 } else { 1 };
    let unused = match bits.is_empty() {
        true => return tlv(3, &[&[0]]),
        false => bytes[length - 1].trailing_zeros() as u8,
    };
    tlv(3, &[&[unused], &bytes[..length]])
}

const SIGN: u8 = 0;
const REPUDIATE: u8 = 1;
const ENCIPHER: u8 = 2;
const AGREE: u8 = 4;
const CERT_SIGN: u8 = 5;
const CRL_SIGN: u8 = 6;

const SERVER: u32 = 1;
const CLIENT: u32 = 2;
const CODE: u32 = 3;
const EMAIL: u32 = 4;

fn purposes(all: &[u32]) -> Vec<u8> {
    let all: Vec<_> = { all.iter() }
        .map(|one| match one {
            0 => oid(&[2, 5, 29, 37, 0]),
            one => oid(&[1, 3, 6, 1, 5, 5, 7, 3, *one]),
        })
        .collect();
    sequence(&all.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn constraints(ca: bool, path_len: Option<u8>) -> Vec<u8> {
    let ca: &[u8] = if ca { &[1, 1, 0xff] } else { &[] };
    let limit = path_len.map(|limit| tlv(2, &[&[limit]]));
    sequence(&[ca, &limit.unwrap_or_default()])
}

fn policies(all: &[&[u32]]) -> Vec<u8> {
    let all: Vec<_> = all.iter().map(|one| sequence(&[&oid(one)])).collect();
    sequence(&all.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

const ANY_POLICY: &[u32] = &[2, 5, 29, 32, 0];
const A_POLICY: &[u32] = &[1, 3, 6, 1, 4, 1, 999, 1];

/// Permitted and excluded names.
fn name_constraints(permitted: &[Vec<u8>], excluded: &[Vec<u8>]) -> Vec<u8> {
    let trees = |tag, all: &[Vec<u8>]| match all {
        [] => Vec::new(),
        all => {
            let all: Vec<_> = all.iter().map(|one| sequence(&[one])).collect();
            tlv(tag, &all.iter().map(Vec::as_slice).collect::<Vec<_>>())
        }
    };
    sequence(&[&trees(0xa0, permitted), &trees(0xa1, excluded)])
}

impl Plan {
    pub(crate) fn sound() -> Self {
        let authority = || Extension {
            id: oid(&AUTHORITY_KEY),
            critical: false,
            value: Value::IssuersKey,
        };
        let ca = |whose: Whose, text: &str, serial: u8| {
            let key = Key::of(Kind::P256, whose);
            Draft {
                version: Some(2),
                serial: vec![serial],
                subject: name(UTF8, text.as_bytes()),
                issuer: None,
                begins: -DAY,
                ends: 365 * DAY,
                extensions: vec![
                    Extension::new(&CONSTRAINTS, true, constraints(true, None)),
                    Extension::new(&KEY_USAGE, true, usages(&[CERT_SIGN, CRL_SIGN])),
                    Extension::new(&SUBJECT_KEY, false, tlv(4, &[&key.identifier()])),
                    authority(),
                ],
                key,
                signing: Signing::Sound,
                identified: false,
            }
        };
        let key = Key::of(Kind::P256, Whose::Leaf);
        let leaf = Draft {
            version: Some(2),
            serial: vec![1],
            subject: sequence(&[]),
            issuer: None,
            begins: -60,
            ends: DAY,
            extensions: vec![
                Extension::new(&KEY_USAGE, true, usages(&[SIGN])),
                Extension::new(&PURPOSES, false, purposes(&[SERVER, CLIENT])),
                Extension::new(&CONSTRAINTS, true, constraints(false, None)),
                Extension::new(&SUBJECT_KEY, false, tlv(4, &[&key.identifier()])),
                authority(),
                Extension::new(&ALT_NAMES, true, names(&[&uri(ID)])),
            ],
            key,
            signing: Signing::Sound,
            identified: false,
        };
        Self {
            leaf,
            lower: ca(Whose::Lower, LOWER, 2),
            upper: ca(Whose::Upper, "Division CA", 3),
            root: ca(Whose::Root, "Corporate Root", 4),
            dns: Vec::new(),
            uris: Vec::new(),
            common_name: None,
            may_last: true,
            returned: 0,
        }
    }

    /// The profile of what is requested.
    pub(crate) fn profile(&self) -> Profile {
        match self.uris.is_empty() {
            true => Profile::Modern,
            false => Profile::Classic,
        }
    }

    pub(crate) fn build(
        mut self,
        name: String,
        shape: Shape,
        mutations: Vec<(Part, &'static str)>,
    ) -> Case {
        let root = self.root.subject.clone();
        self.root.issuer.get_or_insert_with(|| root.clone());
        self.upper.issuer.get_or_insert_with(|| root.clone());
        let above = match shape {
            Shape::Deep => self.upper.subject.clone(),
            _ => root,
        };
        self.lower.issuer.get_or_insert(above);
        let root = self.root.sign(None);
        let leaf = match shape {
            Shape::Direct => self.leaf.sign(Some(&self.root)),
            _ => self.leaf.sign(Some(&self.lower)),
        };
        let lower = match shape {
            Shape::Deep => self.lower.sign(Some(&self.upper)),
            _ => self.lower.sign(Some(&self.root)),
        };
        let (sent, anchors) = match shape {
            Shape::Direct => (vec![leaf], vec![root]),
            Shape::Below | Shape::Tagged => (vec![leaf, lower], vec![root]),
            Shape::Deep => (
                vec![leaf, lower, self.upper.sign(Some(&self.root))],
                vec![root],
            ),
            Shape::Bare => (vec![leaf], vec![lower]),
            Shape::BareSent => (vec![leaf, lower.clone()], vec![lower]),
            Shape::Both => (vec![leaf], vec![root, lower]),
        };
        Case {
            name,
            shape,
            mutations,
            plan: self,
            sent,
            anchors,
        }
    }
}

/// A question to all verifiers.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) shape: Shape,
    pub(crate) mutations: Vec<(Part, &'static str)>,
    pub(crate) plan: Plan,
    /// The leaf first.
    pub(crate) sent: Vec<CertificateDer<'static>>,
    pub(crate) anchors: Vec<CertificateDer<'static>>,
}

impl Case {
    /// The CA above the leaf, if it is sent behind a sound leaf and has the common name that is requested.
    pub(crate) fn ca(&self) -> Option<&Draft> {
        let leaf = { self.mutations.iter() }.any(|(part, _)| *part == Part::Leaf);
        let asked = !leaf && matches!(self.shape, Shape::Below | Shape::Deep);
        let ca = Some(&self.plan.lower).filter(|_| asked);
        ca.filter(|ca| ca.subject == name(UTF8, LOWER.as_bytes()))
    }

    /// Its only oddity, and whose it is; neither if it is sound.
    pub(crate) fn oddity(&self) -> (Option<Part>, &'static str) {
        match self.mutations[..] {
            [] => (None, ""),
            [(part, name)] => (Some(part), name),
            _ => panic!("{} has several oddities", self.name),
        }
    }
}

type Change<T> = Box<dyn Fn(&mut T) + Send + Sync>;

/// The certificate that a mutation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Leaf,
    Intermediate,
    Root,
}

impl Part {
    pub(crate) const ALL: [Self; 3] = [Self::Leaf, Self::Intermediate, Self::Root];
}

pub(crate) struct Mutation {
    pub(crate) name: &'static str,
    pub(crate) part: Part,
    change: Change<Plan>,
}

impl Mutation {
    pub(crate) fn apply(&self, plan: &mut Plan) {
        (self.change)(plan);
    }
}

fn set(id: &'static [u32], critical: bool, value: Vec<u8>) -> Change<Draft> {
    Box::new(move |draft| draft.set(id, Some((critical, value.clone()))))
}

fn without(id: &'static [u32]) -> Change<Draft> {
    Box::new(move |draft| draft.set(id, None))
}

fn critical(id: &'static [u32], critical: bool) -> Change<Draft> {
    Box::new(move |draft| draft.critical(id, critical))
}

fn change(change: impl Fn(&mut Draft) + Send + Sync + 'static) -> Change<Draft> {
    Box::new(change)
}

/// Of any certificate.
fn common() -> Vec<(&'static str, Change<Draft>)> {
    let damaged = || vec![0x30, 0x05, 0x01];
    let unknown: &[u32] = &[1, 3, 6, 1, 4, 1, 999, 9];
    let crl = sequence(&[&sequence(&[&tlv(
        0xa0,
        &[&tlv(0xa0, &[&uri("http://ca.example.org/crl")])],
    )])]);
    let mapping = sequence(&[&sequence(&[&oid(A_POLICY), &oid(A_POLICY)])]);
    vec![
        (
            "policies: any",
            set(&POLICIES, false, policies(&[ANY_POLICY])),
        ),
        (
            "policies: any, critical",
            set(&POLICIES, true, policies(&[ANY_POLICY])),
        ),
        (
            "policies: one",
            set(&POLICIES, false, policies(&[A_POLICY])),
        ),
        (
            "policies: one, critical",
            set(&POLICIES, true, policies(&[A_POLICY])),
        ),
        (
            "policies: twice",
            set(&POLICIES, false, policies(&[A_POLICY, A_POLICY])),
        ),
        (
            "policies: twice, critical",
            set(&POLICIES, true, policies(&[A_POLICY, A_POLICY])),
        ),
        ("policies: damaged", set(&POLICIES, false, damaged())),
        (
            "policies: damaged, critical",
            set(&POLICIES, true, damaged()),
        ),
        (
            "policies: explicit demanded",
            set(&POLICY_CONSTRAINTS, false, sequence(&[&[0x80, 1, 0]])),
        ),
        (
            "policies: explicit demanded, critical",
            set(&POLICY_CONSTRAINTS, true, sequence(&[&[0x80, 1, 0]])),
        ),
        (
            "policies: no mapping, critical",
            set(&POLICY_CONSTRAINTS, true, sequence(&[&[0x81, 1, 0]])),
        ),
        (
            "policies: constraints damaged",
            set(&POLICY_CONSTRAINTS, false, damaged()),
        ),
        (
            "policies: mapping damaged",
            set(&POLICY_MAPPINGS, false, damaged()),
        ),
        (
            "policies: inhibition damaged",
            set(&INHIBIT_ANY, false, damaged()),
        ),
        (
            "policies: any inhibited, critical",
            set(&INHIBIT_ANY, true, vec![2, 1, 0]),
        ),
        (
            "policies: mapped",
            set(&POLICY_MAPPINGS, false, mapping.clone()),
        ),
        (
            "policies: mapped, critical",
            set(&POLICY_MAPPINGS, true, mapping),
        ),
        ("extension: unknown", set(unknown, false, vec![5, 0])),
        (
            "extension: unknown, critical",
            set(unknown, true, vec![5, 0]),
        ),
        ("crl points: sound", set(&CRL_POINTS, false, crl.clone())),
        ("crl points: critical", set(&CRL_POINTS, true, crl)),
        ("crl points: damaged", set(&CRL_POINTS, false, damaged())),
        (
            "netscape: server",
            set(&NETSCAPE_TYPE, false, vec![3, 2, 6, 0x40]),
        ),
        (
            "netscape: e-mail",
            set(&NETSCAPE_TYPE, false, vec![3, 2, 5, 0x20]),
        ),
        (
            "netscape: ssl ca",
            set(&NETSCAPE_TYPE, false, vec![3, 2, 2, 0x04]),
        ),
        ("issuer's key: not named", without(&AUTHORITY_KEY)),
        (
            "issuer's key: another",
            set(&AUTHORITY_KEY, false, sequence(&[&tlv(0x80, &[&[7; 20]])])),
        ),
        (
            "issuer's key: damaged",
            set(&AUTHORITY_KEY, false, damaged()),
        ),
        ("issuer's key: critical", critical(&AUTHORITY_KEY, true)),
        (
            "issuer's serial",
            change(|draft| {
                draft.set(&AUTHORITY_KEY, None);
                draft.extensions.push(Extension {
                    id: oid(&AUTHORITY_KEY),
                    critical: false,
                    value: Value::IssuersSerial,
                });
            }),
        ),
        (
            "issuer's serial: another",
            set(
                &AUTHORITY_KEY,
                false,
                sequence(&[
                    &tlv(0xa1, &[&tlv(0xa4, &[&name(UTF8, b"Corporate Root")])]),
                    &[0x82, 1, 99],
                ]),
            ),
        ),
        (
            "issuer's serial: under another name",
            change(|draft| {
                draft.set(&AUTHORITY_KEY, None);
                draft.extensions.push(Extension {
                    id: oid(&AUTHORITY_KEY),
                    critical: false,
                    value: Value::IssuersSerialUnder(name(UTF8, b"Another Root")),
                });
            }),
        ),
        ("own key: not named", without(&SUBJECT_KEY)),
        ("own key: damaged", set(&SUBJECT_KEY, false, damaged())),
        ("constraints: damaged", set(&CONSTRAINTS, true, damaged())),
        ("constraints: not critical", critical(&CONSTRAINTS, false)),
        ("usages: damaged", set(&KEY_USAGE, true, damaged())),
        ("usages: not critical", critical(&KEY_USAGE, false)),
        (
            "usages: twice",
            change(|draft| {
                let twice = draft
                    .extensions
                    .iter()
                    .find(|one| one.id == oid(&KEY_USAGE))
                    .cloned();
                draft.extensions.extend(twice);
            }),
        ),
        ("purposes: damaged", set(&PURPOSES, false, damaged())),
        ("purposes: empty", set(&PURPOSES, false, sequence(&[]))),
        (
            "purposes: server",
            set(&PURPOSES, false, purposes(&[SERVER])),
        ),
        (
            "purposes: client",
            set(&PURPOSES, false, purposes(&[CLIENT])),
        ),
        (
            "purposes: both",
            set(&PURPOSES, false, purposes(&[SERVER, CLIENT])),
        ),
        (
            "purposes: both, critical",
            set(&PURPOSES, true, purposes(&[SERVER, CLIENT])),
        ),
        ("purposes: any", set(&PURPOSES, false, purposes(&[0]))),
        (
            "purposes: any, critical",
            set(&PURPOSES, true, purposes(&[0])),
        ),
        (
            "purposes: client and any",
            set(&PURPOSES, false, purposes(&[CLIENT, 0])),
        ),
        ("purposes: code", set(&PURPOSES, false, purposes(&[CODE]))),
        (
            "purposes: both and e-mail",
            set(&PURPOSES, false, purposes(&[SERVER, CLIENT, EMAIL])),
        ),
        ("names: damaged", set(&ALT_NAMES, false, damaged())),
        (
            "dates: expired",
            change(|draft| (draft.begins, draft.ends) = (-2 * DAY, -DAY)),
        ),
        (
            "dates: not valid yet",
            change(|draft| draft.begins = DAY / 2),
        ),
        (
            "dates: ends before it begins",
            change(|draft| (draft.begins, draft.ends) = (DAY, -DAY)),
        ),
        (
            "dates: ends in 2060",
            change(|draft| draft.ends = 34 * 365 * DAY),
        ),
        (
            "version: 1",
            change(|draft| {
                draft.version = None;
                draft.extensions.clear();
            }),
        ),
        (
            "version: 1 with extensions",
            change(|draft| draft.version = None),
        ),
        (
            "version: 2 with extensions",
            change(|draft| draft.version = Some(1)),
        ),
        ("version: 4", change(|draft| draft.version = Some(3))),
        (
            "version: 1 with unique identifiers",
            change(|draft| {
                draft.version = None;
                draft.extensions.clear();
                draft.identified = true;
            }),
        ),
        (
            "version: 2 with unique identifiers",
            change(|draft| {
                draft.version = Some(1);
                draft.extensions.clear();
                draft.identified = true;
            }),
        ),
        (
            "version: 3 with unique identifiers",
            change(|draft| draft.identified = true),
        ),
        (
            "signature: wrong",
            change(|draft| draft.signing = Signing::Wrong),
        ),
        (
            "signature: sha-1",
            change(|draft| draft.signing = Signing::Sha1),
        ),
        (
            "signature: damaged id",
            change(|draft| draft.signing = Signing::Damaged),
        ),
        ("serial: zero", change(|draft| draft.serial = vec![0])),
        (
            "serial: negative",
            change(|draft| draft.serial = vec![0x80]),
        ),
        (
            "serial: 20 bytes",
            change(|draft| draft.serial = vec![0x7f; 20]),
        ),
        (
            "serial: not minimal",
            change(|draft| draft.serial = vec![0, 1]),
        ),
    ]
}

fn of_leaves() -> Vec<(&'static str, Change<Plan>)> {
    fn leaf(change: Change<Draft>) -> Change<Plan> {
        Box::new(move |plan: &mut Plan| change(&mut plan.leaf))
    }
    let use_of = |bits: &[u8]| leaf(set(&KEY_USAGE, true, usages(bits)));
    let alt = |all: &[Vec<u8>]| {
        let all: Vec<_> = all.iter().map(Vec::as_slice).collect();
        leaf(set(&ALT_NAMES, true, names(&all)))
    };
    let with = |change: Change<Plan>, requested: fn(&mut Plan)| -> Change<Plan> {
        Box::new(move |plan| {
            change(plan);
            requested(plan);
        })
    };
    let key = |kind| -> Change<Plan> {
        leaf(change(move |draft| draft.key = Key::of(kind, Whose::Leaf)))
    };
    let id = || uri(ID);
    let tag = || uri(TAG);
    let tagged = |plan: &mut Plan| plan.uris = vec![TAG];
    let (dns_name, other) = (|| dns("cart.shop.svc"), || uri("https://example.org/"));
    let named = |plan: &mut Plan| plan.dns = vec!["cart.shop.svc"];
    vec![
        ("usages: none", leaf(without(&KEY_USAGE))),
        ("usages: empty", use_of(&[])),
        ("usages: sign and encipher", use_of(&[SIGN, ENCIPHER])),
        ("usages: encipher", use_of(&[ENCIPHER])),
        ("usages: agree", use_of(&[AGREE])),
        ("usages: sign and agree", use_of(&[SIGN, AGREE])),
        ("usages: repudiate", use_of(&[REPUDIATE])),
        ("usages: sign and repudiate", use_of(&[SIGN, REPUDIATE])),
        ("usages: sign certificates", use_of(&[SIGN, CERT_SIGN])),
        ("usages: sign crls", use_of(&[SIGN, CRL_SIGN])),
        ("usages: sign and decipher only", use_of(&[SIGN, AGREE, 8])),
        (
            "usages: padding of ones",
            leaf(set(&KEY_USAGE, true, tlv(3, &[&[7], &[0xff]]))),
        ),
        ("purposes: none", leaf(without(&PURPOSES))),
        ("names: none", leaf(without(&ALT_NAMES))),
        ("names: not critical", leaf(critical(&ALT_NAMES, false))),
        ("names: empty", alt(&[])),
        ("names: id and dns", with(alt(&[id(), dns_name()]), named)),
        ("names: dns and id", with(alt(&[dns_name(), id()]), named)),
        ("names: dns only", with(alt(&[dns_name()]), named)),
        ("names: id and dns, not requested", alt(&[id(), dns_name()])),
        (
            "names: dns twice",
            with(alt(&[id(), dns_name(), dns_name()]), named),
        ),
        ("names: id, dns requested", with(alt(&[id()]), named)),
        (
            "names: id and directory name",
            alt(&[id(), tlv(0xa4, &[&name(UTF8, b"root")])]),
        ),
        (
            "names: id and ip",
            alt(&[id(), tlv(0x87, &[&[127, 0, 0, 1]])]),
        ),
        (
            "names: id and e-mail",
            alt(&[id(), tlv(0x81, &[b"root@example.org"])]),
        ),
        ("names: id and tag", with(alt(&[id(), tag()]), tagged)),
        ("names: tag and id", with(alt(&[tag(), id()]), tagged)),
        ("names: tag only", with(alt(&[tag()]), tagged)),
        ("names: id and tag, not requested", alt(&[id(), tag()])),
        ("names: id, tag requested", with(alt(&[id()]), tagged)),
        (
            "names: id and tags in another order",
            with(
                alt(&[id(), uri("kuma://kuma.io/zone/east"), tag()]),
                |plan| {
                    plan.uris = vec![TAG, "kuma://kuma.io/zone/east"];
                },
            ),
        ),
        (
            "names: id and https",
            with(alt(&[id(), other()]), |plan| {
                plan.uris = vec!["https://example.org/"]
            }),
        ),
        (
            "names: https and id",
            with(alt(&[other(), id()]), |plan| {
                plan.uris = vec!["https://example.org/"]
            }),
        ),
        (
            "names: two ids",
            alt(&[id(), uri("spiffe://example.org/admin")]),
        ),
        ("names: id twice", alt(&[id(), id()])),
        (
            "names: another id first",
            alt(&[uri("spiffe://example.org/admin"), id()]),
        ),
        (
            "names: id of another domain",
            alt(&[uri("spiffe://example.com/ns/shop/sa/cart")]),
        ),
        (
            "names: id without a path",
            alt(&[uri("spiffe://example.org")]),
        ),
        (
            "names: id in upper case",
            alt(&[uri("SPIFFE://EXAMPLE.ORG/ns/shop/sa/cart")]),
        ),
        ("constraints: none", leaf(without(&CONSTRAINTS))),
        (
            "constraints: ca",
            leaf(set(&CONSTRAINTS, true, constraints(true, None))),
        ),
        (
            "path length: of a leaf",
            leaf(set(&CONSTRAINTS, true, constraints(false, Some(0)))),
        ),
        (
            "name constraints: of a leaf",
            leaf(set(
                &NAME_CONSTRAINTS,
                false,
                name_constraints(&[dns("example.org")], &[]),
            )),
        ),
        (
            "name constraints: damaged",
            leaf(set(&NAME_CONSTRAINTS, false, vec![0x30, 5, 1])),
        ),
        ("key: p-384", key(Kind::P384)),
        ("key: p-521", key(Kind::P521)),
        ("key: rsa", key(Kind::Rsa)),
        ("key: ed25519", key(Kind::Ed25519)),
        (
            "subject: common name",
            leaf(change(|draft| draft.subject = name(UTF8, b"cart.mesh"))),
        ),
        (
            "subject: common name, requested",
            with(
                leaf(change(|draft| draft.subject = name(UTF8, b"cart.mesh"))),
                |plan| plan.common_name = Some("cart.mesh"),
            ),
        ),
        (
            "subject: common name, another requested",
            with(
                leaf(change(|draft| draft.subject = name(UTF8, b"cart.mesh"))),
                |plan| plan.common_name = Some("web.mesh"),
            ),
        ),
        (
            "subject: none, common name requested",
            Box::new(|plan| plan.common_name = Some("cart.mesh")),
        ),
        (
            "subject: two common names, one requested",
            with(
                leaf(change(|draft| {
                    let [one, two] = [&b"cart.mesh"[..], b"admin.mesh"].map(|text| {
                        let attribute = sequence(&[&oid(&[2, 5, 4, 3]), &tlv(UTF8, &[text])]);
                        tlv(0x31, &[&attribute])
                    });
                    draft.subject = sequence(&[&one, &two]);
                })),
                |plan| plan.common_name = Some("cart.mesh"),
            ),
        ),
        (
            "subject: latin-1",
            leaf(change(|draft| draft.subject = name(UTF8, b"M\xfcller"))),
        ),
        (
            "subject: visible string",
            leaf(change(|draft| draft.subject = name(0x1a, b"cart"))),
        ),
        (
            "issuer: another string type",
            Box::new(|plan| {
                plan.leaf.issuer = Some(name(0x13, b"Mesh CA"));
            }),
        ),
        (
            "issuer: another case",
            Box::new(|plan| {
                plan.leaf.issuer = Some(name(UTF8, b"MESH  CA"));
            }),
        ),
        (
            "issuer: another",
            Box::new(|plan| {
                plan.leaf.issuer = Some(name(UTF8, b"Another CA"));
            }),
        ),
        (
            "dates: lasts for longer than requested",
            with(leaf(change(|draft| draft.ends = 2 * DAY)), |plan| {
                plan.may_last = false;
            }),
        ),
        (
            "dates: lasts a little longer than requested",
            with(leaf(change(|draft| draft.ends = DAY + 30)), |plan| {
                plan.may_last = false;
            }),
        ),
        (
            "dates: begins half a minute after it was returned",
            with(leaf(change(|draft| draft.begins = DAY / 2)), |plan| {
                plan.returned = DAY / 2 - 30;
            }),
        ),
        (
            "dates: begins two minutes after it was returned",
            with(leaf(change(|draft| draft.begins = DAY / 2)), |plan| {
                plan.returned = DAY / 2 - 120;
            }),
        ),
        (
            "dates: has ended when it is returned",
            Box::new(|plan| plan.returned = DAY),
        ),
        (
            "dates: outlives its issuer",
            leaf(change(|draft| draft.ends = 366 * DAY)),
        ),
    ]
}

/// Of a CA, which may be a root.
fn of_cas() -> Vec<(&'static str, Change<Draft>)> {
    let use_of = |bits: &[u8]| set(&KEY_USAGE, true, usages(bits));
    let named = |tag: u8, text: &'static [u8]| change(move |draft| draft.subject = name(tag, text));
    let limits = |critical, permitted: &[Vec<u8>], excluded: &[Vec<u8>]| {
        set(
            &NAME_CONSTRAINTS,
            critical,
            name_constraints(permitted, excluded),
        )
    };
    let directory = |text: &[u8]| tlv(0xa4, &[&name(UTF8, text)]);
    let mail = tlv(0x81, &[b"example.org"]);
    let address = tlv(0x87, &[&[10, 0, 0, 0, 255, 0, 0, 0]]);
    vec![
        ("usages: none", without(&KEY_USAGE)),
        ("usages: empty", use_of(&[])),
        ("usages: sign certificates", use_of(&[CERT_SIGN])),
        ("usages: sign crls", use_of(&[CRL_SIGN])),
        (
            "usages: sign anything",
            use_of(&[SIGN, CERT_SIGN, CRL_SIGN]),
        ),
        ("usages: sign", use_of(&[SIGN])),
        ("usages: all", use_of(&[0, 1, 2, 3, 4, 5, 6])),
        (
            "usages: padding of ones",
            set(&KEY_USAGE, true, tlv(3, &[&[1], &[0x07]])),
        ),
        ("constraints: none", without(&CONSTRAINTS)),
        (
            "constraints: no ca",
            set(&CONSTRAINTS, true, constraints(false, None)),
        ),
        (
            "path length: 0",
            set(&CONSTRAINTS, true, constraints(true, Some(0))),
        ),
        (
            "path length: 1",
            set(&CONSTRAINTS, true, constraints(true, Some(1))),
        ),
        (
            "path length: -1",
            set(&CONSTRAINTS, true, constraints(true, Some(0xff))),
        ),
        (
            "names: domain",
            set(&ALT_NAMES, false, names(&[&uri("spiffe://example.org")])),
        ),
        (
            "names: workload",
            set(&ALT_NAMES, false, names(&[&uri("spiffe://example.org/ca")])),
        ),
        (
            "names: dns",
            set(&ALT_NAMES, false, names(&[&dns("ca.example.org")])),
        ),
        (
            "name constraints: uri permitted",
            limits(true, &[uri("example.org")], &[]),
        ),
        (
            "name constraints: uri permitted, not critical",
            limits(false, &[uri("example.org")], &[]),
        ),
        (
            "name constraints: other uri permitted",
            limits(true, &[uri("example.com")], &[]),
        ),
        (
            "name constraints: uri excluded",
            limits(true, &[], &[uri("example.org")]),
        ),
        (
            "name constraints: other uri excluded",
            limits(true, &[], &[uri("example.com")]),
        ),
        (
            "name constraints: dns permitted",
            limits(true, &[dns("shop.svc")], &[]),
        ),
        (
            "name constraints: other dns permitted",
            limits(true, &[dns("example.com")], &[]),
        ),
        (
            "name constraints: other dns permitted, not critical",
            limits(false, &[dns("example.com")], &[]),
        ),
        (
            "name constraints: dns excluded",
            limits(true, &[], &[dns("shop.svc")]),
        ),
        (
            "name constraints: directory permitted",
            limits(true, &[directory(b"Example")], &[]),
        ),
        (
            "name constraints: directory excluded",
            limits(true, &[], &[directory(b"Example")]),
        ),
        (
            "name constraints: mail permitted",
            limits(true, &[mail], &[]),
        ),
        (
            "name constraints: ip permitted",
            limits(true, &[address], &[]),
        ),
        (
            "name constraints: damaged",
            set(&NAME_CONSTRAINTS, true, vec![0x30, 5, 1]),
        ),
        (
            "name constraints: empty",
            set(&NAME_CONSTRAINTS, true, sequence(&[])),
        ),
        ("subject: printable string", named(0x13, b"Mesh CA")),
        ("subject: teletex string", named(0x14, b"M\xfcller")),
        ("subject: bmp string", named(0x1e, b"\0C\0A")),
        ("subject: bmp string, odd", named(0x1e, b"\0C\0")),
        (
            "subject: bmp string, surrogate",
            named(0x1e, b"\xd8\x00\xdc\x00"),
        ),
        ("subject: universal string", named(0x1c, b"\0\0\0C")),
        ("subject: visible string", named(0x1a, b"CA")),
        ("subject: octet string", named(0x04, b"CA")),
        ("subject: latin-1", named(UTF8, b"M\xfcller CA")),
        (
            "subject: noncharacter",
            named(UTF8, "CA \u{fffe}".as_bytes()),
        ),
        (
            "subject: noncharacter of the middle",
            named(UTF8, "CA \u{fdd0}".as_bytes()),
        ),
        (
            "subject: last character",
            named(UTF8, "CA \u{fffd}".as_bytes()),
        ),
        ("subject: nul", named(UTF8, b"C\0A")),
        (
            "subject: empty",
            change(|draft| draft.subject = sequence(&[])),
        ),
        (
            "subject: damaged attribute",
            change(|draft| {
                let attribute = sequence(&[&tlv(6, &[&[0x55, 0x80, 4, 3]]), &tlv(UTF8, &[b"CA"])]);
                draft.subject = sequence(&[&tlv(0x31, &[&attribute])]);
            }),
        ),
        (
            "extension: damaged id",
            change(|draft| {
                draft.extensions.push(Extension {
                    id: tlv(6, &[&[0x55, 0x80, 4, 3]]),
                    critical: false,
                    value: Value::Bytes(vec![5, 0]),
                })
            }),
        ),
        (
            "dates: ends before the leaf",
            change(|draft| draft.ends = DAY / 2),
        ),
    ]
}

fn keys_of_cas() -> [(&'static str, Kind); 4] {
    [
        ("key: p-384", Kind::P384),
        ("key: p-521", Kind::P521),
        ("key: rsa", Kind::Rsa),
        ("key: ed25519", Kind::Ed25519),
    ]
}

/// All that may be wrong or odd with one certificate.
pub(crate) fn mutations() -> Vec<Mutation> {
    let mut all = Vec::new();
    let mut add = |part, name, change: Change<Plan>| all.push(Mutation { name, part, change });
    for (name, change) in of_leaves() {
        add(Part::Leaf, name, change);
    }
    for (name, change) in common() {
        add(
            Part::Leaf,
            name,
            Box::new(move |plan| change(&mut plan.leaf)),
        );
    }
    for all in [common, of_cas] {
        for (name, change) in all() {
            add(
                Part::Intermediate,
                name,
                Box::new(move |plan| change(&mut plan.lower)),
            );
        }
        for (name, change) in all() {
            add(
                Part::Root,
                name,
                Box::new(move |plan| change(&mut plan.root)),
            );
        }
    }
    for (name, kind) in keys_of_cas() {
        // The identifier of the key goes with it.
        let with = move |draft: &mut Draft, whose| {
            draft.key = Key::of(kind, whose);
            draft.set(
                &SUBJECT_KEY,
                Some((false, tlv(4, &[&draft.key.identifier()]))),
            );
        };
        add(
            Part::Intermediate,
            name,
            Box::new(move |plan| with(&mut plan.lower, Whose::Lower)),
        );
        add(
            Part::Root,
            name,
            Box::new(move |plan| with(&mut plan.root, Whose::Root)),
        );
    }
    all
}

/// The kinds of mutations, and the families of each.
pub(crate) const KINDS: &[(&str, &[&str])] = &[
    ("key usages", &["usages"]),
    ("extended key usages", &["purposes"]),
    ("names", &["names"]),
    ("subjects", &["subject", "issuer"]),
    ("basic constraints", &["constraints"]),
    ("path lengths", &["path length"]),
    ("policies", &["policies"]),
    ("name constraints", &["name constraints"]),
    ("dates", &["dates"]),
    ("algorithms", &["key", "signature"]),
    ("versions", &["version"]),
    ("serial numbers", &["serial"]),
    (
        "identifiers",
        &["issuer's key", "issuer's serial", "own key"],
    ),
    ("extensions", &["extension", "crl points", "netscape"]),
];

/// Every mutation in every shape that has its certificate.
pub(crate) fn singles(all: &[Mutation]) -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in Shape::ALL {
        cases.push(shape.plan().build(format!("{shape:?}"), shape, Vec::new()));
        for mutation in all {
            let there = match mutation.part {
                // They replace the names that make a leaf classic, and some add tags of their own.
                Part::Leaf if mutation.name.starts_with("names: ") => {
                    matches!(shape, Shape::Direct | Shape::Below)
                }
                Part::Leaf => matches!(shape, Shape::Direct | Shape::Below | Shape::Tagged),
                Part::Intermediate => shape != Shape::Direct,
                Part::Root => !matches!(shape, Shape::Bare | Shape::BareSent),
            };
            if there {
                let mut plan = shape.plan();
                mutation.apply(&mut plan);
                let name = format!("{shape:?}, {:?} {}", mutation.part, mutation.name);
                cases.push(plan.build(name, shape, vec![(mutation.part, mutation.name)]));
            }
        }
    }
    cases
}

/// Every mutation in the shape of [`pairs`].
pub(crate) fn alone(all: &[Mutation]) -> Vec<Case> {
    let mut cases = singles(all);
    cases.retain(|case| case.shape == Shape::Below);
    cases
}

/// Two mutations at once, of one certificate or of two: one in `step` pairs, always the same ones.
pub(crate) fn pairs(all: &[Mutation], step: u64) -> Vec<Case> {
    let mut cases = Vec::new();
    for (first, one) in all.iter().enumerate() {
        for other in &all[first + 1..] {
            let of = |it: &Mutation| format!("{:?} {}", it.part, it.name);
            let name = format!("{} + {}", of(one), of(other));
            // Chosen by their names, so that a new mutation does not choose anew among the others.
            if !fnv(&name).is_multiple_of(step) {
                continue;
            }
            let (mut plan, mut second) = (Plan::sound(), Plan::sound());
            one.apply(&mut plan);
            other.apply(&mut plan);
            other.apply(&mut second);
            // The second has undone the first.
            if format!("{plan:?}") == format!("{second:?}") {
                continue;
            }
            // The second has added extensions, which is another mutation.
            if one.name == "version: 1" && one.part == other.part {
                continue;
            }
            let mutations = vec![(one.part, one.name), (other.part, other.name)];
            cases.push(plan.build(name, Shape::Below, mutations));
        }
    }
    cases
}

/// The hash of Fowler, Noll and Vo (FNV-1a).
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}
