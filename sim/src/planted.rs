//! The planted bugs, and the invariant that must find each.

use muster_planted::Bug;

/// By name: the bug, and the invariant that it breaks.
const BUGS: [(&str, Bug, &str); 5] = [
    ("torn-gang", Bug::TornGang, "gang-whole"),
    ("forgotten-binding", Bug::ForgottenBinding, "gpu-exclusive"),
    ("forgotten-status", Bug::ForgottenStatus, "terminal-final"),
    ("orphaned-service", Bug::OrphanedService, "owned-objects"),
    ("hasty-successor", Bug::HastySuccessor, "one-pod-per-rank"),
];

/// The names of all bugs, each with the invariant that it breaks.
pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    BUGS.into_iter().map(|(name, _, invariant)| (name, invariant))
}

/// Plants one bug and no other; false where there is none of this name.
pub fn plant(name: &str) -> bool {
    let found = BUGS.into_iter().find(|(other, ..)| *other == name);
    if let Some((_, bug, _)) = found {
        muster_planted::plant(bug);
    }
    found.is_some()
}
