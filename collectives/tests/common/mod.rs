//! Worlds for tests: ranks as threads of one process.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

pub(crate) mod process;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use muster_collectives::{Communicator, Config, Error, Peer, Reading, Secret};

/// Secrets keep worlds of tests that run at the same time apart.
pub(crate) fn secret() -> Secret {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Secret::new(format!("secret of test world {} {number}", std::process::id()))
}

/// One configuration a rank; `hosts` names each rank's host.
pub(crate) fn configs(hosts: &[&str], epoch: u64, secret: &Secret) -> Vec<Config> {
    let listeners: Vec<TcpListener> = hosts.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let peers: Vec<Peer> = hosts
        .iter()
        .zip(&listeners)
        .map(|(host, listener)| Peer { host: (*host).to_owned(), address: listener.local_addr().unwrap() })
        .collect();
    listeners
        .into_iter()
        .enumerate()
        .map(|(rank, listener)| {
            let mut config = Config::new(rank, epoch, peers.clone(), listener, secret.clone());
            config.connect_timeout = Duration::from_secs(60);
            config.timeout = Duration::from_secs(60);
            config
        })
        .collect()
}

/// Runs `rank` once for every rank, each in a thread with its communicator, and gives what they return.
pub(crate) fn run<R: Send>(hosts: &[&str], rank: impl Fn(&Communicator) -> R + Sync) -> Vec<R> {
    run_with(configs(hosts, 1, &secret()), rank)
}

/// Runs it twice: what moves goes through windows, and is read where it lies, however little it is.
pub(crate) fn run_both_ways(hosts: &[&str], rank: impl Fn(&Communicator) + Sync) {
    for reading in [Reading::Never, Reading::From(1)] {
        let mut configs = configs(hosts, 1, &secret());
        configs.iter_mut().for_each(|config| config.shm.reading = reading);
        run_with(configs, &rank);
    }
}

pub(crate) fn run_with<R: Send>(configs: Vec<Config>, rank: impl Fn(&Communicator) -> R + Sync) -> Vec<R> {
    connect_with(configs, |communicator| rank(&communicator.unwrap()))
}

pub(crate) fn connect_with<R: Send>(
    configs: Vec<Config>,
    rank: impl Fn(Result<Communicator, Error>) -> R + Sync,
) -> Vec<R> {
    let rank = &rank;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            configs.into_iter().map(|config| scope.spawn(move || rank(Communicator::connect(config)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// All ranks on one host, each on its own, and mixtures.
pub(crate) fn shapes(world: usize) -> Vec<Vec<&'static str>> {
    const NAMES: [&str; 9] = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    let mut shapes = vec![vec!["a"; world], NAMES[..world].to_vec()];
    if world > 2 {
        shapes.push((0..world).map(|rank| NAMES[rank % 2]).collect());
        shapes.push((0..world).map(|rank| if rank + 1 == world { "z" } else { "a" }).collect());
    }
    shapes
}
