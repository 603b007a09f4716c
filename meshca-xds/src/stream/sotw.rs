//! State of the world: each response has everything that is asked for.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use meshca_core::Result;

use super::{Bounds, Broken, Heard, Protocol, Secrets, Sent, Subscriptions, check_type};
use crate::secrets::{Digest, SECRET_TYPE};

/// One stream.
#[derive(Debug)]
pub(crate) struct Sotw {
    subscriptions: Subscriptions,
    begun: bool,
}

impl Protocol for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn new(bounds: Bounds) -> Self {
        Self {
            subscriptions: Subscriptions::new(bounds),
            begun: false,
        }
    }

    fn hear(&mut self, request: &DiscoveryRequest) -> Result<Heard, Broken> {
        check_type(&request.type_url)?;
        let subscriptions = &mut self.subscriptions;
        subscriptions.check_count(request.resource_names.len())?;
        for name in &request.resource_names {
            subscriptions.check_name(name)?;
        }
        let mut heard = Heard::default();
        if !self.begun {
            self.begun = true;
            // It had accepted something on the stream before this one. The version does not say what: it is one for all names, and is kept
            // when a name is given up and asked for again. So everything is sent anew, of which Envoy uses what differs.
            subscriptions.may_have = !request.version_info.is_empty();
        } else if subscriptions.nonce > 0 && !subscriptions.is_last(&request.response_nonce) {
            // An answer to what was sent before the last; one to the last will follow.
            return Ok(heard);
        }
        subscriptions.settle(request.error_detail.as_ref(), &mut heard);
        subscriptions.retain(|name| request.resource_names.iter().any(|it| it == name));
        let names = request.resource_names.iter();
        heard.new = names.filter_map(|name| subscriptions.add(name)).collect();
        Ok(heard)
    }

    fn answer(&mut self, secrets: &impl Secrets) -> Result<Option<DiscoveryResponse>> {
        let subscriptions = &mut self.subscriptions;
        subscriptions.catch_up(secrets);
        if subscriptions.under_way.is_some() {
            return Ok(None);
        }
        let trust = secrets.trust_version();
        let mut ready = Vec::new();
        let mut news = false;
        for (name, progress) in &subscriptions.names {
            if let Some(version) = secrets.version(name) {
                news |= progress.wants(&version);
                ready.push((Arc::clone(name), Sent { version, trust }));
            }
        }
        if !news {
            return Ok(None);
        }
        let mut resources = Vec::with_capacity(ready.len());
        let mut digest = Digest::new();
        for (name, sent) in &ready {
            digest.add(&**name);
            digest.add(&*sent.version);
            resources.extend(secrets.packed(name)?);
        }
        Ok(Some(DiscoveryResponse {
            version_info: digest.end(),
            resources,
            type_url: SECRET_TYPE.to_owned(),
            nonce: subscriptions.send(ready),
            ..DiscoveryResponse::default()
        }))
    }

    fn node(request: &DiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn nonce(response: &DiscoveryResponse) -> (&str, usize) {
        (&response.nonce, response.resources.len())
    }

    fn subscriptions(&self) -> &Subscriptions {
        &self.subscriptions
    }

    fn subscriptions_mut(&mut self) -> &mut Subscriptions {
        &mut self.subscriptions
    }
}
