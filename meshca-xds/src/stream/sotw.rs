//! State of the world: each response has everything that is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use meshca_core::Result;

use super::{
    Bounds, Broken, Heard, Nack, Progress, Secrets, Sent, TrustState, check_count, check_name,
    check_type, clip, trust_state,
};
use crate::proxy::Standing;
use crate::secrets::{Digest, SECRET_TYPE};

/// One stream.
#[derive(Debug)]
pub(crate) struct Sotw {
    bounds: Bounds,
    names: BTreeMap<Arc<str>, Progress>,
    /// The last response, numbered on this stream; 0 before the first.
    nonce: u64,
    in_flight: bool,
    /// What the client had accepted on the stream before this one.
    resumed: Option<String>,
    begun: bool,
}

impl Sotw {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            names: BTreeMap::new(),
            nonce: 0,
            in_flight: false,
            resumed: None,
            begun: false,
        }
    }

    /// A request has come.
    pub(crate) fn hear(&mut self, request: &DiscoveryRequest) -> Result<Heard, Broken> {
        check_type(&request.type_url)?;
        check_count(request.resource_names.len(), self.bounds)?;
        for name in &request.resource_names {
            check_name(name, self.bounds)?;
        }
        let mut heard = Heard::default();
        if !self.begun {
            self.begun = true;
            if !request.version_info.is_empty() {
                self.resumed = Some(request.version_info.clone());
            }
        } else if self.nonce > 0 && request.response_nonce != self.nonce.to_string() {
            // An answer to what was sent before the last; one to the last will follow.
            return Ok(heard);
        }
        if self.in_flight {
            self.in_flight = false;
            let names = self
                .names
                .iter_mut()
                .filter(|(_, progress)| progress.sent.is_some());
            match &request.error_detail {
                Some(status) => {
                    let refused = names.map(|(name, progress)| {
                        progress.nack();
                        Arc::clone(name)
                    });
                    heard.nacked = Some(Nack {
                        names: refused.collect(),
                        message: clip(&status.message),
                    });
                }
                None => {
                    let taken = names.map(|(name, progress)| {
                        progress.ack();
                        Arc::clone(name)
                    });
                    heard.acked = Some(taken.collect());
                    self.resumed = None;
                }
            }
        }
        let asked = |name: &str| request.resource_names.iter().any(|it| it == name);
        self.names.retain(|name, _| asked(name));
        for name in &request.resource_names {
            if !self.names.contains_key(name.as_str()) {
                let name: Arc<str> = name.as_str().into();
                self.names.insert(Arc::clone(&name), Progress::default());
                heard.new.push(name);
            }
        }
        Ok(heard)
    }

    /// What is to be sent now, if anything.
    pub(crate) fn answer(&mut self, secrets: &impl Secrets) -> Result<Option<DiscoveryResponse>> {
        let trust = secrets.trust_version();
        let mut ready = Vec::new();
        let mut news = false;
        let mut digest = Digest::new();
        for (name, progress) in &mut self.names {
            let version = secrets.version(name);
            progress.catch_up(version.as_ref(), trust);
            if let Some(version) = version {
                news |= progress.wants(&version);
                digest.add(&**name);
                digest.add(&*version);
                ready.push((name, progress, version));
            }
        }
        if self.in_flight || !news {
            return Ok(None);
        }
        let version_info = digest.end();
        if self.resumed.take_if(|it| *it == version_info).is_some() {
            // It has all of this from the stream before.
            for (_, progress, version) in ready {
                progress.acked = Some(Sent { version, trust });
            }
            return Ok(None);
        }
        let mut resources = Vec::with_capacity(ready.len());
        for (name, _, _) in &ready {
            resources.extend(secrets.packed(name)?);
        }
        for (_, progress, version) in ready {
            progress.sent = Some(Sent { version, trust });
        }
        self.nonce += 1;
        self.in_flight = true;
        Ok(Some(DiscoveryResponse {
            version_info,
            resources,
            type_url: SECRET_TYPE.to_owned(),
            nonce: self.nonce.to_string(),
            ..DiscoveryResponse::default()
        }))
    }

    /// How far the client is with the trust.
    pub(crate) fn trust(&self, secrets: &impl Secrets) -> TrustState {
        let of_trust = self.names.iter().filter(|(name, _)| secrets.is_trust(name));
        trust_state(
            of_trust.map(|(_, progress)| progress),
            self.resumed.is_some(),
        )
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
}
