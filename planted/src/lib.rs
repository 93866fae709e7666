//! Bugs that the simulation must find. They exist only in builds with the feature `planted`, one at a time, by choice
//! at run time; elsewhere `is` is a constant and nothing is left of them.

/// A mistake that could have been made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// The pods of a gang are bound one after the other, and what was bound stays when one fails.
    TornGang = 1,
    /// A binding on its way, or whose answer was lost, does not count in the next decision.
    ForgottenBinding,
    /// A status is computed anew in every pass, and what was terminal is forgotten.
    ForgottenStatus,
    /// Services are made without an owner, and stay when their job goes.
    OrphanedService,
    /// A pod that is being deleted counts as gone, and its successor has another name.
    HastySuccessor,
}

/// Whether this build can have them.
pub const POSSIBLE: bool = cfg!(feature = "planted");

#[cfg(feature = "planted")]
static PLANTED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Plants a bug in place of the one before.
#[cfg(feature = "planted")]
pub fn plant(bug: Bug) {
    PLANTED.store(bug as u8, std::sync::atomic::Ordering::Relaxed);
}

/// Whether this bug is there.
#[cfg(feature = "planted")]
pub fn is(bug: Bug) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == bug as u8
}

/// Whether this bug is there: never, in a build without them.
#[cfg(not(feature = "planted"))]
pub const fn is(_bug: Bug) -> bool {
    false
}
