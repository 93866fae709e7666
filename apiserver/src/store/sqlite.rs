//! The backend of `muster up`: an SQLite database in WAL mode, with the flush under our own control.
//!
//! A table of revisions, as etcd has it: commits append, and superseded rows are dropped later, many at once. The WAL
//! keeps its size (persistent, preallocated, checkpointed before it is full), so that a commit overwrites blocks the
//! file already has and `fdatasync` need not touch the journal of the file system. SQLite itself runs with
//! `synchronous=NORMAL`, which leaves out only the flush of the WAL after a commit; we do exactly that flush, with
//! `fdatasync` where SQLite would take the dearer `fsync`.

use super::backend::{Backend, BackendError, Row};
use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, params};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The size that the WAL is given when the database is opened.
const WAL_BYTES: u64 = 8 << 20;
/// When nobody waits, a WAL of this many pages is worth a checkpoint.
const IDLE_PAGES: i64 = 256;
const PAGE: i64 = 4096;

pub struct Sqlite {
    connection: Connection,
    wal: File,
    /// Pages written to the WAL since the last checkpoint, estimated upwards.
    pages: i64,
    /// The WAL is checkpointed beyond this many pages, so that it does not grow past its preallocated size.
    most_pages: i64,
}

impl Sqlite {
    /// Opens or creates the database. Only one process at a time can have it open.
    pub fn open(path: &Path) -> Result<Self, BackendError> {
        Self::open_sized(path, WAL_BYTES)
    }

    /// The same with a WAL of `wal_bytes`; a small one is checkpointed more often.
    pub fn open_sized(path: &Path, wal_bytes: u64) -> Result<Self, BackendError> {
        keep_private(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.pragma_update(None, "page_size", PAGE)?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        let mode: String = connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))?;
        if mode != "wal" {
            return Err(BackendError::Other(format!("the journal mode stays {mode}")));
        }
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        connection.pragma_update(None, "cache_size", -1024)?;
        keep_wal(&connection)?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS revisions (revision INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB) STRICT;
             CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
             INSERT OR IGNORE INTO meta VALUES ('format', 1), ('floor', 0);",
        )?;
        let format: i64 = connection.query_row("SELECT value FROM meta WHERE name = 'format'", [], |row| row.get(0))?;
        if format != 1 {
            return Err(BackendError::Other(format!("the database has format {format}, this program reads format 1")));
        }
        let wal = preallocate(path, wal_bytes)?;
        let most_pages = wal_bytes as i64 / PAGE * 7 / 10;
        Ok(Sqlite { connection, wal, pages: most_pages, most_pages })
    }

    /// As `checkpoint`, but without room for it the log just stays longer.
    fn checkpoint_if_possible(&mut self) -> Result<(), BackendError> {
        match self.checkpoint() {
            Err(BackendError::Full(why)) => {
                tracing::warn!(why, "no space is left to tidy up the store");
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Tells a lack of room from other trouble: SQLite has then taken back what it was about to write.
    #[allow(unsafe_code)]
    fn trouble(&self, error: rusqlite::Error) -> BackendError {
        use rusqlite::ErrorCode::{DiskFull, SystemIoFailure};
        let full = match error.sqlite_error_code() {
            Some(DiskFull) => true,
            // A user's quota that is used up; SQLite knows of full disks alone.
            Some(SystemIoFailure) => {
                // SAFETY: the handle is that of an open connection; the call only reads a number from it.
                let errno = unsafe { rusqlite::ffi::sqlite3_system_errno(self.connection.handle()) };
                errno == libc::EDQUOT
            }
            _ => false,
        };
        if full { BackendError::Full(error.to_string()) } else { BackendError::Sqlite(error) }
    }

    /// Writes the rows into the log, not yet flushed. Returns how many bytes they are.
    fn append(&mut self, rows: &[Row]) -> Result<usize, rusqlite::Error> {
        // A transaction that ends early is rolled back.
        let transaction = self.connection.transaction()?;
        let mut bytes = 0;
        {
            let mut insert = transaction.prepare("INSERT INTO revisions VALUES (?1, ?2, ?3)")?;
            for row in rows {
                insert.execute(params![row.revision as i64, row.key, row.value.as_deref()])?;
                bytes += row.key.len() + row.value.as_ref().map_or(0, Bytes::len);
            }
        }
        transaction.commit()?;
        Ok(bytes)
    }

    fn delete(&mut self, floor: u64, superseded: &[u64]) -> Result<(), rusqlite::Error> {
        let transaction = self.connection.transaction()?;
        {
            let mut delete = transaction.prepare("DELETE FROM revisions WHERE revision = ?1")?;
            for revision in superseded {
                delete.execute(params![*revision as i64])?;
            }
        }
        transaction.execute("UPDATE meta SET value = ?1 WHERE name = 'floor'", params![floor as i64])?;
        transaction.commit()
    }

    fn checkpoint(&mut self) -> Result<(), BackendError> {
        let outcome = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        outcome.map_err(|error| self.trouble(error))?;
        self.pages = 0;
        Ok(())
    }
}

/// The path of the WAL that belongs to a database.
fn wal_path(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// Tells SQLite to leave the WAL where it is when the database is closed.
#[allow(unsafe_code)]
fn keep_wal(connection: &Connection) -> Result<(), BackendError> {
    let mut on: std::ffi::c_int = 1;
    // SAFETY: the handle is that of an open connection, which outlives the call; "main" names its database; the operation
    // takes a pointer to an int that it reads and writes.
    let code = unsafe {
        rusqlite::ffi::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            rusqlite::ffi::SQLITE_FCNTL_PERSIST_WAL,
            (&raw mut on).cast(),
        )
    };
    if code == rusqlite::ffi::SQLITE_OK {
        Ok(())
    } else {
        Err(BackendError::Other(format!("SQLite cannot keep its WAL (code {code})")))
    }
}

/// Extends the WAL with zeros, which recovery takes for the end of the log, and makes its name durable.
/// Makes the files' owner their only reader, whatever the folder allows: Secrets are in there. SQLite gives a new log the
/// rights of its database.
fn keep_private(database: &Path) -> Result<(), BackendError> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(database)?;
    // Those of an earlier version were readable.
    for path in [database.to_owned(), wal_path(database)] {
        match fs::metadata(&path) {
            Ok(found) if found.permissions().mode() & 0o077 != 0 => {
                fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn preallocate(database: &Path, bytes: u64) -> Result<File, BackendError> {
    let mut wal = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(wal_path(database))?;
    let length = wal.metadata()?.len();
    if length < bytes {
        wal.seek(SeekFrom::Start(length))?;
        let zeros = vec![0u8; 1 << 16];
        let mut left = bytes - length;
        while left > 0 {
            let part = left.min(zeros.len() as u64);
            wal.write_all(&zeros[..part as usize])?;
            left -= part;
        }
    }
    wal.sync_all()?;
    if let Some(folder) = database.parent() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder)?.sync_all()?;
    }
    Ok(wal)
}

impl Backend for Sqlite {
    fn load(&mut self, visit: &mut dyn FnMut(Row)) -> Result<u64, BackendError> {
        let floor: i64 = self.connection.query_row("SELECT value FROM meta WHERE name = 'floor'", [], |r| r.get(0))?;
        {
            let mut query = self.connection.prepare("SELECT revision, key, value FROM revisions ORDER BY revision")?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                let revision: i64 = row.get(0)?;
                let value: Option<Vec<u8>> = row.get(2)?;
                visit(Row { revision: revision as u64, key: row.get(1)?, value: value.map(Bytes::from) });
            }
        }
        self.checkpoint()?;
        Ok(floor as u64)
    }

    fn commit(&mut self, rows: &[Row]) -> Result<(), BackendError> {
        if self.pages > self.most_pages {
            self.checkpoint_if_possible()?;
        }
        let bytes = self.append(rows).map_err(|error| self.trouble(error))?;
        self.wal.sync_data()?;
        self.pages += 4 + 2 * (bytes as i64 / PAGE + 1);
        Ok(())
    }

    fn compact(&mut self, floor: u64, superseded: &[u64]) -> Result<(), BackendError> {
        if self.pages > IDLE_PAGES {
            self.checkpoint_if_possible()?;
        }
        self.delete(floor, superseded).map_err(|error| self.trouble(error))?;
        self.checkpoint_if_possible()
    }

    fn idle(&mut self) -> Result<(), BackendError> {
        if self.pages > IDLE_PAGES { self.checkpoint_if_possible() } else { Ok(()) }
    }
}
