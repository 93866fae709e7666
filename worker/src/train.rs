//! A training run, from joining the job to the last checkpoint.
//!
//! The run is a state (parameters, optimizer, progress) and a loop over the epochs of the membership. At the start of
//! each the ranks take over the state of the one that is furthest: a survivor, or whoever found the latest
//! checkpoint. A step changes the state only after its gradients have been reduced on all ranks, so an
//! interrupted step leaves no trace, and a run that lost ranks ends with the same bits as one that did not.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::autograd::{Autocast, Store, autocast};
use crate::checkpoint::{self, CheckpointError, Progress, Sidecar};
use crate::cli::{DataArgs, TrainArgs};
use crate::data::{DataError, Dataset, Split};
use crate::ddp::group::Group;
use crate::ddp::membership::{Member, MemberError};
use crate::ddp::reduction::{self, Buckets};
use crate::env::Environment;
use crate::evaluate::{EvaluationError, Score, evaluate};
use crate::metrics::{Metrics, Record};
use crate::models::config::{Build, ModelConfig};
use crate::models::{DataSpec, Model, ModelError, weights};
use crate::optimizer::{self, LossScale, Optimizer};
use crate::parameters::Parameters;
use crate::sampler::{EpochOrder, SplitMix64};

/// A line for people. Where nobody reads it any more, training goes on.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// So many epochs of the membership in a row may end without a step of progress.
const FUTILE_EPOCHS: u32 = 20;

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("failed to open the file for the metrics: {0}")]
    Metrics(#[source] std::io::Error),
    #[error("{needed} samples make one step of {world} ranks, the training set has {samples}")]
    TooFewSamples { needed: usize, world: usize, samples: usize },
    #[error("{FUTILE_EPOCHS} attempts in a row ended without a step, the last one thus: {0}")]
    Futile(muster_collectives::Error),
    #[error("the loss is {loss} at step {step}; a lower --lr may help")]
    Diverged { step: u64, loss: f64 },
    #[error("libtorch cannot train this model: {0}")]
    Torch(tch::TchError),
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

pub fn data_folder(args: &DataArgs, environment: &Environment) -> Result<PathBuf, TrainError> {
    let cached = || environment.cached(args.dataset.folder());
    args.data.clone().or_else(cached).ok_or(TrainError::NoDataFolder)
}

/// Trains until the run is done or stopped. `own` builds the model of a program that brings one.
pub fn run(args: &TrainArgs, environment: &Environment, own: Option<Build<'_>>) -> Result<Outcome, TrainError> {
    let started = Instant::now();
    keep_memory();
    let mut member = Member::start(environment, args.join_timeout)?;
    let outcome = match Run::prepare(args, environment, own, started) {
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

/// Every step allocates and frees the same large tensors. By default the C library gives such memory back to the
/// kernel each time and takes it anew, cleared, page by page.
fn keep_memory() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code)]
    // SAFETY: settings of the allocator, which may be changed at any time; it refuses what it cannot have.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

struct Run<'a> {
    args: &'a TrainArgs,
    train: Dataset,
    test: Dataset,
    config: ModelConfig,
    data: DataSpec,
    model: Box<dyn Model>,
    parameters: Parameters,
    optimizer: Optimizer,
    buckets: Buckets,
    /// Whether gradients are reduced while backward computes others.
    overlap: bool,
    loss_scale: Option<LossScale>,
    progress: Progress,
    saved: Option<Progress>,
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

impl From<EvaluationError> for Interruption {
    fn from(error: EvaluationError) -> Interruption {
        match error {
            EvaluationError::Group(error) => Interruption::Group(error),
            EvaluationError::Model(error) => Interruption::Error(error.into()),
        }
    }
}

impl<E: Into<TrainError>> From<E> for Interruption {
    fn from(error: E) -> Interruption {
        Interruption::Error(error.into())
    }
}

impl<'a> Run<'a> {
    fn prepare(
        args: &'a TrainArgs,
        environment: &Environment,
        own: Option<Build<'_>>,
        started: Instant,
    ) -> Result<Run<'a>, TrainError> {
        let folder = data_folder(&args.data, environment)?;
        let mut train = Dataset::load(&folder, Split::Train)?;
        let test = Dataset::load(&folder, Split::Test)?;
        let (config, data) = (args.model(), train.spec());
        let mut model = config.build(&data, own)?;
        if let Some(samples) = args.train_samples {
            train.truncate(samples as usize);
        }
        let mut parameters = Parameters::new(model.layout(), args.seed)?;
        model.bind(&parameters.state(true))?;
        if let Some(path) = &args.weights {
            weights::load(path, &mut parameters)?;
        }
        let optimizer = Optimizer::new(args.settings(), parameters.values());
        let mut run = Run {
            args,
            train,
            test,
            config,
            data,
            model,
            buckets: parameters.buckets(args.bucket_bytes),
            parameters,
            optimizer,
            overlap: false,
            loss_scale: (args.autocast == Some(Autocast::Fp16)).then(LossScale::new),
            progress: Progress::default(),
            saved: None,
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
        loaded.restore_parameters(&self.parameters)?;
        loaded.restore_optimizer(&self.parameters, &self.optimizer)?;
        self.progress = loaded.sidecar.progress;
        self.saved = Some(self.progress);
        info!(path = %loaded.path().display(), step = self.progress.step, "resuming from a checkpoint");
        Ok(())
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
            self.overlap = self.args.overlap.unwrap_or(self.set_threads(place.local_world) || place.spans_machines());
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
        match group.allocate(self.parameters.gradients_len())? {
            Some(buffer) => self.parameters.share(buffer),
            None => self.parameters.unshare(),
        }
        self.take_over(group)?;
        let world = group.world();
        let batch = (self.args.batch_size * self.args.accumulate) as usize;
        if batch * world > self.train.len() {
            let (needed, samples) = (batch * world, self.train.len());
            return Err(TrainError::TooFewSamples { needed, world, samples }.into());
        }
        let threads = tch::get_num_threads();
        let (parameters, step) = (self.parameters.count(), self.progress.step);
        if group.rank() == 0 {
            say!(
                "training {}: {parameters} parameters, {world} ranks of {threads} threads, from step {step}",
                self.config
            );
            self.record(&Record::Start { membership, world, threads, parameters, step });
        }

        let mut score = None;
        while self.progress.epoch < self.args.epochs {
            let order = EpochOrder::new(self.train.len(), self.args.seed, self.progress.epoch);
            while let Some(samples) = order.batch(self.progress.offset as usize, batch, group.rank(), world) {
                if member.stop().is_set() {
                    return Ok(Halt::Stopped);
                }
                self.step(group, samples)?;
                member.progress(self.progress.step);
            }
            let result = evaluate(&*self.model, &mut self.parameters, &self.test, group)?;
            self.progress = Progress { step: self.progress.step, epoch: self.progress.epoch + 1, offset: 0 };
            if group.rank() == 0 {
                self.report_epoch(&result);
                self.save()?;
            }
            score = Some(result);
            self.pace.epoch = Span::default();
        }
        let score = match score {
            Some(score) => score,
            // Resumed from the checkpoint of a run that was done.
            None => evaluate(&*self.model, &mut self.parameters, &self.test, group)?,
        };
        // Nobody leaves before the last checkpoint is on disk and every rank is done.
        group.barrier()?;
        Ok(Halt::Finished(score))
    }

    /// All ranks take over the state of the one that is furthest; of several, of the lowest rank.
    fn take_over(&mut self, group: &Group) -> Result<(), muster_collectives::Error> {
        if group.world() == 1 {
            return Ok(());
        }
        // The state of a rank is ordered by its step, then by whether its epoch is closed.
        let mut states = vec![0i64; group.world() * 2];
        states[group.rank() * 2] = self.progress.step as i64;
        states[group.rank() * 2 + 1] = self.progress.epoch as i64;
        group.sum_counts(&mut states)?;
        let states: Vec<&[i64]> = states.chunks(2).collect();
        let furthest = states.iter().copied().max().unwrap_or(&[0, 0]);
        let source = states.iter().position(|state| *state == furthest).unwrap_or(0);
        let mut progress = [self.progress.step as i64, self.progress.epoch as i64, self.progress.offset as i64];
        group.broadcast_numbers(&mut progress, source)?;
        group.broadcast(self.parameters.values(), source)?;
        if !self.parameters.buffers().is_empty() {
            group.broadcast(self.parameters.buffers().kept(), source)?;
        }
        for (_, slot) in self.optimizer.state() {
            group.broadcast(slot, source)?;
        }
        let [step, epoch, offset] = progress.map(|number| number.max(0) as u64);
        self.progress = Progress { step, epoch, offset };
        Ok(())
    }

    fn step(&mut self, group: &Group, samples: &[i64]) -> Result<(), Interruption> {
        let started = Instant::now();
        self.compute_gradients(group, samples)?;

        // From here on nothing fails: the step is either done on this rank as a whole or not at all.
        let loss = self.parameters.loss();
        let all = samples.len() * group.world();
        let done = (self.progress.epoch as f64 + self.progress.offset as f64 / self.train.len() as f64)
            / self.args.epochs as f64;
        let lr = self.args.learning_rate() * self.args.schedule.factor(done);
        self.progress.step += 1;
        self.progress.offset += all as u64;
        self.parameters.buffers_mut().keep();
        self.apply_gradients(lr);
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
            if self.args.checkpoint_every.is_some_and(|every| self.progress.step.is_multiple_of(every)) {
                self.save()?;
            }
        }
        Ok(())
    }

    /// Leaves the mean gradients over all samples of the step, and the mean loss, in the parameters' gradients: equal
    /// bits on all ranks.
    fn compute_gradients(&mut self, group: &Group, samples: &[i64]) -> Result<(), Interruption> {
        let batches = samples.len().div_ceil(self.args.batch_size as usize).max(1);
        let scale = self.loss_scale.map_or(1.0, |scale| scale.scale);
        let mut sum = 0.0;
        self.parameters.buffers_mut().begin();
        self.seed_passes(group.rank());
        for (index, batch) in samples.chunks(self.args.batch_size as usize).enumerate() {
            let samples_and_targets = self.train.batch(batch);
            let loss =
                autocast(self.args.autocast, || self.model.loss(&self.parameters.state(true), &samples_and_targets))
                    .map_err(TrainError::Torch)??;
            // What the batch counts for in the mean over the step's samples.
            let weight = batch.len() as f64 / samples.len() as f64;
            sum += weight * loss.f_double_value(&[]).map_err(TrainError::Torch)?;
            self.parameters.set_loss(sum as f32);
            let loss = if weight * scale == 1.0 { loss } else { loss * (weight * scale) };
            let store = if index == 0 { Store::Over } else { Store::Added };
            let last = index + 1 == batches;
            if last && self.overlap && group.world() > 1 {
                let reduced = self.parameters.backward_reducing(&loss, store, group, &self.buckets);
                reduced.map_err(TrainError::Torch)??;
            } else {
                self.parameters.backward(&loss, store, &mut |_| {}).map_err(TrainError::Torch)?;
                if last {
                    reduction::reduce(group, self.parameters.gradients())?;
                }
            }
        }
        if !self.parameters.buffers().is_empty() {
            group.mean(self.parameters.buffers().used())?;
        }
        Ok(())
    }

    /// What the passes of a step draw depends on the seed, the step and the rank, not on what was drawn before.
    fn seed_passes(&self, rank: usize) {
        let mut random = SplitMix64::new(self.args.seed ^ self.progress.step.wrapping_mul(0x9e6c_63d0_876a_68ee));
        let seed = random.next_u64() ^ (rank as u64).wrapping_mul(0xd134_2543_de82_ef95);
        tch::manual_seed((seed >> 1) as i64);
    }

    /// Moves the parameters, unless the gradients have overflowed under a scaled loss.
    fn apply_gradients(&mut self, lr: f64) {
        let (values, gradients) = self.parameters.values_and_gradients();
        let unscale = 1.0 / self.loss_scale.map_or(1.0, |scale| scale.scale);
        let needs_norm = self.loss_scale.is_some() || self.args.clip_norm.is_some();
        let norm = if needs_norm { optimizer::norm(gradients) * unscale } else { 0.0 };
        if let Some(scale) = &mut self.loss_scale
            && !scale.admit(norm)
        {
            return;
        }
        let scale = unscale * optimizer::clip(norm, self.args.clip_norm);
        let (step, threads) = (self.progress.step, tch::get_num_threads().max(1) as usize);
        self.optimizer.step(values, gradients, optimizer::Step { lr, step, scale, threads });
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

    fn report_epoch(&mut self, score: &Score) {
        let span = self.pace.epoch;
        let (samples_per_second, seconds) = (span.samples_per_second(), span.busy.as_secs_f64());
        let Progress { step, epoch, .. } = self.progress;
        let (loss, metrics) = (score.loss, &score.metrics);
        say!(
            "epoch {epoch}/{} done  loss {loss:.4}{}  {samples_per_second:.0} samples/s  {seconds:.1} s",
            self.args.epochs,
            score.text()
        );
        self.record(&Record::Epoch { step, epoch, loss, metrics, samples_per_second, seconds });
    }

    fn finish(&mut self, group: &Group, score: Score) {
        let digest = self.parameters.digest();
        say!("rank {} of {}: parameters sha256:{digest}", group.rank(), group.world());
        if group.rank() != 0 {
            return;
        }
        let (loss, metrics) = (score.loss, &score.metrics);
        let shown: String = metrics.iter().map(|(name, value)| format!("{name}={value:.4} ")).collect();
        let samples_per_second = self.pace.total.samples_per_second();
        let seconds = self.started.elapsed().as_secs_f64();
        say!(
            "finished: {shown}loss={loss:.4} samples_per_second={samples_per_second:.0} seconds={seconds:.1}"
        );
        let step = self.progress.step;
        self.record(&Record::Finish { step, loss, metrics, samples_per_second, seconds, parameters: &digest });
    }

    fn stop(&mut self) -> Result<Outcome, TrainError> {
        say!("asked to stop at step {}", self.progress.step);
        if self.rank == 0 {
            self.save()?;
        }
        Ok(Outcome::Stopped)
    }

    /// Saves the state, unless it is saved already or no folder was given.
    fn save(&mut self) -> Result<(), TrainError> {
        let Some(folder) = &self.args.checkpoint_dir else { return Ok(()) };
        if self.saved == Some(self.progress) || self.progress == Progress::default() {
            return Ok(());
        }
        let started = Instant::now();
        let mut sidecar = Sidecar::new(self.config.clone(), self.data.clone(), self.optimizer.settings(), self.args.seed);
        sidecar.progress = self.progress;
        let path = checkpoint::save(folder, self.args.keep as usize, &sidecar, &self.parameters, &self.optimizer)?;
        self.saved = Some(self.progress);
        let seconds = started.elapsed().as_secs_f64();
        debug!(path = %path.display(), seconds, "checkpoint saved");
        let step = self.progress.step;
        self.record(&Record::Checkpoint { step, path: &path.to_string_lossy(), seconds });
        Ok(())
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

    /// Whether there is a core beside those that this machine's ranks compute on.
    fn set_threads(&self, local_world: usize) -> bool {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let share = i32::try_from((cores / local_world).max(1)).unwrap_or(1);
        let threads = self.args.threads.unwrap_or(share);
        tch::set_num_threads(threads);
        cores > local_world * threads as usize
    }
}
