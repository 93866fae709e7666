//! A rate with a burst (the generic cell rate algorithm): one time is all that it keeps.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug)]
pub(crate) struct Pace {
    /// How far ahead of the steady rate one may be.
    ahead: Duration,
    period: Duration,
    /// When the steady rate will have caught up with all turns that were given.
    caught_up: Mutex<Instant>,
}

impl Pace {
    /// `burst` turns at once, and one more each `period`.
    pub(crate) fn new(burst: u32, period: Duration) -> Self {
        Pace { ahead: period * burst.saturating_sub(1), period, caught_up: Mutex::new(Instant::now()) }
    }

    /// Waits for a turn and takes it. Given up before its end, it takes none.
    pub(crate) async fn turn(&self) {
        while let Err(later) = self.take() {
            tokio::time::sleep_until(later).await;
        }
    }

    /// When to try again, where it is too early.
    fn take(&self) -> Result<(), Instant> {
        let now = Instant::now();
        let mut caught_up = self.caught_up.lock().unwrap_or_else(PoisonError::into_inner);
        let from = (*caught_up).max(now);
        if from - now > self.ahead {
            return Err(from - self.ahead);
        }
        *caught_up = from + self.period;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_goes_at_once_and_then_one_each_period() {
        let pace = Pace::new(3, Duration::from_millis(20));
        let start = Instant::now();
        let mut times = Vec::new();
        for _ in 0..6 {
            pace.turn().await;
            times.push(start.elapsed().as_millis());
        }
        assert_eq!(times, [0, 0, 0, 20, 40, 60]);
        // After a rest there is a burst again, and no more than that.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let start = Instant::now();
        for _ in 0..4 {
            pace.turn().await;
        }
        assert_eq!(start.elapsed().as_millis(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_is_given_up_is_not_taken() {
        let pace = Pace::new(1, Duration::from_secs(1));
        pace.turn().await;
        for _ in 0..5 {
            let early = tokio::time::timeout(Duration::from_millis(10), pace.turn()).await;
            assert!(early.is_err(), "it was too early");
        }
        let start = Instant::now();
        pace.turn().await;
        assert_eq!(start.elapsed().as_millis(), 950);
    }
}
