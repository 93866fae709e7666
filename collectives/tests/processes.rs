//! Ranks as processes: what a kill or a stop of one of them does to the others, and what is left behind.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod common;

use std::net::TcpListener;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::process::{Process, Seat, described, random_secret, shared_memory_files, world};
use muster_collectives::{Communicator, Config, Error, Peer, Reading, ReduceOp, Secret};
use nix::sys::signal::Signal;

/// Makes a rank take much memory.
const LARGE: &str = "LARGE";

/// Makes a rank do nothing but meet the others.
const MEETS: &str = "MEETS";

/// One rank: learns who the others are, and reduces until that fails.
#[test]
fn rank_process() {
    let Some(seat) = Seat::taken() else { return };
    let (mut ballast, mut meets) = (Vec::new(), false);
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        if line == LARGE {
            ballast.resize(600 << 20, 1u8);
            continue;
        }
        if line == MEETS {
            meets = true;
            continue;
        }
        let mut config = seat.config(&line);
        // However little it is.
        config.shm.reading = Reading::From(1);
        let error = match Communicator::connect(config) {
            Ok(communicator) if meets => meet(&communicator),
            Ok(communicator) => reduce(&communicator),
            Err(error) => error,
        };
        println!("FAILED {error:?}");
    }
}

fn reduce(communicator: &Communicator) -> Error {
    let mut shared = match communicator.allocate::<f32>(50_000) {
        Ok(shared) => shared,
        Err(error) => return error,
    };
    let world = communicator.world() as f32;
    println!("READY");
    loop {
        let mut private = vec![1f32; 200_000];
        if let Err(error) = communicator.all_reduce(&mut private, ReduceOp::Sum) {
            return error;
        }
        assert!(private.iter().all(|value| *value == world));
        // What moves is read out of the others' memory.
        let own = vec![communicator.rank() as f32; 200_000];
        let mut all = vec![-1f32; own.len() * communicator.world()];
        if let Err(error) = communicator.all_gather(&own, &mut all) {
            return error;
        }
        assert!(all.chunks(own.len()).enumerate().all(|(rank, part)| part.iter().all(|item| *item == rank as f32)));
        let (next, previous) = (
            (communicator.rank() + 1) % communicator.world(),
            (communicator.rank() + communicator.world() - 1) % communicator.world(),
        );
        if communicator.world() > 1
            && let Err(error) = communicator.send_receive(&own, next, &mut private, previous)
        {
            return error;
        }
        assert!(communicator.world() == 1 || private.iter().all(|item| *item == previous as f32));
        shared.fill(1.0);
        if let Err(error) = communicator.all_reduce(&mut shared, ReduceOp::Sum) {
            return error;
        }
        assert!(shared.iter().all(|value| *value == world));
    }
}

fn meet(communicator: &Communicator) -> Error {
    println!("READY");
    loop {
        if let Err(error) = communicator.barrier() {
            return error;
        }
    }
}

fn start(hosts: &[&str], timeout: Duration) -> Vec<Process> {
    let secret = random_secret();
    let mut ranks: Vec<Process> = hosts.iter().map(|_| Process::start("rank_process", &secret)).collect();
    connect(&mut ranks, hosts, 1, timeout);
    ranks
}

fn connect(ranks: &mut [Process], hosts: &[&str], epoch: u64, timeout: Duration) {
    let line = world(&ranks.iter().collect::<Vec<_>>(), hosts, epoch, timeout);
    ranks.iter_mut().for_each(|rank| rank.tell(&line));
    ranks.iter().for_each(|rank| drop(rank.expect("READY")));
}

const SHAPES: [&[&str]; 4] = [&["a", "a"], &["a", "a", "a"], &["a", "b", "c"], &["a", "a", "b", "b"]];

/// Found with a rank that died while another was still on its way: the others waited for that one until the deadline.
#[test]
fn a_death_while_ranks_connect_is_told_to_those_that_are_there() {
    for hosts in [["a", "a", "a", "a"], ["a", "b", "c", "d"], ["a", "b", "a", "b"]] {
        let secret = random_secret();
        let mut ranks: Vec<Process> = hosts.iter().map(|_| Process::start("rank_process", &secret)).collect();
        let line = world(&ranks.iter().collect::<Vec<_>>(), &hosts, 1, Duration::from_secs(60));
        // The last one never comes.
        ranks[..3].iter_mut().for_each(|rank| rank.tell(&line));
        // Long enough to be connected to those that are there.
        std::thread::sleep(Duration::from_millis(300));
        let start = Instant::now();
        ranks[1].signal(Signal::SIGKILL);
        for rank in [0, 2] {
            let error = ranks[rank].expect("FAILED");
            assert!(error.starts_with("PeerLost { rank: 1"), "{hosts:?}, rank {rank}: {error}");
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
}

/// A different point of the operations each time.
fn moment(number: usize) -> Duration {
    Duration::from_micros(1000 + number as u64 * 7919 % 20_000)
}

#[test]
fn a_killed_rank_is_named_by_all_others_and_the_rest_go_on() {
    let mut delays = Vec::new();
    for (number, hosts) in SHAPES.iter().cycle().take(24).enumerate() {
        let mut ranks = start(hosts, Duration::from_secs(60));
        std::thread::sleep(moment(number));
        let victim = number / SHAPES.len() % hosts.len();
        let killed = Instant::now();
        ranks[victim].signal(Signal::SIGKILL);
        for (rank, process) in ranks.iter().enumerate().filter(|(rank, _)| *rank != victim) {
            let error = process.expect("FAILED");
            assert!(error.starts_with(&format!("PeerLost {{ rank: {victim},")), "rank {rank} of {hosts:?}: {error}");
        }
        delays.push(killed.elapsed());
        // The next epoch, without it.
        drop(ranks.remove(victim));
        let mut hosts = hosts.to_vec();
        hosts.remove(victim);
        connect(&mut ranks, &hosts, 2, Duration::from_secs(60));
    }
    delays.sort();
    println!("death to the last error: median {:?}, longest {:?}", delays[delays.len() / 2], delays[delays.len() - 1]);
    assert!(delays[delays.len() / 2] < Duration::from_secs(1));
}

/// Giving back so much memory takes the kernel longer than the others may take to learn of the death.
#[test]
fn the_death_of_a_large_process_is_told_before_its_memory_is_given_back() {
    let mut delays = Vec::new();
    let mut before_the_end = 0;
    for victim in [0, 1, 2, 0, 1, 2] {
        let secret = random_secret();
        let mut ranks: Vec<Process> = (0..3).map(|_| Process::start("rank_process", &secret)).collect();
        ranks[victim].tell(LARGE);
        connect(&mut ranks, &["a", "a", "a"], 1, Duration::from_secs(60));
        let killed = Instant::now();
        ranks[victim].signal(Signal::SIGKILL);
        for (rank, process) in ranks.iter().enumerate().filter(|(rank, _)| *rank != victim) {
            let error = process.expect("FAILED");
            assert!(error.starts_with(&format!("PeerLost {{ rank: {victim},")), "rank {rank}: {error}");
        }
        delays.push(killed.elapsed());
        before_the_end += u32::from(!ranks[victim].has_ended());
    }
    delays.sort();
    println!("death of a large process to the last error: {delays:?}, {before_the_end} before its end");
    assert!(before_the_end > 0 || !sleeps_on_several_words(), "{delays:?}");
}

/// Found where more ranks than the kernel lets a thread wait for share a host: their deaths were told afterwards only.
#[test]
fn a_death_among_very_many_ranks_of_a_host_is_told_as_early() {
    const RANKS: usize = 140;
    let mut before_the_end = 0;
    for victim in [70, 1, RANKS - 1] {
        let secret = random_secret();
        let mut process = Process::start("rank_process", &secret);
        process.tell(LARGE);
        process.tell(MEETS);
        let mut listeners: Vec<Option<TcpListener>> =
            (0..RANKS).map(|rank| (rank != victim).then(|| TcpListener::bind("127.0.0.1:0").unwrap())).collect();
        let address = |listener: &Option<TcpListener>| match listener {
            Some(listener) => listener.local_addr().unwrap(),
            None => process.address,
        };
        let peers: Vec<Peer> =
            listeners.iter().map(|own| Peer { host: "a".to_owned(), address: address(own) }).collect();
        process.tell(&described(&peers, 1, Duration::from_secs(60)));
        let (sender, failures) = channel();
        std::thread::scope(|scope| {
            for (rank, listener) in listeners.iter_mut().enumerate() {
                let Some(listener) = listener.take() else { continue };
                let config = Config::new(rank, 1, peers.clone(), listener, Secret::new(secret.clone()));
                let sender = sender.clone();
                scope.spawn(move || {
                    let communicator = Communicator::connect(config).unwrap();
                    let _ = sender.send((rank, meet(&communicator)));
                });
            }
            drop(sender);
            process.expect("READY");
            process.signal(Signal::SIGKILL);
            let mut failures = failures.into_iter().peekable();
            assert!(failures.peek().is_some());
            before_the_end += u32::from(!process.has_ended());
            for (rank, error) in failures {
                assert!(matches!(error, Error::PeerLost { rank, .. } if rank == victim), "rank {rank}: {error:?}");
            }
        });
    }
    println!("{before_the_end} of 3 deaths were told before the end of the process");
    assert!(before_the_end > 0 || !sleeps_on_several_words());
}

/// Whether the kernel can: Linux 5.16 and later.
fn sleeps_on_several_words() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|word| word.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(16))
}

#[test]
fn a_stopped_rank_is_named_within_the_deadline() {
    for (number, hosts) in SHAPES.iter().enumerate() {
        let ranks = start(hosts, Duration::from_millis(700));
        std::thread::sleep(moment(number));
        let victim = number % hosts.len();
        let stopped = Instant::now();
        ranks[victim].signal(Signal::SIGSTOP);
        for (rank, process) in ranks.iter().enumerate().filter(|(rank, _)| *rank != victim) {
            let error = process.expect("FAILED");
            assert!(error.starts_with(&format!("Timeout {{ rank: {victim},")), "rank {rank} of {hosts:?}: {error}");
        }
        assert!(stopped.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn nothing_is_left_behind() {
    let before = shared_memory_files();
    let ranks = start(&["a", "a", "b", "b"], Duration::from_secs(60));
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(shared_memory_files(), before, "no names while it runs");
    let sockets: Vec<String> = ranks.iter().flat_map(|rank| named_sockets(rank.id())).collect();
    assert!(sockets.is_empty(), "the socket's name is gone once all are connected: {sockets:?}");
    for rank in &ranks {
        rank.signal(Signal::SIGKILL);
    }
    drop(ranks);
    assert_eq!(shared_memory_files(), before);
}

/// Listening sockets of ours that a process has open.
fn named_sockets(pid: u32) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let open: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    table
        .lines()
        .skip(1)
        .filter(|line| line.contains("@muster-"))
        .filter(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            // Flag 0x10000: it accepts connections.
            words[3] == "00010000" && open.contains(&format!("socket:[{}]", words[6]))
        })
        .map(str::to_owned)
        .collect()
}
