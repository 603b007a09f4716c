//! Pushes the identities and the trust of a service mesh to Envoy.

mod authenticate;
pub mod contexts;
mod event;
mod grpc;
pub mod names;
mod options;
mod pace;
mod proxies;
mod proxy;
pub mod secrets;
mod serve;
pub mod server;
mod stream;

pub use authenticate::{Attested, Authenticator, Caller};
pub use event::{ProxyId, SdsEvent, SdsObserver};
pub use grpc::SdsService;
pub use options::SdsOptions;
pub use proxy::{ProxySecrets, Standing};
pub use server::SdsServer;
