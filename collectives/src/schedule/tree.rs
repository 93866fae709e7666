//! All-reduce, reduce and broadcast along a binary tree.

use std::ops::Range;

use super::{Action, Step};

/// A rank's place in the tree: numbered from the root level by level, so that `n` has the children `2n + 1`, `2n + 2`.
struct Place {
    world: usize,
    root: usize,
    number: usize,
}

impl Place {
    fn new(rank: usize, world: usize, root: usize) -> Place {
        Place { world, root, number: (rank + world - root) % world }
    }

    fn rank(&self, number: usize) -> usize {
        (number + self.root) % self.world
    }

    fn depth(number: usize) -> usize {
        (number + 1).ilog2() as usize
    }

    /// The depth of the deepest rank.
    fn height(&self) -> usize {
        Place::depth(self.world - 1)
    }

    fn children(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        (0..2).map(|child| (child, 2 * self.number + 1 + child)).filter(|(_, number)| *number < self.world)
    }

    /// The parent's number, and the how many-eth child of it this is.
    fn parent(&self) -> Option<(usize, usize)> {
        let above = self.number.checked_sub(1)?;
        Some((above / 2, above % 2))
    }
}

/// Sums go up, the deepest ranks first. Two steps a level, one for each child.
pub(crate) fn tree_reduce(rank: usize, world: usize, root: usize, range: Range<usize>) -> Vec<Step> {
    let place = Place::new(rank, world, root);
    let (height, depth) = (place.height(), Place::depth(place.number));
    let mut steps = vec![Step::default(); 2 * height];
    let last = place.children().last();
    for (child, number) in place.children() {
        let completes = place.number == 0 && last == Some((child, number));
        let action = if completes { Action::Finish } else { Action::Reduce };
        steps[2 * (height - depth - 1) + child].receive = Some((place.rank(number), range.clone(), action));
    }
    if let Some((parent, child)) = place.parent() {
        steps[2 * (height - depth) + child].send = Some((place.rank(parent), range));
    }
    steps
}

/// The root's values go down.
pub(crate) fn tree_broadcast(rank: usize, world: usize, root: usize, range: Range<usize>) -> Vec<Step> {
    let place = Place::new(rank, world, root);
    let (height, depth) = (place.height(), Place::depth(place.number));
    let mut steps = vec![Step::default(); 2 * height];
    for (child, number) in place.children() {
        steps[2 * depth + child].send = Some((place.rank(number), range.clone()));
    }
    if let Some((parent, child)) = place.parent() {
        steps[2 * (depth - 1) + child].receive = Some((place.rank(parent), range, Action::Replace));
    }
    steps
}

/// Up to rank 0 and down again: 2 log2(world) hops, and no rank with more than three others. In the middle of a long
/// pipeline a rank receives three times the data, so it is for worlds where latency counts.
pub(crate) fn tree_all_reduce(rank: usize, world: usize, range: Range<usize>) -> Vec<Step> {
    let mut steps = tree_reduce(rank, world, 0, range.clone());
    steps.extend(tree_broadcast(rank, world, 0, range));
    steps
}

#[cfg(test)]
mod tests {
    use super::super::{Schedule, simulation};
    use super::*;

    #[test]
    fn sums_reach_every_rank() {
        simulation::check_all_reduce(|rank, world, count, block| {
            Schedule::pipelined(count, block, |range| tree_all_reduce(rank, world, range))
        });
    }

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
                    let up = all(&|rank, range| tree_reduce(rank, world, root, range));
                    assert_eq!(simulation::run(data.clone(), &up)[root], sum);
                    let down = all(&|rank, range| tree_broadcast(rank, world, root, range));
                    let expected = data[root].clone();
                    assert!(simulation::run(data, &down).iter().all(|result| *result == expected));
                }
            }
        }
    }
}
