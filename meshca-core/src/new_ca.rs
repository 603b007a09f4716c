//! Whether a CA may be made where the secret store has none.

/// Decides what happens when the secrets of a CA that meshca generates are not in the store.
///
/// A store without them is either new, or has lost them. A new CA cuts off every peer that trusts the
/// old one only, so the [built-in CA](crate::builtin) makes one only where nothing shows that there was
/// another.
///
/// | value | the store is empty | the store has traces |
/// |---|---|---|
/// | `IfNoneExisted` | a CA is made | refused |
/// | `Existed` | refused | refused |
/// | `Forbidden` | refused | refused |
/// | `Confirmed` | a CA is made | a CA of the next generation is made |
///
/// Traces are the secret of its rotation, and half of its pair of certificate and key. A CA that is
/// complete is loaded, whatever the value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum NewCa {
    /// Nothing outside of the store shows that there was a CA. The default.
    #[default]
    IfNoneExisted,
    /// The CA existed. The text says what shows that, as the end of a sentence: "the CA existed: …".
    Existed(String),
    /// This control plane makes no CA on its own.
    Forbidden,
    /// An operator has confirmed that a new CA takes the place of one that is lost.
    Confirmed,
}
