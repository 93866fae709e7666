//! Both ends of a new connection prove that they hold the job's secret, without showing it, and that they mean the
//! same epoch.
//!
//! ```text
//! dialer                                            acceptor
//!   hello: purpose, epoch, world, from, to, nonce ->
//!                                   <- nonce, HMAC("accept", hello, nonce)
//!   HMAC("dial", hello, nonce) ->
//!                                   <- verdict, epoch
//! ```
//! Every message has a fixed length, so a stranger can make nobody allocate; each handshake has a deadline, so it
//! can make nobody wait.

use std::time::Instant;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::breaker::Breaker;
use crate::config::Secret;
use crate::transport::stream::{Interruption, Stream};

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Purpose {
    /// Operations' data over TCP.
    Data = 1,
    /// Aborts and good-byes.
    Control = 2,
    /// File descriptors of shared memory.
    Memory = 3,
}

/// Who connects to whom, for what, in which epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Hello {
    pub(crate) purpose: Purpose,
    pub(crate) epoch: u64,
    pub(crate) world: u32,
    pub(crate) from: u32,
    pub(crate) to: u32,
}

#[derive(Debug)]
pub(crate) enum Refusal {
    /// The other end could not prove the secret, or spoke another protocol.
    Stranger,
    /// It is a rank of this job at another epoch.
    Epoch(u64),
    /// It is a rank of this job and epoch, but expects another world or another rank here.
    Unexpected,
    Interrupted(Interruption),
}

impl From<Interruption> for Refusal {
    fn from(interruption: Interruption) -> Self {
        Refusal::Interrupted(interruption)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::Stranger => f.write_str("the other end does not know the job's secret"),
            Refusal::Epoch(epoch) => write!(f, "the other end is at epoch {epoch}"),
            Refusal::Unexpected => f.write_str("the other end expects another rank or world"),
            Refusal::Interrupted(interruption) => interruption.fmt(f),
        }
    }
}

const MAGIC: &[u8; 8] = b"MUSTERC1";
const NONCE: usize = 32;
const TAG: usize = 32;
const HELLO: usize = 8 + 1 + 8 + 4 + 4 + 4 + NONCE;
const VERDICT: usize = 9;

impl Hello {
    fn encode(&self, nonce: &[u8; NONCE]) -> [u8; HELLO] {
        let mut bytes = [0; HELLO];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8] = self.purpose as u8;
        bytes[9..17].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[17..21].copy_from_slice(&self.world.to_le_bytes());
        bytes[21..25].copy_from_slice(&self.from.to_le_bytes());
        bytes[25..29].copy_from_slice(&self.to.to_le_bytes());
        bytes[29..].copy_from_slice(nonce);
        bytes
    }

    fn decode(bytes: &[u8; HELLO]) -> Option<Hello> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (purpose, rest) = rest.split_first()?;
        let (epoch, rest) = rest.split_first_chunk::<8>()?;
        let (world, rest) = rest.split_first_chunk::<4>()?;
        let (from, rest) = rest.split_first_chunk::<4>()?;
        let (to, _nonce) = rest.split_first_chunk::<4>()?;
        let purpose = match purpose {
            1 => Purpose::Data,
            2 => Purpose::Control,
            3 => Purpose::Memory,
            _ => return None,
        };
        (magic == MAGIC).then_some(Hello {
            purpose,
            epoch: u64::from_le_bytes(*epoch),
            world: u32::from_le_bytes(*world),
            from: u32::from_le_bytes(*from),
            to: u32::from_le_bytes(*to),
        })
    }
}

/// HMAC-SHA256 of `parts` under the job's secret.
pub(crate) fn tag(secret: &Secret, parts: &[&[u8]]) -> [u8; TAG] {
    mac(secret, parts).finalize().into_bytes().into()
}

fn mac(secret: &Secret, parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.bytes()).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(&(part.len() as u64).to_le_bytes());
        mac.update(part);
    }
    mac
}

fn proves(secret: &Secret, parts: &[&[u8]], tag: &[u8]) -> bool {
    mac(secret, parts).verify_slice(tag).is_ok()
}

#[allow(unsafe_code)]
fn nonce() -> Result<[u8; NONCE], Interruption> {
    let mut bytes = [0; NONCE];
    // SAFETY: the kernel writes at most NONCE bytes to the array.
    let length = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), NONCE, 0) };
    if length == NONCE as isize { Ok(bytes) } else { Err(std::io::Error::last_os_error().into()) }
}

/// The dialing end.
pub(crate) fn dial(
    stream: &Stream,
    hello: &Hello,
    secret: &Secret,
    deadline: Instant,
    breaker: &Breaker,
) -> Result<(), Refusal> {
    let hello_bytes = hello.encode(&nonce()?);
    stream.write_all(&hello_bytes, deadline, breaker)?;
    let mut challenge = [0; NONCE + TAG];
    stream.read_exact(&mut challenge, deadline, breaker)?;
    let (theirs, proof) = challenge.split_at(NONCE);
    if !proves(secret, &[b"accept", &hello_bytes, theirs], proof) {
        return Err(Refusal::Stranger);
    }
    stream.write_all(&tag(secret, &[b"dial", &hello_bytes, theirs]), deadline, breaker)?;
    let mut verdict = [0; VERDICT];
    stream.read_exact(&mut verdict, deadline, breaker)?;
    let [code, epoch @ ..] = verdict;
    match code {
        0 => Ok(()),
        1 => Err(Refusal::Epoch(u64::from_le_bytes(epoch))),
        _ => Err(Refusal::Unexpected),
    }
}

/// The accepting end, for rank `to` of `epoch` and `world`. Gives what the dialer is and wants, once proved.
pub(crate) fn accept(
    stream: &Stream,
    epoch: u64,
    world: u32,
    to: u32,
    secret: &Secret,
    deadline: Instant,
    breaker: &Breaker,
) -> Result<Hello, (Option<Hello>, Refusal)> {
    let alone = |refusal: Refusal| (None, refusal);
    let interrupted = |interruption: Interruption| (None, Refusal::Interrupted(interruption));
    let mut hello_bytes = [0; HELLO];
    stream.read_exact(&mut hello_bytes, deadline, breaker).map_err(interrupted)?;
    let hello = Hello::decode(&hello_bytes).ok_or(Refusal::Stranger).map_err(alone)?;
    let ours = nonce().map_err(interrupted)?;
    let mut challenge = [0; NONCE + TAG];
    challenge[..NONCE].copy_from_slice(&ours);
    challenge[NONCE..].copy_from_slice(&tag(secret, &[b"accept", &hello_bytes, &ours]));
    stream.write_all(&challenge, deadline, breaker).map_err(interrupted)?;
    let mut proof = [0; TAG];
    stream.read_exact(&mut proof, deadline, breaker).map_err(interrupted)?;
    if !proves(secret, &[b"dial", &hello_bytes, &ours], &proof) {
        return Err(alone(Refusal::Stranger));
    }
    let refusal = if hello.epoch != epoch {
        Some((1, Refusal::Epoch(hello.epoch)))
    } else if hello.world != world || hello.to != to || hello.from >= world {
        Some((2, Refusal::Unexpected))
    } else {
        None
    };
    let mut verdict = [0; VERDICT];
    verdict[0] = refusal.as_ref().map_or(0, |(code, _)| *code);
    verdict[1..].copy_from_slice(&epoch.to_le_bytes());
    stream.write_all(&verdict, deadline, breaker).map_err(interrupted)?;
    match refusal {
        None => Ok(hello),
        Some((_, refusal)) => Err((Some(hello), refusal)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::breaker::AbortHandle;

    const HELLO_1: Hello = Hello { purpose: Purpose::Data, epoch: 7, world: 4, from: 2, to: 1 };

    type Meeting = (Result<(), Refusal>, Result<Hello, (Option<Hello>, Refusal)>);

    fn meet(hello: Hello, dialer: &str, acceptor: &str) -> Meeting {
        let (a, b) = UnixStream::pair().expect("a socket pair");
        let (a, b) = (Stream::from_unix(a).expect("stream"), Stream::from_unix(b).expect("stream"));
        let (dialer, acceptor) = (Secret::new(dialer), Secret::new(acceptor));
        let breaker = AbortHandle::new();
        let deadline = Instant::now() + Duration::from_secs(30);
        std::thread::scope(|scope| {
            let accepted = scope.spawn(|| {
                let result = accept(&b, 7, 4, 1, &acceptor, deadline, &breaker.0);
                drop(b);
                result
            });
            let dialed = dial(&a, &hello, &dialer, deadline, &breaker.0);
            drop(a);
            (dialed, accepted.join().expect("the acceptor ends"))
        })
    }

    #[test]
    fn holders_of_the_secret_meet() {
        let (dialed, accepted) = meet(HELLO_1, "secret", "secret");
        assert!(dialed.is_ok(), "{dialed:?}");
        assert_eq!(accepted.ok(), Some(HELLO_1));
    }

    #[test]
    fn strangers_are_refused_by_both_ends() {
        let (dialed, accepted) = meet(HELLO_1, "secret", "other");
        assert!(matches!(dialed, Err(Refusal::Stranger)), "{dialed:?}");
        assert!(accepted.is_err());
    }

    #[test]
    fn another_epoch_is_refused_and_named() {
        let (dialed, accepted) = meet(Hello { epoch: 6, ..HELLO_1 }, "secret", "secret");
        assert!(matches!(dialed, Err(Refusal::Epoch(7))), "{dialed:?}");
        assert!(matches!(accepted, Err((Some(_), Refusal::Epoch(6)))), "{accepted:?}");
    }

    #[test]
    fn another_world_or_rank_is_refused() {
        for hello in [Hello { world: 5, ..HELLO_1 }, Hello { to: 2, ..HELLO_1 }, Hello { from: 4, ..HELLO_1 }] {
            let (dialed, accepted) = meet(hello, "secret", "secret");
            assert!(matches!(dialed, Err(Refusal::Unexpected)), "{dialed:?}");
            assert!(accepted.is_err());
        }
    }

    #[test]
    fn a_proof_is_of_no_use_for_another_connection() {
        let secret = Secret::new("secret");
        let first = tag(&secret, &[b"dial", &HELLO_1.encode(&[1; NONCE]), &[2; NONCE]]);
        assert!(!proves(&secret, &[b"dial", &HELLO_1.encode(&[1; NONCE]), &[3; NONCE]], &first));
        assert!(!proves(&secret, &[b"accept", &HELLO_1.encode(&[1; NONCE]), &[2; NONCE]], &first));
    }

    /// A stream whose other end has said `bytes` and no more.
    fn said(bytes: &[u8]) -> (Stream, UnixStream) {
        let (own, mut other) = UnixStream::pair().expect("a socket pair");
        std::io::Write::write_all(&mut other, bytes).expect("room");
        other.shutdown(std::net::Shutdown::Write).expect("an end");
        (Stream::from_unix(own).expect("stream"), other)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_are_a_strangers(bytes in proptest::collection::vec(any::<u8>(), 0..256), hello in any::<bool>()) {
            let (secret, handle) = (Secret::new("secret"), AbortHandle::new());
            let deadline = Instant::now() + Duration::from_secs(10);
            // At times behind a hello that is well formed.
            let bytes = if hello { [&HELLO_1.encode(&[1; NONCE])[..], &bytes].concat() } else { bytes };
            let accepted = accept(&said(&bytes).0, 7, 4, 1, &secret, deadline, &handle.0);
            let (told, refusal) = accepted.expect_err("nobody has proved anything");
            prop_assert_eq!(told, None, "nothing is believed");
            prop_assert!(matches!(refusal, Refusal::Stranger | Refusal::Interrupted(Interruption::Failed(_))));
            let dialed = dial(&said(&bytes).0, &HELLO_1, &secret, deadline, &handle.0);
            prop_assert!(matches!(dialed, Err(Refusal::Stranger | Refusal::Interrupted(Interruption::Failed(_)))));
        }
    }
}
