//! How long a broken watch waits before it is opened again.

use kube::runtime::utils::Backoff;
use std::time::Duration;

/// 100 ms, doubled up to 10 s. No jitter: there is one watcher of a kind, and runs must be repeatable.
#[derive(Debug, Default)]
pub struct Doubling {
    failures: u32,
}

impl Iterator for Doubling {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let delay = Duration::from_millis(100) * 2u32.pow(self.failures.min(7));
        self.failures += 1;
        Some(delay.min(Duration::from_secs(10)))
    }
}

impl Backoff for Doubling {
    fn reset(&mut self) {
        self.failures = 0;
    }
}
