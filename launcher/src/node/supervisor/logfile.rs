//! The container's log: one line an entry, `TIME STREAM F|P text`, as container runtimes write for the kubelet;
//! rotated by size.

use super::record::LOG_FILE;
use jiff::Timestamp;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A line longer than this is cut into parts, marked `P`.
const MAX_LINE: usize = 16 * 1024;

/// Where a container has written a line to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

pub(super) struct LogFile {
    dir: PathBuf,
    file: File,
    written: u64,
    max_bytes: u64,
    max_files: u32,
    /// What came without an end of line yet, by stream.
    open: [Vec<u8>; 2],
    buffer: Vec<u8>,
}

impl LogFile {
    pub(super) fn create(dir: &Path, max_bytes: u64, max_files: u32) -> io::Result<LogFile> {
        let file = open(dir)?;
        let written = file.metadata()?.len();
        let max_files = max_files.max(1);
        let (open, buffer) = ([Vec::new(), Vec::new()], Vec::new());
        Ok(LogFile { dir: dir.to_owned(), file, written, max_bytes, max_files, open, buffer })
    }

    pub(super) fn append(&mut self, stream: Stream, mut bytes: &[u8], now: Timestamp) -> io::Result<()> {
        self.buffer.clear();
        while !bytes.is_empty() {
            let open = &mut self.open[stream as usize];
            let room = MAX_LINE - open.len();
            let line_end = bytes.iter().take(room).position(|b| *b == b'\n');
            let taken = line_end.unwrap_or_else(|| room.min(bytes.len()));
            open.extend_from_slice(&bytes[..taken]);
            let full = open.len() == MAX_LINE;
            if line_end.is_some() || full {
                entry(&mut self.buffer, now, stream, line_end.is_some(), open);
                open.clear();
            }
            bytes = &bytes[taken + usize::from(line_end.is_some())..];
        }
        self.flush()
    }

    /// Writes what is left without an end of line.
    pub(super) fn finish(&mut self, now: Timestamp) -> io::Result<()> {
        self.buffer.clear();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let open = &mut self.open[stream as usize];
            if !open.is_empty() {
                entry(&mut self.buffer, now, stream, false, open);
                open.clear();
            }
        }
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.file.write_all(&self.buffer)?;
        self.written += self.buffer.len() as u64;
        if self.written > self.max_bytes {
            self.rotate()?;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |n: u32| match n {
            0 => self.dir.join(LOG_FILE),
            n => self.dir.join(format!("{LOG_FILE}.{n}")),
        };
        for n in (0..self.max_files.saturating_sub(1)).rev() {
            match fs::rename(numbered(n), numbered(n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.max_files == 1 {
            fs::remove_file(numbered(0))?;
        }
        self.file = open(&self.dir)?;
        self.written = 0;
        Ok(())
    }
}

fn open(dir: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(dir.join(LOG_FILE))
}

fn entry(buffer: &mut Vec<u8>, now: Timestamp, stream: Stream, full: bool, line: &[u8]) {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    let mark = if full { "F" } else { "P" };
    // Nine digits always, so that times compare as text.
    buffer.extend_from_slice(now.strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string().as_bytes());
    buffer.extend_from_slice(format!(" {stream} {mark} ").as_bytes());
    buffer.extend_from_slice(line);
    buffer.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Timestamp {
        Timestamp::from_nanosecond(1_700_000_000_000_000_042).expect("a valid time")
    }

    #[test]
    fn lines_are_stamped_and_long_ones_cut() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut log = LogFile::create(dir.path(), 1 << 20, 3).expect("a log file");
        log.append(Stream::Stdout, b"one\ntw", at()).expect("written");
        log.append(Stream::Stderr, b"bad\n", at()).expect("written");
        log.append(Stream::Stdout, b"o\n\n", at()).expect("written");
        log.append(Stream::Stdout, &[b'x'; MAX_LINE + 1], at()).expect("written");
        log.finish(at()).expect("written");
        let text = fs::read_to_string(dir.path().join(LOG_FILE)).expect("the log");
        let time = "2023-11-14T22:13:20.000000042Z";
        let long = "x".repeat(MAX_LINE);
        assert_eq!(
            text,
            format!(
                "{time} stdout F one\n{time} stderr F bad\n{time} stdout F two\n{time} stdout F \n\
                 {time} stdout P {long}\n{time} stdout P x\n"
            )
        );
    }

    #[test]
    fn a_full_log_is_rotated_and_the_oldest_dropped() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut log = LogFile::create(dir.path(), 60, 3).expect("a log file");
        for n in 0..10 {
            log.append(Stream::Stdout, format!("line {n}\n").as_bytes(), at()).expect("written");
        }
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .expect("readable")
            .map(|e| e.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.1", "0.log.2"]);
        let newest = fs::read_to_string(dir.path().join("0.log.1")).expect("the log");
        assert!(newest.ends_with("line 9\n"), "{newest}");
    }
}
