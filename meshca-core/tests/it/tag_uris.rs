//! A tag fills its place in the URI of a certificate, and does nothing else.

use meshca_core::registry::BackendConfig;
use meshca_core::resource::{Backend, BuiltinConf, Provider};
use meshca_core::spiffe::Workload;
use meshca_core::{CertificateRequest, ErrorKind, KeyType, PrivateKey};

use crate::common::{spec, spiffe_id, start};

/// The URIs beside the SPIFFE ID that the classic model asks for.
fn uris(tag: &str, value: &str) -> meshca_core::Result<Vec<String>> {
    let backend = Backend::new("ca-1", Provider::new(BuiltinConf::default()));
    let workload = Workload::new().with_tag(tag, value);
    let spec = BackendConfig::classic(&backend).certificate_spec(spiffe_id(), &workload)?;
    Ok(spec.uris().to_vec())
}

#[test]
fn a_tag_has_one_uri_of_its_own() {
    for (tag, value, uri) in [
        ("kuma.io/service", "admin", "kuma://kuma.io/service/admin"),
        (
            "kuma.io/service",
            "cart_shop_svc_80",
            "kuma://kuma.io/service/cart_shop_svc_80",
        ),
        ("version", "v1.2-rc", "kuma://version/v1.2-rc"),
        ("a.b/c/d", "e:f", "kuma://a.b/c/d/e:f"),
    ] {
        assert_eq!(uris(tag, value).unwrap(), [uri]);
    }
}

#[test]
fn a_tag_that_would_change_the_shape_of_its_uri_is_refused() {
    for (tag, value, message) in [
        (
            "kuma.io",
            "service/admin",
            "the tag `kuma.io` cannot be a URI of a certificate: its value is `service/admin`, and a `/` in it would \
             change the shape of the URI",
        ),
        ("x", "../../kuma.io/service/admin", "a `/` in it"),
        ("x", "..", "`.` or `..` alone"),
        ("x", ".", "`.` or `..` alone"),
        ("x", "", "an empty part"),
        ("x", "a?b", "only letters, digits"),
        ("x", "a#b", "only letters, digits"),
        ("x", "%2e%2e", "only letters, digits"),
        ("x", "a\\b", "only letters, digits"),
        ("x", "a\0b", "only letters, digits"),
        ("x", "ä", "only letters, digits"),
        ("", "a", "its name is ``, and an empty part"),
        ("/x", "a", "an empty part"),
        ("x/", "a", "an empty part"),
        ("x//y", "a", "an empty part"),
        ("x/../y", "a", "`.` or `..` alone"),
        ("x@y", "a", "only letters, digits"),
        ("x:80/y", "a", "the port of a host"),
    ] {
        let error = uris(tag, value).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(
            error.to_string().contains(message),
            "{tag}={value}: {error}"
        );
    }
}

#[test]
fn a_request_has_no_uri_that_is_that_of_no_tag() {
    let key = PrivateKey::generate(KeyType::default()).unwrap();
    for uri in [
        "kuma://",
        "kuma://a",
        "kuma://a/",
        "kuma:///a",
        "kuma://a//b",
        "kuma://a/../b",
        "kuma://a/b?c",
        "kuma://a/b#c",
        "kuma://u@a/b",
        "kuma://a:1/b",
    ] {
        let error = CertificateRequest::for_key(spec().with_uri(uri), &key, start()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(
            error.to_string().contains("the URI of a tag is"),
            "{uri}: {error}"
        );
    }
}
