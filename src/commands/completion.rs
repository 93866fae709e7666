//! `muster completion`

use crate::cli::Cli;
use crate::exit::ExitStatus;
use clap::CommandFactory;

pub(crate) fn run(shell: clap_complete::Shell) -> ExitStatus {
    clap_complete::generate(shell, &mut Cli::command(), "muster", &mut std::io::stdout());
    ExitStatus::Success
}
