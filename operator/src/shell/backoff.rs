//! How long a broken watch waits before it is opened again.

use kube::runtime::utils::Backoff;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// 100 ms, doubled up to 10 s. No jitter: there is one watcher of a kind, and runs must be repeatable.
#[derive(Clone, Debug, Default)]
pub struct Doubling {
    failures: Arc<AtomicU32>,
}

impl Doubling {
    /// The API server has answered: the next failure is a first one.
    pub fn answered(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }
}

impl Iterator for Doubling {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        Some((Duration::from_millis(100) * 2u32.pow(failures.min(7))).min(Duration::from_secs(10)))
    }
}

impl Backoff for Doubling {
    /// A watcher tells of each list that it is about to ask for, and that counts as a success here: see `answered`.
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The word of the stream, which comes with each attempt, began the delays anew: they stayed at the first.
    #[test]
    fn delays_grow_until_the_server_has_answered() {
        let mut doubling = Doubling::default();
        let seen = doubling.clone();
        let mut next = || {
            doubling.reset();
            doubling.next().map(|delay| delay.as_millis()).unwrap_or_default()
        };
        assert_eq!([next(), next(), next()], [100, 200, 400]);
        for _ in 0..10 {
            next();
        }
        assert_eq!(next(), 10_000);
        seen.answered();
        assert_eq!(next(), 100);
    }
}
