//! Every operation, against a plain reference, over worlds, hosts, dtypes and lengths.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod common;

use common::{run, run_both_ways, shapes};
use half::{bf16, f16};
use muster_collectives::{Communicator, Compression, DataMut, Element, ReduceOp};
use proptest::prelude::*;

/// Values of a dtype made from small integers, exact in every dtype, and the plain reference of each operation.
trait Sample: Element {
    fn of(value: i64) -> Self;
    fn reduce(op: ReduceOp, inputs: &[i64]) -> Self;
}

fn folded(op: ReduceOp, inputs: &[i64]) -> i64 {
    match op {
        ReduceOp::Sum | ReduceOp::Mean => inputs.iter().sum(),
        ReduceOp::Product => inputs.iter().product(),
        ReduceOp::Min => *inputs.iter().min().unwrap(),
        ReduceOp::Max => *inputs.iter().max().unwrap(),
    }
}

macro_rules! samples {
    (float: $($float:ty, $of:expr;)*) => {$(
        impl Sample for $float {
            fn of(value: i64) -> Self { $of(value as f64) }
            fn reduce(op: ReduceOp, inputs: &[i64]) -> Self {
                let value = folded(op, inputs) as f64;
                $of(if op == ReduceOp::Mean { value / inputs.len() as f64 } else { value })
            }
        }
    )*};
    (integer: $($integer:ty),*) => {$(
        impl Sample for $integer {
            fn of(value: i64) -> Self { value as $integer }
            fn reduce(op: ReduceOp, inputs: &[i64]) -> Self {
                let value = folded(op, inputs);
                (if op == ReduceOp::Mean { value / inputs.len() as i64 } else { value }) as $integer
            }
        }
    )*};
}

// Through f32, as the operations compute.
samples! { float:
    f64, |value: f64| value;
    f32, |value: f64| value as f32;
    f16, |value: f64| f16::from_f32(value as f32);
    bf16, |value: f64| bf16::from_f32(value as f32);
}
samples!(integer: i8, i16, i32, i64, u8);

/// Small and not negative, so that sums of nine fit the narrowest type and its precision.
fn value(rank: usize, index: usize) -> i64 {
    ((rank * 7 + index * 13 + 3) % 11) as i64
}

fn values(op: ReduceOp, rank: usize, index: usize) -> i64 {
    // Products of nine stay small.
    if op == ReduceOp::Product { 1 + value(rank, index) % 2 * i64::from(rank < 6) } else { value(rank, index) }
}

fn input<T: Sample>(op: ReduceOp, rank: usize, count: usize) -> Vec<T> {
    (0..count).map(|index| T::of(values(op, rank, index))).collect()
}

fn expected<T: Sample>(op: ReduceOp, world: usize, count: usize) -> Vec<T> {
    (0..count).map(|index| T::reduce(op, &(0..world).map(|rank| values(op, rank, index)).collect::<Vec<_>>())).collect()
}

fn all_reduce<T: Sample>(communicator: &Communicator, op: ReduceOp, count: usize) {
    let mut data = input::<T>(op, communicator.rank(), count);
    communicator.all_reduce(&mut data, op).unwrap();
    assert_eq!(data, expected::<T>(op, communicator.world(), count), "{op} of {count} {}", T::DTYPE);
}

fn all_dtypes(communicator: &Communicator, op: ReduceOp, count: usize) {
    all_reduce::<f64>(communicator, op, count);
    all_reduce::<f32>(communicator, op, count);
    all_reduce::<f16>(communicator, op, count);
    all_reduce::<bf16>(communicator, op, count);
    all_reduce::<i8>(communicator, op, count);
    all_reduce::<i16>(communicator, op, count);
    all_reduce::<i32>(communicator, op, count);
    all_reduce::<i64>(communicator, op, count);
    all_reduce::<u8>(communicator, op, count);
}

#[test]
fn all_reduce_of_every_dtype_and_operation() {
    for world in 1..=8 {
        for hosts in shapes(world) {
            run(&hosts, |communicator| {
                for op in ReduceOp::ALL {
                    for count in [0, 1, world - 1, 2 * world + 1, 257] {
                        all_dtypes(communicator, op, count);
                    }
                }
            });
        }
    }
}

/// Longer than the windows and the segments of a ring, by an odd rest.
#[test]
fn long_buffers_go_in_turns() {
    for world in [2, 3] {
        for hosts in shapes(world) {
            run_both_ways(&hosts, |communicator| {
                all_reduce::<f32>(communicator, ReduceOp::Sum, 1_000_003);
                all_reduce::<bf16>(communicator, ReduceOp::Mean, 700_001);
                let count = 1_500_007;
                for root in 0..world {
                    let mut data = vec![communicator.rank() as u8; count];
                    communicator.broadcast(&mut data, root).unwrap();
                    assert!(data.iter().all(|value| *value == root as u8));
                }
            });
        }
    }
}

#[test]
fn broadcast_from_every_root() {
    for world in 1..=8 {
        for hosts in shapes(world) {
            run_both_ways(&hosts, |communicator| {
                for root in 0..world {
                    for count in [0, 1, 5, 1000] {
                        let mut data: Vec<i32> = (0..count).map(|i| (i * 10 + communicator.rank()) as i32).collect();
                        communicator.broadcast(&mut data, root).unwrap();
                        assert!(data.iter().enumerate().all(|(i, value)| *value == (i * 10 + root) as i32));
                    }
                }
                assert!(communicator.broadcast(&mut [0u8], world).is_err());
            });
        }
    }
}

#[test]
fn a_barrier_waits_for_everybody() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    for world in 1..=6 {
        for hosts in shapes(world) {
            let arrived = AtomicUsize::new(0);
            run(&hosts, |communicator| {
                for round in 1..=20 {
                    arrived.fetch_add(1, Ordering::SeqCst);
                    communicator.barrier().unwrap();
                    assert!(arrived.load(Ordering::SeqCst) >= round * world);
                }
            });
        }
    }
}

#[test]
fn all_gather_and_reduce_scatter() {
    for world in 1..=5 {
        for hosts in shapes(world) {
            run_both_ways(&hosts, |communicator| {
                for count in [0, 1, 3, 100] {
                    let rank = communicator.rank();
                    let mine = vec![rank as f32; count];
                    let mut all = vec![0f32; count * world];
                    communicator.all_gather(&mine, &mut all).unwrap();
                    assert!(all.iter().enumerate().all(|(i, value)| *value == (i / count.max(1)) as f32));

                    let whole: Vec<i64> = (0..count * world).map(|i| (i * (rank + 1)) as i64).collect();
                    let mut mine = vec![0i64; count];
                    communicator.reduce_scatter(&whole, &mut mine, ReduceOp::Sum).unwrap();
                    let ranks: usize = (1..=world).sum();
                    assert!(mine.iter().enumerate().all(|(i, value)| *value == ((rank * count + i) * ranks) as i64));
                }
                assert!(communicator.all_gather(&vec![0f32; 2], &mut vec![0f32; 2 * world + 1]).is_err());
            });
        }
    }
}

/// In shared memory on all ranks, on some, at different places, and across segments.
#[test]
fn shared_buffers_are_reduced_wherever_they_lie() {
    for world in 1..=4 {
        for hosts in shapes(world) {
            run_both_ways(&hosts, |communicator| {
                let rank = communicator.rank();
                let count = 100_001;
                let mut first = communicator.allocate::<f32>(count).unwrap();
                assert!(first.iter().all(|value| *value == 0.0));
                let second = communicator.allocate::<f32>(count).unwrap();
                let sum = expected::<f32>(ReduceOp::Sum, world, count);
                for round in 0..3 {
                    first.copy_from_slice(&input::<f32>(ReduceOp::Sum, rank, count));
                    communicator.all_reduce(&mut first, ReduceOp::Sum).unwrap();
                    assert_eq!(*first, sum, "round {round}");
                }
                // A part of it, the same on every rank.
                first.copy_from_slice(&input::<f32>(ReduceOp::Sum, rank, count));
                communicator.all_reduce(&mut first[7..1000], ReduceOp::Sum).unwrap();
                assert_eq!(first[7..1000], sum[7..1000]);
                // Different parts.
                first.copy_from_slice(&input::<f32>(ReduceOp::Sum, rank, count));
                first.rotate_right(rank);
                communicator.all_reduce(&mut first[rank..rank + 1000], ReduceOp::Sum).unwrap();
                assert_eq!(first[rank..rank + 1000], sum[..1000]);
                // Another segment, or private memory, on one rank.
                for odd in 0..world {
                    let mut private = input::<f32>(ReduceOp::Sum, rank, count);
                    let data: DataMut<'_> = if rank == odd {
                        (&mut private).into()
                    } else {
                        first.copy_from_slice(&private);
                        (&mut first).into()
                    };
                    communicator.all_reduce(data, ReduceOp::Sum).unwrap();
                    assert_eq!(if rank == odd { &private } else { &*first }, sum);
                    communicator.broadcast(if rank == odd { &mut private } else { &mut *first }, odd).unwrap();
                }
                drop(second);
                first.fill(rank as f32);
                communicator.broadcast(&mut first, world - 1).unwrap();
                assert!(first.iter().all(|value| *value == (world - 1) as f32));
            });
        }
    }
}

#[test]
fn started_operations_run_in_order_beside_the_caller() {
    for hosts in [vec!["a"; 3], vec!["a", "b", "c"], vec!["a", "a", "b"]] {
        run(&hosts, |communicator| {
            let mut pending = Vec::new();
            for step in 0..20i64 {
                pending.push(communicator.start_all_reduce(vec![step; 1000], ReduceOp::Sum).unwrap());
            }
            let shared = communicator.allocate::<f64>(10).unwrap();
            let mut sum = [1f32];
            communicator.all_reduce(&mut sum, ReduceOp::Sum).unwrap();
            assert_eq!(sum, [3.0]);
            // The synchronous operation came after them, so they have run.
            for (step, pending) in pending.into_iter().enumerate() {
                let (data, result) = pending.wait();
                result.unwrap();
                assert!(data.iter().all(|value| *value == 3 * step as i64));
            }
            let broadcast = communicator.start_broadcast(shared, 1).unwrap();
            assert!(broadcast.wait().1.is_ok());
        });
    }
}

/// They came as f32 from hosts of several ranks, and were rounded to bf16 on their way to the others.
#[test]
fn compression_leaves_sums_of_16_bit_floats_alone() {
    for hosts in shapes(3) {
        let mut configs = common::configs(&hosts, 1, &common::secret());
        configs.iter_mut().for_each(|config| config.tcp.compression = Some(Compression::Bf16));
        common::run_with(configs, |communicator| {
            // A bf16 has no 257, an f16 has.
            let own = f16::from_f32([129.0, 64.0, 64.0][communicator.rank()]);
            let mut data = vec![own; 200_000];
            communicator.all_reduce(&mut data, ReduceOp::Sum).unwrap();
            assert!(data.iter().all(|value| value.to_f32() == 257.0), "{hosts:?}: {}", data[0]);
        });
    }
}

#[test]
fn several_communicators_share_a_process_and_a_secret() {
    let secret = common::secret();
    let first = common::configs(&["a"; 3], 1, &secret);
    let second = common::configs(&["a"; 3], 2, &secret);
    let pairs: Vec<_> = first.into_iter().zip(second).collect();
    std::thread::scope(|scope| {
        for (first, second) in pairs {
            scope.spawn(move || {
                let first = Communicator::connect(first).unwrap();
                let second = Communicator::connect(second).unwrap();
                all_reduce::<f32>(&second, ReduceOp::Sum, 1000);
                all_reduce::<f32>(&first, ReduceOp::Sum, 1000);
            });
        }
    });
}

/// Random bits of an element; a NaN or infinity stays in.
fn noise(seed: u64, rank: usize, index: usize) -> f32 {
    let mut state = seed ^ ((rank as u64) << 40) ^ index as u64;
    for _ in 0..3 {
        state = (state ^ (state >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * (1 << (state % 20)) as f32
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Sums of values that round: close to the exact sum, bitwise equal on all ranks and from run to run.
    #[test]
    fn float_sums_are_equal_everywhere_and_every_time(
        world in 1usize..9,
        groups in 1usize..5,
        count in 0usize..5000,
        seed in any::<u64>(),
    ) {
        let hosts: Vec<String> = (0..world).map(|rank| format!("host {}", (rank * 7 + seed as usize % 13) % groups)).collect();
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let once = || run(&hosts, |communicator| {
            let mut data: Vec<f32> = (0..count).map(|index| noise(seed, communicator.rank(), index)).collect();
            communicator.all_reduce(&mut data, ReduceOp::Sum).unwrap();
            data.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        });
        let results = once();
        prop_assert!(results.iter().all(|result| *result == results[0]));
        prop_assert_eq!(&once()[0], &results[0]);
        for (index, bits) in results[0].iter().enumerate() {
            let inputs = (0..world).map(|rank| f64::from(noise(seed, rank, index)));
            let magnitude: f64 = inputs.clone().map(f64::abs).sum();
            let exact: f64 = inputs.sum();
            prop_assert!((f64::from(f32::from_bits(*bits)) - exact).abs() <= magnitude * 1e-6 + 1e-30);
        }
    }
}
