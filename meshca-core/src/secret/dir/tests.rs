use std::fs;

use tempfile::TempDir;

use super::*;
use crate::secret::MAX_SECRET_SIZE;

fn store() -> (TempDir, PathBuf, DirSecretStore) {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("state/secrets");
    let store = DirSecretStore::open(&root).unwrap();
    (temp, root, store)
}

fn key(name: &str) -> SecretKey {
    SecretKey::new("default", name).unwrap()
}

fn value(store: &DirSecretStore, name: &str) -> Option<SecretValue> {
    store.read(&key(name)).unwrap().map(|stored| stored.value)
}

fn put(store: &DirSecretStore, name: &str, value: &str, expect: Expect) -> Result<Version> {
    store.write(&key(name), &value.into(), &expect)
}

#[test]
fn a_second_store_on_the_directory_agrees_on_content_and_versions() {
    let (_temp, root, first) = store();
    let version = put(&first, "token", "one", Expect::Absent).unwrap();
    let second = DirSecretStore::open(&root).unwrap();
    assert_eq!(
        second.read(&key("token")).unwrap().unwrap().version,
        version
    );
    put(&second, "token", "two", Expect::Version(version.clone())).unwrap();
    let error = put(&first, "token", "three", Expect::Version(version)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(value(&first, "token").unwrap().expose(), b"two");
}

#[test]
fn versions_tell_nothing_about_values() {
    let (_temp, _, first) = store();
    let (_temp, _, second) = store();
    let version = put(&first, "a", "password", Expect::Absent).unwrap();
    assert_ne!(
        version,
        put(&first, "b", "password", Expect::Absent).unwrap()
    );
    assert_ne!(
        version,
        put(&second, "a", "password", Expect::Absent).unwrap()
    );
}

#[test]
fn a_secret_put_there_by_hand_is_read() {
    let (_temp, root, store) = store();
    put(&store, "other", "x", Expect::Absent).unwrap();
    file::replace(&root.join("default"), "by-hand", b"hello\n").unwrap();
    assert_eq!(value(&store, "by-hand").unwrap().expose(), b"hello\n");
}

#[test]
fn a_refused_write_changes_nothing() {
    let (_temp, root, store) = store();
    let before = entries(&root);
    let error = put(&store, "token", "x", Expect::Version(Version::new("1"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let error = store.remove(&key("token"), &Version::new("1")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let large = "x".repeat(MAX_SECRET_SIZE + 1);
    let error = put(&store, "token", &large, Expect::Absent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert_eq!(entries(&root), before);
}

#[test]
fn leftovers_of_a_crash_are_ignored_and_removed() {
    let (_temp, root, store) = store();
    put(&store, "token", "whole", Expect::Absent).unwrap();
    let leftovers = [root.join(".tmp"), root.join("default/.tmp")];

    for leftover in &leftovers {
        fs::write(leftover, "hal").unwrap();
    }
    assert_eq!(value(&store, "token").unwrap().expose(), b"whole");
    put(&store, "second", "also whole", Expect::Absent).unwrap();
    assert!(!leftovers[1].exists(), "the next write removes it");

    fs::write(&leftovers[1], "hal").unwrap();
    DirSecretStore::open(&root).unwrap();
    assert!(
        leftovers.iter().all(|leftover| !leftover.exists()),
        "and so does opening"
    );
    assert_eq!(value(&store, "token").unwrap().expose(), b"whole");
}

#[test]
fn what_a_writer_is_about_to_store_is_not_a_leftover() {
    let (_temp, root, store) = store();
    put(&store, "token", "x", Expect::Absent).unwrap();
    let mesh = root.join("default");
    let lock = file::lock(&mesh).unwrap();
    fs::write(mesh.join(".tmp"), "in progress").unwrap();
    DirSecretStore::open(&root).unwrap();
    assert!(mesh.join(".tmp").exists());
    drop(lock);
    DirSecretStore::open(&root).unwrap();
    assert!(!mesh.join(".tmp").exists());
}

#[test]
fn a_directory_that_vanished_is_not_an_empty_store() {
    let (_temp, root, store) = store();
    put(&store, "token", "x", Expect::Absent).unwrap();
    let elsewhere = root.with_file_name("elsewhere");
    fs::rename(&root, &elsewhere).unwrap();
    for empty_mount_point in [false, true] {
        if empty_mount_point {
            fs::create_dir(&root).unwrap();
        }
        let error = store.read(&key("token")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(
            error.to_string().contains(root.to_str().unwrap()),
            "{error}"
        );
        let error = put(&store, "token", "y", Expect::Absent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
    fs::remove_dir(&root).unwrap();
    fs::rename(&elsewhere, &root).unwrap();
    assert_eq!(value(&store, "token").unwrap().expose(), b"x");
}

#[test]
fn a_damaged_version_key_is_reported() {
    let (_temp, root, _) = store();
    fs::write(root.join(VERSION_KEY), "short").unwrap();
    let error = DirSecretStore::open(&root).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains(VERSION_KEY), "{error}");
}

#[test]
fn what_is_not_a_secret_file_or_directory_is_refused() {
    let (temp, root, store) = store();
    put(&store, "token", "x", Expect::Absent).unwrap();

    fs::create_dir(root.join("default/folder")).unwrap();
    let large = vec![b'x'; MAX_SECRET_SIZE + 1];
    file::replace(&root.join("default"), "large", &large).unwrap();
    for name in ["folder", "large"] {
        let error = store.read(&key(name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
        let error = put(&store, name, "x", Expect::Absent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{name}: {error}");
    }

    let plain = temp.path().join("plain-file");
    fs::write(&plain, "x").unwrap();
    for path in [plain.as_path(), Path::new("")] {
        let error = DirSecretStore::open(path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    }
    let error = DirSecretStore::open(plain.join("below")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
}

#[test]
fn the_largest_secret_fits() {
    let (_temp, _, store) = store();
    let largest = "x".repeat(MAX_SECRET_SIZE);
    put(&store, "largest", &largest, Expect::Absent).unwrap();
    assert_eq!(
        value(&store, "largest").unwrap().expose(),
        largest.as_bytes()
    );
}

#[test]
fn file_system_errors_have_a_kind_a_place_and_advice() {
    use std::io::{Error as IoError, ErrorKind as Io};

    let cases = [
        (Io::PermissionDenied, ErrorKind::Denied),
        (Io::NotFound, ErrorKind::NotFound),
        (Io::NotADirectory, ErrorKind::InvalidConfig),
        (Io::Unsupported, ErrorKind::Unsupported),
        (Io::StorageFull, ErrorKind::Unavailable),
        (Io::ReadOnlyFilesystem, ErrorKind::Unavailable),
        (Io::Other, ErrorKind::Unavailable),
    ];
    for (io, kind) in cases {
        let error = file::io_error(
            "write the file",
            Path::new("/s/default/token"),
            IoError::new(io, "disk on fire"),
        );
        assert_eq!(error.kind(), kind, "{io:?}");
        let text = error.to_string();
        assert!(text.starts_with("cannot write the file: "), "{text}");
        assert!(text.ends_with("(path: /s/default/token)"), "{text}");
        assert!(
            !text.contains("disk on fire"),
            "Display does not repeat the source: {text}"
        );
        assert!(std::error::Error::source(&error).is_some());
    }
}

fn entries(dir: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    names
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn everything_belongs_to_the_owner_only() {
        let (_temp, root, store) = store();
        let version = put(&store, "token", "x", Expect::Absent).unwrap();
        put(&store, "token", "y", Expect::Version(version)).unwrap();
        let mesh = root.join("default");
        for dir in [root.parent().unwrap(), &root, &mesh] {
            assert_eq!(mode(dir), 0o700, "{}", dir.display());
        }
        for dir in [&root, &mesh] {
            for name in entries(dir) {
                let path = dir.join(name);
                if path.is_file() {
                    assert_eq!(mode(&path), 0o600, "{}", path.display());
                }
            }
        }
    }

    #[test]
    fn a_secret_that_others_can_use_is_refused() {
        let (_temp, root, store) = store();
        let version = put(&store, "token", "x", Expect::Absent).unwrap();
        let path = root.join("default/token");
        for wide in [0o644, 0o640, 0o620, 0o602, 0o601] {
            chmod(&path, wide);
            let errors = [
                store.read(&key("token")).unwrap_err(),
                put(&store, "token", "y", Expect::Version(version.clone())).unwrap_err(),
                store.remove(&key("token"), &version).unwrap_err(),
            ];
            for error in errors {
                assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{wide:o}: {error}");
                let advice = format!("chmod 600 '{}'", path.display());
                assert!(error.to_string().contains(&advice), "{error}");
            }
        }
        for narrow in [0o600, 0o400] {
            chmod(&path, narrow);
            assert_eq!(value(&store, "token").unwrap().expose(), b"x");
        }
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let (_temp, root, store) = store();
        put(&store, "token", "x", Expect::Absent).unwrap();
        let mesh = root.join("default");
        for wide in [0o770, 0o702, 0o777] {
            chmod(&mesh, wide);
            let error = store.read(&key("token")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
            assert!(
                error
                    .to_string()
                    .contains(&format!("chmod 700 '{}'", mesh.display())),
                "{error}"
            );
            chmod(&mesh, 0o700);

            chmod(&root, wide);
            let error = DirSecretStore::open(&root).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
            assert!(
                error
                    .to_string()
                    .contains(&format!("chmod 700 '{}'", root.display())),
                "{error}"
            );
            chmod(&root, 0o700);
        }
        chmod(&root, 0o755);
        DirSecretStore::open(&root).unwrap();
    }

    #[test]
    fn links_are_not_followed() {
        let (temp, root, store) = store();
        put(&store, "token", "x", Expect::Absent).unwrap();
        let outside = temp.path().join("outside");
        fs::create_dir(&outside).unwrap();
        file::replace(&outside, "file", b"not ours").unwrap();
        symlink(outside.join("file"), root.join("default/link")).unwrap();
        symlink(outside.join("missing"), root.join("default/dangling")).unwrap();
        symlink(&outside, root.join("other-mesh")).unwrap();

        let keys = [
            key("link"),
            key("dangling"),
            SecretKey::new("other-mesh", "file").unwrap(),
        ];
        for key in keys {
            let error = store.read(&key).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{key}: {error}");
            let error = store.write(&key, &"y".into(), &Expect::Absent).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{key}: {error}");
        }
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"not ours");
        assert_eq!(entries(&outside), ["file"]);
    }

    #[test]
    fn a_link_to_the_directory_itself_is_the_operators_choice() {
        let (temp, root, store) = store();
        put(&store, "token", "x", Expect::Absent).unwrap();
        let link = temp.path().join("current");
        symlink(&root, &link).unwrap();
        let linked = DirSecretStore::open(&link).unwrap();
        assert_eq!(value(&linked, "token").unwrap().expose(), b"x");
    }

    #[test]
    fn a_socket_is_refused() {
        let (_temp, root, store) = store();
        put(&store, "token", "x", Expect::Absent).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("default/socket")).unwrap();
        let error = store.read(&key("socket")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    }

    #[test]
    fn an_owner_is_trusted_who_is_ours_or_root() {
        for (owner, ours, trusted) in [
            (1000, 1000, true),
            (0, 1000, true),
            (0, 0, true),
            (1000, 0, false),
            (1000, 1001, false),
        ] {
            assert_eq!(file::is_trusted(owner, ours), trusted, "{owner} {ours}");
        }
    }

    /// Only root can give something away; for everybody else, the table above has to do.
    #[test]
    fn what_belongs_to_another_user_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        const OTHER: u32 = 65_534;
        let (temp, root, store) = store();
        put(&store, "token", "x", Expect::Absent).unwrap();
        let link = temp.path().join("link");
        symlink(&root, &link).unwrap();
        let second = temp.path().join("second");
        symlink(&link, &second).unwrap();
        let refused = |path: &Path, error: Error| {
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
            let text = error.to_string();
            let advice = format!("run `chown -h 0 '{}'`", path.display());
            assert!(text.contains("another user (uid 65534)"), "{text}");
            assert!(text.contains(&advice), "{text}");
        };
        for path in [root.join("default/token"), root.join("default")] {
            lchown(&path, Some(OTHER), None).unwrap();
            refused(&path, store.read(&key("token")).unwrap_err());
            let put = put(&store, "token", "y", Expect::Version(Version::new("1")));
            refused(&path, put.unwrap_err());
            lchown(&path, Some(0), None).unwrap();
        }
        for path in [
            root.join(VERSION_KEY),
            root.clone(),
            root.parent().unwrap().to_owned(),
            temp.path().to_owned(),
        ] {
            lchown(&path, Some(OTHER), None).unwrap();
            refused(&path, DirSecretStore::open(&root).unwrap_err());
            let by_links = second.join(path.strip_prefix(&root).unwrap_or(Path::new("")));
            let shown = if path.is_file() { &by_links } else { &path };
            refused(shown, DirSecretStore::open(&second).unwrap_err());
            lchown(&path, Some(0), None).unwrap();
        }
        for path in [&link, &second] {
            lchown(path, Some(OTHER), None).unwrap();
            refused(path, DirSecretStore::open(&second).unwrap_err());
            lchown(path, Some(0), None).unwrap();
        }
        DirSecretStore::open(&second).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_replace_is_refused() {
        let (_temp, root, store) = store();
        put(&store, "token", "x", Expect::Absent).unwrap();
        let above = root.parent().unwrap();
        for (wide, taken) in [
            (0o777, false),
            (0o770, false),
            (0o1777, true),
            (0o755, true),
        ] {
            chmod(above, wide);
            match DirSecretStore::open(&root) {
                Ok(_) => assert!(taken, "{wide:o}"),
                Err(error) => {
                    assert!(!taken, "{wide:o}: {error}");
                    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
                    let advice = format!("chmod go-w '{}'", above.display());
                    assert!(error.to_string().contains(&advice), "{error}");
                }
            }
        }
    }

    #[test]
    fn a_circle_of_links_ends() {
        let temp = tempfile::tempdir().unwrap();
        let (a, b) = (temp.path().join("a"), temp.path().join("b"));
        symlink(&a, &b).unwrap();
        symlink(&b, &a).unwrap();
        assert!(DirSecretStore::open(a.join("secrets")).is_err());
    }
}
