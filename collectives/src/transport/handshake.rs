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
//! On an encrypted connection both proofs cover what only the two ends of its session know as well.
//!
//! The accepting end never waits: an [`Acceptance`] is advanced as bytes come, so one thread serves many of them.
//!
//! Every message has a fixed length, so a stranger can make nobody allocate; each handshake has a deadline, so it
//! can make nobody wait.

use std::io::IoSlice;
use std::time::Instant;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::breaker::Breaker;
use crate::config::Secret;
use crate::transport::stream::{Interruption, Stream};

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
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
    /// Which of several parallel connections for data it is.
    pub(crate) lane: u8,
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
    /// It is dialing this rank for the same at the same time, and its connection is the one that counts.
    Crossed,
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
            Refusal::Crossed => f.write_str("the other end is dialing as well"),
            Refusal::Interrupted(interruption) => interruption.fmt(f),
        }
    }
}

const MAGIC: &[u8; 8] = b"MUSTERC3";
const NONCE: usize = 32;
const TAG: usize = 32;
const HELLO: usize = 8 + 1 + 1 + 8 + 4 + 4 + 4 + NONCE;
const VERDICT: usize = 9;

impl Hello {
    fn encode(&self, nonce: &[u8; NONCE]) -> [u8; HELLO] {
        let mut bytes = [0; HELLO];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8] = self.purpose as u8;
        bytes[9] = self.lane;
        bytes[10..18].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[18..22].copy_from_slice(&self.world.to_le_bytes());
        bytes[22..26].copy_from_slice(&self.from.to_le_bytes());
        bytes[26..30].copy_from_slice(&self.to.to_le_bytes());
        bytes[30..].copy_from_slice(nonce);
        bytes
    }

    fn decode(bytes: &[u8; HELLO]) -> Option<Hello> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (purpose, rest) = rest.split_first()?;
        let (lane, rest) = rest.split_first()?;
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
            lane: *lane,
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
    let peer = hello.to as usize;
    stream.write_all(&hello_bytes, peer, deadline, breaker)?;
    let mut challenge = [0; NONCE + TAG];
    stream.read_exact(&mut challenge, peer, deadline, breaker)?;
    let (theirs, proof) = challenge.split_at(NONCE);
    let binding = stream.binding().map_err(Interruption::Failed)?;
    if !proves(secret, &[b"accept", &hello_bytes, theirs, &binding], proof) {
        return Err(Refusal::Stranger);
    }
    stream.write_all(&tag(secret, &[b"dial", &hello_bytes, theirs, &binding]), peer, deadline, breaker)?;
    let mut verdict = [0; VERDICT];
    stream.read_exact(&mut verdict, peer, deadline, breaker)?;
    let [code, epoch @ ..] = verdict;
    match code {
        0 => Ok(()),
        1 => Err(Refusal::Epoch(u64::from_le_bytes(epoch))),
        3 => Err(Refusal::Crossed),
        _ => Err(Refusal::Unexpected),
    }
}

/// The accepting end of one handshake.
pub(crate) struct Acceptance {
    stream: Stream,
    deadline: Instant,
    received: [u8; HELLO],
    length: usize,
    /// What the dialer claims to be, and our challenge, once its hello is complete.
    claim: Option<Claim>,
}

/// What a dialer claims to be, and what it has to prove it with.
struct Claim {
    bytes: [u8; HELLO],
    hello: Hello,
    ours: [u8; NONCE],
    binding: Vec<u8>,
}

/// How far an acceptance is.
#[derive(Debug)]
pub(crate) enum Progress {
    /// More bytes must come.
    Pending,
    /// The dialer holds the secret, and waits for the verdict.
    Proved(Hello),
    /// It is over: a stranger, or a connection that failed.
    Over,
}

impl Acceptance {
    pub(crate) fn new(stream: Stream, deadline: Instant) -> Acceptance {
        Acceptance { stream, deadline, received: [0; HELLO], length: 0, claim: None }
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Takes what has come. Never reads beyond the dialer's next message.
    pub(crate) fn advance(&mut self, secret: &Secret) -> Progress {
        loop {
            let expected = if self.claim.is_none() { HELLO } else { TAG };
            match self.stream.try_read(&mut self.received[self.length..expected]) {
                Ok(None) => return Progress::Pending,
                Ok(Some(0)) | Err(_) => return Progress::Over,
                Ok(Some(length)) => self.length += length,
            }
            if self.length < expected {
                continue;
            }
            self.length = 0;
            match &self.claim {
                None => {
                    let (Some(hello), Ok(ours), Ok(binding)) =
                        (Hello::decode(&self.received), nonce(), self.stream.binding())
                    else {
                        return Progress::Over;
                    };
                    let mut challenge = [0; NONCE + TAG];
                    challenge[..NONCE].copy_from_slice(&ours);
                    challenge[NONCE..].copy_from_slice(&tag(secret, &[b"accept", &self.received, &ours, &binding]));
                    if !self.write(&challenge) {
                        return Progress::Over;
                    }
                    self.claim = Some(Claim { bytes: self.received, hello, ours, binding });
                }
                Some(Claim { bytes, hello, ours, binding }) => {
                    return match proves(secret, &[b"dial", bytes, ours, binding], &self.received[..TAG]) {
                        true => Progress::Proved(*hello),
                        false => Progress::Over,
                    };
                }
            }
        }
    }

    /// Lets the dialer in: gives the connection.
    pub(crate) fn admit(self, epoch: u64) -> Option<Stream> {
        self.verdict(0, epoch).then_some(self.stream)
    }

    /// Sends the dialer away, and tells it why.
    pub(crate) fn refuse(self, refusal: &Refusal, epoch: u64) {
        let code = match refusal {
            Refusal::Epoch(_) => 1,
            Refusal::Crossed => 3,
            _ => 2,
        };
        self.verdict(code, epoch);
    }

    fn verdict(&self, code: u8, epoch: u64) -> bool {
        let mut verdict = [0; VERDICT];
        verdict[0] = code;
        verdict[1..].copy_from_slice(&epoch.to_le_bytes());
        self.write(&verdict)
    }

    /// All that this end says in a handshake fits a new socket's buffer.
    fn write(&self, bytes: &[u8]) -> bool {
        matches!(self.stream.try_write(&[IoSlice::new(bytes)]), Ok(Some(length)) if length == bytes.len())
    }
}

/// Whether `hello` is meant for rank `to` of `epoch` and `world`.
pub(crate) fn judge(hello: &Hello, epoch: u64, world: u32, to: u32) -> Result<(), Refusal> {
    if hello.epoch != epoch {
        Err(Refusal::Epoch(hello.epoch))
    } else if hello.world != world || hello.to != to || hello.from >= world || hello.from == to {
        Err(Refusal::Unexpected)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use nix::poll::PollFlags;
    use proptest::prelude::*;

    use super::*;
    use crate::breaker::AbortHandle;
    use crate::transport::stream::wait;
    use crate::transport::tls::Tls;

    const HELLO_1: Hello = Hello { purpose: Purpose::Data, lane: 3, epoch: 7, world: 4, from: 2, to: 1 };

    type Meeting = (Result<(), Refusal>, Result<Hello, Refusal>);

    fn accept(stream: Stream, secret: &Secret, deadline: Instant, breaker: &Breaker) -> Result<Hello, Refusal> {
        let mut acceptance = Acceptance::new(stream, deadline);
        loop {
            match acceptance.advance(secret) {
                Progress::Pending => {
                    wait(&[(acceptance.stream().as_fd(), PollFlags::POLLIN)], deadline, breaker)?;
                }
                Progress::Proved(hello) => {
                    return match judge(&hello, 7, 4, 1) {
                        Ok(()) => acceptance.admit(7).map(|_| hello).ok_or(Refusal::Stranger),
                        Err(refusal) => {
                            acceptance.refuse(&refusal, 7);
                            Err(refusal)
                        }
                    };
                }
                Progress::Over => return Err(Refusal::Stranger),
            }
        }
    }

    fn pair() -> (Stream, Stream) {
        let (a, b) = UnixStream::pair().expect("a socket pair");
        (Stream::from_unix(a).expect("stream"), Stream::from_unix(b).expect("stream"))
    }

    fn meet(hello: Hello, dialer: &str, acceptor: &str) -> Meeting {
        let (a, b) = pair();
        let (dialer, acceptor) = (Secret::new(dialer), Secret::new(acceptor));
        let breaker = AbortHandle::new();
        let deadline = Instant::now() + Duration::from_secs(30);
        std::thread::scope(|scope| {
            let accepted = scope.spawn(|| accept(b, &acceptor, deadline, &breaker.0));
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
        assert!(matches!(accepted, Err(Refusal::Epoch(6))), "{accepted:?}");
    }

    #[test]
    fn another_world_or_rank_is_refused() {
        let strange = |change: fn(&mut Hello)| {
            let mut hello = HELLO_1;
            change(&mut hello);
            hello
        };
        let (world, to) = (strange(|hello| hello.world = 5), strange(|hello| hello.to = 2));
        for hello in [world, to, strange(|hello| hello.from = 4), strange(|hello| hello.from = 1)] {
            let (dialed, accepted) = meet(hello, "secret", "secret");
            assert!(matches!(dialed, Err(Refusal::Unexpected)), "{dialed:?}");
            assert!(accepted.is_err());
        }
    }

    fn encrypted_pair(tls: &Tls) -> (Stream, Stream) {
        let (a, b) = pair();
        (a.encrypted(tls.dial().expect("a session")), b.encrypted(tls.accept().expect("a session")))
    }

    /// Passes on what comes until one end is closed.
    fn relay(a: &Stream, b: &Stream, deadline: Instant, breaker: &Breaker) {
        let mut bytes = [0; 1000];
        loop {
            for (from, to) in [(a, b), (b, a)] {
                match from.try_read(&mut bytes) {
                    Ok(None) => {}
                    Ok(Some(length)) if length > 0 => {
                        if to.try_write(&[IoSlice::new(&bytes[..length])]).is_err() {
                            return;
                        }
                    }
                    _ => return,
                }
            }
            if wait(&[(a.as_fd(), PollFlags::POLLIN), (b.as_fd(), PollFlags::POLLIN)], deadline, breaker).is_err() {
                return;
            }
        }
    }

    #[test]
    fn encrypted_ends_meet_but_not_through_somebody_between() {
        let tls = Tls::new().expect("a certificate");
        let secret = Secret::new("secret");
        let breaker = AbortHandle::new();
        let deadline = Instant::now() + Duration::from_secs(30);
        for between in [false, true] {
            let (a, mut b) = encrypted_pair(&tls);
            let (secret, breaker) = (&secret, &breaker);
            std::thread::scope(|scope| {
                if between {
                    let (c, d) = encrypted_pair(&tls);
                    let middle = std::mem::replace(&mut b, d);
                    // Not even one that passes on all that is said.
                    scope.spawn(move || relay(&middle, &c, deadline, &breaker.0));
                }
                let accepted = scope.spawn(move || accept(b, secret, deadline, &breaker.0));
                let dialed = dial(&a, &HELLO_1, secret, deadline, &breaker.0);
                drop(a);
                let accepted = accepted.join().expect("the acceptor ends");
                assert_eq!((dialed.is_ok(), accepted.is_ok()), (!between, !between), "{dialed:?} {accepted:?}");
                if between {
                    assert!(matches!(dialed, Err(Refusal::Stranger)), "{dialed:?}");
                }
            });
        }
    }

    #[test]
    fn a_proof_is_of_no_use_for_another_connection() {
        let secret = Secret::new("secret");
        let first = tag(&secret, &[b"dial", &HELLO_1.encode(&[1; NONCE]), &[2; NONCE]]);
        assert!(!proves(&secret, &[b"dial", &HELLO_1.encode(&[1; NONCE]), &[3; NONCE]], &first));
        assert!(!proves(&secret, &[b"accept", &HELLO_1.encode(&[1; NONCE]), &[2; NONCE]], &first));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_refused_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            begins_well in any::<bool>(),
            cut in 0usize..300,
        ) {
            let mut message = if begins_well { HELLO_1.encode(&[5; NONCE]).to_vec() } else { Vec::new() };
            message.extend(bytes);
            let (a, b) = pair();
            let mut acceptance = Acceptance::new(b, Instant::now());
            let secret = Secret::new("secret");
            let (first, second) = message.split_at(cut.min(message.len()));
            for part in [first, second] {
                // An empty write is no end of the connection.
                a.try_write(&[IoSlice::new(part)]).expect("a socket pair holds it");
                let progress = acceptance.advance(&secret);
                prop_assert!(!matches!(progress, Progress::Proved(_)));
                if matches!(progress, Progress::Over) {
                    break;
                }
            }
            drop(a);
            prop_assert!(matches!(acceptance.advance(&secret), Progress::Over));
        }

        #[test]
        fn any_bytes_are_no_answer(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let (a, b) = pair();
            b.try_write(&[IoSlice::new(&bytes)]).expect("a socket pair holds it");
            drop(b);
            let (secret, handle) = (Secret::new("secret"), AbortHandle::new());
            let deadline = Instant::now() + Duration::from_secs(10);
            let dialed = dial(&a, &HELLO_1, &secret, deadline, &handle.0);
            prop_assert!(matches!(dialed, Err(Refusal::Stranger | Refusal::Interrupted(Interruption::Failed(_)))));
        }
    }
}
