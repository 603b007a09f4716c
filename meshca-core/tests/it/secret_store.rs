//! What every secret store must do, run against the ones of this crate.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;

use meshca_core::secret::{
    DirSecretStore, Expect, MAX_SECRET_SIZE, MemorySecretStore, SecretKey, SecretStore,
    SecretStoreExt, SecretValue, SourceReader, SourceRef, StoredSecret, Version,
};
use meshca_core::{Error, ErrorKind};
use proptest::prelude::*;

fn key(name: &str) -> SecretKey {
    SecretKey::new("default", name).unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

/// Every store of this crate, and what must outlive it.
fn stores() -> Vec<(Arc<dyn SecretStore>, Option<tempfile::TempDir>)> {
    let temp = tempfile::tempdir().unwrap();
    let dir = DirSecretStore::open(temp.path().join("secrets")).unwrap();
    vec![
        (Arc::new(MemorySecretStore::new()), None),
        (Arc::new(dir), Some(temp)),
    ]
}

/// One thread per store; each makes a value of its own for every round's secret. Returns, for every
/// round, all that the threads got and then read.
fn race_to_create(
    stores: &[Arc<dyn SecretStore>],
    contender: &str,
    rounds: usize,
) -> Vec<BTreeSet<String>> {
    // A thread that panicked would keep the others waiting here, so failures are results as well.
    let barrier = Barrier::new(stores.len());
    let contend = |number: usize| {
        let store = &stores[number];
        let create = async |key: &SecretKey| {
            let make = || Ok(format!("{contender}-{number}").as_str().into());
            let got = store.get_or_create(key, make).await?;
            Ok::<_, Error>((Some(got), store.get(key).await?))
        };
        let text = |stored: Option<StoredSecret>| match stored {
            Some(stored) => String::from_utf8_lossy(stored.value.expose()).into_owned(),
            None => "nothing".to_owned(),
        };
        let round = |round| {
            barrier.wait();
            match block_on(create(&key(&format!("round-{round}")))) {
                Ok((got, read)) => [text(got), text(read)],
                Err(error) => [error.to_string(), format!("{error:?}")],
            }
        };
        (0..rounds).map(round).collect::<Vec<_>>()
    };
    let contend = &contend;
    let seen: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..stores.len())
            .map(|number| scope.spawn(move || contend(number)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    (0..rounds)
        .map(|round| {
            seen.iter()
                .flat_map(|values| values[round].clone())
                .collect()
        })
        .collect()
}

#[test]
fn racing_creators_agree() {
    for (store, _temp) in stores() {
        for round in race_to_create(&vec![store; 16], "thread", 50) {
            assert_eq!(round.len(), 1, "{round:?}");
        }
    }
}

#[test]
fn racing_stores_on_one_directory_agree() {
    let temp = tempfile::tempdir().unwrap();
    let open = |_| Arc::new(DirSecretStore::open(temp.path()).unwrap()) as Arc<dyn SecretStore>;
    let stores: Vec<_> = (0..16).map(open).collect();
    for round in race_to_create(&stores, "store", 50) {
        assert_eq!(round.len(), 1, "{round:?}");
    }
}

async fn increment(store: &dyn SecretStore, key: &SecretKey) {
    loop {
        let stored = store.get(key).await.unwrap().unwrap();
        let count: u64 = stored.value.expose_str().unwrap().parse().unwrap();
        let next = (count + 1).to_string().as_str().into();
        match store.put(key, next, Expect::Version(stored.version)).await {
            Ok(_) => return,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
        }
    }
}

async fn count(store: &dyn SecretStore, key: &SecretKey) -> u64 {
    let stored = store.get(key).await.unwrap().unwrap();
    stored.value.expose_str().unwrap().parse().unwrap()
}

#[test]
fn no_update_is_lost() {
    let counter = key("counter");
    for (store, _temp) in stores() {
        block_on(store.put(&counter, "0".into(), Expect::Absent)).unwrap();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        block_on(increment(&store, &counter));
                    }
                });
            }
        });
        assert_eq!(block_on(count(&store, &counter)), 8 * 25, "{store:?}");
    }
}

/// Tells a copy of this test binary which directory to work on; see [`another_process`].
const SHARED_DIR: &str = "MESHCA_TEST_SHARED_SECRET_DIR";
const PROCESSES: u64 = 4;
const ROUNDS: usize = 25;

/// Not a test by itself: what [`processes_share_a_directory`] runs in other processes.
#[test]
fn another_process() {
    let Some(dir) = std::env::var_os(SHARED_DIR) else {
        return;
    };
    let store: Arc<dyn SecretStore> = Arc::new(DirSecretStore::open(Path::new(&dir)).unwrap());
    let counter = key("counter");
    block_on(store.get_or_create(&counter, || Ok("0".into()))).unwrap();
    let contender = format!("process-{}", std::process::id());
    for round in race_to_create(&[store.clone(), store.clone()], &contender, ROUNDS) {
        block_on(increment(&store, &counter));
        // The first line of output belongs to the test harness, so each of ours is marked.
        println!(
            "\ncreated {}",
            round.into_iter().collect::<Vec<_>>().join(" and ")
        );
    }
}

#[test]
fn processes_share_a_directory() {
    let temp = tempfile::tempdir().unwrap();
    let processes: Vec<_> = (0..PROCESSES)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "secret_store::another_process", "--nocapture"])
                .env(SHARED_DIR, temp.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let created: BTreeSet<Vec<String>> = processes
        .into_iter()
        .map(|process| {
            let output = process.wait_with_output().unwrap();
            assert!(output.status.success());
            let text = String::from_utf8(output.stdout).unwrap();
            let created: Vec<_> = text
                .lines()
                .filter_map(|line| line.strip_prefix("created "))
                .map(str::to_owned)
                .collect();
            assert_eq!(created.len(), ROUNDS, "{text}");
            created
        })
        .collect();
    assert_eq!(
        created.len(),
        1,
        "all processes got the same values: {created:?}"
    );

    let store = DirSecretStore::open(temp.path()).unwrap();
    let increments = PROCESSES * ROUNDS as u64;
    assert_eq!(block_on(count(&store, &key("counter"))), increments);
}

/// Everything that is shown while a secret of this value is used rightly and wrongly.
async fn shown(store: &Arc<dyn SecretStore>, value: &SecretValue) -> String {
    let mut shown = Vec::new();
    let mut note = |text: String| shown.push(text);
    let token = key("token");
    let error = |error: Error| format!("{error} {error:?} {error:#?}");

    let version = store
        .put(&token, value.clone(), Expect::Absent)
        .await
        .unwrap();
    note(format!(
        "{value:?} {value:#?} {version:?} {}",
        version.as_str()
    ));
    note(format!("{:#?}", store.get(&token).await.unwrap()));
    let again = store.put(&token, value.clone(), Expect::Absent).await;
    note(error(again.unwrap_err()));
    let wrong = Expect::Version(Version::new("0"));
    note(error(
        store.put(&token, value.clone(), wrong).await.unwrap_err(),
    ));
    let large = SecretValue::new(value.expose().repeat(MAX_SECRET_SIZE / 12 + 1));
    note(error(
        store
            .put(&token, large, Expect::Version(version))
            .await
            .unwrap_err(),
    ));

    let reader = SourceReader::new(store.clone(), "default").unwrap();
    reader.read(SourceRef::Secret("token")).await.unwrap();
    let inline = SourceRef::Inline(value);
    note(format!("{store:?} {reader:#?} {inline} {inline:?}"));
    shown.join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    // Letters that no message, path or hexadecimal number is made of.
    #[test]
    fn a_secret_is_never_shown(secret in "[G-Z]{12,40}") {
        let value = SecretValue::from(secret.as_str());
        let as_list = format!("{:?}", secret.as_bytes());
        let as_list = as_list.trim_matches(['[', ']']);
        for (store, _temp) in stores() {
            let shown = block_on(shown(&store, &value));
            prop_assert!(!shown.contains(&secret), "{}", shown);
            prop_assert!(!shown.contains(as_list), "{}", shown);
        }
    }
}
