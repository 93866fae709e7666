//! Answers that rest on another request's write, which is still on its way and then finds no room on the disk.

#![allow(clippy::panic, reason = "a test may fail")]

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use muster_apiserver::store::{Backend as Disk, BackendError, Row};
use muster_apiserver::{ApiServer, Backend, Identity, Options};
use serde_json::json;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// While it is held, each commit says that it is there, and waits to hear whether there is room for it.
#[derive(Clone, Default)]
struct Hold(Arc<Mutex<Option<(Sender<()>, Receiver<bool>)>>>);

struct HeldDisk(Hold);

impl Disk for HeldDisk {
    fn load(&mut self, _: &mut dyn FnMut(Row)) -> Result<u64, BackendError> {
        Ok(0)
    }

    fn commit(&mut self, _: &[Row]) -> Result<(), BackendError> {
        let held = self.0.0.lock().expect("not poisoned");
        let Some((here, room)) = &*held else { return Ok(()) };
        let _ = here.send(());
        // Who holds it no more has nothing against it.
        if room.recv().unwrap_or(true) { Ok(()) } else { Err(BackendError::Full("full".to_owned())) }
    }

    fn compact(&mut self, _: u64, _: &[u64]) -> Result<(), BackendError> {
        Ok(())
    }
}

struct Server {
    maps: Api<ConfigMap>,
    hold: Hold,
}

impl Server {
    async fn start() -> Server {
        let hold = Hold::default();
        let backend = Backend::Custom(Box::new(HeldDisk(hold.clone())));
        let server = ApiServer::open(Options { backend, ..Options::memory() }).await.expect("opens");
        let maps = Api::default_namespaced(Client::new(server.service(Identity::admin()), "default"));
        Server { maps, hold }
    }

    async fn create(&self, name: &str) -> ConfigMap {
        self.maps.create(&PostParams::default(), &config_map(name)).await.expect("creates")
    }

    /// Begins `first`, whose write finds no room, and then `second`, which must not be answered before that is known.
    async fn refused<F, S>(&self, first: F, second: S) -> S::Output
    where
        F: Future + Send + 'static,
        F::Output: std::fmt::Debug + Into<Option<u16>> + Send,
        S: Future + Send + 'static,
        S::Output: Send,
    {
        let ((here, arrived), (room, told)) = (channel(), channel());
        *self.hold.0.lock().expect("not poisoned") = Some((here, told));
        let first = tokio::spawn(first);
        let arrived = tokio::task::spawn_blocking(move || arrived.recv().map(|()| arrived));
        let _arrived = arrived.await.expect("no panic").expect("the write is on its way");
        let second = tokio::spawn(second);
        // However long it takes: whatever is answered by now rests on what the disk does not have.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!second.is_finished(), "answered too early");
        room.send(false).expect("it waits");
        drop(room);
        assert_eq!(first.await.expect("no panic").into(), Some(507));
        let outcome = second.await.expect("no panic");
        *self.hold.0.lock().expect("not poisoned") = None;
        outcome
    }
}

fn config_map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"a": "b"}}, "data": {"k": "1"}}))
        .expect("is a config map")
}

fn code<T>(outcome: kube::Result<T>) -> Option<u16> {
    match outcome {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => Some(status.code),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn already_exists_is_no_answer_where_the_other_was_refused() {
    let server = Server::start().await;
    let create = || {
        let maps = server.maps.clone();
        async move { code(maps.create(&PostParams::default(), &config_map("a")).await) }
    };
    assert_eq!(server.refused(create(), create()).await, None);
    server.maps.get("a").await.expect("it was created");
}

#[tokio::test]
async fn conflict_is_no_answer_where_the_newer_object_was_refused() {
    let server = Server::start().await;
    let old = server.create("a").await;
    let replace = |value: &str| {
        let (maps, mut new) = (server.maps.clone(), old.clone());
        new.data = Some([("k".to_owned(), value.to_owned())].into());
        async move { code(maps.replace("a", &PostParams::default(), &new).await) }
    };
    assert_eq!(server.refused(replace("first"), replace("second")).await, None);
    assert_eq!(server.maps.get("a").await.expect("is there").data.expect("has data")["k"], "second");
}

#[tokio::test]
async fn not_found_is_no_answer_where_the_deletion_was_refused() {
    let server = Server::start().await;
    let old = server.create("a").await;
    let delete = || {
        let maps = server.maps.clone();
        async move { code(maps.delete("a", &DeleteParams::default()).await) }
    };
    assert_eq!(server.refused(delete(), delete()).await, None);
    assert_eq!(code(server.maps.get("a").await), Some(404));

    let again = server.create("a").await;
    assert_ne!(again.uid(), old.uid());
    let maps = server.maps.clone();
    let all = async move {
        let gone = maps.delete_collection(&DeleteParams::default(), &ListParams::default().labels("a=b")).await;
        code(gone)
    };
    assert_eq!(server.refused(delete(), all).await, None);
    assert_eq!(code(server.maps.get("a").await), Some(404), "it was left, and the deletion of all answered");
}

#[tokio::test]
async fn unchanged_is_no_answer_where_the_same_change_was_refused() {
    let server = Server::start().await;
    server.create("a").await;
    let patch = || {
        let maps = server.maps.clone();
        async move {
            let patch = Patch::Merge(json!({"data": {"k": "2"}}));
            code(maps.patch("a", &PatchParams::default(), &patch).await)
        }
    };
    assert_eq!(server.refused(patch(), patch()).await, None);
    assert_eq!(server.maps.get("a").await.expect("is there").data.expect("has data")["k"], "2");
}

#[tokio::test]
async fn a_patch_of_a_refused_object_finds_nothing() {
    let server = Server::start().await;
    let maps = server.maps.clone();
    let create = async move { code(maps.create(&PostParams::default(), &config_map("a")).await) };
    let maps = server.maps.clone();
    // There is nothing to change in what is being created.
    let same = async move {
        let patch = Patch::Merge(json!({"data": {"k": "1"}}));
        code(maps.patch("a", &PatchParams::default(), &patch).await)
    };
    assert_eq!(server.refused(create, same).await, Some(404));
}
