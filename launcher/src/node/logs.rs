//! Reading a container's log files: what is asked for, from which line on, and as a stream that follows.
//!
//! The supervisor writes `TIME STREAM F|P text` (see `supervisor`); readers get the text, with the time where they
//! ask for it. Files are read oldest first: `0.log.3`, ..., `0.log.1`, `0.log`.
#![allow(unsafe_code)]

use super::supervisor::{LOG_FILE, Stream};
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What is sent at once.
const CHUNK: usize = 64 * 1024;

/// The options of a request for logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    pub(crate) follow: bool,
    pub(crate) previous: bool,
    pub(crate) timestamps: bool,
    pub(crate) tail_lines: Option<u64>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) limit_bytes: Option<u64>,
    /// Without the lines of the other stream.
    pub(crate) only: Option<Stream>,
}

impl LogOptions {
    /// Of a query string; an error names the option that cannot be read.
    pub(crate) fn parse(query: &str, now: Timestamp) -> Result<LogOptions, String> {
        let mut options = LogOptions::default();
        for (name, value) in query_pairs(query) {
            let number = || value.parse::<u64>().map_err(|_| format!("invalid {name}: {value:?}"));
            let flag = || match value.as_str() {
                "true" | "1" => Ok(true),
                "false" | "0" | "" => Ok(false),
                _ => Err(format!("invalid {name}: {value:?}")),
            };
            match name {
                "follow" => options.follow = flag()?,
                "previous" => options.previous = flag()?,
                "timestamps" => options.timestamps = flag()?,
                "tailLines" => options.tail_lines = Some(number()?),
                "limitBytes" => options.limit_bytes = Some(number()?),
                "sinceSeconds" => {
                    let seconds = i64::try_from(number()?).unwrap_or(i64::MAX);
                    let from = now.saturating_sub(SignedDuration::from_secs(seconds));
                    options.since = Some(from.unwrap_or(Timestamp::MIN));
                }
                "sinceTime" => {
                    options.since = Some(value.parse().map_err(|_| format!("invalid sinceTime: {value:?}"))?);
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

/// The parameters of a query string, their values decoded; one without a value is `true`.
pub(crate) fn query_pairs(query: &str) -> impl Iterator<Item = (&str, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, "true"));
        (name, percent_decode(value))
    })
}

fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[at], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (b'+', _) => {
                out.push(b' ');
                at += 1;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// One pass over a log that may still grow.
pub(crate) struct LogReader {
    dir: PathBuf,
    options: LogOptions,
    /// Older files that are still to be read, the next one last.
    older: Vec<PathBuf>,
    current: Option<BufReader<File>>,
    inode: u64,
    /// Lines to pass over before the tail.
    skip: u64,
    left: u64,
    partial: Vec<u8>,
    /// The line before had no end: what follows belongs to it.
    inside_line: bool,
    sent_any: bool,
}

impl LogReader {
    pub(crate) fn open(dir: &Path, options: LogOptions) -> io::Result<LogReader> {
        let mut older: Vec<PathBuf> = Vec::new();
        for number in 1.. {
            let path = dir.join(format!("{LOG_FILE}.{number}"));
            if !path.exists() {
                break;
            }
            older.push(path);
        }
        let left = options.limit_bytes.unwrap_or(u64::MAX);
        let mut reader = LogReader {
            dir: dir.to_owned(),
            options,
            older,
            current: None,
            inode: 0,
            skip: 0,
            left,
            partial: Vec::new(),
            inside_line: false,
            sent_any: false,
        };
        if let Some(tail) = reader.options.tail_lines {
            reader.seek_tail(tail)?;
        }
        Ok(reader)
    }

    /// Goes back from the end, file by file, until enough lines lie ahead.
    fn seek_tail(&mut self, tail: u64) -> io::Result<()> {
        let mut lines = 0;
        let newest_first: Vec<PathBuf> =
            std::iter::once(self.dir.join(LOG_FILE)).chain(self.older.iter().cloned()).collect();
        for (index, path) in newest_first.iter().enumerate() {
            let count = count_lines(path)?;
            lines += count;
            if lines >= tail || index + 1 == newest_first.len() {
                self.skip = lines.saturating_sub(tail);
                self.older.truncate(index);
                break;
            }
        }
        Ok(())
    }

    /// What there is, up to a chunk; `None` at the end of what has been written.
    pub(crate) fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut out = BytesMut::new();
        while out.len() < CHUNK && self.left > 0 {
            self.open_next()?;
            let Some(file) = &mut self.current else { break };
            let read = file.by_ref().take(CHUNK as u64).read_until(b'\n', &mut self.partial)?;
            if read == 0 {
                if !self.advance()? {
                    break;
                }
                continue;
            }
            if self.partial.last() != Some(&b'\n') && self.partial.len() < 2 * CHUNK {
                continue;
            }
            let line = std::mem::take(&mut self.partial);
            self.emit(&line, &mut out);
        }
        self.sent_any |= !out.is_empty();
        Ok((!out.is_empty()).then(|| out.freeze()))
    }

    /// Nothing more may be sent.
    pub(crate) fn exhausted(&self) -> bool {
        self.left == 0
    }

    fn open_next(&mut self) -> io::Result<()> {
        if self.current.is_none() {
            let path = self.older.pop().unwrap_or_else(|| self.dir.join(LOG_FILE));
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            };
            self.inode = file.metadata()?.ino();
            self.current = Some(BufReader::with_capacity(CHUNK, file));
        }
        Ok(())
    }

    /// At the end of a file: to the next one, if this one is not the file that is written.
    fn advance(&mut self) -> io::Result<bool> {
        let newest = match std::fs::metadata(self.dir.join(LOG_FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        if newest.ino() == self.inode {
            return Ok(false);
        }
        self.current = None;
        if self.older.is_empty() {
            // Rotated while it was read: what came between is in files of higher numbers.
            for number in 1.. {
                let path = self.dir.join(format!("{LOG_FILE}.{number}"));
                match std::fs::metadata(&path) {
                    Ok(found) if found.ino() != self.inode => self.older.push(path),
                    _ => break,
                }
            }
        }
        Ok(true)
    }

    fn emit(&mut self, line: &[u8], out: &mut BytesMut) {
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        let Some((time, stream, full, text)) = split(line) else { return };
        if self.options.only.is_some_and(|only| only != stream) {
            return;
        }
        if let Some(since) = self.options.since
            && time.parse::<Timestamp>().is_ok_and(|time| time < since)
        {
            return;
        }
        let mut entry = Vec::with_capacity(line.len());
        if self.options.timestamps && !self.inside_line {
            entry.extend_from_slice(time.as_bytes());
            entry.push(b' ');
        }
        entry.extend_from_slice(text);
        if full {
            entry.push(b'\n');
        }
        self.inside_line = !full;
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(entry.len());
        out.extend_from_slice(&entry[..room]);
        self.left -= room as u64;
    }
}

/// Time, stream, whether the line ends here, and text of one entry.
fn split(line: &[u8]) -> Option<(&str, Stream, bool, &[u8])> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = if parts.next()? == b"stderr" { Stream::Stderr } else { Stream::Stdout };
    let full = parts.next()? == b"F";
    let text = parts.next()?;
    Some((time, stream, full, text.strip_suffix(b"\n").unwrap_or(text)))
}

fn count_lines(path: &Path) -> io::Result<u64> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0u8; CHUNK];
    let mut lines = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(lines);
        }
        lines += buffer[..read].iter().filter(|b| **b == b'\n').count() as u64;
    }
}

/// Tells when something in a log's folder changes.
pub(crate) struct LogWatch(AsyncFd<OwnedFd>);

impl LogWatch {
    pub(crate) fn new(dir: &Path) -> io::Result<LogWatch> {
        let path = std::ffi::CString::new(dir.as_os_str().as_bytes())?;
        let mask = libc::IN_MODIFY | libc::IN_CREATE | libc::IN_MOVED_TO | libc::IN_DELETE;
        // SAFETY: plain system calls; the descriptor is checked before it is owned, the path outlives the call, and the
        // owned descriptor always names the same inotify instance.
        unsafe {
            let fd = libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = OwnedFd::from_raw_fd(fd);
            if libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) < 0 {
                return Err(io::Error::last_os_error());
            }
            AsyncFd::register_with_interest(fd, Interest::READABLE).map(LogWatch).map_err(|error| error.into())
        }
    }

    pub(crate) fn changed(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async {
            let mut ready = self.0.readable().await?;
            let mut buffer = [0u8; 4096];
            while nix::unistd::read(self.0.get_ref(), &mut buffer).is_ok_and(|read| read > 0) {}
            ready.clear_ready();
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn time(second: u8) -> String {
        format!("2026-01-01T00:00:{second:02}.000000000Z")
    }

    fn written(files: &[(&str, &[(u8, &str, &str)])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, lines) in files {
            let text: String =
                lines.iter().map(|(second, mark, text)| format!("{} stdout {mark} {text}\n", time(*second))).collect();
            fs::write(dir.path().join(name), text).expect("written");
        }
        dir
    }

    fn read(dir: &Path, query: &str) -> String {
        let now = "2026-01-01T00:00:10Z".parse().expect("a time");
        let mut reader = LogReader::open(dir, LogOptions::parse(query, now).expect("options")).expect("open");
        let mut out = Vec::new();
        while let Some(bytes) = reader.next().expect("read") {
            out.extend_from_slice(&bytes);
        }
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn options_choose_what_is_read() {
        let dir = written(&[
            ("0.log.2", &[(1, "F", "a"), (2, "F", "b")]),
            ("0.log.1", &[(3, "P", "c"), (4, "F", "d")]),
            ("0.log", &[(5, "F", "e f"), (6, "F", "")]),
        ]);
        let (t3, t5, t6) = (time(3), time(5), time(6));
        for (query, want) in [
            ("", "a\nb\ncd\ne f\n\n".to_owned()),
            ("tailLines=2", "e f\n\n".to_owned()),
            ("tailLines=0", String::new()),
            ("tailLines=100", "a\nb\ncd\ne f\n\n".to_owned()),
            ("tailLines=5", "b\ncd\ne f\n\n".to_owned()),
            ("sinceSeconds=5", "e f\n\n".to_owned()),
            ("sinceTime=2026-01-01T00%3A00%3A05Z&timestamps=true", format!("{t5} e f\n{t6} \n")),
            ("limitBytes=5", "a\nb\nc".to_owned()),
            ("timestamps=true&tailLines=4&limitBytes=34", format!("{t3} cd\n")),
        ] {
            assert_eq!(read(dir.path(), query), want, "{query}");
        }
        assert_eq!(read(tempfile::tempdir().expect("a folder").path(), ""), "");
        let now = Timestamp::UNIX_EPOCH;
        for bad in ["tailLines=x", "follow=maybe", "sinceTime=yesterday", "limitBytes=-1"] {
            assert!(LogOptions::parse(bad, now).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rotation_while_reading_loses_nothing() {
        let dir = written(&[("0.log", &[(1, "F", "one")])]);
        let mut reader = LogReader::open(dir.path(), LogOptions::default()).expect("open");
        assert_eq!(reader.next().expect("read").as_deref(), Some(&b"one\n"[..]));
        assert_eq!(reader.next().expect("read"), None);
        let line = |second, text: &str| format!("{} stdout F {text}\n", time(second));
        let path = dir.path().join("0.log");
        fs::write(&path, line(1, "one") + &line(2, "two")).expect("written");
        fs::rename(&path, dir.path().join("0.log.1")).expect("renamed");
        fs::write(&path, line(3, "three")).expect("written");
        assert_eq!(reader.next().expect("read").as_deref(), Some(&b"two\nthree\n"[..]));
        assert_eq!(reader.next().expect("read"), None);
    }
}
