//! Reading right from another rank's memory, where that is refused from the beginning or from some time on.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, unsafe_code)]

mod common;

use common::{configs, connect_with, run_with, secret};
use muster_collectives::{Communicator, Config, Error, Reading};

/// Has the kernel refuse this thread, and those that it starts, to read the memory of processes.
fn refuse() {
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut steps = [
        // The number of the system call.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_process_vm_readv as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the calls read their arguments, which outlive them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

fn world(ranks: usize) -> Vec<Config> {
    let mut configs = configs(&vec!["a"; ranks], 1, &secret());
    configs.iter_mut().for_each(|config| config.shm.reading = Reading::From(1));
    configs
}

fn all_gather(communicator: &Communicator, own: &[f32]) -> Result<(), Error> {
    let mut all = vec![-1f32; own.len() * communicator.world()];
    communicator.all_gather(own, &mut all)?;
    assert!(all.chunks(own.len()).enumerate().all(|(rank, part)| part.iter().all(|item| *item == rank as f32)));
    Ok(())
}

fn message(communicator: &Communicator, own: &[f32]) -> Result<(), Error> {
    let (rank, world) = (communicator.rank(), communicator.world());
    let from = (rank + world - 1) % world;
    let mut got = vec![-1f32; own.len()];
    communicator.send_receive(own, (rank + 1) % world, &mut got, from)?;
    assert!(got.iter().all(|item| *item == from as f32));
    Ok(())
}

/// That one of them may not read is enough; all notice, and nobody fails.
#[test]
fn where_reading_is_refused_data_goes_through_windows() {
    for ranks in [2, 3] {
        run_with(world(ranks), |communicator| {
            let rank = communicator.rank();
            if rank == 1 {
                refuse();
            }
            let private = vec![rank as f32; 70_001];
            let mut shared = communicator.allocate::<f32>(private.len()).unwrap();
            shared.fill(rank as f32);
            for round in 0..4 {
                all_gather(communicator, &private).unwrap();
                message(communicator, &private).unwrap();
                // Out of the segment, by all, and by one only.
                all_gather(communicator, &shared).unwrap();
                message(communicator, &shared).unwrap();
                all_gather(communicator, if rank == round % ranks { &shared } else { &private }).unwrap();
                let mut data = private.clone();
                communicator.broadcast(&mut data, round % ranks).unwrap();
                assert!(data.iter().all(|item| *item == (round % ranks) as f32));
            }
        });
    }
}

#[test]
fn reading_that_is_refused_later_ends_the_communicator_with_the_cause() {
    for operation in [all_gather, message] {
        let errors = connect_with(world(3), |communicator| {
            let communicator = communicator.unwrap();
            let own = vec![communicator.rank() as f32; 70_001];
            // Each has tried, and has told the others.
            for _ in 0..3 {
                all_gather(&communicator, &own).unwrap();
                message(&communicator, &own).unwrap();
            }
            communicator.barrier().unwrap();
            if communicator.rank() == 1 {
                refuse();
            }
            loop {
                if let Err(error) = operation(&communicator, &own) {
                    return error;
                }
            }
        });
        for error in errors {
            let Error::System { rank: 1, cause } = &error else { panic!("{error:?}") };
            assert!(cause.contains("cannot read the memory of rank"), "{cause}");
        }
    }
}

/// Ranks that are set up differently agree on what the most reluctant wants.
#[test]
fn settings_may_differ() {
    let mut configs = world(3);
    configs[0].shm.reading = Reading::Never;
    configs[2].shm.reading = Reading::Auto;
    run_with(configs, |communicator| {
        if communicator.rank() != 1 {
            refuse();
        }
        let own = vec![communicator.rank() as f32; 70_001];
        for _ in 0..3 {
            all_gather(communicator, &own).unwrap();
            message(communicator, &own).unwrap();
        }
    });
}
