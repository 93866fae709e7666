//! What a rank sends and receives, step by step, as plain data.
//!
//! No schedule touches a socket or a buffer: the transports carry the steps out, and the tests run all ranks of a
//! world in one thread.
//!
//! An algorithm is written for one block of the data, as a list of [`Step`]s that is equally long on all ranks: what
//! a rank sends in one step, another receives in the step of the same number. [`Schedule::of_blocks`] lets the steps
//! of successive blocks overlap, so that a rank has something to send while it waits for what comes next.

mod chain;
mod gather;
mod halving;
mod ring;
mod tree;

use std::ops::Range;

pub(crate) use chain::{chain_broadcast, chain_reduce};
pub(crate) use gather::{dissemination, pairwise, ring_all_gather};
pub(crate) use halving::halving_doubling;
pub(crate) use ring::ring_all_reduce;
pub(crate) use tree::{tree_all_reduce, tree_broadcast, tree_reduce};

/// What becomes of a received range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Combined with what the rank already holds there.
    Reduce,
    /// Combined, and that completes the value: a mean is divided here, once, by one rank.
    Finish,
    /// Written over what is there.
    Replace,
}

/// What a rank does at one time, in elements: it may send to one rank and receive from one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Step {
    pub(crate) send: Option<(usize, Range<usize>)>,
    pub(crate) receive: Option<(usize, Range<usize>, Action)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Send {
    pub(crate) to: usize,
    pub(crate) range: Range<usize>,
    /// How many of the rank's receives must be complete before.
    pub(crate) after: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Receive {
    pub(crate) from: usize,
    pub(crate) range: Range<usize>,
    pub(crate) action: Action,
}

/// All that a rank sends and receives in one passage. Sends go out in order, receives complete in order; the two
/// proceed side by side but for what a send waits for.
///
/// A range that has been sent may be received into later without waiting for the send: whatever comes back for it was
/// made from what was sent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Schedule {
    pub(crate) sends: Vec<Send>,
    pub(crate) receives: Vec<Receive>,
}

impl Schedule {
    /// Interleaves the steps of blocks, each block one step behind the block before. Every rank orders its steps the
    /// same way, by time and then by step, hence nobody waits in a circle.
    pub(crate) fn of_blocks(blocks: &[Vec<Step>]) -> Schedule {
        let steps = blocks.iter().map(Vec::len).max().unwrap_or(0);
        let mut schedule = Schedule::default();
        // How many receives must be complete before a block's next send.
        let mut received = vec![0; blocks.len()];
        for time in 0..steps + blocks.len() {
            for step in 0..=time.min(steps) {
                let block = time - step;
                let Some(Step { send, receive }) = blocks.get(block).and_then(|steps| steps.get(step)) else {
                    continue;
                };
                if let Some((to, range)) = send {
                    schedule.sends.push(Send { to: *to, range: range.clone(), after: received[block] });
                }
                if let Some((from, range, action)) = receive {
                    schedule.receives.push(Receive { from: *from, range: range.clone(), action: *action });
                    received[block] = schedule.receives.len();
                }
            }
        }
        schedule
    }

    /// Cuts `count` elements into blocks of about `block`, each with the steps that `steps` gives for its range.
    pub(crate) fn pipelined(count: usize, block: usize, steps: impl Fn(Range<usize>) -> Vec<Step>) -> Schedule {
        let number = count.div_ceil(block.max(1)).max(1);
        let blocks: Vec<Vec<Step>> = (0..number).map(|index| steps(part(count, number, index))).collect();
        Schedule::of_blocks(&blocks)
    }
}

/// Part `index` of `count` elements cut into `parts`: the first `count % parts` parts are one longer.
pub(crate) fn part(count: usize, parts: usize, index: usize) -> Range<usize> {
    let (size, longer) = (count / parts, count % parts);
    let start = index * size + index.min(longer);
    start..start + size + usize::from(index < longer)
}

/// [`part`] of a range.
pub(crate) fn part_of(range: &Range<usize>, parts: usize, index: usize) -> Range<usize> {
    let inner = part(range.len(), parts, index);
    range.start + inner.start..range.start + inner.end
}

#[cfg(test)]
pub(crate) mod simulation {
    use std::collections::{BTreeMap, VecDeque};

    use super::{Action, Schedule};

    /// Runs all ranks, messages queued between each pair of them, and gives every rank's data. Every message is
    /// sent as early as it may be, and received as late as possible.
    pub(crate) fn run(mut data: Vec<Vec<u64>>, schedules: &[Schedule]) -> Vec<Vec<u64>> {
        let world = data.len();
        let mut queues: BTreeMap<(usize, usize), VecDeque<Vec<u64>>> = BTreeMap::new();
        let (mut sent, mut received) = (vec![0; world], vec![0; world]);
        loop {
            let mut moved = false;
            for rank in 0..world {
                while let Some(send) = schedules[rank].sends.get(sent[rank])
                    && send.after <= received[rank]
                {
                    let message = data[rank][send.range.clone()].to_vec();
                    queues.entry((rank, send.to)).or_default().push_back(message);
                    sent[rank] += 1;
                    moved = true;
                }
            }
            for rank in 0..world {
                if let Some(receive) = schedules[rank].receives.get(received[rank])
                    && let Some(message) = queues.entry((receive.from, rank)).or_default().pop_front()
                {
                    assert_eq!(message.len(), receive.range.len(), "rank {rank} receives what was sent");
                    for (value, incoming) in data[rank][receive.range.clone()].iter_mut().zip(message) {
                        *value = if receive.action == Action::Replace { incoming } else { *value + incoming };
                    }
                    received[rank] += 1;
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
        for (rank, schedule) in schedules.iter().enumerate() {
            assert_eq!(sent[rank], schedule.sends.len(), "rank {rank} of {world} can send all");
            assert_eq!(received[rank], schedule.receives.len(), "rank {rank} of {world} receives all");
        }
        assert!(queues.values().all(VecDeque::is_empty), "every message is received");
        data
    }

    /// Distinct powers for each rank, so that a sum tells which ranks are in it, and how often.
    pub(crate) fn inputs(world: usize, count: usize) -> Vec<Vec<u64>> {
        (0..world).map(|rank| (0..count).map(|i| ((i + 1) as u64) << (6 * rank)).collect()).collect()
    }

    pub(crate) fn sums(data: &[Vec<u64>]) -> Vec<u64> {
        (0..data[0].len()).map(|i| data.iter().map(|rank| rank[i]).sum()).collect()
    }

    /// Checks an all-reduce over worlds, lengths and blocks: sums on every rank, each finished by one rank.
    pub(crate) fn check_all_reduce(schedule: impl Fn(usize, usize, usize, usize) -> Schedule) {
        for world in 1..=9 {
            for count in [0, 1, 2, world, 3 * world + 1, 64, 63] {
                for block in [1, 5, 16, 1000] {
                    let data = inputs(world, count);
                    let sum = sums(&data);
                    let schedules: Vec<_> = (0..world).map(|rank| schedule(rank, world, count, block)).collect();
                    let mut finished = vec![0; count];
                    for receive in schedules.iter().flat_map(|schedule| &schedule.receives) {
                        if receive.action == Action::Finish {
                            receive.range.clone().for_each(|i| finished[i] += 1);
                        }
                    }
                    assert!(world == 1 || finished.iter().all(|times| *times == 1), "{world} {count}: {finished:?}");
                    for (rank, result) in run(data, &schedules).into_iter().enumerate() {
                        assert_eq!(result, sum, "rank {rank} of {world}, {count} elements in blocks of {block}");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once() {
        for count in [0, 1, 5, 6, 7, 1000] {
            for parts in 1..9 {
                let all: Vec<usize> = (0..parts).flat_map(|index| part(count, parts, index)).collect();
                assert_eq!(all, (0..count).collect::<Vec<_>>(), "{count} in {parts}");
                let all: Vec<usize> = (0..parts).flat_map(|index| part_of(&(3..3 + count), parts, index)).collect();
                assert_eq!(all, (3..3 + count).collect::<Vec<_>>(), "{count} in {parts}");
            }
        }
    }

    #[test]
    fn a_block_is_sent_while_the_one_before_comes_back() {
        let schedule = Schedule::pipelined(12, 4, |range| halving_doubling(0, 2, range));
        let sent: Vec<_> = schedule.sends.iter().map(|send| (send.range.clone(), send.after)).collect();
        // Halves of three blocks; a result goes out once its half has been received.
        assert_eq!(sent, [(2..4, 0), (6..8, 0), (0..2, 1), (10..12, 0), (4..6, 2), (8..10, 4)]);
    }
}
