//! Why something of NCCL or CUDA is not there, or did not work.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Why a library cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LoadError {
    /// Each name or path, and what the system's loader said to it.
    #[error("{}", not_found(tried, advice))]
    NotFound { tried: Vec<(PathBuf, String)>, advice: &'static str },
    #[error("{} has no {symbol}: it is not the library that it is named for, or too old", path.display())]
    Symbol { path: PathBuf, symbol: &'static str },
    #[error("{} is NCCL {found}, older than {needed}", path.display())]
    TooOld { path: PathBuf, found: String, needed: String },
}

fn not_found(tried: &[(PathBuf, String)], advice: &str) -> String {
    let mut text = String::from("no library could be loaded; tried ");
    for (index, (path, cause)) in tried.iter().enumerate() {
        let separator = if index == 0 { "" } else { "; " };
        // A String takes everything.
        let _ = write!(text, "{separator}{} ({cause})", path.display());
    }
    let _ = write!(text, ". {advice}");
    text
}

/// What the CUDA driver refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DriverError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("{function} failed: {name} ({code}): {text}")]
    Call { function: &'static str, code: i32, name: String, text: String },
    #[error("no device {ordinal}: the driver shows {count}")]
    NoDevice { ordinal: usize, count: usize },
    #[error("{0}")]
    Argument(String),
}

/// Every error but [`Error::Argument`] ends the communicator that it came from.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    #[error("NCCL: {0}")]
    Load(#[from] LoadError),
    #[error("CUDA driver: {0}")]
    Driver(#[from] DriverError),
    #[error("invalid argument: {0}")]
    Argument(String),
    #[error("NCCL {version} has no {function}")]
    Absent { function: &'static str, version: String },
    /// `text` is NCCL's own description, and its last error where it has one.
    #[error("{function} failed: {name} ({code}): {text}")]
    Call { function: &'static str, code: i32, name: &'static str, text: String },
    #[error("{what} did not end within {} ms", waited.as_millis())]
    Timeout { what: &'static str, waited: Duration },
    #[error("aborted: {0}")]
    Aborted(String),
    /// The communicator has been closed.
    #[error("the communicator is closed")]
    Closed,
    /// What the ranks' own communicator said while the unique id was handed out.
    #[error("exchange of the unique id: {0}")]
    Exchange(String),
}

impl Error {
    /// Whether the communicator can no longer be used.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Error::Argument(_) | Error::Absent { .. })
    }
}
