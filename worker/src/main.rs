//! `muster-worker`: one rank of a training job.

use std::process::ExitCode;

use clap::Parser;
use muster_worker::cli::{Cli, Command, EvalArgs};
use muster_worker::data::{Dataset, Split, Targets};
use muster_worker::ddp::group::Group;
use muster_worker::env::Environment;
use muster_worker::evaluate::{EvaluateError, evaluate};
use muster_worker::models::Model;
use muster_worker::parameters::Parameters;
use muster_worker::train::{self, Outcome, TrainError, data_source};
use muster_worker::{checkpoint, cli};
use serde_json::json;

/// Stopped by SIGTERM: 128 + 15, as a shell has it. A restart policy of ExitCode tries again.
const STOPPED: u8 = 143;
/// Something outside failed that may be well again at the next try: in the range that ExitCode retries.
const TRANSIENT: u8 = 138;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let environment = match Environment::read() {
        Ok(environment) => environment,
        Err(error) => return failure(&error, 1),
    };
    let filter = environment.log_filter.clone().unwrap_or_else(|| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
    match cli.command {
        Command::Train(args) => train(&args, &environment),
        Command::Eval(args) => match eval(&args, &environment) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failure(&error, 1),
        },
    }
}

fn train(args: &cli::TrainArgs, environment: &Environment) -> ExitCode {
    match train::run(args, environment) {
        Ok(Outcome::Finished) => ExitCode::SUCCESS,
        Ok(Outcome::Stopped) => ExitCode::from(STOPPED),
        Err(error) => {
            let code = if error.is_transient() { TRANSIENT } else { 1 };
            failure(&error, code)
        }
    }
}

fn eval(args: &EvalArgs, environment: &Environment) -> Result<(), TrainError> {
    // So little work is done sooner by one thread than by several that wait for each other on a busy machine.
    tch::set_num_threads(1);
    let loaded = checkpoint::open(&args.checkpoint)?;
    let model: Model = loaded.require("model")?;
    let parameters = Parameters::new(&model, 0);
    loaded.restore_views("model", parameters.split(parameters.values()))?;
    let data = Dataset::open(&data_source(&args.data, environment)?, Split::Test)?;
    let targets = Targets::Classes { classes: model.classes, shape: Vec::new() };
    data.check(&[1, model.height, model.width], &targets)?;
    let score = match evaluate(&model, &parameters, &data, &Group::Alone) {
        Ok(score) => score,
        Err(EvaluateError::Data(error)) => return Err(error.into()),
        Err(EvaluateError::Group(error)) => unreachable!("one rank needs no communication: {error}"),
    };
    let report = json!({
        "accuracy": score.accuracy,
        "loss": score.loss,
        "samples": score.samples,
        "step": loaded.sidecar.progress.step,
        "model": model.architecture.to_string(),
        "parameters": parameters.digest(),
        "checkpoint": loaded.path(),
    });
    println!("{report}");
    Ok(())
}

fn failure(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("muster-worker: {error}");
    ExitCode::from(code)
}
