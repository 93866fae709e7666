//! Watches that never end: the API server's kind as a stream of changes, with retries after errors.

use futures::{Stream, StreamExt};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
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
    watch(api, config).backoff(Doubling::default()).filter_map(async |event| match event {
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
}

/// 50 ms, doubled up to 5 s; no jitter, since there is one watcher of a kind and runs must be repeatable.
#[derive(Default)]
struct Doubling {
    failures: u32,
}

impl Iterator for Doubling {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let delay = Duration::from_millis(50) * 2u32.pow(self.failures.min(7));
        self.failures += 1;
        Some(delay.min(Duration::from_secs(5)))
    }
}

impl Backoff for Doubling {
    fn reset(&mut self) {
        self.failures = 0;
    }
}
