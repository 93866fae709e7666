//! How shared memory is used: settings, and when a rank copies right from another's buffer.

use crate::call::Kind;

/// How ranks of one host reach each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShmOptions {
    pub reading: Reading,
}

/// When what a rank moves is read right from another's memory, in one copy, and not passed on through shared windows,
/// in two. Private memory is read by `process_vm_readv`, where the kernel lets ranks do so; nobody is written to.
/// Where the ranks of a group are set up differently, the most reluctant of them counts for all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reading {
    /// Where that was measured to be faster.
    #[default]
    Auto,
    /// From so many bytes on between two ranks.
    From(usize),
    Never,
}

/// Who moves data to whom in an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flow {
    /// Every rank to every other.
    All,
    /// One to others, or others to one.
    One,
}

impl Flow {
    pub(super) fn of(kind: Kind) -> Flow {
        match kind {
            Kind::AllGather | Kind::AllToAll { .. } => Flow::All,
            _ => Flow::One,
        }
    }
}

impl Reading {
    /// As a word that ranks compare: the largest counts.
    pub(super) fn word(self) -> u64 {
        match self {
            Reading::Auto => 0,
            Reading::From(bytes) => (bytes as u64).clamp(1, u64::MAX - 1),
            Reading::Never => u64::MAX,
        }
    }

    pub(super) fn from_word(word: u64) -> Reading {
        match word {
            0 => Reading::Auto,
            u64::MAX => Reading::Never,
            bytes => Reading::From(bytes as usize),
        }
    }

    /// Whether `bytes` between two ranks are read; `sharing` says that ranks share processors, so that a chunk more
    /// costs a change from one to the other.
    pub(super) fn pays(self, flow: Flow, bytes: usize, sharing: bool) -> bool {
        match self {
            Reading::Never => false,
            Reading::From(from) => bytes >= from,
            Reading::Auto => match (flow, sharing) {
                (Flow::All, _) | (Flow::One, true) => bytes >= 128 << 10,
                (Flow::One, false) => false,
            },
        }
    }
}
