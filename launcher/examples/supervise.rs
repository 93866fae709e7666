//! `supervise DIR`: forks supervisors, as `muster supervise DIR` does. For this crate's tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    muster_launcher::node::supervisor::main()
}
