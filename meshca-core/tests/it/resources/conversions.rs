//! From resources to what the rest of the crate works with.

use meshca_core::resource::{CaBundle, Mesh, MeshTrust, Metadata, Resource};
use meshca_core::spiffe::Workload;
use meshca_core::{ErrorKind, TrustBundle, TrustDomain};

use crate::resources::{data, one};

fn domain(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

fn pem(name: &str) -> String {
    std::fs::read_to_string(data(name)).unwrap()
}

#[test]
fn a_trust_bundle_survives_as_a_mesh_trust() {
    let two = format!("{}{}", pem("ca.pem"), pem("root.pem"));
    let bundle = TrustBundle::from_pem(domain("example.org"), &two).unwrap();
    assert_eq!(bundle.roots().len(), 2);
    let metadata = Metadata::kubernetes("id").with_mesh("default");
    let trust = MeshTrust::from_trust_bundle(metadata, &bundle).unwrap();
    assert_eq!(trust.ca_bundles.len(), 2, "one for each root");
    assert_eq!(trust.to_trust_bundle().unwrap(), bundle);

    let Resource::MeshTrust(again) = one(Resource::from(trust.clone()).to_yaml().unwrap()) else {
        panic!()
    };
    assert_eq!(again, trust);

    // However the roots are spread, they are the same bundle, each once.
    for bundles in [vec![two.clone()], vec![two, pem("ca.pem")]] {
        let mut trust = trust.clone();
        trust.ca_bundles = bundles.into_iter().map(CaBundle::Pem).collect();
        assert_eq!(trust.to_trust_bundle().unwrap(), bundle);
    }
}

#[test]
fn what_is_no_mesh_trust_is_refused() {
    let none = TrustBundle::new(domain("example.org"), []).unwrap();
    let error = MeshTrust::from_trust_bundle(Metadata::universal("id"), &none).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("at least one root"), "{error}");

    let long = TrustBundle::from_pem(domain(&"a".repeat(254)), &pem("root.pem")).unwrap();
    let error = MeshTrust::from_trust_bundle(Metadata::universal("id"), &long).unwrap_err();
    assert!(error.to_string().contains("253 characters"), "{error}");

    let mut trust = MeshTrust::new(
        Metadata::universal("id"),
        domain("example.org"),
        CaBundle::Pem(pem("root.pem")),
    );
    trust.ca_bundles.push(CaBundle::Pem("nothing".to_owned()));
    let error = trust.to_trust_bundle().unwrap_err();
    assert!(
        format!("{error}").contains("caBundles[1].pem.value"),
        "{error}"
    );
}

#[test]
fn the_spiffe_id_of_the_classic_model() {
    const SERVICE: &str = "kuma.io/service";
    let mesh = Mesh::new(Metadata::universal("default"));
    assert_eq!(mesh.trust_domain().unwrap(), domain("default"));
    let workload = Workload::new();
    let long = "a".repeat(255);
    for (workload, id) in [
        (
            workload.clone().with_tag(SERVICE, "Cart_shop_svc_80"),
            "spiffe://default/Cart_shop_svc_80",
        ),
        (
            workload.clone().with_label(SERVICE, "cart.v1"),
            "spiffe://default/cart.v1",
        ),
        (
            workload
                .clone()
                .with_label(SERVICE, "label")
                .with_tag(SERVICE, "tag"),
            "spiffe://default/tag",
        ),
        (
            workload.clone().with_tag(SERVICE, &long),
            &format!("spiffe://default/{long}"),
        ),
    ] {
        assert_eq!(mesh.spiffe_id_of(&workload).unwrap().to_string(), id);
    }
    let shape = "which cannot be part of a SPIFFE ID: write 1 to 255 letters, digits, `.`, `-` and `_`, and neither \
                 `.` nor `..` alone";
    for (workload, message) in [
        (
            workload.clone().with_tag("app", "a"),
            "the classic SPIFFE ID needs the tag (or label) `kuma.io/service`; this workload has neither".to_owned(),
        ),
        (
            workload.clone().with_tag(SERVICE, "a").with_tag(SERVICE, "b"),
            "the classic SPIFFE ID needs one value of the tag `kuma.io/service`; this workload has several values of \
             the tag, `a` and `b` among them"
                .to_owned(),
        ),
        (
            workload.clone().with_tag(SERVICE, "a/b"),
            format!("the tag `kuma.io/service` is `a/b`, {shape}"),
        ),
        (
            workload.clone().with_label(SERVICE, ".."),
            format!("the label `kuma.io/service` is `..`, {shape}"),
        ),
        (
            workload.clone().with_tag(SERVICE, ""),
            format!("the tag `kuma.io/service` is ``, {shape}"),
        ),
        (
            workload.clone().with_tag(SERVICE, "a\n"),
            format!("the tag `kuma.io/service` is `a\\n`, {shape}"),
        ),
        (
            workload.clone().with_tag(SERVICE, format!("{long}a")),
            format!("the tag `kuma.io/service` is `{}…`, {shape}", "a".repeat(64)),
        ),
    ] {
        let error = mesh.spiffe_id_of(&workload).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn the_name_of_a_mesh_is_its_trust_domain() {
    for name in ["Default", "a b", "spiffe://a", "a/b", ""] {
        let mesh = Mesh::new(Metadata::universal(name));
        let error = mesh.trust_domain().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        let workload = Workload::new().with_tag("kuma.io/service", "a");
        assert_eq!(
            mesh.spiffe_id_of(&workload).unwrap_err().kind(),
            ErrorKind::InvalidConfig
        );
    }
}
