//! What a communicator was made of, for those that are made of it in turn.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use crate::config::{Config, Peer, Secret, Transports};
use crate::error::Error;
use crate::transport::handshake::tag;
use crate::transport::shm::options::ShmOptions;
use crate::transport::tcp::options::TcpOptions;

pub(crate) struct Origin {
    pub(crate) label: String,
    pub(crate) peers: Vec<Peer>,
    pub(crate) secret: Secret,
    pub(crate) transports: Transports,
    pub(crate) shm: ShmOptions,
    pub(crate) tcp: TcpOptions,
    pub(crate) connect_timeout: Duration,
    pub(crate) timeout: Duration,
}

/// Words of an encoded [`Share`].
pub(crate) const SEAT: usize = 3;

/// What a rank tells the others when a communicator is split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Share {
    pub(crate) color: Option<u32>,
    pub(crate) key: i32,
    pub(crate) port: u16,
}

impl Share {
    pub(crate) fn encode(self) -> Vec<i64> {
        vec![self.color.map_or(-1, i64::from), self.key.into(), self.port.into()]
    }

    /// What another rank of this version has encoded; anything else gives a seat that connects to nobody.
    pub(crate) fn decode([color, key, port]: &[i64; SEAT]) -> Share {
        Share { color: u32::try_from(*color).ok(), key: *key as i32, port: *port as u16 }
    }
}

impl Origin {
    /// A listener for a new communicator, at the address where this rank is known and a port of its own.
    pub(crate) fn listen(&self, rank: usize) -> Result<(TcpListener, u16), Error> {
        let listen = || {
            let listener = TcpListener::bind((self.peers[rank].address.ip(), 0))?;
            let port = listener.local_addr()?.port();
            Ok((listener, port))
        };
        listen().map_err(|error: std::io::Error| Error::System { rank, cause: format!("listener: {error}") })
    }

    /// The configuration of a part: `members` are key, rank here and port of each, in their new order.
    pub(crate) fn part(
        &self,
        rank: usize,
        epoch: u64,
        sequence: u64,
        color: u32,
        members: &[(i32, usize, u16)],
        listener: TcpListener,
    ) -> Config {
        let peers = members
            .iter()
            .map(|(_, rank, port)| {
                let Peer { host, address } = &self.peers[*rank];
                Peer { host: host.clone(), address: SocketAddr::new(address.ip(), *port) }
            })
            .collect();
        // A secret of its own keeps the connections of all parts apart.
        let parts: [&[u8]; 4] = [b"split", &epoch.to_le_bytes(), &sequence.to_le_bytes(), &color.to_le_bytes()];
        let secret = Secret::new(tag(&self.secret, &parts).to_vec());
        let place = members.iter().position(|(_, member, _)| *member == rank).unwrap_or_default();
        let mut config = Config::new(place, epoch, peers, listener, secret);
        config.label = self.label.clone();
        config.transports = self.transports;
        config.shm = self.shm;
        config.tcp = self.tcp.clone();
        config.connect_timeout = self.connect_timeout;
        config.timeout = self.timeout;
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_read_back() {
        for color in [None, Some(0), Some(u32::MAX)] {
            for (key, port) in [(0, 0), (i32::MIN, u16::MAX), (7, 80)] {
                let seat = Share { color, key, port };
                assert_eq!(Some(Share::decode(seat.encode().first_chunk().expect("words"))), Some(seat));
            }
        }
    }
}
