//! A work queue of keys. A key is worked on once at a time, and once more where it was added meanwhile.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Queue<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

#[derive(Debug)]
struct State<K> {
    ready: VecDeque<K>,
    /// What is in `ready`.
    waiting: BTreeSet<K>,
    running: BTreeSet<K>,
    /// Added while running.
    again: BTreeSet<K>,
    timers: BTreeSet<(Instant, K)>,
    due: BTreeMap<K, Instant>,
    failures: BTreeMap<K, u32>,
}

impl<K: Clone + Ord> Default for Queue<K> {
    fn default() -> Self {
        let state = State {
            ready: VecDeque::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            again: BTreeSet::new(),
            timers: BTreeSet::new(),
            due: BTreeMap::new(),
            failures: BTreeMap::new(),
        };
        Queue { state: Mutex::new(state), changed: Notify::new() }
    }
}

/// How work on a key went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done; look again after a while, if given.
    Done(Option<Duration>),
    /// Something failed; try again, ever later.
    Retry,
}

impl<K: Clone + Ord> Queue<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, key: K) {
        self.lock().add(key);
        self.changed.notify_one();
    }

    /// Waits for a key to work on. Every key must be handed back by [`Queue::finish`].
    pub async fn next(&self) -> K {
        loop {
            let due = {
                let mut state = self.lock();
                state.ring(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.waiting.remove(&key);
                    state.running.insert(key.clone());
                    return key;
                }
                state.timers.first().map(|(due, _)| *due)
            };
            let alarm = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.changed.notified() => {}
                () = alarm => {}
            }
        }
    }

    pub fn finish(&self, key: K, outcome: Outcome) {
        let mut state = self.lock();
        state.running.remove(&key);
        if let Some(due) = state.due.remove(&key) {
            state.timers.remove(&(due, key.clone()));
        }
        let after = match outcome {
            Outcome::Done(after) => {
                state.failures.remove(&key);
                after
            }
            Outcome::Retry => {
                let failures = state.failures.entry(key.clone()).or_default();
                let after = FIRST_RETRY.saturating_mul(1 << (*failures).min(20)).min(LAST_RETRY);
                *failures += 1;
                Some(after)
            }
        };
        if state.again.remove(&key) {
            state.add(key);
        } else if let Some(due) = after.and_then(|after| Instant::now().checked_add(after)) {
            state.due.insert(key.clone(), due);
            state.timers.insert((due, key));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Forgets what is planned for a key.
    pub fn forget(&self, key: &K) {
        let mut state = self.lock();
        state.failures.remove(key);
        if let Some(due) = state.due.remove(key) {
            state.timers.remove(&(due, key.clone()));
        }
    }
}

impl<K: Clone + Ord> State<K> {
    fn add(&mut self, key: K) {
        if self.running.contains(&key) {
            self.again.insert(key);
        } else if self.waiting.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// Makes ready what is due.
    fn ring(&mut self, now: Instant) {
        while let Some((due, _)) = self.timers.first() {
            if *due > now {
                return;
            }
            if let Some((_, key)) = self.timers.pop_first() {
                self.due.remove(&key);
                self.add(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_runs_once_at_a_time_and_again_where_it_was_added_meanwhile() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert_eq!(queue.next().await, "b");
        queue.finish("a", Outcome::Done(None));
        assert_eq!(queue.next().await, "a");
        queue.finish("a", Outcome::Done(None));
        queue.finish("b", Outcome::Done(None));
        assert!(tokio::time::timeout(Duration::from_secs(3600), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn delays_and_retries() {
        let queue = Queue::default();
        queue.add("a");
        let start = Instant::now();
        queue.next().await;
        queue.finish("a", Outcome::Done(Some(Duration::from_secs(7))));
        queue.next().await;
        assert_eq!(start.elapsed(), Duration::from_secs(7));
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            queue.finish("a", Outcome::Retry);
            let before = Instant::now();
            queue.next().await;
            let waited = before.elapsed();
            assert!(waited >= last && waited <= LAST_RETRY);
            last = waited;
        }
        assert_eq!(last, LAST_RETRY);
    }
}
