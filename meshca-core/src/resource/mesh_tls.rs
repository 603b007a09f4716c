//! `MeshTLS`: how strictly proxies insist on mTLS.

use std::collections::BTreeMap;

use serde::Serializer;

use super::declare::{Mapping as _, Words as _, mapping, words};
use super::decode::{Cursor, Fields};
use super::field::{Choice, Each, Group, defaulted, optional, required, spelt};
use super::free_form::FreeForm;
use super::mesh::Mode;
use super::metadata::{self, Form, Kind, Metadata, Scope};
use super::values;

/// Whether inbounds accept plaintext, and which TLS versions and ciphers they speak.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MeshTls {
    /// Name, mesh and form.
    pub metadata: Metadata,
    /// Which proxies.
    pub target: TargetRef,
    /// What applies to them: `rules[].default`, or `from[].default` in the older shape.
    pub rules: Vec<TlsRule>,
    /// Whether the rules are written as `from`, as older versions have it.
    pub written_as_from: bool,
    /// What the control plane says about it.
    pub status: FreeForm,
}

impl Kind for MeshTls {
    const NAME: &'static str = "MeshTLS";
    const SCOPE: Scope = Scope::Mesh;

    fn read(f: &mut Fields<'_>, form: Form) -> Option<Self> {
        let metadata = metadata::read(f, form, Self::SCOPE);
        let spec = f.required("spec", spec);
        let status = f.opt("status", values::free_form).unwrap_or_default();
        f.finish();
        let (target, rules, written_as_from) = spec?;
        Some(Self {
            metadata: metadata?,
            target,
            rules,
            written_as_from,
            status,
        })
    }

    fn write<S: Serializer>(&self, form: Form, serializer: S) -> Result<S::Ok, S::Error> {
        let spec = Spec {
            target_ref: Some(self.target.clone()),
            rules: (!self.written_as_from).then(|| self.rules.clone()),
            from: self.written_as_from.then(|| self.rules.clone()),
        };
        metadata::write::<Self, _, _>(&self.metadata, &spec, &self.status, form, serializer)
    }
}

impl MeshTls {
    /// One rule for all proxies of the mesh.
    pub fn new(metadata: Metadata, rule: TlsRule) -> Self {
        Self {
            metadata,
            target: TargetRef::default(),
            rules: vec![rule],
            written_as_from: false,
            status: FreeForm::default(),
        }
    }
}

mapping! {
    /// Which proxies a policy is for.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct TargetRef {
        /// All of the mesh, or some Dataplanes.
        pub kind: TargetKind = required("kind", TargetKind::read),
        /// The name of a Dataplane.
        pub name: Option<String> = optional("name", values::non_empty),
        /// The namespace of a Dataplane.
        pub namespace: Option<String> = optional("namespace", values::non_empty),
        /// The labels that a Dataplane must have.
        pub labels: BTreeMap<String, String> = defaulted("labels", values::string_map),
        /// One inbound of a Dataplane.
        pub section_name: Option<String> = optional("sectionName", values::non_empty),
    }
}

words! {
    /// What a [`TargetRef`] refers to.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[non_exhaustive]
    pub enum TargetKind {
        /// All proxies of the mesh.
        Mesh = "Mesh" (default),
        /// Some Dataplanes.
        Dataplane = "Dataplane",
    }
}

mapping! {
    /// What applies to inbounds. Everything absent is left to other policies and in the end to the
    /// defaults: strict, and what the proxy speaks.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct TlsRule {
        /// Whether plaintext is accepted as well.
        pub mode: Option<Mode> = optional("mode", MODES),
        /// Which versions of TLS; only for the whole mesh.
        pub tls_version: Option<TlsVersions> = optional("tlsVersion", versions),
        /// Which ciphers, for TLS up to 1.2; only for the whole mesh. Empty: the proxy's own.
        pub tls_ciphers: Vec<TlsCipher> = defaulted("tlsCiphers", Each(TlsCipher::read)),
    }
}

/// The words of this kind for a mode; a Mesh has them in capitals.
const MODES: Choice<Mode> = Choice(&[("Strict", Mode::Strict), ("Permissive", Mode::Permissive)]);

impl TlsRule {
    /// Only the mode.
    pub fn with_mode(mode: Mode) -> Self {
        Self {
            mode: Some(mode),
            ..Self::default()
        }
    }
}

mapping! {
    /// A range of TLS versions.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct TlsVersions {
        /// The oldest.
        pub min: Option<TlsVersion> = optional("min", oldest),
        /// The newest.
        pub max: Option<TlsVersion> = optional("max", TlsVersion::read),
    }
}

words! {
    /// A TLS version.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    #[non_exhaustive]
    pub enum TlsVersion {
        /// The proxy's choice.
        Auto = "TLSAuto",
        /// TLS 1.0.
        Tls10 = "TLS10",
        /// TLS 1.1.
        Tls11 = "TLS11",
        /// TLS 1.2.
        Tls12 = "TLS12",
        /// TLS 1.3.
        Tls13 = "TLS13",
    }
}

impl TlsVersion {
    /// As documents spell it: `TLS12`.
    pub fn as_str(self) -> &'static str {
        self.word()
    }
}

words! {
    /// A cipher suite for TLS up to 1.2, by its OpenSSL name.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[non_exhaustive]
    pub enum TlsCipher {
        /// ECDHE, ECDSA, AES-128-GCM.
        EcdheEcdsaAes128GcmSha256 = "ECDHE-ECDSA-AES128-GCM-SHA256",
        /// ECDHE, ECDSA, AES-256-GCM.
        EcdheEcdsaAes256GcmSha384 = "ECDHE-ECDSA-AES256-GCM-SHA384",
        /// ECDHE, ECDSA, ChaCha20-Poly1305.
        EcdheEcdsaChacha20Poly1305 = "ECDHE-ECDSA-CHACHA20-POLY1305",
        /// ECDHE, RSA, AES-128-GCM.
        EcdheRsaAes128GcmSha256 = "ECDHE-RSA-AES128-GCM-SHA256",
        /// ECDHE, RSA, AES-256-GCM.
        EcdheRsaAes256GcmSha384 = "ECDHE-RSA-AES256-GCM-SHA384",
        /// ECDHE, RSA, ChaCha20-Poly1305.
        EcdheRsaChacha20Poly1305 = "ECDHE-RSA-CHACHA20-POLY1305",
    }
}

impl TlsCipher {
    /// As documents and OpenSSL spell it.
    pub fn as_str(self) -> &'static str {
        self.word()
    }
}

mapping! {
    #[derive(Clone)]
    pub(super) struct Spec {
        target_ref: Option<TargetRef> = optional("targetRef", target),
        rules: Option<Vec<TlsRule>> = optional("rules", Each(Group(required("default", TlsRule::read)))),
        from: Option<Vec<TlsRule>> = optional("from", Each(spelt(from, |rule| From {
            target_ref: (),
            default: rule.clone(),
        }))),
    }
}

mapping! {
    #[derive(Clone)]
    struct From {
        target_ref: () = required("targetRef", Group(required("kind", Choice(&[("Mesh", ())])))),
        default: TlsRule = required("default", TlsRule::read),
    }
}

fn from(at: Cursor<'_>) -> Option<TlsRule> {
    From::read(at).map(|from| from.default)
}

/// Reads the target, the rules, and whether they are written as `from`.
fn spec(at: Cursor<'_>) -> Option<(TargetRef, Vec<TlsRule>, bool)> {
    let mut f = at.fields()?;
    let Spec {
        target_ref,
        rules,
        from,
    } = Spec::read_fields(&mut f)?;
    let target = target_ref.unwrap_or_default();
    if target.kind != TargetKind::Mesh {
        at.visit(&["rules", "default"], &refuse_tls_settings);
        at.visit(&["from", "default"], &refuse_tls_settings);
    }
    let (has_rules, has_from) = (f.has("rules"), f.has("from"));
    match (has_rules, has_from) {
        (true, true) => f.refuse(
            "from",
            "is the older shape of `rules`, which is here as well: keep one of them",
        ),
        (false, false) => f.missing::<()>("rules", "must be set"),
        _ => None,
    };
    f.finish();
    let rules = if has_from { from } else { rules }?;
    if rules.is_empty() {
        return f.missing(
            if has_from { "from" } else { "rules" },
            "must hold at least one rule",
        );
    }
    Some((target, rules, has_from))
}

fn target(at: Cursor<'_>) -> Option<TargetRef> {
    if !at.node.says("kind", "Mesh") {
        return TargetRef::read(at);
    }
    let mut f = at.fields()?;
    f.know(&["kind"]);
    for name in ["name", "namespace", "labels", "sectionName"] {
        f.refuse::<()>(
            name,
            "does not go with kind `Mesh`, which is all of it: remove it or target a `Dataplane`",
        );
    }
    f.finish();
    Some(TargetRef::default())
}

/// Refuses what would hold for a whole proxy in a rule for some inbounds.
fn refuse_tls_settings(at: Cursor<'_>) {
    let Some(mut rule) = at.as_mapping() else {
        return;
    };
    for name in ["tlsVersion", "tlsCiphers"] {
        rule.refuse::<()>(
            name,
            "can only be set for the whole mesh: use a `targetRef` of kind `Mesh`",
        );
    }
}

fn oldest(at: Cursor<'_>) -> Option<TlsVersion> {
    let version = TlsVersion::read(at)?;
    if matches!(version, TlsVersion::Tls10 | TlsVersion::Tls11) {
        at.warn("TLS below 1.2 is deprecated as insecure (RFC 8996): use `TLS12`");
    }
    Some(version)
}

fn versions(at: Cursor<'_>) -> Option<TlsVersions> {
    let versions = TlsVersions::read(at)?;
    match (versions.min, versions.max) {
        // `Auto` sorts first, and means no bound on either side.
        (Some(min), Some(max)) if min > max && max != TlsVersion::Auto => at.error(format_args!(
            "`min` is {} and above `max`, which is {}",
            min.as_str(),
            max.as_str()
        )),
        _ => Some(versions),
    }
}
