//! The clock as a value: whoever needs the time is given one, so that the simulation can hand out its own.

use jiff::Timestamp;
use std::fmt;
use std::sync::Arc;

/// Tells the time. Cloning is cheap; clones tell the same time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The machine's wall clock.
    #[expect(clippy::disallowed_methods, reason = "this is the door to the clock")]
    pub fn system() -> Self {
        Clock(Arc::new(Timestamp::now))
    }

    /// A clock that answers what `now` answers, e.g. a start plus tokio's paused time.
    pub fn from_fn(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Clock(Arc::new(now))
    }

    pub fn now(&self) -> Timestamp {
        (self.0)()
    }

    /// Now as objects carry it in `metadata.creationTimestamp` and the like: RFC 3339, whole seconds, `Z`.
    pub fn now_rfc3339(&self) -> String {
        rfc3339(self.now())
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// A time as objects carry it: whole seconds.
pub fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// RFC 3339 with whole seconds (`metav1.Time`).
pub fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// RFC 3339 with microseconds (`metav1.MicroTime`).
pub fn rfc3339_micro(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_kubernetes_writes_them() {
        let time = Timestamp::from_microsecond(1_700_000_000_000_042).expect("a valid time");
        let clock = Clock::from_fn(move || time);
        assert_eq!(clock.now_rfc3339(), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339_micro(clock.now()), "2023-11-14T22:13:20.000042Z");
    }
}
