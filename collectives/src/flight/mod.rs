//! The flight recorder: what each rank's communicator did last, readable from outside at any time.
//!
//! A communicator keeps its last operations in memory that has no name and no file behind it, but a descriptor in
//! the rank's process. Another process of the same user finds it below `/proc` and reads it; the rank takes no part
//! in that, so it may be stopped, hung or in the middle of an operation. With the process the record is gone.
//!
//! ```text
//! record     what lies where in the memory, and the rank's side
//! read       the other side: finds records, takes their bytes for what they are: a stranger's
//! analysis   who waits for whom, and who is to blame (pure)
//! ```

mod analysis;
mod graph;
mod ranks;
mod read;
mod record;
mod sentence;

pub use analysis::{Activity, Cause, Culprit, Group, RankReport, analyse};
pub use ranks::RankSet;
pub use read::{Failure, Found, Operation, Process, Recording, Skipped, State, find};
pub(crate) use record::{Recorder, Seat};
pub use sentence::Span;

/// The longest label of a job, in bytes.
pub const LABEL_MAX: usize = record::LABEL_WORDS * 8;
