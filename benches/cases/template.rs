//! The path of a SPIFFE ID, for every proxy that connects.

use std::hint::black_box;

use meshca::TrustDomain;
use meshca::spiffe::{Environment, PathTemplate, Workload};

use super::issue::TRUST_DOMAIN;
use super::{Case, Result, each};

/// The default on Kubernetes, parsed once, for a Dataplane with the labels that one has there.
pub(super) fn path() -> Result<Box<dyn Case>> {
    let template = PathTemplate::default_for(Environment::Kubernetes);
    let trust_domain = TrustDomain::new(TRUST_DOMAIN)?;
    let workload: Workload = [
        ("app", "cart"),
        ("k8s.kuma.io/namespace", "shop"),
        ("k8s.kuma.io/service-account", "cart"),
        ("kuma.io/mesh", "default"),
        ("kuma.io/workload", "cart"),
        ("kuma.io/zone", "eu-1"),
    ]
    .into_iter()
    .collect();
    each(move || {
        black_box(template.render_path(&trust_domain, black_box(&workload))?);
        Ok(())
    })
}
