//! Delta: each response has what has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use meshca_core::Result;

use super::{
    Bounds, Broken, Heard, Nack, Progress, Secrets, Sent, TrustState, check_count, check_name,
    check_type, clip, trust_state,
};
use crate::proxy::Standing;
use crate::secrets::{Digest, SECRET_TYPE};

/// One stream.
#[derive(Debug)]
pub(crate) struct Delta {
    bounds: Bounds,
    names: BTreeMap<Arc<str>, Progress>,
    /// Asked for, and not there: to be told so.
    absent: BTreeSet<Arc<str>>,
    /// What the client had accepted on the stream before this one.
    resumed: BTreeMap<Arc<str>, String>,
    /// The last response, numbered on this stream; 0 before the first.
    nonce: u64,
    in_flight: bool,
    begun: bool,
}

impl Delta {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            names: BTreeMap::new(),
            absent: BTreeSet::new(),
            resumed: BTreeMap::new(),
            nonce: 0,
            in_flight: false,
            begun: false,
        }
    }

    /// A request has come. Unlike with the state of the world, one that changes the subscription and one that answers need not be the same.
    pub(crate) fn hear(&mut self, request: &DeltaDiscoveryRequest) -> Result<Heard, Broken> {
        check_type(&request.type_url)?;
        for name in &request.resource_names_subscribe {
            check_name(name, self.bounds)?;
        }
        let mut heard = Heard::default();
        if !self.begun {
            self.begun = true;
            check_count(request.initial_resource_versions.len(), self.bounds)?;
            let known = request.initial_resource_versions.iter();
            self.resumed = known
                .map(|(name, version)| (name.as_str().into(), version.clone()))
                .collect();
        }
        if self.in_flight && request.response_nonce == self.nonce.to_string() {
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
                    let taken: Vec<_> = taken.collect();
                    for name in &taken {
                        self.resumed.remove(name);
                    }
                    heard.acked = Some(taken);
                }
            }
        }
        for name in &request.resource_names_unsubscribe {
            self.names.remove(name.as_str());
            self.absent.remove(name.as_str());
            self.resumed.remove(name.as_str());
        }
        for name in &request.resource_names_subscribe {
            let name: Arc<str> = name.as_str().into();
            // Who asks again wants it again, although it is the same.
            let before = self.names.insert(Arc::clone(&name), Progress::default());
            match before {
                Some(before) => {
                    let again = Progress {
                        sent: before.sent,
                        acked: None,
                        refused: None,
                    };
                    self.names.insert(name, again);
                }
                None => heard.new.push(name),
            }
        }
        check_count(self.names.len(), self.bounds)?;
        self.absent.extend(heard.new.iter().cloned());
        Ok(heard)
    }

    /// What is to be sent now, if anything.
    pub(crate) fn answer(
        &mut self,
        secrets: &impl Secrets,
    ) -> Result<Option<DeltaDiscoveryResponse>> {
        let trust = secrets.trust_version();
        let mut news = Vec::new();
        let mut digest = Digest::new();
        for (name, progress) in &mut self.names {
            let version = secrets.version(name);
            progress.catch_up(version.as_ref(), trust);
            let Some(version) = version else { continue };
            digest.add(&**name);
            digest.add(&*version);
            if self.resumed.get(name).is_some_and(|it| **it == *version) {
                self.resumed.remove(name);
                progress.acked = Some(Sent {
                    version: Arc::clone(&version),
                    trust,
                });
                continue;
            }
            if progress.wants(&version) {
                news.push((name, progress, version));
            }
        }
        if self.in_flight {
            return Ok(None);
        }
        let removed: Vec<String> = self
            .absent
            .iter()
            .filter(|name| secrets.standing(name) == Standing::Foreign)
            .map(|name| name.to_string())
            .collect();
        self.absent.clear();
        if news.is_empty() && removed.is_empty() {
            return Ok(None);
        }
        let mut resources = Vec::with_capacity(news.len());
        for (name, _, version) in &news {
            resources.push(Resource {
                name: name.to_string(),
                version: version.to_string(),
                resource: secrets.packed(name)?,
                ..Resource::default()
            });
        }
        for (_, progress, version) in news {
            progress.sent = Some(Sent { version, trust });
        }
        self.nonce += 1;
        self.in_flight = true;
        Ok(Some(DeltaDiscoveryResponse {
            system_version_info: digest.end(),
            resources,
            type_url: SECRET_TYPE.to_owned(),
            removed_resources: removed,
            nonce: self.nonce.to_string(),
            ..DeltaDiscoveryResponse::default()
        }))
    }

    /// How far the client is with the trust.
    pub(crate) fn trust(&self, secrets: &impl Secrets) -> TrustState {
        let of_trust = self.names.iter().filter(|(name, _)| secrets.is_trust(name));
        let older = self.resumed.keys().any(|name| secrets.is_trust(name));
        trust_state(of_trust.map(|(_, progress)| progress), older)
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
