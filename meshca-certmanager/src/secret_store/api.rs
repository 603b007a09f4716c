//! Calls on secrets. [`kube::Api`]'s own log what they cannot read, and that would be a secret.

use futures_util::Stream;
use kube::Client;
use kube::api::{
    DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::core::Request;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::object::{Object, Page, Written};
use crate::error::limited;

#[derive(Clone)]
pub(super) struct Api {
    pub(super) client: Client,
    pub(super) namespace: String,
    request: Request,
}

impl Api {
    pub(super) fn new(client: Client, namespace: String) -> Self {
        let request = Request::new(format!("/api/v1/namespaces/{namespace}/secrets"));
        Self {
            client,
            namespace,
            request,
        }
    }

    pub(super) async fn get(&self, name: &str) -> Result<Object, kube::Error> {
        let request = self.request.get(name, &GetParams::default());
        self.call(request).await
    }

    pub(super) async fn list(&self, parameters: &ListParams) -> Result<Page, kube::Error> {
        let request = self.request.list(parameters);
        self.call(request).await
    }

    pub(super) async fn create(&self, secret: &Written) -> Result<Object, kube::Error> {
        let body = serde_json::to_vec(secret).map_err(kube::Error::SerdeError)?;
        let request = self.request.create(&PostParams::default(), body);
        self.call(request).await
    }

    pub(super) async fn change(&self, name: &str, change: &Written) -> Result<Object, kube::Error> {
        let change = Patch::Merge(change);
        let request = self.request.patch(name, &PatchParams::default(), &change);
        self.call(request).await
    }

    pub(super) async fn delete(
        &self,
        name: &str,
        parameters: &DeleteParams,
    ) -> Result<(), kube::Error> {
        let request = self.request.delete(name, parameters);
        let request = request.map_err(kube::Error::BuildRequest)?;
        limited(self.client.request_text(request)).await?;
        Ok(())
    }

    pub(super) async fn watch(
        &self,
        parameters: &WatchParams,
        from: &str,
    ) -> Result<impl Stream<Item = Result<WatchEvent<Object>, kube::Error>> + use<>, kube::Error>
    {
        let request = self.request.watch(parameters, from);
        let request = request.map_err(kube::Error::BuildRequest)?;
        self.client.request_events(request).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<T, kube::Error> {
        let request = request.map_err(kube::Error::BuildRequest)?;
        let text = Zeroizing::new(limited(self.client.request_text(request)).await?);
        // The library's own message shows what it did not expect.
        serde_json::from_str(&text).map_err(|_| {
            kube::Error::Service(
                "the API server's answer is no secret, or one that cannot be read".into(),
            )
        })
    }
}
