#![allow(clippy::disallowed_methods, reason = "a slow disk is played by a sleep")]

use super::*;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

fn object(name: &str, data: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"n": name}}, "data": data})
}

fn draft(name: &str, data: u64) -> Draft {
    let value = object(name, data);
    let index = Index::of(&value, []);
    Draft::new(&value, index)
}

fn resource() -> Arc<str> {
    "/configmaps".into()
}

fn key(name: &str) -> Key {
    Key::new(&resource(), Some("ns"), name)
}

fn open(backend: impl Backend + 'static) -> Store {
    Store::open(Box::new(backend), |_, value| Index::of(value, [])).expect("opens")
}

async fn create(store: &Store, name: &str, data: u64) -> Arc<Object> {
    store.commit(vec![Op::Create { key: key(name), draft: draft(name, data) }]).await.expect("creates").remove(0)
}

async fn update(store: &Store, name: &str, expected: u64, data: u64) -> Result<Arc<Object>, CommitError> {
    Ok(store.commit(vec![Op::Update { key: key(name), expected, draft: draft(name, data) }]).await?.remove(0))
}

#[tokio::test]
async fn writers_check_against_the_newest_state() {
    let store = open(Memory);
    let first = create(&store, "a", 1).await;
    let again = store.commit(vec![Op::Create { key: key("a"), draft: draft("a", 2) }]).await;
    assert_eq!(again, Err(CommitError::Exists(0)));
    assert_eq!(update(&store, "a", first.revision + 9, 2).await, Err(CommitError::Conflict(0)));
    let second = update(&store, "a", first.revision, 2).await.expect("updates");
    assert!(second.revision > first.revision);
    assert_eq!(update(&store, "nosuch", 1, 2).await, Err(CommitError::Missing(0)));
}

#[tokio::test]
async fn a_transaction_happens_whole_or_not_at_all() {
    let store = open(Memory);
    let a = create(&store, "a", 1).await;
    let steps = vec![
        Op::Update { key: key("a"), expected: a.revision, draft: draft("a", 2) },
        Op::Delete { key: key("b"), expected: 1 },
    ];
    assert_eq!(store.commit(steps).await, Err(CommitError::Missing(1)));
    assert_eq!(store.get(&key("a")), Some(a));
}

#[tokio::test]
async fn a_list_is_answered_as_of_an_older_revision_until_that_is_forgotten() {
    let store = open(Memory);
    create(&store, "a", 1).await;
    let b = create(&store, "b", 1).await;
    let then = store.revision();
    create(&store, "c", 1).await;
    update(&store, "b", b.revision, 2).await.expect("updates");
    let a = store.get(&key("a")).expect("is there").revision;
    store.commit(vec![Op::Delete { key: key("a"), expected: a }]).await.expect("deletes");
    let names = |page: Page| page.paths.iter().map(|p| p.to_string()).collect::<Vec<_>>();
    let now = store.list("/configmaps", Some("ns"), None, None).expect("lists");
    assert_eq!(names(now), ["ns/b", "ns/c"]);
    let past = store.list("/configmaps", Some("ns"), None, Some(then)).expect("lists");
    assert_eq!(past.items[1], b);
    assert_eq!(names(past), ["ns/a", "ns/b"]);
    let rest = store.list("/configmaps", Some("ns"), Some("ns/a"), Some(then)).expect("lists");
    assert_eq!(names(rest), ["ns/b"]);
    assert_eq!(names(store.list("/configmaps", Some("n"), None, None).expect("lists")), [] as [&str; 0]);
    store.forget_history();
    assert!(store.list("/configmaps", None, None, Some(then)).is_err());
}

#[tokio::test]
async fn a_watch_hands_out_every_event_once_and_in_order() {
    let store = open(Memory);
    let mut watch = store.watch(&resource(), store.revision());
    let mut expected = Vec::new();
    for n in 0..600 {
        expected.push(create(&store, &format!("o{n}"), n).await.revision);
    }
    let last = store.get(&key("o0")).expect("is there").revision;
    store.commit(vec![Op::Delete { key: key("o0"), expected: last }]).await.expect("deletes");
    expected.push(store.revision());
    let mut seen = Vec::new();
    while seen.len() < expected.len() {
        seen.extend(watch.next().await.expect("is not too old").into_iter().map(|e| e.revision));
    }
    assert_eq!(seen, expected);
    assert!(watch.pending().expect("is not too old").is_empty());
    store.forget_history();
    let mut late = store.watch(&resource(), 1);
    assert!(late.next().await.is_err());
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart_with_its_history() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.db");
    let store = open(Sqlite::open(&path).expect("opens"));
    let a = create(&store, "a", 1).await;
    let a2 = update(&store, "a", a.revision, 2).await.expect("updates");
    let b = create(&store, "b", 1).await;
    store.commit(vec![Op::Delete { key: key("b"), expected: b.revision }]).await.expect("deletes");
    let revision = store.revision();
    assert!(Sqlite::open(&path).is_err(), "a second process is refused");
    store.close();
    drop(store);
    let store = open(Sqlite::open(&path).expect("opens"));
    assert_eq!(store.revision(), revision);
    assert_eq!(store.get(&key("a")), Some(a2.clone()));
    assert_eq!(store.get(&key("b")), None);
    let mut watch = store.watch(&resource(), a.revision);
    let events = watch.pending().expect("history is kept");
    assert_eq!(events.iter().map(|e| e.revision).collect::<Vec<_>>(), [a2.revision, b.revision, revision]);
    assert_eq!(create(&store, "c", 1).await.revision, revision + 1);
}

#[tokio::test]
async fn superseded_rows_are_dropped_and_live_ones_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.db");
    let store = open(Sqlite::open(&path).expect("opens"));
    let kept = create(&store, "kept", 1).await;
    // Many updates in one transaction each would be slow; each transaction updates many objects instead.
    let mut revisions = Vec::new();
    for n in 0..1000 {
        revisions.push(Op::Create { key: key(&format!("o{n}")), draft: draft("o", 0) });
    }
    let mut objects = store.commit(revisions).await.expect("creates");
    for round in 1..10 {
        let steps = objects.iter().enumerate();
        let steps = steps.map(|(n, o)| Op::Update {
            key: key(&format!("o{n}")),
            expected: o.revision,
            draft: draft("o", round),
        });
        objects = store.commit(steps.collect()).await.expect("updates");
    }
    let revision = store.revision();
    store.close();
    drop(store);
    let mut backend = Sqlite::open(&path).expect("opens");
    let mut rows = 0;
    let floor = backend.load(&mut |_| rows += 1).expect("loads");
    assert!(floor > 0 && rows < 6500, "floor {floor}, {rows} rows");
    let store = open(backend);
    assert_eq!(store.revision(), revision);
    assert_eq!(store.count("/configmaps"), 1001);
    assert_eq!(store.get(&key("kept")), Some(kept));
    assert_eq!(store.get(&key("o999")), objects.last().cloned());
}

/// Says what happens in which order; fails on request.
struct Recording {
    log: Arc<std::sync::Mutex<Vec<u64>>>,
    fail: Arc<std::sync::atomic::AtomicBool>,
}

impl Backend for Recording {
    fn load(&mut self, _visit: &mut dyn FnMut(Row)) -> Result<u64, BackendError> {
        Ok(0)
    }

    fn commit(&mut self, rows: &[Row]) -> Result<(), BackendError> {
        std::thread::sleep(std::time::Duration::from_millis(2));
        if self.fail.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(BackendError::Other("the disk is gone".to_owned()));
        }
        self.log.lock().expect("not poisoned").extend(rows.iter().map(|row| row.revision));
        Ok(())
    }

    fn compact(&mut self, _floor: u64, _superseded: &[u64]) -> Result<(), BackendError> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_answered_or_visible_before_it_is_durable() {
    let log = Arc::new(std::sync::Mutex::new(Vec::new()));
    let fail = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let store = open(Recording { log: log.clone(), fail: fail.clone() });
    let durable = |revision: u64| log.lock().expect("not poisoned").contains(&revision);
    let mut writers = Vec::new();
    for n in 0..64u64 {
        let (store, log) = (store.clone(), log.clone());
        writers.push(tokio::spawn(async move {
            for round in 0..10u64 {
                let object = create(&store, &format!("w{n}-{round}"), round).await;
                assert!(log.lock().expect("not poisoned").contains(&object.revision), "answered before it was durable");
            }
        }));
    }
    let mut watch = store.watch(&resource(), 0);
    let mut seen = 0;
    while seen < 640 {
        for event in watch.next().await.expect("is not too old") {
            assert!(durable(event.revision), "visible before it was durable");
            seen += 1;
        }
        assert!(durable(store.revision()));
    }
    for writer in writers {
        writer.await.expect("the writer ends well");
    }
    let rows = log.lock().expect("not poisoned").clone();
    assert!(rows.is_sorted() && rows.len() == 640);
    fail.store(true, std::sync::atomic::Ordering::SeqCst);
    let refused = store.commit(vec![Op::Create { key: key("late"), draft: draft("late", 1) }]).await;
    assert!(matches!(refused, Err(CommitError::Backend(_))));
    assert_eq!((store.get(&key("late")), store.head(&key("late"))), (None, None));
    fail.store(false, std::sync::atomic::Ordering::SeqCst);
    let refused = store.commit(vec![Op::Create { key: key("later"), draft: draft("later", 1) }]).await;
    assert!(matches!(refused, Err(CommitError::Backend(_))), "after a failed flush nothing is accepted");
}

/// Refuses as a full disk does while it is told to.
struct Cramped {
    full: Arc<AtomicBool>,
    rows: Arc<Mutex<Vec<Row>>>,
}

impl Backend for Cramped {
    fn load(&mut self, visit: &mut dyn FnMut(Row)) -> Result<u64, BackendError> {
        self.rows.lock().unwrap().iter().cloned().for_each(visit);
        Ok(0)
    }

    fn commit(&mut self, rows: &[Row]) -> Result<(), BackendError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(BackendError::Full("full".to_owned()));
        }
        self.rows.lock().unwrap().extend_from_slice(rows);
        Ok(())
    }

    fn compact(&mut self, _: u64, _: &[u64]) -> Result<(), BackendError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_store_without_room_refuses_and_goes_on_when_there_is_some() {
    let (full, rows) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let backend = || Box::new(Cramped { full: full.clone(), rows: Arc::clone(&rows) });
    let store = Store::open(backend(), |_, _| Index::default()).unwrap();
    let create = |name: &str| {
        let value = serde_json::json!({"metadata": {"name": name}});
        vec![Op::Create { key: Key::new(&resource(), Some("n"), name), draft: Draft::new(&value, Index::default()) }]
    };
    let before = store.commit(create("before")).await.unwrap().remove(0);
    full.store(true, Ordering::SeqCst);
    let together = futures::future::join_all(["a", "b", "c"].map(|name| store.commit(create(name)))).await;
    assert!(together.iter().all(|outcome| matches!(outcome, Err(CommitError::Full(_)))));
    assert!(store.head(&Key::new(&resource(), Some("n"), "a")).is_none(), "what was not kept is not seen");
    full.store(false, Ordering::SeqCst);
    let after = store.commit(create("a")).await.unwrap().remove(0);
    assert!(after.revision > before.revision + 3, "the numbers of what was lost are not used again");
    assert!(matches!(store.durable(before.revision + 1).await, Err(CommitError::Full(_))));
    assert_eq!(store.durable(after.revision).await, Ok(()));
    store.close();
    let reopened = Store::open(backend(), |_, _| Index::default()).unwrap();
    assert_eq!((reopened.count("/configmaps"), reopened.revision()), (2, after.revision));
    reopened.close();
}
