//! The `muster` command. `cli` says what can be typed, `settings` what it resolves to, `commands` what it does.

mod cli;
mod client;
mod commands;
mod data_folder;
mod env;
mod exit;
mod jobs;
mod kubeconfig;
mod logging;
mod memory;
mod output;
mod pki;
mod roles;
mod settings;
mod signals;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A supervisor outlives the server and holds a container's processes: it must stay small, so it never gets a
    // runtime.
    if let Some(hidden) = commands::supervise::requested() {
        return commands::supervise::run(&hidden);
    }
    let cli = cli::Cli::parse();
    match commands::dispatch(cli) {
        Ok(status) => status.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            exit::ExitStatus::Failure.into()
        }
    }
}
