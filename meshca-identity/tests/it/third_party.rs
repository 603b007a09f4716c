//! A third party's CA that decides on lifetimes itself, under the manager.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use meshca_core::registry::{
    BackendConfig, BackendRegistry, BuildContext, BuiltIssuer, IssuerFactory,
};
use meshca_core::resource::Resource;
use meshca_core::resource::settings::{self, Fields, Model, Settings, SettingsType};
use meshca_core::spiffe::{Environment, NameTemplate, Workload};
use meshca_core::{Clock as _, LifetimePolicy, MemorySecretStore, Result};
use meshca_identity::select::SelectOptions;
use meshca_identity::{Manager, ManagerOptions, MeshResources};
use meshca_testkit::{Fault, FaultyIssuer, TokioClock};
use serde::Serialize;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct SlowConf {
    dns_names: Vec<NameTemplate>,
}

impl Settings for SlowConf {
    const TYPE: &'static str = "slow-ca";

    fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let dns_names = fields.list("dnsNames", settings::name_template);
        Some(Self { dns_names })
    }

    fn lifetime_policy(&self, _: Model, _: Option<Duration>) -> LifetimePolicy {
        LifetimePolicy::AcceptIssuer
    }

    fn dns_names(&self) -> &[NameTemplate] {
        &self.dns_names
    }
}

#[derive(Debug)]
struct SlowFactory;

#[async_trait]
impl IssuerFactory for SlowFactory {
    fn settings(&self) -> Vec<SettingsType> {
        vec![SettingsType::of::<SlowConf>()]
    }

    async fn build(&self, config: &BackendConfig, c: &BuildContext) -> Result<BuiltIssuer> {
        let _: &SlowConf = config.settings()?;
        let issuer = FaultyIssuer::new(c.trust_domain().clone(), Arc::clone(c.clock()))?;
        issuer.misbehave(Fault::OverlongLeaf);
        Ok(Arc::new(issuer).into())
    }
}

/// The resources come without the registry, as those do that a Kubernetes client has read.
#[tokio::test(start_paused = true)]
async fn a_ca_that_decides_on_lifetimes_serves_both_models() {
    let classic = "{type: Mesh, name: default, mtls: {enabledBackend: a, backends: [\
                   {name: a, type: slow-ca, conf: {dnsNames: ['{{ label \"app\" }}.example']}}]}}";
    let modern = "{type: Mesh, name: default}\n---\n{type: MeshIdentity, name: id, mesh: default, spec: {\
                  selector: {dataplane: {matchLabels: {}}}, provider: {type: Extension, extension: {\
                  name: slow-ca, config: {dnsNames: ['{{ label \"app\" }}.example']}}}}}";
    for text in [classic, modern] {
        let options = ManagerOptions::new(SelectOptions::new("east", Environment::Universal));
        let registry = BackendRegistry::new().with(SlowFactory);
        let secrets = Arc::new(MemorySecretStore::new());
        let clock = TokioClock::new();
        let (manager, driver) = Manager::new(registry, secrets, Arc::new(clock.clone()), options);
        let task = driver.spawn();
        let resources = Resource::parse(text).unwrap();
        let resources = MeshResources::from_resources(resources).unwrap();
        manager.apply(resources).await.unwrap();

        let workload = Workload::new()
            .with_label("app", "web")
            .with_label("kuma.io/workload", "web")
            .with_tag("kuma.io/service", "web");
        let mut handle = manager.connect("default", "web", workload).await.unwrap();
        tokio::time::timeout(10 * DAY, handle.ready())
            .await
            .unwrap()
            .unwrap();
        let identity = handle.identity().unwrap();
        assert!(
            identity.certificate().validity().remaining(clock.now()) > 2 * DAY,
            "{text}"
        );
        drop((manager, task));
    }
}
