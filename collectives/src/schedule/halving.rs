//! All-reduce by recursive halving and doubling.

use std::ops::Range;

use super::{Action, Step};

/// Ranks pair up with ranks ever nearer, each time exchanging the halves of what they hold, until each holds the sum
/// of one part; then the parts go back the same way. Bytes as around a ring, in 2 log2(world) steps.
///
/// Where the world is no power of two, `rest` ranks hand their data to a neighbour first and get the result at last.
/// Every part is completed by one rank and then copied, hence the results are bitwise equal on all ranks.
pub(crate) fn halving_doubling(rank: usize, world: usize, range: Range<usize>) -> Vec<Step> {
    let levels = world.ilog2();
    let power = 1 << levels;
    let rest = world - power;
    // The first 2 rest ranks form pairs, of which the even one takes part for both.
    let real = |index: usize| if index < rest { 2 * index } else { index + rest };
    let mut steps = Vec::new();
    if rest > 0 {
        steps.push(match rank {
            _ if rank >= 2 * rest => Step::default(),
            _ if rank % 2 == 1 => Step { send: Some((rank - 1, range.clone())), receive: None },
            _ => Step { send: None, receive: Some((rank + 1, range.clone(), Action::Reduce)) },
        });
    }
    if rest > 0 && rank < 2 * rest && rank % 2 == 1 {
        steps.extend((0..2 * levels).map(|_| Step::default()));
        steps.push(Step { send: None, receive: Some((rank - 1, range, Action::Replace)) });
        return steps;
    }
    let index = if rank < 2 * rest { rank / 2 } else { rank - rest };
    let mut held = range.clone();
    let mut ways_back = Vec::new();
    for level in (0..levels).rev() {
        let distance = 1 << level;
        let partner = real(index ^ distance);
        let middle = held.start + held.len() / 2;
        let (low, high) = (held.start..middle, middle..held.end);
        let (keep, give) = if index & distance == 0 { (low, high) } else { (high, low) };
        let action = if level == 0 { Action::Finish } else { Action::Reduce };
        steps.push(Step { send: Some((partner, give.clone())), receive: Some((partner, keep.clone(), action)) });
        ways_back.push(Step { send: Some((partner, keep.clone())), receive: Some((partner, give, Action::Replace)) });
        held = keep;
    }
    steps.extend(ways_back.into_iter().rev());
    if rest > 0 {
        let gives = rank < 2 * rest;
        steps.push(Step { send: gives.then(|| (rank + 1, range)), receive: None });
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::super::{Schedule, simulation};
    use super::*;

    #[test]
    fn sums_reach_every_rank() {
        simulation::check_all_reduce(|rank, world, count, block| {
            Schedule::pipelined(count, block, |range| halving_doubling(rank, world, range))
        });
    }

    #[test]
    fn steps_are_few_and_bytes_least() {
        let steps = halving_doubling(5, 8, 0..800);
        assert_eq!(steps.len(), 6);
        let sent: usize = steps.iter().flat_map(|step| &step.send).map(|(_, range)| range.len()).sum();
        assert_eq!(sent, 2 * 7 * 100);
    }
}
