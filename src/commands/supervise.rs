//! The hidden commands `muster supervise DIR`, from which the node's supervisors are forked (the folder is there for those
//! who read a list of processes), and `muster enter DIR`, which runs a further command in a container. The node starts
//! them; see `muster_launcher::node::supervisor`.

use muster_launcher::node::supervisor;
use std::path::PathBuf;
use std::process::ExitCode;

/// What this process was started as.
pub(crate) enum Hidden {
    Supervise,
    Enter(PathBuf),
}

pub(crate) fn requested() -> Option<Hidden> {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next()?.to_str()? {
        "supervise" => Some(Hidden::Supervise),
        "enter" => Some(Hidden::Enter(PathBuf::from(arguments.next()?))),
        _ => None,
    }
}

pub(crate) fn run(hidden: &Hidden) -> ExitCode {
    match hidden {
        Hidden::Supervise => supervisor::main(),
        Hidden::Enter(dir) => supervisor::enter(dir),
    }
}
