//! Reduce and broadcast along a chain of all ranks: every link carries the data once, so a long pipeline runs at the
//! links' full rate.

use std::ops::Range;

use super::{Action, Step};

/// From the root to the next rank, and on to the one before the root.
pub(crate) fn chain_broadcast(rank: usize, world: usize, root: usize, range: Range<usize>) -> Vec<Step> {
    let distance = (rank + world - root) % world;
    let mut steps = vec![Step::default(); world - 1];
    if distance + 1 < world {
        steps[distance].send = Some(((rank + 1) % world, range.clone()));
    }
    if let Some(step) = distance.checked_sub(1) {
        steps[step].receive = Some(((rank + world - 1) % world, range, Action::Replace));
    }
    steps
}

/// The other way: from the rank before the root back to it.
pub(crate) fn chain_reduce(rank: usize, world: usize, root: usize, range: Range<usize>) -> Vec<Step> {
    let distance = (rank + world - root) % world;
    let mut steps = vec![Step::default(); world - 1];
    if distance + 1 < world {
        let action = if distance == 0 { Action::Finish } else { Action::Reduce };
        steps[world - 2 - distance].receive = Some(((rank + 1) % world, range.clone(), action));
    }
    if distance > 0 {
        steps[world - 1 - distance].send = Some(((rank + world - 1) % world, range));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::super::{Schedule, simulation};
    use super::*;

    #[test]
    fn sums_reach_the_root_and_values_come_from_it() {
        for world in 1..=9 {
            for root in 0..world {
                for (count, block) in [(0, 3), (1, 3), (17, 3), (17, 100)] {
                    let data = simulation::inputs(world, count);
                    let sum = simulation::sums(&data);
                    let all = |steps: &dyn Fn(usize, Range<usize>) -> Vec<Step>| -> Vec<Schedule> {
                        (0..world).map(|rank| Schedule::pipelined(count, block, |range| steps(rank, range))).collect()
                    };
                    let back = all(&|rank, range| chain_reduce(rank, world, root, range));
                    assert_eq!(simulation::run(data.clone(), &back)[root], sum);
                    let on = all(&|rank, range| chain_broadcast(rank, world, root, range));
                    let expected = data[root].clone();
                    assert!(simulation::run(data, &on).iter().all(|result| *result == expected));
                }
            }
        }
    }
}
