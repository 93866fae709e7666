//! The store: every live object in memory, every change on disk before anybody hears of it.
//!
//! ```text
//! writer --commit()--> head (checked, numbered, queued) --writer thread--> backend (durable) --> view (published)
//! ```
//! - `head` is the newest state, with the writes that are still on their way to the disk. Writers check against it,
//!   so that two of them cannot both win; nobody else sees it.
//! - `view` is what is durable. Reads, lists and watches see only the view, and never wait for a writer's disk.
//! - Writes that wait together are committed together: one flush of the disk serves them all.
//!
//! One revision counts all changes of all resources. Each resource keeps its latest events, so that a watch can
//! resume and a list can be answered as of an older revision; what is older is refused (410 Gone).

mod backend;
mod memory;
mod object;
mod sqlite;
mod view;
mod writer;

pub use backend::{Backend, BackendError, Row};
pub use memory::Memory;
pub use object::{Draft, Index, Key, Object};
pub use sqlite::Sqlite;
pub use view::{Event, Expired, Page, Watch};
pub use writer::{CommitError, Op, OpenError, Store};

#[cfg(test)]
mod tests;
