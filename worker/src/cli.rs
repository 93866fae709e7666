//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::autograd::Autocast;
use crate::models::config::ModelConfig;
use crate::optimizer::{Algorithm, Schedule, Settings};

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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DatasetName {
    FashionMnist,
}

impl DatasetName {
    /// The name of its folder in the cache.
    pub fn folder(self) -> &'static str {
        match self {
            DatasetName::FashionMnist => "fashion-mnist",
        }
    }
}

#[derive(Debug, Clone, Args)]
pub struct DataArgs {
    #[arg(long, value_enum, default_value = "fashion-mnist")]
    pub dataset: DatasetName,
    /// The folder of the data set's files [default: where `make data` puts them]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    /// A name (cnn, mlp-small, mlp, mlp-large, resnet18, resnet50, gpt-small, gpt2), a file in TOML or JSON that sizes
    /// a model, or script:FILE for one exported from Python as TorchScript [default: cnn]
    #[arg(long, value_name = "NAME|FILE", value_parser = model)]
    pub model: Option<ModelConfig>,
    /// Start from the weights in a safetensors file, with the names of the model's state_dict in PyTorch
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    #[command(flatten)]
    pub data: DataArgs,
    /// Passes over the training set
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub epochs: u64,
    /// Samples of each rank in each step
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: u32,
    /// The highest learning rate [default: 0.05 for sgd, 0.001 for adam and adamw]
    #[arg(long, value_parser = positive)]
    pub lr: Option<f64>,
    #[arg(long, value_enum, default_value = "sgd")]
    pub optimizer: Algorithm,
    /// Of sgd
    #[arg(long, default_value_t = 0.9, value_parser = share)]
    pub momentum: f64,
    /// Of sgd: look ahead along the momentum
    #[arg(long)]
    pub nesterov: bool,
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub weight_decay: f64,
    /// Shorten gradients whose norm over all parameters is larger
    #[arg(long, value_name = "NORM", value_parser = positive)]
    pub clip_norm: Option<f64>,
    /// Add up the gradients of so many batches before each step
    #[arg(long, value_name = "BATCHES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub accumulate: u32,
    /// Compute suitable operations in a narrower type; with fp16 the loss is scaled
    #[arg(long, value_enum, value_name = "TYPE")]
    pub autocast: Option<Autocast>,
    /// How the learning rate changes over the run
    #[arg(long, value_enum, default_value = "cosine")]
    pub schedule: Schedule,
    /// Of the first parameters and of the order of the samples
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Use only so many samples of the training set
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub train_samples: Option<u32>,
    /// Where rank 0 saves checkpoints; without it none are saved
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
    /// Reduce gradients while backward computes others [default: where there is a core for it, or a network between
    /// the ranks]
    #[arg(long, value_name = "BOOL", num_args = 1)]
    pub overlap: Option<bool>,
    /// How long to wait for the other ranks
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds)]
    pub join_timeout: Duration,
}

impl TrainArgs {
    /// The model that was chosen, or the default.
    pub fn model(&self) -> ModelConfig {
        self.model.clone().unwrap_or_else(ModelConfig::small_cnn)
    }

    pub fn settings(&self) -> Settings {
        Settings {
            algorithm: self.optimizer,
            momentum: self.momentum,
            nesterov: self.nesterov,
            weight_decay: self.weight_decay,
        }
    }

    pub fn learning_rate(&self) -> f64 {
        self.lr.unwrap_or(match self.optimizer {
            Algorithm::Sgd => 0.05,
            Algorithm::Adam | Algorithm::Adamw => 0.001,
        })
    }
}

#[derive(Debug, Clone, Args)]
pub struct EvalArgs {
    /// A checkpoint's file, or a folder whose latest one is taken
    #[arg(long, value_name = "PATH")]
    pub checkpoint: PathBuf,
    #[command(flatten)]
    pub data: DataArgs,
}

fn model(text: &str) -> Result<ModelConfig, String> {
    text.parse().map_err(|error: crate::models::ModelError| error.to_string())
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
