//! All-reduce over TCP, measured: how the built-in table of algorithms was made.
//!
//! ```text
//! tcp_bench [ranks=2] [sizes=4096,65536,1048576,16777216,100000000] [algorithm=table|direct|halving|ring|tree]
//!           [streams=N] [compression=bf16] [hosts=a,a,b,b] [namespaces=x,x,y,y] [addresses=..] [dtype=bf16] [tls=yes] [pin=yes]
//! tcp_bench connect [ranks=256]
//! ```
//! Ranks are processes, by default on one host each and so over TCP alone; ranks of equal `hosts` share memory. With
//! `namespaces` each rank runs in a network namespace, at the address that `addresses` gives for it. Prints the time
//! of one operation on rank 0, after a barrier, in microseconds.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use half::bf16;
use muster_collectives::{
    Algorithm, Communicator, Compression, Config, DataMut, Element, Peer, ReduceOp, Rule, Secret, TcpOptions,
};

const SECRET: &str = "only for measuring: everybody knows it";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let settings: BTreeMap<&str, &str> = arguments.iter().filter_map(|argument| argument.split_once('=')).collect();
    match arguments.first().map(String::as_str) {
        Some("rank") => rank(&settings),
        Some("connect") => connect(settings.get("ranks").map_or(256, |ranks| ranks.parse().unwrap())),
        _ => lead(&arguments, &settings),
    }
}

/// The value for `rank` in a list with one for each.
fn of_rank<'a>(settings: &BTreeMap<&str, &'a str>, name: &str, rank: usize) -> Option<&'a str> {
    settings.get(name).map(|list| list.split(',').nth(rank).unwrap_or_else(|| panic!("{name} for every rank")))
}

fn lead(arguments: &[String], settings: &BTreeMap<&str, &str>) {
    let ranks: usize = settings.get("ranks").map_or(2, |ranks| ranks.parse().unwrap());
    let program = std::env::current_exe().unwrap();
    let mut children: Vec<(Child, ChildStdin, BufReader<ChildStdout>, String)> = (0..ranks)
        .map(|rank| {
            let mut command = match of_rank(settings, "namespaces", rank) {
                Some(namespace) => {
                    let mut command = Command::new("ip");
                    command.args(["netns", "exec", namespace]).arg(&program);
                    command
                }
                None => Command::new(&program),
            };
            command.arg("rank").arg(format!("rank={rank}")).args(arguments);
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let input = child.stdin.take().unwrap();
            let mut output = BufReader::new(child.stdout.take().unwrap());
            let mut address = String::new();
            output.read_line(&mut address).unwrap();
            (child, input, output, address.trim().to_owned())
        })
        .collect();
    let addresses: Vec<String> = children.iter().map(|(.., address)| address.clone()).collect();
    for (_, input, ..) in &mut children {
        writeln!(input, "{}", addresses.join(" ")).unwrap();
    }
    for (child, _, output, _) in &mut children {
        output.lines().for_each(|line| println!("{}", line.unwrap()));
        assert!(child.wait().unwrap().success());
    }
}

fn rank(settings: &BTreeMap<&str, &str>) {
    let rank: usize = settings["rank"].parse().unwrap();
    if settings.contains_key("pin") {
        let mut set = nix::sched::CpuSet::new();
        set.set(rank % std::thread::available_parallelism().unwrap().get()).unwrap();
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).unwrap();
    }
    let address = of_rank(settings, "addresses", rank).unwrap_or("127.0.0.1");
    let listener = TcpListener::bind((address, 0)).unwrap();
    println!("{}", listener.local_addr().unwrap());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let peers: Vec<Peer> = line
        .split_whitespace()
        .enumerate()
        .map(|(rank, address)| Peer {
            host: of_rank(settings, "hosts", rank).map_or_else(|| format!("host {rank}"), str::to_owned),
            address: address.parse().unwrap(),
        })
        .collect();
    let algorithms = match settings.get("algorithm").copied().unwrap_or("table") {
        "table" => Vec::new(),
        name => vec![Rule {
            ranks_up_to: usize::MAX,
            bytes_up_to: usize::MAX,
            algorithm: match name {
                "direct" => Algorithm::Direct,
                "halving" => Algorithm::RecursiveHalvingDoubling,
                "ring" => Algorithm::Ring,
                "tree" => Algorithm::Tree,
                _ => panic!("no algorithm {name}"),
            },
        }],
    };
    let mut config = Config::new(rank, 1, peers, listener, Secret::new(SECRET));
    config.tcp = TcpOptions {
        streams: settings.get("streams").map(|streams| streams.parse().unwrap()),
        algorithms,
        tls: settings.contains_key("tls"),
        compression: settings.contains_key("compression").then_some(Compression::Bf16),
    };
    let communicator = Communicator::connect(config).unwrap();
    let sizes = settings.get("sizes").copied().unwrap_or("4096,65536,1048576,16777216,100000000");
    for size in sizes.split(',') {
        match settings.get("dtype") {
            Some(&"bf16") => measure(&communicator, size.parse().unwrap(), bf16::from_f32),
            _ => measure(&communicator, size.parse().unwrap(), |value: f32| value),
        }
    }
}

fn measure<T: Element>(communicator: &Communicator, size: usize, of: fn(f32) -> T)
where
    for<'a> DataMut<'a>: From<&'a mut Vec<T>>,
{
    let (rank, world) = (communicator.rank(), communicator.world());
    let count = size / size_of::<T>();
    let rounds = (200_000_000 / size.max(1)).clamp(8, 3000);
    // Values that rounding to bf16 keeps.
    let value = |index: usize, rank: usize| ((index + rank) % 16) as f32;
    let mut data = vec![of(0.0); count];
    let mut times = Vec::with_capacity(rounds);
    let budget = Instant::now() + Duration::from_secs(20);
    for round in 0..rounds + 3 {
        data.iter_mut().enumerate().for_each(|(index, element)| *element = of(value(index + round, rank)));
        communicator.barrier().unwrap();
        let start = Instant::now();
        communicator.all_reduce(&mut data, ReduceOp::Sum).unwrap();
        if round >= 3 {
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        let sum = |index: usize| (0..world).map(|rank| value(index + round, rank)).sum::<f32>();
        for index in (0..count).step_by(1 + count / 1000) {
            // Sums of up to nine such values need no more than eight bits.
            assert!(world > 9 || data[index] == of(sum(index)), "element {index} of {size} bytes");
        }
        let mut over = [u8::from(Instant::now() > budget && times.len() >= 3)];
        communicator.broadcast(&mut over, 0).unwrap();
        if over == [1] {
            break;
        }
    }
    if rank == 0 {
        times.sort_by(f64::total_cmp);
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        let rate = size as f64 / at(50) / 1e3;
        println!(
            "{size:>11} bytes {:>4} times: p10 {:>10.1} p50 {:>10.1} p99 {:>10.1} us {rate:>7.3} GB/s",
            times.len(),
            at(10),
            at(50),
            at(99)
        );
    }
}

/// Ranks as threads: from the first that begins to the last that is connected.
fn connect(ranks: usize) {
    let listeners: Vec<TcpListener> = (0..ranks).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<SocketAddr> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    let peers: Vec<Peer> =
        addresses.iter().map(|address| Peer { host: address.to_string(), address: *address }).collect();
    let start = Instant::now();
    let ended = std::sync::Barrier::new(ranks);
    let (times, barriers): (Vec<Duration>, Vec<Duration>) = std::thread::scope(|scope| {
        let threads: Vec<_> = listeners
            .into_iter()
            .enumerate()
            .map(|(rank, listener)| {
                let (peers, ended) = (peers.clone(), &ended);
                scope.spawn(move || {
                    let config = Config::new(rank, 1, peers, listener, Secret::new(SECRET));
                    let communicator = Communicator::connect(config).unwrap();
                    let connected = start.elapsed();
                    communicator.barrier().unwrap();
                    let met = start.elapsed();
                    ended.wait();
                    (connected, met)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).unzip()
    });
    println!(
        "{ranks} ranks connected in {:?}, and met in a barrier {:?} after the start",
        times.iter().max().unwrap(),
        barriers.iter().max().unwrap()
    );
}
