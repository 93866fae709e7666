//! The supervisor: a tiny process (see `spawner`) for each container.
//!
//! It is the parent of the container's process, so it survives the control plane, keeps the log pipes open and
//! records the exit status. It has no threads, no runtime and no network.
//!
//! ```text
//!  node                    supervisor                         init (PID 1 of a namespace)   container process
//!   | forked, spec on stdin   |                                       |                          |
//!   |------------------------>| locks DIR/record                      |                          |
//!   |                         | clone(NEWNS|NEWPID) ----------------->| mounts, then forks ----->| exec
//!   |<-- start report --------| DIR/record: run                       |                          |
//!   |                         |<-------- stdout, stderr --------------------------------------- -|
//!   |  SIGTERM -------------->|-------------------------------------->| to the whole group ----->|
//!   |  SIGUSR1 (kill) ------->| SIGKILL ----------------------------->| (all of the namespace)   |
//!   |                         |<------------- exit status ------------| reaps; kills the rest    |
//!   |<-- ends (pidfd) --------| DIR/record: exit
//! ```
//!
//! Without the privilege for namespaces there is no init: the supervisor is the subreaper of the process's tree and
//! kills all of it. It ends itself, and the container, when DIR is removed. If it is killed itself, the kernel
//! kills the container's process (and with a PID namespace everything under it).
//!
//! The records are not synced to the disk: they outlive every process, and what a power cut takes, it takes from
//! the container as well (the boot id in the record tells).

mod enter;
mod environment;
mod init;
mod logfile;
mod mounts;
mod process;
mod record;
mod spawner;

pub use enter::enter;
pub(crate) use enter::{EnterReport, EnterSpec};
pub(crate) use logfile::Stream;
pub(crate) use process::DRAIN_MS;
pub use record::Mount;
pub(crate) use record::{
    ExitRecord, LOG_FILE, RECORD_VERSION, RunRecord, Spec, StartReport, boot_id, open as open_record, read_exit,
    read_run, start_time_of, write_atomically, write_exit,
};
pub(crate) use spawner::Spawner;
pub use spawner::main;
