//! Commands on objects of any kind, and what all commands that speak to a server have in common.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::duration::parse_duration;

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
    pub(crate) timeout: Duration,
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
