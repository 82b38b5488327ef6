//! The journal: an append-only file that a crash cannot spoil.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::atomic::{create_dir, parent, sync_dir, write_atomic};
use super::json::parse_json;
use crate::error::{Error, Result};
use crate::text::hex;

/// First line of a journal; the number is the version of the record format.
pub(super) const HEADER_START: &str = "glitch-journal ";
const HEADER: &str = "glitch-journal 1\n";

/// Longest record; a longer length field is corruption, not a reason to allocate.
const MAX_RECORD: usize = 16 * 1024 * 1024;

/// An append-only file of JSON records, one line each: `LEN SUM JSON`, where `LEN` is the length of
/// the JSON in bytes and `SUM` the first 16 hex digits of its sha256.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: BufWriter<File>,
    records: u64,
}

/// A journal that was opened, with its records.
#[derive(Debug)]
pub struct Opened<T> {
    /// The journal, ready to append to.
    pub journal: Journal,
    /// The valid records, oldest first.
    pub records: Vec<T>,
    /// The tail that had to be cut, if any: to be told to the user.
    pub torn: Option<Torn>,
}

/// A tail that was cut off a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// Number of the first bad record, from 1.
    pub record: u64,
    /// Bytes cut.
    pub bytes: u64,
    /// The fault of that record.
    pub reason: &'static str,
    /// The bytes cut, kept: damage in the middle of a journal takes good records with it.
    pub kept: PathBuf,
}

impl std::fmt::Display for Torn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "record {} is {}; {} bytes cut, kept in {}",
            self.record,
            self.reason,
            self.bytes,
            self.kept.display()
        )
    }
}

impl Journal {
    /// Opens a journal for appending, making it where there is none. A record that is torn or fails
    /// its checksum is cut with everything after it (the bytes are kept beside, `NAME.torn`); one
    /// that is whole but is no `T` is an error, because cutting it would throw away good data.
    pub fn open<T: DeserializeOwned>(path: &Path) -> Result<Opened<T>> {
        let io = |e| Error::io(path, e);
        create_dir(parent(path))?;
        let file =
            OpenOptions::new().read(true).append(true).create(true).open(path).map_err(io)?;
        // Two campaigns that share a journal would interleave; file systems without locks are let
        // pass.
        if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
            return Err(Error::file(path, "(whole file)", "in use by another process"));
        }
        let scan = scan(path, &file)?;
        let length = file.metadata().map_err(io)?.len();
        let torn = match scan.bad {
            None => None,
            Some(reason) => {
                let mut kept = path.as_os_str().to_owned();
                kept.push(".torn");
                let kept = PathBuf::from(kept);
                keep_tail(&file, scan.valid, length, path, &kept)?;
                file.set_len(scan.valid).map_err(io)?;
                file.sync_all().map_err(io)?;
                Some(Torn {
                    record: scan.records.len() as u64 + 1,
                    bytes: length - scan.valid,
                    reason,
                    kept,
                })
            }
        };
        let mut file = BufWriter::new(file);
        if scan.valid == 0 {
            file.write_all(HEADER.as_bytes()).and_then(|()| file.flush()).map_err(io)?;
            file.get_ref().sync_all().map_err(io)?;
            sync_dir(parent(path));
        }
        let journal = Self { path: path.to_path_buf(), file, records: scan.records.len() as u64 };
        Ok(Opened { journal, records: scan.records, torn })
    }

    /// Adds a record to the buffer; [`Journal::sync`] makes it durable.
    pub fn append<T: Serialize>(&mut self, record: &T) -> Result<()> {
        let json =
            serde_json::to_vec(record).map_err(|e| Error::file(&self.path, "(record)", e))?;
        if json.len() > MAX_RECORD {
            return Err(Error::file(
                &self.path,
                "(record)",
                format!("{} bytes, at most {MAX_RECORD} fit", json.len()),
            ));
        }
        let mut line = format!("{} {} ", json.len(), checksum(&json)).into_bytes();
        line.extend_from_slice(&json);
        line.push(b'\n');
        self.file.write_all(&line).map_err(|e| Error::io(&self.path, e))?;
        self.records += 1;
        Ok(())
    }

    /// Writes what is buffered and waits until the disk has it: once per batch, not per record.
    pub fn sync(&mut self) -> Result<()> {
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_data())
            .map_err(|e| Error::io(&self.path, e))
    }

    /// Records in it, those not yet synced included.
    pub fn records(&self) -> u64 {
        self.records
    }
}

/// First 16 hex digits of the sha256.
fn checksum(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes)[..8])
}

/// Records up to the first bad one.
struct Scan<T> {
    records: Vec<T>,
    /// Bytes up to the end of the last valid record.
    valid: u64,
    /// The fault of the first bad record.
    bad: Option<&'static str>,
}

fn scan<T: DeserializeOwned>(path: &Path, file: &File) -> Result<Scan<T>> {
    let mut reader = BufReader::new(file);
    let mut found = Scan { records: Vec::new(), valid: 0, bad: None };
    let mut line = Vec::new();
    let mut next = |line: &mut Vec<u8>| {
        line.clear();
        reader
            .by_ref()
            .take(MAX_RECORD as u64 + 64)
            .read_until(b'\n', line)
            .map_err(|e| Error::io(path, e))
    };
    next(&mut line)?;
    if line != HEADER.as_bytes() {
        if HEADER.as_bytes().starts_with(&line) {
            // Empty, or torn while the very first line was written.
            found.bad = (!line.is_empty()).then_some("torn");
            return Ok(found);
        }
        let message = match line.starts_with(HEADER_START.as_bytes()) {
            true => "written by another version of glitch",
            false => "not a journal of glitch",
        };
        return Err(Error::file(path, "(first line)", message));
    }
    found.valid = line.len() as u64;
    while next(&mut line)? > 0 {
        match record(&line) {
            Ok(json) => {
                let value: T = parse_json(path, json).map_err(|e| match e {
                    Error::File { path, field, message } => Error::File {
                        path,
                        field: format!("record {}: {field}", found.records.len() + 1),
                        message,
                    },
                    other => other,
                })?;
                found.records.push(value);
                found.valid += line.len() as u64;
            }
            Err(reason) => {
                found.bad = Some(reason);
                break;
            }
        }
    }
    Ok(found)
}

/// Returns the JSON of a record line, or its fault.
fn record(line: &[u8]) -> Result<&[u8], &'static str> {
    let line = line.strip_suffix(b"\n").ok_or("torn")?;
    let mut parts = line.splitn(3, |&byte| byte == b' ');
    let (Some(length), Some(sum), Some(json)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("corrupt (no length, checksum and JSON)");
    };
    if std::str::from_utf8(length).ok().and_then(|n| n.parse::<usize>().ok()) != Some(json.len()) {
        return Err("corrupt (wrong length)");
    }
    if sum != checksum(json).as_bytes() {
        return Err("corrupt (wrong checksum)");
    }
    Ok(json)
}

/// Copies the bytes `from..to` of the journal beside it.
fn keep_tail(mut file: &File, from: u64, to: u64, path: &Path, kept: &Path) -> Result<()> {
    let io = |e| Error::io(path, e);
    file.seek(SeekFrom::Start(from)).map_err(io)?;
    let mut tail = Vec::new();
    file.take(to - from).read_to_end(&mut tail).map_err(io)?;
    write_atomic(kept, &tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes three records, changes the bytes, opens again: so many survive, for this reason.
    fn check(change: impl Fn(&mut Vec<u8>), survive: &[&str], reason: Option<&str>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut opened = Journal::open::<String>(&path).unwrap();
        for record in ["first", "sec\nond", "third"] {
            opened.journal.append(&record).unwrap();
        }
        opened.journal.sync().unwrap();
        drop(opened);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        let mut opened = Journal::open::<String>(&path).unwrap();
        assert_eq!(opened.records, survive);
        assert_eq!(opened.torn.as_ref().map(|t| t.reason), reason);
        if let Some(torn) = &opened.torn {
            let kept = fs::read(&torn.kept).unwrap();
            assert_eq!(kept.len() as u64, torn.bytes);
            assert!(bytes.ends_with(&kept));
        }
        // Whatever was cut, it can be continued.
        opened.journal.append(&"more").unwrap();
        opened.journal.sync().unwrap();
        assert_eq!(opened.journal.records() as usize, survive.len() + 1);
        drop(opened);
        let again = Journal::open::<String>(&path).unwrap();
        assert_eq!(again.records.len(), survive.len() + 1);
        assert_eq!(again.torn, None);
    }

    #[test]
    fn a_torn_tail_is_cut_and_told() {
        check(|_| (), &["first", "sec\nond", "third"], None);
        check(|b| b.truncate(b.len() - 1), &["first", "sec\nond"], Some("torn"));
        check(|b| b.truncate(b.len() - 20), &["first", "sec\nond"], Some("torn"));
        check(|b| b.truncate(5), &[], Some("torn"));
        check(|b| b.clear(), &[], None);
        check(
            |b| b.extend(b"9999999999999999999999 x \"\"\n"),
            &["first", "sec\nond", "third"],
            Some("corrupt (wrong length)"),
        );
        check(|b| b.extend([0; 100]), &["first", "sec\nond", "third"], Some("torn"));
        check(
            |b| b.extend(b"\n"),
            &["first", "sec\nond", "third"],
            Some("corrupt (no length, checksum and JSON)"),
        );
        let flip = |b: &mut Vec<u8>| {
            let at = b.windows(5).position(|w| w == b"first").unwrap();
            b[at] = b'F';
        };
        check(flip, &[], Some("corrupt (wrong checksum)"));
    }

    #[test]
    fn every_cut_of_a_journal_opens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut opened = Journal::open::<u32>(&path).unwrap();
        for record in 0..3u32 {
            opened.journal.append(&record).unwrap();
        }
        opened.journal.sync().unwrap();
        drop(opened);
        let bytes = fs::read(&path).unwrap();
        for cut in 0..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            let opened = Journal::open::<u32>(&path).unwrap();
            assert!(
                opened.records.iter().copied().eq(0..opened.records.len() as u32),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn what_is_no_journal_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        for (text, message) in [
            ("hello\n", "not a journal"),
            ("glitch-journal 2\n", "another version"),
            ("glitch-journal 1\n3 5e8c9b9a0a1b2c3d \"a\"\n", ""),
        ] {
            fs::write(&path, text).unwrap();
            match Journal::open::<String>(&path) {
                Ok(opened) => assert!(message.is_empty() && opened.torn.is_some(), "{text}"),
                Err(e) => {
                    assert!(!message.is_empty() && e.to_string().contains(message), "{text}: {e}");
                    assert_eq!(fs::read_to_string(&path).unwrap(), text);
                }
            }
        }
        // A whole record of another type is an error that names it, and nothing is cut.
        let json = "7";
        let text = format!("{HEADER}1 {} {json}\n", checksum(json.as_bytes()));
        fs::write(&path, &text).unwrap();
        let error = Journal::open::<String>(&path).unwrap_err().to_string();
        assert!(error.contains("record 1"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn a_journal_has_one_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let first = Journal::open::<u32>(&path).unwrap();
        assert!(Journal::open::<u32>(&path).unwrap_err().to_string().contains("in use"));
        drop(first);
        Journal::open::<u32>(&path).unwrap();
    }
}
