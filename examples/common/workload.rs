//! The workload that the examples of providers have a certificate issued for, and what they say of it.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use meshca::{CertificateSpec, Clock, Issuer, IssuingCa, SpiffeId, TrustDomain};

use crate::files;

#[derive(clap::Args)]
pub(crate) struct Wanted {
    /// The trust domain that the CA signs for.
    #[arg(long, default_value = "default")]
    trust_domain: String,
    /// The path of the workload's SPIFFE ID.
    #[arg(long, default_value = "/ns/kong-air/sa/flight-control")]
    path: String,
    /// How long the certificate is to live, in minutes.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Where to write cert.pem (leaf, then intermediates), key.pem (0600) and bundle.pem.
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Wanted {
    pub(crate) fn trust_domain(&self) -> Result<TrustDomain, Box<dyn Error>> {
        Ok(TrustDomain::new(&self.trust_domain)?)
    }

    pub(crate) fn lifetime(&self) -> Duration {
        Duration::from_secs(self.minutes * 60)
    }

    /// Says what an operator should know, has the certificate issued, and says who was identified by whom, for how long, and on whose word.
    pub(crate) async fn issue(
        &self,
        issuer: impl Issuer,
        clock: &dyn Clock,
    ) -> Result<(), Box<dyn Error>> {
        let ca = IssuingCa::new(issuer);
        for warning in ca.check().await?.warnings {
            println!("warning      {warning}");
        }
        let id = SpiffeId::new(format!("spiffe://{}{}", self.trust_domain, self.path))?;
        let spec = CertificateSpec::workload(id).with_lifetime(self.lifetime());
        let identity = ca.issue(&spec, clock).await?;
        let bundle = ca.trust(clock).await?;

        let certificate = identity.certificate();
        println!("SPIFFE ID    {}", certificate.spiffe_id());
        println!("issuer       {} ({ca})", certificate.issuer());
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
        match &self.out {
            Some(folder) => files::write_out(folder, &identity, &bundle),
            None => Ok(()),
        }
    }
}
