//! Both protocols against a client that does anything, on a stream that is cut at any point.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc::Status;
use meshca_core::Result;
use meshca_identity::TrustVersion;
use proptest::collection::vec;
use proptest::prelude::*;

use super::delta::Delta;
use super::sotw::Sotw;
use super::{Bounds, Broken, Heard, Protocol, Secrets, TrustState, clip};
use crate::standing::Standing;

const BOUNDS: Bounds = Bounds { names: 8, name: 16 };
/// Two of an identity, two of trust.
const NAMES: [&str; 4] = ["identity", "alias", "trust", "bundle"];
const FOREIGN: &str = "foreign";

/// What the server has: of each name a number that goes up, 0 for none yet.
#[derive(Clone, Debug, Default)]
struct Offer {
    versions: BTreeMap<&'static str, u64>,
    trust: TrustVersion,
    /// Up to which trust each content of a name was right.
    right_until: BTreeMap<(&'static str, u64), TrustVersion>,
}

impl Offer {
    fn change(&mut self, name: &'static str) {
        if is_trust(name) {
            self.trust = next(self.trust);
        }
        *self.versions.entry(name).or_default() += 1;
        self.note();
    }

    /// The trust of somebody else's domain: none of these names has another content.
    fn bump(&mut self) {
        self.trust = next(self.trust);
        self.note();
    }

    fn note(&mut self) {
        for (&name, &version) in &self.versions {
            self.right_until.insert((name, version), self.trust);
        }
    }
}

fn next(version: TrustVersion) -> TrustVersion {
    TrustVersion::new(version.get() + 1).unwrap()
}

fn is_trust(name: &str) -> bool {
    matches!(name, "trust" | "bundle")
}

fn known(name: &str) -> Option<&'static str> {
    NAMES.into_iter().find(|it| *it == name)
}

impl Secrets for Offer {
    fn standing(&self, name: &str) -> Standing {
        match known(name) {
            Some(name) if self.versions.contains_key(name) => Standing::Ready,
            Some(_) => Standing::Pending,
            None => Standing::Foreign,
        }
    }

    fn version(&self, name: &str) -> Option<Arc<str>> {
        Some(self.versions.get(name)?.to_string().into())
    }

    fn packed(&self, name: &str) -> Result<Option<Any>> {
        Ok(self.version(name).map(|version| Any {
            type_url: name.to_owned(),
            value: version.as_bytes().to_vec(),
        }))
    }

    fn is_trust(&self, name: &str) -> bool {
        is_trust(name)
    }

    fn trust_version(&self) -> TrustVersion {
        self.trust
    }
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    Change(usize),
    Bump,
    /// The client asks for these, and for nothing else.
    Ask(BTreeSet<usize>),
    /// The client reads what was sent, and takes it or not.
    Take,
    Refuse,
    /// A request arrives at the server.
    Arrive,
    Cut,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..NAMES.len()).prop_map(Step::Change),
        1 => Just(Step::Bump),
        2 => proptest::collection::btree_set(0..=NAMES.len(), 0..=NAMES.len()).prop_map(Step::Ask),
        4 => Just(Step::Take),
        1 => Just(Step::Refuse),
        5 => Just(Step::Arrive),
        1 => Just(Step::Cut),
    ];
    vec(step, 0..60)
}

/// A client of one of the protocols, with its end of the stream and the server's.
trait Client: Default {
    type Request;
    type Response;
    const RESENDS: bool;

    /// Opens a stream, for what it asks for.
    fn open(&mut self, asked: &BTreeSet<String>, held: &BTreeMap<String, u64>) -> Self::Request;
    fn ask(&mut self, before: &BTreeSet<String>, now: &BTreeSet<String>) -> Option<Self::Request>;
    fn answer(
        &mut self,
        response: &Self::Response,
        asked: &BTreeSet<String>,
        take: bool,
    ) -> Self::Request;
    fn contents(response: &Self::Response) -> BTreeMap<String, u64>;

    fn reset(&mut self);
    fn hear(&mut self, request: &Self::Request) -> Result<Heard, Broken>;
    fn serve(&mut self, offer: &Offer) -> Option<Self::Response>;
    fn trust(&self, offer: &Offer) -> TrustState;
}

struct SotwClient {
    server: Sotw,
    accepted: String,
    nonce: String,
}

impl Default for SotwClient {
    fn default() -> Self {
        Self {
            server: Sotw::new(BOUNDS),
            accepted: String::new(),
            nonce: String::new(),
        }
    }
}

impl SotwClient {
    fn request(&self, asked: &BTreeSet<String>) -> DiscoveryRequest {
        DiscoveryRequest {
            version_info: self.accepted.clone(),
            response_nonce: self.nonce.clone(),
            resource_names: asked.iter().cloned().collect(),
            ..DiscoveryRequest::default()
        }
    }
}

impl Client for SotwClient {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;
    const RESENDS: bool = true;

    fn open(&mut self, asked: &BTreeSet<String>, _: &BTreeMap<String, u64>) -> DiscoveryRequest {
        self.nonce.clear();
        self.request(asked)
    }

    fn ask(&mut self, _: &BTreeSet<String>, now: &BTreeSet<String>) -> Option<DiscoveryRequest> {
        Some(self.request(now))
    }

    fn answer(
        &mut self,
        response: &DiscoveryResponse,
        asked: &BTreeSet<String>,
        take: bool,
    ) -> DiscoveryRequest {
        self.nonce.clone_from(&response.nonce);
        if take {
            self.accepted.clone_from(&response.version_info);
        }
        let mut request = self.request(asked);
        request.error_detail = (!take).then(Status::default);
        request
    }

    fn contents(response: &DiscoveryResponse) -> BTreeMap<String, u64> {
        response.resources.iter().map(content).collect()
    }

    fn reset(&mut self) {
        self.server = Sotw::new(BOUNDS);
    }

    fn hear(&mut self, request: &DiscoveryRequest) -> Result<Heard, Broken> {
        self.server.hear(request)
    }

    fn serve(&mut self, offer: &Offer) -> Option<DiscoveryResponse> {
        self.server.answer(offer).unwrap()
    }

    fn trust(&self, offer: &Offer) -> TrustState {
        self.server.subscriptions().trust(offer)
    }
}

struct DeltaClient {
    server: Delta,
}

impl Default for DeltaClient {
    fn default() -> Self {
        Self {
            server: Delta::new(BOUNDS),
        }
    }
}

impl Client for DeltaClient {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;
    const RESENDS: bool = false;

    fn open(
        &mut self,
        asked: &BTreeSet<String>,
        held: &BTreeMap<String, u64>,
    ) -> DeltaDiscoveryRequest {
        let versions = held.iter().filter(|(name, _)| asked.contains(*name));
        DeltaDiscoveryRequest {
            resource_names_subscribe: asked.iter().cloned().collect(),
            initial_resource_versions: versions
                .map(|(name, version)| (name.clone(), version.to_string()))
                .collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn ask(
        &mut self,
        before: &BTreeSet<String>,
        now: &BTreeSet<String>,
    ) -> Option<DeltaDiscoveryRequest> {
        (before != now).then(|| DeltaDiscoveryRequest {
            resource_names_subscribe: now.difference(before).cloned().collect(),
            resource_names_unsubscribe: before.difference(now).cloned().collect(),
            ..DeltaDiscoveryRequest::default()
        })
    }

    fn answer(
        &mut self,
        response: &DeltaDiscoveryResponse,
        _: &BTreeSet<String>,
        take: bool,
    ) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            response_nonce: response.nonce.clone(),
            error_detail: (!take).then(Status::default),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn contents(response: &DeltaDiscoveryResponse) -> BTreeMap<String, u64> {
        let resources = response.resources.iter();
        resources
            .filter_map(|it| it.resource.as_ref())
            .map(content)
            .collect()
    }

    fn reset(&mut self) {
        self.server = Delta::new(BOUNDS);
    }

    fn hear(&mut self, request: &DeltaDiscoveryRequest) -> Result<Heard, Broken> {
        self.server.hear(request)
    }

    fn serve(&mut self, offer: &Offer) -> Option<DeltaDiscoveryResponse> {
        self.server.answer(offer).unwrap()
    }

    fn trust(&self, offer: &Offer) -> TrustState {
        self.server.subscriptions().trust(offer)
    }
}

fn content(any: &Any) -> (String, u64) {
    let version = std::str::from_utf8(&any.value).unwrap();
    (any.type_url.clone(), version.parse().unwrap())
}

/// Client, stream and server.
struct World<C: Client> {
    client: C,
    offer: Offer,
    asked: BTreeSet<String>,
    /// What the client has taken into use, for as long as it asks for it.
    held: BTreeMap<String, u64>,
    to_server: VecDeque<C::Request>,
    to_client: VecDeque<C::Response>,
    refused: BTreeSet<(String, u64)>,
    /// The names in what is under way to the client, but for those that it has given up since.
    under_way: BTreeSet<String>,
    /// Given up, asked for again and refused, all while something was under way: it may be sent again or not.
    unclear: BTreeSet<String>,
    sent: usize,
}

impl<C: Client> World<C> {
    fn new() -> Self {
        let mut world = Self {
            client: C::default(),
            offer: Offer::default(),
            asked: BTreeSet::new(),
            held: BTreeMap::new(),
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            refused: BTreeSet::new(),
            under_way: BTreeSet::new(),
            unclear: BTreeSet::new(),
            sent: 0,
        };
        world.open();
        world
    }

    fn open(&mut self) {
        self.to_server.clear();
        self.to_client.clear();
        self.refused.clear();
        self.unclear.clear();
        self.client.reset();
        let request = self.client.open(&self.asked, &self.held);
        self.to_server.push_back(request);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Change(index) => self.offer.change(NAMES[*index]),
            Step::Bump => self.offer.bump(),
            Step::Ask(indices) => {
                let name = |&index: &usize| NAMES.get(index).unwrap_or(&FOREIGN).to_string();
                let now: BTreeSet<String> = indices.iter().map(name).collect();
                let request = self.client.ask(&self.asked, &now);
                self.to_server.extend(request);
                self.held.retain(|name, _| now.contains(name));
                // Who asks for it anew may get the same again.
                self.refused.retain(|(name, _)| now.contains(name));
                self.under_way.retain(|name| now.contains(name));
                self.asked = now;
            }
            Step::Take => self.read(true),
            Step::Refuse => self.read(false),
            Step::Arrive => self.arrive(),
            Step::Cut => self.open(),
        }
        self.serve();
        self.check();
    }

    fn read(&mut self, take: bool) {
        let Some(response) = self.to_client.pop_front() else {
            return;
        };
        for (name, version) in C::contents(&response) {
            if !self.asked.contains(&name) {
                continue;
            }
            match take {
                true => drop(self.held.insert(name, version)),
                false if self.under_way.contains(&name) && self.to_server.is_empty() => {
                    self.refused.insert((name, version));
                }
                false => {
                    self.unclear.insert(name);
                }
            }
        }
        let request = self.client.answer(&response, &self.asked, take);
        self.to_server.push_back(request);
    }

    fn arrive(&mut self) {
        if let Some(request) = self.to_server.pop_front() {
            self.client.hear(&request).unwrap();
        }
    }

    fn serve(&mut self) {
        let Some(response) = self.client.serve(&self.offer) else {
            return;
        };
        let contents = C::contents(&response);
        assert!(C::RESENDS || !contents.contains_key(FOREIGN));
        if C::RESENDS {
            assert!(!contents.is_empty(), "Envoy refuses an empty response");
        }
        for (name, version) in &contents {
            assert_eq!(Some(version), self.offer.versions.get(name.as_str()));
        }
        let news =
            |(name, version): (&String, &u64)| !self.refused.contains(&(name.clone(), *version));
        assert!(
            contents.is_empty() || contents.iter().any(news),
            "the same was refused before: {contents:?}"
        );
        let names = contents.into_keys();
        self.under_way = names.filter(|name| self.asked.contains(name)).collect();
        self.to_client.push_back(response);
        assert!(self.to_client.len() <= 1, "one at a time");
        self.sent += 1;
    }

    /// What the server believes of the client is true: it never has less than that.
    fn check(&self) {
        let TrustState::At(at) = self.client.trust(&self.offer) else {
            return;
        };
        for (name, version) in self.held.iter().filter(|(name, _)| is_trust(name)) {
            let name = known(name).unwrap();
            let until = self.offer.right_until[&(name, *version)];
            assert!(
                at <= until,
                "it is said to have trust {at}, and its {name} is right until {until}"
            );
        }
    }

    /// Everything that is under way arrives, and nothing more is refused.
    fn settle(&mut self) {
        for _ in 0..20 {
            while !self.to_server.is_empty() {
                self.arrive();
                self.serve();
            }
            self.read(true);
            self.check();
        }
        assert!(self.to_client.is_empty() && self.to_server.is_empty());
        for name in &self.asked {
            let Some(&newest) = self.offer.versions.get(name.as_str()) else {
                continue;
            };
            let refused = self.refused.iter().any(|(refused, _)| refused == name);
            if !refused && !self.unclear.contains(name) {
                assert_eq!(self.held.get(name), Some(&newest), "{name}");
            }
        }
        if self.refused.is_empty() && self.unclear.is_empty() {
            let ready =
                |name: &&String| is_trust(name) && self.offer.versions.contains_key(name.as_str());
            let all = self.asked.iter().filter(|name| is_trust(name)).count();
            let ready = self.asked.iter().filter(ready).count();
            if ready > 0 && ready == all {
                let trust = self.client.trust(&self.offer);
                assert_eq!(trust, TrustState::At(self.offer.trust));
            }
        }
        // Nothing has changed: nothing is sent.
        let sent = self.sent;
        self.serve();
        assert_eq!(self.sent, sent);
    }
}

fn explore<C: Client>(steps: &[Step]) {
    let mut world = World::<C>::new();
    for step in steps {
        world.step(step);
    }
    world.settle();
    // Whatever was refused is made good by the next content.
    for name in NAMES {
        world.offer.change(name);
    }
    world.refused.clear();
    world.unclear.clear();
    world.serve();
    world.settle();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_state_of_the_world_arrives_whatever_happens(steps in steps()) {
        explore::<SotwClient>(&steps);
    }

    #[test]
    fn deltas_arrive_whatever_happens(steps in steps()) {
        explore::<DeltaClient>(&steps);
    }

    #[test]
    fn no_request_of_any_shape_does_harm(
        requests in vec(
            (any::<String>(), any::<String>(), vec(".{0,20}", 0..12), any::<bool>(), any::<bool>()),
            0..20,
        ),
    ) {
        let mut offer = Offer::default();
        for name in NAMES {
            offer.change(name);
        }
        let (mut sotw, mut delta) = (Sotw::new(BOUNDS), Delta::new(BOUNDS));
        for (version, nonce, names, error, count) in requests {
            let nonce = if count { "1".to_owned() } else { nonce };
            let error = error.then(|| Status { message: version.repeat(50), ..Status::default() });
            let request = DiscoveryRequest {
                version_info: version.clone(),
                response_nonce: nonce.clone(),
                resource_names: names.clone(),
                error_detail: error.clone(),
                ..DiscoveryRequest::default()
            };
            if let Ok(heard) = sotw.hear(&request)
                && let Some(nack) = heard.nacked
            {
                prop_assert!(nack.message.chars().count() <= 257);
            }
            sotw.answer(&offer).unwrap();
            let request = DeltaDiscoveryRequest {
                resource_names_subscribe: names.clone(),
                resource_names_unsubscribe: names.iter().take(2).cloned().collect(),
                initial_resource_versions: names.into_iter().map(|name| (name, version.clone())).collect(),
                response_nonce: nonce,
                error_detail: error,
                ..DeltaDiscoveryRequest::default()
            };
            let _ = delta.hear(&request);
            delta.answer(&offer).unwrap();
        }
    }
}

#[test]
fn limits_and_types_are_kept() {
    let many: Vec<String> = (0..9).map(|it| it.to_string()).collect();
    let asks = |names: Vec<String>, type_url: &str| DiscoveryRequest {
        resource_names: names,
        type_url: type_url.to_owned(),
        ..DiscoveryRequest::default()
    };
    for (request, wanted) in [
        (
            asks(many.clone(), ""),
            "limit: 9 resources are asked for on one stream, which may ask for 8",
        ),
        (
            asks(vec!["x".repeat(17)], ""),
            "limit: the name of a resource has 17 bytes, and may have 16",
        ),
        (
            asks(
                Vec::new(),
                "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            ),
            "protocol: this service has `type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret` only, and not \
             `type.googleapis.com/envoy.config.cluster.v3.Cluster`",
        ),
    ] {
        let broken = match Sotw::new(BOUNDS).hear(&request).unwrap_err() {
            Broken::Protocol(why) => format!("protocol: {why}"),
            Broken::Limit(why) => format!("limit: {why}"),
        };
        assert_eq!(broken, wanted);
    }
    let mut delta = Delta::new(BOUNDS);
    for (index, name) in many.into_iter().enumerate() {
        let request = DeltaDiscoveryRequest {
            resource_names_subscribe: vec![name],
            ..DeltaDiscoveryRequest::default()
        };
        assert_eq!(
            delta.hear(&request).is_ok(),
            index < 8,
            "one by one as well"
        );
    }
}

#[test]
fn words_of_others_are_clipped_and_clean() {
    assert_eq!(clip("a\nb\u{1b}[31m"), "a b [31m");
    assert_eq!(clip(&"é".repeat(300)).chars().count(), 257);
}

#[test]
fn what_it_had_before_is_not_forgotten_with_its_first_acknowledgement() {
    // The control plane was restarted: the identity is there again sooner than the trust.
    let mut offer = Offer::default();
    offer.change("identity");
    let mut sotw = Sotw::new(BOUNDS);
    let names = vec!["identity".to_owned(), "trust".to_owned()];
    let first = DiscoveryRequest {
        version_info: "before".to_owned(),
        resource_names: names.clone(),
        ..DiscoveryRequest::default()
    };
    sotw.hear(&first).unwrap();
    assert_eq!(sotw.subscriptions().trust(&offer), TrustState::Older);
    let response = sotw.answer(&offer).unwrap().unwrap();
    let ack = DiscoveryRequest {
        version_info: response.version_info,
        response_nonce: response.nonce,
        resource_names: names,
        ..DiscoveryRequest::default()
    };
    sotw.hear(&ack).unwrap();
    offer.change("trust");
    sotw.answer(&offer).unwrap().unwrap();
    assert_eq!(
        sotw.subscriptions().trust(&offer),
        TrustState::Older,
        "it was only sent"
    );
}

#[test]
fn what_was_refused_beside_trust_is_sent_again_with_other_trust() {
    let mut offer = Offer::default();
    offer.change("identity");
    offer.change("trust");
    let mut sotw = Sotw::new(BOUNDS);
    let names = vec!["identity".to_owned(), "trust".to_owned()];
    let first = DiscoveryRequest {
        resource_names: names.clone(),
        ..DiscoveryRequest::default()
    };
    sotw.hear(&first).unwrap();
    let response = sotw.answer(&offer).unwrap().unwrap();
    let nack = DiscoveryRequest {
        response_nonce: response.nonce,
        resource_names: names,
        error_detail: Some(Status::default()),
        ..DiscoveryRequest::default()
    };
    let nack = sotw.hear(&nack).unwrap().nacked.unwrap();
    assert_eq!(nack.trust, Some(offer.trust));
    assert_eq!(sotw.answer(&offer).unwrap(), None);
    sotw.subscriptions_mut().forgive(&offer);
    let again = sotw.answer(&offer).unwrap().unwrap();
    assert_eq!(again.resources.len(), 2);
    assert_eq!(sotw.subscriptions().sent_trust(&offer), Some(offer.trust));
}
