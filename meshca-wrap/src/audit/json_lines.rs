//! A file of JSON lines that is whole whenever its writer dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use meshca_core::{Error, ErrorKind, Result, Retry};
use serde::Serialize;
use serde_json::ser::{CharEscape, CompactFormatter, Formatter};

use super::{AuditRecord, AuditSink};

/// When a record is forced to the disk.
///
/// A record that was written survives the death of the process in any case: the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SyncPolicy {
    /// When the operating system likes to, within seconds. The last records may be lost when the machine dies.
    #[default]
    System,
    /// Before `sign` returns (`fdatasync`). Every signature waits for the disk, which takes milliseconds of
    /// the calling thread.
    EveryRecord,
}

/// What was wrong with the end of the file when it was opened: the machine died while the last line was on
/// its way to the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repair {
    /// The last line lacked nothing but its end, and has it now.
    Completed,
    /// The last line was incomplete. What there was of it stands in a line of its own now:
    /// `{"outcome":"torn","text":"…"}`, cut after 4 KiB.
    #[non_exhaustive]
    Torn {
        /// How many bytes there were of it.
        bytes: u64,
    },
}

/// Appends one line of JSON for each record to a file.
///
/// - **A line is there as a whole or not at all**, also when the process is killed at any moment (SIGKILL):
///   it is appended by one `write` call, and does not cross a border between pages of 4 KiB (the kernel may
///   end a killed process between two pages). A line that would is preceded by spaces, which JSON allows.
///   Lines longer than a page, of requests with very many names, are the exception.
/// - **A torn last line**, which is what the crash of a whole machine may leave, is [repaired](Repair) and
///   reported when the file is opened again.
/// - **Lines are printable ASCII.** Everything else is escaped (`\n`, `\u202e`), so that no name that a workload or a
///   CA has chosen can forge a line or a terminal's output.
/// - The file is created for its owner only (0600) and **locked**: a second writer is refused. `logrotate`
///   must use `copytruncate`, or the application opens a new sink.
///
/// ```
/// use meshca_wrap::{JsonLinesSink, SyncPolicy};
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("audit.jsonl");
/// let sink = JsonLinesSink::open(&path, SyncPolicy::System)?;
/// if let Some(repair) = sink.repaired() {
///     eprintln!("the audit log was damaged: {repair:?}");
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(derive_more::Debug)]
pub struct JsonLinesSink {
    path: PathBuf,
    sync: SyncPolicy,
    #[debug(skip)]
    repaired: Option<Repair>,
    #[debug(skip)]
    file: Mutex<Appender>,
}

impl JsonLinesSink {
    /// Opens the file, or creates it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`] if another sink has it open; [`ErrorKind::Unavailable`] if it cannot be opened,
    /// read or repaired.
    pub fn open(path: impl Into<PathBuf>, sync: SyncPolicy) -> Result<Self> {
        let path = path.into();
        let failed = |error: io::Error| failure("the audit log cannot be opened", &path, error);
        let mut options = OpenOptions::new();
        options.create(true).read(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    "the audit log is open elsewhere; give each process a file of its own, and share one sink within \
                     a process",
                )
                .with_context("file", path.display()));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let mut file = Appender { file, cut: None };
        let repaired = file.repair().map_err(failed)?;
        if sync == SyncPolicy::EveryRecord {
            file.file.sync_all().map_err(failed)?;
            sync_folder(&path).map_err(failed)?;
        }
        Ok(Self {
            sync,
            repaired,
            file: Mutex::new(file),
            path,
        })
    }

    /// What was repaired when it was opened.
    pub fn repaired(&self) -> Option<&Repair> {
        self.repaired.as_ref()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn append(&self, line: Vec<u8>) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.append(line)?;
        match self.sync {
            SyncPolicy::System => Ok(()),
            SyncPolicy::EveryRecord => file.file.sync_data(),
        }
    }
}

impl AuditSink for JsonLinesSink {
    fn record(&self, record: &AuditRecord) -> Result<()> {
        line(record)
            .and_then(|line| self.append(line))
            .map_err(|error| failure("the audit record cannot be written", &self.path, error))
    }
}

fn failure(what: &'static str, path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, what)
        .with_retry(Retry::Backoff)
        .with_context("file", path.display())
        .with_source(error)
}

/// A file created is not safe before its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        let folder = match path.parent() {
            Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
            Some(folder) => folder,
            None => return Ok(()),
        };
        File::open(folder)?.sync_all()?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// The smallest page there is; larger ones are multiples of it.
const PAGE: u64 = 4096;

struct Appender {
    file: File,
    /// Where the file has to end, if a part of a line was written and could not be taken back.
    cut: Option<u64>,
}

impl Drop for Appender {
    fn drop(&mut self) {
        // Closing would not do: a process that is just being started may share the open file until it executes.
        let _ = self.file.unlock();
    }
}

impl Appender {
    /// Appends a line, or leaves the file as it was.
    fn append(&mut self, line: Vec<u8>) -> io::Result<()> {
        if let Some(end) = self.cut {
            self.file.set_len(end)?;
            self.cut = None;
        }
        let end = self.file.metadata()?.len();
        let bytes = within_a_page(end, line);
        let written = loop {
            match self.file.write(&bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => break written?,
            }
        };
        if written == bytes.len() {
            return Ok(());
        }
        // The disk is full. Half a line is worse than none.
        if self.file.set_len(end).is_err() {
            self.cut = Some(end);
        }
        Err(io::Error::new(
            io::ErrorKind::StorageFull,
            "only a part of the line could be written",
        ))
    }

    fn repair(&mut self) -> io::Result<Option<Repair>> {
        let (start, bytes, tail) = self.last_line()?;
        if tail.iter().all(|byte| *byte == b' ') {
            // What was to keep a line within its page, before that line: no harm, and nothing is lost.
            return Ok(None);
        }
        if bytes == tail.len() as u64
            && serde_json::from_slice::<serde::de::IgnoredAny>(&tail).is_ok()
        {
            self.file.write_all(b"\n")?;
            return Ok(Some(Repair::Completed));
        }
        let text = String::from_utf8_lossy(&tail);
        let line = line(&Torn {
            outcome: "torn",
            text: text.trim_start_matches(' '),
        })?;
        self.file.set_len(start)?;
        self.append(line)?;
        Ok(Some(Repair::Torn { bytes }))
    }

    /// Where the last line starts if it has no end, how long it is, and its first 4 KiB or all of it up to 1 MiB.
    fn last_line(&mut self) -> io::Result<(u64, u64, Vec<u8>)> {
        const WHOLE: u64 = 1 << 20;
        let len = self.file.metadata()?.len();
        let mut start = len;
        let mut block = Vec::new();
        while start > 0 {
            let from = start.saturating_sub(64 * 1024);
            self.file.seek(SeekFrom::Start(from))?;
            block.clear();
            (&self.file).take(start - from).read_to_end(&mut block)?;
            if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
                start = from + at as u64 + 1;
                break;
            }
            start = from;
        }
        let bytes = len - start;
        let mut tail = Vec::new();
        self.file.seek(SeekFrom::Start(start))?;
        (&self.file)
            .take(if bytes <= WHOLE { bytes } else { PAGE })
            .read_to_end(&mut tail)?;
        Ok((start, bytes, tail))
    }
}

/// Puts spaces before a line that would otherwise cross a border between pages.
fn within_a_page(end: u64, line: Vec<u8>) -> Vec<u8> {
    let left = PAGE - end % PAGE;
    let len = line.len() as u64;
    if len <= left || len > PAGE {
        return line;
    }
    let mut bytes = vec![b' '; usize::try_from(left).unwrap_or_default()];
    bytes.extend(line);
    bytes
}

#[derive(Serialize)]
struct Torn<'a> {
    outcome: &'static str,
    text: &'a str,
}

fn line(record: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(1024);
    record.serialize(&mut serde_json::Serializer::with_formatter(
        &mut line, Ascii,
    ))?;
    line.push(b'\n');
    Ok(line)
}

/// Escapes what is not printable ASCII.
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for char in fragment.chars() {
            if matches!(char, ' '..='~') {
                writer.write_all(&[char as u8])?;
            } else {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }

    fn write_char_escape<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        CompactFormatter.write_char_escape(writer, escape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_with(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        std::fs::write(&path, content).unwrap();
        (folder, path)
    }

    #[test]
    fn a_damaged_end_is_repaired_and_reported() {
        let long = vec![b'x'; 3 << 20];
        let big_record = format!("{{\"a\":\"{}\"}}", "y".repeat(200_000));
        for (content, repaired, expected) in [
            (&b""[..], None, &b""[..]),
            (b"{\"a\":1}\n", None, b"{\"a\":1}\n"),
            (b"{\"a\":1}\n      ", None, b"{\"a\":1}\n      "),
            (
                b"{\"a\":1}\n{\"b\":2}",
                Some(Repair::Completed),
                b"{\"a\":1}\n{\"b\":2}\n",
            ),
            (b"{\"a\":1}", Some(Repair::Completed), b"{\"a\":1}\n"),
            (
                b"{\"a\":1}\n  {\"b\":\"c",
                Some(Repair::Torn { bytes: 9 }),
                b"{\"a\":1}\n{\"outcome\":\"torn\",\"text\":\"{\\\"b\\\":\\\"c\"}\n",
            ),
            (
                b"{\"a\":1}\n\0\0\xff",
                Some(Repair::Torn { bytes: 3 }),
                b"{\"a\":1}\n{\"outcome\":\"torn\",\"text\":\"\\u0000\\u0000\\ufffd\"}\n",
            ),
            (
                &long,
                Some(Repair::Torn { bytes: 3 << 20 }),
                format!(
                    "{{\"outcome\":\"torn\",\"text\":\"{}\"}}\n",
                    "x".repeat(4096)
                )
                .as_bytes(),
            ),
            (
                big_record.as_bytes(),
                Some(Repair::Completed),
                format!("{big_record}\n").as_bytes(),
            ),
        ] {
            let (_folder, path) = file_with(content);
            let name = String::from_utf8_lossy(&content[..content.len().min(40)]).into_owned();
            let sink = JsonLinesSink::open(&path, SyncPolicy::System).unwrap();
            assert_eq!(sink.repaired(), repaired.as_ref(), "{name}");
            assert!(std::fs::read(&path).unwrap() == expected, "{name}");
            drop(sink);
            let again = JsonLinesSink::open(&path, SyncPolicy::EveryRecord).unwrap();
            assert_eq!(again.repaired(), None, "{name}");
        }
    }

    #[test]
    fn a_second_writer_is_refused() {
        let (_folder, path) = file_with(b"");
        let first = JsonLinesSink::open(&path, SyncPolicy::System).unwrap();
        let error = JsonLinesSink::open(&path, SyncPolicy::System).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        drop(first);
        JsonLinesSink::open(&path, SyncPolicy::System).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("audit.jsonl");
        let error = JsonLinesSink::open(&path, SyncPolicy::System).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("audit.jsonl"), "{error}");
    }

    #[test]
    fn no_line_crosses_a_page_unless_it_is_longer() {
        for (end, len, pad) in [
            (0, 4096, 0),
            (0, 5000, 0),
            (10, 4086, 0),
            (10, 4087, 4086),
            (4095, 1, 0),
            (4095, 2, 1),
            (4096, 4096, 0),
            (8000, 500, 192),
            (8000, 5000, 0),
        ] {
            let bytes = within_a_page(end, vec![b'x'; len]);
            let spaces = bytes.iter().take_while(|byte| **byte == b' ').count();
            assert_eq!((spaces, bytes.len()), (pad, pad + len), "{end} {len}");
        }
    }

    #[test]
    fn lines_are_printable_ascii() {
        for text in [
            "plain",
            "a\nb",
            "a\u{1b}[31m",
            "\u{202e}\u{2028}\u{7f}\u{9b}",
            "π 🦀 \"\\",
        ] {
            let line = line(&Torn {
                outcome: "torn",
                text,
            })
            .unwrap();
            let (end, content) = line.split_last().unwrap();
            assert_eq!(*end, b'\n');
            assert!(
                content.iter().all(|byte| matches!(byte, b' '..=b'~')),
                "{text:?}"
            );
            let read: serde_json::Value = serde_json::from_slice(&line).unwrap();
            assert_eq!(read["text"], text);
        }
    }
}
