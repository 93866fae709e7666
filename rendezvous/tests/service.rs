//! Server and clients over loopback sockets.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use muster_rendezvous::TokenKey;
use muster_rendezvous::client::{self, JoinError, Session, View};
use muster_rendezvous::quorum::{self, WorldSize};
use muster_rendezvous::server;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(60);

/// They filled the queue of connections, and who found no room came a second later.
#[tokio::test]
async fn a_large_world_finds_room_at_once() {
    let listener = server::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    // Nobody accepts: all of them wait in the queue.
    let all = async {
        let mut held = Vec::new();
        for _ in 0..400 {
            held.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
    };
    tokio::time::timeout(LONG, all).await.unwrap();
}

struct Server {
    address: String,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(address: &str) -> Server {
        let listener = loop {
            // The port of a server that has just ended may take a moment to be free.
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let address = listener.local_addr().unwrap().to_string();
        let shutdown = CancellationToken::new();
        let config = quorum::Config { settle: Duration::from_millis(200), ..quorum::Config::default() };
        let serving = server::serve(listener, key(), config, shutdown.clone());
        let task = tokio::spawn(async move { serving.await.unwrap() });
        Server { address, shutdown, task }
    }

    /// Ends as a killed process does: connections are cut, nothing is said.
    async fn kill(self) {
        self.shutdown.cancel();
        let _ = self.task.await;
    }
}

fn key() -> TokenKey {
    TokenKey::from_bytes([3; 32])
}

fn config(server: &Server, host: &str, incarnation: &str, rank: u32, world: u32) -> client::Config {
    client::Config {
        server: server.address.clone(),
        job_token: key().job_token("default", "mnist", "uid-1"),
        host: host.into(),
        incarnation: incarnation.into(),
        address: "127.0.0.1:4000".into(),
        rank_hint: Some(rank),
        size: WorldSize::fixed(world),
        connect_timeout: Duration::from_secs(5),
    }
}

fn join(server: &Server, host: &str, incarnation: &str, rank: u32) -> Session {
    client::join(config(server, host, incarnation, rank, 2)).unwrap()
}

#[tokio::test]
async fn two_members_meet_and_one_is_replaced() {
    let server = Server::start("127.0.0.1:0").await;
    let master = join(&server, "master-0", "a", 0);
    let worker = join(&server, "worker-0", "a", 1);
    let (m, w) = (master.membership(0, LONG).await.unwrap(), worker.membership(0, LONG).await.unwrap());
    assert_eq!((m.epoch, m.rank, w.rank, m.size()), (1, 0, 1, 2));
    assert_eq!(m.world, w.world);

    drop(worker);
    let why = master.ended(1).await;
    assert!(why.contains("rank 1 (worker-0)"), "{why}");

    let worker = join(&server, "worker-0", "b", 1);
    let (m, w) = (master.membership(1, LONG).await.unwrap(), worker.membership(0, LONG).await.unwrap());
    assert_eq!((m.epoch, m.rank, w.epoch, w.rank), (2, 0, 2, 1));

    master.leave(true).await;
    worker.leave(true).await;
    let late = join(&server, "worker-0", "c", 1);
    assert_eq!(late.membership(0, LONG).await, Err(JoinError::Finished));
    server.kill().await;
}

#[tokio::test]
async fn broken_collectives_lead_to_the_next_epoch() {
    let server = Server::start("127.0.0.1:0").await;
    let master = join(&server, "master-0", "a", 0);
    let worker = join(&server, "worker-0", "a", 1);
    master.membership(0, LONG).await.unwrap();
    worker.membership(0, LONG).await.unwrap();
    worker.broken(1, "rank 0 closed its socket".into()).await;
    let why = master.ended(1).await;
    assert!(why.contains("rank 0 closed its socket"), "{why}");
    assert_eq!(master.membership(1, LONG).await.unwrap().epoch, 2);
    assert_eq!(worker.membership(1, LONG).await.unwrap().epoch, 2);
}

#[tokio::test]
async fn the_death_of_the_server_ends_no_epoch() {
    let server = Server::start("127.0.0.1:0").await;
    let address = server.address.clone();
    let master = join(&server, "master-0", "a", 0);
    let worker = join(&server, "worker-0", "a", 1);
    let before = master.membership(0, LONG).await.unwrap();
    worker.membership(0, LONG).await.unwrap();

    server.kill().await;
    assert_eq!(master.view(), View::Member(before.clone()));
    let server = Server::start(&address).await;
    // A third process learns that the world is full: the server knows the old members again.
    let mut stranger = config(&server, "worker-1", "a", 1, 2);
    stranger.rank_hint = None;
    let stranger = client::join(stranger).unwrap();
    let told = tokio::time::timeout(LONG, async {
        loop {
            if let View::Waiting(reason) = stranger.view()
                && reason.contains("all 2 ranks are taken")
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    told.await.unwrap();
    assert_eq!(master.view(), View::Member(before));
    drop(worker);
    master.ended(1).await;
    assert_eq!(stranger.membership(0, LONG).await.unwrap().rank, 1);
}

#[tokio::test]
async fn strangers_are_told_why_they_are_refused() {
    let server = Server::start("127.0.0.1:0").await;
    let mut stranger = config(&server, "x", "a", 0, 2);
    stranger.job_token = TokenKey::from_bytes([4; 32]).job_token("default", "mnist", "uid-1");
    let refused = client::join(stranger).unwrap().membership(0, LONG).await.unwrap_err();
    assert_eq!(refused, JoinError::Refused("the job token was not issued by this server".into()));

    let lost = config(&server, "x", "a", 5, 2);
    let refused = client::join(lost).unwrap().membership(0, LONG).await.unwrap_err();
    assert!(matches!(&refused, JoinError::Refused(why) if why.contains("rank 5 does not fit")), "{refused}");
}

#[tokio::test]
async fn a_replaced_process_does_not_come_back() {
    let server = Server::start("127.0.0.1:0").await;
    let old = join(&server, "worker-0", "a", 1);
    let master = join(&server, "master-0", "a", 0);
    old.membership(0, LONG).await.unwrap();
    let new = join(&server, "worker-0", "b", 1);
    assert_eq!(new.membership(0, LONG).await.unwrap().epoch, 2);
    let over = old.membership(1, LONG).await.unwrap_err();
    assert_eq!(over, JoinError::Refused("a newer process of this host has joined".into()));
    assert_eq!(master.membership(1, LONG).await.unwrap().epoch, 2);
}

#[tokio::test]
async fn jobs_do_not_see_each_other() {
    let server = Server::start("127.0.0.1:0").await;
    let one = join(&server, "a", "1", 0);
    let mut other = config(&server, "b", "1", 1, 2);
    other.job_token = key().job_token("default", "mnist", "uid-2");
    let other = client::join(other).unwrap();
    let short = Duration::from_millis(300);
    assert!(matches!(one.membership(0, short).await, Err(JoinError::Timeout { .. })));
    assert!(matches!(other.membership(0, short).await, Err(JoinError::Timeout { .. })));
}

#[tokio::test]
async fn a_large_world_gathers_at_once() {
    const WORLD: u32 = 200;
    let server = Server::start("127.0.0.1:0").await;
    let sessions: Vec<Session> = (0..WORLD)
        .map(|rank| client::join(config(&server, &format!("worker-{rank}"), "a", rank, WORLD)).unwrap())
        .collect();
    for (session, rank) in sessions.iter().zip(0..) {
        let membership = session.membership(0, LONG).await.unwrap();
        assert_eq!((membership.epoch, membership.rank, membership.size()), (1, rank, WORLD));
    }
}
