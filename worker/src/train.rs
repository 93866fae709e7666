//! A training run, from joining the job to the last checkpoint.
//!
//! The run is a state (parameters, optimizer, progress) and a loop over the epochs of the membership. At the start of
//! each the ranks take over the state of the one that is furthest: a survivor, or whoever found the latest
//! checkpoint. A step changes the state only after its gradients have been reduced on all ranks, so an
//! interrupted step leaves no trace, and a run that lost ranks ends with the same bits as one that did not.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tch::{Reduction, Tensor};
use tracing::{debug, info, warn};

use crate::checkpoint::{self, CheckpointError, Outcome as SaveOutcome, Part, Progress, Saver, State};
use crate::cli::{DataArgs, TrainArgs};
use crate::data::loader::{Loader, Prefetch};
use crate::data::{DataError, Dataset, Source, Targets};
use crate::ddp::group::Group;
use crate::ddp::membership::{Member, MemberError};
use crate::env::Environment;
use crate::evaluate::{EvaluateError, Score, evaluate};
use crate::metrics::{Metrics, Record};
use crate::models::{Architecture, Model};
use crate::optimizer::Optimizer;
use crate::parameters::Parameters;
use crate::sampler::{BatchSize, EpochOrder, Share, step_seed};

/// A line for people. Where nobody reads it any more, training goes on.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// So many epochs of the membership in a row may end without a step of progress.
const FUTILE_EPOCHS: u32 = 20;
/// How long a rank that is asked to stop waits for the parts of others that stop as well.
const PARTS_AT_STOP: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("failed to open the file for the metrics: {0}")]
    Metrics(#[source] std::io::Error),
    #[error("{model} has no use for inputs of {shape:?} with {targets:?}")]
    Unsuited { model: Architecture, shape: Vec<i64>, targets: Targets },
    #[error("{FUTILE_EPOCHS} attempts in a row ended without a step, the last one thus: {0}")]
    Futile(muster_collectives::Error),
    #[error("the loss is {loss} at step {step}; a lower --lr may help")]
    Diverged { step: u64, loss: f64 },
    #[error("no folder for the data is known: give one with --data")]
    NoDataFolder,
}

impl TrainError {
    /// Whether another try, perhaps on another machine, may succeed.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            TrainError::Futile(_)
                | TrainError::Member(
                    MemberError::Join(muster_rendezvous::client::JoinError::Timeout { .. })
                        | MemberError::Unreachable { .. }
                        | MemberError::Listen(_)
                )
        )
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Finished,
    /// By SIGTERM or SIGINT, after a checkpoint.
    Stopped,
}

pub fn data_source(args: &DataArgs, environment: &Environment) -> Result<Source, TrainError> {
    let cached = || environment.cached(args.dataset.folder());
    let folder = args.data.clone().or_else(cached).ok_or(TrainError::NoDataFolder)?;
    Ok(Source { format: args.dataset, folder, context: args.context as usize })
}

/// Trains until the run is done or stopped.
pub fn run(args: &TrainArgs, environment: &Environment) -> Result<Outcome, TrainError> {
    let started = Instant::now();
    let mut member = Member::start(environment, args.join_timeout)?;
    let outcome = match Run::prepare(args, environment, started) {
        Ok(mut run) => run.drive(&mut member),
        Err(error) => Err(error),
    };
    // A job whose work is done turns away late ranks; that is no failure of theirs.
    let outcome = match outcome {
        Err(TrainError::Member(MemberError::Join(muster_rendezvous::client::JoinError::Finished))) => {
            say!("the job has already finished");
            Ok(Outcome::Finished)
        }
        outcome => outcome,
    };
    member.leave(matches!(outcome, Ok(Outcome::Finished)));
    outcome
}

struct Run<'a> {
    args: &'a TrainArgs,
    train: Arc<Dataset>,
    test: Dataset,
    model: Model,
    parameters: Parameters,
    optimizer: Optimizer,
    buckets: Vec<std::ops::Range<usize>>,
    progress: Progress,
    /// Once the run has begun.
    batch: Option<BatchSize>,
    /// The state that is saved or being saved.
    saved: Option<Progress>,
    saver: Option<Saver>,
    saving: Saving,
    prefetch: Prefetch,
    metrics: Metrics,
    /// The rank in the last epoch of the membership.
    rank: usize,
    started: Instant,
    pace: Pace,
}

/// Samples and time of the steps that this process has done.
#[derive(Debug, Default)]
struct Pace {
    total: Span,
    epoch: Span,
    report: Span,
}

#[derive(Debug, Default, Clone, Copy)]
struct Span {
    samples: usize,
    steps: u32,
    busy: Duration,
}

impl Span {
    fn add(&mut self, samples: usize, busy: Duration) {
        self.samples += samples;
        self.steps += 1;
        self.busy += busy;
    }

    fn samples_per_second(&self) -> f64 {
        self.samples as f64 / self.busy.as_secs_f64().max(1e-9)
    }

    fn step_seconds(&self) -> f64 {
        self.busy.as_secs_f64() / f64::from(self.steps.max(1))
    }
}

/// What the ranks of a group do about checkpoints.
#[derive(Debug, Default)]
struct Saving {
    /// All have a folder: each saves its part. Otherwise rank 0 does it alone, if it has one.
    is_common: bool,
    /// The number of steps after which rank 0 wants one.
    every: Option<u64>,
}

/// What the order of the samples follows from, beside the epoch.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Order {
    seed: u64,
    samples: usize,
}

enum Halt {
    Finished(Score),
    Stopped,
}

enum Interruption {
    Group(muster_collectives::Error),
    Error(TrainError),
}

impl From<muster_collectives::Error> for Interruption {
    fn from(error: muster_collectives::Error) -> Interruption {
        Interruption::Group(error)
    }
}

impl From<EvaluateError> for Interruption {
    fn from(error: EvaluateError) -> Interruption {
        match error {
            EvaluateError::Data(error) => Interruption::Error(error.into()),
            EvaluateError::Group(error) => Interruption::Group(error),
        }
    }
}

impl<E: Into<TrainError>> From<E> for Interruption {
    fn from(error: E) -> Interruption {
        Interruption::Error(error.into())
    }
}

impl<'a> Run<'a> {
    fn prepare(args: &'a TrainArgs, environment: &Environment, started: Instant) -> Result<Run<'a>, TrainError> {
        let (mut train, test) = Dataset::open_both(&data_source(&args.data, environment)?)?;
        let model = match (&train.shape()[..], train.targets()) {
            (&[1, height, width], Targets::Classes { classes, shape }) if shape.is_empty() => {
                Model { architecture: args.model, height, width, classes }
            }
            (shape, targets) => {
                return Err(TrainError::Unsuited { model: args.model, shape: shape.to_vec(), targets });
            }
        };
        if let Some(samples) = args.train_samples {
            train.truncate(samples as usize);
        }
        let parameters = Parameters::new(&model, args.seed);
        let optimizer = Optimizer::new(args.settings(), parameters.values());
        let saver = args.checkpoint_dir.as_deref().map(|folder| Saver::new(folder, args.keep as usize)).transpose()?;
        let mut run = Run {
            args,
            prefetch: Prefetch::suited(&train, 0),
            train: Arc::new(train),
            test,
            model,
            buckets: parameters.buckets(args.bucket_bytes),
            parameters,
            optimizer,
            progress: Progress::default(),
            batch: None,
            saved: None,
            saver,
            saving: Saving::default(),
            metrics: Metrics::open(args.metrics.as_deref()).map_err(TrainError::Metrics)?,
            rank: 0,
            started,
            pace: Pace::default(),
        };
        if let (true, Some(folder)) = (args.resume, &args.checkpoint_dir) {
            run.resume(folder)?;
        }
        Ok(run)
    }

    fn resume(&mut self, folder: &Path) -> Result<(), TrainError> {
        let loaded = match checkpoint::latest(folder) {
            Ok(loaded) => loaded,
            Err(CheckpointError::None { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let tensors = self.flats().into_iter().flat_map(|(prefix, flat)| {
            let views = self.parameters.split(flat).map(|(name, view)| (format!("{prefix}.{name}"), view));
            views.collect::<Vec<_>>()
        });
        loaded.restore(tensors)?;
        self.progress = loaded.sidecar.progress;
        self.batch = loaded.section::<Option<BatchSize>>("batch")?.flatten();
        let order: Option<Order> = loaded.section("order")?;
        if self.progress.offset > 0 && order.is_some_and(|order| order != self.order()) {
            warn!("this epoch began with another seed or number of samples: some may be used twice, others not at all");
        }
        self.saved = Some(self.progress);
        info!(path = %loaded.path().display(), step = self.progress.step, "resuming from a checkpoint");
        Ok(())
    }

    /// The flat tensors that make up the state, all in the layout of the parameters, by what their names begin with.
    fn flats(&self) -> Vec<(String, &Tensor)> {
        let slots = self.optimizer.state().map(|(slot, flat)| (format!("optimizer.{slot}"), flat));
        [("model".to_owned(), self.parameters.values())].into_iter().chain(slots).collect()
    }

    fn order(&self) -> Order {
        Order { seed: self.args.seed, samples: self.train.len() }
    }

    fn state(&self) -> State {
        let mut state = State::new();
        for (prefix, flat) in self.flats() {
            state.views(&prefix, flat, self.parameters.split(flat));
        }
        state.section("model", &self.model).section("optimizer", &self.optimizer.settings());
        state.section("batch", &self.batch).section("order", &self.order());
        state
    }

    /// Works through the epochs of the membership until the run has ended.
    fn drive(&mut self, member: &mut Member) -> Result<Outcome, TrainError> {
        let mut futile = 0;
        loop {
            let place = match member.next_place() {
                Ok(place) => place,
                Err(MemberError::Stopped) => return self.stop(),
                Err(error) => return Err(error.into()),
            };
            let before = self.progress.step;
            self.rank = place.group.rank();
            self.set_threads(place.local_world);
            match self.work(&place.group, place.epoch, member) {
                Ok(Halt::Finished(score)) => {
                    self.finish(&place.group, score);
                    return Ok(Outcome::Finished);
                }
                Ok(Halt::Stopped) => return self.stop(),
                Err(Interruption::Error(error)) => return Err(error),
                Err(Interruption::Group(error)) => {
                    let cause = error.to_string();
                    warn!(epoch = place.epoch, step = self.progress.step, "interrupted: {cause}");
                    self.record(&Record::Interrupted {
                        membership: place.epoch,
                        step: self.progress.step,
                        cause: &cause,
                    });
                    futile = if self.progress.step > before { 0 } else { futile + 1 };
                    if futile >= FUTILE_EPOCHS {
                        return Err(TrainError::Futile(error));
                    }
                    member.broken(place.epoch, &cause);
                }
            }
        }
    }

    fn work(&mut self, group: &Group, membership: u64, member: &Member) -> Result<Halt, Interruption> {
        let batch = self.take_over(group)?;
        let (rank, world) = (group.rank(), group.world());
        let total = batch.total(world);
        self.prepare_saving(group)?;
        let threads = tch::get_num_threads();
        let (parameters, step) = (self.parameters.count(), self.progress.step);
        if group.rank() == 0 {
            say!(
                "training {}: {parameters} parameters, {world} ranks of {threads} threads, from step {step}",
                self.model.architecture
            );
            self.record(&Record::Start { membership, world, threads, parameters, step });
        }

        let mut score = None;
        while self.progress.epoch < self.args.epochs {
            let order = Arc::new(EpochOrder::new(self.train.len(), self.args.seed, self.progress.epoch));
            let plan = Arc::clone(&order).shares(self.progress.offset, total, rank, world);
            let mut loader = Loader::new(Arc::clone(&self.train), plan, self.prefetch);
            while let Some(share) = order.step(self.progress.offset, total, rank, world) {
                if member.stop().is_set() {
                    return Ok(Halt::Stopped);
                }
                self.step(group, share, &mut loader)?;
                // At the end of an epoch it is saved anyway.
                let save = self.saving.every.is_some_and(|every| self.progress.step.is_multiple_of(every));
                if save && self.progress.offset < order.len() as u64 {
                    self.save(group)?;
                }
                member.progress(self.progress.step);
            }
            let result = evaluate(&self.model, &self.parameters, &self.test, group)?;
            score = Some(result);
            self.progress = Progress { step: self.progress.step, epoch: self.progress.epoch + 1, offset: 0 };
            if group.rank() == 0 {
                self.report_epoch(result);
            }
            self.save(group)?;
            self.pace.epoch = Span::default();
        }
        let score = match score {
            Some(score) => score,
            // Resumed from the checkpoint of a run that was done.
            None => evaluate(&self.model, &self.parameters, &self.test, group)?,
        };
        // Nobody leaves before the last checkpoint is on disk and every rank is done.
        self.finish_saving(group)?;
        group.barrier()?;
        Ok(Halt::Finished(score))
    }

    /// All ranks take over the state of the one that is furthest; of several, of the lowest rank. Gives the batch that the
    /// run has from now on.
    fn take_over(&mut self, group: &Group) -> Result<BatchSize, muster_collectives::Error> {
        let (per_rank, world) = (self.args.batch_size.into(), group.world() as u64);
        let asked = BatchSize { policy: self.args.batch_policy, per_rank, world };
        let begun = self.batch.filter(|_| self.progress.step > 0);
        let mut batch = begun.map_or(asked, |begun| begun.resumed(asked));
        if group.world() == 1 {
            self.batch = Some(batch);
            return Ok(batch);
        }
        // The state of a rank is ordered by its step, then by whether its epoch is closed.
        let mut states = vec![0i64; group.world() * 2];
        states[group.rank() * 2] = self.progress.step as i64;
        states[group.rank() * 2 + 1] = self.progress.epoch as i64;
        group.sum_counts(&mut states)?;
        let states: Vec<&[i64]> = states.chunks(2).collect();
        let furthest = states.iter().copied().max().unwrap_or(&[0, 0]);
        let source = states.iter().position(|state| *state == furthest).unwrap_or(0);
        let Progress { step, epoch, offset } = self.progress;
        let mut progress = [step, epoch, offset, batch.per_rank, batch.world].map(|number| number as i64);
        group.broadcast_numbers(&mut progress, source)?;
        group.broadcast(self.parameters.values(), source)?;
        for (_, slot) in self.optimizer.state() {
            group.broadcast(slot, source)?;
        }
        let [step, epoch, offset, per_rank, world] = progress.map(|number| number.max(0) as u64);
        self.progress = Progress { step, epoch, offset };
        batch = BatchSize { per_rank, world, ..batch };
        self.batch = Some(batch);
        Ok(batch)
    }

    fn step(&mut self, group: &Group, share: Share<'_>, loader: &mut Loader) -> Result<(), Interruption> {
        let started = Instant::now();
        let batch = loader.take(share.samples)?;
        // What is drawn at random follows from the step, so that a run that was interrupted draws the same.
        tch::manual_seed(step_seed(self.args.seed, self.progress.step, group.rank()));
        self.parameters.clear_gradients();
        if share.samples.is_empty() {
            self.parameters.set_loss(&Tensor::from(0f32));
        } else {
            let scores = self.model.forward(self.parameters.leaves(), &batch.inputs);
            let none: Option<Tensor> = None;
            let loss = scores.cross_entropy_loss(&batch.targets, none, Reduction::Mean, -100, 0.0);
            let loss = if share.weight() == 1.0 { loss } else { loss * share.weight() };
            loss.backward();
            self.parameters.set_loss(&loss.detach());
        }
        for bucket in &self.buckets {
            group.mean(self.parameters.gradients_with_loss(), bucket.clone())?;
        }

        // From here on nothing fails: the step is either done on this rank as a whole or not at all.
        let loss = self.parameters.loss();
        let all = share.total;
        let done = (self.progress.epoch as f64 + self.progress.offset as f64 / self.train.len() as f64)
            / self.args.epochs as f64;
        let lr = self.args.learning_rate() * self.args.schedule.factor(done);
        self.progress.step += 1;
        self.progress.offset += all as u64;
        self.optimizer.step(self.parameters.values(), &self.parameters.gradients(), lr, self.progress.step);
        let busy = started.elapsed();
        for span in [&mut self.pace.total, &mut self.pace.epoch, &mut self.pace.report] {
            span.add(all, busy);
        }
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step: self.progress.step, loss }.into());
        }
        if group.rank() == 0 {
            if self.progress.step.is_multiple_of(self.args.log_every) {
                self.report_step(loss, lr);
            }
            if let Some(outcome) = self.saver.as_mut().and_then(Saver::poll) {
                self.warn_unsaved(outcome);
            }
        }
        Ok(())
    }

    fn report_step(&mut self, loss: f64, learning_rate: f64) {
        let span = std::mem::take(&mut self.pace.report);
        let (samples_per_second, step_seconds) = (span.samples_per_second(), span.step_seconds());
        let Progress { step, epoch, .. } = self.progress;
        say!(
            "step {step:>6}  epoch {}/{}  loss {loss:.4}  lr {learning_rate:.5}  {samples_per_second:.0} samples/s",
            epoch + 1,
            self.args.epochs
        );
        self.record(&Record::Step { step, epoch: epoch + 1, loss, learning_rate, samples_per_second, step_seconds });
    }

    fn report_epoch(&mut self, score: Score) {
        let span = self.pace.epoch;
        let (samples_per_second, seconds) = (span.samples_per_second(), span.busy.as_secs_f64());
        let Progress { step, epoch, .. } = self.progress;
        let Score { loss, accuracy, .. } = score;
        say!(
            "epoch {epoch}/{} done  loss {loss:.4}  accuracy {accuracy:.4}  {samples_per_second:.0} samples/s  {seconds:.1} s",
            self.args.epochs
        );
        self.record(&Record::Epoch { step, epoch, loss, accuracy, samples_per_second, seconds });
    }

    fn finish(&mut self, group: &Group, score: Score) {
        let digest = self.parameters.digest();
        say!("rank {} of {}: parameters sha256:{digest}", group.rank(), group.world());
        if group.rank() != 0 {
            return;
        }
        let Score { loss, accuracy, .. } = score;
        let samples_per_second = self.pace.total.samples_per_second();
        let seconds = self.started.elapsed().as_secs_f64();
        say!(
            "finished: accuracy={accuracy:.4} loss={loss:.4} samples_per_second={samples_per_second:.0} seconds={seconds:.1}"
        );
        let step = self.progress.step;
        self.record(&Record::Finish { step, loss, accuracy, samples_per_second, seconds, parameters: &digest });
    }

    fn stop(&mut self) -> Result<Outcome, TrainError> {
        say!("asked to stop at step {}", self.progress.step);
        if self.rank == 0 {
            self.save_alone()?;
        }
        Ok(Outcome::Stopped)
    }

    /// The ranks agree on how they save; who has a folder makes room for its part of the state.
    fn prepare_saving(&mut self, group: &Group) -> Result<(), muster_collectives::Error> {
        let every = self.args.checkpoint_every.filter(|_| group.rank() == 0).unwrap_or(0);
        let mut wishes = [i64::from(self.saver.is_some()), every as i64];
        group.sum_counts(&mut wishes)?;
        let [folders, every] = wishes.map(|wish| wish.max(0) as u64);
        self.saving = Saving { is_common: folders == group.world() as u64, every: (every > 0).then_some(every) };
        let state = self.state();
        if let Some(saver) = &mut self.saver {
            saver.regroup();
            saver.reserve(&state, Part { rank: group.rank(), world: group.world() });
        }
        Ok(())
    }

    /// Saves the state, if there is a folder: a copy of it, which is written later.
    fn save(&mut self, group: &Group) -> Result<(), muster_collectives::Error> {
        let state = self.state();
        let Some(saver) = &mut self.saver else { return Ok(()) };
        let outcomes = if self.saving.is_common {
            saver.save_together(group, state, self.progress)?
        } else if group.rank() == 0 {
            let before = saver.finish(PARTS_AT_STOP);
            let begun = saver.save(state, self.progress, Part::WHOLE, checkpoint::unique());
            before.into_iter().chain(begun.err().map(Err)).collect()
        } else {
            return Ok(());
        };
        self.saved = Some(self.progress);
        outcomes.into_iter().for_each(|outcome| self.warn_unsaved(outcome));
        Ok(())
    }

    /// Waits until what is being saved is on disk.
    fn finish_saving(&mut self, group: &Group) -> Result<(), Interruption> {
        let Some(saver) = &mut self.saver else { return Ok(()) };
        let outcomes = match self.saving.is_common {
            true => saver.finish_together(group)?,
            false => saver.finish(PARTS_AT_STOP).into_iter().collect(),
        };
        Ok(outcomes.into_iter().try_for_each(|outcome| self.note_saved(outcome))?)
    }

    /// Saves the state without the other ranks, unless it is saved already or there is no folder.
    fn save_alone(&mut self) -> Result<(), TrainError> {
        let Some(saver) = &mut self.saver else { return Ok(()) };
        if let Some(outcome) = saver.finish(PARTS_AT_STOP) {
            self.warn_unsaved(outcome);
        }
        if self.saved == Some(self.progress) || self.progress == Progress::default() {
            return Ok(());
        }
        let state = self.state();
        let Some(saver) = &mut self.saver else { return Ok(()) };
        saver.save(state, self.progress, Part::WHOLE, checkpoint::unique())?;
        saver.finish(PARTS_AT_STOP).map_or(Ok(()), |outcome| self.note_saved(outcome))
    }

    /// Training goes on without a checkpoint: the one before is still there, and there will be another.
    fn warn_unsaved(&mut self, outcome: SaveOutcome) {
        if let Err(error) = self.note_saved(outcome) {
            warn!("no checkpoint: {error}");
        }
    }

    fn note_saved(&mut self, outcome: SaveOutcome) -> Result<(), TrainError> {
        match outcome {
            Ok(Some(saved)) => {
                let checkpoint::Saved { progress, path, seconds, copy_seconds } = saved;
                debug!(path = %path.display(), seconds, copy_seconds, "checkpoint saved");
                self.record(&Record::Checkpoint { step: progress.step, path: &path.to_string_lossy(), seconds });
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => {
                // What was not saved may be saved once more.
                self.saved = None;
                Err(error.into())
            }
        }
    }

    /// Only rank 0 keeps records: the ranks share their arguments, and so the file. A full disk costs the records,
    /// not the run.
    fn record(&mut self, record: &Record<'_>) {
        if self.rank == 0
            && let Err(error) = self.metrics.write(record)
        {
            warn!("failed to write the metrics: {error}");
        }
    }

    fn set_threads(&mut self, local_world: usize) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let share = i32::try_from((cores / local_world).max(1)).unwrap_or(1);
        tch::set_num_threads(self.args.threads.unwrap_or(share));
        let spare = cores.saturating_sub(local_world * tch::get_num_threads().max(1) as usize);
        self.prefetch = Prefetch::suited(&self.train, spare);
        if let Some(threads) = self.args.prefetch {
            self.prefetch.threads = threads.into();
        }
    }
}
