//! The supervisor: a tiny process (this binary, executed again) for each container.
//!
//! It is the parent of the container's process, so it survives the control plane, keeps the log pipes open and
//! records the exit status. It has no threads, no runtime and no network.
//!
//! ```text
//!  node                    supervisor                         init (PID 1 of a namespace)   container process
//!   | spawns, spec on stdin   |                                       |                          |
//!   |------------------------>| takes DIR/lock                        |                          |
//!   |                         | clone(NEWNS|NEWPID) ----------------->| mounts, then forks ----->| exec
//!   |<-- start report --------| DIR/run.json                          |                          |
//!   |                         |<-------- stdout, stderr --------------------------------------- -|
//!   |  SIGTERM -------------->|-------------------------------------->| to the whole group ----->|
//!   |  SIGUSR1 (kill) ------->| SIGKILL ----------------------------->| (all of the namespace)   |
//!   |                         |<------------- exit status ------------| reaps; kills the rest    |
//!   |<-- ends (pidfd) --------| DIR/exit.json
//! ```
//!
//! Without the privilege for namespaces there is no init: the supervisor is the subreaper of the process's tree and
//! kills all of it. It ends itself, and the container, when DIR is removed. If it is killed itself, the kernel
//! kills the container's process (and with a PID namespace everything under it).
//!
//! How a container ended is synced to the disk, with what names its pod: a power cut does not take it. The record of
//! one that runs is not: what a power cut takes, it takes from the container as well (the boot id in `run.json` tells).

mod enter;
mod init;
mod logfile;
mod mounts;
mod process;
mod record;

pub use enter::enter;
pub use process::main;
pub use record::Mount;
pub(crate) use record::{
    ExitRecord, LOCK_FILE, POD_FILE, RECORD_VERSION, RunRecord, Spec, StartReport, boot_id, read_exit, read_run,
    start_time_of, write_atomically, write_exit,
};
