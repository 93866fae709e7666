//! One file a command; each has one function that returns the exit status.

mod apply;
pub(crate) mod bench;
mod completion;
mod delete;
mod describe;
mod flight;
mod get;
mod logs;
mod run;
mod scale;
pub(crate) mod supervise;
mod up;
mod version;
mod wait;

use crate::cli::{Cli, Command};
use crate::exit::ExitStatus;
use anyhow::{Context, Result};
use std::future::Future;

pub(crate) fn dispatch(cli: Cli) -> Result<ExitStatus> {
    match cli.command {
        Command::Up(args) => up::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Apply(args) => client(apply::run(&args)),
        Command::Get(args) => client(get::run(&args)),
        Command::Describe(args) => client(describe::run(&args)),
        Command::Logs(args) => client(logs::run(&args)),
        Command::Scale(args) => client(scale::run(&args)),
        Command::Wait(args) => client(wait::run(&args)),
        Command::Delete(args) => client(delete::run(&args)),
        Command::Flight(args) => flight::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::BenchRank(args) => bench::rank::run(&args),
        Command::Version(args) => client(version::run(&args)),
        Command::Completion { shell } => Ok(completion::run(shell)),
    }
}

/// A client command waits on the network and needs no second thread.
fn client(command: impl Future<Output = Result<ExitStatus>>) -> Result<ExitStatus> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?
        .block_on(command)
}
