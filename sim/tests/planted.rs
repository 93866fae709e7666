//! Each planted bug is found, by its invariant: the invariants can fail. Needs the feature `planted`.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use muster_sim::{fuzz, planted};

#[test]
fn every_planted_bug_is_found_by_its_invariant() {
    for (bug, invariant) in planted::names() {
        assert!(planted::plant(bug));
        let report = fuzz::run(0..1000, 2);
        let found = report.broken.map(|(seed, outcome)| (seed, outcome.violation.unwrap()));
        let (seed, violation) = found.unwrap_or_else(|| panic!("{bug} was not found in {} worlds", report.worlds));
        println!("{bug}: found by seed {seed}: {violation}");
        assert_eq!(violation.invariant, invariant, "{bug}: {violation}");
    }
}
