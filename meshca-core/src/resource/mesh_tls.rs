//! `MeshTLS`: how strictly proxies insist on mTLS.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::decode::{self, Cursor, Fields};
use super::free_form::FreeForm;
use super::mesh::Mode;
use super::metadata::{self, API_VERSION, Form, Layout, Metadata, Scope, Written, may_be_absent};

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

    pub(super) fn write<S: Serializer>(
        &self,
        form: Form,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let Self {
            metadata,
            target,
            rules,
            written_as_from,
            status,
        } = self;
        let mut spec = SpecWire {
            target_ref: target,
            rules: Vec::new(),
            from: Vec::new(),
        };
        if *written_as_from {
            spec.from = rules
                .iter()
                .map(|rule| FromWire {
                    target_ref: FromTarget::default(),
                    default: rule,
                })
                .collect();
        } else {
            spec.rules = rules
                .iter()
                .map(|rule| RuleWire { default: rule })
                .collect();
        }
        Written {
            api_version: API_VERSION,
            kind: "MeshTLS",
            metadata,
            layout: Layout::Spec,
            spec,
            status: Cow::Borrowed(status),
        }
        .write(form, serializer)
    }
}

/// Which proxies a policy is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct TargetRef {
    /// All of the mesh, or some Dataplanes.
    pub kind: TargetKind,
    /// The name of a Dataplane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The namespace of a Dataplane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The labels that a Dataplane must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// One inbound of a Dataplane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

/// What a [`TargetRef`] refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub enum TargetKind {
    /// All proxies of the mesh.
    #[default]
    Mesh,
    /// Some Dataplanes.
    Dataplane,
}

/// What applies to inbounds. Everything absent is left to other policies and in the end to the
/// defaults: strict, and what the proxy speaks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct TlsRule {
    /// Whether plaintext is accepted as well.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "write_mode")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<ModeWire>"))]
    pub mode: Option<Mode>,
    /// Which versions of TLS; only for the whole mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_version: Option<TlsVersions>,
    /// Which ciphers, for TLS up to 1.2; only for the whole mesh. Empty: the proxy's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls_ciphers: Vec<TlsCipher>,
}

impl TlsRule {
    /// Only the mode.
    pub fn with_mode(mode: Mode) -> Self {
        Self {
            mode: Some(mode),
            ..Self::default()
        }
    }
}

/// A range of TLS versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct TlsVersions {
    /// The oldest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<TlsVersion>,
    /// The newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<TlsVersion>,
}

/// A TLS version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub enum TlsVersion {
    /// The proxy's choice.
    #[serde(rename = "TLSAuto")]
    Auto,
    /// TLS 1.0.
    #[serde(rename = "TLS10")]
    Tls10,
    /// TLS 1.1.
    #[serde(rename = "TLS11")]
    Tls11,
    /// TLS 1.2.
    #[serde(rename = "TLS12")]
    Tls12,
    /// TLS 1.3.
    #[serde(rename = "TLS13")]
    Tls13,
}

/// A cipher suite for TLS up to 1.2, by its OpenSSL name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub enum TlsCipher {
    /// ECDHE, ECDSA, AES-128-GCM.
    #[serde(rename = "ECDHE-ECDSA-AES128-GCM-SHA256")]
    EcdheEcdsaAes128GcmSha256,
    /// ECDHE, ECDSA, AES-256-GCM.
    #[serde(rename = "ECDHE-ECDSA-AES256-GCM-SHA384")]
    EcdheEcdsaAes256GcmSha384,
    /// ECDHE, ECDSA, ChaCha20-Poly1305.
    #[serde(rename = "ECDHE-ECDSA-CHACHA20-POLY1305")]
    EcdheEcdsaChacha20Poly1305,
    /// ECDHE, RSA, AES-128-GCM.
    #[serde(rename = "ECDHE-RSA-AES128-GCM-SHA256")]
    EcdheRsaAes128GcmSha256,
    /// ECDHE, RSA, AES-256-GCM.
    #[serde(rename = "ECDHE-RSA-AES256-GCM-SHA384")]
    EcdheRsaAes256GcmSha384,
    /// ECDHE, RSA, ChaCha20-Poly1305.
    #[serde(rename = "ECDHE-RSA-CHACHA20-POLY1305")]
    EcdheRsaChacha20Poly1305,
}

const VERSIONS: [(&str, TlsVersion); 5] = [
    ("TLSAuto", TlsVersion::Auto),
    ("TLS10", TlsVersion::Tls10),
    ("TLS11", TlsVersion::Tls11),
    ("TLS12", TlsVersion::Tls12),
    ("TLS13", TlsVersion::Tls13),
];

const CIPHERS: [(&str, TlsCipher); 6] = [
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        TlsCipher::EcdheEcdsaAes128GcmSha256,
    ),
    (
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        TlsCipher::EcdheEcdsaAes256GcmSha384,
    ),
    (
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        TlsCipher::EcdheEcdsaChacha20Poly1305,
    ),
    (
        "ECDHE-RSA-AES128-GCM-SHA256",
        TlsCipher::EcdheRsaAes128GcmSha256,
    ),
    (
        "ECDHE-RSA-AES256-GCM-SHA384",
        TlsCipher::EcdheRsaAes256GcmSha384,
    ),
    (
        "ECDHE-RSA-CHACHA20-POLY1305",
        TlsCipher::EcdheRsaChacha20Poly1305,
    ),
];

impl TlsVersion {
    /// As documents spell it: `TLS12`.
    pub fn as_str(self) -> &'static str {
        VERSIONS
            .iter()
            .find(|(_, version)| *version == self)
            .map(|(name, _)| *name)
            .unwrap_or_default()
    }
}

impl TlsCipher {
    /// As documents and OpenSSL spell it.
    pub fn as_str(self) -> &'static str {
        CIPHERS
            .iter()
            .find(|(_, cipher)| *cipher == self)
            .map(|(name, _)| *name)
            .unwrap_or_default()
    }
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "Mode")
)]
enum ModeWire {
    Strict,
    Permissive,
}

fn write_mode<S: Serializer>(mode: &Option<Mode>, serializer: S) -> Result<S::Ok, S::Error> {
    match mode.unwrap_or_default() {
        Mode::Strict => ModeWire::Strict,
        Mode::Permissive => ModeWire::Permissive,
    }
    .serialize(serializer)
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct SpecWire<'w> {
    #[serde(skip_serializing_if = "may_be_absent")]
    target_ref: &'w TargetRef,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rules: Vec<RuleWire<'w>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    from: Vec<FromWire<'w>>,
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "Rule")
)]
struct RuleWire<'w> {
    default: &'w TlsRule,
}

#[derive(Serialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "From")
)]
#[serde(rename_all = "camelCase")]
struct FromWire<'w> {
    target_ref: FromTarget,
    default: &'w TlsRule,
}

/// The only target that a `from` may have.
#[derive(Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct FromTarget {
    kind: FromKind,
}

#[derive(Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
enum FromKind {
    #[default]
    Mesh,
}

/// Reads a `MeshTLS` whose `apiVersion` and `kind`, or `type`, have been read.
pub(super) fn read(f: &mut Fields<'_>, form: Form) -> Option<MeshTls> {
    let metadata = metadata::read(f, form, Scope::Mesh);
    let spec = f.required("spec", |at| {
        let mut f = at.fields()?;
        let target = f.opt("targetRef", target).unwrap_or_default();
        let whole_mesh = target.kind == TargetKind::Mesh;
        let rules = f.opt("rules", |at| at.list(|at| rule(at, whole_mesh)));
        let from = f.opt("from", |at| at.list(|at| from(at, whole_mesh)));
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
    });
    let status = f.opt("status", decode::free_form).unwrap_or_default();
    f.finish();
    let (target, rules, written_as_from) = spec?;
    Some(MeshTls {
        metadata: metadata?,
        target,
        rules,
        written_as_from,
        status,
    })
}

fn target(at: Cursor<'_>) -> Option<TargetRef> {
    let mut f = at.fields()?;
    let kind = f.required("kind", |at| {
        at.choice(&[
            ("Mesh", TargetKind::Mesh),
            ("Dataplane", TargetKind::Dataplane),
        ])
    });
    if kind == Some(TargetKind::Mesh) {
        for name in ["name", "namespace", "labels", "sectionName"] {
            if f.has(name) {
                f.refuse::<()>(name, "does not go with kind `Mesh`, which is all of it: remove it or target a `Dataplane`");
            }
        }
        f.finish();
        return Some(TargetRef::default());
    }
    let name = f.opt("name", decode::non_empty);
    let namespace = f.opt("namespace", decode::non_empty);
    let labels = f.opt("labels", decode::string_map).unwrap_or_default();
    let section_name = f.opt("sectionName", decode::non_empty);
    f.finish();
    Some(TargetRef {
        kind: kind?,
        name,
        namespace,
        labels,
        section_name,
    })
}

fn from(at: Cursor<'_>, whole_mesh: bool) -> Option<TlsRule> {
    let mut f = at.fields()?;
    let target = f.required("targetRef", |at| {
        let mut f = at.fields()?;
        let kind = f.required("kind", |at| at.choice(&[("Mesh", ())]));
        f.finish();
        kind
    });
    let rule = f.required("default", |at| default(at, whole_mesh));
    f.finish();
    target.and(rule)
}

fn rule(at: Cursor<'_>, whole_mesh: bool) -> Option<TlsRule> {
    let mut f = at.fields()?;
    let rule = f.required("default", |at| default(at, whole_mesh));
    f.finish();
    rule
}

fn default(at: Cursor<'_>, whole_mesh: bool) -> Option<TlsRule> {
    let mut f = at.fields()?;
    let mode = f.opt("mode", |at| {
        at.choice(&[("Strict", Mode::Strict), ("Permissive", Mode::Permissive)])
    });
    let tls_version = f.opt("tlsVersion", versions);
    let tls_ciphers = f.list("tlsCiphers", |at| at.choice(&CIPHERS));
    if !whole_mesh {
        for name in ["tlsVersion", "tlsCiphers"] {
            if f.has(name) {
                f.refuse::<()>(
                    name,
                    "can only be set for the whole mesh: use a `targetRef` of kind `Mesh`",
                );
            }
        }
    }
    f.finish();
    Some(TlsRule {
        mode,
        tls_version,
        tls_ciphers,
    })
}

fn versions(at: Cursor<'_>) -> Option<TlsVersions> {
    let mut f = at.fields()?;
    let min = f.opt("min", |at| {
        let version = at.choice(&VERSIONS)?;
        if matches!(version, TlsVersion::Tls10 | TlsVersion::Tls11) {
            at.warn("TLS below 1.2 is deprecated as insecure (RFC 8996): use `TLS12`");
        }
        Some(version)
    });
    let max = f.opt("max", |at| at.choice(&VERSIONS));
    f.finish();
    match (min, max) {
        (Some(TlsVersion::Auto), _) | (_, Some(TlsVersion::Auto)) => {}
        (Some(min), Some(max)) if min > max => {
            return at.error(format_args!(
                "`min` is {} and above `max`, which is {}",
                min.as_str(),
                max.as_str()
            ));
        }
        _ => {}
    }
    Some(TlsVersions { min, max })
}
