//! What a rank sends and receives, step by step, as plain data.
//!
//! No schedule touches a socket or a buffer: the transports carry the steps out, and the tests run all ranks of a
//! world in one thread. In every step a rank may send one range to the next rank of the ring and receive one from the
//! previous; the two happen at once.

use std::ops::Range;

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

/// One exchange with the neighbours, in elements.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Step {
    pub(crate) send: Option<Range<usize>>,
    pub(crate) receive: Option<(Range<usize>, Action)>,
}

/// Part `index` of `count` elements cut into `parts`: the first `count % parts` parts are one longer.
pub(crate) fn part(count: usize, parts: usize, index: usize) -> Range<usize> {
    let (size, longer) = (count / parts, count % parts);
    let start = index * size + index.min(longer);
    start..start + size + usize::from(index < longer)
}

/// Ring allreduce: in `world - 1` steps every part is summed up along the ring and ends complete at one rank, in as
/// many more the complete parts go round. Each rank sends 2 (world - 1) / world of the data, the least possible.
///
/// Every part is summed in one fixed order and then only copied, hence the results are bitwise equal on all ranks.
pub(crate) fn ring_all_reduce(rank: usize, world: usize, count: usize) -> Vec<Step> {
    let at = |index: usize| part(count, world, index % world);
    let mut steps = Vec::with_capacity(2 * (world - 1));
    for step in 0..world - 1 {
        let action = if step + 2 == world { Action::Finish } else { Action::Reduce };
        steps.push(Step {
            send: Some(at(rank + world - step)),
            receive: Some((at(rank + 2 * world - step - 1), action)),
        });
    }
    for step in 0..world - 1 {
        steps.push(Step {
            send: Some(at(rank + 1 + world - step)),
            receive: Some((at(rank + world - step), Action::Replace)),
        });
    }
    steps
}

/// Broadcast down the ring from `root`, in segments, so that a rank passes one on while it receives the next.
pub(crate) fn chain_broadcast(rank: usize, world: usize, root: usize, count: usize, segment: usize) -> Vec<Step> {
    let distance = (rank + world - root) % world;
    let segments = count.div_ceil(segment.max(1));
    let at = |index: usize| index * segment..((index + 1) * segment).min(count);
    let mut steps = Vec::with_capacity(segments + 1);
    for index in 0..=segments {
        // The root has every segment from the start; the others send what came in the step before.
        let send = match distance {
            last if last + 1 == world => None,
            0 => (index < segments).then(|| at(index)),
            _ => index.checked_sub(1).map(at),
        };
        let receive = (distance > 0 && index < segments).then(|| (at(index), Action::Replace));
        if send.is_some() || receive.is_some() {
            steps.push(Step { send, receive });
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Runs all ranks, each message queued from a rank to its next, and gives every rank's data.
    fn run(mut data: Vec<Vec<u64>>, schedules: &[Vec<Step>]) -> Vec<Vec<u64>> {
        let world = data.len();
        let mut queues: Vec<VecDeque<Vec<u64>>> = vec![VecDeque::new(); world];
        let mut sent = vec![0; world];
        let mut done = vec![0; world];
        while (0..world).any(|rank| done[rank] < schedules[rank].len()) {
            let mut moved = false;
            for rank in 0..world {
                let Some(step) = schedules[rank].get(done[rank]) else { continue };
                if sent[rank] == done[rank] {
                    if let Some(range) = &step.send {
                        let message = data[rank][range.clone()].to_vec();
                        queues[(rank + 1) % world].push_back(message);
                    }
                    sent[rank] += 1;
                    moved = true;
                }
                let received = match &step.receive {
                    None => true,
                    Some((range, action)) => match queues[rank].pop_front() {
                        None => false,
                        Some(message) => {
                            assert_eq!(message.len(), range.len(), "rank {rank} receives what was sent");
                            for (value, incoming) in data[rank][range.clone()].iter_mut().zip(message) {
                                *value = if *action == Action::Replace { incoming } else { *value + incoming };
                            }
                            true
                        }
                    },
                };
                if received {
                    done[rank] += 1;
                    moved = true;
                }
            }
            assert!(moved, "no rank can go on");
        }
        assert!(queues.iter().all(VecDeque::is_empty), "every message is received");
        data
    }

    #[test]
    fn parts_cover_everything_once() {
        for count in [0, 1, 5, 6, 7, 1000] {
            for parts in 1..9 {
                let all: Vec<usize> = (0..parts).flat_map(|index| part(count, parts, index)).collect();
                assert_eq!(all, (0..count).collect::<Vec<_>>(), "{count} in {parts}");
            }
        }
    }

    #[test]
    fn ring_all_reduce_sums_on_every_rank() {
        for world in 1..=9 {
            for count in [0, 1, 2, world, 3 * world + 1, 64] {
                let data: Vec<Vec<u64>> =
                    (0..world).map(|rank| (0..count).map(|i| ((i + 1) << (6 * rank)) as u64).collect()).collect();
                let sum: Vec<u64> = (0..count).map(|i| data.iter().map(|rank| rank[i]).sum()).collect();
                let schedules: Vec<_> = (0..world).map(|rank| ring_all_reduce(rank, world, count)).collect();
                for (rank, result) in run(data, &schedules).into_iter().enumerate() {
                    assert_eq!(result, sum, "rank {rank} of {world}, {count} elements");
                }
            }
        }
    }

    #[test]
    fn every_part_is_finished_by_exactly_one_rank() {
        for world in 2..=9 {
            let count = 2 * world + 1;
            let mut finished = vec![0; count];
            for rank in 0..world {
                for step in ring_all_reduce(rank, world, count) {
                    if let Some((range, Action::Finish)) = step.receive {
                        range.for_each(|i| finished[i] += 1);
                    }
                }
            }
            assert!(finished.iter().all(|times| *times == 1), "{finished:?}");
        }
    }

    #[test]
    fn chain_broadcast_reaches_every_rank() {
        for world in 1..=6 {
            for root in 0..world {
                for (count, segment) in [(0, 4), (1, 4), (4, 4), (11, 4)] {
                    let mut data = vec![vec![0; count]; world];
                    data[root] = (1..=count as u64).collect();
                    let expected = data[root].clone();
                    let schedules: Vec<_> =
                        (0..world).map(|rank| chain_broadcast(rank, world, root, count, segment)).collect();
                    assert!(run(data, &schedules).iter().all(|result| *result == expected));
                }
            }
        }
    }
}
