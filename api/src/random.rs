//! Randomness as a value: uids, name suffixes, port choice. Seeded in the simulation, so that a run can be repeated.
//!
//! Not for keys and tokens: those take the operating system's generator directly.

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Letters and digits that cannot form words or be mistaken for each other (as in generated names of Kubernetes).
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A source of random values. Clones share one stream.
#[derive(Clone)]
pub struct Random(Arc<Mutex<StdRng>>);

impl Random {
    /// Seeded by the operating system.
    pub fn system() -> Self {
        Random(Arc::new(Mutex::new(rand::make_rng())))
    }

    /// The same seed gives the same values in the same order.
    pub fn seeded(seed: u64) -> Self {
        Random(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    fn with<T>(&self, f: impl FnOnce(&mut StdRng) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn fill(&self, bytes: &mut [u8]) {
        self.with(|rng| rng.fill_bytes(bytes));
    }

    /// A number below `bound`; 0 where `bound` is 0.
    pub fn below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.with(|rng| rng.random_range(0..bound)) }
    }

    /// A version 4 UUID, as `metadata.uid` carries it.
    pub fn uuid(&self) -> String {
        let mut b = [0u8; 16];
        self.fill(&mut b);
        b[6] = (b[6] & 0x0f) | 0x40;
        b[8] = (b[8] & 0x3f) | 0x80;
        let n = u128::from_be_bytes(b);
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            n >> 96,
            (n >> 80) & 0xffff,
            (n >> 64) & 0xffff,
            (n >> 48) & 0xffff,
            n & 0xffff_ffff_ffff
        )
    }

    /// `length` characters for the end of a generated name.
    pub fn suffix(&self, length: usize) -> String {
        self.with(|rng| (0..length).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect())
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_values_again() {
        let (a, b) = (Random::seeded(7), Random::seeded(7));
        for _ in 0..10 {
            assert_eq!((a.uuid(), a.suffix(5), a.below(9)), (b.uuid(), b.suffix(5), b.below(9)));
        }
        assert_ne!(a.uuid(), Random::seeded(8).uuid());
    }

    #[test]
    fn uuids_have_version_4_and_the_rfc_variant() {
        let uuid = Random::system().uuid();
        assert_eq!(uuid.len(), 36);
        assert_eq!(&uuid[14..15], "4");
        assert!("89ab".contains(&uuid[19..20]));
    }
}
