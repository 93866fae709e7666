//! The worker as a program: its command line, its output and its exit codes. A program of your own with a model of
//! your own is this one around it ([`run_own`]).

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;

use crate::checkpoint::{self, Sidecar};
use crate::cli::{Cli, Command, EvalArgs, TrainArgs};
use crate::data::{Dataset, Split};
use crate::ddp::group::Group;
use crate::env::Environment;
use crate::evaluate::{EvaluationError, Score, evaluate};
use crate::models::config::{Build, ModelConfig};
use crate::models::{DataSpec, Model, ModelError};
use crate::parameters::Parameters;
use crate::train::{self, Outcome, TrainError, data_folder};

/// Stopped by SIGTERM: 128 + 15, as a shell has it. A restart policy of ExitCode tries again.
const STOPPED: u8 = 143;
/// Something outside failed that may be well again at the next try: in the range that ExitCode retries.
const TRANSIENT: u8 = 138;

/// A model that a program brings with it.
struct Own<'a> {
    name: &'a str,
    build: Build<'a>,
}

/// `muster-worker`: trains and measures the models of the box and TorchScript files, as its arguments say.
pub fn run() -> ExitCode {
    main(None)
}

/// The same program around a model of your own, which `build` makes for the data at hand, equal on all ranks; `name`
/// is what logs and checkpoints call it.
pub fn run_own(name: &str, build: impl Fn(&DataSpec) -> Result<Box<dyn Model>, ModelError>) -> ExitCode {
    main(Some(Own { name, build: &build }))
}

fn main(own: Option<Own<'_>>) -> ExitCode {
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
        Command::Train(args) => train(args, &environment, own),
        Command::Eval(args) => match eval(&args, &environment, own) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failure(&error, 1),
        },
    }
}

fn train(mut args: TrainArgs, environment: &Environment, own: Option<Own<'_>>) -> ExitCode {
    if let Some(own) = &own {
        if let Some(other) = &args.model {
            eprintln!("muster-worker: this program trains its own model {}: leave --model {other} out", own.name);
            return ExitCode::FAILURE;
        }
        args.model = Some(ModelConfig::Own { name: own.name.into() });
    }
    match train::run(&args, environment, own.map(|own| own.build)) {
        Ok(Outcome::Finished) => ExitCode::SUCCESS,
        Ok(Outcome::Stopped) => ExitCode::from(STOPPED),
        Err(error) => {
            let code = if error.is_transient() { TRANSIENT } else { 1 };
            failure(&error, code)
        }
    }
}

fn eval(args: &EvalArgs, environment: &Environment, own: Option<Own<'_>>) -> Result<(), TrainError> {
    // So little work is done sooner by one thread than by several that wait for each other on a busy machine.
    tch::set_num_threads(1);
    let loaded = checkpoint::open(&args.checkpoint)?;
    let Sidecar { model: config, data, progress, .. } = &loaded.sidecar;
    let mut model = config.build(data, own.map(|own| own.build))?;
    let mut parameters = Parameters::new(model.layout(), 0)?;
    model.bind(&parameters.state(false))?;
    loaded.restore_parameters(&parameters)?;
    let data = Dataset::load(&data_folder(&args.data, environment)?, Split::Test)?;
    let score = evaluate(&*model, &mut parameters, &data, &Group::Alone).map_err(|error| match error {
        EvaluationError::Model(error) => TrainError::from(error),
        EvaluationError::Group(error) => unreachable!("one rank communicates with nobody: {error}"),
    })?;
    let report = Report {
        score: &score,
        step: progress.step,
        model: config.to_string(),
        parameters: parameters.digest(),
        checkpoint: loaded.path(),
    };
    println!("{}", serde_json::to_string(&report).expect("a report is plain data"));
    Ok(())
}

/// What an evaluation prints.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    score: &'a Score,
    step: u64,
    model: String,
    parameters: String,
    checkpoint: &'a Path,
}

fn failure(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("muster-worker: {error}");
    ExitCode::from(code)
}
