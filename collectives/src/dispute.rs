//! Whose call it is that differs, where ranks call one operation differently: all say theirs, and the one unlike most
//! is named.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::call::{Call, odd_one};
use crate::error::Error;

/// How long ranks have to say what they call, which takes a moment, and more on a busy machine. Those that have not begun
/// the operation by then have no say.
pub(crate) const VOTES: Duration = Duration::from_millis(500);

/// The calls of an operation that are known to differ, by rank.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Dispute {
    sequence: u64,
    calls: BTreeMap<usize, Call>,
    /// When the vote is closed.
    end: Instant,
}

impl Dispute {
    pub(crate) fn new(sequence: u64, end: Instant) -> Dispute {
        Dispute { sequence, calls: BTreeMap::new(), end }
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(crate) fn end(&self) -> Instant {
        self.end
    }

    /// `rank` says what it calls. Of what it says the first counts, and nothing of other operations.
    pub(crate) fn hear(&mut self, rank: usize, call: Call) {
        if call.sequence == self.sequence {
            self.calls.entry(rank).or_insert(call);
        }
    }

    /// Once all of `world` ranks have spoken, or the time is over: whom to name. Ranks that have heard the same say
    /// the same.
    pub(crate) fn verdict(&self, world: usize, now: Instant) -> Option<Error> {
        if self.calls.len() < world && now < self.end {
            return None;
        }
        let (ranks, calls): (Vec<usize>, Vec<Option<Call>>) =
            self.calls.iter().map(|(rank, call)| (*rank, Some(*call))).unzip();
        let (odd, expected) = odd_one(&calls)?;
        Some(Error::mismatch(ranks[odd], calls[odd].as_ref()?, &expected?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Kind;
    use crate::element::DType;

    fn call(sequence: u64, count: u64) -> Call {
        Call { sequence, kind: Kind::AllGather, dtype: DType::F32, count }
    }

    #[test]
    fn who_calls_otherwise_than_most_is_named_once_all_have_spoken_or_had_time() {
        let begun = Instant::now();
        let end = begun + VOTES;
        let odd = |rank| Some(Error::mismatch(rank, &call(7, 2), &call(7, 1)));
        // By rank: how many elements it gives.
        let rows: &[(&[(usize, u64)], Instant, Option<Error>)] = &[
            (&[(0, 1), (1, 1), (2, 2), (3, 1)], begun, odd(2)),
            (&[(0, 2), (1, 1), (2, 1), (3, 1)], begun, odd(0)),
            // Not all have spoken.
            (&[(0, 1), (2, 2), (3, 1)], begun, None),
            (&[(0, 1), (2, 2), (3, 1)], end, odd(2)),
            // Of two that differ the later one is named.
            (&[(1, 1), (3, 2)], end, odd(3)),
            // What a rank says of itself later does not count.
            (&[(0, 1), (1, 1), (1, 2), (2, 2), (3, 1)], begun, odd(2)),
        ];
        for (said, now, verdict) in rows {
            let mut dispute = Dispute::new(7, end);
            for (rank, count) in *said {
                dispute.hear(*rank, call(8, 9));
                dispute.hear(*rank, call(7, *count));
            }
            assert_eq!(dispute.verdict(4, *now), *verdict, "{said:?}");
        }
    }
}
