//! What a rank is asked to do: compared between ranks before any data is touched.

use std::fmt;

use crate::element::DType;
use crate::reduce::ReduceOp;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Barrier,
    AllReduce(ReduceOp),
    Broadcast {
        root: u32,
    },
    AllGather,
    ReduceScatter(ReduceOp),
    Reduce {
        op: ReduceOp,
        root: u32,
    },
    Gather {
        root: u32,
    },
    Scatter {
        root: u32,
    },
    /// With a count for each pair of ranks of its own, or one for all.
    AllToAll {
        uneven: bool,
    },
    /// From one rank to one other; counted for the two alone.
    Message {
        from: u32,
    },
    Allocate,
    Split,
}

/// Where a rank's data lies: in a segment that the ranks of its host share, or in its own memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Location {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
}

/// One operation as one rank calls it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Call {
    /// The how many-eth operation of the communicator it is.
    pub(crate) sequence: u64,
    pub(crate) kind: Kind,
    pub(crate) dtype: DType,
    pub(crate) count: u64,
}

pub(crate) const CALL_BYTES: usize = 24;

impl Call {
    pub(crate) fn encode(&self) -> [u8; CALL_BYTES] {
        let (kind, op, root) = match self.kind {
            Kind::Barrier => (1, 0, 0),
            Kind::AllReduce(op) => (2, op as u8, 0),
            Kind::Broadcast { root } => (3, 0, root),
            Kind::AllGather => (4, 0, 0),
            Kind::ReduceScatter(op) => (5, op as u8, 0),
            Kind::Allocate => (6, 0, 0),
            Kind::Reduce { op, root } => (7, op as u8, root),
            Kind::Gather { root } => (8, 0, root),
            Kind::Scatter { root } => (9, 0, root),
            Kind::AllToAll { uneven } => (10, uneven.into(), 0),
            Kind::Message { from } => (11, 0, from),
            Kind::Split => (12, 0, 0),
        };
        let mut bytes = [0; CALL_BYTES];
        bytes[0..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.count.to_le_bytes());
        bytes[16..20].copy_from_slice(&root.to_le_bytes());
        bytes[20..23].copy_from_slice(&[kind, op, self.dtype as u8]);
        bytes
    }

    /// The encoded call as words.
    #[inline]
    pub(crate) fn words(&self) -> [u64; CALL_BYTES / 8] {
        let bytes = self.encode();
        let (words, _) = bytes.as_chunks::<8>();
        std::array::from_fn(|index| u64::from_le_bytes(words[index]))
    }

    pub(crate) fn from_words(words: [u64; CALL_BYTES / 8]) -> Option<Call> {
        let mut bytes = [0; CALL_BYTES];
        for (target, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *target = word.to_le_bytes();
        }
        Call::decode(&bytes)
    }

    /// Reads an encoded call; `None` for anything else.
    pub(crate) fn decode(bytes: &[u8; CALL_BYTES]) -> Option<Call> {
        let (sequence, rest) = bytes.split_first_chunk::<8>()?;
        let (count, rest) = rest.split_first_chunk::<8>()?;
        let (root, rest) = rest.split_first_chunk::<4>()?;
        let &[kind, op, dtype, 0] = rest else { return None };
        let root = u32::from_le_bytes(*root);
        let kind = match kind {
            1 => Kind::Barrier,
            2 => Kind::AllReduce(ReduceOp::from_code(op)?),
            3 => Kind::Broadcast { root },
            4 => Kind::AllGather,
            5 => Kind::ReduceScatter(ReduceOp::from_code(op)?),
            6 => Kind::Allocate,
            7 => Kind::Reduce { op: ReduceOp::from_code(op)?, root },
            8 => Kind::Gather { root },
            9 => Kind::Scatter { root },
            10 => Kind::AllToAll { uneven: op != 0 },
            11 => Kind::Message { from: root },
            12 => Kind::Split,
            _ => return None,
        };
        Some(Call {
            sequence: u64::from_le_bytes(*sequence),
            kind,
            dtype: DType::from_code(dtype)?,
            count: u64::from_le_bytes(*count),
        })
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Call { sequence, kind, dtype, count } = self;
        match kind {
            Kind::Barrier => write!(f, "barrier()"),
            Kind::AllReduce(op) => write!(f, "all_reduce({op}, {dtype}, {count})"),
            Kind::Broadcast { root } => write!(f, "broadcast(root {root}, {dtype}, {count})"),
            Kind::AllGather => write!(f, "all_gather({dtype}, {count})"),
            Kind::ReduceScatter(op) => write!(f, "reduce_scatter({op}, {dtype}, {count})"),
            Kind::Reduce { op, root } => write!(f, "reduce({op}, root {root}, {dtype}, {count})"),
            Kind::Gather { root } => write!(f, "gather(root {root}, {dtype}, {count})"),
            Kind::Scatter { root } => write!(f, "scatter(root {root}, {dtype}, {count})"),
            Kind::AllToAll { uneven: false } => write!(f, "all_to_all({dtype}, {count})"),
            Kind::AllToAll { uneven: true } => write!(f, "all_to_all({dtype}, uneven)"),
            Kind::Message { from } => write!(f, "message(from {from}, {dtype}, {count})"),
            Kind::Allocate => write!(f, "allocate({dtype}, {count})"),
            Kind::Split => write!(f, "split()"),
        }?;
        write!(f, " as operation {sequence}")
    }
}

/// The first call that differs from what most called (of several equally frequent, the first): the same verdict on
/// every rank that sees the same calls. Gives the index of the odd one and the expected call.
pub(crate) fn odd_one(calls: &[Option<Call>]) -> Option<(usize, Option<Call>)> {
    let first = calls.first()?;
    if calls.iter().all(|call| call == first) {
        return None;
    }
    let frequency = |call: &Option<Call>| calls.iter().filter(|other| *other == call).count();
    let most = calls.iter().map(frequency).max()?;
    let expected = calls.iter().find(|call| frequency(call) == most)?;
    let odd = calls.iter().position(|call| call != expected)?;
    Some((odd, *expected))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn call(kind: Kind, count: u64) -> Call {
        Call { sequence: 9, kind, dtype: DType::F32, count }
    }

    #[test]
    fn calls_are_read_back() {
        let kinds = [
            Kind::Barrier,
            Kind::AllReduce(ReduceOp::Mean),
            Kind::Broadcast { root: 70_000 },
            Kind::AllGather,
            Kind::ReduceScatter(ReduceOp::Max),
            Kind::Reduce { op: ReduceOp::Min, root: 3 },
            Kind::Gather { root: 1 },
            Kind::Scatter { root: 2 },
            Kind::AllToAll { uneven: true },
            Kind::AllToAll { uneven: false },
            Kind::Message { from: 9 },
            Kind::Allocate,
            Kind::Split,
        ];
        for kind in kinds {
            let call = call(kind, 1 << 40);
            assert_eq!(Call::decode(&call.encode()), Some(call));
            assert_eq!(Call::from_words(call.words()), Some(call));
        }
    }

    #[test]
    fn the_odd_one_is_the_one_unlike_most() {
        let (a, b) = (Some(call(Kind::Barrier, 0)), Some(call(Kind::AllGather, 4)));
        assert_eq!(odd_one(&[a, a, a]), None);
        assert_eq!(odd_one(&[b, a, a]), Some((0, a)));
        assert_eq!(odd_one(&[a, a, b, b, a]), Some((2, a)));
        assert_eq!(odd_one(&[a, b]), Some((1, a)));
        assert_eq!(odd_one(&[a, None]), Some((1, a)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in any::<[u8; CALL_BYTES]>()) {
            if let Some(call) = Call::decode(&bytes) {
                prop_assert_eq!(Call::decode(&call.encode()), Some(call));
            }
        }
    }
}
