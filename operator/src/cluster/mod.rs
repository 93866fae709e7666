//! The cluster's own housekeeping: what every Kubernetes cluster does besides running pods.
//!
//! One stream of metadata of every kind, built-in or custom, feeds one graph of who owns whom. From it follow the
//! garbage collection, the deletion of namespaces, the service accounts, and quotas. Nothing polls: what has to be
//! looked at is queued when its cause is seen.

mod accounts;
mod events;
mod garbage;
mod graph;
mod intake;
mod namespaces;
mod protection;
mod quota;
mod resources;

use crate::shell::queue::{Outcome, Queue};
use crate::shell::resource::RequestError;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use graph::Graph;
use kube::Client;
use muster_api::clock::Clock;
use resources::{Resource, Resources};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

/// What the controllers are told.
#[derive(Clone, Debug)]
pub struct Config {
    pub clock: Clock,
    /// The certificate of the cluster's authority, published to pods as the ConfigMap `kube-root-ca.crt` of every
    /// namespace. `None` where no pods run: then there is nobody to read it.
    pub root_ca: Option<String>,
    /// Whether nodes are tainted while they are not ready. Only a scheduler reads that.
    pub node_taints: bool,
    /// How much is worked on at once.
    pub concurrency: usize,
    /// How long events are kept.
    pub event_ttl: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            clock: Clock::system(),
            root_ca: None,
            node_taints: true,
            concurrency: 16,
            event_ttl: Duration::from_secs(3600),
        }
    }
}

/// Why the controllers ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the kinds of the cluster cannot be listed: {0}")]
    Discovery(#[source] kube::Error),
}

/// Something that has to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    /// An object that may have lost its owners, or that waits for its dependents; by uid.
    Object(String),
    /// A namespace that is on its way out.
    Terminating(String),
    /// A namespace that needs its service account and root certificate.
    Accounts(String),
    /// A quota of a namespace.
    Quota(String, String),
    /// A claim or a volume that waits for its users; by uid.
    Protected(String),
    /// A node whose taint may not fit its condition.
    Node(String),
    /// Old events.
    Events,
}

/// What all parts share.
struct Shared {
    client: Client,
    config: Config,
    graph: Mutex<Graph>,
    /// The kinds that are followed, and those that are not.
    resources: Mutex<Resources>,
    queue: Queue<Task>,
    /// Told when the set of kinds may have changed.
    kinds_changed: Notify,
}

impl Shared {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resources(&self) -> MutexGuard<'_, Resources> {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kind with this name in a group, whatever its version.
    fn resource(&self, group: &str, kind: &str) -> Option<Arc<Resource>> {
        self.resources().values().find(|resource| resource.is(group, kind)).cloned()
    }
}

/// Runs until `shutdown`. Ready once every object has been seen.
pub async fn run(
    client: Client,
    config: Config,
    ready: oneshot::Sender<()>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let shared = Arc::new(Shared {
        client,
        config,
        graph: Mutex::default(),
        resources: Mutex::default(),
        queue: Queue::default(),
        kinds_changed: Notify::new(),
    });
    let mut intake = intake::Intake::new(shared.clone());
    intake.refresh().await?;
    let synced = tokio::select! {
        biased;
        () = shutdown.cancelled() => false,
        () = intake.sync() => true,
    };
    if !synced {
        return Ok(());
    }
    shared.queue.add(Task::Events);
    let _ = ready.send(());
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        () = intake.run() => {}
        () = work(&shared) => {}
    }
    Ok(())
}

/// Works on what is queued, several keys at once.
async fn work(shared: &Arc<Shared>) {
    let mut running = FuturesUnordered::new();
    loop {
        let free = running.len() < shared.config.concurrency.max(1);
        tokio::select! {
            biased;
            Some((task, outcome)) = running.next(), if !running.is_empty() => shared.queue.finish(task, outcome),
            task = shared.queue.next(), if free => {
                let shared = shared.clone();
                running.push(async move {
                    let outcome = act(&shared, &task).await;
                    (task, outcome)
                });
            }
        }
    }
}

async fn act(shared: &Arc<Shared>, task: &Task) -> Outcome {
    let outcome = match task {
        Task::Object(uid) => garbage::attend(shared, uid).await,
        Task::Terminating(name) => namespaces::attend(shared, name).await,
        Task::Accounts(namespace) => accounts::attend(shared, namespace).await,
        Task::Quota(namespace, name) => quota::attend(shared, namespace, name).await,
        Task::Protected(uid) => protection::attend_storage(shared, uid).await,
        Task::Node(name) => protection::attend_node(shared, name).await,
        Task::Events => events::expire(shared).await,
    };
    match outcome {
        Ok(after) => Outcome::Done(after),
        // The object has moved on: what was seen is stale, and what is new is on its way.
        Err(RequestError::Conflict(_)) => Outcome::Retry,
        Err(error) => {
            tracing::debug!(?task, %error, "will be tried again");
            Outcome::Retry
        }
    }
}
