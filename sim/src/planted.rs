//! The planted bugs, and the invariant that must find each.

use muster_launcher::planted::Bug as LauncherBug;
use muster_operator::planted::Bug as OperatorBug;

#[derive(Clone, Copy, Debug)]
enum Bug {
    Operator(OperatorBug),
    Launcher(LauncherBug),
}

/// By name: the bug, and the invariant that it breaks.
const BUGS: [(&str, Bug, &str); 5] = [
    ("torn-gang", Bug::Launcher(LauncherBug::TornGang), "gang-whole"),
    ("forgotten-binding", Bug::Launcher(LauncherBug::ForgottenBinding), "gpu-exclusive"),
    ("forgotten-status", Bug::Operator(OperatorBug::ForgottenStatus), "terminal-final"),
    ("orphaned-service", Bug::Operator(OperatorBug::OrphanedService), "owned-objects"),
    ("hasty-successor", Bug::Operator(OperatorBug::HastySuccessor), "one-pod-per-rank"),
];

/// The names of all bugs, each with the invariant that it breaks.
pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    BUGS.into_iter().map(|(name, _, invariant)| (name, invariant))
}

/// Plants one bug and no other; false where there is none of this name.
pub fn plant(name: &str) -> bool {
    let Some((_, bug, _)) = BUGS.into_iter().find(|(other, ..)| *other == name) else { return false };
    let (operator, launcher) = match bug {
        Bug::Operator(bug) => (Some(bug), None),
        Bug::Launcher(bug) => (None, Some(bug)),
    };
    muster_operator::planted::plant(operator);
    muster_launcher::planted::plant(launcher);
    true
}
