//! Networks of threads, without the communicator above them.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use half::bf16;
use proptest::prelude::*;

use super::options::{Algorithm, Compression, Rule, TcpOptions};
use super::{Members, Network};
use crate::breaker::AbortHandle;
use crate::call::{Call, Kind};
use crate::config::Secret;
use crate::element::{DType, Data, DataMut, Element};
use crate::error::Error;
use crate::monitor::{ControlLink, Monitor};
use crate::reduce::ReduceOp;
use crate::transport::connect::{Identity, Undialed, dial};
use crate::transport::handshake::Purpose;

const SECRET: &str = "the secret of the network's tests";

/// One rank, with what the communicator does for it.
struct Rank {
    // In the order in which they go.
    _monitor: Option<Monitor>,
    network: Network,
    world: usize,
    rank: usize,
    sequence: u64,
    abort: AbortHandle,
}

impl Rank {
    fn all(&self) -> Members {
        Members { ranks: (0..self.world).collect(), me: self.rank }
    }

    fn call(&mut self, kind: Kind, dtype: DType, count: usize) -> Call {
        self.sequence += 1;
        Call { sequence: self.sequence, kind, dtype, count: count as u64 }
    }
}

fn run_with<R: Send>(
    world: usize,
    options: &TcpOptions,
    timeout: Duration,
    address: impl Fn(usize) -> &'static str,
    rank: impl Fn(&mut Rank) -> R + Sync,
) -> Vec<R> {
    let listeners: Vec<TcpListener> = (0..world).map(|rank| TcpListener::bind((address(rank), 0)).unwrap()).collect();
    let addresses: Vec<SocketAddr> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = listeners
            .into_iter()
            .enumerate()
            .map(|(number, listener)| {
                let (addresses, rank) = (&addresses, &rank);
                scope.spawn(move || {
                    let abort = AbortHandle::new();
                    abort.0.arm(number).unwrap();
                    let identity = Identity {
                        rank: number as u32,
                        world: world as u32,
                        epoch: 1,
                        secret: Secret::new(SECRET),
                        deadline: Instant::now() + Duration::from_secs(60),
                        breaker: Arc::clone(&abort.0),
                    };
                    let leaders: Vec<usize> = (0..world).collect();
                    let (network, links) =
                        Network::connect(&identity, addresses, &leaders, listener, world, options, timeout).unwrap();
                    let links: Vec<Arc<ControlLink>> = links.into_iter().map(Arc::new).collect();
                    let monitor = Monitor::start(links.clone(), Arc::clone(&abort.0)).unwrap();
                    abort.0.attach(links, None).unwrap();
                    let mut own = Rank {
                        _monitor: Some(monitor),
                        network,
                        world,
                        rank: number,
                        sequence: 0,
                        abort: abort.clone(),
                    };
                    let result = rank(&mut own);
                    abort.0.detach();
                    result
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn run<R: Send>(world: usize, options: &TcpOptions, rank: impl Fn(&mut Rank) -> R + Sync) -> Vec<R> {
    run_with(world, options, Duration::from_secs(60), |_| "127.0.0.1", rank)
}

const ALGORITHMS: [Algorithm; 4] =
    [Algorithm::Direct, Algorithm::RecursiveHalvingDoubling, Algorithm::Ring, Algorithm::Tree];

fn always(algorithm: Algorithm) -> TcpOptions {
    let rule = Rule { ranks_up_to: usize::MAX, bytes_up_to: usize::MAX, algorithm };
    TcpOptions { algorithms: vec![rule], ..TcpOptions::default() }
}

/// Small integers, exact in every dtype.
fn value(rank: usize, index: usize) -> f32 {
    ((rank * 7 + index * 13 + 3) % 11) as f32
}

fn values(rank: usize, count: usize) -> Vec<f32> {
    (0..count).map(|index| value(rank, index)).collect()
}

fn sum(world: usize, index: usize) -> f32 {
    (0..world).map(|rank| value(rank, index)).sum()
}

fn all_reduce<'a>(rank: &mut Rank, data: impl Into<DataMut<'a>>, op: ReduceOp) -> Result<(), Error> {
    let data = data.into();
    let call = rank.call(Kind::AllReduce(op), data.dtype(), data.count());
    let divisor = (op == ReduceOp::Mean).then_some(rank.world);
    rank.network.all_reduce(&rank.all(), &call, data, op, divisor)
}

#[test]
fn every_algorithm_reduces_every_length_on_every_world() {
    for algorithm in ALGORITHMS {
        for world in 1..=9 {
            run(world, &always(algorithm), |rank| {
                for count in [0, 1, world - 1, world, 3 * world + 1, 257, 400_003] {
                    let mut data = values(rank.rank, count);
                    all_reduce(rank, &mut data, ReduceOp::Sum).unwrap();
                    assert!(
                        data.iter().enumerate().all(|(index, value)| *value == sum(world, index)),
                        "{algorithm:?} {world} {count}"
                    );
                    let halves = |values: Vec<f32>| values.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
                    let mut data = halves(values(rank.rank, count.min(1000)));
                    all_reduce(rank, &mut data, ReduceOp::Mean).unwrap();
                    let mean = |index| bf16::from_f32(sum(world, index) / world as f32);
                    assert!(data.iter().enumerate().all(|(index, value)| *value == mean(index)));
                }
            });
        }
    }
}

#[test]
fn parts_are_gathered_scattered_and_reduced() {
    for world in 1..=9 {
        run(world, &TcpOptions::default(), |rank| {
            let (me, all) = (rank.rank, rank.all());
            for count in [0, 1, 5, 1000, 100_003] {
                let mut output = vec![0f32; world * count];
                let call = rank.call(Kind::AllGather, DType::F32, count);
                let input = values(me, count);
                rank.network.all_gather(&all, &call, Data::from(&input), DataMut::from(&mut output)).unwrap();
                assert!((0..world * count).all(|index| output[index] == value(index / count, index % count)));

                let whole = values(me, world * count);
                let mut own = vec![0f32; count];
                let call = rank.call(Kind::ReduceScatter(ReduceOp::Sum), DType::F32, count);
                let (input, op) = (Data::from(&whole), ReduceOp::Sum);
                rank.network.reduce_scatter(&all, &call, input, DataMut::from(&mut own), op, None).unwrap();
                assert!((0..count).all(|index| own[index] == sum(world, me * count + index)), "{world} {count}");

                let root = count % world;
                let input = values(me, count);
                let mut output = vec![0f32; count];
                let target = (me == root).then(|| DataMut::from(&mut output));
                let call = rank.call(Kind::Reduce { op, root: root as u32 }, DType::F32, count);
                rank.network.reduce(&all, &call, Data::from(&input), target, op, None, root).unwrap();
                assert!(me != root || (0..count).all(|index| output[index] == sum(world, index)));

                let mut data = values(me, count);
                let call = rank.call(Kind::Broadcast { root: root as u32 }, DType::F32, count);
                rank.network.broadcast(&all, &call, DataMut::from(&mut data), root).unwrap();
                assert_eq!(data, values(root, count));
                let call = rank.call(Kind::Barrier, DType::U8, 0);
                rank.network.barrier(&all, &call).unwrap();
            }
        });
    }
}

/// Of uneven lengths, some of them empty.
#[test]
fn ranks_exchange_with_each_other() {
    // From `from` to `to` goes a range of this length.
    let length = |from: usize, to: usize| (from * 3 + to * 5) % 4 * 20_001;
    for world in 1..=6usize {
        run(world, &TcpOptions::default(), |rank| {
            let me = rank.rank;
            let place = |partner: usize, length: &dyn Fn(usize) -> usize| -> Range<usize> {
                let start = (0..partner).map(length).sum();
                start..start + length(partner)
            };
            let send = |to: usize| place(to, &|to| length(me, to));
            let receive = |from: usize| place(from, &|from| length(from, me));
            let input: Vec<i32> = (0..world).flat_map(|to| vec![(me * 10 + to) as i32; length(me, to)]).collect();
            let mut output = vec![-1i32; receive(world - 1).end];
            let partners: Vec<usize> = (0..world).collect();
            for _ in 0..3 {
                let call = rank.call(Kind::AllToAll { uneven: true }, DType::I32, 0);
                let (input, output) = (Data::from(&input), DataMut::from(&mut output));
                rank.network.exchange(&partners, &call, input, &send, output, &receive).unwrap();
            }
            for from in 0..world {
                let expected = if from == me { -1 } else { (from * 10 + me) as i32 };
                assert!(output[receive(from)].iter().all(|value| *value == expected));
            }
        });
    }
}

/// A sender need not wait for the receiver, whichever of the two is the lower rank; messages keep their order among
/// operations of all.
#[test]
fn messages_are_sent_before_they_are_received() {
    run(2, &TcpOptions::default(), |rank| {
        let (me, other) = (rank.rank, 1 - rank.rank);
        for round in 0..20 {
            let from = |from: usize| Kind::Message { from: from as u32 };
            let call = Call { sequence: round, kind: from(me), dtype: DType::F32, count: 1000 };
            rank.network.send(other, &call, Data::from(&values(me, 1000))).unwrap();
            let mut data = vec![0f32; 1000];
            let call = Call { kind: from(other), ..call };
            rank.network.receive(other, &call, DataMut::from(&mut data)).unwrap();
            assert_eq!(data, values(other, 1000));
            all_reduce(rank, &mut data, ReduceOp::Sum).unwrap();
        }
    });
}

/// Whoever's connection counts, both ends agree on it, and no message is lost.
#[test]
fn both_ends_may_dial_at_once() {
    for _ in 0..30 {
        run(4, &TcpOptions::default(), |rank| {
            let call = |from: usize| {
                let kind = Kind::Message { from: from as u32 };
                Call { sequence: 0, kind, dtype: DType::F32, count: 10 }
            };
            let me = rank.rank;
            // The others in an order of their own for each rank.
            let others = || (1..4).map(move |distance| (me + distance * (1 + me % 2 * 2)) % 4);
            for other in others() {
                rank.network.send(other, &call(me), Data::from(&values(me, 10))).unwrap();
            }
            for other in others() {
                let mut data = vec![0f32; 10];
                rank.network.receive(other, &call(other), DataMut::from(&mut data)).unwrap();
                assert_eq!(data, values(other, 10));
            }
        });
    }
}

#[test]
fn members_may_be_some_of_the_ranks() {
    run(5, &TcpOptions::default(), |rank| {
        let ranks: Vec<usize> = (0..5).filter(|other| other % 2 == rank.rank % 2).collect();
        let me = ranks.binary_search(&rank.rank).unwrap();
        let members = Members { ranks: ranks.clone(), me };
        for count in [3, 100_000] {
            let mut data = values(rank.rank, count);
            let call = rank.call(Kind::AllReduce(ReduceOp::Sum), DType::F32, count);
            let op = ReduceOp::Sum;
            rank.network.all_reduce(&members, &call, DataMut::from(&mut data), op, None).unwrap();
            let sum = |index| ranks.iter().map(|rank| value(*rank, index)).sum::<f32>();
            assert!(data.iter().enumerate().all(|(index, value)| *value == sum(index)));
        }
    });
}

/// Over more connections than one, by default between different addresses.
#[test]
fn much_data_is_striped() {
    let addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
    for options in [always(Algorithm::Ring), TcpOptions { streams: Some(3), ..always(Algorithm::Ring) }] {
        run_with(
            3,
            &options,
            Duration::from_secs(60),
            |rank| addresses[rank],
            |rank| {
                // Around a ring of three, each rank sends four thirds.
                let count = 4_000_001;
                for round in 0..2 {
                    let mut data = values(rank.rank, count);
                    all_reduce(rank, &mut data, ReduceOp::Sum).unwrap();
                    assert!(data.iter().enumerate().all(|(index, value)| *value == sum(3, index)), "{round}");
                }
                let other = (rank.rank + 1) % 3;
                let lanes = rank.network.links.channel(other).lanes.len();
                assert_eq!(lanes, options.streams.unwrap_or(4));
            },
        );
    }
}

/// Everything as without, from connections with several lanes to good-byes.
#[test]
fn connections_may_be_encrypted() {
    for world in 2..=4 {
        let options = TcpOptions { tls: true, streams: Some(2), ..TcpOptions::default() };
        run(world, &options, |rank| {
            for count in [0, 1, 1000, 300_000, 6_000_001] {
                let mut data = values(rank.rank, count);
                all_reduce(rank, &mut data, ReduceOp::Sum).unwrap();
                assert!(data.iter().enumerate().all(|(index, value)| *value == sum(world, index)), "{world} {count}");
            }
            let (me, next, previous) = (rank.rank, (rank.rank + 1) % world, (rank.rank + world - 1) % world);
            let call = |from: usize| {
                let kind = Kind::Message { from: from as u32 };
                Call { sequence: 0, kind, dtype: DType::F32, count: 10 }
            };
            rank.network.send(next, &call(me), Data::from(&values(me, 10))).unwrap();
            let mut data = vec![0f32; 10];
            rank.network.receive(previous, &call(previous), DataMut::from(&mut data)).unwrap();
            assert_eq!(data, values(previous, 10));
        });
    }
}

#[test]
fn a_difference_in_form_is_a_mismatch() {
    let errors = run(2, &TcpOptions::default(), |rank| {
        let op = ReduceOp::Sum;
        let call = rank.call(Kind::AllReduce(op), DType::BF16, 8);
        let (mut wide, mut narrow) = ([1f32; 8], [bf16::ONE; 8]);
        let data = if rank.rank == 0 { DataMut::from(&mut wide) } else { DataMut::from(&mut narrow) };
        let error = rank.network.all_reduce(&rank.all(), &call, data, op, None).unwrap_err();
        assert!(wide.iter().all(|value| *value == 1.0) && narrow.iter().all(|value| *value == bf16::ONE));
        error
    });
    assert!(errors.iter().all(|error| matches!(error, Error::Mismatch { .. })), "{errors:?}");
}

/// The rank that nobody hears of is blamed, not one that waits for it as well: also by ranks that have no control
/// connection to it.
#[test]
fn a_rank_that_does_not_connect_is_named() {
    for world in 2..=6 {
        for absent in 0..world {
            let all_have_failed = std::sync::Barrier::new(world);
            let errors = run_with(
                world,
                &TcpOptions::default(),
                Duration::from_millis(300),
                |_| "127.0.0.1",
                |rank| {
                    let mut data = vec![1f32; 100_000];
                    let error = (rank.rank != absent).then(|| all_reduce(rank, &mut data, ReduceOp::Sum).unwrap_err());
                    all_have_failed.wait();
                    error.or(rank.abort.0.error())
                },
            );
            for error in errors.into_iter().flatten() {
                assert!(
                    matches!(error, Error::Timeout { rank, .. } if rank == absent),
                    "{absent} of {world}: {error:?}"
                );
            }
        }
    }
}

/// Whatever a stranger says, at whatever point, the ranks of the job do not care.
#[test]
fn strangers_are_ignored_while_operations_run() {
    run(3, &TcpOptions::default(), |rank| {
        let address = rank.network.links.address(rank.rank);
        let mut silent = Vec::new();
        for round in 0..50u8 {
            let mut stranger = TcpStream::connect(address).unwrap();
            stranger.write_all(&vec![round; usize::from(round) * 7]).unwrap();
            match round % 3 {
                0 => drop(stranger),
                1 => silent.push(stranger),
                _ => {
                    // It is told nothing: the connection ends, perhaps before all is said.
                    let _ = stranger.write_all(&[round; 4000]);
                    stranger.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                    assert!(!matches!(stranger.read(&mut [0]), Ok(1)));
                }
            }
            let mut data = values(rank.rank, 1000);
            all_reduce(rank, &mut data, ReduceOp::Sum).unwrap();
        }
    });
}

/// Dials rank 0 for rank 1 as a process of another epoch would.
fn dial_as(rank: &Rank, epoch: u64, abort: &AbortHandle) -> Result<(), Undialed> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let identity = Identity {
        rank: 1,
        world: rank.world as u32,
        epoch,
        secret: Secret::new(SECRET),
        deadline,
        breaker: Arc::clone(&abort.0),
    };
    let address = rank.network.links.address(0);
    dial(&identity, 0, Purpose::Data, 0, || super::socket::open(&address, deadline, &abort.0)).map(drop)
}

#[test]
fn a_stale_dialer_is_told_and_does_no_harm() {
    run(2, &TcpOptions::default(), |rank| {
        for count in [10, 100_000] {
            if rank.rank == 1 {
                let refusal = dial_as(rank, 0, &AbortHandle::new());
                let stale = Error::StaleEpoch { rank: 0, ours: 0, theirs: 1 };
                assert!(matches!(&refusal, Err(Undialed::Ended(error)) if *error == stale), "{refusal:?}");
            }
            let mut data = values(rank.rank, count);
            all_reduce(rank, &mut data, ReduceOp::Sum).unwrap();
        }
    });
}

#[test]
fn a_later_epoch_ends_this_one() {
    let errors = run(3, &TcpOptions::default(), |rank| {
        let mut data = values(rank.rank, 1000);
        all_reduce(rank, &mut data, ReduceOp::Sum).unwrap();
        if rank.rank == 1 {
            let later = AbortHandle::new();
            std::thread::scope(|scope| {
                // It is refused by this epoch, and tries again.
                scope.spawn(|| dial_as(rank, 2, &later));
                while rank.abort.0.check().is_ok() {
                    std::thread::yield_now();
                }
                later.abort("enough");
            });
        }
        loop {
            if let Err(error) = all_reduce(rank, &mut data, ReduceOp::Sum) {
                return error;
            }
        }
    });
    for error in errors {
        assert_eq!(error, Error::StaleEpoch { rank: 1, ours: 1, theirs: 2 });
    }
}

/// Bytes of a random sort that round: of both signs, over some magnitudes.
fn noise(seed: u64, rank: usize, index: usize) -> f32 {
    let mut state = seed ^ ((rank as u64) << 40) ^ index as u64;
    for _ in 0..3 {
        state = (state ^ (state >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * (1 << (state % 20)) as f32
}

fn bits<T: Element>(values: &[T]) -> Vec<u64> {
    values.iter().map(|value| format!("{value:?}").parse::<f64>().unwrap().to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn results_are_equal_everywhere_and_every_time(
        world in 2usize..9,
        algorithm in 0usize..4,
        count in 0usize..4000,
        seed in any::<u64>(),
    ) {
        let options = always(ALGORITHMS[algorithm]);
        let once = || run(world, &options, |rank| {
            let mut data: Vec<f32> = (0..count).map(|index| noise(seed, rank.rank, index)).collect();
            all_reduce(rank, &mut data, ReduceOp::Sum).unwrap();
            bits(&data)
        });
        let results = once();
        prop_assert!(results.iter().all(|result| *result == results[0]));
        prop_assert_eq!(&once()[0], &results[0]);
    }

    /// The bound that [`Compression::Bf16`] states.
    #[test]
    fn compressed_sums_are_equal_everywhere_and_as_near_as_promised(
        world in 2usize..9,
        algorithm in 1usize..4,
        count in 0usize..4000,
        mean in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let algorithm = ALGORITHMS[algorithm];
        let options = TcpOptions { compression: Some(Compression::Bf16), ..always(algorithm) };
        let op = if mean { ReduceOp::Mean } else { ReduceOp::Sum };
        let results = run(world, &options, |rank| {
            let mut data: Vec<f32> = (0..count).map(|index| noise(seed, rank.rank, index)).collect();
            all_reduce(rank, &mut data, op).unwrap();
            data
        });
        prop_assert!(results.iter().all(|result| bits(result) == bits(&results[0])));
        let roundings = match algorithm {
            Algorithm::Ring => world as u32,
            Algorithm::Tree => world.ilog2() + 1,
            _ => world.next_power_of_two().ilog2() + 2,
        };
        let divisor = if mean { world as f64 } else { 1.0 };
        for (index, result) in results[0].iter().enumerate() {
            let inputs = (0..world).map(|rank| f64::from(noise(seed, rank, index)));
            let magnitude: f64 = inputs.clone().map(f64::abs).sum();
            let exact = inputs.sum::<f64>() / divisor;
            let bound = ((1.0 + 1.0 / 256.0f64).powi(roundings as i32) - 1.0) * magnitude / divisor;
            prop_assert!((f64::from(*result) - exact).abs() <= bound + magnitude * 1e-6 + 1e-30);
            prop_assert_eq!(bf16::from_f32(*result).to_f32(), *result);
        }
    }

    /// What a rank of the job sends in place of a header, once it is let in, ends the others' calls with an error
    /// that names it.
    #[test]
    fn any_bytes_in_place_of_headers_end_in_a_clear_error(
        bytes in proptest::collection::vec(any::<u8>(), 32..200),
        large in any::<bool>(),
    ) {
        let count = if large { 200_000 } else { 10 };
        let errors = run(2, &TcpOptions::default(), |rank| {
            if rank.rank == 0 {
                let call = rank.call(Kind::AllReduce(ReduceOp::Sum), DType::F32, count);
                rank.network.links.open(1, 1, super::links::Intent::Send, &call).unwrap();
                let lane = &rank.network.links.channel(1).lanes[0];
                lane.try_write(&[std::io::IoSlice::new(&bytes)]).unwrap();
                while rank.abort.0.check().is_ok() {
                    std::thread::yield_now();
                }
                return rank.abort.0.error();
            }
            all_reduce(rank, &mut vec![1f32; count], ReduceOp::Sum).err()
        });
        for error in errors {
            let named = matches!(error, Some(Error::Mismatch { rank: 0, .. } | Error::PeerLost { rank: 0, .. }));
            prop_assert!(named, "{:?}", error);
        }
    }
}
