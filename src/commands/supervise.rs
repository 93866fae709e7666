//! The hidden commands `muster supervise DIR`, which holds a container's process, and `muster enter DIR`, which runs a
//! further command in it. The node starts them; see `muster_launcher::node::supervisor`.

use muster_launcher::node::supervisor;
use std::path::PathBuf;
use std::process::ExitCode;

/// What this process was started as.
pub(crate) enum Hidden {
    Supervise(PathBuf),
    Enter(PathBuf),
}

pub(crate) fn requested() -> Option<Hidden> {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next()?;
    let dir = PathBuf::from(arguments.next()?);
    match command.to_str()? {
        "supervise" => Some(Hidden::Supervise(dir)),
        "enter" => Some(Hidden::Enter(dir)),
        _ => None,
    }
}

pub(crate) fn run(hidden: &Hidden) -> ExitCode {
    match hidden {
        Hidden::Supervise(dir) => supervisor::main(dir),
        Hidden::Enter(dir) => supervisor::enter(dir),
    }
}
