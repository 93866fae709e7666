//! Bugs that the simulation must find. They exist only in builds with the feature `planted`, one at a time, by choice
//! at run time; elsewhere `is` is a constant and nothing is left of them.

/// A mistake that could have been made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// The pods of a gang are bound one after the other, and what was bound stays when one fails.
    TornGang,
    /// A binding on its way does not count in the next decision.
    ForgottenBinding,
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
