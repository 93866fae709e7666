//! The seam between the store and what keeps its data: SQLite, memory, or a test that injects faults.

use bytes::Bytes;

/// One change of one object: a row of the log of revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub revision: u64,
    /// `group/plural/namespace/name`, see [`super::Key`].
    pub key: String,
    /// The object, or nothing where it was deleted.
    pub value: Option<Bytes>,
}

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("the store's database failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the store's file failed: {0}")]
    Io(#[from] std::io::Error),
    /// There is no room. What was to be kept was not, and that is certain: the next attempt may go well.
    #[error("no space is left for the store: {0}")]
    Full(String),
    #[error("the store refused: {0}")]
    Other(String),
}

/// Keeps rows. Called by one thread at a time.
pub trait Backend: Send {
    /// Hands all rows kept to `visit`, by ascending revision. Returns the revision up to which superseded rows may be
    /// missing, so that history is complete only above it.
    fn load(&mut self, visit: &mut dyn FnMut(Row)) -> Result<u64, BackendError>;

    /// Keeps all the rows or none. Once it returns Ok they survive a power cut; on [`BackendError::Full`] none of them is
    /// kept; after any other error nobody knows.
    fn commit(&mut self, rows: &[Row]) -> Result<(), BackendError>;

    /// Drops rows that newer ones have superseded; all of them are at or below `floor`. Need not be durable.
    fn compact(&mut self, floor: u64, superseded: &[u64]) -> Result<(), BackendError>;

    /// Housekeeping for a moment in which nobody waits.
    fn idle(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Whether `commit` returns at once, so that it may run on the caller's thread. A store like that never makes a
    /// paused clock wait for a thread.
    fn inline(&self) -> bool {
        false
    }
}
