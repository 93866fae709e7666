//! What can be typed: commands, flags, help. No logic.

use clap::{Args, Parser, Subcommand, ValueEnum, builder::styling};
use muster_collectives::{DType, ReduceOp};
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::commands::bench::{Sizes, parse_dtype, parse_op};

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

/// A part of the server that can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Role {
    /// The Kubernetes-compatible API over the durable store
    Apiserver,
    /// Namespaces, garbage collection, service accounts, quota
    Controllers,
    /// The training operator, and the rendezvous of its workers
    Operator,
    /// The gang scheduler
    Scheduler,
    /// Runs pods as processes of this machine
    Node,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Addressing {
    /// Pods share the host's network; every replica gets a port of its own
    HostPorts,
    /// Names and fixed ports, as on a cluster
    Dns,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  muster up
  muster up --data-dir ./state --listen 127.0.0.1:0 --kubeconfig ./kubeconfig
  KUBECONFIG=./kubeconfig kubectl get nodes

The first Ctrl-C ends all pods in order and stops; the second stops at once.")]
pub(crate) struct UpArgs {
    /// Folder of the store, keys and logs of pods [default: $MUSTER_HOME/data or $XDG_DATA_HOME/muster]
    #[arg(long, value_name = "DIR", env = "MUSTER_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Loopback address to serve on; port 0 takes a free one and keeps it over restarts [default: 127.0.0.1:0]
    #[arg(long, value_name = "ADDRESS:PORT", env = "MUSTER_LISTEN")]
    pub(crate) listen: Option<SocketAddr>,
    /// Kubeconfig to write (to read, without the apiserver role) [default: DATA-DIR/kubeconfig]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Parts to run, separated by commas [default: all]
    #[arg(long, value_name = "ROLES", value_enum, value_delimiter = ',', env = "MUSTER_ROLES")]
    pub(crate) roles: Option<Vec<Role>>,
    /// How replicas of a job find each other [default: host-ports]
    #[arg(long, value_name = "KIND", value_enum, env = "MUSTER_ADDRESSING")]
    pub(crate) addressing: Option<Addressing>,
    /// Image table: what an image's name stands for on this machine [default: images.toml in the config folder]
    #[arg(long, value_name = "FILE", env = "MUSTER_IMAGES")]
    pub(crate) images: Option<PathBuf>,
    /// Offer this many GPUs that do not exist, for tests
    #[arg(long, value_name = "N", env = "MUSTER_SIMULATED_GPUS")]
    pub(crate) simulated_gpus: Option<u32>,
    /// What is logged: error, warn, info, debug, trace, or directives such as info,muster_operator=debug [default: info]
    #[arg(long, value_name = "LEVEL", env = "MUSTER_LOG_LEVEL")]
    pub(crate) log_level: Option<String>,
    /// How it is logged [default: text]
    #[arg(long, value_name = "FORMAT", value_enum, env = "MUSTER_LOG_FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// Print the resolved settings as a config file, and end
    #[arg(long)]
    pub(crate) dump_config: bool,
}

/// Which server and namespace a client command speaks to.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Target {
    /// Kubeconfig [default: $KUBECONFIG, then the one of `muster up`, then ~/.kube/config]
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Namespace [default: the context's]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
}

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
  muster apply -f job.yaml
  muster apply -f manifests/ --dry-run
  cat job.yaml | muster apply -f -")]
pub(crate) struct ApplyArgs {
    /// File, folder of .yaml, .yml and .json files, or `-`; may be given again
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    pub(crate) filename: Vec<PathBuf>,
    /// Have the server check and answer, without keeping anything
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Take over fields that others manage
    #[arg(long)]
    pub(crate) force_conflicts: bool,
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub(crate) output: Option<OutputFormat>,
    #[command(flatten)]
    pub(crate) target: Target,
}

/// How objects are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    Json,
    Yaml,
    /// The table with its further columns
    Wide,
    /// KIND/NAME
    Name,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  muster get pytorchjobs
  muster get pods -l training.kubeflow.org/job-name=mnist -o wide
  muster get pytorchjob mnist -o yaml
  muster get pods,events -A
  muster get pytorchjobs -w")]
pub(crate) struct GetArgs {
    /// Kinds, separated by commas, and names: `pods`, `pod NAME`, `pod/NAME pytorchjob/NAME`
    #[arg(required = true, value_name = "KIND[/NAME]")]
    pub(crate) what: Vec<String>,
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub(crate) output: Option<OutputFormat>,
    /// Go on showing changes
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// All namespaces
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// Labels to select by
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub(crate) selector: Option<String>,
    /// Fields to select by
    #[arg(long, value_name = "SELECTOR")]
    pub(crate) field_selector: Option<String>,
    /// Leave the header out
    #[arg(long)]
    pub(crate) no_headers: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  muster describe pytorchjob mnist
  muster describe pod/mnist-worker-0
  muster describe node")]
pub(crate) struct DescribeArgs {
    /// Kind and name: `pytorchjob NAME` or `pytorchjob/NAME`
    #[arg(required = true, value_name = "KIND[/NAME]")]
    pub(crate) what: Vec<String>,
    #[command(flatten)]
    pub(crate) target: Target,
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
    pub(crate) since: Option<std::time::Duration>,
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
  muster wait pytorchjob/mnist --for Succeeded --timeout 10m
  muster wait pod/mnist-master-0 --for Ready
  muster wait pod/mnist-master-0 --for delete

Waiting for Succeeded ends with code 1 as soon as the job has Failed.")]
pub(crate) struct WaitArgs {
    /// Kind and name: `pytorchjob NAME` or `pytorchjob/NAME`
    #[arg(required = true, value_name = "KIND[/NAME]")]
    pub(crate) what: Vec<String>,
    /// CONDITION, CONDITION=STATUS, condition=CONDITION[=STATUS] or delete
    #[arg(long = "for", value_name = "CONDITION")]
    pub(crate) condition: String,
    /// How long to wait, as 30s, 5m, 2h
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub(crate) timeout: std::time::Duration,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  muster delete pytorchjob mnist
  muster delete -f job.yaml
  muster delete pods -l training.kubeflow.org/job-name=mnist --no-wait")]
pub(crate) struct DeleteArgs {
    /// Kinds and names: `pod NAME`, `pod/NAME`, `pods` with a selector
    #[arg(value_name = "KIND[/NAME]", required_unless_present = "filename")]
    pub(crate) what: Vec<String>,
    /// The objects of a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "what")]
    pub(crate) filename: Vec<PathBuf>,
    /// Labels to select by
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub(crate) selector: Option<String>,
    /// All of the kind in the namespace
    #[arg(long)]
    pub(crate) all: bool,
    /// Do not wait until they are gone
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// It is fine when they are not there
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  muster version
  muster version --client -o json")]
pub(crate) struct VersionArgs {
    /// Only of this command
    #[arg(long)]
    pub(crate) client: bool,
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub(crate) output: Option<OutputFormat>,
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

/// A collective operation that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Operation {
    /// Every rank gets the combination of what all gave
    #[value(name = "all_reduce", alias = "allreduce", alias = "all-reduce")]
    AllReduce,
    /// Every rank gets its part of the combination
    #[value(name = "reduce_scatter", alias = "reducescatter", alias = "reduce-scatter")]
    ReduceScatter,
    /// Every rank gets what all gave, one after the other
    #[value(name = "all_gather", alias = "allgather", alias = "all-gather")]
    AllGather,
    /// Every rank gets what rank 0 gave
    Broadcast,
    /// Rank 0 gets the combination of what all gave
    Reduce,
    /// Rank 0 gets what all gave, one after the other
    Gather,
    /// Every rank gets its part of what rank 0 gave
    Scatter,
    /// Every rank gets its part of what each gave
    #[value(name = "all_to_all", alias = "alltoall", alias = "all-to-all")]
    AllToAll,
    /// Every rank sends to the next and receives from the one before
    #[value(name = "send_recv", alias = "sendrecv", alias = "send-recv")]
    SendRecv,
    /// Nothing is given; returns when all have called it
    Barrier,
}

/// Where the memory of an operation comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BufferKind {
    /// Allocated through the communicator, so that ranks reach each other's
    Shared,
    /// Any memory of the process
    Private,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TransportChoice {
    /// Shared memory between ranks of one host, TCP between hosts
    Auto,
    Shm,
    /// TCP over the loopback, also on one host
    Tcp,
}

/// A library to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rival {
    /// PyTorch's gloo
    Gloo,
    /// Open MPI
    Mpi,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  muster bench allreduce
  muster bench allreduce --ranks 4 --sizes 4KiB,1MiB,100MB --compare gloo,mpi --svg allreduce.svg
  muster bench all_gather --sizes 4KiB..100MB --dtype bf16 --transport tcp --json
  muster bench allreduce --job --workers 4

How it measures: the ranks are processes, each bound to a core where there are enough of them. All
libraries are started once and take turns in every round; who has no turn waits without using the
processor. Before each iteration the ranks make fresh random data and meet in a barrier. The time of
an iteration is that of its slowest rank. After it every element of every result is checked. p10, p50
and p99 are over the iterations of all rounds; the first iterations of a turn are checked but do not
count.

SIZE is, as in nccl-tests, that of the buffer that is reduced or sent, or of the parts of all ranks
together. ALGBW is size / p50; BUSBW is that times 2(n-1)/n for all_reduce, (n-1)/n for
reduce_scatter, all_gather, gather, scatter and all_to_all, 1 for the others. The memory's limits are measured in the same rounds:
what memcpy and an addition in place reach on all ranks' cores together, in bytes read and written.

`make rivals` installs gloo and Open MPI. Where one of them is over 1.5 times slower than it is on an
idle machine, the run is void and says so.")]
pub(crate) struct BenchArgs {
    /// The operation
    #[arg(value_enum)]
    pub(crate) operation: Operation,
    /// Number of processes that take part
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=32))]
    pub(crate) ranks: u32,
    /// Sizes, behind commas; A..B are both and what lies between in powers of four
    #[arg(long, value_name = "SIZES", default_value = "4KiB,64KiB,1MiB,16MiB,100MB")]
    pub(crate) sizes: Sizes,
    /// Type of the elements: f64, f32, f16, bf16, i8, i16, i32, i64, u8
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = parse_dtype)]
    pub(crate) dtype: DType,
    /// How they are combined: sum, mean, min, max, product
    #[arg(long, value_name = "OP", default_value = "sum", value_parser = parse_op)]
    pub(crate) op: ReduceOp,
    /// How the ranks reach each other
    #[arg(long, value_name = "KIND", value_enum, default_value = "auto")]
    pub(crate) transport: TransportChoice,
    /// Only buffers of this kind [default: both]
    #[arg(long, value_name = "KIND", value_enum)]
    pub(crate) buffer: Option<BufferKind>,
    /// Libraries to measure as well, behind commas
    #[arg(long, value_name = "LIBRARIES", value_enum, value_delimiter = ',')]
    pub(crate) compare: Vec<Rival>,
    /// How often the libraries take turns
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Iterations of each case that are counted, over all rounds [default: as many as the seconds allow]
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) iterations: Option<u32>,
    /// How long each case is measured, over all rounds, with at most 1000 iterations a round
    #[arg(long, value_name = "S", default_value_t = 3.0, value_parser = parse_seconds)]
    pub(crate) seconds: f64,
    /// Print a JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw the times into this file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Write the time of every iteration into this file, as JSON lines
    #[arg(long, value_name = "FILE")]
    pub(crate) raw: Option<PathBuf>,
    /// End with an error where the run is void or a result is wrong
    #[arg(long)]
    pub(crate) strict: bool,
    /// Run as a job: the ranks are a gang of pods, as with `muster run`
    #[arg(long, conflicts_with = "compare")]
    pub(crate) job: bool,
    /// Number of pods of the job [default: --ranks]
    #[arg(long, short = 'w', value_name = "N", requires = "job", conflicts_with = "ranks", value_parser = clap::value_parser!(u32).range(1..=32))]
    pub(crate) workers: Option<u32>,
    /// This process is a rank of such a job
    #[arg(long, hide = true, conflicts_with = "job")]
    pub(crate) gang: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

/// What `muster bench` tells a rank that it starts.
#[derive(Args, Clone, Debug)]
pub(crate) struct BenchRankArgs {
    /// Where the pipes are
    #[arg(long)]
    pub(crate) folder: PathBuf,
    #[arg(long)]
    pub(crate) rank: usize,
    /// The core to be bound to
    #[arg(long)]
    pub(crate) core: Option<usize>,
    #[arg(long, value_enum)]
    pub(crate) transport: TransportChoice,
    /// The largest size that is to come
    #[arg(long)]
    pub(crate) bytes: usize,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 3600.0 => Ok(seconds),
        _ => Err("expected a number of seconds above 0, up to 3600".to_owned()),
    }
}

/// Durations as kubectl writes them: `90s`, `5m`, `1h30m`; a bare number is seconds.
fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let malformed = || "expected a duration such as 30s, 5m or 1h30m".to_owned();
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(std::time::Duration::from_secs(seconds));
    }
    let mut total = std::time::Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(malformed());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(malformed)?;
        let number: u64 = rest[..digits].parse().map_err(|_| malformed())?;
        let unit_length = rest[digits..].find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len() - digits);
        let seconds = match &rest[digits..digits + unit_length] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(malformed()),
        };
        total += number.checked_mul(seconds).map(std::time::Duration::from_secs).ok_or_else(malformed)?;
        rest = &rest[digits + unit_length..];
    }
    Ok(total)
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
    fn durations_are_read_as_kubectl_writes_them() {
        let seconds = |text| parse_duration(text).map(|d| d.as_secs());
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("1h30m"), Ok(5400));
        assert_eq!(seconds("2m5s"), Ok(125));
        for wrong in ["", "m", "5x", "-3s", "99999999999999999999h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?}");
        }
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
