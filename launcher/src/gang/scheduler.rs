//! The scheduler's loop: one task, one input at a time; commits and reports run beside it.

use super::commit::{Binder, Outcome};
use super::problem::GangId;
use super::report::{COMPONENT, Teller, write};
use super::snapshot::{Key, Snapshot, key_of};
use super::solve::{Start, solve};
use crate::watch::{Change, changes};
use futures::stream::{BoxStream, FuturesUnordered, select_all};
use futures::{FutureExt, StreamExt};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::watcher;
use kube::{Api, Resource, ResourceExt};
use muster_api::clock::Clock;
use muster_events::{Recorder, Severity, Subject};
use muster_planted::{self as planted, Bug};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Debug)]
pub struct Config {
    pub clock: Clock,
    /// How long a gang waits before resources are reserved for it.
    pub reserve_after: Duration,
    /// Whether every placed pod gets a `Scheduled` event.
    pub scheduled_events: bool,
}

impl Config {
    pub fn new(clock: Clock) -> Self {
        Config { clock, reserve_after: Duration::from_secs(30), scheduled_events: true }
    }
}

/// The scheduler retries whatever fails, so it has no error of its own yet to end with.
#[derive(Debug, thiserror::Error)]
pub enum Error {}

/// A gang whose commit failed is left alone this long: by then the watch has told why.
const HOLD: Duration = Duration::from_millis(100);

enum Input {
    Pod(Change<Pod>),
    Node(Change<Node>),
    Group(Change<DynamicObject>),
    Class(Change<PriorityClass>),
}

/// A decision took so long; the next one may take a tenth of the time at most. What arrives meanwhile is part of it.
/// (With nothing waiting a decision takes some microseconds, and follows its cause at once.)
const SHARE: u32 = 9;
/// However long a decision took (the machine may have been busy with something else).
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Which kind an input is of; the initial lists of all of them are awaited before the first decision.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Pod,
    Node,
    Group,
    Class,
}

/// Schedules until `shutdown`. `ready` is told once the first decision could be made.
pub async fn run(
    client: kube::Client,
    config: Config,
    ready: oneshot::Sender<()>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let Config { clock, reserve_after, scheduled_events } = config;
    let reserve_after = SignedDuration::try_from(reserve_after).unwrap_or(SignedDuration::MAX);
    let (recorder, mut recording) = Recorder::start(&client, &clock, None, &shutdown);
    let binder = Arc::new(Binder::new(client.clone()));
    let mut inputs = inputs(&client);
    let mut scheduler = State { ready: Some(ready), ..State::default() };
    let mut commits = FuturesUnordered::new();
    let mut reports = FuturesUnordered::new();

    loop {
        let now = clock.now();
        let instant = tokio::time::Instant::now();
        if scheduler.dirty && scheduler.synced.len() == 4 && scheduler.rested_at.is_none_or(|at| at <= instant) {
            scheduler.dirty = false;
            let starts = scheduler.decide(now, reserve_after);
            scheduler.rested_at = Some(tokio::time::Instant::now() + (instant.elapsed() * SHARE).min(LONGEST_REST));
            for start in starts {
                let binder = binder.clone();
                commits.push(async move { (binder.bind(&start).await, start) });
            }
        }
        for report in scheduler.reports.drain(..) {
            reports.push(write(&client, &clock, &recorder, report));
        }
        let wake = scheduler.wake_in(now);
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some((outcome, start)) = commits.next() => {
                if scheduler.committed(outcome, &start) && scheduled_events {
                    scheduled(&recorder, &start);
                }
            }
            Some(input) = inputs.next() => {
                scheduler.take(input);
                // What else has arrived is part of the same decision.
                while let Some(Some(input)) = inputs.next().now_or_never() {
                    scheduler.take(input);
                }
            }
            Some(()) = reports.next() => {}
            () = tokio::time::sleep(wake.unwrap_or_default()), if wake.is_some() => scheduler.wake(),
        }
    }
    while recording.join_next().await.is_some() {}
    // A binding on its way is either done or not; the next scheduler sees which.
    Ok(())
}

fn inputs(client: &kube::Client) -> futures::stream::SelectAll<BoxStream<'static, Input>> {
    let group = ApiResource::from_gvk(&GroupVersionKind::gvk("scheduling.x-k8s.io", "v1alpha1", "PodGroup"));
    let all = watcher::Config::default;
    select_all([
        changes(Api::<Pod>::all(client.clone()), all()).map(Input::Pod).boxed(),
        changes(Api::<Node>::all(client.clone()), all()).map(Input::Node).boxed(),
        changes(Api::all_with(client.clone(), &group), all()).map(Input::Group).boxed(),
        changes(Api::<PriorityClass>::all(client.clone()), all()).map(Input::Class).boxed(),
    ])
}

#[derive(Default)]
struct State {
    snapshot: Snapshot,
    /// Names seen since a list began.
    listing: BTreeMap<Kind, BTreeSet<Key>>,
    synced: BTreeSet<Kind>,
    ready: Option<oneshot::Sender<()>>,
    dirty: bool,
    teller: Teller,
    reports: Vec<super::report::Report>,
    held: BTreeMap<GangId, tokio::time::Instant>,
    wake_at: Option<Timestamp>,
    /// When the next decision may be made.
    rested_at: Option<tokio::time::Instant>,
}

impl State {
    fn decide(&mut self, now: Timestamp, reserve_after: SignedDuration) -> Vec<Start> {
        let instant = tokio::time::Instant::now();
        self.held.retain(|_, until| *until > instant);
        let problem = self.snapshot.problem(now, reserve_after, |gang| self.held.contains_key(gang));
        let solution = solve(&problem);
        for start in &solution.starts {
            tracing::debug!(gang = %start.gang, pods = start.placements.len(), "placed");
            if !planted::is(Bug::ForgottenBinding) {
                self.snapshot.assume(start, now);
            }
        }
        let (reports, again) = self.teller.due(now, &solution.waiting, &self.snapshot);
        for waiting in &solution.waiting {
            tracing::trace!(gang = %waiting.gang, reason = %waiting.reason, "waits");
        }
        self.reports.extend(reports);
        self.wake_at = [solution.wake_at, again].into_iter().flatten().min();
        solution.starts
    }

    /// True where the start is bound.
    fn committed(&mut self, outcome: Outcome, start: &Start) -> bool {
        let Outcome::Uncertain(pods) = outcome else { return true };
        // Only now, with the pods as they are, may others have their place.
        let bound = !planted::is(Bug::ForgottenBinding) && self.snapshot.settle(start, &pods);
        if !bound {
            self.held.insert(start.gang.clone(), tokio::time::Instant::now() + HOLD);
        }
        self.dirty = true;
        bound
    }

    fn wake_in(&self, now: Timestamp) -> Option<Duration> {
        let instant = tokio::time::Instant::now();
        let held = self.held.values().min().map(|until| until.saturating_duration_since(instant));
        let wake = self.wake_at.map(|at| {
            // Rounded up, so that it is not woken a moment too early.
            Duration::try_from(at.duration_since(now)).unwrap_or_default() + Duration::from_millis(1)
        });
        if self.dirty && self.synced.len() == 4 {
            // Whatever else would wake it leads to the decision that is due anyway.
            return Some(self.rested_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(instant)));
        }
        [held, wake].into_iter().flatten().min()
    }

    fn wake(&mut self) {
        self.dirty = true;
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Pod(change) => self.change(
                Kind::Pod,
                change,
                Snapshot::apply_pod,
                |snapshot, key| snapshot.remove_pod(key),
                Snapshot::retain_pods,
            ),
            Input::Node(change) => self.change(
                Kind::Node,
                change,
                Snapshot::apply_node,
                |snapshot, (_, name)| snapshot.remove_node(name),
                Snapshot::retain_nodes,
            ),
            Input::Group(change) => self.change(
                Kind::Group,
                change,
                Snapshot::apply_group,
                |snapshot, key| snapshot.remove_group(key),
                Snapshot::retain_groups,
            ),
            Input::Class(change) => self.change(
                Kind::Class,
                change,
                Snapshot::apply_class,
                |snapshot, (_, name)| snapshot.remove_class(name),
                Snapshot::retain_classes,
            ),
        }
        if self.synced.len() == 4
            && let Some(ready) = self.ready.take()
        {
            // Whoever waited for it may be gone.
            let _ = ready.send(());
        }
    }

    fn change<K: Resource>(
        &mut self,
        kind: Kind,
        change: Change<K>,
        apply: impl Fn(&mut Snapshot, &K) -> bool,
        remove: impl Fn(&mut Snapshot, &Key) -> bool,
        retain: impl Fn(&mut Snapshot, &BTreeSet<Key>),
    ) {
        let key = |object: &K| key_of(&object.namespace(), &Some(object.name_any()));
        match change {
            Change::Restart => drop(self.listing.insert(kind, BTreeSet::new())),
            Change::Listed(object) => {
                self.listing.entry(kind).or_default().insert(key(&object));
                self.dirty |= apply(&mut self.snapshot, &object);
            }
            Change::Synced | Change::NotServed => {
                let seen = self.listing.remove(&kind).unwrap_or_default();
                retain(&mut self.snapshot, &seen);
                self.synced.insert(kind);
                self.dirty = true;
            }
            Change::Applied(object) => self.dirty |= apply(&mut self.snapshot, &object),
            Change::Deleted(object) => self.dirty |= remove(&mut self.snapshot, &key(&object)),
        }
    }
}

fn scheduled(recorder: &Recorder, start: &Start) {
    for placement in &start.placements {
        let pod = Subject::pod(start.gang.namespace(), &placement.pod, &placement.uid);
        let message =
            format!("Successfully assigned {}/{} to {}", start.gang.namespace(), placement.pod, placement.node);
        recorder.record(&pod, COMPONENT, Severity::Normal, "Scheduled", &message);
    }
}
