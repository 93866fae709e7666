//! Runs the training operator: watches feed caches, changes feed a queue, and each key of the queue is one pass over
//! one job.

use super::address::Addressing;
use super::apply::Applier;
use super::decide::{Policy, decide};
use super::framework::FRAMEWORKS;
use super::metrics::Metrics;
use super::plan::Resource;
use super::state::{JobKey, State, Watched};
use crate::shell::backoff::Doubling;
use crate::shell::queue::{Outcome, Queue};
use futures::StreamExt;
use kube::Client;
use kube::api::Api;
use kube::core::DynamicObject;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use muster_api::clock::Clock;
use muster_api::names::label;
use muster_api::random::Random;
use muster_events::Recorder;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Makes the token that a job shows to the rendezvous service, from its namespace, name and uid.
pub type JobToken = Arc<dyn Fn(&str, &str, &str) -> String + Send + Sync>;

/// The rendezvous service, as workers reach it.
#[derive(Clone)]
pub struct Rendezvous {
    /// `host:port`.
    pub address: String,
    pub job_token: JobToken,
}

/// How the operator runs.
#[derive(Clone)]
pub struct Config {
    pub addressing: Addressing,
    /// The scheduler that places gangs; `None` makes no pod groups.
    pub gang_scheduler: Option<String>,
    /// The image and the number of tries of the init container that waits for a PyTorchJob's master.
    pub init_container_image: String,
    pub init_container_tries: u32,
    /// What follows `svc` in the names of services, where the cluster's resolver needs it.
    pub cluster_domain: Option<String>,
    pub rendezvous: Option<Rendezvous>,
    /// The one namespace to look after; `None` for all.
    pub namespace: Option<String>,
    pub clock: Clock,
    pub random: Random,
    /// How many jobs are worked on at once.
    pub concurrency: usize,
    /// Where host ports are taken from.
    pub host_ports: RangeInclusive<u16>,
    /// Whether nothing listens on a host port.
    pub port_is_free: Arc<dyn Fn(u16) -> bool + Send + Sync>,
    pub metrics: Metrics,
}

impl Default for Config {
    fn default() -> Self {
        let policy = Policy::default();
        Config {
            addressing: policy.addressing,
            gang_scheduler: policy.gang_scheduler,
            init_container_image: policy.init_container_image,
            init_container_tries: policy.init_container_tries,
            cluster_domain: policy.cluster_domain,
            rendezvous: None,
            namespace: None,
            clock: Clock::system(),
            random: Random::system(),
            concurrency: 32,
            // Below the ports that Linux hands out by itself.
            host_ports: 20000..=29999,
            port_is_free: Arc::new(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()),
            metrics: Metrics::default(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("policy", &self.policy()).field("concurrency", &self.concurrency).finish()
    }
}

impl Config {
    fn policy(&self) -> Policy {
        Policy {
            addressing: self.addressing,
            gang_scheduler: self.gang_scheduler.clone(),
            init_container_image: self.init_container_image.clone(),
            init_container_tries: self.init_container_tries,
            cluster_domain: self.cluster_domain.clone(),
        }
    }

    fn watched(&self) -> Vec<Watched> {
        let mut watched: Vec<Watched> = (0..FRAMEWORKS.len()).map(Watched::Jobs).collect();
        watched.extend([Resource::Pod, Resource::Service, Resource::HorizontalPodAutoscaler].map(Watched::Children));
        match self.gang_scheduler.as_deref() {
            None => {}
            Some("volcano") => watched.push(Watched::Children(Resource::VolcanoPodGroup)),
            Some(_) => watched.push(Watched::Children(Resource::PodGroup)),
        }
        watched
    }
}

/// Why the operator ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a task of the training operator ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

struct Operator {
    client: Client,
    config: Config,
    policy: Policy,
    state: State,
    queue: Queue<JobKey>,
    recorder: Recorder,
}

/// Runs until `shutdown`. `ready` is told once every cache has read its first list.
pub async fn run(
    client: Client,
    config: Config,
    ready: oneshot::Sender<()>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let (recorder, mut recording) = Recorder::start(&client, &config.clock, None, &shutdown);
    let operator = Arc::new(Operator {
        policy: config.policy(),
        state: State::default(),
        queue: Queue::default(),
        recorder,
        client,
        config,
    });
    let mut watches = JoinSet::new();
    let watched = operator.config.watched();
    let (synced, mut all_synced) = oneshot::channel();
    let countdown = Arc::new(Countdown::new(watched.len(), synced));
    for watched in watched {
        let (operator, countdown, shutdown) = (operator.clone(), countdown.clone(), shutdown.clone());
        watches.spawn(async move {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                () = operator.watch(watched, &countdown) => {}
            }
        });
    }
    let caches_read = tokio::select! {
        biased;
        () = shutdown.cancelled() => false,
        outcome = &mut all_synced => outcome.is_ok(),
    };
    if caches_read {
        let _ = ready.send(());
        operator.clone().dispatch(&shutdown).await?;
    }
    watches.shutdown().await;
    drop(operator);
    while let Some(outcome) = recording.join_next().await {
        outcome?;
    }
    Ok(())
}

/// Tells once when all of several have happened.
struct Countdown {
    left: AtomicUsize,
    done: std::sync::Mutex<Option<oneshot::Sender<()>>>,
}

impl Countdown {
    fn new(count: usize, done: oneshot::Sender<()>) -> Self {
        Countdown { left: AtomicUsize::new(count), done: std::sync::Mutex::new(Some(done)) }
    }

    fn one_done(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(done) = self.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
        {
            let _ = done.send(());
        }
    }
}

impl Operator {
    /// Keeps one cache up to date.
    async fn watch(&self, watched: Watched, synced: &Countdown) {
        let resource = watched.resource();
        let api: Api<DynamicObject> = match &self.config.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let labelled = matches!(watched, Watched::Children(Resource::Pod | Resource::Service));
        let config =
            if labelled { watcher::Config::default().labels(label::JOB_NAME) } else { watcher::Config::default() };
        let mut first = true;
        let delays = Doubling::default();
        let mut events = watcher(api, config).backoff(delays.clone()).boxed();
        while let Some(event) = events.next().await {
            if !matches!(event, Ok(watcher::Event::Init) | Err(_)) {
                delays.answered();
            }
            match event {
                Ok(watcher::Event::Init) => self.state.begin_list(watched),
                Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                    if let Some(key) = self.state.observe(watched, object) {
                        self.queue.add(key);
                    }
                }
                Ok(watcher::Event::InitDone) => {
                    for key in self.state.end_list(watched) {
                        self.queue.add(key);
                    }
                    if first {
                        first = false;
                        synced.one_done();
                    }
                }
                Ok(watcher::Event::Delete(object)) => {
                    if let Some(key) = self.state.observe_deletion(watched, &object) {
                        self.queue.add(key);
                    }
                }
                Err(error) => tracing::warn!(resource = %resource.plural, %error, "watch interrupted"),
            }
        }
    }

    /// Works on the queue, several jobs at once, until `shutdown`; passes that have begun are finished.
    async fn dispatch(self: Arc<Self>, shutdown: &CancellationToken) -> Result<(), Error> {
        let mut passes = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(outcome) = passes.join_next() => outcome?,
                key = self.queue.next(), if passes.len() < self.config.concurrency => {
                    let operator = self.clone();
                    passes.spawn(async move {
                        let outcome = operator.pass(&key).await;
                        operator.queue.finish(key, outcome);
                    });
                }
            }
        }
        while let Some(outcome) = passes.join_next().await {
            outcome?;
        }
        Ok(())
    }

    /// One look at one job, and what follows from it.
    async fn pass(&self, key: &JobKey) -> Outcome {
        let Some(look) = self.state.look(key, &self.config) else {
            return Outcome::Done(None);
        };
        let observed = match &look.observed {
            Ok(observed) => observed,
            Err(error) => {
                tracing::warn!(job = %key.name, namespace = %key.namespace, %error, "not a job");
                return Outcome::Done(None);
            }
        };
        let plan = decide(self.config.clock.now(), observed, key.framework(), &self.policy);
        let requeue_after = plan.requeue_after;
        let applier = Applier {
            client: &self.client,
            state: &self.state,
            recorder: &self.recorder,
            metrics: &self.config.metrics,
            key,
            subject: Applier::subject(key, &observed.job.uid),
        };
        // An update says nothing new to the next look, or its watch will tell.
        let changed = !plan.creates.is_empty() || !plan.deletes.is_empty() || plan.status.is_some();
        if applier.apply(&look, plan).await.is_err() {
            return Outcome::Retry;
        }
        if self.state.forget_vanished(&observed.job.uid, look.vanished) || changed {
            // What this pass has done is in the caches already; the next look must not wait for a watch to say so.
            self.queue.add(key.clone());
        }
        Outcome::Done(requeue_after)
    }
}
