//! What holds for any template and any labels.

use meshca_core::ErrorKind;
use meshca_core::spiffe::{
    NameTemplate, PathTemplate, SpiffeId, TemplateError, TrustDomain, TrustDomainInputs,
    TrustDomainTemplate, Workload,
};
use proptest::prelude::*;

fn trust_domain() -> TrustDomain {
    TrustDomain::new("prod.mesh.local").unwrap()
}

/// Text that looks enough like a template to get past the first token now and then.
fn template_like() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("{{"),
        Just("}}"),
        Just("{{- "),
        Just(" -}}"),
        Just("/*"),
        Just("*/"),
        Just(" "),
        Just("\n"),
        Just("/"),
        Just("a"),
        Just("."),
        Just("-"),
        Just("|"),
        Just("("),
        Just(")"),
        Just("\""),
        Just("`"),
        Just("\\"),
        Just("x41"),
        Just(".Mesh"),
        Just(".Workload"),
        Just(".Namespace"),
        Just("label"),
        Just("tag"),
        Just("replace"),
        Just("\"k\""),
        Just("`k`"),
        Just("é"),
        Just("if"),
        Just("1"),
        Just("$"),
        Just("{{ .Workload }}"),
        Just("{{ label \"k\" }}"),
        Just("{{ tag \"k\" | replace \"_\" \"-\" }}"),
    ];
    prop_oneof![
        any::<String>(),
        proptest::collection::vec(piece, 0..16).prop_map(|pieces| pieces.concat()),
    ]
}

fn check_parse<T: std::fmt::Debug + PartialEq>(
    text: &str,
    parse: impl Fn(&str) -> Result<T, TemplateError>,
    as_str: impl Fn(&T) -> &str,
) {
    match parse(text) {
        Ok(template) => {
            assert_eq!(as_str(&template), text);
            assert_eq!(parse(as_str(&template)).unwrap(), template);
        }
        Err(error) => {
            assert!(text.get(error.offset()).is_some(), "{text:?}: {error:?}");
            assert!(!error.message().is_empty());
        }
    }
}

/// Values that try: separators, dots, what looks like a template, and anything at all.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => "[a-zA-Z0-9._-]{1,12}",
        1 => "[./]{0,4}",
        1 => "[a-z/.%_ -]{0,8}",
        1 => any::<String>(),
        1 => Just("../../admin".to_owned()),
        1 => Just("{{ .Workload }}".to_owned()),
    ]
}

/// A path template, and how many segments it has.
fn path_template() -> impl Strategy<Value = (String, usize)> {
    let atom = prop_oneof![
        Just("a"),
        Just("."),
        Just("-"),
        Just("{{ .Namespace }}"),
        Just("{{ .ServiceAccount }}"),
        Just("{{ .Workload }}"),
        Just("{{ label \"x\" }}"),
        Just("{{ label \"y\" | replace \"_\" \"/\" }}"),
        Just("{{ label \"y\" | replace \"a\" \"\" | replace \"-\" \".\" }}"),
    ];
    let segment = proptest::collection::vec(atom, 1..4).prop_map(|atoms| atoms.concat());
    proptest::collection::vec(segment, 1..20)
        .prop_map(|segments| (format!("/{}", segments.join("/")), segments.len()))
}

proptest! {
    #[test]
    fn any_text_is_a_template_or_an_error(text in template_like()) {
        check_parse(&text, PathTemplate::parse, PathTemplate::as_str);
        check_parse(&text, TrustDomainTemplate::parse, TrustDomainTemplate::as_str);
        check_parse(&text, NameTemplate::parse, NameTemplate::as_str);
        check_parse(&format!("/{text}"), PathTemplate::parse, PathTemplate::as_str);
    }

    #[test]
    fn no_label_changes_the_shape_of_an_id(
        (template, segments) in path_template(),
        namespace in hostile(),
        account in hostile(),
        workload in hostile(),
        x in hostile(),
        y in hostile(),
    ) {
        let Ok(template) = PathTemplate::parse(&template) else { return Ok(()) };
        let workload = Workload::new()
            .with_label("k8s.kuma.io/namespace", namespace)
            .with_label("k8s.kuma.io/service-account", account)
            .with_label("kuma.io/workload", workload)
            .with_label("x", x)
            .with_label("y", y);
        match template.render(&trust_domain(), &workload) {
            Ok(id) => {
                prop_assert_eq!(id.trust_domain(), &trust_domain());
                prop_assert_eq!(id.path().split('/').count() - 1, segments);
                prop_assert_eq!(&SpiffeId::new(id.to_string()).unwrap(), &id);
                prop_assert_eq!(template.render_path(&trust_domain(), &workload).unwrap(), id.path());
            }
            Err(error) => {
                prop_assert_eq!(error.kind(), ErrorKind::InvalidRequest);
                prop_assert!(error.to_string().contains("label"), "{}", error);
                prop_assert!(error.to_string().is_ascii() || error.to_string().contains('…'), "{}", error);
            }
        }
    }

    #[test]
    fn an_accepted_trust_domain_is_one(mesh in hostile(), zone in hostile()) {
        let inputs = TrustDomainInputs::new(&mesh, &zone);
        if let Ok(trust_domain) = TrustDomainTemplate::default().render(&inputs) {
            prop_assert_eq!(trust_domain.as_str(), format!("{mesh}.{zone}.mesh.local"));
            prop_assert_eq!(&TrustDomain::new(trust_domain.as_str()).unwrap(), &trust_domain);
        }
    }

    #[test]
    fn label_lists_never_panic(text in "[a-z=, é/]{0,20}") {
        if let Ok(workload) = Workload::from_label_list(&text) {
            let again: Vec<String> = workload.labels().iter().map(|(key, value)| format!("{key}={value}")).collect();
            prop_assert_eq!(Workload::from_label_list(&again.join(",")).unwrap(), workload);
        }
    }
}
