//! What goes wrong between us and a real Vault: killed, sealed, revoked, cut off, silent.

mod vault {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use meshca_core::resource::{AppRoleAuth, DataSource, VaultAuth};
    use meshca_core::{Error, ErrorKind, Issuer, IssuingCa, Observation, Proof, Retry};
    use meshca_testenv::relay::Relay;
    use meshca_testenv::servers::Vault;
    use meshca_vault::VaultIssuer;
    use serde_json::{Value, json};

    use crate::common::*;
    use meshca_testenv::needs;

    /// Longer than Vault takes, also on a busy machine, and short enough for a test that waits for it.
    const TIMEOUT: Duration = Duration::from_secs(5);
    /// For what must end at some time. It is no measure: a busy machine only makes it later.
    const GUARD: Duration = Duration::from_secs(180);

    async fn issue(issuer: &IssuingCa<VaultIssuer>) -> Result<(), Error> {
        let identity = issuer.issue(&spec(), &*clock()).await?;
        let certificate = identity.certificate();
        assert_eq!(*certificate.spiffe_id(), id());
        assert_eq!(certificate.proof(), Proof::Signatures);
        Ok(())
    }

    /// Logs in with an AppRole, so that it can log in again.
    async fn app_role(vault: &Vault) -> (VaultAuth, String) {
        vault
            .write("sys/auth/approle", json!({"type": "approle"}))
            .await
            .unwrap();
        let role = json!({"token_policies": "mesh", "token_ttl": "1h", "token_max_ttl": "24h"});
        vault
            .write("auth/approle/role/control-plane", role)
            .await
            .unwrap();
        let role_id = vault
            .read("auth/approle/role/control-plane/role-id")
            .await
            .unwrap();
        let secret = vault
            .write("auth/approle/role/control-plane/secret-id", json!({}))
            .await
            .unwrap();
        let auth = VaultAuth::AppRole(AppRoleAuth::new(
            role_id["data"]["role_id"].as_str().unwrap(),
            DataSource::Secret("secret-id".to_owned()),
        ));
        (
            auth,
            secret["data"]["secret_id"].as_str().unwrap().to_owned(),
        )
    }

    /// Has Vault write down every request.
    async fn audit(vault: &Vault, file: &Path) {
        let device = json!({"type": "file", "options": {"file_path": file}});
        vault.write("sys/audit/file", device).await.unwrap();
    }

    /// How often each path was asked for.
    fn requests(file: &Path) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for line in std::fs::read_to_string(file).unwrap().lines() {
            let entry: Value = serde_json::from_str(line).unwrap_or_default();
            if entry["type"] == "request" {
                let path = entry["request"]["path"].as_str().unwrap().to_owned();
                *counts.entry(path).or_default() += 1;
            }
        }
        counts
    }

    /// Vault answers when all are revoked. Under load it once did not within minutes, so it is asked
    /// again: what is revoked stays so.
    async fn revoke_all(vault: &Vault) {
        let path = "sys/leases/revoke-force/auth/approle/login";
        let revoked = async {
            loop {
                let once = vault.write(path, json!({}));
                if let Ok(revoked) = tokio::time::timeout(TIMEOUT * 4, once).await {
                    break revoked.unwrap();
                }
            }
        };
        tokio::time::timeout(GUARD, revoked).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_hundred_at_once_while_everything_breaks() {
        needs!(Vault::program());
        const ISSUERS: usize = 200;
        let mut vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let (auth, secret_id) = app_role(&vault).await;
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("audit.log");
        audit(&vault, &log).await;
        let relay = Relay::start(vault.socket_addr()).await.unwrap();
        let address = format!("http://{}", relay.address());
        let store = secrets(&[("secret-id", &secret_id)]).await;

        let stop = Arc::new(AtomicBool::new(false));
        let errors: Arc<Mutex<BTreeMap<ErrorKind, usize>>> = Arc::default();
        let mut signed = Vec::new();
        let mut tasks = Vec::new();
        for _ in 0..ISSUERS {
            let settings = settings(&address, auth.clone()).with_request_timeout(TIMEOUT);
            let issuer = issuer(settings, &store);
            let count = Arc::new(AtomicUsize::new(0));
            signed.push(Arc::clone(&count));
            let (stop, errors) = (Arc::clone(&stop), Arc::clone(&errors));
            tasks.push(tokio::spawn(async move {
                // As callers are told to: without it, a server that is slow once stays so, busy with what its clients
                // have given up.
                let mut backoff = Duration::from_millis(200);
                while !stop.load(Ordering::SeqCst) {
                    // Nothing hangs, and nothing is lost: each call ends, one way or the other.
                    let call = tokio::time::timeout(GUARD, issue(&issuer));
                    let wait = match call.await.expect("a call hangs") {
                        Ok(()) => {
                            count.fetch_add(1, Ordering::SeqCst);
                            backoff = Duration::from_millis(200);
                            Duration::from_millis(500)
                        }
                        Err(error) => {
                            *errors.lock().unwrap().entry(error.kind()).or_default() += 1;
                            let wait = backoff;
                            backoff = (backoff * 2).min(Duration::from_secs(4));
                            match error.retry() {
                                Retry::After(advised) => advised.min(wait),
                                _ => wait,
                            }
                        }
                    };
                    tokio::time::sleep(wait).await;
                }
            }));
        }
        let counts = || -> Vec<usize> {
            let counts = signed.iter();
            counts.map(|count| count.load(Ordering::SeqCst)).collect()
        };
        // Every issuer signs again.
        let progress = async |what: &str| {
            let before = counts();
            let recovered = async {
                while counts().iter().zip(&before).any(|(now, then)| now <= then) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(GUARD, recovered)
                .await
                .unwrap_or_else(|_| panic!("no recovery after: {what}"));
        };
        let pause = || tokio::time::sleep(Duration::from_millis(700));

        progress("the start").await;
        relay.set_latency(Duration::from_millis(50));
        progress("latency").await;
        relay.set_latency(Duration::ZERO);
        revoke_all(&vault).await;
        progress("revoked tokens").await;
        relay.reset();
        progress("reset connections").await;
        relay.reset_answers();
        pause().await;
        relay.restore();
        progress("answers that were reset").await;
        relay.go_silent();
        tokio::time::sleep(TIMEOUT + Duration::from_millis(500)).await;
        relay.restore();
        progress("silence").await;
        vault.delete("pki/roles/mesh-dp").await.unwrap();
        pause().await;
        roles(&vault).await;
        progress("a role that was deleted and restored").await;
        vault.seal().await.unwrap();
        pause().await;
        vault.unseal().await.unwrap();
        progress("sealed and unsealed").await;
        vault.kill();
        pause().await;
        vault.restart().await.unwrap();
        progress("killed and restarted").await;
        relay.cut();
        pause().await;
        relay.restore();
        progress("cut off").await;

        stop.store(true, Ordering::SeqCst);
        for task in tasks {
            task.await.unwrap();
        }
        let errors = errors.lock().unwrap().clone();
        let paths = requests(&log);
        let logins = paths.get("auth/approle/login").copied().unwrap_or_default();
        let look_ups = paths
            .get("auth/token/lookup-self")
            .copied()
            .unwrap_or_default();
        println!(
            "{} signed, errors {errors:?}, {logins} logins and {look_ups} look-ups of {ISSUERS} issuers",
            counts().iter().sum::<usize>()
        );
        // A role that is gone, an answer that is late, a server that is away; and nothing else.
        let expected = [
            ErrorKind::NotFound,
            ErrorKind::Timeout,
            ErrorKind::Unavailable,
        ];
        assert!(
            errors.keys().all(|kind| expected.contains(kind)),
            "{errors:?}"
        );
        // Once at the start and once when the tokens were revoked; again only where an answer was lost, by which a call
        // failed, or a background renewal did.
        let failed: usize = errors.values().sum();
        assert!(
            logins <= ISSUERS * 4 + failed,
            "{logins} logins, {failed} failed"
        );
        assert!(
            look_ups <= ISSUERS * 6 + failed,
            "{look_ups} look-ups, {failed} failed"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_revoked_token_is_replaced_within_the_same_call() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let (auth, secret_id) = app_role(&vault).await;
        let store = secrets(&[("secret-id", &secret_id)]).await;
        let issuer = issuer(settings(vault.address(), auth), &store);
        issue(&issuer).await.unwrap();
        for _ in 0..5 {
            revoke_all(&vault).await;
            issue(&issuer).await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_policy_that_refuses_is_not_asked_twice() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let issuer = with_token(&vault).await;
        issue(&issuer).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("audit.log");
        audit(&vault, &log).await;
        let none = json!({"policy": "path \"nothing\" { capabilities = [\"read\"] }"});
        vault.write("sys/policies/acl/mesh", none).await.unwrap();
        let error = issue(&issuer).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (ErrorKind::Denied, Retry::Never)
        );
        let text = error.to_string();
        assert!(
            text.starts_with("Vault refused to sign: a policy of the token must grant `update` on `pki/sign/mesh-dp`"),
            "{text}"
        );
        let paths = requests(&log);
        assert_eq!(paths["pki/sign/mesh-dp"], 1);
        assert_eq!(paths["auth/token/lookup-self"], 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_token_that_is_replaced_in_the_store_is_picked_up() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let first = token(&vault, json!({})).await;
        let store = secrets(&[("vault-token", &first)]).await;
        let issuer = issuer(settings(vault.address(), token_auth()), &store);
        issue(&issuer).await.unwrap();
        vault
            .write("auth/token/revoke", json!({"token": first}))
            .await
            .unwrap();
        let error = issue(&issuer).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (ErrorKind::Unauthenticated, Retry::Backoff)
        );
        assert!(!error.to_string().contains(&first));
        put(&store, "vault-token", &token(&vault, json!({})).await).await;
        // What is advised is waited for; then it works, without a restart.
        let recovered = async {
            while let Err(error) = issue(&issuer).await {
                match error.retry() {
                    Retry::After(wait) => tokio::time::sleep(wait).await,
                    _ => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), recovered)
            .await
            .unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_renewable_token_outlives_its_first_lease() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let short = token(&vault, json!({"ttl": "10s", "renewable": true})).await;
        let store = secrets(&[("vault-token", &short)]).await;
        let issuer = issuer(settings(vault.address(), token_auth()), &store);
        // Nobody asks for anything in the meantime.
        tokio::time::sleep(Duration::from_secs(13)).await;
        issue(&issuer).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lifetime_that_the_ca_does_not_reach_is_cut_and_reported() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        mount(&vault, "pki").await;
        let root = json!({"common_name": "Ending root", "key_type": "ec", "ttl": "30m"});
        vault
            .write("pki/root/generate/internal", root)
            .await
            .unwrap();
        roles(&vault).await;
        let issuer = with_token(&vault).await;
        let identity = issuer.issue(&spec(), &*clock()).await.unwrap();
        let certificate = identity.certificate();
        let lifetime = certificate
            .validity()
            .not_after()
            .duration_since(certificate.issued_at())
            .unwrap();
        assert!((1700..1800).contains(&lifetime.as_secs()), "{lifetime:?}");
        let notes: Vec<_> = certificate
            .observations()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert!(
            notes.iter().any(|note| note.contains("renew the CA")),
            "{notes:?}"
        );

        // A maximum of the role is what Vault itself reports, and does not refuse.
        let mut capped = role();
        capped["max_ttl"] = json!("5m");
        vault.write("pki/roles/mesh-dp", capped).await.unwrap();
        let identity = issuer.issue(&spec(), &*clock()).await.unwrap();
        let observations = identity.certificate().observations();
        assert!(
            observations
                .iter()
                .any(|it| matches!(it, Observation::IssuerNote(note) if note.contains("TTL"))),
            "{observations:?}"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_quota_is_reported_with_its_pause() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let issuer = with_token(&vault).await;
        issue(&issuer).await.unwrap();
        // Vault tells how long to wait where it is told to tell.
        let config = json!({"enable_rate_limit_response_headers": true});
        vault.write("sys/quotas/config", config).await.unwrap();
        let quota = json!({"rate": 1.0, "interval": "10s", "path": "pki/"});
        vault
            .write("sys/quotas/rate-limit/mesh", quota)
            .await
            .unwrap();
        let mut last = Ok(());
        for _ in 0..5 {
            last = issue(&issuer).await;
        }
        let error = last.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimited);
        assert!(
            matches!(error.retry(), Retry::After(wait) if wait <= Duration::from_secs(10)),
            "{error:?}"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_root_that_is_added_is_trusted_before_it_signs() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let store = secrets(&[("vault-token", &token(&vault, json!({})).await)]).await;
        let settings =
            settings(vault.address(), token_auth()).with_trust_refresh(Duration::from_millis(200));
        let issuer = issuer(settings, &store);
        assert_eq!(issuer.trust(&*clock()).await.unwrap().roots().len(), 1);
        let next = json!({"common_name": "Next root", "issuer_name": "next", "key_type": "ec"});
        vault.write("pki/root/rotate/internal", next).await.unwrap();
        // From memory first, and asked for when the interval has passed.
        let noticed = async {
            while issuer.trust(&*clock()).await.unwrap().roots().len() < 2 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), noticed)
            .await
            .unwrap();
        vault
            .write("pki/root/replace", json!({"default": "next"}))
            .await
            .unwrap();
        issue(&issuer).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_issuer_of_a_mount_can_be_pinned() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let next = json!({"common_name": "Next root", "issuer_name": "next", "key_type": "ec"});
        vault.write("pki/root/rotate/internal", next).await.unwrap();
        let policy = format!(
            "{POLICY}\npath \"pki/issuer/next/sign/mesh-dp\" {{ capabilities = [\"update\"] }}"
        );
        vault
            .write("sys/policies/acl/mesh", json!({"policy": policy}))
            .await
            .unwrap();
        let store = secrets(&[("vault-token", &token(&vault, json!({})).await)]).await;
        let mut conf = meshca_core::resource::VaultConf::new(vault.address(), ROLE, token_auth());
        for (pinned, root) in [(Some("next"), "CN=Next root"), (None, "CN=Example root")] {
            conf.issuer = pinned.map(str::to_owned);
            let issuer = issuer(
                meshca_vault::VaultSettings::new(conf.clone(), domain()),
                &store,
            );
            let identity = issuer.issue(&spec(), &*clock()).await.unwrap();
            assert_eq!(identity.certificate().root().subject(), root);
            issuer.check().await.unwrap();
        }
        conf.issuer = Some("gone".to_owned());
        let issuer = issuer(meshca_vault::VaultSettings::new(conf, domain()), &store);
        let error = issuer.check().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(
            error.to_string().contains("`pki/issuer/gone/sign/mesh-dp`"),
            "{error}"
        );
    }

    /// Hardened: a token that may sign, and not even look itself up.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_token_without_the_default_policy_works_and_is_not_thrown_away() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        let hardened = token(&vault, json!({"no_default_policy": true})).await;
        let store = secrets(&[("vault-token", &hardened)]).await;
        let issuer = issuer(settings(vault.address(), token_auth()), &store);
        issue(&issuer).await.unwrap();
        let none = json!({"policy": "path \"nothing\" { capabilities = [\"read\"] }"});
        vault.write("sys/policies/acl/mesh", none).await.unwrap();
        for _ in 0..5 {
            let error = issue(&issuer).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        }
        roles(&vault).await;
        issue(&issuer).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_order_of_roots_stays() {
        needs!(Vault::program());
        let vault = Vault::start().await.unwrap();
        set_up(&vault, "ec").await;
        for number in 0..5 {
            let root =
                json!({"common_name": format!("Root {number}"), "key_type": "ec", "ttl": "87600h"});
            vault.write("pki/root/rotate/internal", root).await.unwrap();
        }
        let issuer = with_token(&vault).await;
        let bundle = issuer.trust_bundle().await.unwrap();
        assert_eq!(bundle.roots().len(), 6);
        for _ in 0..20 {
            assert_eq!(issuer.trust_bundle().await.unwrap(), bundle);
        }
    }
}
