//! `check()` tells an operator what to do before the first proxy asks.

mod vault {
    use meshca_core::resource::{DataSource, VaultAuth, VaultConf, VaultTls};
    use meshca_core::{Error, ErrorKind, Issuer};
    use meshca_testenv::servers::{Vault, VaultOptions};
    use meshca_testkit::pki::{TestCa, TestCaOptions};
    use meshca_vault::VaultSettings;
    use serde_json::json;

    use crate::common::*;
    use meshca_testenv::needs;

    #[track_caller]
    fn says(error: &Error, kind: ErrorKind, words: &[&str]) {
        let text = error.to_string();
        assert_eq!(error.kind(), kind, "{text}");
        for word in words {
            assert!(text.contains(word), "`{word}` is missing in: {text}");
        }
    }

    #[tokio::test]
    async fn of_roles_and_policies() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let issuer = with_token(&vault).await;
        let report = issuer.check().await.unwrap();
        assert_eq!(report.warnings.len(), 1, "{report:?}");
        assert!(report.warnings[0].contains("`period`"), "{report:?}");

        // What is changed in the role, and what is said about it.
        for (change, kind, words) in [
            (
                json!({"allowed_uri_sans": "spiffe://other.example/*"}),
                ErrorKind::Denied,
                vec![
                    "`mesh-dp`",
                    "add `spiffe://example.org/*` to its `allowed_uri_sans`",
                ],
            ),
            (
                json!({"require_cn": true}),
                ErrorKind::Denied,
                vec!["set `require_cn=false`"],
            ),
            (
                json!({"client_flag": false}),
                ErrorKind::Denied,
                vec!["set `client_flag=true`"],
            ),
            (
                json!({"server_flag": false}),
                ErrorKind::Denied,
                vec!["set `server_flag=true`"],
            ),
            (
                json!({"key_type": "rsa", "key_bits": 2048}),
                ErrorKind::Denied,
                vec!["set `key_type=any`"],
            ),
        ] {
            let mut role = role();
            for (name, value) in change.as_object().unwrap() {
                role[name] = value.clone();
            }
            vault.write("pki/roles/mesh-dp", role).await.unwrap();
            says(&issuer.check().await.unwrap_err(), kind, &words);
        }
        for (change, words) in [
            (
                json!({"max_ttl": "10m"}),
                "gives 600 s at most, and 3600 s are asked for",
            ),
            (
                json!({"use_csr_sans": true}),
                "takes the names from the CSR",
            ),
            (json!({"no_store": false}), "`no_store=true`"),
            (
                json!({"generate_lease": true, "no_store": false}),
                "`generate_lease=false`",
            ),
        ] {
            let mut role = role();
            for (name, value) in change.as_object().unwrap() {
                role[name] = value.clone();
            }
            vault.write("pki/roles/mesh-dp", role).await.unwrap();
            let report = issuer.check().await.unwrap();
            assert!(
                report
                    .warnings
                    .iter()
                    .any(|warning| warning.contains(words)),
                "{report:?}"
            );
        }

        vault.delete("pki/roles/mesh-dp").await.unwrap();
        says(
            &issuer.check().await.unwrap_err(),
            ErrorKind::NotFound,
            &[
                "no role `mesh-dp` in `pki`",
                "vault write pki/roles/mesh-dp",
            ],
        );
        roles(&vault).await;

        let policy = |text: &'static str| {
            let vault = &vault;
            async move {
                vault
                    .write("sys/policies/acl/mesh", json!({"policy": text}))
                    .await
                    .unwrap()
            }
        };
        policy(r#"path "pki/roles/mesh-dp" { capabilities = ["read"] }"#).await;
        says(
            &issuer.check().await.unwrap_err(),
            ErrorKind::Denied,
            &["must grant `update` on `pki/sign/mesh-dp`"],
        );
        policy(r#"path "pki/sign/mesh-dp" { capabilities = ["update"] }"#).await;
        let report = issuer.check().await.unwrap();
        assert!(
            report.warnings[0].contains("grant `read` on `pki/roles/mesh-dp`"),
            "{report:?}"
        );

        vault.delete("sys/mounts/pki").await.unwrap();
        says(
            &issuer.check().await.unwrap_err(),
            ErrorKind::NotFound,
            &[
                "no PKI engine at `pki`",
                "vault secrets enable -path=pki pki",
            ],
        );
        mount(&vault, "pki").await;
        roles(&vault).await;
        says(
            &issuer.check().await.unwrap_err(),
            ErrorKind::InvalidConfig,
            &["has no CA yet"],
        );
    }

    /// Does what the command does that a message shows: it adds a rule to a policy.
    async fn run_policy_command(vault: &Vault, text: &str) {
        let (_, command) = text.split_once("`(vault policy read ").unwrap();
        let (command, _) = command.split_once('`').unwrap();
        let (name, command) = command.split_once("; echo '").unwrap();
        let (rule, rest) = command.split_once("') | ").unwrap();
        assert_eq!(rest, format!("vault policy write {name} -"));
        let path = format!("sys/policies/acl/{name}");
        let policy = vault.read(&path).await.unwrap();
        let policy = policy["data"]["policy"].as_str().unwrap();
        let policy = json!({"policy": format!("{policy}\n{rule}\n")});
        vault.write(&path, policy).await.unwrap();
    }

    /// A right that is missing is granted by the command of the report, one after the other.
    #[tokio::test]
    async fn of_policies_with_one_command_for_each_right() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let none = r#"path "cubbyhole/mine" { capabilities = ["read"] }"#;
        vault
            .write("sys/policies/acl/mesh", json!({"policy": none}))
            .await
            .unwrap();
        let periodic = token(&vault, json!({"period": "24h"})).await;
        let store = secrets(&[("vault-token", &periodic)]).await;
        let issuer = issuer(settings(vault.address(), token_auth()), &store);
        let error = issuer.check().await.unwrap_err().to_string();
        assert_eq!(error.matches("`(vault policy read mesh; ").count(), 2);
        run_policy_command(&vault, &error).await;
        let report = issuer.check().await.unwrap();
        let text = report.warnings.join("\n");
        assert!(
            text.contains("grant `read` on `pki/roles/mesh-dp`"),
            "{text}"
        );
        run_policy_command(&vault, &text).await;
        assert_eq!(issuer.check().await.unwrap().warnings, [""; 0]);
        let kept = vault.read("sys/policies/acl/mesh").await.unwrap();
        let kept = kept["data"]["policy"].as_str().unwrap();
        assert!(kept.contains("cubbyhole/mine"), "{kept}");
    }

    /// The parameters of the command that a message shows.
    fn parameters(text: &str) -> serde_json::Value {
        let (_, command) = text.split_once("`vault patch pki/roles/mesh-dp ").unwrap();
        let command = command.split('`').next().unwrap();
        let parameter = |one: &str| {
            let (name, value) = one.split_once('=').unwrap();
            (name.to_owned(), json!(value.trim_matches('\'')))
        };
        command.split(' ').map(parameter).collect()
    }

    /// What a tutorial says, and nothing about SPIFFE.
    #[tokio::test]
    async fn of_everything_at_once_with_commands_that_repair_it() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let role = json!({
            "allowed_domains": "mesh.example", "allow_subdomains": true, "max_ttl": "24h", "key_usage": "",
            "client_flag": false,
        });
        vault.delete("pki/roles/mesh-dp").await.unwrap();
        vault.write("pki/roles/mesh-dp", role).await.unwrap();
        let policy = r#"path "pki/roles/mesh-dp" { capabilities = ["read"] }"#;
        vault
            .write("sys/policies/acl/mesh", json!({"policy": policy}))
            .await
            .unwrap();
        let issuer = with_token(&vault).await;
        let error = issuer.check().await.unwrap_err();
        says(
            &error,
            ErrorKind::Denied,
            &[
                "2 problems: (1) ",
                "One command adds it to the token's policy `mesh`: ",
                "add `spiffe://example.org/*` to its `allowed_uri_sans`",
                "set `require_cn=false`",
                "lack the key usage `DigitalSignature`",
                "set `client_flag=true`",
                "set `key_type=any`",
                // It will be regretted as well.
                "`use_csr_sans=false`",
                "`no_store=true`",
                "has a maximum lifetime",
            ],
        );
        let repair = parameters(&error.to_string());
        vault.patch("pki/roles/mesh-dp", repair).await.unwrap();
        run_policy_command(&vault, &error.to_string()).await;
        issuer.check().await.unwrap();
        issuer.issue(&spec(), &*clock()).await.unwrap();
        let kept = vault.read("pki/roles/mesh-dp").await.unwrap();
        assert_eq!(kept["data"]["allowed_domains"], json!(["mesh.example"]));
    }

    #[tokio::test]
    async fn of_what_a_signature_has_disproved() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let issuer = with_token(&vault).await;
        issuer.issue(&spec(), &*clock()).await.unwrap();
        let patch = json!({"client_flag": false});
        vault.patch("pki/roles/mesh-dp", patch).await.unwrap();
        let warnings = issuer.check().await.unwrap().warnings;
        assert!(
            warnings[0].contains("a certificate was issued since the last one")
                && warnings[0].contains("set `client_flag=true`"),
            "{warnings:?}"
        );
        // What is signed but refused afterwards proves nothing.
        issuer.issue(&spec(), &*clock()).await.unwrap_err();
        issuer.check().await.unwrap_err();
        // A server that is away is no conclusion.
        let patch = json!({"client_flag": true});
        vault.patch("pki/roles/mesh-dp", patch).await.unwrap();
        issuer.issue(&spec(), &*clock()).await.unwrap();
        vault.seal().await.unwrap();
        issuer.check().await.unwrap_err();
    }

    /// Vault leaves the extension out where the role lists no usage, and Envoy refuses such leaves.
    #[tokio::test]
    async fn of_a_role_without_key_usages() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let patch = json!({"key_usage": ""});
        vault.patch("pki/roles/mesh-dp", patch).await.unwrap();
        let issuer = with_token(&vault).await;
        says(
            &issuer.check().await.unwrap_err(),
            ErrorKind::Denied,
            &[
                "lack the key usage `DigitalSignature`",
                "key_usage=DigitalSignature,KeyEncipherment",
            ],
        );
        says(
            &issuer.issue(&spec(), &*clock()).await.unwrap_err(),
            ErrorKind::BadResponse,
            &["key usage", "`key_usage` of a role of Vault"],
        );
    }

    /// A CA with its key and its root, as an operator imports it.
    async fn give_ca(vault: &Vault, issuing: &TestCa, root: &TestCa) {
        let key = issuing.key_pem().unwrap();
        let bundle = format!("{}{}{key}", issuing.pem(), root.pem());
        vault
            .write("pki/config/ca", json!({"pem_bundle": bundle}))
            .await
            .unwrap();
    }

    /// Several enterprise CAs mark the policies of their certificates as critical.
    #[tokio::test]
    async fn of_a_ca_with_critical_policies() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        mount(&vault, "pki").await;
        roles(&vault).await;
        let now = meshca_core::Clock::now(&*clock());
        let root = TestCa::root("Root", now).unwrap();
        let options = TestCaOptions::new("Issuing CA", now);
        let issuing = root
            .intermediate_with(options.with_critical_policies())
            .unwrap();
        give_ca(&vault, &issuing, &root).await;
        let issuer = with_token(&vault).await;
        issuer.check().await.unwrap();
        let identity = issuer.issue(&spec(), &*clock()).await.unwrap();
        assert_eq!(
            identity.certificate().path()[1..],
            ["CN=Issuing CA", "CN=Root"]
        );
    }

    /// A signature proves nothing once a request has failed after it: neither at Vault, nor when its answer was verified.
    #[tokio::test]
    async fn of_what_failed_after_the_last_signature() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let issuer = with_token(&vault).await;
        for (change, back) in [
            (
                json!({"allowed_uri_sans": "spiffe://other.example/*"}),
                role(),
            ),
            (json!({"client_flag": false}), role()),
        ] {
            issuer.issue(&spec(), &*clock()).await.unwrap();
            vault.patch("pki/roles/mesh-dp", change).await.unwrap();
            issuer.issue(&spec(), &*clock()).await.unwrap_err();
            issuer.check().await.unwrap_err();
            vault.write("pki/roles/mesh-dp", back).await.unwrap();
        }
    }

    #[tokio::test]
    async fn of_a_ca_that_no_peer_will_take() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        mount(&vault, "pki").await;
        roles(&vault).await;
        let now = meshca_core::Clock::now(&*clock());
        let root = TestCa::root("Root", now).unwrap();
        let day = std::time::Duration::from_secs(24 * 3600);
        let ending = TestCaOptions::new("Issuing CA", now)
            .with_validity(now - day, now + day * 20)
            .with_path_len(0);
        let ending = root.intermediate_with(ending).unwrap();
        give_ca(&vault, &ending, &root).await;
        let store =
            secrets(&[("vault-token", &token(&vault, json!({"period": "1h"})).await)]).await;
        let settings = |lifetime| settings(vault.address(), token_auth()).with_lifetime(lifetime);
        let leaves = issuer(settings(day), &store);
        let warnings = leaves.check().await.unwrap().warnings;
        let [warning] = warnings.as_slice() else {
            panic!("{warnings:?}")
        };
        assert!(
            warning.starts_with("the CA `CN=Issuing CA` ends in 19 days. Make the next one: `vault write pki/intermediate/generate/internal"),
            "{warning}"
        );
        let warnings = issuer(settings(day * 30), &store)
            .check()
            .await
            .unwrap()
            .warnings;
        assert!(
            warnings[0].contains("ends in 479 h, and certificates for 720 h are asked for"),
            "{warnings:?}"
        );
        let cas = issuer(settings(day).with_intermediates(true), &store);
        says(
            &cas.check().await.unwrap_err(),
            ErrorKind::InvalidConfig,
            &[
                "the CA `CN=Issuing CA` cannot be used",
                "may have 0 CAs below it, and 1 are needed",
                "vault write pki/intermediate/generate/internal",
            ],
        );
    }

    #[tokio::test]
    async fn of_intermediates() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        // The role does not matter then.
        vault.delete("pki/roles/mesh-dp").await.unwrap();
        let store = secrets(&[("vault-token", &token(&vault, json!({})).await)]).await;
        let issuer = issuer(
            settings(vault.address(), token_auth()).with_intermediates(true),
            &store,
        );
        issuer.check().await.unwrap();
        let none = json!({"policy": "path \"nothing\" { capabilities = [\"read\"] }"});
        vault.write("sys/policies/acl/mesh", none).await.unwrap();
        says(
            &issuer.check().await.unwrap_err(),
            ErrorKind::Denied,
            &["must grant `update` on `pki/root/sign-intermediate`"],
        );
    }

    #[tokio::test]
    async fn of_the_server() {
        needs!(Vault::program());
        let mut vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let issuer = with_token(&vault).await;
        vault.seal().await.unwrap();
        says(
            &issuer.check().await.unwrap_err(),
            ErrorKind::Unavailable,
            &["is sealed", "vault operator unseal"],
        );
        vault.kill();
        says(
            &issuer.check().await.unwrap_err(),
            ErrorKind::Unavailable,
            &["cannot connect", "connection refused"],
        );
        vault.restart().await.unwrap();
        issuer.check().await.unwrap();
    }

    #[tokio::test]
    async fn of_logins() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let check = async |auth: VaultAuth, values: &[(&str, &str)]| {
            let store = secrets(values).await;
            issuer(settings(vault.address(), auth), &store)
                .check()
                .await
                .unwrap_err()
        };
        says(
            &check(token_auth(), &[("vault-token", "hvs.wrong")]).await,
            ErrorKind::Unauthenticated,
            &[
                "does not know the token in secret vault-token",
                "put a new one there",
            ],
        );
        says(
            &check(token_auth(), &[]).await,
            ErrorKind::NotFound,
            &["vault-token", "auth.token"],
        );
        says(
            &check(token_auth(), &[("vault-token", "hvs.a\nb")]).await,
            ErrorKind::InvalidConfig,
            &["line break", "secret vault-token"],
        );
        let secret_id = DataSource::Secret("secret-id".to_owned());
        let auth = VaultAuth::AppRole(meshca_core::resource::AppRoleAuth::new("nobody", secret_id));
        let wrong = [("secret-id", "not-a-secret-id")];
        says(
            &check(auth.clone(), &wrong).await,
            ErrorKind::Unauthenticated,
            &["auth/approle", "Is the auth method enabled there?"],
        );
        vault
            .write("sys/auth/approle", json!({"type": "approle"}))
            .await
            .unwrap();
        let error = check(auth, &wrong).await;
        says(
            &error,
            ErrorKind::Unauthenticated,
            &["auth/approle", "is the secret ID one of it"],
        );
        assert!(!error.to_string().contains("not-a-secret-id"));
    }

    #[tokio::test]
    async fn of_tls() {
        needs!(Vault::program());
        let vault = Vault::start_with(VaultOptions::new().with_tls())
            .await
            .unwrap();
        set_up(&vault, "ec").await;
        let other = TestCa::root("Other", std::time::SystemTime::UNIX_EPOCH).unwrap();
        let token = token(&vault, json!({})).await;
        let store = secrets(&[
            ("vault-token", &token),
            ("right", vault.ca_pem().unwrap()),
            ("wrong", &other.chain_pem()),
            ("none", "hello"),
        ])
        .await;
        let with = |address: &str, ca: Option<&str>, change: &dyn Fn(&mut VaultTls)| {
            let mut conf = VaultConf::new(address, ROLE, token_auth());
            let mut tls = VaultTls::default();
            tls.ca_cert = ca.map(|name| DataSource::Secret(name.to_owned()));
            change(&mut tls);
            conf.tls = Some(tls);
            issuer(VaultSettings::new(conf, domain()), &store)
        };
        let plain = |_: &mut VaultTls| {};
        let address = vault.address();
        with(address, Some("right"), &plain).check().await.unwrap();
        for ca in [Some("wrong"), None] {
            says(
                &with(address, ca, &plain).check().await.unwrap_err(),
                ErrorKind::InvalidConfig,
                &["not from a CA that is trusted", "`tls.caCert` must hold"],
            );
        }
        says(
            &with(address, Some("none"), &plain)
                .check()
                .await
                .unwrap_err(),
            ErrorKind::InvalidConfig,
            &["`tls.caCert`", "PEM"],
        );
        let elsewhere = |tls: &mut VaultTls| tls.server_name = Some("vault.example".to_owned());
        says(
            &with(address, Some("right"), &elsewhere)
                .check()
                .await
                .unwrap_err(),
            ErrorKind::InvalidConfig,
            &["for another name", "`tls.serverName`"],
        );
        let localhost = |tls: &mut VaultTls| tls.server_name = Some("localhost".to_owned());
        with(address, Some("right"), &localhost)
            .check()
            .await
            .unwrap();
        let skip = |tls: &mut VaultTls| tls.skip_verify = true;
        let report = with(address, None, &skip).check().await.unwrap();
        assert!(
            report.warnings.iter().any(|it| it.contains("skipVerify")),
            "{report:?}"
        );

        // One who speaks TLS to a server that does not, and the other way round.
        let cleartext = Vault::start().await.unwrap();
        let https = cleartext.address().replace("http://", "https://");
        says(
            &with(&https, Some("right"), &plain)
                .check()
                .await
                .unwrap_err(),
            ErrorKind::InvalidConfig,
            &["does not speak TLS"],
        );
        let http = address.replace("https://", "http://");
        says(
            &with(&http, None, &plain).check().await.unwrap_err(),
            ErrorKind::InvalidConfig,
            &[
                "is neither Vault nor OpenBao",
                "with `https://` where it speaks TLS",
            ],
        );

        // A CA that is replaced in the store is picked up by an issuer that is there already.
        let issuer = with(address, Some("wrong"), &plain);
        issuer.check().await.unwrap_err();
        put(&store, "wrong", vault.ca_pem().unwrap()).await;
        issuer.check().await.unwrap();
    }

    #[tokio::test]
    async fn of_a_token_that_lives_for_ever() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let periodic = token(&vault, json!({"period": "24h"})).await;
        let store = secrets(&[("vault-token", &periodic)]).await;
        let issuer = issuer(settings(vault.address(), token_auth()), &store);
        assert_eq!(issuer.check().await.unwrap().warnings, [""; 0]);

        let ending = json!({"common_name": "Ending root", "key_type": "ec", "ttl": "720h"});
        vault
            .write("pki/root/rotate/internal", ending)
            .await
            .unwrap();
        let report = issuer.check().await.unwrap();
        assert!(
            report.warnings.len() == 1
                && report.warnings[0].contains("the root `CN=Ending root` ends in 29 days")
                && report.warnings[0].contains("vault write pki/root/rotate/internal"),
            "{report:?}"
        );
    }

    #[tokio::test]
    async fn of_settings() {
        let store = secrets(&[]).await;
        for (change, words) in [
            (json!({"address": "vault.example"}), "is no URL"),
            (
                json!({"address": "ftp://vault.example"}),
                "neither `https://` nor `http://`",
            ),
            (
                json!({"address": "https://me:pass@vault.example"}),
                "user name or password",
            ),
            (json!({"namespace": "a\nb"}), "`namespace`"),
            (json!({"serverName": "not a name"}), "`tls.serverName`"),
        ] {
            let text = |name: &str| change[name].as_str().map(str::to_owned);
            let address = text("address").unwrap_or("https://vault.example".to_owned());
            let mut conf = VaultConf::new(address, ROLE, token_auth());
            conf.namespace = text("namespace");
            let mut tls = VaultTls::default();
            tls.server_name = text("serverName");
            conf.tls = Some(tls);
            let settings = VaultSettings::new(conf, domain());
            let made = meshca_vault::VaultIssuer::new(settings, sources(&store), clock());
            says(&made.unwrap_err(), ErrorKind::InvalidConfig, &[words]);
        }
    }
}
