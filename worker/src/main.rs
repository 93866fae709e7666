//! `muster-worker`: one rank of a training job.

use std::process::ExitCode;

fn main() -> ExitCode {
    muster_worker::program::run()
}
