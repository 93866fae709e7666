//! Bugs that the simulation must find. They exist only in builds with the feature `planted`, one at a time, by choice
//! at run time; elsewhere `is` is a constant and nothing is left of them.

/// A mistake that could have been made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// A status is computed anew in every pass, and what was terminal is forgotten.
    ForgottenStatus,
    /// Services are made without an owner, and stay when their job goes.
    OrphanedService,
    /// A pod that is being deleted counts as gone, and its successor has another name.
    HastySuccessor,
}

#[cfg(feature = "planted")]
static PLANTED: std::sync::OnceLock<Bug> = std::sync::OnceLock::new();

/// Plants a bug for the rest of the process.
#[cfg(feature = "planted")]
pub fn plant(bug: Bug) {
    // The first one stays.
    let _ = PLANTED.set(bug);
}

#[cfg(feature = "planted")]
pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(&bug)
}

#[cfg(not(feature = "planted"))]
pub(crate) const fn is(_bug: Bug) -> bool {
    false
}
