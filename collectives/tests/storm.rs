//! Two hundred ranks killed or stopped in the middle of random operations: who is left says which rank it was, keeps
//! nothing of the old communicator and forms a new one at once.
//!
//! `MUSTER_TEST_SEED` repeats a run's choices; the moments of the signals are the system's own.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod common;

use std::time::Duration;

use common::process::{Process, Seat, random_secret, shared_memory_files, world};
use common::shapes;
use muster_collectives::{Communicator, Error, ReduceOp, SharedBuffer};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};

const ROUNDS: u64 = 200;

/// Of so many rounds one stops a rank; the others kill one.
const STOPS: u64 = 6;

/// What operations wait for where a rank is killed: a time that must never pass.
const LONG: Duration = Duration::from_secs(50);

/// What they wait for where one is stopped.
const SILENCE: Duration = Duration::from_millis(600);

/// What a loaded machine may add to any of it.
const SLACK: Duration = Duration::from_secs(2);

/// A small generator: the same numbers for a seed on every rank.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Of the clock that all processes share.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().into()
}

/// A rank of many communicators, one after the other.
#[test]
fn rank_process() {
    let Some(seat) = Seat::taken() else { return };
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let mut words = line.splitn(3, ' ');
        let mut random = Random(words.next().unwrap().parse().unwrap());
        let operations = words.next().unwrap().parse().unwrap();
        let config = seat.config(words.next().unwrap());
        let splits = config.timeout == LONG;
        // The listener's clone in the configuration counts, and is gone after all.
        let before = descriptors() - 1;
        let result = Communicator::connect(config).map_err(|error| (now(), error)).and_then(|communicator| {
            println!("READY");
            operate(&communicator, splits, &mut random, operations).map_err(|error| (now(), error))
        });
        match result {
            Ok(()) => println!("WORKED"),
            Err((at, error)) => println!("FAILED {} {error:?}", at.as_micros()),
        }
        // A handshake with a rank that was killed meanwhile may end a moment later.
        let deadline = now() + SLACK;
        while descriptors() > before && now() < deadline {
            std::thread::yield_now();
        }
        println!("HOLDS {} {} {}", descriptors() as i64 - before as i64, mappings(), resident());
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Of memory that communicators share.
fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|line| line.contains("muster")).count()
}

/// Bytes of memory that the process really has.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Random operations, the same on all ranks, with results that are looked at. `splits` are left out where ranks are
/// stopped: new parts have a deadline of their own.
fn operate(communicator: &Communicator, splits: bool, random: &mut Random, operations: usize) -> Result<(), Error> {
    let mut shared = communicator.allocate::<f32>(1 + random.below(60_000))?;
    for _ in 0..operations {
        operation(communicator, splits, random, &mut shared)?;
    }
    Ok(())
}

fn value(rank: usize, index: usize) -> f32 {
    (1 + (rank * 31 + index * 7) % 120) as f32
}

fn values(rank: usize, indices: std::ops::Range<usize>) -> Vec<f32> {
    indices.map(|index| value(rank, index)).collect()
}

fn operation(
    communicator: &Communicator,
    splits: bool,
    random: &mut Random,
    shared: &mut SharedBuffer<f32>,
) -> Result<(), Error> {
    let (rank, world) = (communicator.rank(), communicator.world());
    let count = [0, 1, 7, 100, 3001, 40_000, 150_001][random.below(7)];
    let root = random.below(world);
    let sum = |index: usize| (0..world).map(|from| value(from, index)).sum::<f32>();
    let summed = |data: &[f32]| data.iter().enumerate().all(|(index, item)| *item == sum(index));
    let whole = || (0..world).flat_map(|from| values(from, 0..count)).collect::<Vec<f32>>();
    let own = values(rank, 0..count);
    match random.below(15) {
        0 if splits => {
            let part = communicator.split(Some((rank % 2) as u32), 0)?.unwrap();
            // It has an end of its own, which names ranks by their numbers in it; who is lost there is lost here.
            let deadline = now() + SLACK;
            if part.barrier().is_err() {
                loop {
                    communicator.failure().map_or(Ok(()), Err)?;
                    assert!(now() < deadline, "a part has ended, and the whole has not");
                    std::thread::yield_now();
                }
            }
        }
        0 | 1 => communicator.barrier()?,
        2 => {
            let mut data = own;
            communicator.all_reduce(&mut data, ReduceOp::Sum)?;
            assert!(summed(&data));
        }
        3 => {
            shared.iter_mut().enumerate().for_each(|(index, item)| *item = value(rank, index));
            communicator.all_reduce(&mut *shared, ReduceOp::Sum)?;
            assert!(summed(shared));
        }
        4 => *shared = communicator.allocate(1 + count)?,
        5 => {
            let mut data = own;
            communicator.reduce(&mut data, ReduceOp::Sum, root)?;
            assert!(rank != root || summed(&data));
        }
        6 => {
            let mut data = own;
            communicator.broadcast(&mut data, root)?;
            assert_eq!(data, values(root, 0..count));
        }
        7 => {
            shared.fill(rank as f32);
            communicator.broadcast(&mut *shared, root)?;
            assert!(shared.iter().all(|item| *item == root as f32));
        }
        8 => {
            let mut all = vec![0f32; count * world];
            communicator.all_gather(&own, &mut all)?;
            assert_eq!(all, whole());
        }
        9 => {
            let mut part = vec![0f32; count];
            communicator.reduce_scatter(&values(rank, 0..count * world), &mut part, ReduceOp::Sum)?;
            assert!(part.iter().enumerate().all(|(index, item)| *item == sum(rank * count + index)));
        }
        10 => {
            let started = communicator.start_all_reduce(own, ReduceOp::Sum)?;
            let beside = communicator.start_barrier()?;
            let (data, result) = started.wait();
            let ((), other) = beside.wait();
            result.and(other)?;
            assert!(summed(&data));
        }
        11 => {
            let mut all = vec![0f32; count * world];
            communicator.gather(&own, (rank == root).then_some(&mut all), root)?;
            assert!(rank != root || all == whole());
        }
        12 => {
            let mut part = vec![0f32; count];
            communicator.scatter((rank == root).then(whole).as_ref(), &mut part, root)?;
            assert_eq!(part, own);
        }
        13 => {
            let mut all = values(rank, 0..count * world);
            communicator.all_to_all_in_place(&mut all)?;
            let part = |from: usize| values(from, rank * count..(rank + 1) * count);
            assert_eq!(all, (0..world).flat_map(part).collect::<Vec<f32>>());
        }
        _ if world == 1 => {}
        _ => {
            // Round a ring, and then from one to the next alone while the others go on.
            let (next, previous) = ((rank + 1) % world, (rank + world - 1) % world);
            let mut got = vec![0f32; count];
            communicator.send_receive(&own, next, &mut got, previous)?;
            assert_eq!(got, values(previous, 0..count));
            if rank == root {
                communicator.send(&own, next)?;
            } else if previous == root {
                communicator.receive(&mut got, root)?;
                assert_eq!(got, values(root, 0..count));
            }
        }
    }
    Ok(())
}

/// The rank that an error names.
fn named(error: &str) -> Option<usize> {
    let (_, rest) = error.split_once("rank: ")?;
    rest.split(|end: char| !end.is_ascii_digit()).next()?.parse().ok()
}

fn print_times(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!("{what}: p50 {:.2?}, p99 {:.2?}, longest {:.2?} of {}", at(50), at(99), at(100), times.len());
}

struct Storm {
    random: Random,
    secret: String,
    epoch: u64,
    /// The first is never a victim: it lives through all epochs, and would show what they leave behind.
    processes: Vec<Process>,
    /// What the first held after each epoch.
    resident: Vec<usize>,
    kills_on_one_host: Vec<Duration>,
    kills_between_hosts: Vec<Duration>,
    stops: Vec<Duration>,
}

impl Storm {
    fn round(&mut self, number: u64) {
        let size = 2 + self.random.below(4);
        while self.processes.len() < size {
            self.processes.push(Process::start("rank_process", &self.secret));
        }
        let shapes = shapes(size);
        let hosts = &shapes[self.random.below(shapes.len())];
        let one_host = hosts.iter().all(|host| *host == hosts[0]);
        // Which process is which rank.
        let mut seats: Vec<usize> = (0..size).collect();
        (1..size).for_each(|last| seats.swap(last, self.random.below(last + 1)));
        let victim = loop {
            let rank = self.random.below(size);
            if seats[rank] != 0 {
                break rank;
            }
        };
        let stops = number.is_multiple_of(STOPS);
        let what = format!("round {number}, {} rank {victim} of {hosts:?}", if stops { "stopped" } else { "killed" });
        let timeout = if stops { SILENCE } else { LONG };
        self.begin(&seats, hosts, timeout, usize::MAX);
        for seat in &seats {
            self.processes[*seat].expect("READY");
        }
        std::thread::sleep(Duration::from_micros(self.random.below(10_000) as u64));
        let sent = now();
        self.processes[seats[victim]].signal(if stops { Signal::SIGSTOP } else { Signal::SIGKILL });
        let survivors: Vec<usize> = (0..size).filter(|rank| *rank != victim).collect();
        for rank in &survivors {
            let failed = self.processes[seats[*rank]].expect("FAILED");
            let (at, error) = failed.split_once(' ').unwrap();
            let took = Duration::from_micros(at.parse().unwrap()).saturating_sub(sent);
            let bound = if stops { SILENCE + Duration::from_millis(500) + SLACK } else { SLACK };
            assert_eq!(named(error), Some(victim), "{what}: rank {rank} says {error}");
            assert!(took <= bound, "{what}: rank {rank} has taken {took:?} to say {error}");
            match (stops, one_host) {
                (true, _) => self.stops.push(took),
                (false, true) => self.kills_on_one_host.push(took),
                (false, false) => self.kills_between_hosts.push(took),
            }
            self.check_leftovers(seats[*rank], &what);
        }
        // The others go on without it.
        let rest: Vec<usize> = survivors.iter().map(|rank| seats[*rank]).collect();
        let hosts: Vec<&str> = survivors.iter().map(|rank| hosts[*rank]).collect();
        self.begin(&rest, &hosts, LONG, 4);
        for seat in &rest {
            self.processes[*seat].expect("WORKED");
            self.check_leftovers(*seat, &what);
        }
        let victim = seats[victim];
        if stops && self.random.below(2) == 0 {
            // It comes back to a communicator that has ended, and is of use for the next one.
            self.processes[victim].signal(Signal::SIGCONT);
            self.processes[victim].expect("FAILED");
            self.check_leftovers(victim, &what);
        } else {
            self.processes.remove(victim);
        }
    }

    /// Lets processes form a communicator of the next epoch and operate on it.
    fn begin(&mut self, seats: &[usize], hosts: &[&str], timeout: Duration, operations: usize) {
        self.epoch += 1;
        let seed = self.random.next();
        let ranks: Vec<&Process> = seats.iter().map(|seat| &self.processes[*seat]).collect();
        let line = format!("{seed} {operations} {}", world(&ranks, hosts, self.epoch, timeout));
        for seat in seats {
            self.processes[*seat].tell(&line);
        }
    }

    fn check_leftovers(&mut self, seat: usize, what: &str) {
        let holds = self.processes[seat].expect("HOLDS");
        let numbers: Vec<i64> = holds.split(' ').map(|word| word.parse().unwrap()).collect();
        assert_eq!(numbers[..2], [0, 0], "{what}: descriptors and mappings are left");
        if seat == 0 {
            self.resident.push(numbers[2] as usize);
        }
    }
}

#[test]
fn two_hundred_ranks_killed_or_stopped_in_the_middle_of_operations() {
    let seed = std::env::var("MUSTER_TEST_SEED").ok().map(|seed| seed.parse().unwrap());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) ^ now().as_nanos() as u64);
    println!("MUSTER_TEST_SEED={seed}");
    let files = shared_memory_files();
    let mut storm = Storm {
        random: Random(seed),
        secret: random_secret(),
        epoch: 0,
        processes: Vec::new(),
        resident: Vec::new(),
        kills_on_one_host: Vec::new(),
        kills_between_hosts: Vec::new(),
        stops: Vec::new(),
    };
    for number in 0..ROUNDS {
        storm.round(number);
    }
    assert_eq!(shared_memory_files(), files);
    // Once all sizes have been seen, nothing is added: a communicator's memory alone is some MiB.
    let (early, late) = storm.resident.split_at(storm.resident.len() / 2);
    let (early, late) = (early.iter().max().unwrap(), late.iter().max().unwrap());
    println!("memory of one process over {} epochs: {early} and then {late} bytes", storm.resident.len());
    assert!(*late <= early + (16 << 20), "memory has grown from {early} to {late} bytes");
    print_times("death on one host", storm.kills_on_one_host);
    print_times("death between hosts", storm.kills_between_hosts);
    print_times("silence", storm.stops);
}
