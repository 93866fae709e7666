//! `supervise DIR` and `enter DIR`, as `muster` has them. For this crate's tests.

use muster_launcher::node::supervisor;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [verb, dir] if verb == "enter" => supervisor::enter(Path::new(dir)),
        _ => supervisor::main(),
    }
}
