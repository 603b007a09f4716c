//! A role that the control plane assumes before it calls a CA.

/// A role of IAM to act under: that of the account which owns the CA, for instance.
///
/// The control plane assumes it with the credentials of the resource, or with its own identity.
///
/// ```
/// use meshca_acm::AssumedRole;
///
/// let role = AssumedRole::new("arn:aws:iam::123456789012:role/pca-issuer").with_external_id("mesh-1");
/// let factory = meshca_acm::factory().with_named_role("security-account", role);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct AssumedRole {
    pub(crate) arn: String,
    pub(crate) external_id: Option<String>,
    pub(crate) session_name: String,
    pub(crate) sts_endpoint: Option<String>,
}

impl AssumedRole {
    /// The role with this ARN, under the session name `meshca`.
    pub fn new(arn: impl Into<String>) -> Self {
        Self {
            arn: arn.into(),
            external_id: None,
            session_name: "meshca".to_owned(),
            sts_endpoint: None,
        }
    }

    /// Sends the external ID that the role's trust policy demands.
    pub fn with_external_id(mut self, id: impl Into<String>) -> Self {
        self.external_id = Some(id.into());
        self
    }

    /// Sets the name of the session, by which CloudTrail tells control planes apart: 2 to 64
    /// letters, digits and `=,.@-_`.
    pub fn with_session_name(mut self, name: impl Into<String>) -> Self {
        self.session_name = name.into();
        self
    }

    /// Calls another address than AWS' own for STS in the CA's region: a VPC endpoint, or a test
    /// server.
    pub fn with_sts_endpoint(mut self, url: impl Into<String>) -> Self {
        self.sts_endpoint = Some(url.into());
        self
    }
}
