//! Reading and writing files that hold secrets: bounded, owner-only, atomic, without plain copies.

use std::borrow::Cow;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::{MAX_SECRET_SIZE, SecretValue};
use crate::{Error, ErrorKind, Result};

fn refused(path: &Path, why: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidConfig, why).with_context("path", path.display())
}

/// Held while a directory is written to. No secret can have this name: names never begin with a dot.
const LOCK: &str = ".lock";

/// What will become a secret. There is one writer at a time, so one name is enough, and a file that
/// is there when a writer begins was left by one that crashed.
const TEMP: &str = ".tmp";

/// Reads a file that this store wrote; `None` if there is none. It must not be a link, and must be
/// accessible to its owner only.
pub(super) fn read_private(path: &Path) -> Result<Option<SecretValue>> {
    let seen = fs::symlink_metadata(path);
    if seen.as_ref().is_ok_and(Metadata::is_symlink) {
        return Err(refused(
            path,
            "the secret is a symbolic link, which a secret directory does not follow: \
             replace it with the file itself",
        ));
    }
    read_regular(path, seen, |metadata| {
        refuse_owner(path, metadata)?;
        refuse_mode(path, metadata, 0o077, "600")
    })
}

/// Reads a file that the operator named; `None` if there is none. Links are followed, and the mode is
/// not looked at: that is how Kubernetes and others mount secrets.
pub(super) fn read_named(path: &Path) -> Result<Option<SecretValue>> {
    read_regular(path, fs::metadata(path), |_| Ok(()))
}

/// Reads what `seen` describes, if the opened file passes the check. Looking first matters: opening a
/// named pipe would wait for a writer.
fn read_regular(
    path: &Path,
    seen: io::Result<Metadata>,
    check: impl FnOnce(&Metadata) -> Result<()>,
) -> Result<Option<SecretValue>> {
    let Some(seen) = found(seen, path)? else {
        return Ok(None);
    };
    refuse_special(path, &seen)?;
    let Some(file) = found(File::open(path), path)? else {
        return Ok(None);
    };
    let opened = file.metadata();
    let opened = opened.map_err(|error| io_error("look at the file", path, error))?;
    refuse_special(path, &opened)?;
    check(&opened)?;
    read_whole(path, &file, &opened).map(Some)
}

fn refuse_special(path: &Path, metadata: &Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(refused(
        path,
        "this is not a regular file: put the secret into one, or correct the path",
    ))
}

/// Reads the file into one buffer of the right size. A growing `Vec` would leave plain copies behind
/// in memory that was given back.
fn read_whole(path: &Path, mut file: &File, metadata: &Metadata) -> Result<SecretValue> {
    let size = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    if size > MAX_SECRET_SIZE {
        let why = format!(
            "the file has {size} bytes and a secret at most {MAX_SECRET_SIZE}: \
             this is probably not the file that was meant"
        );
        return Err(refused(path, why));
    }
    // One byte more than expected shows a file that grew.
    let mut bytes = Zeroizing::new(vec![0; size + 1]);
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error("read the file", path, error)),
        }
    }
    if filled != size {
        return Err(Error::new(
            ErrorKind::Unavailable,
            "the file was changed while it was read: replace secrets by renaming a complete file over \
             them, and read again",
        )
        .with_context("path", path.display()));
    }
    bytes.truncate(size);
    Ok(SecretValue(Arc::new(bytes)))
}

/// Puts a complete file in place of what is there, so that a reader or a crash sees the old content or
/// the new. The caller holds the [`lock`] of the directory.
pub(super) fn replace(dir: &Path, name: &str, content: &[u8]) -> Result<()> {
    let temp = dir.join(TEMP);
    remove(&temp)?;
    let written = write_new(&temp, content).and_then(|()| {
        let path = dir.join(name);
        fs::rename(&temp, &path)
            .map_err(|error| io_error("put the file into its place", &path, error))
    });
    if let Err(error) = written {
        // The first error is the one that helps; the next writer removes what may be left.
        let _ = fs::remove_file(&temp);
        return Err(error);
    }
    sync_dir(dir)
}

fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    let write = || {
        let mut file = owner_only(OpenOptions::new().write(true).create_new(true)).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|error| io_error("write the file", path, error))
}

/// Deletes a file for good. The caller holds the [`lock`] of the directory.
pub(super) fn delete(dir: &Path, name: &str) -> Result<()> {
    remove(&dir.join(name))?;
    sync_dir(dir)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("delete the file", path, error))
        }
        _ => Ok(()),
    }
}

/// Makes what was renamed, created or deleted in a directory survive a power cut.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    // Elsewhere, a directory cannot be opened as a file, and renaming is as durable as it gets.
    if cfg!(not(unix)) {
        return Ok(());
    }
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|error| io_error("sync the directory to disk", dir, error))
}

/// Waits until nobody else, in this or another process, writes to the directory. Dropping the file
/// lets the next one in, and so does the end of the process.
pub(super) fn lock(dir: &Path) -> Result<File> {
    let (file, path) = open_lock(dir)?;
    loop {
        match file.lock() {
            Ok(()) => return Ok(file),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error("lock the directory", &path, error)),
        }
    }
}

fn open_lock(dir: &Path) -> Result<(File, PathBuf)> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    match owner_only(&mut options).open(&path) {
        Ok(file) => Ok((file, path)),
        Err(error) => Err(io_error("open the lock file", &path, error)),
    }
}

/// Deletes what a crashed writer left behind, unless someone is writing now.
pub(super) fn remove_leftover(dir: &Path) -> Result<()> {
    let temp = dir.join(TEMP);
    if found(fs::symlink_metadata(&temp), &temp)?.is_none() {
        return Ok(());
    }
    let (file, path) = open_lock(dir)?;
    match file.try_lock() {
        Ok(()) => remove(&temp),
        Err(TryLockError::WouldBlock) => Ok(()),
        Err(TryLockError::Error(error)) => Err(io_error("lock the directory", &path, error)),
    }
}

/// Creates a directory, and its parents if asked, for its owner only. One that exists is left as it is.
pub(super) fn create_dir(path: &Path, parents: bool) -> Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(parents);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(io_error("create the directory", path, error))
        }
        _ => Ok(()),
    }
}

/// Whether there is a directory in which only its owner can put files. Anything else of that name is an
/// error, and so is a link unless `follow`.
pub(super) fn check_dir(path: &Path, follow: bool) -> Result<bool> {
    let metadata = if follow {
        fs::metadata(path)
    } else {
        fs::symlink_metadata(path)
    };
    let Some(metadata) = found(metadata, path)? else {
        return Ok(false);
    };
    if !metadata.is_dir() {
        return Err(refused(
            path,
            "this is not a directory, and a store keeps its secrets in one: \
             move it away, or correct the path",
        ));
    }
    refuse_owner(path, &metadata)?;
    refuse_mode(path, &metadata, 0o022, "700")?;
    Ok(true)
}

/// Checks all that is above an absolute path, as far as it exists: whoever may rename one of these folders, or turn
/// one of these links, decides what is found below. Links are followed one by one, since each may be another's.
#[cfg(unix)]
pub(super) fn check_above(path: &Path) -> Result<()> {
    /// As many as Linux follows.
    const MAX_LINKS: usize = 40;
    let mut left = MAX_LINKS;
    let mut ways = vec![path.to_path_buf()];
    while let Some(way) = ways.pop() {
        let mut above: Vec<_> = way.ancestors().collect();
        above.reverse();
        for component in above {
            let Some(metadata) = found(fs::symlink_metadata(component), component)? else {
                break;
            };
            if metadata.is_symlink() {
                let target = fs::read_link(component);
                let target = target.map_err(|error| io_error("read the link", component, error))?;
                refuse_owner(component, &metadata)?;
                let Some(fewer) = left.checked_sub(1) else {
                    return Err(refused(
                        path,
                        "there are too many symbolic links on the way to it",
                    ));
                };
                left = fewer;
                ways.extend(component.parent().map(|parent| parent.join(target)));
            } else if metadata.is_dir() && component != path {
                refuse_owner(component, &metadata)?;
                refuse_open_parent(component, &metadata)?;
            }
        }
    }
    Ok(())
}

#[cfg(not(unix))]
pub(super) fn check_above(_: &Path) -> Result<()> {
    Ok(())
}

/// In a sticky folder, such as `/tmp`, nobody renames what is another's.
#[cfg(unix)]
fn refuse_open_parent(path: &Path, metadata: &Metadata) -> Result<()> {
    const STICKY: u32 = 0o1000;
    let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o7777;
    if mode & 0o022 == 0 || mode & STICKY != 0 {
        return Ok(());
    }
    let shown = path.display();
    let why = format!(
        "other users can put another secret directory in place of the one below this (mode {mode:04o}): run \
         `chmod go-w '{shown}'`, or `chmod +t '{shown}'` if they must write there"
    );
    Err(refused(path, why))
}

/// As ssh has it: what another user owns, that user can read and change, whatever its mode is.
#[cfg(unix)]
fn refuse_owner(path: &Path, metadata: &Metadata) -> Result<()> {
    let owner = std::os::unix::fs::MetadataExt::uid(metadata);
    let ours = rustix::process::geteuid().as_raw();
    if is_trusted(owner, ours) {
        return Ok(());
    }
    let shown = path.display();
    let why = format!(
        "this belongs to another user (uid {owner}), who can read and replace secrets: if nobody else may have done \
         so, run `chown -h {ours} '{shown}'`; otherwise make new secrets in another directory"
    );
    Err(refused(path, why))
}

#[cfg(not(unix))]
fn refuse_owner(_: &Path, _: &Metadata) -> Result<()> {
    Ok(())
}

/// Nobody is safe from the superuser, so what is root's is as good as ours.
#[cfg(unix)]
pub(super) fn is_trusted(owner: u32, ours: u32) -> bool {
    owner == ours || owner == 0
}

/// Whether there is anything of this name.
pub(super) fn exists(path: &Path) -> Result<bool> {
    Ok(found(fs::symlink_metadata(path), path)?.is_some())
}

/// Tells "there is none" from "cannot tell".
fn found<T>(result: io::Result<T>, path: &Path) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("open the file", path, error)),
    }
}

fn owner_only(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

#[cfg(unix)]
fn refuse_mode(path: &Path, metadata: &Metadata, forbidden: u32, chmod: &str) -> Result<()> {
    let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o7777;
    if mode & forbidden == 0 {
        return Ok(());
    }
    let (what, can) = if metadata.is_dir() {
        ("directory", "put files into")
    } else {
        ("file", "read or change")
    };
    let why = format!(
        "other users can {can} this secret {what} (mode {mode:04o}): \
         run `chmod {chmod} '{}'`, and replace the secret if someone may have seen it",
        path.display()
    );
    Err(refused(path, why))
}

#[cfg(not(unix))]
fn refuse_mode(_: &Path, _: &Metadata, _: u32, _: &str) -> Result<()> {
    Ok(())
}

/// What went wrong with a file, where, and what to do.
pub(super) fn io_error(doing: &'static str, path: &Path, error: io::Error) -> Error {
    use io::ErrorKind as Io;
    let (kind, advice) = match error.kind() {
        Io::PermissionDenied => (
            ErrorKind::Denied,
            "give the user that this process runs as access to it",
        ),
        Io::NotFound => (ErrorKind::NotFound, "restore it, or correct the path"),
        Io::NotADirectory | Io::IsADirectory | Io::InvalidInput | Io::InvalidFilename => {
            (ErrorKind::InvalidConfig, "correct the path")
        }
        Io::Unsupported => (
            ErrorKind::Unsupported,
            "use a local file system that has file locks",
        ),
        Io::ReadOnlyFilesystem => (
            ErrorKind::Unavailable,
            "make the file system writable, or use another directory",
        ),
        Io::StorageFull | Io::QuotaExceeded => (
            ErrorKind::Unavailable,
            "make room on the file system, and try again",
        ),
        _ => (ErrorKind::Unavailable, "see the cause, and try again"),
    };
    Error::new(kind, format!("cannot {doing}: {advice}"))
        .with_context("path", path.display())
        .with_source(error)
}
