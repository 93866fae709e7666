//! Worlds keep the invariants, and a seed is a reproduction. `make test-sim` runs many more of them.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::process::Command;

use muster_sim::world;

#[test]
fn worlds_keep_the_invariants() {
    for seed in 0..60 {
        let outcome = world::run(seed);
        assert_eq!(outcome.violation, None, "seed {seed}:\n{}", outcome.trace);
    }
}

/// In one process and in another: the maps of the standard library are seeded differently in each.
#[test]
fn a_seed_gives_the_same_trace_again() {
    for seed in 0..40 {
        let first = world::run(seed).trace;
        let again = world::run(seed).trace;
        let elsewhere = Command::new(env!("CARGO_BIN_EXE_muster-sim"))
            .args(["trace", "--seed", &seed.to_string()])
            .output()
            .unwrap();
        assert!(first.lines().count() > 20, "something happens");
        for other in [again, String::from_utf8(elsewhere.stdout).unwrap()] {
            if let Some((a, b)) = first.lines().zip(other.lines()).find(|(a, b)| a != b) {
                panic!("seed {seed} differs:\n{a}\n{b}");
            }
            assert_eq!(first.len(), other.len(), "seed {seed}");
        }
    }
}
