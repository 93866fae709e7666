//! The protocol's messages and their bounds: what a peer sends is checked here, before anything else sees it.

use tonic::Status;

use crate::quorum::{Candidate, MAX_WORLD, MemberId, Peer, World, WorldSize};

#[allow(clippy::all, clippy::pedantic, unreachable_pub)]
pub(crate) mod proto {
    tonic::include_proto!("muster.rendezvous.v1");
}

/// No message is longer: the membership of the largest world, with long names.
pub(crate) const MAX_MESSAGE_BYTES: usize = 4 << 20;
const MAX_EPOCH: u64 = 1 << 48;
const MAX_NAME_BYTES: usize = 253;
const MAX_CAUSE_BYTES: usize = 1024;

fn name(value: String, what: &str) -> Result<String, Status> {
    if value.is_empty() || value.len() > MAX_NAME_BYTES || value.chars().any(char::is_control) {
        return Err(Status::invalid_argument(format!(
            "{what} must be 1 to {MAX_NAME_BYTES} printable characters, not {} bytes",
            value.len()
        )));
    }
    Ok(value)
}

fn address(value: String) -> Result<String, Status> {
    let value = name(value, "address")?;
    match value.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(value),
        _ => Err(Status::invalid_argument(format!("address must be HOST:PORT, not {value:?}"))),
    }
}

/// No job sees so many epochs; one that claims to would leave no room for the next.
fn epoch(value: u64) -> Result<u64, Status> {
    match value {
        0..=MAX_EPOCH => Ok(value),
        _ => Err(Status::invalid_argument(format!("epoch {value} is out of range"))),
    }
}

/// A cause is shown to people, so an overlong one is cut, not refused.
pub(crate) fn cause(mut value: String) -> String {
    if value.len() > MAX_CAUSE_BYTES {
        let end = (0..=MAX_CAUSE_BYTES).rev().find(|&end| value.is_char_boundary(end)).unwrap_or(0);
        value.truncate(end);
    }
    value
}

pub(crate) fn candidate(hello: proto::Hello) -> Result<Candidate, Status> {
    Ok(Candidate {
        id: MemberId { host: name(hello.host, "host")?, incarnation: name(hello.incarnation, "incarnation")? },
        address: address(hello.address)?,
        rank_hint: hello.rank_hint,
        size: WorldSize { min: hello.min_world, max: hello.max_world },
        held: hello.held.map(world).transpose()?,
        last_epoch: epoch(hello.last_epoch)?,
    })
}

pub(crate) fn world(membership: proto::Membership) -> Result<World, Status> {
    if membership.peers.is_empty() || membership.peers.len() > MAX_WORLD as usize {
        return Err(Status::invalid_argument(format!(
            "a membership has 1 to {MAX_WORLD} peers, not {}",
            membership.peers.len()
        )));
    }
    let epoch = epoch(membership.epoch)?;
    if epoch == 0 {
        return Err(Status::invalid_argument("epochs are counted from 1"));
    }
    let peers = membership.peers.into_iter().map(|peer| {
        let id = MemberId { host: name(peer.host, "host")?, incarnation: name(peer.incarnation, "incarnation")? };
        Ok(Peer { id, address: address(peer.address)? })
    });
    Ok(World { epoch, peers: peers.collect::<Result<_, Status>>()? })
}

pub(crate) fn membership(world: &World, rank: u32) -> proto::Membership {
    let peers = world.peers.iter().map(|peer| proto::Peer {
        host: peer.id.host.clone(),
        incarnation: peer.id.incarnation.clone(),
        address: peer.address.clone(),
    });
    proto::Membership { epoch: world.epoch, rank, peers: peers.collect() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hello() -> proto::Hello {
        proto::Hello {
            host: "worker-0".into(),
            incarnation: "a".into(),
            address: "127.0.0.1:80".into(),
            rank_hint: None,
            min_world: 1,
            max_world: 1,
            held: None,
            last_epoch: 0,
        }
    }

    #[test]
    fn what_no_member_says_is_refused() {
        let peers = vec![proto::Peer { host: "a".into(), incarnation: "b".into(), address: "c:1".into() }];
        let held = |epoch, peers| Some(proto::Membership { epoch, rank: 0, peers });
        let table = [
            proto::Hello { host: String::new(), ..hello() },
            proto::Hello { host: "a".repeat(254), ..hello() },
            proto::Hello { incarnation: "a\nb".into(), ..hello() },
            proto::Hello { address: "127.0.0.1".into(), ..hello() },
            proto::Hello { address: ":80".into(), ..hello() },
            proto::Hello { address: "a:0".into(), ..hello() },
            proto::Hello { address: "a:70000".into(), ..hello() },
            proto::Hello { last_epoch: u64::MAX, ..hello() },
            proto::Hello { held: held(0, peers.clone()), ..hello() },
            proto::Hello { held: held(u64::MAX, peers.clone()), ..hello() },
            proto::Hello { held: held(1, Vec::new()), ..hello() },
            proto::Hello { held: held(1, vec![peers[0].clone(); MAX_WORLD as usize + 1]), ..hello() },
        ];
        assert!(candidate(hello()).is_ok());
        for hello in table {
            assert!(candidate(hello.clone()).is_err(), "{hello:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_cause_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,2000}") {
            if let Ok(hello) = <proto::Hello as prost::Message>::decode(&bytes[..]) {
                let _ = candidate(hello);
            }
            let cut = cause(text.clone());
            prop_assert!(cut.len() <= MAX_CAUSE_BYTES && text.starts_with(&cut));
        }
    }
}
