//! The examples as a new user runs them, and what others say of the files that they write.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Cargo builds examples next to the tests that it runs.
pub(crate) fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap().parent().unwrap().join("examples");
    let program = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(
        program.exists(),
        "{} is not built: run `cargo build --examples --all-features` first",
        program.display()
    );
    Command::new(program)
}

fn output(command: &mut Command) -> (bool, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    (status.success(), text)
}

fn succeeds(command: &mut Command) -> String {
    let (success, text) = output(command);
    assert!(success, "{command:?} failed:\n{text}");
    text
}

fn fails(command: &mut Command) -> String {
    let (success, text) = output(command);
    assert!(!success, "{command:?} succeeded:\n{text}");
    text
}

/// A value that `quickstart` prints.
fn printed<'a>(text: &'a str, label: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.strip_prefix(label))
        .unwrap_or_else(|| panic!("no `{label}` in:\n{text}"))
        .trim()
}

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn quickstart(&self, arguments: &[&dyn AsRef<OsStr>]) -> Command {
        let mut command = example("quickstart");
        command.arg("--state").arg(self.path("state"));
        command.arg("--out").arg(self.path("out"));
        command.args(arguments.iter().map(|argument| argument.as_ref()));
        command
    }

    fn out(&self, name: &str) -> String {
        fs::read_to_string(self.path("out").join(name)).unwrap()
    }
}

fn builtin_mesh(conf: &str) -> String {
    format!(
        "type: Mesh\nname: shop\nmtls:\n  enabledBackend: ca-1\n  backends:\n  - name: ca-1\n    type: builtin\n    {conf}\n"
    )
}

#[test]
fn two_runs_on_one_state_folder_use_one_ca() {
    let scratch = Scratch::new();
    let first = succeeds(&mut scratch.quickstart(&[]));
    let bundle = scratch.out("bundle.pem");
    let second = succeeds(&mut scratch.quickstart(&[]));
    assert_eq!(scratch.out("bundle.pem"), bundle);
    assert_eq!(printed(&first, "trust"), printed(&second, "trust"));
    assert_ne!(printed(&first, "serial"), printed(&second, "serial"));
    assert_eq!(
        printed(&first, "SPIFFE ID"),
        "spiffe://default.default.mesh.local/ns/kong-air/sa/flight-control"
    );
    assert_eq!(
        printed(&first, "as a peer"),
        "every signature up to the root was verified"
    );
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |name| {
            fs::metadata(scratch.path(name))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!(mode("out/key.pem"), 0o600);
        assert_eq!(mode("state"), 0o700);
    }
}

#[test]
fn a_mesh_issues_where_no_identity_selects_the_workload() {
    let scratch = Scratch::new();
    for backend in ["", "conf: {caCert: {RSAbits: 2048, expiration: 30d}}"] {
        let scratch = Scratch::new();
        let mesh = scratch.write("mesh.yaml", builtin_mesh(backend));
        let labels = "kuma.io/service=cart_backend";
        let text =
            succeeds(&mut scratch.quickstart(&[&"--resources", &mesh, &"--workload", &labels]));
        assert_eq!(printed(&text, "SPIFFE ID"), "spiffe://shop/cart_backend");
        assert_eq!(printed(&text, "from"), "Mesh shop, backend ca-1 (builtin)");
        assert_eq!(
            printed(&text, "key"),
            "P-256",
            "a workload's key is not its CA's"
        );
    }
    let nothing = scratch.write("none.yaml", "type: Mesh\nname: default\n");
    let text = fails(&mut scratch.quickstart(&[&"--resources", &nothing]));
    assert!(text.contains("no Mesh has an enabled backend"), "{text}");
}

#[test]
fn what_is_wrong_stops_everything_before_anything_is_written() {
    let scratch = Scratch::new();
    let identity = |path: &str| {
        format!(
            "type: MeshIdentity\nname: a\nmesh: default\nspec:\n  selector: {{dataplane: {{matchLabels: {{}}}}}}\n  spiffeID: {{path: '{path}', trustDomain: example.org}}\n  provider: {{type: Bundled, bundled: {{insecureAllowSelfSigned: true, autogenerate: {{enabled: true}}}}}}\n"
        )
    };
    let cases = [
        ("type: Mesh\nname: [", "app=a", "mesh.yaml:2:"),
        (
            &identity("/{{ .Nmespace }}"),
            "app=a",
            "did you mean `.Namespace`?",
        ),
        (
            &identity(r#"/{{ label "app" }}"#),
            "app=a/b",
            "label `app` has the value `a/b`",
        ),
        (&identity(r#"/{{ label "app" }}"#), "app=..", "label `app`"),
        (&identity(r#"/{{ label "app" }}"#), "app=a b", "label `app`"),
        (&identity(r#"/{{ label "app" }}"#), "app=ä", "label `app`"),
        (&identity(r#"/{{ label "app" }}"#), "other=a", "label `app`"),
        (&identity("/a"), "app", "app"),
        (
            "type: Mesh\nname: default\nmtls:\n  enabledBackend: v\n  backends:\n  - {name: v, type: third-party}\n",
            "kuma.io/service=a",
            "no issuer of the type `third-party` is registered",
        ),
    ];
    for (text, workload, expected) in cases {
        let file = scratch.write("mesh.yaml", text);
        let text =
            fails(&mut scratch.quickstart(&[&"--resources", &file, &"--workload", &workload]));
        assert!(
            text.contains(expected),
            "expected: {expected}\nfound: {text}"
        );
        assert!(!scratch.path("out").exists(), "{text}");
        let kept: Vec<_> = fs::read_dir(scratch.path("state"))
            .map(|entries| {
                entries
                    .map(|entry| entry.unwrap().path())
                    .filter(|path| path.is_dir())
                    .collect()
            })
            .unwrap_or_default();
        assert!(kept.is_empty(), "{kept:?}");
    }
    let huge = format!("type: Mesh\nname: {}\n", "a".repeat(100 << 20));
    let file = scratch.write("huge.yaml", huge);
    let text = fails(&mut scratch.quickstart(&[&"--resources", &file]));
    assert!(
        text.contains("huge.yaml:1:1: the input has 100 MiB"),
        "{text}"
    );
}

#[test]
fn check_says_ok_or_all_that_is_wrong() {
    let resources = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/resources");
    let mut command = example("check");
    let mut files = 0;
    for folder in [resources.clone(), resources.join("scenarios")] {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path
                .extension()
                .is_some_and(|extension| extension == "yaml")
            {
                command.arg(path);
                files += 1;
            }
        }
    }
    let text = succeeds(&mut command);
    assert_eq!(text.matches(".yaml: ok, ").count(), files, "{text}");

    let scratch = Scratch::new();
    let broken = scratch.write("broken.yaml", "type: Mesh\nname: default\nmtls:\n  enabledBackend: a\n  backend: []\n  backends:\n  - {name: b, type: vault, conf: {}}\n");
    let good = scratch.write(
        "good.yaml",
        "type: Mesh\nname: default\n---\ntype: Mesh\nname: second\n",
    );
    let text = fails(
        example("check")
            .arg(&broken)
            .arg(&good)
            .arg(scratch.path("none.yaml")),
    );
    for expected in [
        "broken.yaml:4:19: mtls.enabledBackend: no backend is called `a`: it is `b`",
        "broken.yaml:5:3: mtls.backend: ",
        "mtls.backends[0].conf.fromCp: must be set",
        "dpCert.rotation.expiration: must be set",
        "good.yaml: ok, 2 resources",
        "none.yaml: No such file",
    ] {
        assert!(text.contains(expected), "no `{expected}` in:\n{text}");
    }
}

/// What OpenSSL says of the files that `quickstart` writes.
mod openssl {
    use super::*;

    /// `cargo xtask test` counts what is left out where OpenSSL is missing; bare `cargo test` says it here.
    fn is_missing() -> bool {
        let missing = Command::new("openssl").arg("version").output().is_err();
        if missing {
            eprintln!(
                "\n*** openssl not found: what OpenSSL says of our certificates was NOT tested. \
                 Install it (Debian: apt-get install openssl). ***\n"
            );
        }
        missing
    }

    fn openssl(arguments: &[&str], files: &[(&str, &Path)]) -> String {
        let mut command = Command::new("openssl");
        command.args(arguments);
        for (flag, file) in files {
            if !flag.is_empty() {
                command.arg(flag);
            }
            command.arg(file);
        }
        succeeds(&mut command)
    }

    fn openssl_accepts(out: &Path) {
        let (leaf, key, bundle) = (
            out.join("cert.pem"),
            out.join("key.pem"),
            out.join("bundle.pem"),
        );
        for purpose in ["sslserver", "sslclient"] {
            let verdict = openssl(
                &["verify", "-x509_strict", "-purpose", purpose],
                &[("-CAfile", &bundle), ("-untrusted", &leaf), ("", &leaf)],
            );
            assert!(verdict.trim_end().ends_with(": OK"), "{verdict}");
        }
        let of_certificate = openssl(&["x509", "-noout", "-pubkey"], &[("-in", &leaf)]);
        let of_key = openssl(&["pkey", "-pubout"], &[("-in", &key)]);
        assert_eq!(of_certificate, of_key);
    }

    #[test]
    fn accepts_what_both_models_issue() {
        if is_missing() {
            return;
        }
        let scratch = Scratch::new();
        succeeds(&mut scratch.quickstart(&[]));
        openssl_accepts(&scratch.path("out"));
        let text = openssl(
            &["x509", "-noout", "-text"],
            &[("-in", &scratch.path("out/cert.pem"))],
        );
        for expected in [
            "URI:spiffe://default.default.mesh.local/ns/kong-air/sa/flight-control",
            "TLS Web Server Authentication, TLS Web Client Authentication",
            "X509v3 Subject Alternative Name: critical",
            "CA:FALSE",
        ] {
            assert!(text.contains(expected), "no `{expected}` in:\n{text}");
        }

        for backend in ["", "conf: {caCert: {RSAbits: 2048, expiration: 30d}}"] {
            let scratch = Scratch::new();
            let mesh = scratch.write("mesh.yaml", builtin_mesh(backend));
            let labels = "kuma.io/service=cart_backend";
            let arguments: [&dyn AsRef<OsStr>; 4] = [&"--resources", &mesh, &"--workload", &labels];
            succeeds(&mut scratch.quickstart(&arguments));
            openssl_accepts(&scratch.path("out"));
        }
    }

    /// A CA that an operator already has: made by OpenSSL, below a root, in Secret resources.
    #[test]
    fn a_given_ca_issues_for_both_models() {
        if is_missing() {
            return;
        }
        let scratch = Scratch::new();
        let given = GivenCa::make(&scratch);
        let folder = scratch.path("resources");
        scratch.write("resources/secrets.yaml", given.secrets());
        scratch.write(
        "resources/mesh.yaml",
        "type: Mesh\nname: default\nmtls:\n  enabledBackend: corp\n  backends:\n  - name: corp\n    type: provided\n    dpCert: {rotation: {expiration: 2h}}\n    conf:\n      cert: {secret: ca-cert}\n      key: {secret: ca-key}\n",
    );
        let mesh = scratch.quickstart(&[
            &"--resources",
            &folder,
            &"--workload",
            &"kuma.io/service=cart",
        ]);
        let text = succeeds(&mut { mesh });
        assert_eq!(
            printed(&text, "chain"),
            "(empty) <- CN=Corp Mesh CA,O=Corp <- CN=Corp Root,O=Corp"
        );
        openssl_accepts(&scratch.path("out"));

        scratch.write(
        "resources/identity.yaml",
        "type: MeshIdentity\nname: ops\nmesh: default\nspec:\n  selector: {dataplane: {matchLabels: {app: cart}}}\n  spiffeID: {trustDomain: corp.example, path: '/{{ .Namespace }}/{{ .Workload }}'}\n  provider:\n    type: Bundled\n    bundled:\n      ca:\n        certificate: {type: Secret, secretRef: {kind: Secret, name: ca-cert}}\n        privateKey: {type: Secret, secretRef: {kind: Secret, name: ca-key}}\n",
    );
        let labels = "app=cart,k8s.kuma.io/namespace=shop,kuma.io/workload=cart-7";
        let text =
            succeeds(&mut scratch.quickstart(&[&"--resources", &folder, &"--workload", &labels]));
        assert_eq!(
            printed(&text, "SPIFFE ID"),
            "spiffe://corp.example/shop/cart-7"
        );
        openssl_accepts(&scratch.path("out"));

        // A workload that lacks what the template needs is told which label to add.
        let text =
            fails(&mut scratch.quickstart(&[&"--resources", &folder, &"--workload", &"app=cart"]));
        assert!(text.contains("k8s.kuma.io/namespace"), "{text}");
    }

    struct GivenCa {
        certificates: String,
        key: String,
    }

    impl GivenCa {
        fn make(scratch: &Scratch) -> Self {
            let path = |name: &str| scratch.path(name).display().to_string();
            let request = |name: &str, subject: &str, more: &[&str]| {
                let (key, out) = (path(&format!("{name}.key")), path(&format!("{name}.pem")));
                let mut arguments = vec![
                    "req",
                    "-x509",
                    "-newkey",
                    "rsa:2048",
                    "-nodes",
                    "-days",
                    "30",
                    "-subj",
                    subject,
                    "-addext",
                    "keyUsage=critical,keyCertSign,cRLSign",
                    "-keyout",
                    &key,
                    "-out",
                    &out,
                ];
                arguments.extend(more);
                openssl(&arguments, &[]);
            };
            request("root", "/O=Corp/CN=Corp Root", &[]);
            let (ca, key) = (path("root.pem"), path("root.key"));
            request(
                "mesh",
                "/O=Corp/CN=Corp Mesh CA",
                &["-CA", &ca, "-CAkey", &key],
            );
            let read = |name: &str| fs::read_to_string(scratch.path(name)).unwrap();
            Self {
                certificates: read("mesh.pem") + &read("root.pem"),
                key: read("mesh.key"),
            }
        }

        fn secrets(&self) -> String {
            let secret = |name: &str, value: &str| {
                let indented = value.replace('\n', "\n    ");
                format!(
                    "apiVersion: v1\nkind: Secret\ntype: system.kuma.io/secret\nmetadata:\n  name: {name}\n  namespace: kuma-system\nstringData:\n  value: |\n    {}\n",
                    indented.trim_end()
                )
            };
            secret("ca-cert", &self.certificates) + "---\n" + &secret("ca-key", &self.key)
        }
    }
}

#[cfg(all(
    feature = "audit",
    feature = "rate-limit",
    feature = "retry",
    feature = "timeout"
))]
#[test]
fn a_third_partys_issuer_keeps_the_contract() {
    let scratch = Scratch::new();
    let mut command = example("custom_issuer");
    let text = succeeds(command.current_dir(scratch.0.path()));
    assert_eq!(text.matches("conformance of my-ca").count(), 2, "{text}");
    assert_eq!(text.matches("checks hold").count(), 2, "{text}");
    assert!(text.contains("spiffe://default/checkout"), "{text}");
}

#[cfg(feature = "certmanager")]
mod certmanager {
    mod kube {
        use meshca_testenv::servers::{CertManager, Kube};

        use super::super::*;

        /// As the guide has it: an API server with cert-manager in it, and nothing else.
        #[tokio::test(flavor = "multi_thread")]
        async fn the_example_sets_up_an_empty_cluster_and_gets_a_certificate() {
            meshca_testenv::needs!(Kube::programs().and_then(|_| CertManager::program()));
            let kube = Kube::start().await.unwrap();
            let cert_manager = CertManager::start(&kube).await.unwrap();
            let scratch = Scratch::new();
            let config = scratch.write("kubeconfig", kube.kubeconfig(kube.admin_token()));
            let run = |arguments: &[&str]| {
                let mut command = example("certmanager");
                command.env("KUBECONFIG", &config).args(arguments);
                command
            };
            for kind in ["Issuer", "ClusterIssuer"] {
                let out = scratch.path("out");
                let text = succeeds(run(&["--set-up", "--kind", kind, "--out"]).arg(&out));
                assert_eq!(
                    printed(&text, "SPIFFE ID"),
                    "spiffe://default/ns/kong-air/sa/flight-control"
                );
                assert!(scratch.out("cert.pem").contains("BEGIN CERTIFICATE"));
            }
            let text = fails(&mut run(&["--issuer", "gone"]));
            assert!(text.contains("there is no Issuer `gone`"), "{text}");
            drop(cert_manager);
        }
    }
}

#[cfg(feature = "acm")]
mod acm {
    mod moto {
        use meshca_testenv::servers::{Aws, AwsCaOptions};

        use super::super::*;

        #[tokio::test(flavor = "multi_thread")]
        async fn the_example_gets_a_certificate_under_the_identity_of_its_environment() {
            meshca_testenv::needs!(Aws::program());
            let aws = Aws::start().await.unwrap();
            let arn = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
            let scratch = Scratch::new();
            let run = |environment: &[(&str, &str)], arguments: &[&str]| {
                let mut command = example("acm");
                command
                    .env_clear()
                    // Nothing of this machine, and no metadata service.
                    .env("HOME", scratch.path("home"))
                    .env("AWS_EC2_METADATA_DISABLED", "true")
                    .envs(environment.iter().copied())
                    .args(["--arn", &arn, "--endpoint", &aws.address()])
                    .args(arguments);
                command
            };
            let keys = [
                ("AWS_ACCESS_KEY_ID", "any"),
                ("AWS_SECRET_ACCESS_KEY", "any-secret"),
            ];
            let out = scratch.path("out");
            let mut command = run(&keys, &["--fleet", "1000", "--out"]);
            let text = succeeds(command.arg(&out));
            assert_eq!(
                printed(&text, "SPIFFE ID"),
                "spiffe://default/ns/kong-air/sa/flight-control"
            );
            assert!(text.contains("is used up in 22 days"), "{text}");
            assert!(scratch.out("cert.pem").contains("BEGIN CERTIFICATE"));

            let key = scratch.write("key", "any\n");
            let secret = scratch.write("secret", "any-secret\n");
            let mut command = run(&[], &["--access-key-file"]);
            succeeds(command.arg(&key).arg("--secret-file").arg(&secret));

            // Which of the places failed.
            let text = fails(&mut run(&[], &[]));
            for place in [
                "environment",
                "profile",
                "web identity",
                "container",
                "instance",
            ] {
                assert!(text.contains(place), "no `{place}` in:\n{text}");
            }
            let broken = [
                ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/x"),
                ("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere/token"),
            ];
            let text = fails(&mut run(&broken, &[]));
            assert!(
                text.contains("`web identity (EKS)` is set up and failed"),
                "{text}"
            );
            assert!(!text.contains("any-secret"), "{text}");
        }
    }
}
