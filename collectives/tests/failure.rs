//! What ends operations: aborts, disagreement, absence, departure, strangers and stale epochs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{configs, connect_with, run, run_with, secret, shapes};
use muster_collectives::{Communicator, DataMut, Error, OwnedBuffer, ReduceOp, Secret};

/// Operations that do nothing else than wait for the others.
fn until_error(communicator: &Communicator) -> Error {
    let mut data = vec![0f32; 1000];
    loop {
        if let Err(error) = communicator.all_reduce(&mut data, ReduceOp::Sum) {
            return error;
        }
    }
}

#[test]
fn an_abort_ends_every_wait_on_every_rank_at_once() {
    for world in 1..=5 {
        for hosts in shapes(world) {
            let aborter = world / 2;
            let results = run(&hosts, |communicator| {
                communicator.barrier().unwrap();
                let start = Instant::now();
                if communicator.rank() == aborter {
                    std::thread::sleep(Duration::from_millis(20));
                    communicator.abort("a new epoch");
                }
                (until_error(communicator), communicator.barrier().err(), start.elapsed())
            });
            for (first, second, took) in results {
                assert_eq!(first, Error::Aborted { rank: aborter, reason: "a new epoch".into() }, "{hosts:?}");
                assert_eq!(second, Some(first), "later calls fail likewise");
                assert!(took < Duration::from_secs(5), "{took:?}");
            }
        }
    }
}

#[test]
fn an_abort_ends_connecting() {
    for hosts in [["a", "a"], ["a", "b"]] {
        let mut configs = configs(&hosts, 1, &secret());
        // The other rank never comes.
        configs.truncate(1);
        let config = configs.pop().unwrap();
        let abort = config.abort.clone();
        let connecting = std::thread::spawn(move || Communicator::connect(config));
        std::thread::sleep(Duration::from_millis(20));
        abort.abort("no need");
        let error = connecting.join().unwrap().err();
        assert_eq!(error, Some(Error::Aborted { rank: 0, reason: "no need".into() }));
    }
}

#[test]
fn an_abort_before_connecting_names_the_rank_that_aborts() {
    let config = configs(&["a", "b", "a"], 1, &secret()).swap_remove(2);
    config.abort.abort("no need");
    assert_eq!(Communicator::connect(config).err(), Some(Error::Aborted { rank: 2, reason: "no need".into() }));
}

#[test]
fn absent_ranks_are_named_when_connecting() {
    for hosts in [["a", "a"], ["a", "b"]] {
        for present in 0..2 {
            let mut config = configs(&hosts, 1, &secret()).swap_remove(present);
            config.connect_timeout = Duration::from_millis(50);
            let error = Communicator::connect(config).err();
            assert!(matches!(error, Some(Error::Connect { rank, .. }) if rank == 1 - present), "{error:?}");
        }
    }
}

/// Found where one rank had begun before the others: it named its neighbour, which was there.
#[test]
fn the_absent_rank_is_named_whoever_misses_it_first() {
    for hosts in shapes(6) {
        for impatient in [0, 5] {
            let mut configs = configs(&hosts, 1, &secret());
            configs[impatient].connect_timeout = Duration::from_millis(700);
            drop(configs.remove(3));
            let errors = connect_with(configs, |communicator| communicator.err());
            for error in errors {
                assert!(matches!(error, Some(Error::Connect { rank: 3, .. })), "{hosts:?}, {impatient}: {error:?}");
            }
        }
    }
}

#[test]
fn disagreement_names_a_rank_and_both_calls() {
    type Call = fn(&Communicator) -> Result<(), Error>;
    let odd_calls: [(Call, &str); 5] = [
        (|c| c.barrier(), "barrier()"),
        (|c| c.all_reduce(&mut [0f32; 5], ReduceOp::Sum), "all_reduce(sum, f32, 5)"),
        (|c| c.all_reduce(&mut [0f32; 4], ReduceOp::Max), "all_reduce(max, f32, 4)"),
        (|c| c.all_reduce(&mut [0i32; 4], ReduceOp::Sum), "all_reduce(sum, i32, 4)"),
        (|c| c.broadcast(&mut [0f32; 4], 1), "broadcast(root 1, f32, 4)"),
    ];
    for world in [2, 3, 4] {
        for hosts in shapes(world) {
            for (odd_call, name) in odd_calls {
                let errors = connect_with(configs(&hosts, 1, &secret()), |communicator| {
                    // The others may have found out before this rank has even connected.
                    let communicator = match &communicator {
                        Ok(communicator) => communicator,
                        Err(error) => return error.clone(),
                    };
                    if communicator.rank() == 1 {
                        odd_call(communicator).unwrap_err()
                    } else {
                        communicator.all_reduce(&mut [0f32; 4], ReduceOp::Sum).unwrap_err()
                    }
                });
                for error in &errors {
                    let Error::Mismatch { theirs, expected, .. } = error else { panic!("{hosts:?}: {errors:?}") };
                    let calls = format!("{theirs} / {expected}");
                    assert!(calls.contains(name) && calls.contains("all_reduce(sum, f32, 4)"), "{calls}");
                }
                // Of two the later one is named, else the one unlike most.
                assert!(errors.iter().all(|error| error.rank() == Some(1)), "{hosts:?}: {errors:?}");
            }
        }
    }
}

/// What one rank calls where the others call something else.
type Odd = fn(&Communicator) -> Result<(), Error>;

/// Six hosts of one rank, of which rank 2 does `odd` and the others `even`: what each says in the end, and when.
fn disagree(odd: Odd, even: Odd) -> Vec<(Option<Error>, Duration)> {
    let hosts = ["a", "b", "c", "d", "e", "f"];
    let mut configs = configs(&hosts, 1, &secret());
    configs.iter_mut().for_each(|config| config.timeout = Duration::from_secs(50));
    run_with(configs, |communicator| {
        let start = Instant::now();
        let result = if communicator.rank() == 2 { odd(communicator) } else { even(communicator) };
        (result.and_then(|()| communicator.barrier()).err(), start.elapsed())
    })
}

/// Found with six hosts of one rank: little data went along a tree and much around a ring, so every rank waited for
/// another until the deadline, and was told of that only.
#[test]
fn disagreement_that_leads_to_different_algorithms_is_found_soon_and_names_the_odd_rank() {
    let little: Odd = |communicator| communicator.all_reduce(&mut vec![1f32; 8], ReduceOp::Sum);
    let little_then_barrier: Odd =
        |communicator| communicator.all_reduce(&mut vec![1f32; 8], ReduceOp::Sum).and_then(|()| communicator.barrier());
    let odd: [(Odd, Odd, &str); 10] = [
        (|c| c.all_reduce(&mut vec![1f32; 4_000_000], ReduceOp::Sum), little, "all_reduce(sum, f32, 4000000)"),
        (|c| c.all_reduce(&mut vec![1u8; 8], ReduceOp::Sum), little, "all_reduce(sum, u8, 8)"),
        (|c| c.all_reduce(&mut vec![1f64; 8], ReduceOp::Sum), little, "all_reduce(sum, f64, 8)"),
        (|c| c.all_reduce(&mut vec![1f32; 8], ReduceOp::Max), little, "all_reduce(max, f32, 8)"),
        (|c| c.broadcast(&mut vec![1f32; 2_000_000], 5), little, "broadcast(root 5, f32, 2000000)"),
        (|c| c.reduce(&mut vec![1f32; 2_000_000], ReduceOp::Sum, 0), little, "reduce(sum, root 0, f32, 2000000)"),
        (|c| c.all_gather(&vec![1f32; 8], &mut vec![0f32; 48]), little, "all_gather(f32, 8)"),
        (|c| c.all_to_all_in_place(&mut vec![1f32; 48]), little, "all_to_all(f32, 8)"),
        (|c| c.gather(&vec![1f32; 8], None::<&mut Vec<f32>>, 0), little, "gather(root 0, f32, 8)"),
        // In another order.
        (
            |c| c.barrier().and_then(|()| c.all_reduce(&mut vec![1f32; 8], ReduceOp::Sum)),
            little_then_barrier,
            "barrier()",
        ),
    ];
    for (odd, even, name) in odd {
        for (error, took) in disagree(odd, even) {
            let Some(Error::Mismatch { rank, theirs, expected }) = &error else { panic!("{name}: {error:?}") };
            assert_eq!(*rank, 2, "{name}: {error:?}");
            assert!(theirs.starts_with(name) && expected.starts_with("all_reduce(sum, f32, 8)"), "{name}: {error:?}");
            assert!(took < Duration::from_secs(10), "{name}: {took:?}");
        }
    }
}

#[test]
fn connecting_ends_when_all_ranks_are_there_and_not_before() {
    for hosts in [["a", "b", "c", "d"], ["a", "a", "a", "a"], ["a", "b", "a", "b"]] {
        for late in 0..4 {
            let come = AtomicBool::new(false);
            let mut configs = configs(&hosts, 1, &secret());
            let latecomer = configs.remove(late);
            std::thread::scope(|scope| {
                for config in configs {
                    let come = &come;
                    scope.spawn(move || {
                        let communicator = Communicator::connect(config).unwrap();
                        assert!(come.load(Ordering::SeqCst), "rank {} did not wait for {late}", communicator.rank());
                    });
                }
                // Time enough for a rank that does not wait.
                std::thread::sleep(Duration::from_millis(50));
                come.store(true, Ordering::SeqCst);
                Communicator::connect(latecomer).unwrap();
            });
        }
    }
}

/// Found where its listener lived on in a process that it had started: whoever dialed it waited for the whole deadline.
#[test]
fn a_rank_that_has_left_is_not_waited_for_where_its_listener_is_still_open() {
    let hosts = ["a", "b", "c", "d"];
    let configs = configs(&hosts, 1, &secret());
    let listeners: Vec<_> = configs.iter().map(|config| config.listener.try_clone().unwrap()).collect();
    let left = Barrier::new(hosts.len());
    let errors = connect_with(configs, |communicator| {
        let communicator = communicator.unwrap();
        let rank = communicator.rank();
        if rank == 2 {
            drop(communicator);
            left.wait();
            return None;
        }
        left.wait();
        let start = Instant::now();
        // No connection for data has been made before.
        let error = communicator.send(&vec![1f32; 8], 2).err();
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        error
    });
    drop(listeners);
    assert!(
        errors.iter().enumerate().all(|(rank, error)| rank == 2 || *error == Some(Error::PeerLeft { rank: 2 })),
        "{errors:?}"
    );
}

#[test]
fn a_rank_that_does_not_take_part_is_named() {
    for world in 2..=4 {
        for hosts in shapes(world) {
            for absent in 0..world {
                let mut configs = configs(&hosts, 1, &secret());
                configs.iter_mut().for_each(|config| config.timeout = Duration::from_millis(200));
                let all_have_failed = Barrier::new(world);
                let errors = run_with(configs, |communicator| {
                    communicator.barrier().unwrap();
                    let error = (communicator.rank() != absent).then(|| until_error(communicator));
                    all_have_failed.wait();
                    error.unwrap_or_else(|| until_error(communicator))
                });
                assert!(errors.iter().all(|error| *error == errors[0]), "{hosts:?}: {errors:?}");
                assert!(matches!(errors[0], Error::Timeout { .. }), "{hosts:?}: {errors:?}");
                assert_eq!(errors[0].rank(), Some(absent), "{hosts:?}: {errors:?}");
            }
        }
    }
}

#[test]
fn a_rank_that_leaves_is_named() {
    for world in 2..=4 {
        for hosts in shapes(world) {
            for leaver in 0..world {
                let errors = connect_with(configs(&hosts, 1, &secret()), |communicator| {
                    let communicator = communicator.unwrap();
                    // A rank that finds out later may still be in here.
                    let first = communicator.barrier().err();
                    (communicator.rank() != leaver).then(|| first.unwrap_or_else(|| until_error(&communicator)))
                });
                // Those who find out first leave as well, so others may name them.
                for error in errors.into_iter().flatten() {
                    assert!(matches!(error, Error::PeerLeft { .. }), "{hosts:?}: {error:?}");
                }
            }
        }
    }
}

/// The result of the last operation is whole even where another rank leaves at once.
#[test]
fn leaving_after_an_operation_takes_nothing_from_it() {
    for round in 0..20 {
        for hosts in shapes(3) {
            let sums = connect_with(configs(&hosts, 1, &secret()), |communicator| {
                let mut data = vec![1f32; 300_000];
                communicator.unwrap().all_reduce(&mut data, ReduceOp::Sum).unwrap();
                data
            });
            assert!(sums.iter().flatten().all(|value| *value == 3.0), "round {round}");
        }
    }
}

#[test]
fn a_new_epoch_is_formed_at_once() {
    for hosts in shapes(3) {
        let secret = secret();
        let epochs: Vec<Vec<_>> = (1..=5).map(|epoch| configs(&hosts, epoch, &secret)).collect();
        let mut by_rank: Vec<Vec<_>> = (0..3).map(|_| Vec::new()).collect();
        for epoch in epochs {
            for (rank, config) in epoch.into_iter().enumerate() {
                by_rank[rank].push(config);
            }
        }
        std::thread::scope(|scope| {
            for configs in by_rank {
                scope.spawn(|| {
                    for config in configs {
                        let communicator = Communicator::connect(config).unwrap();
                        let mut data = [communicator.epoch() as i64];
                        match communicator.all_reduce(&mut data, ReduceOp::Sum) {
                            Ok(()) => assert_eq!(data, [3 * communicator.epoch() as i64]),
                            // A faster rank is done with it.
                            Err(error) => assert!(matches!(error, Error::Aborted { .. }), "{error:?}"),
                        }
                        if communicator.rank() as u64 == communicator.epoch() % 3 {
                            communicator.abort("next");
                        }
                        assert!(matches!(until_error(&communicator), Error::Aborted { .. }));
                    }
                });
            }
        });
    }
}

#[test]
fn a_stale_rank_is_refused_and_told() {
    let secret = secret();
    let mut old = configs(&["a", "b"], 4, &secret);
    let mut new = configs(&["a", "b"], 5, &secret);
    // The stale rank 0 dials the new rank 1, which waits for a rank 0 of its own epoch.
    let mut stale = old.remove(0);
    stale.peers[1] = new[1].peers[1].clone();
    let stale_listener = stale.peers[0].address;
    new[1].peers[0].address = new[0].peers[0].address;
    assert_ne!(stale_listener, new[0].peers[0].address);
    let first = new.remove(0);
    let second = new.remove(0);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || Communicator::connect(second));
        let error = Communicator::connect(stale).err();
        assert_eq!(error, Some(Error::StaleEpoch { rank: 1, ours: 4, theirs: 5 }));
        // It has done no harm.
        let first = Communicator::connect(first).unwrap();
        let second = waiting.join().unwrap().unwrap();
        let barrier = scope.spawn(move || second.barrier());
        first.barrier().unwrap();
        barrier.join().unwrap().unwrap();
    });
}

#[test]
fn strangers_neither_get_in_nor_get_in_the_way() {
    for hosts in [["a", "b"], ["a", "a"]] {
        let configs = configs(&hosts, 1, &secret());
        let address = configs[1].peers[1].address;
        // Silent, talkative, and gone.
        let silent: Vec<TcpStream> = (0..70).map(|_| TcpStream::connect(address).unwrap()).collect();
        let mut talkative = TcpStream::connect(address).unwrap();
        talkative.write_all(&[b'x'; 4096]).unwrap();
        drop(TcpStream::connect(address).unwrap());
        let start = Instant::now();
        connect_with(configs, |communicator| communicator.unwrap().barrier().unwrap());
        assert!(start.elapsed() < Duration::from_secs(9), "no handshake held it up");
        let mut byte = [0];
        assert!(!matches!(talkative.read(&mut byte), Ok(1)), "a stranger is told nothing");
        drop(silent);
    }
}

#[test]
fn a_wrong_secret_does_not_connect() {
    for hosts in [["a", "b"], ["a", "a"]] {
        let mut configs = configs(&hosts, 1, &secret());
        for config in &mut configs {
            config.connect_timeout = Duration::from_millis(200);
        }
        configs[1].secret = Secret::new("another secret of sixteen bytes");
        for result in connect_with(configs, |communicator| communicator.err()) {
            assert!(matches!(result, Some(Error::Connect { .. })), "{result:?}");
        }
    }
}

#[test]
fn senseless_configurations_are_refused() {
    let config = || configs(&["a", "b"], 1, &secret()).swap_remove(0);
    for spoil in [
        |config: &mut muster_collectives::Config| config.rank = 2,
        |config: &mut muster_collectives::Config| config.world = 3,
        |config: &mut muster_collectives::Config| config.secret = Secret::new("short"),
    ] {
        let mut config = config();
        spoil(&mut config);
        assert!(matches!(Communicator::connect(config), Err(Error::Config(_))));
    }
}

/// A rank that waits for the absent one is not taken for it, also by who has waited longer.
#[test]
fn who_waits_as_well_is_not_blamed() {
    type Wait = fn(&Communicator) -> Result<(), Error>;
    let waits: [(Wait, Wait); 2] = [
        // Of the two ranks that have not come to the meeting, one is held up.
        (|c| c.barrier(), |c| c.receive(&mut [0f32; 4], 1)),
        // A chain.
        (|c| c.receive(&mut [0f32; 4], 0), |c| c.receive(&mut [0f32; 4], 1)),
    ];
    for (first, second) in waits {
        let mut configs = configs(&["a", "a", "a"], 1, &secret());
        configs.iter_mut().for_each(|config| config.timeout = Duration::from_millis(400));
        let all_have_failed = Barrier::new(3);
        let errors = run_with(configs, |communicator| {
            communicator.barrier().unwrap();
            let error = match communicator.rank() {
                0 => {
                    // The other waits first, and for longer.
                    std::thread::sleep(Duration::from_millis(60));
                    second(communicator).err()
                }
                1 => None,
                _ => first(communicator).err(),
            };
            all_have_failed.wait();
            error
        });
        for error in errors.iter().flatten() {
            assert!(matches!(error, Error::Timeout { rank: 1, .. }), "{errors:?}");
        }
        assert_eq!(errors.iter().flatten().count(), 2);
    }
}

/// A buffer of the caller's that fails when the operation asks for it.
struct Faulty;

impl OwnedBuffer for Faulty {
    fn data(&mut self) -> DataMut<'_> {
        panic!("no buffer after all")
    }
}

#[test]
fn a_panic_in_a_started_operation_holds_nobody_up() {
    let errors = run(&["a", "a"], |communicator| {
        communicator.barrier().unwrap();
        if communicator.rank() == 1 {
            let faulty = communicator.start_all_reduce(Faulty, ReduceOp::Sum).unwrap();
            let behind = communicator.start_barrier().unwrap();
            assert!(matches!(behind.wait().1, Err(Error::System { rank: 1, .. })));
            assert!(faulty.test());
        }
        until_error(communicator)
    });
    for error in errors {
        assert_eq!(error, Error::System { rank: 1, cause: "an operation panicked".into() });
    }
}
