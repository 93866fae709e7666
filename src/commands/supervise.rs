//! The hidden command `muster supervise DIR`: what holds the processes of one pod. The node starts it; see
//! `muster_launcher::node::supervisor`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The folder, when this process was started as a supervisor.
pub(crate) fn requested() -> Option<PathBuf> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != "supervise" {
        return None;
    }
    arguments.next().map(PathBuf::from)
}

pub(crate) fn run(dir: &Path) -> ExitCode {
    muster_launcher::node::supervisor::main(dir)
}
