//! One pod's worker: a task that observes (API server, runtime, clock), lets `lifecycle` decide, and carries the
//! decision out. One status write is on its way at a time; what happens meanwhile goes into the next.

mod found;
mod ground;
mod probes;
mod report;

pub(super) use report::{force, logs_of_finished};

use super::config::Config;
use super::http::{LogStates, PodLogs};
use super::launch::{Launch, LaunchError};
use super::lifecycle::{
    Cause, Ended, Facts, Observed, Obstacle, Phase, Plan, State, Step, Stop, crashes_after, decide, restart_at,
};
use super::peers::Peers;
use super::runtime::{ContainerId, Exit, PodRecord, RecoveredPod, Signal, Started};
use super::status::{Address, render};
use super::supervisor::RECORD_VERSION;
use crate::devices::Allocation;
use found::{container_spec, containers, ended, facts, gpu_counts, unsupported};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use ground::prepare;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use muster_events::{Recorder, Severity};
use probes::{Answer, Probing};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, watch};

/// A status that says only that the pod is about to start is held back this long: mostly it has started by then.
const FIRST_STATUS: SignedDuration = SignedDuration::from_millis(100);
/// A status that says only that the first processes run is held back this long: what has ended by then, or failed, is
/// told in one. (Half of the writes of a job that runs for a moment, and its controllers' work for them.)
const FIRST_RUNNING: SignedDuration = SignedDuration::from_millis(20);
/// With so many pods on their way both take twice as long, and so on up to `SLOWEST` times: where everything takes
/// longer, what could be told in one does, too.
const CROWD: usize = 8;
const SLOWEST: usize = 10;
/// After a request to the API server failed.
const RETRY: SignedDuration = SignedDuration::from_secs(1);
/// How often what a container or volume lacks is looked for again: 1 s, doubled up to this.
const OBSTACLE_MAX: SignedDuration = SignedDuration::from_secs(20);
/// How often an image is looked for again: 10 s, doubled up to this.
const IMAGE_MAX: SignedDuration = SignedDuration::from_secs(300);
/// A pod that sets none.
const GRACE_SECONDS: i64 = 30;

/// What all workers of a node share.
pub(super) struct Shared {
    pub(super) client: kube::Client,
    pub(super) config: Config,
    pub(super) recorder: Recorder,
    pub(super) address: Address,
    pub(super) allocatable: BTreeMap<String, i64>,
    pub(super) devices: Mutex<Allocation>,
    pub(super) devices_freed: Notify,
    pub(super) peers: Peers,
    /// How many pods are on their way to their first processes.
    pub(super) on_their_way: AtomicUsize,
}

impl Shared {
    /// How long a status that may soon be out of date is held back.
    fn held_back(&self, at_ease: SignedDuration) -> SignedDuration {
        let times = 1 + self.on_their_way.load(Ordering::Relaxed) / CROWD;
        at_ease * i32::try_from(times.min(SLOWEST)).unwrap_or(1)
    }
}

/// A pod that is on its way to its first processes, as long as this lives.
struct OnTheWay(Arc<Shared>);

impl OnTheWay {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.on_their_way.fetch_add(1, Ordering::Relaxed);
        OnTheWay(shared.clone())
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        self.0.on_their_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug)]
pub(super) enum Input {
    Updated(Arc<core::Pod>),
    /// The object is gone.
    Gone,
    Drain,
}

/// What ended of what was begun.
enum Done {
    Prepared(Result<(BTreeMap<String, PathBuf>, Option<Timestamp>), (String, &'static str)>),
    Launched { container: String, attempt: u32, result: Result<Started, LaunchError> },
    Ended { container: String, attempt: u32, exit: Exit },
    Written { status: Value, result: Result<(), kube::Error> },
    Deleted(Result<(), kube::Error>),
    Answered { container: String, attempt: u32, answer: Answer },
    PeerReady,
    DevicesFreed,
}

/// How far the pod's devices and volumes are.
enum Ground {
    Missing { tries: u32, retry_at: Timestamp },
    Preparing,
    Ready { places: BTreeMap<String, PathBuf>, renew_at: Option<Timestamp> },
}

struct Worker {
    shared: Arc<Shared>,
    pod: Arc<core::Pod>,
    key: (String, String),
    uid: String,
    facts: Facts,
    observed: Observed,
    devices: Option<BTreeMap<String, Vec<String>>>,
    waits_for_devices: bool,
    ground: Ground,
    tries: BTreeMap<String, u32>,
    probing: BTreeMap<String, Probing>,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    logs: watch::Sender<LogStates>,
    written: Option<Value>,
    /// As they were rendered last: their times stay while the watch has not caught up.
    conditions: Vec<core::PodCondition>,
    writing: bool,
    /// No request to the API server before this.
    retry_at: Option<Timestamp>,
    deleting: bool,
    /// The API server has let the object go.
    let_go: bool,
    /// The node ends: nobody watches for this pod any more.
    draining: bool,
    taken_on: Timestamp,
    /// Until something was told of the pod: it runs, or has ended, or something is in its way.
    on_the_way: Option<OnTheWay>,
}

/// Runs one pod until nothing of it is left to do: its final status is written, or its object is gone.
pub(super) async fn run(
    shared: Arc<Shared>,
    pod: Arc<core::Pod>,
    recovered: Option<RecoveredPod>,
    mut inputs: UnboundedReceiver<Input>,
) {
    let mut worker = Worker::new(shared, pod, recovered);
    worker.begin();
    loop {
        let now = worker.shared.config.clock.now();
        let plan = decide(now, &worker.facts, &worker.observed);
        if worker.carry_out(now, &plan) {
            continue;
        }
        worker.tell_logs(&plan);
        let probe_at = worker.probe(now);
        let Some(wake) = worker.advance(now, &plan) else { break };
        let wake = wake.into_iter().chain(probe_at).min();
        let sleep = wake.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
        tokio::select! {
            biased;
            input = inputs.recv() => match input {
                Some(input) => worker.take(input),
                // The node ends and leaves the pod as it is.
                None => return,
            },
            Some(done) = worker.work.next() => worker.done(done),
            () = tokio::time::sleep(sleep.unwrap_or_default() + Duration::from_millis(1)), if sleep.is_some() => {}
        }
    }
}

impl Worker {
    fn new(shared: Arc<Shared>, pod: Arc<core::Pod>, recovered: Option<RecoveredPod>) -> Worker {
        let now = shared.config.clock.now();
        let facts = facts(&pod, now);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let key = (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default());
        let devices = recovered.as_ref().map(|recovered| recovered.record.devices.clone());
        let containers = containers(&pod, &facts, recovered.as_ref(), now);
        let (logs, states) = watch::channel(LogStates::new());
        shared.config.handle.insert(key.clone(), PodLogs { uid: uid.clone(), states });
        Worker {
            on_the_way: recovered.is_none().then(|| OnTheWay::new(&shared)),
            shared,
            pod,
            key,
            uid,
            facts,
            observed: Observed { containers, peer_has_address: false, stop: None },
            devices,
            waits_for_devices: false,
            ground: Ground::Missing { tries: 0, retry_at: now },
            tries: BTreeMap::new(),
            probing: BTreeMap::new(),
            work: FuturesUnordered::new(),
            logs,
            written: None,
            conditions: Vec::new(),
            writing: false,
            retry_at: None,
            deleting: false,
            let_go: false,
            draining: false,
            taken_on: now,
        }
    }

    fn begin(&mut self) {
        let running: Vec<(String, u32)> = self
            .observed
            .containers
            .iter()
            .filter(|(_, c)| matches!(c.state, State::Running { .. }))
            .map(|(name, c)| (name.clone(), c.attempt))
            .collect();
        for (name, attempt) in running {
            self.begin_probing(&name, attempt, true);
            self.await_end(name, attempt);
        }
        if self.facts.init.iter().any(|init| init.by_node) {
            let (shared, pod) = (self.shared.clone(), self.pod.clone());
            self.work.push(
                async move {
                    shared.peers.master_has_address(&shared.client, &pod).await;
                    Done::PeerReady
                }
                .boxed(),
            );
        }
        let unsupported = unsupported(&self.pod);
        if !unsupported.is_empty() {
            let message = format!("this node does not carry out: {}", unsupported.join(", "));
            self.event(Severity::Warning, "NotSupported", message);
        }
        self.look_at_deletion();
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Updated(pod) => {
                self.pod = pod;
                self.look_at_deletion();
            }
            Input::Gone => self.stop(Cause::Gone, self.shared.config.clock.now()),
            Input::Drain => {
                self.draining = true;
                let grace = self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
                let grace = SignedDuration::from_secs(grace.unwrap_or(GRACE_SECONDS).max(0));
                self.stop(Cause::Drain, later(self.shared.config.clock.now(), grace));
            }
        }
    }

    fn look_at_deletion(&mut self) {
        if let Some(time) = &self.pod.metadata.deletion_timestamp {
            // The object carries whole seconds; a second more than asked rather than less.
            let kill_at = later(time.0, SignedDuration::from_secs(1));
            let now = self.shared.config.clock.now();
            let grace = self.pod.metadata.deletion_grace_period_seconds.unwrap_or(GRACE_SECONDS);
            let at_most = later(now, SignedDuration::from_secs(grace.max(0)));
            self.stop(Cause::Deleted, kill_at.min(at_most));
        }
    }

    fn stop(&mut self, cause: Cause, kill_at: Timestamp) {
        match &mut self.observed.stop {
            Some(stop) => {
                stop.cause = stop.cause.max(cause);
                stop.kill_at = stop.kill_at.min(kill_at);
            }
            None => self.observed.stop = Some(Stop { cause, kill_at, asked: false, killed: false }),
        }
    }

    fn id(&self, container: &str, attempt: u32) -> ContainerId {
        ContainerId { pod_uid: self.uid.clone(), container: container.to_owned(), attempt }
    }

    /// True where something changed, so that a new decision is due.
    fn carry_out(&mut self, now: Timestamp, plan: &Plan) -> bool {
        let mut changed = false;
        for step in &plan.steps {
            match step {
                Step::Start { container, attempt } => changed |= self.start(now, container, *attempt),
                Step::Complete { container } => {
                    if let Some(known) = self.observed.containers.get_mut(container) {
                        known.state = State::Ended(Ended {
                            exit_code: 0,
                            signal: None,
                            reason: "Completed".to_owned(),
                            message: Some("carried out by the node: the pod waited for has an address".to_owned()),
                            started_at: Some(now),
                            finished_at: now,
                        });
                        changed = true;
                    }
                }
                Step::Stop(cause) => {
                    let grace = self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
                    let grace = SignedDuration::from_secs(grace.unwrap_or(GRACE_SECONDS).max(0));
                    self.stop(*cause, later(now, grace));
                    if *cause == Cause::Deadline {
                        let message = "Pod was active on the node longer than the specified deadline".to_owned();
                        self.event(Severity::Normal, "DeadlineExceeded", message);
                    }
                    changed = true;
                }
                Step::Terminate { container } => {
                    let until = self.observed.stop.map_or(now, |stop| stop.kill_at);
                    self.terminate(container, until.duration_since(now));
                    changed |= self.observed.stop.as_mut().is_some_and(|s| !std::mem::replace(&mut s.asked, true));
                }
                Step::Kill { container } => {
                    self.signal(container, Signal::Kill);
                    changed |= self.observed.stop.as_mut().is_some_and(|s| !std::mem::replace(&mut s.killed, true));
                }
            }
        }
        changed
    }

    fn signal(&self, container: &str, signal: Signal) {
        let known = &self.observed.containers[container];
        if matches!(known.state, State::Running { .. }) {
            tracing::debug!(pod = %self.key.1, container, ?signal, "signal");
            self.shared.config.runtime.signal(&self.id(container, known.attempt), signal);
        }
    }

    /// Starts a container once devices and volumes are there; true where it is on its way.
    fn start(&mut self, now: Timestamp, name: &str, attempt: u32) -> bool {
        match &self.ground {
            Ground::Ready { .. } => {}
            Ground::Preparing => return false,
            Ground::Missing { tries, retry_at } => {
                if *retry_at <= now {
                    let tries = *tries;
                    self.prepare(tries);
                }
                return false;
            }
        }
        let Ground::Ready { places, .. } = &self.ground else { return false };
        let Some(spec) = container_spec(&self.pod, name) else { return false };
        let (shared, pod, places) = (self.shared.clone(), self.pod.clone(), places.clone());
        let (container, name) = (spec.clone(), name.to_owned());
        let devices = self.devices.as_ref().and_then(|all| all.get(&name)).cloned().unwrap_or_default();
        if let Some(known) = self.observed.containers.get_mut(&name) {
            if let State::Ended(ended) = &known.state {
                known.last = Some(ended.clone());
            }
            known.attempt = attempt;
            known.state = State::Starting;
        }
        self.work.push(
            async move {
                let launch = Launch {
                    client: &shared.client,
                    config: &shared.config,
                    address: &shared.address,
                    allocatable: &shared.allocatable,
                    pod: &pod,
                    container: &container,
                    attempt,
                    places: &places,
                    devices: &devices,
                };
                let result = launch.run().await;
                Done::Launched { container: name, attempt, result }
            }
            .boxed(),
        );
        true
    }

    /// Takes devices and makes volumes.
    fn prepare(&mut self, tries: u32) {
        if self.devices.is_none() {
            let counts = gpu_counts(&self.pod);
            let taken = self.shared.devices.lock().unwrap_or_else(PoisonError::into_inner).take(&self.uid, &counts);
            self.devices = taken;
            if self.devices.is_none() {
                // Somebody's processes are still ending.
                if !std::mem::replace(&mut self.waits_for_devices, true) {
                    let shared = self.shared.clone();
                    self.work.push(
                        async move {
                            let freed = shared.devices_freed.notified();
                            let _ = tokio::time::timeout(Duration::from_millis(200), freed).await;
                            Done::DevicesFreed
                        }
                        .boxed(),
                    );
                }
                return;
            }
        }
        let record = PodRecord {
            version: RECORD_VERSION,
            uid: self.uid.clone(),
            namespace: self.key.0.clone(),
            name: self.key.1.clone(),
            devices: self.devices.clone().unwrap_or_default(),
        };
        let (shared, pod) = (self.shared.clone(), self.pod.clone());
        let renewing = matches!(self.ground, Ground::Ready { .. });
        if !renewing {
            self.ground = Ground::Preparing;
            self.tries.insert(String::new(), tries + 1);
        }
        let begun = self.observed.containers.values().any(|container| !matches!(container.state, State::Waiting));
        self.work.push(async move { Done::Prepared(prepare(&shared, &pod, record, begun).await) }.boxed());
    }

    fn await_end(&mut self, container: String, attempt: u32) {
        let wait = self.shared.config.runtime.wait(self.id(&container, attempt));
        self.work.push(async move { Done::Ended { container, attempt, exit: wait.await } }.boxed());
    }

    fn done(&mut self, done: Done) {
        let now = self.shared.config.clock.now();
        match done {
            Done::Prepared(Ok((places, renew_at))) => {
                self.tries.remove("");
                self.ground = Ground::Ready { places, renew_at };
            }
            Done::Prepared(Err((message, reason))) => {
                let tries = self.tries.get("").copied().unwrap_or(1);
                let retry_at = later(now, doubled(SignedDuration::from_secs(1), tries - 1, OBSTACLE_MAX));
                match &mut self.ground {
                    // Renewing failed: the old files are still good for a while.
                    Ground::Ready { renew_at, .. } => *renew_at = Some(later(now, OBSTACLE_MAX)),
                    ground => *ground = Ground::Missing { tries, retry_at },
                }
                self.event(Severity::Warning, reason, message);
            }
            Done::Launched { container, attempt, result } => self.launched(now, container, attempt, result),
            Done::Ended { container, attempt, exit } => {
                let ended = ended(&exit);
                let facts = &self.facts;
                let mut back_off = None;
                if let Some(known) = self.observed.containers.get_mut(&container)
                    && known.attempt == attempt
                {
                    known.crashes = crashes_after(known.crashes, &ended);
                    known.state = State::Ended(ended);
                    back_off = restart_at(facts.restart_policy, known).filter(|at| *at > now);
                }
                if back_off.is_some() && self.observed.stop.is_none() {
                    let message = format!(
                        "Back-off restarting failed container {container} in pod {}_{}({})",
                        self.key.1, self.key.0, self.uid
                    );
                    self.container_event(&container, Severity::Warning, "BackOff", message);
                }
            }
            Done::Written { status, result } => {
                self.writing = false;
                match result {
                    Ok(()) => self.written = Some(status),
                    // Gone, or another pod of the same name: the watch tells it, too.
                    Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {
                        self.stop(Cause::Gone, now);
                    }
                    Err(error) => {
                        tracing::warn!(pod = %self.key.1, %error, "failed to write a pod's status");
                        self.retry_at = Some(later(now, RETRY));
                    }
                }
            }
            Done::Deleted(result) => match result {
                Ok(()) => self.let_go = true,
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {
                    self.stop(Cause::Gone, now);
                }
                Err(error) => {
                    tracing::warn!(pod = %self.key.1, %error, "failed to remove a pod's object");
                    self.deleting = false;
                    self.retry_at = Some(later(now, RETRY));
                }
            },
            Done::Answered { container, attempt, answer } => self.answered(now, &container, attempt, answer),
            Done::PeerReady => self.observed.peer_has_address = true,
            Done::DevicesFreed => self.waits_for_devices = false,
        }
    }

    fn launched(&mut self, now: Timestamp, container: String, attempt: u32, result: Result<Started, LaunchError>) {
        let Some(known) = self.observed.containers.get_mut(&container) else { return };
        match result {
            Ok(started) => {
                known.state = State::Running { pid: started.pid, started_at: started.started_at };
                self.tries.remove(&container);
                self.await_end(container.clone(), attempt);
                self.begin_probing(&container, attempt, false);
                match self.observed.stop {
                    Some(stop) if stop.killed => self.signal(&container, Signal::Kill),
                    Some(stop) if stop.asked => self.signal(&container, Signal::Terminate),
                    _ => {
                        let message = format!("Started container {container}");
                        self.container_event(&container, Severity::Normal, "Started", message);
                    }
                }
            }
            Err(LaunchError::Failed(message)) => {
                let ended = Ended {
                    exit_code: 128,
                    signal: None,
                    reason: "StartError".to_owned(),
                    message: Some(message.clone()),
                    started_at: None,
                    finished_at: now,
                };
                known.crashes = crashes_after(known.crashes, &ended);
                known.state = State::Ended(ended);
                self.container_event(&container, Severity::Warning, "Failed", format!("Error: {message}"));
            }
            Err(LaunchError::Held { reason, message }) => {
                let tries = self.tries.entry(container.clone()).or_insert(0);
                *tries += 1;
                let image = reason == "ErrImagePull";
                let (first, most) = if image { (10, IMAGE_MAX) } else { (1, OBSTACLE_MAX) };
                let retry_at = later(now, doubled(SignedDuration::from_secs(first), *tries - 1, most));
                let reason = if image && *tries > 1 { "ImagePullBackOff" } else { reason };
                known.state = State::Held(Obstacle { reason, message: message.clone(), retry_at });
                let message =
                    if image { format!("Failed to pull image: {message}") } else { format!("Error: {message}") };
                self.container_event(&container, Severity::Warning, "Failed", message);
            }
        }
    }

    /// Status, deletion, and what else is due; when to look again, or `None` where all is done.
    fn advance(&mut self, now: Timestamp, plan: &Plan) -> Option<Option<Timestamp>> {
        let mut wake = plan.wake_at;
        let mut at = |time: Timestamp| wake = Some(wake.map_or(time, |before| before.min(time)));
        match &self.ground {
            Ground::Missing { retry_at, .. } if *retry_at > now => at(*retry_at),
            Ground::Ready { renew_at: Some(renew_at), .. } if *renew_at > now => at(*renew_at),
            Ground::Ready { renew_at: Some(_), .. } if !plan.finished => {
                if let Ground::Ready { renew_at, .. } = &mut self.ground {
                    *renew_at = None;
                }
                self.prepare(0);
            }
            _ => {}
        }
        let cause = self.observed.stop.map(|stop| stop.cause);
        if plan.finished {
            let held = self.shared.devices.lock().unwrap_or_else(PoisonError::into_inner).release(&self.uid);
            if held {
                self.shared.devices_freed.notify_waiters();
            }
            if cause == Some(Cause::Gone) || self.draining && self.let_go {
                return None;
            }
        }
        if let Some(retry_at) = self.retry_at {
            if retry_at > now {
                at(retry_at);
                return Some(wake);
            }
            self.retry_at = None;
        }
        let deleted = cause == Some(Cause::Deleted);
        if plan.finished && deleted && self.pod.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
            // Its last state need not be written: the object goes at once.
            if !self.deleting && !self.writing {
                self.deleting = true;
                self.delete();
            }
            return Some(wake);
        }
        let quiet = plan.phase == Phase::Pending
            && self.observed.stop.is_none()
            && self.observed.containers.values().all(|c| matches!(c.state, State::Waiting | State::Starting));
        let due = later(self.taken_on, self.shared.held_back(FIRST_STATUS));
        if quiet && now < due && self.written.is_none() {
            at(due);
            return Some(wake);
        }
        let time = self.shared.held_back(FIRST_RUNNING);
        let due = self.just_started(plan).map(|started| later(started, time));
        // (A clock that was set back must not hold it for longer.)
        if let Some(due) = due.filter(|due| *due > now && *due <= later(now, time)) {
            at(due);
            return Some(wake);
        }
        let status = render(now, &self.pod, &self.facts, &self.observed, plan, &self.shared.address, &self.conditions);
        self.conditions = status.conditions.clone().unwrap_or_default();
        let status = serde_json::to_value(status).unwrap_or_default();
        let known = self.written.as_ref();
        if self.writing {
            return Some(wake);
        }
        if known != Some(&status) {
            self.write(status);
            return Some(wake);
        }
        if plan.finished {
            if deleted {
                if !self.deleting {
                    self.deleting = true;
                    self.delete();
                }
                return Some(wake);
            }
            return None;
        }
        Some(wake)
    }

    /// When the last of the first processes started, if nobody was told yet that the pod runs.
    fn just_started(&self, plan: &Plan) -> Option<Timestamp> {
        let told = self.written.as_ref().is_some_and(|status| status["phase"] == "Running");
        if plan.phase != Phase::Running || told || self.observed.stop.is_some() {
            return None;
        }
        let started = self.observed.containers.values().filter_map(|container| match &container.state {
            State::Running { started_at, .. } => Some(*started_at),
            _ => None,
        });
        started.max()
    }
}

fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_add(by).unwrap_or(Timestamp::MAX)
}

fn doubled(first: SignedDuration, times: u32, most: SignedDuration) -> SignedDuration {
    (first * 2i32.saturating_pow(times.min(10))).min(most)
}
