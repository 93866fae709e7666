//! `supervise DIR` and `enter DIR`, as `muster` has them. For this crate's tests.

use muster_launcher::node::supervisor;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args_os().collect::<Vec<_>>().as_slice() {
        [_, verb, dir] if verb == "enter" => supervisor::enter(Path::new(dir)),
        _ => supervisor::main(),
    }
}
