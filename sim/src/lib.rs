//! A seeded world: the real API server, training operator and gang scheduler on one thread with a paused clock, over
//! a memory store; simulated machines and users; faults on every connection; invariants after every transaction.
//!
//! One seed is one world: equal seeds give equal traces, so a seed that fails is the reproduction of its failure.
//! What is not simulated: processes, sockets, disks (the store's own tests do that) and the rendezvous.
//!
//! | command | what it does |
//! |---|---|
//! | `muster-sim fuzz --seeds 0..2000` | runs the worlds until one breaks an invariant, and shows the end of its trace |
//! | `muster-sim trace --seed 11` | shows all of it: every commit with a digest of its objects, and every fault |
//! | `muster-sim fuzz --seeds 0..2000 --plant torn-gang` | finds a planted bug (feature `planted`) |
//! | `make test-sim` | the first and the last, as CI runs them |
//!
//! What makes a trace equal: one thread; tokio's paused clock, which all parts read; a backend that commits on the
//! caller's thread; seeded randomness for all that is random; and no order that comes from elsewhere, such as that of
//! hash maps, of `select!` without `biased`, or of the waiters of `tokio::sync::watch`. Code that takes part must keep to that.
//!
//! The planted bugs are compiled in by the feature `planted` only, and `muster` does not compile with it.

pub mod cluster;
pub mod faults;
pub mod fuzz;
pub mod history;
pub mod invariants;
pub mod machines;
#[cfg(feature = "planted")]
pub mod planted;
pub mod scenario;
pub mod users;
pub mod world;
