//! Who a workload is: SPIFFE IDs, and the templates that make them from labels.

mod template;
mod workload;

pub use ::spiffe::{SpiffeId, TrustDomain};
pub use template::{
    NameTemplate, PathTemplate, TemplateError, TrustDomainInputs, TrustDomainTemplate,
};
pub use workload::{Environment, Workload};
