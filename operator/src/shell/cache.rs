//! A cache of the objects of one resource, fed by its watch and by the answers to our own writes.
//!
//! The watch may lag behind a write. What a write has answered is therefore taken in at once, unless the watch is past
//! it already; and what a write has deleted is not taken back in from older events. So a controller never acts on less
//! than it has done itself.

use kube::core::DynamicObject;
use kube::core::metadata::TypeMeta;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Namespace and name.
pub type Key = (String, String);

/// The controller of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
}

/// What the cache needs to know of an object.
#[derive(Clone, Debug)]
pub struct Identity {
    pub key: Key,
    pub uid: String,
    pub owner: Option<Owner>,
    pub version: u64,
}

impl Identity {
    pub fn of(object: &DynamicObject) -> Identity {
        let metadata = &object.metadata;
        let controller = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        Identity {
            key: (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default()),
            uid: metadata.uid.clone().unwrap_or_default(),
            owner: controller.map(|owner| Owner {
                api_version: owner.api_version.clone(),
                kind: owner.kind.clone(),
                name: owner.name.clone(),
                uid: owner.uid.clone(),
            }),
            // Versions are counters on every server that we know; one that is not is never newer than the watch.
            version: metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0),
        }
    }
}

#[derive(Debug)]
struct Entry<T> {
    identity: Identity,
    value: Arc<T>,
}

#[derive(Debug)]
pub struct Cache<T> {
    entries: BTreeMap<Key, Entry<T>>,
    /// The keys of the objects of each owner, by its uid.
    owned: HashMap<String, BTreeSet<Key>>,
    /// The newest version that the watch has shown.
    seen: u64,
    /// Uids of objects that we have deleted and the watch has not.
    gone: HashSet<String>,
    /// What has been listed, while a list is being read.
    listed: Option<HashSet<Key>>,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Cache { entries: BTreeMap::new(), owned: HashMap::new(), seen: 0, gone: HashSet::new(), listed: None }
    }
}

impl<T> Cache<T> {
    pub fn get(&self, key: &Key) -> Option<&Arc<T>> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// The objects that are controlled by the owner with this uid, in the order of their names.
    pub fn owned_by<'a>(&'a self, uid: &str) -> impl Iterator<Item = (&'a Key, &'a Arc<T>)> {
        let keys = self.owned.get(uid).into_iter().flatten();
        keys.filter_map(|key| self.entries.get(key).map(|entry| (key, &entry.value)))
    }

    pub fn values(&self) -> impl Iterator<Item = &Arc<T>> {
        self.entries.values().map(|entry| &entry.value)
    }

    /// A list begins.
    pub fn begin_list(&mut self) {
        self.listed = Some(HashSet::new());
    }

    /// A list is complete: what it did not have is gone. Returns the owners of what is gone.
    pub fn end_list(&mut self) -> Vec<Identity> {
        let Some(listed) = self.listed.take() else { return Vec::new() };
        self.gone.clear();
        let missing: Vec<Key> = self.entries.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        missing.into_iter().filter_map(|key| self.remove(&key)).collect()
    }

    /// The watch or a list shows an object. False where it is older than what is known.
    pub fn observe(&mut self, identity: Identity, value: T) -> bool {
        self.seen = self.seen.max(identity.version);
        if self.gone.contains(&identity.uid) {
            return false;
        }
        if let Some(listed) = &mut self.listed {
            listed.insert(identity.key.clone());
        }
        let known = self.entries.get(&identity.key);
        if known.is_some_and(|known| known.identity.version > identity.version) {
            return false;
        }
        self.insert(identity, value);
        true
    }

    /// The watch shows that an object is gone. Returns what was known of it, unless we deleted it ourselves.
    pub fn observe_deletion(&mut self, identity: &Identity) -> Option<Arc<T>> {
        self.seen = self.seen.max(identity.version);
        if self.gone.remove(&identity.uid) {
            return None;
        }
        let entry = self.entries.get(&identity.key).filter(|entry| entry.identity.uid == identity.uid)?;
        let value = entry.value.clone();
        self.remove(&identity.key);
        Some(value)
    }

    /// A creation of ours has answered with an object.
    pub fn created(&mut self, identity: Identity, value: T) {
        if identity.version > self.seen {
            if let Some(listed) = &mut self.listed {
                listed.insert(identity.key.clone());
            }
            self.insert(identity, value);
        }
    }

    /// An update of ours, or a deletion that leaves it for a while, has answered with an object. Where it is not known
    /// any more it was deleted since: a list, whose version nobody knows, did not have it, and no watch would ever say
    /// so again.
    pub fn updated(&mut self, identity: Identity, value: T) {
        let known = self.entries.get(&identity.key);
        if known.is_some_and(|known| known.identity.uid == identity.uid && known.identity.version < identity.version) {
            self.insert(identity, value);
        }
    }

    /// A deletion of ours has removed an object.
    pub fn deleted(&mut self, key: &Key, uid: &str) {
        if self.entries.get(key).is_some_and(|entry| entry.identity.uid == uid) {
            self.remove(key);
            self.gone.insert(uid.to_owned());
        }
    }

    /// Puts an object in, whatever is known.
    pub fn insert(&mut self, identity: Identity, value: T) {
        self.remove(&identity.key);
        if let Some(owner) = &identity.owner {
            self.owned.entry(owner.uid.clone()).or_default().insert(identity.key.clone());
        }
        self.entries.insert(identity.key.clone(), Entry { identity, value: Arc::new(value) });
    }

    /// Takes an object out.
    pub fn remove(&mut self, key: &Key) -> Option<Identity> {
        let entry = self.entries.remove(key)?;
        if let Some(owner) = &entry.identity.owner
            && let Some(keys) = self.owned.get_mut(&owner.uid)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.owned.remove(&owner.uid);
            }
        }
        Some(entry.identity)
    }
}

/// Fills in the type of an object, which lists leave out.
pub fn typed(mut object: DynamicObject, api_version: &str, kind: &str) -> DynamicObject {
    object.types = Some(TypeMeta { api_version: api_version.to_owned(), kind: kind.to_owned() });
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: &str, uid: &str, version: u64) -> Identity {
        let owner =
            Owner { api_version: "v1".to_owned(), kind: "K".to_owned(), name: "o".to_owned(), uid: "owner".to_owned() };
        Identity { key: ("ns".to_owned(), name.to_owned()), uid: uid.to_owned(), owner: Some(owner), version }
    }

    fn names(cache: &Cache<u32>) -> Vec<(&str, u32)> {
        cache.owned_by("owner").map(|(key, value)| (key.1.as_str(), **value)).collect()
    }

    #[test]
    fn a_late_answer_brings_nothing_back_that_a_list_did_not_have() {
        let mut cache = Cache::default();
        cache.observe(identity("a", "1", 10), 1);
        cache.updated(identity("a", "1", 11), 2);
        assert_eq!(names(&cache), [("a", 2)]);
        // Deleted while a list is read, to which the answer of an update comes late.
        cache.begin_list();
        cache.updated(identity("a", "1", 12), 3);
        cache.end_list();
        assert_eq!(names(&cache), []);
        cache.updated(identity("a", "1", 13), 4);
        assert_eq!(names(&cache), []);
        // Another of its name is not the one that was written.
        cache.observe(identity("a", "2", 20), 5);
        cache.updated(identity("a", "1", 21), 6);
        assert_eq!(names(&cache), [("a", 5)]);
    }

    #[test]
    fn own_writes_are_seen_before_the_watch_shows_them() {
        let mut cache = Cache::default();
        cache.created(identity("a", "1", 10), 1);
        assert_eq!(names(&cache), [("a", 1)]);
        assert!(!cache.observe(identity("a", "1", 9), 0), "an older event changes nothing");
        assert_eq!(names(&cache), [("a", 1)]);
        assert!(cache.observe(identity("a", "1", 11), 2));
        assert_eq!(names(&cache), [("a", 2)]);
    }

    #[test]
    fn an_answer_that_the_watch_is_past_changes_nothing() {
        let mut cache = Cache::default();
        cache.observe(identity("a", "1", 10), 1);
        cache.observe_deletion(&identity("a", "1", 11));
        cache.created(identity("a", "1", 10), 1);
        assert!(names(&cache).is_empty(), "the object was made and gone before the answer came");
    }

    #[test]
    fn what_was_deleted_does_not_come_back_from_older_events() {
        let mut cache = Cache::default();
        cache.observe(identity("a", "1", 10), 1);
        cache.deleted(&identity("a", "1", 0).key, "1");
        assert!(!cache.observe(identity("a", "1", 11), 1));
        assert!(names(&cache).is_empty());
        assert!(cache.observe_deletion(&identity("a", "1", 12)).is_none(), "our own deletion is no news");
        cache.observe(identity("a", "2", 13), 2);
        assert_eq!(names(&cache), [("a", 2)], "a new object of the name is another one");
    }

    #[test]
    fn a_list_ends_what_it_does_not_have() {
        let mut cache = Cache::default();
        cache.observe(identity("a", "1", 1), 1);
        cache.observe(identity("b", "2", 2), 2);
        cache.begin_list();
        cache.observe(identity("b", "2", 2), 2);
        cache.created(identity("c", "3", 5), 3);
        let gone = cache.end_list();
        assert_eq!(gone.len(), 1);
        assert_eq!(names(&cache), [("b", 2), ("c", 3)]);
    }
}
