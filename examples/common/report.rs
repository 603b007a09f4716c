//! What the examples of providers print.

use meshca::{Identity, Issuer, TrustBundle};

/// Who was identified by whom, for how long, and on whose word.
pub(crate) fn print(identity: &Identity, bundle: &TrustBundle, issuer: &dyn Issuer) {
    let certificate = identity.certificate();
    println!("SPIFFE ID    {}", certificate.spiffe_id());
    println!("issuer       {} ({issuer})", certificate.issuer());
    println!("serial       {}", certificate.serial());
    println!("valid        {}", certificate.validity());
    println!("chain        {}", certificate.path().join(" <- "));
    println!("verified     {}", certificate.proof());
    for observation in certificate.observations() {
        println!("note         {observation}");
    }
    for root in bundle.roots() {
        println!(
            "trust        {} (sha256 {})",
            root.subject(),
            root.fingerprint()
        );
    }
}
