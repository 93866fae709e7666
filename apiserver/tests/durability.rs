//! A power cut at any byte of the log: what was answered before it is there after it, and nothing half.

use bytes::Bytes;
use muster_apiserver::store::{Backend, Row, Sqlite};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

const COMMITS: usize = 250;
const CUTS: usize = 10_000;
const WAL_BYTES: u64 = 192 << 10;

type Rows = BTreeMap<u64, Row>;

/// What the disk held once a commit had been answered, and what the database had to hold then.
struct Answered {
    database: Vec<u8>,
    wal: Vec<u8>,
    rows: Rows,
    /// Whether this came of a compaction: log first, then the database, in several steps that are not recorded.
    compacted: bool,
}

fn wal_of(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

fn rows_of(backend: &mut Sqlite) -> Rows {
    let mut rows = Rows::new();
    backend.load(&mut |row| drop(rows.insert(row.revision, row))).expect("loads");
    rows
}

/// A folder in memory where there is one: recovery flushes, and the flushes of ten thousand of them take long on a disk.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

/// A small repeatable stream of numbers.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }
}

/// Commits of one to four rows of all sizes, some superseding others, with checkpoints and compactions in between.
fn record() -> Vec<Answered> {
    let folder = folder();
    let path = folder.path().join("store.db");
    let mut backend = Sqlite::open_sized(&path, WAL_BYTES).expect("opens");
    let mut rows = rows_of(&mut backend);
    let read = || (std::fs::read(&path).expect("reads"), std::fs::read(wal_of(&path)).expect("reads"));
    let (database, wal) = read();
    let mut answered = vec![Answered { database, wal, rows: rows.clone(), compacted: false }];
    let mut numbers = Numbers(7);
    let mut revision = 0;
    for commit in 0..COMMITS {
        let batch: Vec<Row> = (0..=numbers.below(4))
            .map(|_| {
                revision += 1;
                let most = if numbers.below(8) == 0 { 9000 } else { 700 };
                let size = 20 + numbers.below(most);
                let value =
                    (numbers.below(6) > 0).then(|| Bytes::from(vec![b'a' + (revision % 26) as u8; size as usize]));
                Row { revision, key: format!("/pods/ns/p{}", numbers.below(40)), value }
            })
            .collect();
        backend.commit(&batch).expect("commits");
        rows.extend(batch.into_iter().map(|row| (row.revision, row)));
        let (database, wal) = read();
        answered.push(Answered { database, wal, rows: rows.clone(), compacted: false });
        if commit % 60 == 59 {
            let old: Vec<u64> = rows.keys().copied().take(40).collect();
            backend.compact(old[39], &old).expect("compacts");
            rows.retain(|revision, _| !old.contains(revision));
            let (database, wal) = read();
            answered.push(Answered { database, wal, rows: rows.clone(), compacted: true });
        }
    }
    answered
}

/// The bytes in which two images of a file differ.
fn changed(before: &[u8], after: &[u8]) -> Range<usize> {
    let byte = |image: &[u8], at: usize| image.get(at).copied();
    let length = before.len().max(after.len());
    let first = (0..length).find(|at| byte(before, *at) != byte(after, *at)).unwrap_or(length);
    let last = (first..length).rev().find(|at| byte(before, *at) != byte(after, *at)).map_or(first, |at| at + 1);
    first..last
}

/// `before` with the bytes of `after` up to `cut`, as a log that is written from its start to its end leaves them.
fn torn(before: &[u8], after: &[u8], cut: usize) -> Vec<u8> {
    let mut image = after[..cut.min(after.len())].to_vec();
    image.extend_from_slice(before.get(cut..).unwrap_or_default());
    image
}

fn recover(path: &Path, database: &[u8], wal: &[u8]) -> Rows {
    std::fs::write(path, database).expect("writes");
    std::fs::write(wal_of(path), wal).expect("writes");
    let mut backend = Sqlite::open_sized(path, WAL_BYTES).expect("opens after a power cut");
    rows_of(&mut backend)
}

fn check_cuts(answered: &[Answered], cuts: Range<usize>) {
    let folder = folder();
    let path = folder.path().join("store.db");
    let mut numbers = Numbers(cuts.start as u64 + 1);
    for cut in cuts {
        let mut place = 1 + numbers.below(answered.len() as u64 - 1) as usize;
        if answered[place].compacted {
            place -= 1;
        }
        let (before, after) = (&answered[place - 1], &answered[place]);
        let log = changed(&before.wal, &after.wal);
        let checkpointed = before.database != after.database;
        // A checkpoint copies pages into the database while the log still holds them; only then is the log overwritten.
        let (database, wal) = if checkpointed && cut % 3 == 0 {
            let pages = changed(&before.database, &after.database);
            let at = pages.start + numbers.below(pages.len() as u64 + 1) as usize;
            (torn(&before.database, &after.database, at), before.wal.clone())
        } else {
            let at = log.start + numbers.below(log.len() as u64 + 1) as usize;
            (after.database.clone(), torn(&before.wal, &after.wal, at))
        };
        let rows = recover(&path, &database, &wal);
        assert!(
            rows == before.rows || rows == after.rows,
            "cut {cut} of commit {place}: {} rows, {} were answered before it",
            rows.len(),
            before.rows.len()
        );
    }
}

#[test]
fn ten_thousand_power_cuts_lose_nothing_that_was_answered() {
    let answered = record();
    let checkpoints = answered.windows(2).filter(|pair| pair[0].database != pair[1].database).count();
    assert!(checkpoints > 5, "the recording has {checkpoints} checkpoints");
    std::thread::scope(|scope| {
        for half in [0..CUTS / 2, CUTS / 2..CUTS] {
            let answered = &answered;
            scope.spawn(move || check_cuts(answered, half));
        }
    });
}

#[test]
fn a_recovered_store_goes_on() {
    let answered = record();
    let folder = folder();
    let path = folder.path().join("store.db");
    for last in answered.iter().step_by(25) {
        assert_eq!(recover(&path, &last.database, &last.wal), last.rows);
        let mut backend = Sqlite::open_sized(&path, WAL_BYTES).expect("opens");
        let mut rows = rows_of(&mut backend);
        let row = Row { revision: 1_000_000, key: "/pods/ns/new".to_owned(), value: Some(Bytes::from_static(b"x")) };
        backend.commit(std::slice::from_ref(&row)).expect("commits");
        rows.insert(row.revision, row);
        drop(backend);
        let mut backend = Sqlite::open_sized(&path, WAL_BYTES).expect("opens");
        assert_eq!(rows_of(&mut backend), rows);
    }
}
