//! Why an operation ended without a result: the rank that caused it, and how.

use std::time::Duration;

use crate::call::Call;
use crate::element::BufferError;

/// Every error but [`Error::Buffer`] and [`Error::Argument`] ends the communicator: all later calls, and all calls
/// of all other ranks, fail with the same cause. A new communicator of a higher epoch can be formed at once.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    #[error("invalid configuration: {0}")]
    Config(String),
    #[error("invalid argument: {0}")]
    Argument(String),
    #[error(transparent)]
    Buffer(#[from] BufferError),
    #[error("cannot connect to rank {rank}: {cause}")]
    Connect { rank: usize, cause: String },
    #[error("epoch {ours} is stale: rank {rank} is at epoch {theirs}")]
    StaleEpoch { rank: usize, ours: u64, theirs: u64 },
    #[error("rank {rank} is lost: {cause}")]
    PeerLost { rank: usize, cause: LossCause },
    #[error("rank {rank} has closed its communicator")]
    PeerLeft { rank: usize },
    #[error("rank {rank} did not take part in {operation} within {} ms", waited.as_millis())]
    Timeout { rank: usize, operation: String, waited: Duration },
    #[error("rank {rank} called {theirs} where the others called {expected}")]
    Mismatch { rank: usize, theirs: String, expected: String },
    #[error("aborted by rank {rank}: {reason}")]
    Aborted { rank: usize, reason: String },
    #[error("system error on rank {rank}: {cause}")]
    System { rank: usize, cause: String },
}

/// How it was noticed that a rank is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LossCause {
    ProcessEnded,
    ConnectionClosed,
    /// It sent what no rank of this version sends.
    InvalidMessage,
}

impl std::fmt::Display for LossCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            LossCause::ProcessEnded => "its process ended",
            LossCause::ConnectionClosed => "its connection closed",
            LossCause::InvalidMessage => "it sent an invalid message",
        })
    }
}

/// The longest encoded error. Texts are cut to fit.
pub(crate) const ENCODED_MAX: usize = 240;
const TEXT_MAX: usize = 104;

impl Error {
    pub(crate) fn timeout(rank: usize, call: &Call, waited: Duration) -> Error {
        // Whole milliseconds travel between ranks.
        let waited = Duration::from_millis(waited.as_millis() as u64);
        Error::Timeout { rank, operation: call.to_string(), waited }
    }

    pub(crate) fn mismatch(rank: usize, theirs: &Call, expected: &Call) -> Error {
        Error::Mismatch { rank, theirs: theirs.to_string(), expected: expected.to_string() }
    }

    /// The rank that the error is about, where there is one.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Error::Config(_) | Error::Argument(_) | Error::Buffer(_) => None,
            Error::Connect { rank, .. }
            | Error::StaleEpoch { rank, .. }
            | Error::PeerLost { rank, .. }
            | Error::PeerLeft { rank }
            | Error::Timeout { rank, .. }
            | Error::Mismatch { rank, .. }
            | Error::Aborted { rank, .. }
            | Error::System { rank, .. } => Some(*rank),
        }
    }

    /// The same of a rank with another number.
    pub(crate) fn renamed(mut self, name: impl FnOnce(usize) -> usize) -> Error {
        match &mut self {
            Error::Config(_) | Error::Argument(_) | Error::Buffer(_) => {}
            Error::Connect { rank, .. }
            | Error::StaleEpoch { rank, .. }
            | Error::PeerLost { rank, .. }
            | Error::PeerLeft { rank }
            | Error::Timeout { rank, .. }
            | Error::Mismatch { rank, .. }
            | Error::Aborted { rank, .. }
            | Error::System { rank, .. } => *rank = name(*rank),
        }
        self
    }

    /// Whether the communicator can still be used.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Error::Buffer(_) | Error::Argument(_))
    }

    /// The bytes that carry the error to the other ranks.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (code, rank, number, texts): (u8, usize, u64, [&str; 2]) = match self {
            Error::Config(text) => (1, 0, 0, [text, ""]),
            Error::Argument(text) => (2, 0, 0, [text, ""]),
            Error::Buffer(_) => (2, 0, 0, ["invalid buffer", ""]),
            Error::Connect { rank, cause } => (3, *rank, 0, [cause, ""]),
            // Its own epoch travels as text, the only error with two numbers.
            Error::StaleEpoch { rank, ours, theirs } => {
                return encode_parts(4, *rank, *theirs, [&ours.to_string(), ""]);
            }
            Error::PeerLost { rank, cause } => (5, *rank, *cause as u64, ["", ""]),
            Error::PeerLeft { rank } => (6, *rank, 0, ["", ""]),
            Error::Timeout { rank, operation, waited } => (7, *rank, waited.as_millis() as u64, [operation, ""]),
            Error::Mismatch { rank, theirs, expected } => (8, *rank, 0, [theirs, expected]),
            Error::Aborted { rank, reason } => (9, *rank, 0, [reason, ""]),
            Error::System { rank, cause } => (10, *rank, 0, [cause, ""]),
        };
        encode_parts(code, rank, number, texts)
    }

    /// Reads an encoded error; `None` for anything else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Error> {
        let (code, rest) = bytes.split_first()?;
        let (rank, rest) = rest.split_first_chunk::<4>()?;
        let (number, rest) = rest.split_first_chunk::<8>()?;
        let (rank, number) = (u32::from_le_bytes(*rank) as usize, u64::from_le_bytes(*number));
        let (first, rest) = decode_text(rest)?;
        let (second, rest) = decode_text(rest)?;
        if !rest.is_empty() {
            return None;
        }
        Some(match code {
            1 => Error::Config(first),
            2 => Error::Argument(first),
            3 => Error::Connect { rank, cause: first },
            4 => Error::StaleEpoch { rank, ours: first.parse().ok()?, theirs: number },
            5 => Error::PeerLost {
                rank,
                cause: match number {
                    0 => LossCause::ProcessEnded,
                    1 => LossCause::ConnectionClosed,
                    2 => LossCause::InvalidMessage,
                    _ => return None,
                },
            },
            6 => Error::PeerLeft { rank },
            7 => Error::Timeout { rank, operation: first, waited: Duration::from_millis(number) },
            8 => Error::Mismatch { rank, theirs: first, expected: second },
            9 => Error::Aborted { rank, reason: first },
            10 => Error::System { rank, cause: first },
            _ => return None,
        })
    }
}

fn encode_parts(code: u8, rank: usize, number: u64, texts: [&str; 2]) -> Vec<u8> {
    let mut bytes = vec![code];
    bytes.extend((rank as u32).to_le_bytes());
    bytes.extend(number.to_le_bytes());
    for text in texts {
        let text = &text[..text.floor_char_boundary(TEXT_MAX)];
        bytes.push(text.len() as u8);
        bytes.extend(text.as_bytes());
    }
    bytes
}

fn decode_text(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (text, rest) = rest.split_at_checked(usize::from(*length))?;
    Some((std::str::from_utf8(text).ok()?.to_owned(), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn errors_travel_between_ranks() {
        let errors = [
            Error::Config("x".into()),
            Error::Connect { rank: 7, cause: "refused".into() },
            Error::StaleEpoch { rank: 1, ours: 3, theirs: 1 << 40 },
            Error::PeerLost { rank: 2, cause: LossCause::ProcessEnded },
            Error::PeerLost { rank: 2, cause: LossCause::ConnectionClosed },
            Error::PeerLost { rank: 2, cause: LossCause::InvalidMessage },
            Error::PeerLeft { rank: 0 },
            Error::Timeout { rank: 3, operation: "barrier()".into(), waited: Duration::from_millis(1500) },
            Error::Mismatch { rank: 3, theirs: "barrier()".into(), expected: "broadcast(f32, 3)".into() },
            Error::Aborted { rank: 4, reason: "new epoch".into() },
            Error::System { rank: 4, cause: "out of memory".into() },
        ];
        for error in errors {
            assert_eq!(Error::decode(&error.encode()), Some(error));
        }
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let error = Error::Mismatch { rank: 1, theirs: "ü".repeat(500), expected: "x".repeat(500) };
        let bytes = error.encode();
        assert!(bytes.len() <= ENCODED_MAX);
        let Some(Error::Mismatch { theirs, .. }) = Error::decode(&bytes) else { unreachable!("it decodes") };
        assert_eq!(theirs, "ü".repeat(TEXT_MAX / 2));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Error::decode(&bytes);
        }
    }
}
