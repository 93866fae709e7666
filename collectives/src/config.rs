//! What a rank must know to join: who the others are, where they run, and the job's secret.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use crate::breaker::AbortHandle;
use crate::error::Error;
use crate::flight::LABEL_MAX;
use crate::transport::shm::options::ShmOptions;
use crate::transport::tcp::options::TcpOptions;

/// One rank, as membership gives it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Ranks of equal host reach each other over shared memory. Any string that is unique to a host and, where
    /// there are several, to a network namespace of it.
    pub host: String,
    /// Where the rank's listener accepts connections.
    pub address: SocketAddr,
}

/// Bytes that only ranks of the job know. They are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Secret {
        Secret(bytes.into())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Which transports may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transports {
    /// Shared memory between ranks of one host, TCP between hosts.
    All,
    /// TCP between all ranks, for hosts whose ranks cannot share memory and for tests.
    TcpOnly,
}

/// Everything [`Communicator::connect`](crate::Communicator::connect) needs.
#[derive(Debug)]
pub struct Config {
    pub rank: usize,
    pub world: usize,
    /// Connections of another epoch are refused.
    pub epoch: u64,
    /// What the job is called, for people that look at it with [`flight`](crate::flight); may be empty.
    pub label: String,
    /// By rank; `peers[rank]` is this rank itself.
    pub peers: Vec<Peer>,
    /// Listens at `peers[rank].address`, for as long as the communicator exists.
    pub listener: TcpListener,
    pub secret: Secret,
    pub transports: Transports,
    pub shm: ShmOptions,
    pub tcp: TcpOptions,
    /// How long `connect` waits for the other ranks.
    pub connect_timeout: Duration,
    /// How long an operation waits without any progress before it names the rank that does not take part.
    pub timeout: Duration,
    /// Ends `connect` and every later operation from another thread.
    pub abort: AbortHandle,
}

impl Config {
    /// A configuration with default timeouts and all transports.
    pub fn new(rank: usize, epoch: u64, peers: Vec<Peer>, listener: TcpListener, secret: Secret) -> Config {
        Config {
            rank,
            world: peers.len(),
            epoch,
            label: String::new(),
            peers,
            listener,
            secret,
            transports: Transports::All,
            shm: ShmOptions::default(),
            tcp: TcpOptions::default(),
            connect_timeout: Duration::from_secs(60),
            timeout: Duration::from_secs(120),
            abort: AbortHandle::new(),
        }
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let refuse = |text: String| Err(Error::Config(text));
        if self.world == 0 || u32::try_from(self.world).is_err() {
            return refuse(format!("world {} is not between 1 and 2^32 - 1", self.world));
        }
        if self.rank >= self.world {
            return refuse(format!("rank {} is not below world {}", self.rank, self.world));
        }
        if self.peers.len() != self.world {
            return refuse(format!("{} peers for world {}", self.peers.len(), self.world));
        }
        if self.tcp.streams == Some(0) {
            return refuse("0 streams to a peer".to_owned());
        }
        if self.label.len() > LABEL_MAX {
            return refuse(format!("the label is longer than {LABEL_MAX} bytes"));
        }
        if self.secret.0.len() < 16 {
            return refuse("the secret is shorter than 16 bytes".to_owned());
        }
        Ok(())
    }
}

/// Which ranks share a host, and who speaks for each host: the same on all ranks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Topology {
    /// Ranks by host, each group ascending, groups by their first rank.
    pub(crate) groups: Vec<Vec<usize>>,
}

impl Topology {
    pub(crate) fn new(peers: &[Peer], transports: Transports) -> Topology {
        let mut by_host: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        let mut groups = Vec::new();
        for (rank, peer) in peers.iter().enumerate() {
            match transports {
                Transports::All => by_host.entry(&peer.host).or_default().push(rank),
                Transports::TcpOnly => groups.push(vec![rank]),
            }
        }
        groups.extend(by_host.into_values());
        groups.sort_by_key(|group| group.first().copied());
        Topology { groups }
    }

    /// The index of the group that holds `rank`, and the rank's index in it.
    pub(crate) fn place(&self, rank: usize) -> (usize, usize) {
        for (index, group) in self.groups.iter().enumerate() {
            if let Ok(local) = group.binary_search(&rank) {
                return (index, local);
            }
        }
        unreachable!("every rank is in a group")
    }

    /// The first rank of each host.
    pub(crate) fn leaders(&self) -> Vec<usize> {
        self.groups.iter().map(|group| group[0]).collect()
    }

    pub(crate) fn spans_hosts(&self) -> bool {
        self.groups.len() > 1
    }

    pub(crate) fn shares_memory(&self) -> bool {
        self.groups.iter().any(|group| group.len() > 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(hosts: &[&str]) -> Vec<Peer> {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        hosts.iter().map(|host| Peer { host: (*host).to_owned(), address }).collect()
    }

    #[test]
    fn ranks_are_grouped_by_host_in_order_of_their_first_rank() {
        let topology = Topology::new(&peers(&["b", "a", "b", "c", "a"]), Transports::All);
        assert_eq!(topology.groups, [vec![0, 2], vec![1, 4], vec![3]]);
        assert_eq!(topology.place(4), (1, 1));
        let flat = Topology::new(&peers(&["b", "a", "b"]), Transports::TcpOnly);
        assert_eq!(flat.groups, [vec![0], vec![1], vec![2]]);
    }
}
