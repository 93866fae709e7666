//! Every operation, algorithm and form of connection gives the right results.

use super::*;

#[test]
fn every_algorithm_reduces_every_length_on_every_world() {
    for algorithm in ALGORITHMS {
        for world in (1..=9).chain([17]) {
            run(world, &always(algorithm), |rank| {
                for count in [0, 1, world - 1, world, 3 * world + 1, 257, 400_003] {
                    let mut data = values(rank.rank, count);
                    all_reduce(rank, &mut data, ReduceOp::Sum).unwrap();
                    assert!(
                        data.iter().enumerate().all(|(index, value)| *value == sum(world, index)),
                        "{algorithm:?} {world} {count}"
                    );
                    let halves = |values: Vec<f32>| values.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
                    let mut data = halves(values(rank.rank, count));
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
    for world in (1..=6usize).chain([17]) {
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

/// A reduce_scatter of 16-bit floats once collected all parts of all ranks before it combined any.
#[test]
fn what_waits_to_be_combined_is_bounded() {
    for world in [1, 2, 3] {
        run(world, &TcpOptions::default(), |rank| {
            let (me, all) = (rank.rank, rank.all());
            let count = 3_000_001;
            let whole: Vec<bf16> = (0..world * count).map(|index| bf16::from_f32(value(me, index))).collect();
            let mut own = vec![bf16::ZERO; count];
            let op = ReduceOp::Sum;
            let call = rank.call(Kind::ReduceScatter(op), DType::BF16, count);
            rank.network.reduce_scatter(&all, &call, Data::from(&whole), DataMut::from(&mut own), op, None).unwrap();
            let sum = |index: usize| bf16::from_f32(sum(world, me * count + index));
            assert!((0..count).all(|index| own[index] == sum(index)), "{world}");
            let words = rank.network.workspace.len();
            assert_eq!(words > 0, world > 1, "memory for what other ranks send is kept");
            assert!(words * 8 <= 5 << 20, "{words} words for {} bytes", 2 * whole.len());
        });
    }
}

/// A rank that sent and received once did one after the other: it did not take what came while it sent.
#[test]
fn messages_go_both_ways_at_the_same_time() {
    // More than the kernel holds between two ranks.
    let count = 64 << 20;
    run(2, &TcpOptions::default(), |rank| {
        let (me, other) = (rank.rank, 1 - rank.rank);
        let call = |from: usize, dtype: DType, count: usize| {
            let kind = Kind::Message { from: from as u32 };
            Call { sequence: 0, kind, dtype, count: count as u64 }
        };
        // The elements need not be the same both ways.
        let (bytes, doubles) = (vec![7u8; count], vec![0.5f64; count / 8]);
        let (mut got_bytes, mut got_doubles) = (vec![0u8; count], vec![0f64; count / 8]);
        let (as_bytes, as_doubles) = (call(0, DType::U8, count), call(1, DType::F64, count / 8));
        if me == 0 {
            let outgoing = (other, as_bytes, Data::from(&bytes));
            let incoming = (other, as_doubles, DataMut::from(&mut got_doubles));
            rank.network.message(Some(outgoing), Some(incoming)).unwrap();
            assert_eq!(got_doubles, doubles);
        } else {
            rank.network.message(Some((other, as_doubles, Data::from(&doubles))), None).unwrap();
            rank.network.message(None, Some((other, as_bytes, DataMut::from(&mut got_bytes)))).unwrap();
            assert_eq!(got_bytes, bytes);
        }
    });
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
            rank.network.message(Some((other, call, Data::from(&values(me, 1000)))), None).unwrap();
            let mut data = vec![0f32; 1000];
            let call = Call { kind: from(other), ..call };
            rank.network.message(None, Some((other, call, DataMut::from(&mut data)))).unwrap();
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
                rank.network.message(Some((other, call(me), Data::from(&values(me, 10)))), None).unwrap();
            }
            for other in others() {
                let mut data = vec![0f32; 10];
                rank.network.message(None, Some((other, call(other), DataMut::from(&mut data)))).unwrap();
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
