//! All-reduce around a ring.

use std::ops::Range;

use super::{Action, Step, part_of};

/// In `world - 1` steps every part is summed up along the ring and ends complete at one rank, in as many more the
/// complete parts go round. Each rank sends 2 (world - 1) / world of the data, the least possible, and to one rank
/// only.
///
/// Every part is summed in one fixed order and then only copied, hence the results are bitwise equal on all ranks.
pub(crate) fn ring_all_reduce(rank: usize, world: usize, range: Range<usize>) -> Vec<Step> {
    let (next, previous) = ((rank + 1) % world, (rank + world - 1) % world);
    let at = |index: usize| part_of(&range, world, index % world);
    let mut steps = Vec::with_capacity(2 * (world - 1));
    for step in 0..world - 1 {
        let action = if step + 2 == world { Action::Finish } else { Action::Reduce };
        steps.push(Step {
            send: Some((next, at(rank + world - step))),
            receive: Some((previous, at(rank + 2 * world - step - 1), action)),
        });
    }
    for step in 0..world - 1 {
        steps.push(Step {
            send: Some((next, at(rank + 1 + world - step))),
            receive: Some((previous, at(rank + world - step), Action::Replace)),
        });
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
            Schedule::pipelined(count, block, |range| ring_all_reduce(rank, world, range))
        });
    }
}
