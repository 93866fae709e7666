//! Two hosts joined by a link of 1 Gbit/s: network namespaces of this machine, two ranks in each.
//!
//! They need root, `ip` and `tc`; without them the tests say so and do nothing. The ranks are this test's own binary,
//! started again with the test `rank_process` selected.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod common;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::process::{Process, Seat, random_secret, world};
use muster_collectives::{Communicator, Error, ReduceOp, Transports};

const HOSTS: [&str; 4] = ["a", "a", "b", "b"];
const LINK: f64 = 1e9;
const BYTES: usize = 100_000_000;
/// Takes two seconds over the link.
const LONG: usize = 250_000_000;

/// One rank: learns who the others are and how to reach them, and does what it is told, a line at a time.
#[test]
fn rank_process() {
    let Some(seat) = Seat::taken() else { return };
    let mut lines = std::io::stdin().lines().map(Result::unwrap);
    let words = lines.next().unwrap();
    let (transports, world) = words.split_once(' ').unwrap();
    let mut config = seat.config(world);
    config.transports = if transports == "flat" { Transports::TcpOnly } else { Transports::All };
    let communicator = Communicator::connect(config).unwrap();
    let mut data = Vec::new();
    for line in lines {
        match line.as_str() {
            "reduce" => println!("TOOK {}", reduce(&communicator).unwrap().as_micros()),
            "make" => {
                data.resize(LONG, communicator.rank() as u8 + 1);
                println!("MADE");
            }
            "broadcast" => {
                let result = communicator.broadcast(&mut data, 0);
                println!("BROADCAST {result:?} {}", data.iter().all(|byte| *byte == 1));
            }
            _ => {
                println!("RUNNING");
                let error = loop {
                    if let Err(error) = reduce_small(&communicator) {
                        break error;
                    }
                };
                println!("FAILED {:?} {error:?}", error.rank());
            }
        }
    }
}

fn reduce(communicator: &Communicator) -> Result<Duration, Error> {
    let value = |index: usize, rank: usize| ((index * 7 + rank * 3) % 32) as f32;
    let mut data: Vec<f32> = (0..BYTES / 4).map(|index| value(index, communicator.rank())).collect();
    communicator.barrier()?;
    let start = Instant::now();
    communicator.all_reduce(&mut data, ReduceOp::Sum)?;
    let took = start.elapsed();
    let sum = |index: usize| (0..communicator.world()).map(|rank| value(index, rank)).sum::<f32>();
    assert!(data.iter().enumerate().all(|(index, value)| *value == sum(index)), "sums over the link are right");
    Ok(took)
}

fn reduce_small(communicator: &Communicator) -> Result<(), Error> {
    let mut data = vec![1f32; 100_000];
    communicator.all_reduce(&mut data, ReduceOp::Sum)?;
    assert!(data.iter().all(|value| *value == communicator.world() as f32));
    Ok(())
}

fn command(program: &str, arguments: &str) -> Result<(), String> {
    let output = Command::new(program).args(arguments.split_whitespace()).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{program} {arguments}: {}",
            String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")
        )),
    }
}

/// Two namespaces and the link between them; gone when dropped.
struct Hosts {
    name: String,
}

impl Hosts {
    /// Says why not, where there can be none.
    fn new() -> Option<Hosts> {
        let missing = |why: &str| {
            println!("skipped: {why}");
            None
        };
        if !nix::unistd::geteuid().is_root() {
            return missing("network namespaces need root");
        }
        for program in ["ip", "tc"] {
            if let Err(error) = command(program, "-V") {
                return missing(&error);
            }
        }
        // Interfaces' names have at most 15 bytes.
        let digits = random_secret().chars().filter(char::is_ascii_hexdigit).take(10).collect::<String>();
        let hosts = Hosts { name: format!("mst{digits}") };
        match hosts.set_up() {
            Ok(()) => Some(hosts),
            Err(why) => missing(&why),
        }
    }

    fn set_up(&self) -> Result<(), String> {
        let name = &self.name;
        command("ip", &format!("netns add {name}a"))?;
        command("ip", &format!("netns add {name}b"))?;
        command("ip", &format!("link add {name}a netns {name}a type veth peer name {name}b netns {name}b"))?;
        for (side, number) in [("a", 1), ("b", 2)] {
            let own = format!("{name}{side}");
            command("ip", &format!("-n {own} addr add 10.77.0.{number}/24 dev {own}"))?;
            command("ip", &format!("-n {own} link set lo up"))?;
            command("ip", &format!("-n {own} link set {own} up"))?;
            command("tc", &format!("-n {own} qdisc add dev {own} root tbf rate 1gbit burst 256kb latency 20ms"))?;
        }
        Ok(())
    }

    /// Nothing passes between the two any more, and nobody is told.
    fn part(&self) {
        let name = &self.name;
        let dropped = command("ip", &format!("netns exec {name}a iptables -I INPUT -i {name}a -j DROP"))
            .and_then(|()| command("ip", &format!("netns exec {name}a iptables -I OUTPUT -o {name}a -j DROP")));
        if dropped.is_err() {
            command("ip", &format!("-n {name}a link set {name}a down")).unwrap();
        }
    }

    fn start(&self, transports: &str, timeout: Duration) -> Vec<Process> {
        let secret = random_secret();
        let start = |host: &&str| {
            let address = if *host == "a" { "10.77.0.1" } else { "10.77.0.2" };
            Process::start_in(&format!("{}{host}", self.name), address, "rank_process", &secret)
        };
        let mut ranks: Vec<Process> = HOSTS.iter().map(start).collect();
        let line = world(&ranks.iter().collect::<Vec<_>>(), &HOSTS, 1, timeout);
        ranks.iter_mut().for_each(|rank| rank.tell(&format!("{transports} {line}")));
        ranks
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for side in ["a", "b"] {
            // With a namespace its end of the link goes, and with that the other. Setting up may have failed midway.
            let _ = command("ip", &format!("netns del {}{side}", self.name));
        }
    }
}

/// The slowest rank's time for an all-reduce, the best of some.
fn time(ranks: &mut [Process], times: usize) -> Duration {
    let once = |ranks: &mut [Process]| {
        ranks.iter_mut().for_each(|rank| rank.tell("reduce"));
        let took = ranks.iter().map(|rank| rank.expect("TOOK").parse::<u64>().unwrap());
        Duration::from_micros(took.max().unwrap())
    };
    (0..times).map(|_| once(ranks)).min().unwrap()
}

/// Each host sends and receives the data once: at 1 Gbit/s, 100 MB take 0.8 s.
fn share(took: Duration) -> f64 {
    BYTES as f64 * 8.0 / LINK / took.as_secs_f64() * 100.0
}

#[test]
fn the_link_is_used_to_its_limit() {
    let Some(hosts) = Hosts::new() else { return };
    let took = time(&mut hosts.start("hierarchical", Duration::from_secs(60)), 3);
    println!("100 MB on 2 hosts x 2 ranks, 1 Gbit/s: {took:?}, {:.1} % of the link's limit", share(took));
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
#[ignore = "it measures, and takes a while"]
fn flat_beside_hierarchical() {
    let Some(hosts) = Hosts::new() else { return };
    for transports in ["flat", "hierarchical"] {
        let took = time(&mut hosts.start(transports, Duration::from_secs(60)), 5);
        println!("{transports}: {took:?}, {:.1} % of the link's limit", share(took));
    }
}

/// The members of a host waited for their leader as long as the whole buffer took it between the hosts, and called it
/// silent where that was longer than the deadline.
#[test]
fn a_leader_whose_data_moves_is_not_blamed_by_its_members() {
    let Some(hosts) = Hosts::new() else { return };
    let mut ranks = hosts.start("hierarchical", Duration::from_millis(700));
    // Making that much may take a busy machine longer than the deadline.
    ranks.iter_mut().for_each(|rank| rank.tell("make"));
    ranks.iter().for_each(|rank| drop(rank.expect("MADE")));
    ranks.iter_mut().for_each(|rank| rank.tell("broadcast"));
    for (number, rank) in ranks.iter().enumerate() {
        assert_eq!(rank.expect("BROADCAST"), "Ok(()) true", "rank {number}");
    }
}

#[test]
fn a_partition_ends_every_call_and_names_the_other_side() {
    let Some(hosts) = Hosts::new() else { return };
    for transports in ["hierarchical", "flat"] {
        let timeout = Duration::from_millis(1000);
        let mut ranks = hosts.start(transports, timeout);
        ranks.iter_mut().for_each(|rank| rank.tell("run"));
        ranks.iter().for_each(|rank| drop(rank.expect("RUNNING")));
        // They are somewhere in their operations; when one has been completed does not matter.
        std::thread::sleep(Duration::from_millis(100));
        hosts.part();
        let parted = Instant::now();
        for (number, rank) in ranks.iter().enumerate() {
            let error = rank.expect("FAILED");
            let other_side: &[&str] =
                if HOSTS[number] == "a" { &["Some(2)", "Some(3)"] } else { &["Some(0)", "Some(1)"] };
            assert!(other_side.iter().any(|rank| error.starts_with(rank)), "{transports} rank {number}: {error}");
        }
        // The deadline, grace for those that wait for others, and what a busy machine adds.
        assert!(parted.elapsed() < timeout + Duration::from_secs(9), "{:?}", parted.elapsed());
        drop(ranks);
        let _ = command("ip", &format!("-n {0}a link set {0}a up", hosts.name));
        let _ = command("ip", &format!("netns exec {}a iptables -F", hosts.name));
    }
}

#[test]
fn nothing_is_left_of_the_hosts() {
    let Some(hosts) = Hosts::new() else { return };
    let name = hosts.name.clone();
    assert!(std::path::Path::new(&format!("/run/netns/{name}a")).exists());
    drop(hosts);
    assert!(!std::path::Path::new(&format!("/run/netns/{name}a")).exists());
    assert!(!std::path::Path::new(&format!("/run/netns/{name}b")).exists());
}
