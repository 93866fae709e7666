//! Operations that only move data, reductions to one rank, messages and parts of the world, against a plain reference.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod common;

use common::{configs, connect_with, run, run_both_ways, secret, shapes};
use half::bf16;
use muster_collectives::{Communicator, Element, Error, ReduceOp};
use proptest::prelude::*;

/// An element that tells its rank and place.
trait Mark: Element {
    fn mark(rank: usize, index: usize) -> Self;
    fn nothing() -> Self;
}

macro_rules! marks {
    ($($type:ty: $of:expr;)*) => {$(
        impl Mark for $type {
            fn mark(rank: usize, index: usize) -> Self { $of(1 + (rank * 31 + index * 7) % 120) }
            fn nothing() -> Self { $of(0) }
        }
    )*};
}

marks! {
    f64: |n| n as f64;
    f32: |n| n as f32;
    bf16: |n| bf16::from_f32(n as f32);
    i16: |n| n as i16;
    u8: |n| n as u8;
}

fn marks<T: Mark>(rank: usize, indices: std::ops::Range<usize>) -> Vec<T> {
    indices.map(|index| T::mark(rank, index)).collect()
}

const NONE: Option<&mut Vec<f32>> = None;

fn gather_and_scatter<T: Mark>(communicator: &Communicator, count: usize) {
    let (rank, world) = (communicator.rank(), communicator.world());
    let whole: Vec<T> = (0..world).flat_map(|from| marks(from, 0..count)).collect();
    for root in 0..world {
        let own = marks::<T>(rank, 0..count);
        let mut output = vec![T::nothing(); if rank == root { count * world } else { 0 }];
        communicator.gather(&own, (rank == root).then_some(&mut output), root).unwrap();
        assert_eq!(output, if rank == root { whole.clone() } else { Vec::new() }, "gather to {root}");

        let mut part = vec![T::nothing(); count];
        communicator.scatter((rank == root).then_some(&whole), &mut part, root).unwrap();
        assert_eq!(part, own, "scatter from {root}");

        // In place at the root.
        if rank == root {
            let mut data = vec![T::nothing(); count * world];
            data[rank * count..(rank + 1) * count].copy_from_slice(&own);
            communicator.gather_in_place(&mut data).unwrap();
            assert_eq!(data, whole);
            communicator.scatter_in_place(&mut data).unwrap();
            assert_eq!(data, whole, "the root's parts stay");
        } else {
            communicator.gather(&own, None::<&mut Vec<T>>, root).unwrap();
            part.fill(T::nothing());
            communicator.scatter(None::<&Vec<T>>, &mut part, root).unwrap();
            assert_eq!(part, own);
        }
    }
    let mut all = vec![T::nothing(); count * world];
    communicator.all_gather(&marks::<T>(rank, 0..count), &mut all).unwrap();
    assert_eq!(all, whole);
    all.fill(T::nothing());
    all[rank * count..(rank + 1) * count].copy_from_slice(&marks::<T>(rank, 0..count));
    communicator.all_gather_in_place(&mut all).unwrap();
    assert_eq!(all, whole, "all_gather in place");
}

#[test]
fn gather_scatter_and_all_gather() {
    for world in 1..=9 {
        for hosts in shapes(world) {
            run_both_ways(&hosts, |communicator| {
                for count in [0, 1, 7, 130] {
                    gather_and_scatter::<f64>(communicator, count);
                    gather_and_scatter::<f32>(communicator, count);
                    gather_and_scatter::<bf16>(communicator, count);
                    gather_and_scatter::<i16>(communicator, count);
                    gather_and_scatter::<u8>(communicator, count);
                }
            });
        }
    }
}

/// Longer than all windows together, by an odd rest.
#[test]
fn long_parts_go_in_chunks() {
    for world in [2, 3] {
        for hosts in shapes(world) {
            run_both_ways(&hosts, |communicator| {
                let count = 700_001;
                gather_and_scatter::<f32>(communicator, count);
                all_to_all::<i16>(communicator, count);
                reduce_scatter(communicator, count);
            });
        }
    }
}

fn all_to_all<T: Mark>(communicator: &Communicator, count: usize) {
    let (rank, world) = (communicator.rank(), communicator.world());
    let input: Vec<T> = marks(rank, 0..count * world);
    let expected: Vec<T> = (0..world).flat_map(|from| marks(from, rank * count..(rank + 1) * count)).collect();
    let mut output = vec![T::nothing(); count * world];
    communicator.all_to_all(&input, &mut output).unwrap();
    assert_eq!(output, expected);
    let mut data = input;
    communicator.all_to_all_in_place(&mut data).unwrap();
    assert_eq!(data, expected, "in place");
}

#[test]
fn all_to_all_with_equal_parts() {
    for world in 1..=9 {
        for hosts in shapes(world) {
            run_both_ways(&hosts, |communicator| {
                for count in [0, 1, 5, 1001] {
                    all_to_all::<f64>(communicator, count);
                    all_to_all::<bf16>(communicator, count);
                    all_to_all::<u8>(communicator, count);
                }
            });
        }
    }
}

fn reduce_scatter(communicator: &Communicator, count: usize) {
    let (rank, world) = (communicator.rank(), communicator.world());
    let input: Vec<f32> = marks(rank, 0..count * world);
    let part = rank * count..(rank + 1) * count;
    let sum: Vec<f32> = part.clone().map(|index| (0..world).map(|from| f32::mark(from, index)).sum()).collect();
    let mut output = vec![0f32; count];
    communicator.reduce_scatter(&input, &mut output, ReduceOp::Sum).unwrap();
    assert_eq!(output, sum);
    let mut data = input.clone();
    communicator.reduce_scatter_in_place(&mut data, ReduceOp::Sum).unwrap();
    assert_eq!(data[part.clone()], sum, "in place");
    assert!(data.iter().enumerate().all(|(index, value)| part.contains(&index) || *value == input[index]));
    let least: Vec<f32> =
        part.map(|index| (0..world).map(|from| f32::mark(from, index)).reduce(f32::min).unwrap()).collect();
    communicator.reduce_scatter(&input, &mut output, ReduceOp::Min).unwrap();
    assert_eq!(output, least);
    // Added up in f32 and rounded once.
    let mean: Vec<bf16> = sum.iter().map(|sum| bf16::from_f32(sum / world as f32)).collect();
    let mut halves = vec![bf16::ZERO; count];
    communicator.reduce_scatter(&marks::<bf16>(rank, 0..count * world), &mut halves, ReduceOp::Mean).unwrap();
    assert_eq!(halves, mean);
}

/// Whatever came first: floats are added up in one order.
#[test]
fn reduce_scatter_gives_the_same_bits_each_time() {
    for world in [4, 7] {
        for hosts in shapes(world) {
            run(&hosts, |communicator| {
                let count = 60_001;
                let value = |index: usize| 1.0 / (1 + communicator.rank() * 7919 + index) as f32;
                let input: Vec<f32> = (0..count * world).map(value).collect();
                let results: Vec<Vec<u32>> = (0..4)
                    .map(|_| {
                        let mut output = vec![0f32; count];
                        communicator.reduce_scatter(&input, &mut output, ReduceOp::Sum).unwrap();
                        output.into_iter().map(f32::to_bits).collect()
                    })
                    .collect();
                assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{hosts:?}");
            });
        }
    }
}

#[test]
fn reduce_scatter_beside_and_in_place() {
    for world in 1..=9 {
        for hosts in shapes(world) {
            run(&hosts, |communicator| {
                for count in [0, 1, 3, 200, 5000] {
                    reduce_scatter(communicator, count);
                }
            });
        }
    }
}

#[test]
fn reduce_to_every_root() {
    for world in 1..=6 {
        for hosts in shapes(world) {
            run(&hosts, |communicator| {
                let rank = communicator.rank();
                for count in [0, 1, 100, 3000, 40_001] {
                    let sum: Vec<f32> =
                        (0..count).map(|index| (0..world).map(|from| f32::mark(from, index)).sum()).collect();
                    let mut shared = communicator.allocate::<f32>(count).unwrap();
                    for root in 0..world {
                        let input: Vec<f32> = marks(rank, 0..count);
                        let result = if rank == root { &sum } else { &input };
                        let mut data = input.clone();
                        communicator.reduce(&mut data, ReduceOp::Sum, root).unwrap();
                        assert_eq!(data, *result, "the buffers of all but the root stay");
                        shared.copy_from_slice(&input);
                        communicator.reduce(&mut shared, ReduceOp::Sum, root).unwrap();
                        assert_eq!(*shared, **result, "in shared memory");
                        let mut output = vec![0f32; count];
                        communicator
                            .reduce_into(&input, (rank == root).then_some(&mut output), ReduceOp::Sum, root)
                            .unwrap();
                        assert_eq!(output, if rank == root { sum.clone() } else { vec![0f32; count] });
                        // At the root beside its input, elsewhere in shared memory.
                        shared.copy_from_slice(&input);
                        match rank == root {
                            true => communicator.reduce_into(&input, Some(&mut output), ReduceOp::Sum, root),
                            false => communicator.reduce(&mut shared, ReduceOp::Sum, root),
                        }
                        .unwrap();
                        assert_eq!(output, if rank == root { sum.clone() } else { vec![0f32; count] });
                    }
                }
            });
        }
    }
}

#[test]
fn all_reduce_beside_its_input() {
    for world in 1..=5 {
        for hosts in shapes(world) {
            run(&hosts, |communicator| {
                for count in [0, 1, 100, 3000, 100_001] {
                    let input: Vec<f64> = marks(communicator.rank(), 0..count);
                    let before = input.clone();
                    let mut output = vec![0f64; count];
                    communicator.all_reduce_into(&input, &mut output, ReduceOp::Mean).unwrap();
                    let mean = |index| (0..world).map(|from| f64::mark(from, index)).sum::<f64>() / world as f64;
                    assert!(output.iter().enumerate().all(|(index, value)| *value == mean(index)));
                    assert_eq!(input, before);
                }
            });
        }
    }
}

#[test]
fn messages_go_round_a_ring_and_back() {
    for world in 2..=5 {
        for hosts in shapes(world) {
            run_both_ways(&hosts, |communicator| {
                let rank = communicator.rank();
                let (next, previous) = ((rank + 1) % world, (rank + world - 1) % world);
                for count in [0, 1, 1000, 100_003] {
                    let own: Vec<f32> = marks(rank, 0..count);
                    let mut got = vec![0f32; count];
                    communicator.send_receive(&own, next, &mut got, previous).unwrap();
                    assert_eq!(got, marks::<f32>(previous, 0..count));
                    // One after the other: even ranks send first.
                    got.fill(0.0);
                    for turn in 0..2 {
                        if rank == turn {
                            communicator.send(&own, 1 - turn).unwrap();
                        } else if rank == 1 - turn {
                            communicator.receive(&mut got, turn).unwrap();
                            assert_eq!(got, marks::<f32>(turn, 0..count));
                        }
                    }
                    communicator.barrier().unwrap();
                }
            });
        }
    }
}

/// Two ranks talk much while a third does not: what they call among themselves counts for them alone.
#[test]
fn messages_are_counted_for_their_two_ranks_alone() {
    for hosts in shapes(3) {
        run_both_ways(&hosts, |communicator| {
            for message in 0..50u8 {
                match communicator.rank() {
                    0 => communicator.send(&vec![message; 10], 2).unwrap(),
                    2 => {
                        let mut got = [0u8; 10];
                        communicator.receive(&mut got, 0).unwrap();
                        assert_eq!(got, [message; 10]);
                    }
                    _ => {}
                }
            }
            let mut sum = [1i32];
            communicator.all_reduce(&mut sum, ReduceOp::Sum).unwrap();
            assert_eq!(sum, [3]);
        });
    }
}

#[test]
fn messages_of_different_lengths_do_not_meet() {
    for hosts in [["a", "a"], ["a", "b"]] {
        let errors = connect_with(configs(&hosts, 1, &secret()), |communicator| {
            let communicator = communicator.unwrap();
            match communicator.rank() {
                // Little data may be on its way to another host when this returns.
                0 => communicator.send(&vec![0f32; 4], 1).and_then(|()| communicator.barrier()).unwrap_err(),
                _ => communicator.receive(&mut vec![0f32; 5], 0).unwrap_err(),
            }
        });
        for error in errors {
            let Error::Mismatch { theirs, expected, .. } = &error else { panic!("{hosts:?}: {error:?}") };
            assert!(format!("{theirs} {expected}").contains("message(from 0, f32, 5)"), "{error}");
        }
    }
}

#[test]
fn senseless_arguments_are_refused_before_anything_is_said() {
    run(&["a", "a"], |communicator| {
        let rank = communicator.rank();
        let refused = |result: Result<(), Error>| assert!(matches!(result, Err(Error::Argument(_))), "{result:?}");
        refused(communicator.send(&vec![0f32; 1], rank));
        refused(communicator.send(&vec![0f32; 1], 2));
        refused(communicator.all_to_all(&vec![0f32; 3], &mut vec![0f32; 3]));
        refused(communicator.all_to_all(&vec![0f32; 4], &mut vec![0f32; 2]));
        refused(communicator.all_reduce_into(&vec![0f32; 4], &mut vec![0f64; 4], ReduceOp::Sum));
        refused(communicator.reduce_into(&vec![0f32; 4], NONE, ReduceOp::Sum, rank));
        refused(communicator.gather(&vec![0f32; 4], NONE, rank));
        refused(communicator.all_to_all_uneven(&vec![0f32; 4], &[2, 1], &mut vec![0f32; 4], &[2, 2]));
        refused(communicator.all_to_all_uneven(&vec![0f32; 4], &[4], &mut vec![0f32; 4], &[2, 2]));
        communicator.barrier().unwrap();
    });
}

#[test]
fn an_uneven_all_to_all_that_does_not_add_up_names_a_rank() {
    for hosts in shapes(3) {
        let errors = connect_with(configs(&hosts, 1, &secret()), |communicator| {
            let communicator = communicator.unwrap();
            let mut received = [1usize, 1, 1];
            if communicator.rank() == 2 {
                received[0] = 2;
            }
            let mut output = vec![0f32; received.iter().sum()];
            communicator.all_to_all_uneven(&vec![0f32; 3], &[1, 1, 1], &mut output, &received).unwrap_err()
        });
        assert!(errors.iter().all(|error| matches!(error, Error::Mismatch { rank: 0, .. })), "{errors:?}");
    }
}

#[test]
fn a_split_world_works_in_its_parts() {
    for hosts in shapes(5) {
        run_both_ways(&hosts, |communicator| {
            let rank = communicator.rank();
            let color = [Some(7), Some(9), Some(7), None, Some(7)][rank];
            // Against the order of ranks.
            let part = communicator.split(color, -(rank as i32)).unwrap();
            assert_eq!(part.is_some(), color.is_some());
            if let Some(part) = part {
                let members: &[usize] = if color == Some(7) { &[4, 2, 0] } else { &[1] };
                assert_eq!(part.world(), members.len());
                assert_eq!(members[part.rank()], rank);
                let mut all = vec![0i64; members.len()];
                part.all_gather(&vec![rank as i64], &mut all).unwrap();
                assert_eq!(all, members.iter().map(|rank| *rank as i64).collect::<Vec<_>>());
                // A part of a part.
                let pair = part.split(Some(u32::from(part.rank() == 0)), 0).unwrap().unwrap();
                let mut sum = [1i32];
                pair.all_reduce(&mut sum, ReduceOp::Sum).unwrap();
                assert_eq!(sum[0] as usize, pair.world());
                // Both at once.
                part.barrier().unwrap();
            }
            let mut sum = [1i32];
            communicator.all_reduce(&mut sum, ReduceOp::Sum).unwrap();
            assert_eq!(sum, [5]);
        });
    }
}

#[test]
fn all_kinds_run_beside_the_caller_in_order() {
    for hosts in shapes(3) {
        run_both_ways(&hosts, |communicator| {
            let (rank, world) = (communicator.rank(), communicator.world());
            let gathered = communicator.start_all_gather(vec![rank as i32; 4], vec![0i32; 12]).unwrap();
            let scattered =
                communicator.start_reduce_scatter(vec![1i64; 3 * world], vec![0i64; 3], ReduceOp::Sum).unwrap();
            let sent = match rank {
                0 => communicator.start_send(vec![5u8; 3], 1).ok(),
                1 => communicator.start_receive(vec![0u8; 3], 0).ok(),
                _ => None,
            };
            let barrier = communicator.start_barrier().unwrap();
            let ((_, all), result) = gathered.wait();
            result.unwrap();
            assert_eq!(all, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]);
            let ((_, part), result) = scattered.wait();
            result.unwrap();
            assert_eq!(part, [3; 3]);
            if let Some(sent) = sent {
                let (data, result) = sent.wait();
                result.unwrap();
                assert_eq!(data, [5; 3]);
            }
            barrier.wait().1.unwrap();
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any amounts between any ranks arrive whole.
    #[test]
    fn uneven_parts_arrive(
        world in 1usize..7,
        groups in 1usize..4,
        seed in any::<u64>(),
        scale in prop::sample::select(vec![1usize, 3, 200, 30_000]),
    ) {
        let hosts: Vec<String> = (0..world).map(|rank| format!("host {}", rank % groups)).collect();
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let amount = |from: usize, to: usize| {
            let mixed = (seed ^ (from * 64 + to) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
            // Nothing at all between some.
            if mixed.is_multiple_of(3) { 0 } else { mixed as usize % (scale + 1) }
        };
        run_both_ways(&hosts, |communicator| {
            let rank = communicator.rank();
            let sent: Vec<usize> = (0..world).map(|to| amount(rank, to)).collect();
            let received: Vec<usize> = (0..world).map(|from| amount(from, rank)).collect();
            let input: Vec<f32> = (0..world).flat_map(|to| marks::<f32>(rank * 7 + to, 0..sent[to])).collect();
            let expected: Vec<f32> =
                (0..world).flat_map(|from| marks::<f32>(from * 7 + rank, 0..received[from])).collect();
            let mut output = vec![0f32; expected.len()];
            communicator.all_to_all_uneven(&input, &sent, &mut output, &received).unwrap();
            assert_eq!(output, expected);
        });
    }
}

/// More ranks than the paths for few of them take, and parts that end within a cache line.
#[test]
fn many_ranks_on_one_host() {
    for world in [17, 20] {
        run_both_ways(&vec!["a"; world], |communicator| {
            for count in [0, 1, 61, 1009] {
                gather_and_scatter::<i16>(communicator, count);
                all_to_all::<u8>(communicator, count);
                reduce_scatter(communicator, count);
            }
            let mut shared = communicator.allocate::<f32>(10_007).unwrap();
            for count in [0, 1, 200, 1009, 10_007] {
                let sum = |index: usize| (0..world).map(|from| f32::mark(from, index)).sum::<f32>();
                let summed = |data: &[f32]| data.iter().enumerate().all(|(index, item)| *item == sum(index));
                let mut data: Vec<f32> = marks(communicator.rank(), 0..count);
                shared[..count].copy_from_slice(&data);
                communicator.all_reduce(&mut data, ReduceOp::Sum).unwrap();
                assert!(summed(&data), "{count} elements of {world} ranks");
                communicator.all_reduce(&mut shared[..count], ReduceOp::Sum).unwrap();
                assert!(summed(&shared[..count]), "{count} elements of {world} ranks in shared memory");
            }
        });
    }
}
