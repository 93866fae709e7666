//! The process as a member of its job: joins epochs, hears when one ends, hears when to stop.
//!
//! The talking is done by one background thread; training itself is synchronous. The end of an epoch aborts its
//! communicator, so that no rank waits for one that is gone.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use muster_collectives::flight::LABEL_MAX;
use muster_collectives::{AbortHandle, Communicator, Config, Peer, Secret};
use muster_rendezvous::client::{self, JoinError, Membership, Session};
use muster_rendezvous::{job_of, peer_secret};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

use super::group::Group;
use crate::env::{Environment, Rendezvous};

/// How long the ranks of an epoch may take to connect to each other.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    #[error("failed to start the background thread: {0}")]
    Runtime(std::io::Error),
    #[error("failed to reach the rendezvous at {server}: {source}")]
    Unreachable { server: String, source: std::io::Error },
    #[error("failed to listen for the other ranks: {0}")]
    Listen(std::io::Error),
    #[error("{host} has the address {address:?}, which is not IP:PORT")]
    Address { host: String, address: String },
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("the ranks of epoch {epoch} cannot work together: {source}")]
    Collectives { epoch: u64, source: muster_collectives::Error },
    #[error("asked to stop")]
    Stopped,
}

/// Set by SIGTERM and SIGINT.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    async fn wait(&self) {
        let mut stop = self.0.clone();
        // A sender that is gone means that the process ends anyway.
        let _ = stop.wait_for(|stop| *stop).await;
    }
}

pub struct Member {
    runtime: Runtime,
    stop: Stop,
    joined: Option<Joined>,
}

struct Joined {
    session: Arc<Session>,
    listener: TcpListener,
    secret: [u8; 32],
    /// The job's name, for people who look at its ranks.
    label: String,
    join_timeout: Duration,
    epoch: u64,
}

/// A place in an epoch.
pub struct Place {
    pub epoch: u64,
    pub group: Group,
    /// Ranks on this machine, this one included.
    pub local_world: usize,
}

impl Place {
    /// Whether ranks of other machines take part.
    pub fn spans_machines(&self) -> bool {
        self.local_world < self.group.world()
    }
}

impl Member {
    /// Starts to listen for signals and, where the job has a rendezvous, joins it.
    pub fn start(environment: &Environment, join_timeout: Duration) -> Result<Member, MemberError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("membership")
            .enable_all()
            .build()
            .map_err(MemberError::Runtime)?;
        let (set, stop) = watch::channel(false);
        let signals =
            runtime.block_on(async { Ok([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?]) });
        let [mut terminate, mut interrupt] = signals.map_err(MemberError::Runtime)?;
        runtime.spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            set.send_replace(true);
        });
        let stop = Stop(stop);
        let joined = match &environment.rendezvous {
            Some(rendezvous) => Some(join(&runtime, environment, rendezvous, join_timeout)?),
            None => None,
        };
        Ok(Member { runtime, stop, joined })
    }

    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Waits for an epoch later than the last, and connects its ranks.
    pub fn next_place(&mut self) -> Result<Place, MemberError> {
        let Some(joined) = &mut self.joined else {
            return Ok(Place { epoch: 0, group: Group::Alone, local_world: 1 });
        };
        loop {
            let membership = self.runtime.block_on(async {
                tokio::select! {
                    biased;
                    membership = joined.session.membership(joined.epoch, joined.join_timeout) => Ok(membership?),
                    () = self.stop.wait() => Err(MemberError::Stopped),
                }
            })?;
            let epoch = membership.epoch;
            joined.epoch = epoch;
            let config = configuration(joined, &membership)?;
            let local = local_world(&config.peers, config.rank);
            if config.world == 1 {
                return Ok(Place { epoch, group: Group::Alone, local_world: local });
            }
            // The end of the epoch also ends the attempt to connect.
            let abort = config.abort.clone();
            let watcher = self.runtime.spawn(abort_at_end(joined.session.clone(), epoch, abort, self.stop.clone()));
            match Communicator::connect(config) {
                Ok(communicator) => {
                    return Ok(Place { epoch, group: Group::Joined(communicator), local_world: local });
                }
                Err(muster_collectives::Error::Config(why)) => {
                    let source = muster_collectives::Error::Config(why);
                    return Err(MemberError::Collectives { epoch, source });
                }
                Err(error) => {
                    watcher.abort();
                    if self.stop.is_set() {
                        return Err(MemberError::Stopped);
                    }
                    warn!(epoch, "the ranks did not connect: {error}");
                    self.runtime.block_on(joined.session.broken(epoch, error.to_string()));
                }
            }
        }
    }

    /// Tells the rendezvous that an epoch's collectives have failed.
    pub fn broken(&self, epoch: u64, cause: &str) {
        if let Some(joined) = &self.joined {
            self.runtime.block_on(joined.session.broken(epoch, cause.into()));
        }
    }

    /// For the heartbeats.
    pub fn progress(&self, step: u64) {
        if let Some(joined) = &self.joined {
            joined.session.progress(step);
        }
    }

    /// Goes for good.
    pub fn leave(self, finished: bool) {
        if let Some(joined) = self.joined {
            self.runtime.block_on(joined.session.leave(finished));
        }
        // Not waited for: a name that is still being looked up must not hold the process.
        self.runtime.shutdown_background();
    }
}

fn join(
    runtime: &Runtime,
    environment: &Environment,
    rendezvous: &Rendezvous,
    join_timeout: Duration,
) -> Result<Joined, MemberError> {
    let own = own_address(&rendezvous.server, &environment.host)
        .map_err(|source| MemberError::Unreachable { server: rendezvous.server.clone(), source })?;
    let listener = TcpListener::bind((own, 0)).map_err(MemberError::Listen)?;
    let address = listener.local_addr().map_err(MemberError::Listen)?;
    let incarnation = incarnation().map_err(MemberError::Runtime)?;
    info!(server = rendezvous.server, host = environment.host, %address, "joining the job");
    let config = client::Config {
        server: rendezvous.server.clone(),
        job_token: rendezvous.job_token.clone(),
        host: environment.host.clone(),
        incarnation,
        address: address.to_string(),
        rank_hint: environment.rank_hint,
        size: environment.size,
        connect_timeout: Duration::from_secs(5),
    };
    let session = {
        let _context = runtime.enter();
        client::join(config)?
    };
    let secret = peer_secret(&rendezvous.job_token);
    let label = job_of(&rendezvous.job_token).map_or(String::new(), |job| format!("{}/{}", job.namespace, job.name));
    Ok(Joined { session: Arc::new(session), listener, secret, label, join_timeout, epoch: 0 })
}

/// The address by which this machine reaches the rendezvous is the one by which its peers reach this machine.
/// A socket for datagrams is connected without a packet, so the server need not be there yet.
fn own_address(server: &str, host: &str) -> std::io::Result<std::net::IpAddr> {
    let nothing = || std::io::Error::other("the name has no address");
    let target = server.to_socket_addrs()?.next().ok_or_else(nothing)?;
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(target)?;
    let address = socket.local_addr()?.ip();
    if address.is_unspecified() {
        return Err(std::io::Error::other(format!("{host} has no address of its own")));
    }
    Ok(address)
}

/// A name that no other process has.
fn incarnation() -> std::io::Result<String> {
    let mut bytes = [0u8; 12];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

async fn abort_at_end(session: Arc<Session>, epoch: u64, abort: AbortHandle, stop: Stop) {
    tokio::select! {
        biased;
        why = session.ended(epoch) => abort.abort(&why),
        // A rank that is to stop finishes its step, unless that waits for others for too long.
        () = async { stop.wait().await; tokio::time::sleep(STOP_PATIENCE).await } => abort.abort("asked to stop"),
    }
}

/// Less than the grace that a pod has between SIGTERM and SIGKILL.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

fn configuration(joined: &Joined, membership: &Membership) -> Result<Config, MemberError> {
    let peers = membership.world.peers.iter().map(|peer| {
        let address: SocketAddr = peer
            .address
            .parse()
            .map_err(|_| MemberError::Address { host: peer.id.host.clone(), address: peer.address.clone() })?;
        // Ranks that share an address share a machine's network, so they are on it.
        Ok(Peer { host: address.ip().to_string(), address })
    });
    let peers = peers.collect::<Result<Vec<_>, MemberError>>()?;
    let listener = joined.listener.try_clone().map_err(MemberError::Listen)?;
    let secret = epoch_secret(&joined.secret, membership);
    let mut config = Config::new(membership.rank as usize, membership.epoch, peers, listener, secret);
    config.label = joined.label[..joined.label.floor_char_boundary(LABEL_MAX)].to_owned();
    config.connect_timeout = CONNECT_TIMEOUT;
    Ok(config)
}

/// Bound to the processes of the epoch: one that is not among them cannot take part, even where it knows the job's
/// token and guesses the number of the epoch.
fn epoch_secret(secret: &[u8; 32], membership: &Membership) -> Secret {
    let mut digest = Sha256::new();
    digest.update(secret);
    digest.update(membership.epoch.to_le_bytes());
    for peer in &membership.world.peers {
        digest.update(peer.id.incarnation.as_bytes());
        digest.update([0]);
    }
    Secret::new(digest.finalize().to_vec())
}

fn local_world(peers: &[Peer], rank: usize) -> usize {
    let own = peers.get(rank).map(|peer| &peer.host);
    peers.iter().filter(|peer| Some(&peer.host) == own).count().max(1)
}
