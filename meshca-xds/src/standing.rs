//! The answer to a proxy that asks for a secret by its name.

/// The state of a secret for the proxy that asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// The secret is there.
    Ready,
    /// The secret is the proxy's and not there yet. The CA is issuing the certificate, or there is no trust yet.
    Pending,
    /// The secret is not this proxy's, or no secret has this name.
    Foreign,
}
