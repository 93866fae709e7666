//! Each planted bug is found, by its invariant. Needs the feature `planted`.
#![cfg(feature = "planted")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::process::Command;

#[test]
fn every_planted_bug_is_found_by_its_invariant() {
    for (bug, invariant) in muster_sim::planted::names() {
        let output = Command::new(env!("CARGO_BIN_EXE_muster-sim"))
            .args(["fuzz", "--seeds", "0..500", "--plant", bug])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{bug} was not found");
        assert!(said.contains(&format!("breaks {invariant}: ")), "{bug} should break {invariant}: {said}");
        println!("{bug}: {}", said.lines().next().unwrap_or_default());
    }
}
