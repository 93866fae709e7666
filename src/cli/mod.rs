//! What can be typed: commands, flags, help. No logic.

mod bench;
mod duration;
mod jobs;
mod objects;
mod server;

use clap::{Parser, Subcommand, builder::styling};

pub(crate) use bench::{BenchArgs, BenchRankArgs, BufferKind, Operation, Rival, TransportChoice};
pub(crate) use jobs::{FlightArgs, FlightFormat, LogsArgs, RunArgs, ScaleArgs};
pub(crate) use objects::{ApplyArgs, DeleteArgs, DescribeArgs, GetArgs, OutputFormat, Target, VersionArgs, WaitArgs};
pub(crate) use server::{Addressing, LogFormat, Role, UpArgs};

const STYLES: styling::Styles = styling::Styles::styled()
    .header(styling::AnsiColor::Green.on_default().bold())
    .usage(styling::AnsiColor::Green.on_default().bold())
    .literal(styling::AnsiColor::Cyan.on_default().bold())
    .placeholder(styling::AnsiColor::Cyan.on_default());

/// Kubeflow in one binary: training jobs on this machine, or on a cluster.
#[derive(Debug, Parser)]
#[command(name = "muster", version, styles = STYLES, max_term_width = 100, after_help = "\
Examples:
  muster run --workers 2 -- python train.py     train with two processes, no server needed
  muster run job.yaml                           run a PyTorchJob, TFJob or MXJob to its end
  muster up                                     a Kubernetes-compatible server on this machine
  muster get pytorchjobs                        what is there

`muster COMMAND --help` shows the flags and examples of one command.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the server: API server, operator, gang scheduler and node in one process
    Up(UpArgs),
    /// Run a job to its end: its logs are shown, its exit code is the command's
    Run(RunArgs),
    /// Create or change objects from files
    Apply(ApplyArgs),
    /// Show objects
    Get(GetArgs),
    /// Show one object in full: conditions, pods, events
    Describe(DescribeArgs),
    /// Show the logs of a job, all ranks together, or of a pod
    Logs(LogsArgs),
    /// Change the number of workers of a job
    Scale(ScaleArgs),
    /// Wait for a condition of an object
    Wait(WaitArgs),
    /// Delete objects
    Delete(DeleteArgs),
    /// Show what the ranks on this machine do, who waits for whom, and who is to blame
    Flight(FlightArgs),
    /// Measure the collective operations on this machine, beside gloo and Open MPI
    Bench(BenchArgs),
    /// One rank of `muster bench`, which starts it
    #[command(hide = true)]
    BenchRank(BenchRankArgs),
    /// Show the versions of this command and of the server
    Version(VersionArgs),
    /// Print the completion script of a shell
    #[command(after_help = "\
Examples:
  source <(muster completion bash)
  muster completion zsh > \"${fpath[1]}/_muster\"
  muster completion fish > ~/.config/fish/completions/muster.fish")]
    Completion { shell: clap_complete::Shell },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_to_run_stands_behind_two_dashes() {
        let cli =
            Cli::try_parse_from(["muster", "run", "--workers", "2", "--", "python", "train.py", "--lr", "1"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!((run.workers, run.command.len(), run.file), (2, 4, None));
        assert!(Cli::try_parse_from(["muster", "run"]).is_err(), "neither file nor command");
        assert!(Cli::try_parse_from(["muster", "run", "a.yaml", "--", "true"]).is_err(), "both");
    }
}
