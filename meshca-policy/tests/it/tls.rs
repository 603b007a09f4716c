//! Which MeshTLS decides what for which proxy.

use meshca_core::ErrorKind;
use meshca_core::resource::{Mode, Resource, TlsCipher, TlsVersion};
use meshca_core::spiffe::Workload;
use meshca_policy::MeshResources;
use meshca_policy::tls::{Decider, Proxy, TlsPolicy};

const PLAIN: &str = "{type: Mesh, name: default}\n";

fn mesh(mode: &str) -> String {
    format!(
        "{{type: Mesh, name: default, mtls: {{enabledBackend: ca-1, backends: [{{name: ca-1, type: builtin, mode: {mode}}}]}}}}\n"
    )
}

fn resources(text: &str) -> MeshResources {
    MeshResources::from_resources(Resource::parse(text).unwrap()).unwrap()
}

fn resolve(text: &str, proxy: &Proxy) -> TlsPolicy {
    TlsPolicy::resolve(&resources(text), proxy).unwrap()
}

/// `web-1` in the namespace `shop` of the zone `east`.
fn proxy() -> Proxy {
    let labels = "app=web,tier=front,k8s.kuma.io/namespace=shop,kuma.io/zone=east";
    Proxy::new("web-1", Workload::from_label_list(labels).unwrap())
}

struct Policy<'a> {
    name: &'a str,
    labels: &'a str,
    target: &'a str,
}

fn policy(name: &str, labels: &str, target: &str, mode: &str) -> String {
    format!(
        "---\n{{type: MeshTLS, name: {name}, mesh: default, labels: {{{labels}}}, spec: {{targetRef: {{{target}}}, rules: [{{default: {{mode: {mode}}}}}]}}}}\n"
    )
}

#[test]
fn without_a_policy_the_classic_backend_decides_and_then_the_default() {
    let cases = [
        (PLAIN.to_owned(), Mode::Strict, Decider::Default),
        (
            mesh("STRICT"),
            Mode::Strict,
            Decider::Backend("ca-1".to_owned()),
        ),
        (
            mesh("PERMISSIVE"),
            Mode::Permissive,
            Decider::Backend("ca-1".to_owned()),
        ),
        // A backend that is listed and not enabled decides nothing.
        (
            mesh("PERMISSIVE").replace("enabledBackend: ca-1, ", ""),
            Mode::Strict,
            Decider::Default,
        ),
        // A MeshTLS that says nothing of the mode leaves it to the backend.
        (
            mesh("PERMISSIVE")
                + "---\n{type: MeshTLS, name: v, mesh: default, spec: {rules: [{default: {tlsVersion: {min: TLS13}}}]}}",
            Mode::Permissive,
            Decider::Backend("ca-1".to_owned()),
        ),
        (
            mesh("PERMISSIVE") + &policy("all", "", "kind: Mesh", "Strict"),
            Mode::Strict,
            Decider::MeshTls("all".to_owned()),
        ),
    ];
    for (text, mode, by) in cases {
        let policy = resolve(&text, &proxy());
        assert_eq!((policy.mode.value, &policy.mode.by), (mode, &by), "{text}");
    }
    assert_eq!(TlsPolicy::default(), resolve(PLAIN, &proxy()));
}

/// Each line: two policies, of which the second wins in whatever order they come.
#[test]
fn the_more_specific_policy_wins() {
    let p = |name, labels, target| Policy {
        name,
        labels,
        target,
    };
    let (all, labelled, named, section) = (
        "kind: Mesh",
        "kind: Dataplane, labels: {app: web}",
        "kind: Dataplane, name: web-1, namespace: shop",
        "kind: Dataplane, labels: {app: web}, sectionName: http",
    );
    let cases = [
        // Mesh, Dataplane, section; whatever the names.
        (p("a", "", all), p("b", "", labelled)),
        (p("a", "", all), p("b", "", "kind: Dataplane")),
        (p("a", "", labelled), p("b", "", section)),
        (p("a", "", named), p("b", "", section)),
        // The target comes before the origin.
        (p("a", "kuma.io/origin: zone", all), p("b", "", labelled)),
        // By name or by labels is the same rank: the first by the alphabet has the last word.
        (p("b", "", labelled), p("a", "", named)),
        (p("b", "", named), p("a", "", labelled)),
        (p("zz", "", all), p("aaa", "", all)),
        (p("aaaa", "", all), p("aaa", "", all)),
        // Unless the display name says otherwise.
        (p("a", "kuma.io/display-name: z", all), p("b", "", all)),
        // A zone overrides what is global.
        (
            p("a", "kuma.io/origin: global", all),
            p("b", "kuma.io/origin: zone", all),
        ),
        (p("a", "kuma.io/origin: global", all), p("b", "", all)),
        (
            p(
                "a",
                "kuma.io/origin: global, kuma.io/policy-role: producer",
                all,
            ),
            p("b", "kuma.io/origin: zone", all),
        ),
        // The owner of a workload overrides the operator.
        (
            p("a", "", all),
            p(
                "b",
                "kuma.io/policy-role: workload-owner, k8s.kuma.io/namespace: shop",
                all,
            ),
        ),
        (
            p("a", "kuma.io/policy-role: nonsense", all),
            p("b", "kuma.io/policy-role: system", all),
        ),
    ];
    let proxy = proxy().with_section("http");
    for (weaker, stronger) in cases {
        let one = |it: &Policy<'_>, mode| policy(it.name, it.labels, it.target, mode);
        let texts = [
            one(&weaker, "Strict") + &one(&stronger, "Permissive"),
            one(&stronger, "Permissive") + &one(&weaker, "Strict"),
        ];
        for text in texts {
            let text = mesh("STRICT") + &text;
            let mode = resolve(&text, &proxy).mode;
            assert_eq!(mode.value, Mode::Permissive, "{text}");
            assert_eq!(mode.by, Decider::MeshTls(stronger.name.to_owned()));
        }
    }
}

#[test]
fn a_policy_is_for_those_that_it_names() {
    let whole = proxy();
    let inbound = proxy().with_section("http");
    // Labels of the policy, its target; whether it is for the proxy, and for the inbound.
    let cases = [
        ("", "kind: Mesh", true, true),
        ("", "kind: Dataplane", true, true),
        ("", "kind: Dataplane, labels: {app: web}", true, true),
        (
            "",
            "kind: Dataplane, labels: {app: web, tier: front}",
            true,
            true,
        ),
        (
            "",
            "kind: Dataplane, labels: {app: web, tier: back}",
            false,
            false,
        ),
        ("", "kind: Dataplane, labels: {app: db}", false, false),
        ("", "kind: Dataplane, name: web-1", true, true),
        ("", "kind: Dataplane, name: web-2", false, false),
        (
            "",
            "kind: Dataplane, name: web-1, namespace: shop",
            true,
            true,
        ),
        (
            "",
            "kind: Dataplane, name: web-1, namespace: bank",
            false,
            false,
        ),
        ("", "kind: Dataplane, namespace: shop", true, true),
        ("", "kind: Dataplane, namespace: bank", false, false),
        (
            "",
            "kind: Dataplane, name: web-1, labels: {app: db}",
            false,
            false,
        ),
        ("", "kind: Dataplane, sectionName: http", false, true),
        ("", "kind: Dataplane, sectionName: admin", false, false),
        // A name alone is one in the policy's own namespace.
        (
            "k8s.kuma.io/namespace: shop",
            "kind: Dataplane, name: web-1",
            true,
            true,
        ),
        (
            "k8s.kuma.io/namespace: bank",
            "kind: Dataplane, name: web-1",
            false,
            false,
        ),
        // Teams stay in their namespace, and zones among themselves.
        (
            "kuma.io/policy-role: workload-owner, k8s.kuma.io/namespace: shop",
            "kind: Mesh",
            true,
            true,
        ),
        (
            "kuma.io/policy-role: workload-owner, k8s.kuma.io/namespace: bank",
            "kind: Mesh",
            false,
            false,
        ),
        (
            "kuma.io/policy-role: workload-owner",
            "kind: Mesh",
            false,
            false,
        ),
        (
            "kuma.io/policy-role: consumer, k8s.kuma.io/namespace: bank",
            "kind: Mesh",
            false,
            false,
        ),
        (
            "kuma.io/origin: zone, kuma.io/zone: east",
            "kind: Mesh",
            true,
            true,
        ),
        (
            "kuma.io/origin: zone, kuma.io/zone: west",
            "kind: Mesh",
            false,
            false,
        ),
        ("kuma.io/effect: shadow", "kind: Mesh", false, false),
    ];
    for (labels, target, for_whole, for_inbound) in cases {
        let text = PLAIN.to_owned() + &policy("p", labels, target, "Permissive");
        for (proxy, expected) in [(&whole, for_whole), (&inbound, for_inbound)] {
            let applies = resolve(&text, proxy).mode.value == Mode::Permissive;
            assert_eq!(applies, expected, "{labels} {target} {proxy:?}");
        }
    }
}

#[test]
fn policies_merge_field_by_field() {
    let text = mesh("STRICT")
        + "---
type: MeshTLS
name: base
mesh: default
spec:
  rules:
  - default:
      mode: Permissive
      tlsVersion: {min: TLS12, max: TLS12}
      tlsCiphers: [ECDHE-RSA-AES128-GCM-SHA256]
  - default: {tlsCiphers: [ECDHE-ECDSA-AES256-GCM-SHA384, ECDHE-RSA-AES256-GCM-SHA384]}
---
type: MeshTLS
name: a-newer
mesh: default
spec: {rules: [{default: {tlsVersion: {max: TLS13}}}]}
---
type: MeshTLS
name: web
mesh: default
spec: {targetRef: {kind: Dataplane, labels: {app: web}}, rules: [{default: {mode: Permissive}}, {default: {mode: Strict}}]}
";
    let policy = resolve(&text, &proxy());
    assert_eq!(policy.mode.value, Mode::Strict);
    assert_eq!(policy.min_version.value, TlsVersion::Tls12);
    assert_eq!(policy.max_version.value, TlsVersion::Tls13);
    assert_eq!(
        policy.ciphers.value,
        [
            TlsCipher::EcdheEcdsaAes256GcmSha384,
            TlsCipher::EcdheRsaAes256GcmSha384
        ]
    );
    assert_eq!(
        policy.to_string(),
        "strict by the MeshTLS `web`; from TLS12 by the MeshTLS `base`, up to TLS13 by the MeshTLS `a-newer`; \
         ciphers: ECDHE-ECDSA-AES256-GCM-SHA384, ECDHE-RSA-AES256-GCM-SHA384 by the MeshTLS `base`"
    );
}

#[test]
fn versions_and_ciphers_are_of_the_whole_mesh() {
    let mut resources = resources(
        &(PLAIN.to_owned()
            + "---\n{type: MeshTLS, name: v, mesh: default, spec: {rules: [{default: {mode: Permissive, tlsVersion: {min: TLS13}}}]}}"),
    );
    // No document can say this.
    resources.tls[0].target.kind = meshca_core::resource::TargetKind::Dataplane;
    let policy = TlsPolicy::resolve(&resources, &proxy()).unwrap();
    assert_eq!(policy.mode.value, Mode::Permissive);
    assert_eq!(policy.min_version.by, Decider::Default);
}

#[test]
fn two_policies_that_leave_no_version_are_both_named() {
    let text = PLAIN.to_owned()
        + "---\n{type: MeshTLS, name: old, mesh: default, spec: {rules: [{default: {tlsVersion: {max: TLS12}}}]}}
---\n{type: MeshTLS, name: new, mesh: default, spec: {rules: [{default: {tlsVersion: {min: TLS13}}}]}}";
    let resources = resources(&text);
    // The mode does not depend on the versions.
    let mode = TlsPolicy::mode_of(&resources, &proxy());
    assert_eq!((mode.value, mode.by), (Mode::Strict, Decider::Default));
    let error = TlsPolicy::resolve(&resources, &proxy()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert_eq!(
        error.to_string(),
        "no TLS version is left: `min` is TLS13 by the MeshTLS `new`, and `max` is TLS12 by the MeshTLS `old`; change one of them"
    );
}
