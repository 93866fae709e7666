//! Bugs that the simulation must find. They exist only in builds with the feature `planted`, one at a time, by choice
//! at run time; elsewhere `is` is a constant and nothing is left of them.

/// A mistake that could have been made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// The pods of a gang are bound one after the other, and what was bound stays when one fails.
    TornGang = 1,
    /// A binding on its way, or whose answer was lost, does not count in the next decision.
    ForgottenBinding,
}

/// Whether this build can have them.
pub const POSSIBLE: bool = cfg!(feature = "planted");

#[cfg(feature = "planted")]
static PLANTED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Plants a bug in place of the one before, or none.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.store(bug.map_or(0, |bug| bug as u8), std::sync::atomic::Ordering::Relaxed);
}

#[cfg(feature = "planted")]
pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == bug as u8
}

#[cfg(not(feature = "planted"))]
pub(crate) const fn is(_bug: Bug) -> bool {
    false
}
