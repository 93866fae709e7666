//! The node's loop: its object and Lease, its pods from the watch, a worker for each.

use super::config::{Config, OnShutdown};
use super::object::{HEARTBEAT, allocatable, heartbeat, leave, register};
use super::peers::Peers;
use super::runtime::{Recovered, RecoveredPod, RuntimeError, Signal};
use super::status::Address;
use super::worker::{self, Input, Shared, force};
use crate::devices::Allocation;
use crate::gang::key_of;
use crate::watch::{Change, changes};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::runtime::watcher;
use muster_events::Recorder;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to recover the pods of an earlier node: {0}")]
    Recover(#[from] RuntimeError),
}

type Key = (String, String);

/// How long a drain may take beyond the longest grace period.
const DRAIN_LIMIT: Duration = Duration::from_secs(600);
const CHORES_LIMIT: Duration = Duration::from_secs(30);
const RELEASE_RETRY: Duration = Duration::from_secs(1);
const REGISTER_RETRY: Duration = Duration::from_millis(200);

/// Runs the node until `shutdown`; then its pods end (or are left, by configuration). `ready` is told once the Node
/// object is Ready and the pods bound to it are known.
pub async fn run(
    client: kube::Client,
    config: Config,
    ready: oneshot::Sender<()>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let address = Address { host_ip: "127.0.0.1".to_owned(), pod_ip: "127.0.0.1".to_owned() };
    config.handle.attach(config.runtime.clone(), config.clock.clone());
    let recovered = config.runtime.recover().await?;
    let mut devices = Allocation::new(&config.devices);
    for pod in &recovered {
        devices.restore(&pod.record.uid, &pod.record.devices);
    }
    // What the pods' ends are told by goes on until they have ended.
    let told = CancellationToken::new();
    let (recorder, mut recording) = Recorder::start(&client, &config.clock, Some(&config.name), &told);
    let shared = Arc::new(Shared {
        client: client.clone(),
        recorder,
        address,
        allocatable: allocatable(&config),
        devices: Mutex::new(devices),
        devices_freed: Notify::new(),
        peers: Peers::default(),
        on_their_way: AtomicUsize::new(0),
        config,
    });
    let mut agent = Agent {
        shared: shared.clone(),
        recovered: recovered.into_iter().map(|pod| (pod.record.uid.clone(), pod)).collect(),
        pods: BTreeMap::new(),
        listing: None,
        workers: JoinSet::new(),
        chores: FuturesUnordered::new(),
        synced: false,
    };

    let bound = watcher::Config::default().fields(&format!("spec.nodeName={}", shared.config.name));
    let mut pods = std::pin::pin!(changes(Api::<Pod>::all(client.clone()), bound));
    let mut ready = Some(ready);
    let mut registered = false;
    let mut registration = registering(&shared);
    let mut beat = tokio::time::interval(HEARTBEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if registered
            && agent.synced
            && let Some(ready) = ready.take()
        {
            // Whoever waited for it may be gone.
            let _ = ready.send(());
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(change) = pods.next() => agent.take(change),
            Some(ended) = agent.workers.join_next() => agent.worker_ended(ended),
            Some(()) = agent.chores.next() => {}
            () = &mut registration, if !registered => registered = true,
            _ = beat.tick(), if registered => agent.beat(),
        }
    }
    agent.end().await;
    told.cancel();
    while recording.join_next().await.is_some() {}
    Ok(())
}

/// Until the Node object is Ready.
fn registering(shared: &Arc<Shared>) -> BoxFuture<'static, ()> {
    let shared = shared.clone();
    async move {
        while let Err(error) = register(&shared.client, &shared.config, &shared.address).await {
            tracing::warn!(%error, "failed to register the node; trying again");
            tokio::time::sleep(REGISTER_RETRY).await;
        }
    }
    .boxed()
}

struct Known {
    uid: String,
    /// `None` once the pod has finished and its worker with it.
    worker: Option<mpsc::UnboundedSender<Input>>,
    /// The object is marked for deletion.
    to_delete: bool,
    /// The object's deletion was sent.
    deleting: bool,
}

struct Agent {
    shared: Arc<Shared>,
    /// Of earlier nodes, until their objects are seen.
    recovered: BTreeMap<String, RecoveredPod>,
    pods: BTreeMap<Key, Known>,
    listing: Option<BTreeSet<Key>>,
    workers: JoinSet<(Key, String)>,
    chores: FuturesUnordered<BoxFuture<'static, ()>>,
    synced: bool,
}

impl Agent {
    fn take(&mut self, change: Change<Pod>) {
        match change {
            Change::Restart => self.listing = Some(BTreeSet::new()),
            Change::Listed(pod) => {
                let key = key_of(&pod.metadata.namespace, &pod.metadata.name);
                if let Some(listing) = &mut self.listing {
                    listing.insert(key);
                }
                self.apply(pod);
            }
            Change::Synced => {
                let seen = self.listing.take().unwrap_or_default();
                let gone: Vec<Key> = self.pods.keys().filter(|key| !seen.contains(*key)).cloned().collect();
                gone.iter().for_each(|key| self.gone(key));
                if !self.synced {
                    self.synced = true;
                    // What is left on disk has no object any more.
                    for (uid, pod) in std::mem::take(&mut self.recovered) {
                        tracing::info!(pod = pod.record.name, uid, "ending a pod without an object");
                        self.discard(uid);
                    }
                }
            }
            Change::Applied(pod) => self.apply(pod),
            Change::Deleted(pod) => {
                let key = key_of(&pod.metadata.namespace, &pod.metadata.name);
                if self.pods.get(&key).is_some_and(|known| Some(&known.uid) == pod.metadata.uid.as_ref()) {
                    self.gone(&key);
                }
            }
            Change::NotServed => {}
        }
    }

    fn apply(&mut self, pod: Pod) {
        let key = key_of(&pod.metadata.namespace, &pod.metadata.name);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if self.pods.get(&key).is_some_and(|known| known.uid != uid) {
            // Deleted and made again between two looks.
            self.gone(&key);
        }
        self.shared.peers.insert(&pod);
        let to_delete = pod.metadata.deletion_timestamp.is_some();
        if let Some(known) = self.pods.get_mut(&key) {
            known.to_delete |= to_delete;
            match &known.worker {
                Some(worker) => drop(worker.send(Input::Updated(Arc::new(pod)))),
                None => self.release(&key),
            }
            return;
        }
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            // Finished under an earlier node: only its logs are left.
            let recovered = self.recovered.remove(&uid);
            for (id, found) in recovered.iter().flat_map(|pod| &pod.containers) {
                if matches!(found, Recovered::Running(_)) {
                    self.shared.config.runtime.signal(id, Signal::Kill);
                }
            }
            self.shared.config.handle.insert(key.clone(), worker::logs_of_finished(&pod));
            self.pods.insert(key.clone(), Known { uid, worker: None, to_delete, deleting: false });
            self.release(&key);
            return;
        }
        let (sender, inputs) = mpsc::unbounded_channel();
        self.pods.insert(key.clone(), Known { uid: uid.clone(), worker: Some(sender), to_delete, deleting: false });
        let recovered = self.recovered.remove(&uid);
        let shared = self.shared.clone();
        self.workers.spawn(async move {
            worker::run(shared, Arc::new(pod), recovered, inputs).await;
            (key, uid)
        });
    }

    /// The pod's object is gone: its processes, records and logs go, too.
    fn gone(&mut self, key: &Key) {
        let Some(known) = self.pods.remove(key) else { return };
        self.shared.peers.remove(&known.uid);
        self.shared.config.handle.remove(key, &known.uid);
        match known.worker {
            // It ends what runs; then `worker_ended` discards the rest.
            Some(worker) => drop(worker.send(Input::Gone)),
            None => self.discard(known.uid),
        }
    }

    fn worker_ended(&mut self, ended: Result<(Key, String), tokio::task::JoinError>) {
        let (key, uid) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, "a pod's worker failed");
                return;
            }
        };
        match self.pods.get_mut(&key).filter(|known| known.uid == uid) {
            Some(known) => {
                known.worker = None;
                // Its deletion may have come too late for the worker.
                self.release(&key);
            }
            None => self.discard(uid),
        }
    }

    fn discard(&mut self, uid: String) {
        let shared = self.shared.clone();
        self.chores.push(
            async move {
                shared.config.runtime.remove(uid.clone()).await;
                let held = shared.devices.lock().unwrap_or_else(std::sync::PoisonError::into_inner).release(&uid);
                if held {
                    shared.devices_freed.notify_waiters();
                }
            }
            .boxed(),
        );
    }

    /// Lets a finished pod's object go, if it is marked for deletion.
    fn release(&mut self, key: &Key) {
        let Some(known) = self.pods.get_mut(key).filter(|known| known.to_delete && !known.deleting) else { return };
        known.deleting = true;
        let (uid, (namespace, name)) = (known.uid.clone(), key.clone());
        let pods: Api<Pod> = Api::namespaced(self.shared.client.clone(), &namespace);
        self.chores.push(
            async move {
                loop {
                    match pods.delete(&name, &force(&uid)).await {
                        Ok(_) => return,
                        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => return,
                        Err(error) => tracing::debug!(pod = name, %error, "failed to remove a finished pod's object"),
                    }
                    tokio::time::sleep(RELEASE_RETRY).await;
                }
            }
            .boxed(),
        );
    }

    fn beat(&mut self) {
        let shared = self.shared.clone();
        self.chores.push(
            async move {
                if let Err(error) = heartbeat(&shared.client, &shared.config).await {
                    tracing::debug!(%error, "failed to renew the node's lease");
                }
            }
            .boxed(),
        );
    }

    async fn end(mut self) {
        if self.shared.config.on_shutdown == OnShutdown::Leave {
            // The senders go, the workers end without a word.
            self.pods.clear();
            while self.workers.join_next().await.is_some() {}
            return;
        }
        if let Err(error) = leave(&self.shared.client, &self.shared.config).await {
            tracing::debug!(%error, "failed to mark the node as leaving");
        }
        for known in self.pods.values() {
            if let Some(worker) = &known.worker {
                // A worker that has just ended needs no drain.
                let _ = worker.send(Input::Drain);
            }
        }
        let drained = async {
            // What ends beside them: pods without an object. A deletion that cannot get through waits for the next node.
            let mut chores = std::mem::take(&mut self.chores);
            let workers = async { while self.workers.join_next().await.is_some() {} };
            let chores = async { while chores.next().await.is_some() {} };
            tokio::join!(workers, tokio::time::timeout(CHORES_LIMIT, chores)).0
        };
        if tokio::time::timeout(DRAIN_LIMIT, drained).await.is_err() {
            tracing::error!("some pods did not end");
        }
    }
}
