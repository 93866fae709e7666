//! How long 256 ranks take from asking the rendezvous for their world to their first barrier: the real server, the
//! real clients, the real communicators, each rank two threads of this process. A JSON line a round; the last says
//! what all rounds had.
//!
//! `cargo bench --bench connect -- [RANKS [ROUNDS]]`

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a benchmark may fail and read the clock")]

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use muster_collectives::{Communicator, Config, Peer, Secret, Transports};
use muster_rendezvous::quorum::{self, WorldSize};
use muster_rendezvous::{TokenKey, client, peer_secret, server};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(60);

/// How far a rank has come, in milliseconds since the first one began.
struct Reached {
    member: f64,
    connected: f64,
    met: f64,
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|word| word.parse().ok());
    let (ranks, rounds) = (numbers.next().unwrap_or(256usize), numbers.next().unwrap_or(7usize));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for transports in [Transports::All, Transports::TcpOnly] {
        let mut totals = Vec::new();
        for round in 0..rounds {
            let reached = runtime.block_on(run(ranks, transports, round));
            let slowest = |of: fn(&Reached) -> f64| reached.iter().map(of).fold(0.0, f64::max);
            let total = slowest(|rank| rank.met);
            println!(
                "{}",
                json!({"ranks": ranks, "transport": name(transports), "round": round,
                       "member_ms": slowest(|rank| rank.member), "connected_ms": slowest(|rank| rank.connected),
                       "barrier_ms": total})
            );
            totals.push(total);
        }
        totals.sort_by(f64::total_cmp);
        let (first, last) = (totals.first(), totals.last());
        println!(
            "{}",
            json!({"ranks": ranks, "transport": name(transports), "rounds": rounds, "min_ms": first,
                   "p50_ms": totals[totals.len() / 2], "max_ms": last})
        );
    }
}

fn name(transports: Transports) -> &'static str {
    if transports == Transports::All { "shm" } else { "tcp" }
}

async fn run(ranks: usize, transports: Transports, round: usize) -> Vec<Reached> {
    let listener = server::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (key, shutdown) = (TokenKey::from_bytes([7; 32]), CancellationToken::new());
    let job_token = key.job_token("default", "connect", &format!("uid-{round}"));
    let serving = tokio::spawn(server::serve(listener, key, quorum::Config::default(), shutdown.clone()));
    let started = Instant::now();
    let tasks: Vec<_> = (0..ranks)
        .map(|rank| {
            let own = TcpListener::bind("127.0.0.1:0").unwrap();
            let config = client::Config {
                server: address.clone(),
                job_token: job_token.clone(),
                host: format!("rank-{rank}"),
                incarnation: format!("{round}-{rank}"),
                address: own.local_addr().unwrap().to_string(),
                rank_hint: Some(rank as u32),
                size: WorldSize::fixed(ranks as u32),
                connect_timeout: LIMIT,
            };
            tokio::spawn(async move {
                let secret = Secret::new(peer_secret(&config.job_token));
                let session = client::join(config).unwrap();
                let membership = session.membership(0, LIMIT).await.unwrap();
                let member = milliseconds(started);
                let peers = membership.world.peers.iter().map(|peer| {
                    let address: SocketAddr = peer.address.parse().unwrap();
                    Peer { host: address.ip().to_string(), address }
                });
                let mut config = Config::new(membership.rank as usize, membership.epoch, peers.collect(), own, secret);
                config.transports = transports;
                // Collectives block, so a rank has a thread of its own from here on.
                let rank = tokio::task::spawn_blocking(move || {
                    let communicator = Communicator::connect(config).unwrap();
                    let connected = milliseconds(started);
                    communicator.barrier().unwrap();
                    (Reached { member, connected, met: milliseconds(started) }, communicator)
                });
                let (reached, communicator) = rank.await.unwrap();
                (reached, communicator, session)
            })
        })
        .collect();
    let mut reached = Vec::new();
    // Nobody leaves before all have met.
    let mut here = Vec::new();
    for task in tasks {
        let (rank, communicator, session) = task.await.unwrap();
        reached.push(rank);
        here.push((communicator, session));
    }
    tokio::task::spawn_blocking(move || drop(here)).await.unwrap();
    shutdown.cancel();
    serving.await.unwrap().unwrap();
    reached
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
