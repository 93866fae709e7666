//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::data::Format;
use crate::models::Architecture;
use crate::optimizer::{Algorithm, Schedule, Settings};
use crate::sampler::BatchPolicy;

/// Trains models on libtorch, alone or as one of the ranks of a job.
///
/// The job's size, the rank and the place where the ranks meet come from the environment, as Muster's operator
/// sets it; without one, the process trains alone.
#[derive(Debug, Parser)]
#[command(name = "muster-worker", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model
    Train(TrainArgs),
    /// Measure a saved checkpoint on the test set
    Eval(EvalArgs),
}

#[derive(Debug, Clone, Args)]
pub struct DataArgs {
    #[arg(long, value_enum, default_value = "fashion-mnist")]
    pub dataset: Format,
    /// The folder of the data set's files [default: where `make data` puts them]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Of tokens: as many are the input of one sample
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub context: u32,
}

#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    #[arg(long, value_enum, default_value = "cnn")]
    pub model: Architecture,
    #[command(flatten)]
    pub data: DataArgs,
    /// Passes over the training set
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub epochs: u64,
    /// Samples of each rank in each step, in the world that the run begins with
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: u32,
    /// What stays when the number of ranks changes: the batch of all ranks together, or that of each
    #[arg(long, value_enum, default_value = "global")]
    pub batch_policy: BatchPolicy,
    /// Threads that prepare batches ahead [default: 1 where a core is free or the data is on disk, otherwise 0]
    #[arg(long, value_name = "THREADS", value_parser = clap::value_parser!(u16).range(..=64))]
    pub prefetch: Option<u16>,
    /// The highest learning rate [default: 0.05 for sgd, 0.001 for adam]
    #[arg(long, value_parser = positive)]
    pub lr: Option<f64>,
    #[arg(long, value_enum, default_value = "sgd")]
    pub optimizer: Algorithm,
    /// Of sgd
    #[arg(long, default_value_t = 0.9, value_parser = share)]
    pub momentum: f64,
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub weight_decay: f64,
    /// How the learning rate changes over the run
    #[arg(long, value_enum, default_value = "cosine")]
    pub schedule: Schedule,
    /// Of the first parameters and of the order of the samples
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Use only so many samples of the training set
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub train_samples: Option<u32>,
    /// Where checkpoints are saved, by each rank its part; without it none are
    #[arg(long, value_name = "DIR")]
    pub checkpoint_dir: Option<PathBuf>,
    /// Save after every so many steps, beside after every epoch
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub checkpoint_every: Option<u64>,
    /// So many checkpoints are kept, the latest
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: u32,
    /// Go on from the latest checkpoint, if there is one
    #[arg(long, requires = "checkpoint_dir")]
    pub resume: bool,
    /// Rank 0 appends its measurements, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
    /// Report after every so many steps
    #[arg(long, value_name = "STEPS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    pub log_every: u64,
    /// Threads of this rank [default: this machine's cores, divided among its ranks]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=1024))]
    pub threads: Option<i32>,
    /// Gradients are reduced in pieces of at least so many bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    pub bucket_bytes: usize,
    /// How long to wait for the other ranks
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds)]
    pub join_timeout: Duration,
}

impl TrainArgs {
    pub fn settings(&self) -> Settings {
        Settings { algorithm: self.optimizer, momentum: self.momentum, weight_decay: self.weight_decay }
    }

    pub fn learning_rate(&self) -> f64 {
        self.lr.unwrap_or(match self.optimizer {
            Algorithm::Sgd => 0.05,
            Algorithm::Adam => 0.001,
        })
    }
}

#[derive(Debug, Clone, Args)]
pub struct EvalArgs {
    /// A checkpoint's JSON file, or a folder whose latest one is taken
    #[arg(long, value_name = "PATH")]
    pub checkpoint: PathBuf,
    #[command(flatten)]
    pub data: DataArgs,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("not a positive number".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..1.0).contains(&number) => Ok(number),
        _ => Err("not a number from 0 to below 1".into()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    positive(text).and_then(|number| Duration::try_from_secs_f64(number).map_err(|error| error.to_string()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nonsense_is_refused() {
        for arguments in
            ["--lr 0", "--lr nan", "--epochs 0", "--batch-size 0", "--momentum 1", "--resume", "--join-timeout -1"]
        {
            let line = ["muster-worker", "train"].into_iter().chain(arguments.split(' '));
            assert!(Cli::try_parse_from(line).is_err(), "{arguments}");
        }
    }
}
