//! The life of one pod on its node, as a pure decision: `decide(now, facts, observed) -> Plan`.
//!
//! ```text
//!             bound to the node
//!                   |
//!                   v
//!   +------- initialising ---------- one init container after the other; a sidecar only has to run
//!   |   (restart, back-off)  \
//!   |               |         \ init container failed, policy Never
//!   |   all done    v          \
//!   |            running        \    each container: Waiting -> Starting -> Running -> Ended
//!   |               |            \                      ^  \________________________/   |
//!   |               |             \                     | back-off, if the policy says   |
//!   |               |              \                    +--------------------------------+
//!   |               | all ended     \
//!   v               v                v
//!  stopping (deleted, force-deleted, deadline, drain, only sidecars left):
//!     TERM to every container -> grace -> KILL -> all ended
//!                   |
//!                   v
//!               finished: Succeeded or Failed stays so; a deleted pod's object is removed
//! ```
//!
//! The pod's worker moves containers (Starting when it carries out `Start`, Running and Ended when the runtime says
//! so); deletion comes from the API server, deadline and back-off from the clock, drain from the node. Nothing here
//! reads a clock, writes a status or knows how a process is started. A pod is never restarted as a whole.

use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// An init container, in the pod's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitContainer {
    pub name: String,
    /// Runs beside the containers, for as long as they do.
    pub sidecar: bool,
    /// Done by the node itself, as soon as the pod that it waits for has an address.
    pub by_node: bool,
}

/// What of a pod's specification matters to its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub restart_policy: RestartPolicy,
    pub init: Vec<InitContainer>,
    pub containers: Vec<String>,
    pub active_deadline: Option<SignedDuration>,
    /// When the node took the pod on.
    pub started_at: Timestamp,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub exit_code: i32,
    pub signal: Option<i32>,
    pub reason: String,
    pub message: Option<String>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
}

/// Why a container cannot be started for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// `ErrImagePull`, `CreateContainerConfigError`, ...
    pub reason: &'static str,
    pub message: String,
    pub retry_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Waiting,
    Held(Obstacle),
    Starting,
    Running { pid: i32, started_at: Timestamp },
    Ended(Ended),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The number of its current or latest start, counted from 0.
    pub attempt: u32,
    pub state: State,
    /// How the start before this one ended.
    pub last: Option<Ended>,
    /// How often in a row it ended soon after its start.
    pub crashes: u32,
    /// Of no account while it does not run.
    pub probed: Probed,
}

/// What a container's probes and its hook after the start say of it so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probed {
    pub started: bool,
    pub ready: bool,
}

impl Container {
    pub fn new() -> Self {
        Container {
            attempt: 0,
            state: State::Waiting,
            last: None,
            crashes: 0,
            probed: Probed { started: true, ready: true },
        }
    }

    fn live(&self) -> bool {
        matches!(self.state, State::Starting | State::Running { .. })
    }
}

impl Default for Container {
    fn default() -> Self {
        Self::new()
    }
}

/// Why all of a pod's containers are to end. A later cause replaces an earlier one only if it is stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Only sidecars are left.
    Completed,
    Deadline,
    Drain,
    Deleted,
    /// The object is gone: no grace.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    pub cause: Cause,
    /// When what still runs is killed.
    pub kill_at: Timestamp,
    pub asked: bool,
    pub killed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub containers: BTreeMap<String, Container>,
    /// The pod that a `by_node` init container waits for has an address.
    pub peer_has_address: bool,
    pub stop: Option<Stop>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Pending => "Pending",
            Phase::Running => "Running",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Start {
        container: String,
        attempt: u32,
    },
    /// Count an init container as done that the node carries out itself.
    Complete {
        container: String,
    },
    Stop(Cause),
    Terminate {
        container: String,
    },
    Kill {
        container: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub phase: Phase,
    pub initialised: bool,
    /// Nothing runs any more and nothing will be started.
    pub finished: bool,
    pub wake_at: Option<Timestamp>,
}

/// The first delay of the back-off; doubled with each further crash.
const BACK_OFF: SignedDuration = SignedDuration::from_secs(10);
const BACK_OFF_MAX: SignedDuration = SignedDuration::from_secs(300);
/// A container that ran this long is not crashing.
const BACK_OFF_RESET: SignedDuration = SignedDuration::from_secs(600);

/// How many crashes in a row it is, once the container has ended.
pub fn crashes_after(before: u32, ended: &Ended) -> u32 {
    let ran = ended.started_at.map_or(SignedDuration::ZERO, |started| ended.finished_at.duration_since(started));
    if ran >= BACK_OFF_RESET { 1 } else { before.saturating_add(1) }
}

/// How long after its end a container is started again: at once the first time, then 10 s, 20 s, ... 5 min.
pub fn restart_delay(crashes: u32) -> SignedDuration {
    match crashes {
        0 | 1 => SignedDuration::ZERO,
        n => (BACK_OFF * 2i32.saturating_pow((n - 2).min(10))).min(BACK_OFF_MAX),
    }
}

/// When a container that ended is started again, if it is.
pub fn restart_at(policy: RestartPolicy, container: &Container) -> Option<Timestamp> {
    let State::Ended(ended) = &container.state else { return None };
    let again = match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => ended.exit_code != 0,
        RestartPolicy::Never => false,
    };
    again.then(|| later(ended.finished_at, restart_delay(container.crashes)))
}

fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_add(by).unwrap_or(Timestamp::MAX)
}

/// The policy that an init container is restarted by.
fn init_policy(facts: &Facts, init: &InitContainer) -> RestartPolicy {
    match (init.sidecar, facts.restart_policy) {
        (true, _) => RestartPolicy::Always,
        (false, RestartPolicy::Never) => RestartPolicy::Never,
        (false, _) => RestartPolicy::OnFailure,
    }
}

pub fn decide(now: Timestamp, facts: &Facts, observed: &Observed) -> Plan {
    let mut plan = Plan {
        steps: Vec::new(),
        phase: Phase::Pending,
        initialised: initialised(facts, observed),
        finished: false,
        wake_at: None,
    };
    let failed_init = facts.init.iter().any(|init| {
        let container = &observed.containers[&init.name];
        !init.sidecar
            && matches!(&container.state, State::Ended(ended) if ended.exit_code != 0)
            && init_policy(facts, init) == RestartPolicy::Never
    });
    plan.phase = phase(facts, observed, plan.initialised, failed_init);
    let live = || observed.containers.iter().filter(|(_, c)| c.live());

    if let Some(stop) = observed.stop {
        stopping(now, stop, observed, &mut plan);
        if plan.finished && stop.cause == Cause::Deadline {
            plan.phase = Phase::Failed;
        }
        return plan;
    }
    if let Some(deadline) = facts.active_deadline {
        let at = later(facts.started_at, deadline);
        if now >= at {
            plan.steps.push(Step::Stop(Cause::Deadline));
            return plan;
        }
        plan.wake(at);
    }

    if failed_init {
        plan.end(live().next().is_some());
        return plan;
    }
    let ended_for_good = |name: &String| {
        let container = &observed.containers[name];
        matches!(container.state, State::Ended(_)) && restart_at(facts.restart_policy, container).is_none()
    };
    if plan.initialised && facts.containers.iter().all(ended_for_good) {
        plan.end(live().next().is_some());
        return plan;
    }

    for init in &facts.init {
        let container = &observed.containers[&init.name];
        let policy = init_policy(facts, init);
        if init.by_node && matches!(container.state, State::Waiting) {
            if observed.peer_has_address {
                plan.steps.push(Step::Complete { container: init.name.clone() });
            }
        } else {
            run(now, &init.name, container, policy, &mut plan);
        }
        let passed = match &container.state {
            State::Running { .. } => init.sidecar && (container.probed.started || plan.initialised),
            State::Ended(ended) => init.sidecar && plan.initialised || !init.sidecar && ended.exit_code == 0,
            _ => init.sidecar && plan.initialised,
        };
        if !passed {
            return plan;
        }
    }
    for name in &facts.containers {
        run(now, name, &observed.containers[name], facts.restart_policy, &mut plan);
    }
    plan
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |before| before.min(at)));
    }

    /// Everything that decides has ended: what still runs are sidecars.
    fn end(&mut self, live: bool) {
        if live {
            self.steps.push(Step::Stop(Cause::Completed));
        } else {
            self.finished = true;
        }
    }
}

fn run(now: Timestamp, name: &str, container: &Container, policy: RestartPolicy, plan: &mut Plan) {
    let start = |attempt| Step::Start { container: name.to_owned(), attempt };
    match &container.state {
        State::Waiting => plan.steps.push(start(container.attempt)),
        State::Held(obstacle) if obstacle.retry_at <= now => plan.steps.push(start(container.attempt)),
        State::Held(obstacle) => plan.wake(obstacle.retry_at),
        State::Ended(_) => match restart_at(policy, container) {
            Some(at) if at <= now => plan.steps.push(start(container.attempt + 1)),
            Some(at) => plan.wake(at),
            None => {}
        },
        State::Starting | State::Running { .. } => {}
    }
}

fn stopping(now: Timestamp, stop: Stop, observed: &Observed, plan: &mut Plan) {
    let live: Vec<&String> = observed.containers.iter().filter(|(_, c)| c.live()).map(|(name, _)| name).collect();
    if live.is_empty() {
        plan.finished = true;
        return;
    }
    if now >= stop.kill_at {
        if !stop.killed {
            plan.steps.extend(live.into_iter().map(|name| Step::Kill { container: name.clone() }));
        }
        return;
    }
    if !stop.asked {
        plan.steps.extend(live.into_iter().map(|name| Step::Terminate { container: name.clone() }));
    }
    plan.wake(stop.kill_at);
}

/// Whether the containers may run: every init container is done, every sidecar was started.
fn initialised(facts: &Facts, observed: &Observed) -> bool {
    let begun = facts.containers.iter().any(|name| {
        let container = &observed.containers[name];
        container.attempt > 0 || !matches!(container.state, State::Waiting | State::Held(_))
    });
    begun
        || facts.init.iter().all(|init| match &observed.containers[&init.name].state {
            State::Running { .. } => init.sidecar && observed.containers[&init.name].probed.started,
            State::Ended(ended) => !init.sidecar && ended.exit_code == 0,
            _ => false,
        })
}

/// The phase, as the kubelet computes it.
fn phase(facts: &Facts, observed: &Observed, initialised: bool, failed_init: bool) -> Phase {
    if failed_init {
        return Phase::Failed;
    }
    if !initialised {
        return Phase::Pending;
    }
    let (mut waiting, mut running, mut ended, mut succeeded) = (0, 0, 0, 0);
    for name in &facts.containers {
        let container = &observed.containers[name];
        match &container.state {
            State::Running { .. } => running += 1,
            State::Ended(end) => {
                ended += 1;
                succeeded += usize::from(end.exit_code == 0);
            }
            _ if container.last.is_some() => ended += 1,
            _ => waiting += 1,
        }
    }
    match facts.restart_policy {
        _ if waiting > 0 => Phase::Pending,
        _ if running > 0 => Phase::Running,
        RestartPolicy::Always => Phase::Running,
        _ if ended == succeeded => Phase::Succeeded,
        RestartPolicy::Never => Phase::Failed,
        RestartPolicy::OnFailure => Phase::Running,
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
