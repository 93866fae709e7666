//! Commands on jobs: running one, and looking at what its ranks do.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::duration::parse_duration;
use super::objects::Target;

#[derive(Args, Clone, Debug)]
#[command(override_usage = "muster run [OPTIONS] <FILE>\n       muster run [OPTIONS] -- <COMMAND>...")]
#[command(after_help = "\
Examples:
  muster run job.yaml
  muster run --workers 4 --gpus-per-worker 1 -- python train.py --epochs 3
  muster run --workers 2 --image muster-worker -- muster-worker train

Without a running server one is started for the job and stopped after it. Ctrl-C deletes the job.")]
pub(crate) struct RunArgs {
    /// A file with one job (`-` reads standard input)
    #[arg(value_name = "FILE", required_unless_present = "command", conflicts_with = "command")]
    pub(crate) file: Option<PathBuf>,
    /// Number of processes that train together
    #[arg(long, short = 'w', value_name = "N", default_value_t = 1, conflicts_with = "file", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) workers: u32,
    /// GPUs for each of them
    #[arg(long, value_name = "G", default_value_t = 0, conflicts_with = "file")]
    pub(crate) gpus_per_worker: u32,
    /// Name of the job [default: made from the command]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Image: `host` is the environment of this machine
    #[arg(long, value_name = "IMAGE", default_value = "host", conflicts_with = "file")]
    pub(crate) image: String,
    /// Environment variable for the processes, may be given again
    #[arg(long, short, conflicts_with = "file", value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Delete the job when it has ended, also from a server that goes on running
    #[arg(long)]
    pub(crate) rm: bool,
    /// Image table for the server that is started
    #[arg(long, value_name = "FILE", env = "MUSTER_IMAGES")]
    pub(crate) images: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) target: Target,
    /// The command of each process; RANK, WORLD_SIZE, MASTER_ADDR and so on are in its environment
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  muster logs mnist -f
  muster logs pytorchjob/mnist --tail 20
  muster logs pod/mnist-worker-0 --previous")]
pub(crate) struct LogsArgs {
    /// A job (NAME or KIND/NAME) or a pod (pod/NAME)
    #[arg(value_name = "[KIND/]NAME")]
    pub(crate) what: String,
    /// Go on until the job has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// The container [default: the main one]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) container: Option<String>,
    /// Of the run before the last restart
    #[arg(short, long)]
    pub(crate) previous: bool,
    /// Only the last N lines of each rank
    #[arg(long, value_name = "N")]
    pub(crate) tail: Option<i64>,
    /// Only what is younger, as 10s, 5m, 2h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) since: Option<Duration>,
    /// A timestamp before each line
    #[arg(long)]
    pub(crate) timestamps: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  muster scale pytorchjob/mnist --replicas 4")]
pub(crate) struct ScaleArgs {
    /// Kind and name: `pytorchjob NAME` or `pytorchjob/NAME`
    #[arg(required = true, value_name = "KIND[/NAME]")]
    pub(crate) what: Vec<String>,
    /// The number of workers to have
    #[arg(long, value_name = "N")]
    pub(crate) replicas: u32,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  muster flight
  muster flight --job mnist --ops 20
  muster flight --pid 4711 -o json

Every rank keeps its last 256 collective operations in memory that other processes of the same user
can read, also while it hangs or is stopped. A rank in an operation waits for those that have not
begun it; between two operations its state is `outside`. Where somebody has waited for over a second,
the ranks that hold the others up are named, with what to do. In JSON, sets of ranks are lists of
[first, last].")]
pub(crate) struct FlightArgs {
    /// Only communicators of this job
    #[arg(long, value_name = "LABEL")]
    pub(crate) job: Option<String>,
    /// Only communicators that this process takes part in
    #[arg(long, value_name = "PID")]
    pub(crate) pid: Option<u32>,
    /// Also the last N operations of each rank
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=256))]
    pub(crate) ops: u16,
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: FlightFormat,
}

/// How `muster flight` shows what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FlightFormat {
    Table,
    Json,
}
