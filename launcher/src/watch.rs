//! Watches that never end: the API server's kind as a stream of changes, with retries after errors.

use futures::future::ready;
use futures::{Stream, StreamExt};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What a watch tells.
#[derive(Debug)]
pub(crate) enum Change<K> {
    /// A list begins: what it does not name is gone.
    Restart,
    Listed(K),
    Synced,
    Applied(K),
    Deleted(K),
    /// The kind is not served (yet); it is asked for again.
    NotServed,
}

pub(crate) fn changes<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = Change<K>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let delays = Doubling::default();
    let failures = delays.failures.clone();
    watch(api, config).backoff(delays).filter_map(move |event| {
        if !matches!(event, Ok(Event::Init) | Err(_)) {
            failures.store(0, Ordering::Relaxed);
        }
        ready(match event {
            Ok(Event::Init) => Some(Change::Restart),
            Ok(Event::InitApply(object)) => Some(Change::Listed(object)),
            Ok(Event::InitDone) => Some(Change::Synced),
            Ok(Event::Apply(object)) => Some(Change::Applied(object)),
            Ok(Event::Delete(object)) => Some(Change::Deleted(object)),
            Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) if status.code == 404 => {
                Some(Change::NotServed)
            }
            Err(error) => {
                tracing::debug!(%error, "a watch broke off and is opened again");
                None
            }
        })
    })
}

/// 50 ms, doubled up to 5 s; no jitter, since there is one watcher of a kind and runs must be repeatable.
#[derive(Default)]
struct Doubling {
    failures: Arc<AtomicU32>,
}

impl Iterator for Doubling {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        Some((Duration::from_millis(50) * 2u32.pow(failures.min(7))).min(Duration::from_secs(5)))
    }
}

impl Backoff for Doubling {
    /// A watcher tells of each list that it is about to ask for, and that counts as a success here: what it gets is
    /// what matters.
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    /// The delays began anew with each attempt: a server that was away was asked twenty times a second for each kind.
    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_away_is_asked_less_and_less_often() {
        let asked = Arc::new(AtomicU32::new(0));
        let counted = asked.clone();
        let away = tower::service_fn(move |_: http::Request<kube::client::Body>| {
            counted.fetch_add(1, Ordering::Relaxed);
            ready(http::Response::builder().status(503).body(kube::client::Body::empty()))
        });
        let client = kube::Client::new(away, "default");
        let mut changes = Box::pin(changes(Api::<Pod>::all(client), watcher::Config::default()));
        let seen = tokio::time::timeout(Duration::from_secs(60), async { while changes.next().await.is_some() {} });
        assert!(seen.await.is_err(), "a watch never ends");
        let asked = asked.load(Ordering::Relaxed);
        assert!((10..30).contains(&asked), "asked {asked} times in a minute");
    }
}
