//! The stream of metadata that feeds the graph: one watch a kind, new kinds as they appear.

use super::graph::Node;
use super::resources::{Resource, Resources, discover, is_followed};
use super::{Error, Shared, Task};
use futures::StreamExt;
use kube::api::Api;
use kube::core::{DynamicObject, PartialObjectMeta, Resource as _};
use kube::runtime::watcher::{self, Event, watcher};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until};

type Meta = PartialObjectMeta<DynamicObject>;
/// Group and plural.
type Key = (String, String);

const BUFFER: usize = 1024;
/// After a change of the kinds, how long more of them are waited for before discovery is asked.
const SETTLE: Duration = Duration::from_millis(20);
/// How long a watch that failed waits.
const BACK_OFF: Duration = Duration::from_millis(500);

/// What a watch says.
enum Seen {
    Event(Box<Event<Meta>>),
    /// The kind is not served any more.
    Ended,
}

/// One watch.
struct Follower {
    resource: Arc<Resource>,
    task: JoinHandle<()>,
    /// What the list that is being read has shown, until it is complete.
    listed: Option<BTreeSet<String>>,
    uids: BTreeSet<String>,
    synced: bool,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) struct Intake {
    shared: Arc<Shared>,
    followers: BTreeMap<Key, Follower>,
    sender: mpsc::Sender<(Key, Seen)>,
    receiver: mpsc::Receiver<(Key, Seen)>,
}

impl Intake {
    pub(super) fn new(shared: Arc<Shared>) -> Intake {
        let (sender, receiver) = mpsc::channel(BUFFER);
        Intake { shared, followers: BTreeMap::new(), sender, receiver }
    }

    /// Follows the kinds that are served, and no others.
    pub(super) async fn refresh(&mut self) -> Result<(), Error> {
        let resources = discover(&self.shared.client).await.map_err(Error::Discovery)?;
        *self.shared.resources() = resources.clone();
        self.follow(resources);
        Ok(())
    }

    fn follow(&mut self, resources: Resources) {
        let ended: Vec<Key> = self.followers.keys().filter(|key| !resources.contains_key(*key)).cloned().collect();
        for key in ended {
            self.end(&key);
        }
        for (key, resource) in resources {
            let known = self.followers.get(&key).is_some_and(|f| f.resource.api == resource.api);
            if known || !is_followed(&resource) {
                continue;
            }
            let task =
                tokio::spawn(watch(self.shared.client.clone(), resource.clone(), key.clone(), self.sender.clone()));
            // A kind that is served in another version has the same objects; its list says which are left.
            let uids = self.followers.remove(&key).map(|mut old| std::mem::take(&mut old.uids)).unwrap_or_default();
            self.followers.insert(key, Follower { resource, task, listed: None, uids, synced: false });
        }
    }

    /// Stops following a kind; its objects are gone.
    fn end(&mut self, key: &Key) {
        if let Some(mut follower) = self.followers.remove(key) {
            for uid in std::mem::take(&mut follower.uids) {
                self.shared.removed(&uid);
            }
        }
    }

    /// Takes in everything that exists.
    pub(super) async fn sync(&mut self) {
        while !self.followers.values().all(|follower| follower.synced) {
            match self.receiver.recv().await {
                Some((key, seen)) => self.take(&key, seen),
                None => return,
            }
        }
    }

    /// Takes in what happens.
    pub(super) async fn run(&mut self) {
        let mut refresh_at: Option<tokio::time::Instant> = None;
        let shared = self.shared.clone();
        loop {
            let alarm = async {
                match refresh_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = alarm => {
                    refresh_at = None;
                    if let Err(error) = self.refresh().await {
                        tracing::debug!(%error, "discovery failed");
                        refresh_at = Some(tokio::time::Instant::now() + BACK_OFF);
                    }
                }
                () = shared.kinds_changed.notified() => {
                    refresh_at.get_or_insert_with(|| tokio::time::Instant::now() + SETTLE);
                }
                seen = self.receiver.recv() => match seen {
                    Some((key, seen)) => self.take(&key, seen),
                    None => return,
                },
            }
        }
    }

    fn take(&mut self, key: &Key, seen: Seen) {
        let Some(follower) = self.followers.get_mut(key) else { return };
        let event = match seen {
            Seen::Event(event) => *event,
            Seen::Ended => {
                self.end(key);
                self.shared.kinds_changed.notify_one();
                return;
            }
        };
        match event {
            Event::Init => follower.listed = Some(BTreeSet::new()),
            Event::InitApply(object) | Event::Apply(object) => {
                let Some(uid) = object.meta().uid.clone() else { return };
                if let Some(listed) = &mut follower.listed {
                    listed.insert(uid.clone());
                }
                follower.uids.insert(uid.clone());
                let node = Node::new(follower.resource.clone(), object.meta());
                self.shared.seen(&uid, node);
            }
            Event::InitDone => {
                follower.synced = true;
                let listed = follower.listed.take().unwrap_or_default();
                let missing: Vec<String> = follower.uids.difference(&listed).cloned().collect();
                follower.uids = listed;
                for uid in missing {
                    self.shared.removed(&uid);
                }
            }
            Event::Delete(object) => {
                let Some(uid) = object.meta().uid.clone() else { return };
                follower.uids.remove(&uid);
                self.shared.removed(&uid);
            }
        }
    }
}

async fn watch(client: kube::Client, resource: Arc<Resource>, key: Key, sender: mpsc::Sender<(Key, Seen)>) {
    let api: Api<Meta> = Api::all_with(client, &resource.api);
    let mut events = Box::pin(watcher(api, watcher::Config::default()));
    while let Some(event) = events.next().await {
        let seen = match event {
            Ok(event) => Seen::Event(Box::new(event)),
            Err(error) if is_unserved(&error) => Seen::Ended,
            Err(error) => {
                tracing::debug!(kind = resource.api.kind, %error, "a watch failed");
                sleep(BACK_OFF).await;
                continue;
            }
        };
        let ended = matches!(seen, Seen::Ended);
        if sender.send((key.clone(), seen)).await.is_err() || ended {
            return;
        }
    }
}

/// Whether the API says that it does not serve the kind.
fn is_unserved(error: &watcher::Error) -> bool {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status,
        _ => return false,
    };
    matches!(status.code, 404 | 405)
}

impl Shared {
    /// Takes in an object as it is now, and queues what follows from it.
    fn seen(&self, uid: &str, node: Node) {
        let api = node.resource.api.clone();
        let (namespace, name) = (node.namespace.clone(), node.name.clone());
        let (deleting, owned) = (node.deleting, !node.owners.is_empty());
        let (waits, orphans, finalizers) = (node.waits_for_dependents, node.orphans, node.finalizers);
        let before = self.graph().put(uid, node);
        let is_new = before.is_none();
        if owned || waits || orphans {
            self.queue.add(Task::Object(uid.to_owned()));
        }
        if waits && before.as_ref().is_none_or(|b| !b.waits_for_dependents) {
            let dependents = self.graph().dependents(uid);
            dependents.into_iter().for_each(|dependent| self.queue.add(Task::Object(dependent)));
        }
        // An owner that waits may have lost what it waits for, by a reference that was taken away.
        if let Some(before) = &before {
            for owner in &before.owners {
                if self.graph().get(&owner.uid).is_some_and(|owner| owner.waits_for_dependents) {
                    self.queue.add(Task::Object(owner.uid.clone()));
                }
            }
        }
        match (api.group.as_str(), api.kind.as_str()) {
            ("", "Namespace") if deleting => self.queue.add(Task::Terminating(name)),
            ("", "Namespace") => self.queue.add(Task::Accounts(name)),
            ("", "ConfigMap") if name == super::accounts::ROOT_CA && !is_new => {
                self.queue.add(Task::Accounts(namespace.clone()));
            }
            ("", "Node") if self.config.node_taints => self.queue.add(Task::Node(name)),
            ("", "ResourceQuota") => self.queue.add(Task::Quota(namespace.clone(), name)),
            ("", "PersistentVolumeClaim" | "PersistentVolume") if deleting && finalizers => {
                self.queue.add(Task::Protected(uid.to_owned()));
            }
            ("apiextensions.k8s.io", "CustomResourceDefinition") => self.kinds_changed.notify_one(),
            _ => {}
        }
        if api.kind != "ResourceQuota" {
            self.recount(&namespace);
        }
    }

    /// Forgets an object that is gone, and queues what follows from it.
    fn removed(&self, uid: &str) {
        let Some(node) = self.graph().remove(uid) else { return };
        for dependent in self.graph().dependents(uid) {
            self.queue.add(Task::Object(dependent));
        }
        for owner in &node.owners {
            if self.graph().get(&owner.uid).is_some_and(|owner| owner.waits_for_dependents) {
                self.queue.add(Task::Object(owner.uid.clone()));
            }
        }
        let namespace = node.namespace;
        match (node.resource.api.group.as_str(), node.resource.api.kind.as_str()) {
            ("", "ServiceAccount") if node.name == super::accounts::DEFAULT => {
                self.queue.add(Task::Accounts(namespace.clone()));
            }
            ("", "ConfigMap") if node.name == super::accounts::ROOT_CA => {
                self.queue.add(Task::Accounts(namespace.clone()));
            }
            ("", "Pod") => self.recheck_claims(&namespace),
            ("apiextensions.k8s.io", "CustomResourceDefinition") => self.kinds_changed.notify_one(),
            _ => {}
        }
        if self.graph().is_ending(&namespace) {
            self.queue.add(Task::Terminating(namespace.clone()));
        }
        self.recount(&namespace);
    }

    /// Counts the quotas of a namespace again.
    fn recount(&self, namespace: &str) {
        let quotas = self.graph().quotas(namespace);
        for name in quotas {
            self.queue.add(Task::Quota(namespace.to_owned(), name));
        }
    }

    fn recheck_claims(&self, namespace: &str) {
        let claims = self.graph().leaving_claims(namespace);
        claims.into_iter().for_each(|uid| self.queue.add(Task::Protected(uid)));
    }
}
