//! Ranks as processes: what a kill or a stop of one of them does to the others, and what is left behind.
//!
//! The ranks are this test's own binary, started again with the test `rank_process` selected.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use muster_collectives::{Communicator, Config, Error, Peer, ReduceOp, Secret};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SECRET: &str = "MUSTER_TEST_SECRET";
const RANK: &str = "MUSTER_TEST_RANK";
const TIMEOUT: &str = "MUSTER_TEST_TIMEOUT_MS";

/// One rank: says where it listens, learns who the others are, and reduces until that fails.
#[test]
fn rank_process() {
    let Ok(rank) = std::env::var(RANK) else { return };
    let number: usize = rank.parse().unwrap();
    let timeout = Duration::from_millis(std::env::var(TIMEOUT).unwrap().parse().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // The harness has begun a line of its own.
    println!("\nADDRESS {}", listener.local_addr().unwrap());
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (epoch, line) = line.split_once(' ').unwrap();
        let peers: Vec<Peer> = line
            .split(' ')
            .map(|word| {
                let (host, address) = word.split_once('=').unwrap();
                Peer { host: host.to_owned(), address: address.parse().unwrap() }
            })
            .collect();
        let own = listener.local_addr().unwrap();
        let rank = peers.iter().position(|peer| peer.address == own).unwrap();
        let secret = Secret::new(std::env::var(SECRET).unwrap());
        let mut config = Config::new(rank, epoch.parse().unwrap(), peers, listener.try_clone().unwrap(), secret);
        config.timeout = timeout;
        let error = match Communicator::connect(config) {
            Ok(communicator) => reduce(&communicator),
            Err(error) => error,
        };
        println!("FAILED {error:?} on process {number}");
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
        shared.fill(1.0);
        if let Err(error) = communicator.all_reduce(&mut shared, ReduceOp::Sum) {
            return error;
        }
        assert!(shared.iter().all(|value| *value == world));
    }
}

struct Rank {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Rank {
    fn start(rank: usize, secret: &str, timeout: Duration) -> Rank {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "rank_process", "--nocapture"])
            .env(RANK, rank.to_string())
            .env(SECRET, secret)
            .env(TIMEOUT, timeout.as_millis().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let address = expect(&mut output, "ADDRESS").parse().unwrap();
        Rank { child, input, output, address }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn expect(&mut self, word: &str) -> String {
        expect(&mut self.output, word)
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What follows `word` on the next line that begins with it.
fn expect(output: &mut BufReader<ChildStdout>, word: &str) -> String {
    loop {
        let mut line = String::new();
        assert!(output.read_line(&mut line).unwrap() > 0, "the rank ended before it said {word}");
        if let Some(rest) = line.trim_end().strip_prefix(word) {
            return rest.trim_start().to_owned();
        }
    }
}

fn start(hosts: &[&str], timeout: Duration) -> Vec<Rank> {
    let mut bytes = [0u8; 16];
    std::fs::File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes)).unwrap();
    let secret = format!("{bytes:02x?}");
    let mut ranks: Vec<Rank> = (0..hosts.len()).map(|rank| Rank::start(rank, &secret, timeout)).collect();
    connect(&mut ranks, hosts, 1);
    ranks
}

fn connect(ranks: &mut [Rank], hosts: &[&str], epoch: u64) {
    let peers: Vec<String> =
        hosts.iter().zip(ranks.iter()).map(|(host, rank)| format!("{host}={}", rank.address)).collect();
    for rank in ranks.iter_mut() {
        writeln!(rank.input, "{epoch} {}", peers.join(" ")).unwrap();
    }
    ranks.iter_mut().for_each(|rank| {
        rank.expect("READY");
    });
}

const SHAPES: [&[&str]; 4] = [&["a", "a"], &["a", "a", "a"], &["a", "b", "c"], &["a", "a", "b", "b"]];

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
        for (rank, process) in ranks.iter_mut().enumerate().filter(|(rank, _)| *rank != victim) {
            let error = process.expect("FAILED");
            assert!(error.starts_with(&format!("PeerLost {{ rank: {victim},")), "rank {rank} of {hosts:?}: {error}");
        }
        delays.push(killed.elapsed());
        // The next epoch, without it.
        drop(ranks.remove(victim));
        let mut hosts = hosts.to_vec();
        hosts.remove(victim);
        connect(&mut ranks, &hosts, 2);
    }
    delays.sort();
    println!("death to the last error: median {:?}, longest {:?}", delays[delays.len() / 2], delays[delays.len() - 1]);
    assert!(delays[delays.len() / 2] < Duration::from_secs(1));
}

#[test]
fn a_stopped_rank_is_named_within_the_deadline() {
    for (number, hosts) in SHAPES.iter().enumerate() {
        let mut ranks = start(hosts, Duration::from_millis(700));
        std::thread::sleep(moment(number));
        let victim = number % hosts.len();
        let stopped = Instant::now();
        ranks[victim].signal(Signal::SIGSTOP);
        for (rank, process) in ranks.iter_mut().enumerate().filter(|(rank, _)| *rank != victim) {
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
    let sockets: Vec<String> = ranks.iter().flat_map(|rank| named_sockets(rank.child.id())).collect();
    assert!(sockets.is_empty(), "the socket's name is gone once all are connected: {sockets:?}");
    for rank in &ranks {
        rank.signal(Signal::SIGKILL);
    }
    drop(ranks);
    assert_eq!(shared_memory_files(), before);
}

fn shared_memory_files() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir("/dev/shm")
        .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.retain(|name| name.contains("muster"));
    names.sort();
    names
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
