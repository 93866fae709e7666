//! `muster up`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

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
