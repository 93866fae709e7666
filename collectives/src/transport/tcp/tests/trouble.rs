//! Disagreement, absence, strangers, other epochs, and encryption against those who listen.

use super::*;

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
            rank.network.message(Some((next, call(me), Data::from(&values(me, 10)))), None).unwrap();
            let mut data = vec![0f32; 10];
            rank.network.message(None, Some((previous, call(previous), DataMut::from(&mut data)))).unwrap();
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

/// Also where nobody has been connected to it but its two neighbours.
#[test]
fn a_rank_that_leaves_before_it_is_needed_is_missed_soon() {
    for world in 2..=7 {
        let start = Instant::now();
        let errors = run(world, &TcpOptions::default(), |rank| {
            let mut data = vec![1f32; 100_000];
            (rank.rank != 1).then(|| all_reduce(rank, &mut data, ReduceOp::Sum).unwrap_err())
        });
        // Those who find out first leave as well, so others may name them.
        for error in errors.into_iter().flatten() {
            assert!(matches!(error, Error::PeerLeft { .. }), "{world}: {error:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(20), "not only with the deadline");
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
    dial(&identity, 0, Purpose::Data, 0, || super::super::socket::open(&address, deadline, &abort.0)).map(drop)
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

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
                rank.network.links.open(1, 1, super::super::links::Intent::Send, &call).unwrap();
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
