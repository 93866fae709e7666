//! `supervise DIR`: the supervisor alone, as `muster supervise DIR` runs it. For this crate's tests.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.as_slice() {
        [_, command, dir] if command == "supervise" => muster_launcher::node::supervisor::main(Path::new(dir)),
        _ => {
            eprintln!("usage: supervise supervise DIR");
            ExitCode::from(2)
        }
    }
}
