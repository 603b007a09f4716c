//! Who a workload is: SPIFFE IDs, and the templates that make them from labels.
//!
//! An operator decides once, in a MeshIdentity, how identities look. The control plane then renders
//! that decision for every proxy:
//!
//! ```text
//!   MeshIdentity                               a proxy
//!   trustDomain: {{ .Mesh }}.{{ .Zone }}.…     k8s.kuma.io/namespace: shop
//!   path: /ns/{{ .Namespace }}/sa/…            k8s.kuma.io/service-account: cart
//!            │                                          │
//!            └────── parsed once, checked ──► rendered ◄┘
//!                                                │
//!                         spiffe://prod.eu-1.mesh.local/ns/shop/sa/cart
//! ```
//!
//! # Example
//!
//! ```
//! use meshca_core::ErrorKind;
//! use meshca_core::spiffe::{PathTemplate, TrustDomainInputs, TrustDomainTemplate, Workload};
//!
//! // At configuration time. A name that does not exist is an error now, with its place.
//! let trust_domain = TrustDomainTemplate::parse("{{ .Mesh }}.{{ .Zone }}.example.org")?;
//! let path = PathTemplate::parse(r#"/ns/{{ .Namespace }}/app/{{ label "app" | replace "_" "-" }}"#)?;
//! let error = PathTemplate::parse("/ns/{{ .Namespce }}").unwrap_err();
//! assert_eq!(error.offset(), 7..16);
//! assert!(error.to_string().contains("did you mean `.Namespace`?"));
//!
//! // For every proxy.
//! let trust_domain = trust_domain.render(&TrustDomainInputs::new("prod", "eu-1"))?;
//! let workload = Workload::new()
//!     .with_label("k8s.kuma.io/namespace", "shop")
//!     .with_label("app", "cart_v2");
//! let id = path.render(&trust_domain, &workload)?;
//! assert_eq!(id.to_string(), "spiffe://prod.eu-1.example.org/ns/shop/app/cart-v2");
//!
//! // A label cannot reach beyond the place that the template gives it.
//! let liar = workload.with_label("app", "cart/../../admin");
//! let error = path.render(&trust_domain, &liar).unwrap_err();
//! assert_eq!(error.kind(), ErrorKind::InvalidRequest);
//! assert_eq!(
//!     error.to_string(),
//!     "label `app` has the value `cart/../../admin`: `/` would change the shape of the SPIFFE ID"
//! );
//! # Ok::<(), meshca_core::Error>(())
//! ```
//!
//! # What each template may use
//!
//! | template | field of a resource | variables | functions | default |
//! |---|---|---|---|---|
//! | [`TrustDomainTemplate`] | `spec.spiffeID.trustDomain` of a MeshIdentity | `.Mesh`, `.Zone` | `label` (of the MeshIdentity), `replace` | `{{ .Mesh }}.{{ .Zone }}.mesh.local` |
//! | [`PathTemplate`] | `spec.spiffeID.path` of a MeshIdentity | `.Namespace`, `.ServiceAccount`, `.Workload`, `.TrustDomain` | `label` (of the Dataplane), `replace` | Kubernetes: `/ns/{{ .Namespace }}/sa/{{ .ServiceAccount }}`; Universal: `/workload/{{ .Workload }}` |
//! | [`NameTemplate`] | `commonName` of a backend in `Mesh.mtls` | none | `tag`, `label` (of the Dataplane), `replace` | none: no common name |
//!
//! # The language
//!
//! It is the part of Go's [`text/template`](https://pkg.go.dev/text/template) that makes a name, with
//! Go's rules: what both accept gives the same text.
//!
//! | written | gives |
//! |---|---|
//! | `text` | itself |
//! | `{{ .Mesh }}` | the variable |
//! | `{{ label "app" }}` | the value of the label `app`; without the label, an error |
//! | `{{ tag "kuma.io/service" }}` | the one value of the tag; none or several are an error |
//! | `{{ tag "a" \| replace "_" "-" }}` | the value with every `_` replaced; as many stages as you like |
//! | `{{ replace "_" "-" (tag "a") }}` | the same |
//! | `{{ "text" }}`, ``{{ `text` }}`` | a string, with Go's escapes, and a raw one, without |
//! | `{{- ` and ` -}}` | an action that also removes the white space before or after it |
//! | `{{/* why */}}` | nothing |
//!
//! Conditions, loops, variables, numbers and Go's other functions are refused when parsing, by name: an
//! identity that depends on a condition is one that nobody can read off the resource. Also refused,
//! though Go would take it: a key that is not a string in quotes, since then the labels in use
//! could not be told from the template, and escapes that do not make UTF-8.
//!
//! # What is refused, and when
//!
//! **When parsing**, everything that is the author's: syntax, names, and literal text that can never
//! be part of a valid result. The error is a [`TemplateError`], which knows the bytes.
//!
//! **When rendering**, everything that is the proxy's. Labels and tags are written by whoever deploys
//! the workload, so a value may fill its place and do nothing else. It is refused
//! ([`InvalidRequest`](crate::ErrorKind::InvalidRequest), naming the label) if it
//!
//! - is missing or empty,
//! - is `.` or `..`,
//! - has a character outside letters, digits, `.`, `-` and `_`, hence any `/` (SPIFFE-ID §2.1, §2.2),
//! - has upper case, in a trust domain: `TrustDomain` would lower-case it, and two names become one,
//! - makes the result too long: 255 bytes for a trust domain (§2.1), 2048 for a SPIFFE ID (§2.3),
//!   64 for a common name (RFC 5280, appendix A.1).
//!
//! This is checked after the last `replace` of an action, and the result is checked once more as a
//! whole.
//!
//! # Other readers
//!
//! Tests have go-spiffe read every ID that a template makes, and see that it refuses what we refuse. It differs in this:
//!
//! - `SpiffeId` and `TrustDomain` read a scheme and a trust domain in upper case and make them lower case;
//!   go-spiffe refuses them. Nothing here writes any.
//! - go-spiffe does not limit the length of what it reads (§2.1, §2.3).
//! - It takes a certificate with further URIs beside the SPIFFE ID, such as those of the classic model, for no
//!   X.509-SVID (X.509-SVID §2): for peers that use it, ask for none.
//!
//! # What is left to the author
//!
//! Two values side by side in one segment can be told apart only by
//! what stands between them. `/{{ label "team" }}-{{ label "app" }}` gives `a-b-c` for team `a` with
//! app `b-c` and for team `a-b` with app `c`. Give each value that matters a segment of its own.

mod shown;
pub(crate) mod tag_uri;
mod template;
mod workload;

pub use ::spiffe::{SpiffeId, TrustDomain};
pub use template::{
    NameTemplate, PathTemplate, TemplateError, TrustDomainInputs, TrustDomainTemplate,
};
pub use workload::{Environment, Workload};
