//! Templates as a control plane uses them: defaults, refused literals and values, and the promise
//! that no label changes the shape of an identity.

use std::collections::BTreeMap;

use meshca_core::spiffe::{
    Environment, NameTemplate, PathTemplate, TemplateError, TrustDomain, TrustDomainInputs,
    TrustDomainTemplate, Workload,
};
use meshca_core::{Error, ErrorKind};

fn trust_domain() -> TrustDomain {
    TrustDomain::new("prod.mesh.local").unwrap()
}

fn path(template: &str, labels: &str) -> Result<String, Error> {
    let workload = Workload::from_label_list(labels)?;
    let id = PathTemplate::parse(template)?.render(&trust_domain(), &workload)?;
    let path = PathTemplate::parse(template)?.render_path(&trust_domain(), &workload)?;
    assert_eq!(id.path(), path, "render and render_path agree");
    Ok(path)
}

fn domain(template: &str, labels: &[(&str, &str)]) -> Result<String, Error> {
    let labels: BTreeMap<String, String> = labels
        .iter()
        .map(|(k, v)| ((*k).into(), (*v).into()))
        .collect();
    let inputs = TrustDomainInputs::new("prod", "eu-1").with_labels(&labels);
    Ok(TrustDomainTemplate::parse(template)?
        .render(&inputs)?
        .to_string())
}

fn name(template: &str, workload: &Workload) -> Result<String, Error> {
    NameTemplate::parse(template)?.render(workload)
}

// Defaults.

#[test]
fn the_default_trust_domain_is_mesh_and_zone() {
    let template = TrustDomainTemplate::default();
    assert_eq!(
        template,
        TrustDomainTemplate::parse("{{ .Mesh }}.{{ .Zone }}.mesh.local").unwrap()
    );
    let id = template
        .render(&TrustDomainInputs::new("prod", "eu-1"))
        .unwrap();
    assert_eq!(id.as_str(), "prod.eu-1.mesh.local");
}

#[test]
fn the_default_path_on_kubernetes_is_namespace_and_service_account() {
    let template = PathTemplate::default_for(Environment::Kubernetes);
    assert_eq!(
        template,
        PathTemplate::parse("/ns/{{ .Namespace }}/sa/{{ .ServiceAccount }}").unwrap()
    );
    let labels = "k8s.kuma.io/namespace=shop,k8s.kuma.io/service-account=cart";
    let id = template
        .render(&trust_domain(), &Workload::from_label_list(labels).unwrap())
        .unwrap();
    assert_eq!(id.to_string(), "spiffe://prod.mesh.local/ns/shop/sa/cart");
}

#[test]
fn the_default_path_on_universal_is_the_workload() {
    let template = PathTemplate::default_for(Environment::Universal);
    assert_eq!(
        template,
        PathTemplate::parse("/workload/{{ .Workload }}").unwrap()
    );
    let workload = Workload::new().with_label("kuma.io/workload", "cart");
    let id = template.render(&trust_domain(), &workload).unwrap();
    assert_eq!(id.to_string(), "spiffe://prod.mesh.local/workload/cart");
}

// Rendering.

#[test]
fn paths_render() {
    let cases = [
        ("/static", "", "/static"),
        ("/a/{{ label \"x\" }}", "x=b", "/a/b"),
        (
            "/{{ label \"x\" }}-{{ label \"y\" }}/z",
            "x=1,y=2",
            "/1-2/z",
        ),
        (
            "/{{ .TrustDomain }}/{{ .Workload }}",
            "kuma.io/workload=w",
            "/prod.mesh.local/w",
        ),
        ("/{{ label \"x\" | replace \"/\" \"_\" }}", "x=a/b", "/a_b"),
        (
            "/{{ label \"x\" | replace \"/\" \" \" | replace \" \" \"-\" }}",
            "x=a/b/c",
            "/a-b-c",
        ),
        ("/{{ label \"x\" }}", "x=Upper.Case_1-2", "/Upper.Case_1-2"),
        ("/{{ label \"x\" }}", "x=...", "/..."),
        ("/.{{ label \"x\" }}", "x=hidden", "/.hidden"),
        (
            "/a\n  {{- /* split over lines */ -}}\n  /{{ label \"x\" }}",
            "x=b",
            "/a/b",
        ),
        ("{{ \"/a\" }}/{{ label \"x\" }}", "x=b", "/a/b"),
        (
            "/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/{{ label \"x\" }}",
            "x=16",
            "/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16",
        ),
        (
            "/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/{{ label \"x\" }}",
            "x=17",
            "/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17",
        ),
        (
            "/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17/18/{{ label \"x\" }}",
            "x=19",
            "/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17/18/19",
        ),
    ];
    for (template, labels, expected) in cases {
        assert_eq!(path(template, labels).unwrap(), expected, "{template}");
    }
}

#[test]
fn trust_domains_render() {
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 5] = [
        ("example.org", &[], "example.org"),
        ("{{ .Mesh }}.example.org", &[], "prod.example.org"),
        (
            "{{ label \"env\" }}.{{ .Zone }}",
            &[("env", "a_b")],
            "a_b.eu-1",
        ),
        (
            "{{ label \"env\" | replace \"/\" \".\" }}",
            &[("env", "a/b")],
            "a.b",
        ),
        ("{{ .Mesh }}", &[], "prod"),
    ];
    for (template, labels, expected) in cases {
        assert_eq!(domain(template, labels).unwrap(), expected, "{template}");
    }
}

#[test]
fn common_names_render() {
    let workload = Workload::from_label_list("app=cart")
        .unwrap()
        .with_tag("kuma.io/service", "cart_shop_svc_80");
    let cases = [
        (
            r#"{{ tag "kuma.io/service" }}.mesh"#,
            "cart_shop_svc_80.mesh",
        ),
        (
            r#"{{ tag "kuma.io/service" | replace "_" "-" }}.mesh"#,
            "cart-shop-svc-80.mesh",
        ),
        (
            r#"{{ replace "_" "." (tag "kuma.io/service") }}"#,
            "cart.shop.svc.80",
        ),
        (
            r#"{{ label "app" }}.{{ tag "kuma.io/service" }}"#,
            "cart.cart_shop_svc_80",
        ),
        ("fixed.Name", "fixed.Name"),
    ];
    for (template, expected) in cases {
        assert_eq!(name(template, &workload).unwrap(), expected, "{template}");
    }
}

// Literal text, checked when parsing.

#[test]
fn literal_text_that_cannot_be_a_path_is_refused_when_parsing() {
    let long = format!("/{}", "a".repeat(2048));
    let cases = [
        ("", 0..0, "the template is empty"),
        ("{{/* nothing */}}", 17..17, "the template is empty"),
        ("ns/x", 0..1, "a path must start with `/`"),
        (" /x", 0..1, "a path must start with `/`"),
        ("{{ .Workload }}", 0..15, "a path must start with `/`"),
        ("{{ .Workload }}/x", 0..15, "a path must start with `/`"),
        ("/", 0..1, "nothing stands after this separator"),
        ("/a/", 2..3, "nothing stands after this separator"),
        (
            "/{{ .Workload }}/",
            16..17,
            "nothing stands after this separator",
        ),
        ("//a", 1..2, "nothing stands before this separator"),
        ("/a//b", 3..4, "nothing stands before this separator"),
        (
            "/a/{{/* */}}/b",
            12..13,
            "nothing stands before this separator",
        ),
        (
            "/a/{{ \"/\" }}b",
            3..12,
            "nothing stands before this separator",
        ),
        ("/a/./b", 3..4, "`.` cannot be a segment"),
        ("/a/..", 3..5, "`..` cannot be a segment"),
        ("/../{{ .Workload }}", 1..3, "`..` cannot be a segment"),
        ("/a b", 2..3, "letters, digits, `.`, `-` and `_`"),
        ("/é", 1..3, "letters, digits, `.`, `-` and `_`"),
        ("/a%2f", 2..3, "letters, digits, `.`, `-` and `_`"),
        (
            "/{{ .Workload }}\n",
            16..17,
            "letters, digits, `.`, `-` and `_`",
        ),
        ("/{{ \"a b\" }}", 1..12, "letters, digits, `.`, `-` and `_`"),
        ("/{{ tag \"x\" }}", 4..7, "unknown function `tag`"),
        ("/{{ .Mesh }}", 4..9, "unknown variable `.Mesh`"),
        (long.as_str(), 0..2049, "at most 2048 bytes"),
    ];
    for (template, offset, message) in cases {
        check_refused(template, PathTemplate::parse(template), offset, message);
    }
}

#[test]
fn literal_text_that_cannot_be_a_trust_domain_is_refused_when_parsing() {
    let long = format!("{{{{ .Mesh }}}}{}", "a".repeat(256));
    let cases = [
        ("", 0..0, "the template is empty"),
        (
            "{{ .Mesh }}.Example.org",
            12..13,
            "nothing is lower-cased silently",
        ),
        ("spiffe://x", 6..7, "a trust domain has only"),
        ("{{ .Mesh }}/x", 11..12, "`/` would change the shape"),
        ("{{ .Mesh }} ", 11..12, "a trust domain has only"),
        (
            "{{ .Namespace }}",
            3..13,
            "a trust domain template may use `.Mesh`, `.Zone`,",
        ),
        (long.as_str(), 11..267, "at most 255 bytes"),
    ];
    for (template, offset, message) in cases {
        check_refused(
            template,
            TrustDomainTemplate::parse(template),
            offset,
            message,
        );
    }
}

#[test]
fn literal_text_that_cannot_be_a_common_name_is_refused_when_parsing() {
    let long = "a".repeat(65);
    let cases = [
        ("", 0..0, "the template is empty"),
        ("*.mesh", 0..1, "a common name has only"),
        (".mesh", 0..1, "nothing stands before this separator"),
        (
            "{{ tag \"x\" }}.",
            13..14,
            "nothing stands after this separator",
        ),
        ("a..b", 2..3, "nothing stands before this separator"),
        ("a,CN=b", 1..2, "a common name has only"),
        ("{{ .Mesh }}", 3..8, "unknown variable `.Mesh`"),
        (long.as_str(), 0..65, "at most 64 bytes"),
    ];
    for (template, offset, message) in cases {
        check_refused(template, NameTemplate::parse(template), offset, message);
    }
}

fn check_refused<T: std::fmt::Debug>(
    template: &str,
    result: Result<T, TemplateError>,
    offset: std::ops::Range<usize>,
    message: &str,
) {
    let error = result.unwrap_err();
    assert!(error.message().contains(message), "{template:?}: {error}");
    assert_eq!(error.offset(), offset, "{template:?}: {error}");
    assert!(
        error
            .to_string()
            .contains(&format!("byte {}", offset.start)),
        "{error}"
    );
    assert_eq!(Error::from(error).kind(), ErrorKind::InvalidConfig);
}

// Values, checked when rendering.

#[test]
fn a_value_that_would_change_the_path_is_refused_and_its_label_named() {
    let template = PathTemplate::parse(r#"/x/{{ label "app" }}"#).unwrap();
    let long = "a".repeat(2100);
    let cases = [
        (
            "a/b",
            "label `app` has the value `a/b`: `/` would change the shape of the SPIFFE ID",
        ),
        (
            "/",
            "label `app` has the value `/`: `/` would change the shape of the SPIFFE ID",
        ),
        (
            ".",
            "label `app` has the value `.`: this would change the shape of the SPIFFE ID",
        ),
        (
            "..",
            "label `app` has the value `..`: this would change the shape of the SPIFFE ID",
        ),
        (
            "",
            "label `app` has an empty value: this would change the shape of the SPIFFE ID",
        ),
        (
            "a b",
            "label `app` has the value `a b`: ` `: a path segment has only letters, digits, `.`, `-` and `_`",
        ),
        (
            "é",
            "label `app` has the value `\\u{e9}`: `\\u{e9}`: a path segment has only letters, digits, `.`, `-` and `_`",
        ),
        (
            "a%2fb",
            "label `app` has the value `a%2fb`: `%`: a path segment has only letters, digits, `.`, `-` and `_`",
        ),
        (
            "a\n",
            "label `app` has the value `a\\n`: `\\n`: a path segment has only letters, digits, `.`, `-` and `_`",
        ),
        (
            "{{ .Workload }}",
            "label `app` has the value `{{ .Workload }}`: `{`: a path segment has only",
        ),
        (
            &long,
            "…`: 2100 bytes are too long: a SPIFFE ID has at most 2048",
        ),
    ];
    for (value, message) in cases {
        let error = template
            .render(&trust_domain(), &Workload::new().with_label("app", value))
            .unwrap_err();
        assert!(error.to_string().contains(message), "{value:?}: {error}");
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().len() < 250, "{error}");
    }
}

#[test]
fn a_value_is_checked_after_its_replacements() {
    let slash = path(r#"/{{ label "app" | replace "_" "/" }}"#, "app=a_b").unwrap_err();
    assert_eq!(
        slash.to_string(),
        "label `app` has the value `a_b`, of which `replace` makes `a/b`: `/` would change the shape of the SPIFFE ID"
    );
    for (template, labels) in [
        (r#"/{{ label "app" | replace "x" "." }}"#, "app=xx"),
        (r#"/{{ label "app" | replace "x" "" }}"#, "app=xx"),
        (r#"/{{ label "x" }}{{ label "y" }}"#, "x=.,y=."),
    ] {
        assert_eq!(
            path(template, labels).unwrap_err().kind(),
            ErrorKind::InvalidRequest,
            "{template}"
        );
    }
}

#[test]
fn replacements_cannot_use_up_memory() {
    let doubling = r#" | replace "a" "aa""#.repeat(64);
    let error = path(&format!("/{{{{ label \"app\"{doubling} }}}}"), "app=a").unwrap_err();
    assert_eq!(
        error.to_string(),
        "label `app` has the value `a`: `replace` makes it too long"
    );
}

#[test]
fn a_missing_label_is_named() {
    let cases = [
        (
            "/{{ .Namespace }}",
            "the proxy has no label `k8s.kuma.io/namespace`, which the path template reads as `.Namespace`: add the label",
        ),
        (
            "/{{ .ServiceAccount }}",
            "the proxy has no label `k8s.kuma.io/service-account`, which the path template reads as `.ServiceAccount`: add the label",
        ),
        (
            "/{{ .Workload }}",
            "the proxy has no label `kuma.io/workload`, which the path template reads as `.Workload`: add the label",
        ),
        (
            "/{{ label \"app\" }}",
            "the proxy has no label `app`, which the path template uses: add the label",
        ),
    ];
    for (template, message) in cases {
        let error = path(template, "other=x").unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    }
    let error = path("/{{ .Namespace }}", "k8s.kuma.io/namespace=").unwrap_err();
    assert_eq!(
        error.to_string(),
        "label `k8s.kuma.io/namespace` has an empty value: this would change the shape of the SPIFFE ID"
    );
    let error = domain("{{ label \"env\" }}", &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the MeshIdentity has no label `env`, which its trust domain template uses: add the label"
    );
}

#[test]
fn a_value_that_cannot_be_in_a_trust_domain_is_refused() {
    let cases = [
        ("Prod", "nothing is lower-cased silently"),
        ("a/b", "`/` would change the shape of the SPIFFE ID"),
        ("a:443", "a trust domain has only"),
        ("user@host", "a trust domain has only"),
        ("", "has an empty value"),
        ("..", "this would change the shape of the trust domain"),
    ];
    for (value, message) in cases {
        let error = domain("{{ label \"env\" }}.example.org", &[("env", value)]).unwrap_err();
        assert!(error.to_string().starts_with("label `env` has"), "{error}");
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    }
    let error = TrustDomainTemplate::default()
        .render(&TrustDomainInputs::new("prod", ""))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "`.Zone` has an empty value: this would change the shape of the trust domain"
    );
}

#[test]
fn a_value_that_cannot_be_in_a_common_name_is_refused() {
    let cases = [
        ("*", "a common name has only"),
        ("a,OU=x", "a common name has only"),
        ("a b", "a common name has only"),
        ("a/b", "a common name has only"),
        ("", "has an empty value"),
        (".a", "a part between dots is empty"),
        ("a.", "a part between dots is empty"),
    ];
    for (value, message) in cases {
        let workload = Workload::new().with_tag("kuma.io/service", value);
        let error = name(r#"{{ tag "kuma.io/service" }}.mesh"#, &workload).unwrap_err();
        assert!(error.to_string().contains(message), "{value:?}: {error}");
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    }
}

#[test]
fn several_values_of_a_tag_have_no_common_name() {
    let workload = Workload::new()
        .with_tag("kuma.io/service", "a")
        .with_tag("kuma.io/service", "b");
    let error = name(r#"{{ tag "kuma.io/service" }}"#, &workload).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the proxy has several values of tag `kuma.io/service` (`a`, `b`, …), and the common name template needs exactly one"
    );
    let same = Workload::new()
        .with_tag("kuma.io/service", "a")
        .with_tag("kuma.io/service", "a");
    assert_eq!(name(r#"{{ tag "kuma.io/service" }}"#, &same).unwrap(), "a");
    let none = name(r#"{{ tag "kuma.io/service" }}"#, &Workload::new()).unwrap_err();
    assert!(
        none.to_string().contains("no tag `kuma.io/service`"),
        "{none}"
    );
}

#[test]
fn lengths_are_limited() {
    // SPIFFE-ID §2.3 counts the whole ID.
    let fixed = "spiffe://prod.mesh.local/".len();
    let id = |length: usize| path(r#"/{{ label "x" }}"#, &format!("x={}", "a".repeat(length)));
    assert_eq!(id(2048 - fixed).unwrap().len() + fixed - 1, 2048);
    assert!(
        id(2049 - fixed)
            .unwrap_err()
            .to_string()
            .contains("2049 bytes")
    );

    // SPIFFE-ID §2.1.
    let (most, more) = ("a".repeat(255 - 4), "a".repeat(256 - 4));
    assert_eq!(
        domain("{{ label \"x\" }}.org", &[("x", &most)])
            .unwrap()
            .len(),
        255
    );
    assert!(
        domain("{{ label \"x\" }}.org", &[("x", &more)])
            .unwrap_err()
            .to_string()
            .contains("at most 255")
    );

    // RFC 5280, appendix A.1; RFC 1035 §2.3.4.
    let tagged = |value: String| name(r#"{{ tag "x" }}"#, &Workload::new().with_tag("x", value));
    assert_eq!(
        tagged(format!("{}.{}", "a".repeat(31), "b".repeat(32)))
            .unwrap()
            .len(),
        64
    );
    assert!(
        tagged(format!("{}.{}", "a".repeat(32), "b".repeat(32)))
            .unwrap_err()
            .to_string()
            .contains("at most 64")
    );
    assert!(
        tagged("a".repeat(64))
            .unwrap_err()
            .to_string()
            .contains("at most 63")
    );
}

// The types.

#[test]
fn a_template_is_its_text() {
    let text = "/ns/{{ .Namespace }}/{{ label \"x\" }}";
    let template: PathTemplate = text.parse().unwrap();
    assert_eq!(template.as_str(), text);
    assert_eq!(template.to_string(), text);
    assert_eq!(format!("{template:?}"), format!("PathTemplate({text:?})"));
    let json = serde_json::to_string(&template).unwrap();
    assert_eq!(json, serde_json::to_string(text).unwrap());
    assert_eq!(
        serde_json::from_str::<PathTemplate>(&json).unwrap(),
        template
    );
    let error = serde_json::from_str::<PathTemplate>(r#""/{{ .Nope }}""#).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("path template, byte 4: unknown variable `.Nope`"),
        "{error}"
    );
}

#[test]
fn environments_have_the_names_of_their_label() {
    for environment in [Environment::Kubernetes, Environment::Universal] {
        assert_eq!(
            environment.to_string().parse::<Environment>().unwrap(),
            environment
        );
    }
    assert_eq!(
        "Kubernetes".parse::<Environment>().unwrap_err().kind(),
        ErrorKind::InvalidConfig
    );
}

#[test]
fn label_lists_are_read() {
    let cases: [(&str, &[(&str, &str)]); 5] = [
        ("", &[]),
        ("  ", &[]),
        ("a=b", &[("a", "b")]),
        (" a = b , c= ", &[("a", "b"), ("c", "")]),
        (
            "k8s.kuma.io/namespace=shop,x=a/b",
            &[("k8s.kuma.io/namespace", "shop"), ("x", "a/b")],
        ),
    ];
    for (text, labels) in cases {
        assert_eq!(
            Workload::from_label_list(text).unwrap(),
            labels.iter().copied().collect(),
            "{text:?}"
        );
    }
}

#[test]
fn label_lists_are_refused_with_a_place() {
    let cases = [
        ("a", "labels, byte 0: `a` has no value"),
        ("a=b,", "labels, byte 4: a label is missing"),
        (",a=b", "labels, byte 0: a label is missing"),
        ("a=b, ,c=d", "labels, byte 5: a label is missing"),
        ("a=b, =c", "labels, byte 5: the key before `=` is empty"),
        (
            "a=b,é=c=d",
            "labels, byte 4: `\\u{e9}=c=d` has more than one `=`",
        ),
        ("a=b, a=c", "labels, byte 5: label `a` is given twice"),
    ];
    for (text, message) in cases {
        let error = Workload::from_label_list(text).unwrap_err();
        assert!(error.to_string().starts_with(message), "{text:?}: {error}");
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    }
}

#[cfg(feature = "schema")]
#[test]
fn a_template_is_a_string_in_a_schema() {
    for schema in [
        schemars::schema_for!(PathTemplate),
        schemars::schema_for!(TrustDomainTemplate),
        schemars::schema_for!(NameTemplate),
    ] {
        assert_eq!(
            schema.get("type").and_then(|kind| kind.as_str()),
            Some("string")
        );
    }
}
