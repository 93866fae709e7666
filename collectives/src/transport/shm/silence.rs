//! Whom a rank names that has waited too long.

use std::time::Duration;

use crate::breaker::GRACE;

/// A rank that is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Late {
    pub(super) place: usize,
    /// It has a pulse since that was felt, so it waits for others of this host itself.
    pub(super) pulse: bool,
    /// It has said that it waits itself: for one of another host, it has no pulse here.
    pub(super) excused: bool,
}

/// For how long a rank has waited, and how long it may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wait {
    pub(super) limit: Duration,
    /// Since the pulses were felt.
    pub(super) felt: Duration,
    /// Whether there are other hosts.
    pub(super) spans: bool,
    /// It has waited for longer than the limit already, since at the limit nobody was silent.
    pub(super) overdue: bool,
}

/// What comes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// All have come meanwhile.
    Nobody,
    /// Wait so much longer, and feel the pulses again.
    Later(Duration),
    /// The rank at this place holds the others up.
    Blame(usize),
}

/// A rank that waits as well is not named if there is another: that one knows better whom to blame, and has time to
/// say so. `late` are those that have not come, by place.
pub(super) fn judge(late: &[Late], wait: Wait) -> Verdict {
    let Some(first) = late.first() else { return Verdict::Nobody };
    let Wait { limit, felt, spans, overdue } = wait;
    // Nobody is called silent who has had no time: this rank itself may have woken up late. But between hosts others
    // count on being told by then.
    let had_time = spans || overdue || felt >= limit * 2 / 5;
    match late.iter().find(|late| !late.pulse && !late.excused && had_time) {
        Some(silent) => Verdict::Blame(silent.place),
        None if overdue => Verdict::Blame(first.place),
        // Twice: it may wait for a member, which gives its own leader one.
        None if late.iter().any(|late| late.excused) => Verdict::Later(2 * GRACE),
        None => Verdict::Later(GRACE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_is_named_and_who_waits_only_when_nobody_else_is_left() {
        let limit = Duration::from_secs(10);
        let (short, long) = (Duration::from_secs(3), Duration::from_secs(4));
        let waits = |place| Late { place, pulse: true, excused: false };
        let silent = |place| Late { place, pulse: false, excused: false };
        let excused = |place| Late { place, pulse: false, excused: true };
        let here = |felt| Wait { limit, felt, spans: false, overdue: false };
        let wide = |felt| Wait { spans: true, ..here(felt) };
        let overdue = |felt| Wait { overdue: true, ..here(felt) };
        let rows: &[(&[Late], Wait, Verdict)] = &[
            (&[], here(long), Verdict::Nobody),
            (&[], overdue(short), Verdict::Nobody),
            (&[silent(2)], here(long), Verdict::Blame(2)),
            (&[waits(0), silent(1), silent(2)], here(long), Verdict::Blame(1)),
            // This rank has woken up late.
            (&[silent(2)], here(short), Verdict::Later(GRACE)),
            (&[waits(0), silent(2)], wide(Duration::ZERO), Verdict::Blame(2)),
            (&[waits(0), waits(1)], here(long), Verdict::Later(GRACE)),
            (&[waits(0), waits(1)], wide(long), Verdict::Later(GRACE)),
            (&[excused(0), silent(2)], wide(long), Verdict::Blame(2)),
            (&[excused(0), waits(1)], wide(long), Verdict::Later(2 * GRACE)),
            (&[excused(0), excused(1)], overdue(long), Verdict::Blame(0)),
            (&[waits(0), silent(1)], overdue(short), Verdict::Blame(1)),
            (&[waits(1), waits(2)], overdue(long), Verdict::Blame(1)),
        ];
        for (late, wait, verdict) in rows {
            assert_eq!(judge(late, *wait), *verdict, "{late:?} {wait:?}");
        }
    }
}
