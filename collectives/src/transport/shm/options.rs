//! How shared memory is used: settings, and when a rank copies right from another's buffer.

use std::ops::RangeInclusive;

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

/// Who moves data to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flow {
    Broadcast,
    Gather,
    Scatter,
    AllGather,
    AllToAll,
    Message,
    /// A message to one rank while another comes in.
    MessageBothWays,
}

impl Flow {
    pub(super) fn of(kind: Kind) -> Option<Flow> {
        match kind {
            Kind::Broadcast { .. } => Some(Flow::Broadcast),
            Kind::Gather { .. } => Some(Flow::Gather),
            Kind::Scatter { .. } => Some(Flow::Scatter),
            Kind::AllGather => Some(Flow::AllGather),
            Kind::AllToAll { .. } => Some(Flow::AllToAll),
            _ => None,
        }
    }

    /// The bytes between two ranks for which reading was faster, on two cores with two ranks and with four. Where one
    /// rank reads and the other looks on, windows have both at work, and win for much data: the kernel's copies cost
    /// more a page than the second copy does. So they do for what is in no cache. Where ranks share processors
    /// (`sharing`), no time is lost by looking on; but what several read is in the cache for all after the first, if
    /// it goes through windows.
    fn read_for(self, sharing: bool) -> RangeInclusive<usize> {
        const KIB: usize = 1 << 10;
        // As many as nobody has.
        const NONE: RangeInclusive<usize> = usize::MAX..=usize::MAX;
        match (self, sharing) {
            (Flow::Broadcast, false) => 32 * KIB..=512 * KIB,
            (Flow::Gather, false) => 32 * KIB..=256 * KIB,
            (Flow::Broadcast | Flow::Gather | Flow::AllGather, true) => NONE,
            (Flow::AllGather, false) => 32 * KIB..=2048 * KIB,
            (Flow::AllToAll, false) => 64 * KIB..=2048 * KIB,
            (Flow::Scatter, false) => 32 * KIB..=usize::MAX,
            (Flow::Scatter | Flow::AllToAll, true) => 64 * KIB..=usize::MAX,
            (Flow::Message, _) => 32 * KIB..=512 * KIB,
            (Flow::MessageBothWays, false) => 32 * KIB..=4096 * KIB,
            (Flow::MessageBothWays, true) => 32 * KIB..=usize::MAX,
        }
    }
}

/// The same for what lies in a segment that all ranks have mapped.
const MAPPED: usize = 32 << 10;

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

    /// Whether `bytes` between two ranks are read out of private memory; `sharing` says that ranks share processors.
    pub(super) fn pays(self, flow: Flow, bytes: usize, sharing: bool) -> bool {
        match self {
            Reading::Never => false,
            Reading::From(from) => bytes >= from,
            Reading::Auto => flow.read_for(sharing).contains(&bytes),
        }
    }

    /// Whether they are copied out of a segment.
    pub(super) fn pays_mapped(self, bytes: usize) -> bool {
        match self {
            Reading::Never => false,
            Reading::From(from) => bytes >= from,
            Reading::Auto => bytes >= MAPPED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_reluctant_counts() {
        let words = [Reading::Auto, Reading::From(0), Reading::From(100), Reading::Never].map(Reading::word);
        assert!(words.is_sorted());
        assert_eq!(
            words.map(Reading::from_word),
            [Reading::Auto, Reading::From(1), Reading::From(100), Reading::Never]
        );
    }

    #[test]
    fn little_goes_through_windows_unless_asked_for() {
        for flow in [Flow::Broadcast, Flow::Scatter, Flow::AllToAll, Flow::Message] {
            for sharing in [false, true] {
                assert!(!Reading::Auto.pays(flow, 4096, sharing));
                assert!(Reading::From(4096).pays(flow, 4096, sharing));
                assert!(!Reading::Never.pays(flow, 1 << 30, sharing));
            }
        }
        assert!(Reading::Auto.pays(Flow::AllToAll, 1 << 20, true));
        assert!(!Reading::Auto.pays(Flow::AllGather, 1 << 20, true), "windows are read by all at once");
        assert!(!Reading::Auto.pays(Flow::Message, 16 << 20, false), "one rank would look on");
    }
}
