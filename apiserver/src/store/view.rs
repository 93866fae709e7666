//! The durable state as readers see it: the live objects of each resource, and its latest events.

use super::object::{Key, Object};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// How much history each resource keeps at most: events, and bytes of them.
const HISTORY_EVENTS: usize = 4096;
const HISTORY_BYTES: usize = 8 << 20;

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Event {
    pub revision: u64,
    pub path: Arc<str>,
    /// The object after the change; for a deletion, the object as it was last, with the deletion's revision.
    pub object: Arc<Object>,
    /// The object before the change, if there was one.
    pub previous: Option<Arc<Object>>,
    pub deleted: bool,
}

/// The revision asked for is older than what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {asked} is too old, history begins after {floor}")]
pub struct Expired {
    pub asked: u64,
    pub floor: u64,
}

#[derive(Debug)]
struct Collection {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    history: VecDeque<Event>,
    history_bytes: usize,
    /// All events above this revision are in `history`.
    floor: u64,
    /// Told after each change. It wakes its waiters in the order in which they came, which `tokio::sync::watch` does
    /// not: runs of the simulation must be repeatable.
    changed: Arc<Notify>,
}

impl Collection {
    fn new(floor: u64) -> Self {
        Collection {
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            floor,
            changed: Arc::default(),
        }
    }

    fn apply(&mut self, event: Event) {
        if event.deleted {
            self.objects.remove(&event.path);
        } else {
            self.objects.insert(event.path.clone(), event.object.clone());
        }
        self.history_bytes += event.object.weight();
        self.history.push_back(event);
        while self.history.len() > HISTORY_EVENTS || self.history_bytes > HISTORY_BYTES {
            let Some(oldest) = self.history.pop_front() else { break };
            self.history_bytes -= oldest.object.weight();
            self.floor = oldest.revision;
        }
    }

    fn since(&self, revision: u64, limit: usize) -> Result<Vec<Event>, Expired> {
        if revision < self.floor {
            return Err(Expired { asked: revision, floor: self.floor });
        }
        let start = self.history.partition_point(|event| event.revision <= revision);
        Ok(self.history.range(start..).take(limit).cloned().collect())
    }
}

#[derive(Debug)]
struct State {
    revision: u64,
    /// History below this was not loaded; new collections begin with it.
    floor: u64,
    collections: HashMap<Arc<str>, Collection>,
}

/// A part of a resource's objects, in the order of their paths.
#[derive(Clone, Debug)]
pub struct Page {
    pub items: Vec<Arc<Object>>,
    /// The path of each item.
    pub paths: Vec<Arc<str>>,
    /// The revision that the page is of.
    pub revision: u64,
}

#[derive(Debug)]
pub(super) struct View {
    state: RwLock<State>,
    /// Told after the revision has grown.
    published: Notify,
}

impl View {
    pub(super) fn new(revision: u64, floor: u64) -> Self {
        let state = State { revision, floor, collections: HashMap::new() };
        View { state: RwLock::new(state), published: Notify::new() }
    }

    fn read<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        f(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes events visible, all at once, up to `revision`.
    pub(super) fn publish(&self, revision: u64, events: impl IntoIterator<Item = (Arc<str>, Event)>) {
        let mut touched: Vec<Arc<str>> = Vec::new();
        {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let state = &mut *state;
            for (resource, event) in events {
                let floor = state.floor;
                state.collections.entry(resource.clone()).or_insert_with(|| Collection::new(floor)).apply(event);
                if !touched.contains(&resource) {
                    touched.push(resource);
                }
            }
            state.revision = state.revision.max(revision);
        }
        self.read(|state| {
            for resource in touched {
                if let Some(collection) = state.collections.get(&resource) {
                    collection.changed.notify_waiters();
                }
            }
        });
        self.published.notify_waiters();
    }

    /// Forgets history at and below `revision`, as if it had been compacted.
    pub(super) fn raise_floor(&self, revision: u64) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.floor = state.floor.max(revision);
        for collection in state.collections.values_mut() {
            collection.floor = collection.floor.max(revision);
            while collection.history.front().is_some_and(|event| event.revision <= revision) {
                if let Some(event) = collection.history.pop_front() {
                    collection.history_bytes -= event.object.weight();
                }
            }
        }
    }

    pub(super) fn revision(&self) -> u64 {
        self.read(|state| state.revision)
    }

    /// The next growth of the revision after this call.
    pub(super) fn published(&self) -> Notified<'_> {
        self.published.notified()
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.read(|state| state.collections.get(&key.resource)?.objects.get(&*key.path).cloned())
    }

    pub(super) fn count(&self, resource: &str) -> usize {
        self.read(|state| state.collections.get(resource).map_or(0, |c| c.objects.len()))
    }

    /// The objects of a resource, or of one namespace of it, after the path `after`; as of `at`, or of now.
    pub(super) fn list(
        &self,
        resource: &str,
        namespace: Option<&str>,
        after: Option<&str>,
        at: Option<u64>,
    ) -> Result<Page, Expired> {
        self.read(|state| {
            let revision = at.unwrap_or(state.revision);
            let Some(collection) = state.collections.get(resource) else {
                return Ok(Page { items: Vec::new(), paths: Vec::new(), revision });
            };
            let low = namespace.map(|n| format!("{n}/"));
            let high = namespace.map(|n| format!("{n}0")); // '0' follows '/'
            let start = match (after, &low) {
                (Some(after), _) => Bound::Excluded(after),
                (None, Some(low)) => Bound::Included(low.as_str()),
                (None, None) => Bound::Unbounded,
            };
            let inside = |path: &str| {
                low.as_ref().is_none_or(|low| path.starts_with(low.as_str())) && after.is_none_or(|after| path > after)
            };
            let end = high.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let inverted =
                matches!((&start, &end), (Bound::Excluded(s) | Bound::Included(s), Bound::Excluded(e)) if s >= e);
            let live = (!inverted).then(|| collection.objects.range::<str, _>((start, end))).into_iter().flatten();
            if revision >= state.revision {
                let (paths, items) = live.map(|(path, object)| (path.clone(), object.clone())).unzip();
                return Ok(Page { items, paths, revision });
            }
            // Undo what happened since, newest first.
            let mut then: BTreeMap<Arc<str>, Arc<Object>> = live.map(|(p, o)| (p.clone(), o.clone())).collect();
            for event in collection.since(revision, usize::MAX)?.into_iter().rev() {
                if !inside(&event.path) {
                    continue;
                }
                match event.previous {
                    Some(previous) => then.insert(event.path, previous),
                    None => then.remove(&event.path),
                };
            }
            let (paths, items) = then.into_iter().unzip();
            Ok(Page { items, paths, revision })
        })
    }

    /// Follows a resource from after `revision`.
    pub(super) fn watch(self: &Arc<Self>, resource: &Arc<str>, revision: u64) -> Watch {
        let known = self.read(|state| state.collections.get(resource).map(|c| c.changed.clone()));
        let changed = known.unwrap_or_else(|| {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let floor = state.floor;
            let collection = state.collections.entry(resource.clone()).or_insert_with(|| Collection::new(floor));
            collection.changed.clone()
        });
        Watch { view: self.clone(), resource: resource.clone(), revision, changed }
    }
}

/// The events of one resource, in order, none left out.
#[derive(Debug)]
pub struct Watch {
    view: Arc<View>,
    resource: Arc<str>,
    revision: u64,
    changed: Arc<Notify>,
}

impl Watch {
    /// Events that have not been handed out yet, at least one. Can be dropped and called again without a loss.
    pub async fn next(&mut self) -> Result<Vec<Event>, Expired> {
        loop {
            // Made before the look, so that no change between the two is missed.
            let changed = self.changed.clone();
            let changed = changed.notified();
            let events = self.pending()?;
            if !events.is_empty() {
                return Ok(events);
            }
            changed.await;
        }
    }

    /// What there is now; moves the watch on.
    pub fn pending(&mut self) -> Result<Vec<Event>, Expired> {
        const BATCH: usize = 256;
        let (events, at) = self.view.read(|state| {
            let events =
                state.collections.get(&self.resource).map_or(Ok(Vec::new()), |c| c.since(self.revision, BATCH));
            (events, state.revision)
        });
        let events = events?;
        self.revision = match events.last() {
            Some(last) if events.len() == BATCH => last.revision,
            _ => self.revision.max(at),
        };
        Ok(events)
    }

    /// Everything of this resource up to here has been handed out.
    pub fn revision(&self) -> u64 {
        self.revision
    }
}
