//! What is said on one stream, without the stream: each request goes in, and what is to be answered comes out.
//!
//! One response is under way at a time. Whoever is slow to acknowledge gets the newest state next, and not every one in between, so
//! nothing piles up for it. What a proxy refuses is not sent again until it has changed.

pub(crate) mod delta;
pub(crate) mod sotw;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc::Status;
use meshca_core::Result;
use meshca_identity::TrustVersion;
use prost::Message;

use crate::secrets::SECRET_TYPE;
use crate::standing::Standing;

/// The two protocols, state of the world and delta, as the loop of a stream needs them.
pub(crate) trait Protocol: Send + 'static {
    type Request: Message + Default + 'static;
    type Response: Message + 'static;

    fn new(bounds: Bounds) -> Self;
    fn node(request: &Self::Request) -> Option<&Node>;
    /// Takes in a request.
    fn hear(&mut self, request: &Self::Request) -> Result<Heard, Broken>;
    /// Returns the response to send now, if there is one.
    fn answer(&mut self, secrets: &impl Secrets) -> Result<Option<Self::Response>>;
    /// The number of a response, and the number of secrets in it.
    fn nonce(response: &Self::Response) -> (&str, usize);
    fn subscriptions(&self) -> &Subscriptions;
    fn subscriptions_mut(&mut self) -> &mut Subscriptions;
}

/// The secrets that a stream is about.
pub(crate) trait Secrets {
    fn standing(&self, name: &str) -> Standing;
    fn version(&self, name: &str) -> Option<Arc<str>>;
    /// The secret of this name as it is sent.
    fn packed(&self, name: &str) -> Result<Option<Any>>;
    /// Tells a name of the trust from a name of an identity.
    fn is_trust(&self, name: &str) -> bool;
    fn trust_version(&self) -> TrustVersion;
}

/// What a client may ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Names on one stream.
    pub(crate) names: usize,
    /// Bytes of one name.
    pub(crate) name: usize,
}

/// Why a stream ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The client does not speak the protocol.
    Protocol(String),
    /// It wants more than it may.
    Limit(String),
}

/// What a request meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// It refused what was sent, and says why.
    pub(crate) nacked: Option<Nack>,
    /// It has taken into use what was sent; these are the names.
    pub(crate) acked: Option<Vec<Arc<str>>>,
    /// It has begun to ask for these.
    pub(crate) new: Vec<Arc<str>>,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nack {
    pub(crate) names: Vec<Arc<str>>,
    /// The newest trust of what it refuses.
    pub(crate) trust: Option<TrustVersion>,
    pub(crate) message: String,
}

/// How far the client is with the trust, of what it asks for on this stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TrustState {
    /// It asks for none.
    #[default]
    NotAsked,
    /// It has something from before this stream, and nobody knows what.
    Older,
    /// What it has is as good as the trust of this version.
    At(TrustVersion),
    /// It has none yet, and will begin with this version if it takes it.
    First(TrustVersion),
    /// It asks for it, has nothing, and nothing was sent.
    Nothing,
}

/// What a client asks for, what is under way to it, and what became of all that was sent.
#[derive(Debug)]
pub(crate) struct Subscriptions {
    bounds: Bounds,
    names: BTreeMap<Arc<str>, Progress>,
    /// The last response, numbered on this stream; 0 before the first.
    nonce: u64,
    /// What is in it, until it is answered.
    under_way: Option<Vec<(Arc<str>, Sent)>>,
    /// What it asks for anew it may have already: it came with something from before this stream, or has stopped asking for something.
    may_have: bool,
}

/// What a client has done with one name.
#[derive(Debug, Default)]
struct Progress {
    acked: Option<Sent>,
    refused: Option<Arc<str>>,
    /// It may have one from before, of which nothing is known here.
    had_before: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Sent {
    version: Arc<str>,
    /// The newest trust that this content is right for: it is not another one for each change in
    /// another trust domain.
    trust: TrustVersion,
}

impl Subscriptions {
    fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            names: BTreeMap::new(),
            nonce: 0,
            under_way: None,
            may_have: false,
        }
    }

    fn is_last(&self, nonce: &str) -> bool {
        nonce == self.nonce.to_string()
    }

    /// Asks for a name, which is returned if that is new.
    fn add(&mut self, name: &str) -> Option<Arc<str>> {
        if self.names.contains_key(name) {
            return None;
        }
        let name: Arc<str> = name.into();
        let progress = Progress {
            had_before: self.may_have,
            ..Progress::default()
        };
        self.names.insert(Arc::clone(&name), progress);
        Some(name)
    }

    /// Stops asking for what this does not keep.
    fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        let before = self.names.len();
        self.names.retain(|name, _| keep(name));
        self.may_have |= self.names.len() < before;
    }

    /// The client has answered what is under way.
    fn settle(&mut self, error: Option<&Status>, heard: &mut Heard) {
        let Some(sent) = self.under_way.take() else {
            return;
        };
        let names = sent.iter().map(|(name, _)| Arc::clone(name)).collect();
        match error {
            Some(status) => {
                heard.nacked = Some(Nack {
                    names,
                    trust: sent.iter().map(|(_, sent)| sent.trust).max(),
                    message: clip(&status.message),
                });
            }
            None => heard.acked = Some(names),
        }
        for (name, sent) in sent {
            // What it has given up in the meantime, it has not taken into use.
            let Some(progress) = self.names.get_mut(&name) else {
                continue;
            };
            match error {
                Some(_) => progress.refused = Some(sent.version),
                None => {
                    *progress = Progress {
                        acked: Some(sent),
                        ..Progress::default()
                    };
                }
            }
        }
    }

    /// What is sent now; returns the number of the response.
    fn send(&mut self, secrets: Vec<(Arc<str>, Sent)>) -> String {
        self.nonce += 1;
        self.under_way = Some(secrets);
        self.nonce.to_string()
    }

    /// Where what the client has is what there is, it is as far as the newest trust.
    fn catch_up(&mut self, secrets: &impl Secrets) {
        let trust = secrets.trust_version();
        let acked = self
            .names
            .iter_mut()
            .filter_map(|(name, progress)| Some((name, progress.acked.as_mut()?)));
        let sent = self.under_way.iter_mut().flatten();
        for (name, sent) in acked.chain(sent.map(|(name, sent)| (&*name, sent))) {
            if sent.trust < trust && secrets.version(name).is_some_and(|it| it == sent.version) {
                sent.trust = trust;
            }
        }
    }

    /// How far the client is with the trust: as far as the least of what it has.
    pub(crate) fn trust(&self, secrets: &impl Secrets) -> TrustState {
        let (mut least, mut taken, mut nothing) = (None::<TrustVersion>, false, false);
        let mut count = |trust: TrustVersion| {
            least = Some(least.map_or(trust, |least| least.min(trust)));
        };
        let under_way = || self.under_way.iter().flatten();
        // Who gives up a name and asks for it again, maybe takes into use what is under way; that it asks again is not known yet.
        for (_, sent) in under_way().filter(|(name, _)| !self.names.contains_key(name)) {
            count(sent.trust);
        }
        for (name, progress) in self.names.iter().filter(|(name, _)| secrets.is_trust(name)) {
            let sent = under_way().find(|(sent, _)| sent == name);
            match (&progress.acked, sent) {
                (Some(acked), _) => {
                    taken = true;
                    count(acked.trust);
                }
                _ if progress.had_before => return TrustState::Older,
                // It has nothing to fall back to, and begins with this.
                (None, Some((_, sent))) => count(sent.trust),
                (None, None) => nothing = true,
            }
        }
        match least {
            None if nothing => TrustState::Nothing,
            None => TrustState::NotAsked,
            Some(least) if taken => TrustState::At(least),
            Some(least) => TrustState::First(least),
        }
    }

    /// What was refused together with trust may be sent again, with other trust.
    pub(crate) fn forgive(&mut self, secrets: &impl Secrets) {
        for (name, progress) in &mut self.names {
            if !secrets.is_trust(name) {
                progress.refused = None;
            }
        }
    }

    /// The trust that is under way to the client, if its answer is about any.
    pub(crate) fn sent_trust(&self, secrets: &impl Secrets) -> Option<TrustVersion> {
        let sent = self.under_way.iter().flatten();
        let trust = sent.filter(|(name, _)| secrets.is_trust(name));
        trust.map(|(_, sent)| sent.trust).max()
    }

    /// The versions of the identity that the client has taken into use, by each name that it has for it; `None` where it has none yet.
    ///
    /// A name that is not its own any more does not count: listeners that were replaced ask for it for as long as they drain.
    pub(crate) fn identities(&self, secrets: &impl Secrets) -> Vec<Option<Arc<str>>> {
        let own =
            |name: &str| !secrets.is_trust(name) && secrets.standing(name) != Standing::Foreign;
        self.names
            .iter()
            .filter(|(name, _)| own(name))
            .map(|(_, progress)| progress.acked.as_ref().map(|it| Arc::clone(&it.version)))
            .collect()
    }

    /// All that it asks for.
    pub(crate) fn names(&self) -> Vec<Arc<str>> {
        self.names.keys().cloned().collect()
    }

    fn check_name(&self, name: &str) -> Result<(), Broken> {
        match name.len() <= self.bounds.name {
            true => Ok(()),
            false => Err(Broken::Limit(format!(
                "the name of a resource has {} bytes, and may have {}",
                name.len(),
                self.bounds.name
            ))),
        }
    }

    fn check_count(&self, count: usize) -> Result<(), Broken> {
        match count <= self.bounds.names {
            true => Ok(()),
            false => Err(Broken::Limit(format!(
                "{count} resources are asked for on one stream, which may ask for {}",
                self.bounds.names
            ))),
        }
    }
}

impl Progress {
    /// Whether this version is to be sent.
    fn wants(&self, version: &Arc<str>) -> bool {
        self.refused.as_ref() != Some(version)
            && self.acked.as_ref().is_none_or(|it| it.version != *version)
    }
}

fn check_type(type_url: &str) -> Result<(), Broken> {
    match type_url {
        // Implied on a service of one type.
        "" | SECRET_TYPE => Ok(()),
        other => Err(Broken::Protocol(format!(
            "this service has `{SECRET_TYPE}` only, and not `{}`",
            clip(other)
        ))),
    }
}

/// Others' words, as much of them as a log needs.
pub(crate) fn clip(text: &str) -> String {
    const MOST: usize = 256;
    let clean = |it: char| if it.is_control() { ' ' } else { it };
    let mut clipped: String = text.chars().take(MOST).map(clean).collect();
    if text.chars().nth(MOST).is_some() {
        clipped.push('…');
    }
    clipped
}
