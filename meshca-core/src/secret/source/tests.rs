use std::fs;
use std::path::PathBuf;

use super::*;
use crate::secret::{Expect, MAX_SECRET_SIZE, MemorySecretStore};

/// Set wherever tests run, and not empty.
const SET: &str = "PATH";
const UNSET: &str = "MESHCA_TEST_THAT_NOBODY_SETS";

async fn reader() -> SourceReader {
    let store = MemorySecretStore::new();
    for (mesh, name, value) in [
        ("default", "token", "s.default"),
        ("other", "token", "s.other"),
        ("default", "empty", ""),
    ] {
        let key = SecretKey::new(mesh, name).unwrap();
        store.put(&key, value.into(), Expect::Absent).await.unwrap();
    }
    SourceReader::new(Arc::new(store), "default").unwrap()
}

#[tokio::test]
async fn both_kinds_of_source_are_read() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("ca.pem");
    fs::write(&path, "from a file\n").unwrap();
    let variable = std::env::var(SET).unwrap();
    let inline = SecretValue::from("inline");
    let reader = reader().await;

    let classic = [
        (DataSource::Secret("token".into()), "s.default"),
        (DataSource::File(path.clone()), "from a file\n"),
        (DataSource::Inline(inline.clone()), "inline"),
        (DataSource::InlineString(inline.clone()), "inline"),
    ];
    for (source, expected) in classic {
        let value = reader.read(&source).await.unwrap();
        assert_eq!(value.expose_str(), Some(expected), "{source:?}");
    }
    let modern = [
        (SecureDataSource::Secret("token".into()), "s.default"),
        (SecureDataSource::File(path), "from a file\n"),
        (SecureDataSource::EnvVar(SET.into()), variable.as_str()),
        (SecureDataSource::InsecureInline(inline), "inline"),
    ];
    for (source, expected) in modern {
        let value = reader.read(&source).await.unwrap();
        assert_eq!(value.expose_str(), Some(expected), "{source:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_an_error_that_names_the_source() {
    let temp = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = temp.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let empty = file("empty.pem", b"");
    let large = file("large.pem", &vec![b'x'; MAX_SECRET_SIZE + 1]);
    let missing = temp.path().join("missing.pem");
    let climbing = temp.path().join("folder/../empty.pem");
    let through_a_file = empty.join("below.pem");
    let relative = PathBuf::from("ca.pem");
    let nothing = SecretValue::from("");

    use ErrorKind::{InvalidConfig, NotFound};
    let cases = [
        (SourceRef::Secret("unknown"), NotFound, "`default/unknown`"),
        (
            SourceRef::Secret("../other/token"),
            InvalidConfig,
            "../other/token",
        ),
        (SourceRef::Secret("empty"), InvalidConfig, "secret empty"),
        (SourceRef::File(&missing), NotFound, "missing.pem"),
        (SourceRef::File(&empty), InvalidConfig, "empty.pem"),
        (SourceRef::File(&large), InvalidConfig, "large.pem"),
        (
            SourceRef::File(&climbing),
            InvalidConfig,
            "folder/../empty.pem",
        ),
        (SourceRef::File(&through_a_file), InvalidConfig, "below.pem"),
        (SourceRef::File(&relative), InvalidConfig, "ca.pem"),
        (SourceRef::File(temp.path()), InvalidConfig, "regular file"),
        (SourceRef::EnvVar(UNSET), NotFound, UNSET),
        (SourceRef::EnvVar(""), NotFound, "variable"),
        (SourceRef::EnvVar("A=B"), NotFound, "A=B"),
        (SourceRef::Inline(&nothing), InvalidConfig, "inline value"),
    ];
    let reader = reader().await;
    for (source, kind, named) in cases {
        let error = reader.read(source).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{source}: {error}");
        assert!(error.to_string().contains(named), "{source}: {error}");
    }
}

#[tokio::test]
async fn a_missing_secret_says_how_to_create_it() {
    let error = reader()
        .await
        .read(SourceRef::Secret("vault-token"))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no secret `default/vault-token`: create a secret named `vault-token` in mesh `default`, \
         or correct the name in the resource"
    );
}

#[tokio::test]
async fn local_sources_can_be_refused() {
    let reader = reader().await.with_local_sources(LocalSources::Refused);
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("ca.pem");
    fs::write(&path, "a file of the control plane").unwrap();
    let missing = temp.path().join("missing.pem");

    // The same answer whether or not there is such a file: nobody can probe for one.
    for source in [
        SourceRef::File(&path),
        SourceRef::File(&missing),
        SourceRef::EnvVar(SET),
        SourceRef::EnvVar(UNSET),
    ] {
        let error = reader.read(source).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{source}: {error}");
    }
    let value = SecretValue::from("x");
    for source in [SourceRef::Secret("token"), SourceRef::Inline(&value)] {
        reader.read(source).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_listed_is_read_and_nothing_else() {
    let temp = tempfile::tempdir().unwrap();
    let (listed, other) = (temp.path().join("listed"), temp.path().join("listed-not"));
    for folder in [&listed, &other, &listed.join("below")] {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("token"), "s.file").unwrap();
    }
    let local = ListedSources::new().with_folder(&listed).with_variable(SET);
    let reader = reader().await;
    let reader = reader.with_local_sources(LocalSources::Listed(local));
    let (missing, below) = (listed.join("missing"), listed.join("below/token"));
    for (path, expected) in [
        (listed.join("token"), None),
        (below, None),
        (missing, Some(ErrorKind::NotFound)),
        (other.join("token"), Some(ErrorKind::Denied)),
        // The same answer where there is no such file.
        (other.join("missing"), Some(ErrorKind::Denied)),
        (listed.join("../listed-not/token"), Some(ErrorKind::Denied)),
        (PathBuf::from("token"), Some(ErrorKind::Denied)),
        (PathBuf::from("/"), Some(ErrorKind::Denied)),
    ] {
        let result = reader.read(SourceRef::File(&path)).await;
        let kind = result.map(drop).map_err(|error| error.kind()).err();
        assert_eq!(kind, expected, "{}", path.display());
    }
    reader.read(SourceRef::EnvVar(SET)).await.unwrap();
    for refused in [UNSET, "HOME", "path", ""] {
        let error = reader.read(SourceRef::EnvVar(refused)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{refused}: {error}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_leads_no_further_than_its_listed_folder() {
    let temp = tempfile::tempdir().unwrap();
    let (listed, other) = (temp.path().join("listed"), temp.path().join("other"));
    for folder in [&listed, &other] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("token"), "s.file").unwrap();
    }
    let link = |target: &str, path: PathBuf| std::os::unix::fs::symlink(target, path);
    link("token", listed.join("inside")).unwrap();
    link("../other/token", listed.join("outside")).unwrap();
    link("../other", listed.join("folder")).unwrap();
    // The folder itself may be a link.
    let mounted = temp.path().join("mounted");
    link("listed", mounted.clone()).unwrap();
    let local = ListedSources::new()
        .with_folder(&listed)
        .with_folder(&mounted);
    let reader = reader().await;
    let reader = reader.with_local_sources(LocalSources::Listed(local));
    for (path, read) in [
        (listed.join("inside"), true),
        (mounted.join("inside"), true),
        (listed.join("outside"), false),
        (listed.join("folder/token"), false),
        (mounted.join("outside"), false),
    ] {
        let result = reader.read(SourceRef::File(&path)).await;
        assert_eq!(result.is_ok(), read, "{}: {result:?}", path.display());
    }
}

#[test]
fn who_lends_the_identity_of_the_control_plane() {
    for (local, lent) in [
        (LocalSources::Allowed, true),
        (LocalSources::Refused, false),
        (LocalSources::Listed(ListedSources::new()), false),
        (
            LocalSources::Listed(ListedSources::new().with_identity()),
            true,
        ),
    ] {
        assert_eq!(local.lend_identity(), lent, "{local:?}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_may_be_mounted_as_kubernetes_does() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("..2025_01_01");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("tls.key"), "mounted").unwrap();
    std::os::unix::fs::symlink("..2025_01_01", temp.path().join("..data")).unwrap();
    let path = temp.path().join("tls.key");
    std::os::unix::fs::symlink("..data/tls.key", &path).unwrap();

    let value = reader().await.read(SourceRef::File(&path)).await.unwrap();
    assert_eq!(value.expose(), b"mounted");
}

#[test]
fn a_reader_needs_a_mesh_that_can_have_secrets() {
    let store: Arc<dyn SecretStore> = Arc::new(MemorySecretStore::new());
    let error = SourceReader::new(store, "../default").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
}
