//! What is said on one stream, without the stream: each request goes in, and what is to be answered comes out.
//!
//! One response is under way at a time. Whoever is slow to acknowledge gets the newest state next, and not every one in between, so
//! nothing piles up for it. What a proxy refuses is not sent again until it has changed.

pub(crate) mod delta;
pub(crate) mod sotw;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use envoy_types::pb::google::protobuf::Any;
use meshca_core::Result;

use crate::proxy::{ProxySecrets, Standing};
use crate::secrets::SECRET_TYPE;

/// The secrets that a stream is about.
pub(crate) trait Secrets {
    fn standing(&self, name: &str) -> Standing;
    fn version(&self, name: &str) -> Option<Arc<str>>;
    fn packed(&self, name: &str) -> Result<Option<Any>>;
    fn is_trust(&self, name: &str) -> bool;
    fn trust_version(&self) -> u64;
}

impl Secrets for ProxySecrets {
    fn standing(&self, name: &str) -> Standing {
        self.standing(name)
    }

    fn version(&self, name: &str) -> Option<Arc<str>> {
        self.version(name)
    }

    fn packed(&self, name: &str) -> Result<Option<Any>> {
        self.packed(name)
    }

    fn is_trust(&self, name: &str) -> bool {
        self.is_trust(name)
    }

    fn trust_version(&self) -> u64 {
        self.trust_version()
    }
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
    pub(crate) message: String,
}

/// How far the client is with the trust, of what it asks for on this stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrustState {
    /// It asks for none.
    NotAsked,
    /// It has something from before this stream, and nobody knows what.
    Older,
    /// What it has, or what it will begin with, is as good as the trust of this number.
    At(u64),
    /// It asks for it, has nothing, and nothing was sent.
    Nothing,
}

/// What was sent last of one name, and what became of it.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// Under way.
    sent: Option<Sent>,
    acked: Option<Sent>,
    refused: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Sent {
    version: Arc<str>,
    trust: u64,
}

impl Progress {
    /// Whether this version is to be sent.
    fn wants(&self, version: &Arc<str>) -> bool {
        self.refused.as_ref() != Some(version)
            && self.acked.as_ref().is_none_or(|it| it.version != *version)
    }

    /// What it has is what there is: it is as far as the newest trust.
    fn catch_up(&mut self, version: Option<&Arc<str>>, trust: u64) {
        for known in [&mut self.sent, &mut self.acked].into_iter().flatten() {
            if Some(&known.version) == version {
                known.trust = known.trust.max(trust);
            }
        }
    }

    fn ack(&mut self) {
        if let Some(sent) = self.sent.take() {
            self.acked = Some(sent);
            self.refused = None;
        }
    }

    fn nack(&mut self) {
        if let Some(sent) = self.sent.take() {
            self.refused = Some(sent.version);
        }
    }
}

/// The least of what a client has of the trust.
fn trust_state<'a>(of: impl Iterator<Item = &'a Progress>, older: bool) -> TrustState {
    let mut state = TrustState::NotAsked;
    for progress in of {
        let at = match (&progress.acked, &progress.sent) {
            (Some(acked), _) => TrustState::At(acked.trust),
            _ if older => return TrustState::Older,
            // It has nothing to fall back to, and begins with this.
            (None, Some(sent)) => TrustState::At(sent.trust),
            (None, None) => TrustState::Nothing,
        };
        state = match (state, at) {
            (TrustState::At(one), TrustState::At(other)) => TrustState::At(one.min(other)),
            (TrustState::At(one), _) => TrustState::At(one),
            (_, at) => at,
        };
    }
    state
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

fn check_name(name: &str, bounds: Bounds) -> Result<(), Broken> {
    match name.len() <= bounds.name {
        true => Ok(()),
        false => Err(Broken::Limit(format!(
            "the name of a resource has {} bytes, and may have {}",
            name.len(),
            bounds.name
        ))),
    }
}

fn check_count(count: usize, bounds: Bounds) -> Result<(), Broken> {
    match count <= bounds.names {
        true => Ok(()),
        false => Err(Broken::Limit(format!(
            "{count} resources are asked for on one stream, which may ask for {}",
            bounds.names
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
