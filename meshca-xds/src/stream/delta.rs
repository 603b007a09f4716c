//! Delta: each response has what has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use meshca_core::Result;

use super::{Bounds, Broken, Heard, Protocol, Secrets, Sent, Subscriptions, check_type};
use crate::secrets::{Digest, SECRET_TYPE};
use crate::standing::Standing;

/// One stream.
#[derive(Debug)]
pub(crate) struct Delta {
    subscriptions: Subscriptions,
    /// Asked for, and maybe not there: to be told so.
    absent: BTreeSet<Arc<str>>,
    /// What the client had accepted on the stream before this one. It is not sent again if it is the same.
    resumed: BTreeMap<Arc<str>, String>,
    begun: bool,
}

impl Protocol for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn new(bounds: Bounds) -> Self {
        Self {
            subscriptions: Subscriptions::new(bounds),
            absent: BTreeSet::new(),
            resumed: BTreeMap::new(),
            begun: false,
        }
    }

    /// Unlike with the state of the world, one that changes the subscription and one that answers need not be the same.
    fn hear(&mut self, request: &DeltaDiscoveryRequest) -> Result<Heard, Broken> {
        check_type(&request.type_url)?;
        let subscriptions = &mut self.subscriptions;
        for name in &request.resource_names_subscribe {
            subscriptions.check_name(name)?;
        }
        let mut heard = Heard::default();
        if !self.begun {
            self.begun = true;
            let known = &request.initial_resource_versions;
            subscriptions.check_count(known.len())?;
            for (name, version) in known {
                subscriptions.check_name(name)?;
                subscriptions.check_name(version)?;
            }
            subscriptions.may_have = !known.is_empty();
            let known = known.iter();
            self.resumed = known
                .map(|(name, version)| (name.as_str().into(), version.clone()))
                .collect();
        }
        if subscriptions.is_last(&request.response_nonce) {
            subscriptions.settle(request.error_detail.as_ref(), &mut heard);
            for name in heard.acked.iter().flatten() {
                self.resumed.remove(name);
            }
        }
        let given_up = &request.resource_names_unsubscribe;
        if !given_up.is_empty() {
            let given_up: BTreeSet<&str> = given_up.iter().map(String::as_str).collect();
            subscriptions.retain(|name| !given_up.contains(name));
            self.absent.retain(|name| !given_up.contains(&**name));
            self.resumed.retain(|name, _| !given_up.contains(&**name));
        }
        for name in &request.resource_names_subscribe {
            if let Some(name) = subscriptions.add(name) {
                heard.new.push(name);
            } else if let Some(progress) = subscriptions.names.get_mut(name.as_str()) {
                // Who asks again wants it again, although it is the same.
                progress.had_before |= progress.acked.take().is_some();
                progress.refused = None;
            }
        }
        subscriptions.check_count(subscriptions.names.len())?;
        self.absent.extend(heard.new.iter().cloned());
        Ok(heard)
    }

    fn answer(&mut self, secrets: &impl Secrets) -> Result<Option<DeltaDiscoveryResponse>> {
        let subscriptions = &mut self.subscriptions;
        let trust = secrets.trust_version();
        for (name, version) in std::mem::take(&mut self.resumed) {
            match (subscriptions.names.get_mut(&name), secrets.version(&name)) {
                (Some(progress), Some(newest)) if *newest == *version => {
                    progress.had_before = false;
                    progress.acked = Some(Sent {
                        version: newest,
                        trust,
                    });
                }
                (Some(_), _) => drop(self.resumed.insert(name, version)),
                (None, _) => {}
            }
        }
        subscriptions.catch_up(secrets);
        if subscriptions.under_way.is_some() {
            return Ok(None);
        }
        let mut news = Vec::new();
        for (name, progress) in &subscriptions.names {
            let Some(version) = secrets.version(name) else {
                continue;
            };
            if progress.wants(&version) {
                news.push((Arc::clone(name), Sent { version, trust }));
            }
        }
        let removed: Vec<String> = std::mem::take(&mut self.absent)
            .into_iter()
            .filter(|name| secrets.standing(name) == Standing::Foreign)
            .map(|name| name.to_string())
            .collect();
        if news.is_empty() && removed.is_empty() {
            return Ok(None);
        }
        let mut digest = Digest::new();
        for name in subscriptions.names.keys() {
            if let Some(version) = secrets.version(name) {
                digest.add(&**name);
                digest.add(&*version);
            }
        }
        let mut resources = Vec::with_capacity(news.len());
        for (name, sent) in &news {
            resources.push(Resource {
                name: name.to_string(),
                version: sent.version.to_string(),
                resource: secrets.packed(name)?,
                ..Resource::default()
            });
        }
        Ok(Some(DeltaDiscoveryResponse {
            system_version_info: digest.end(),
            resources,
            type_url: SECRET_TYPE.to_owned(),
            removed_resources: removed,
            nonce: subscriptions.send(news),
            ..DeltaDiscoveryResponse::default()
        }))
    }

    fn node(request: &DeltaDiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn nonce(response: &DeltaDiscoveryResponse) -> (&str, usize) {
        (&response.nonce, response.resources.len())
    }

    fn subscriptions(&self) -> &Subscriptions {
        &self.subscriptions
    }

    fn subscriptions_mut(&mut self) -> &mut Subscriptions {
        &mut self.subscriptions
    }
}
