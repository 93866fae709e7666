//! A seeded world: the real API server, training operator and gang scheduler on one thread with a paused clock, over
//! a memory store; simulated machines and users; faults on every connection; invariants after every transaction.
//!
//! One seed is one world: equal seeds give equal traces, so a seed that fails is the reproduction of its failure.
//! What is not simulated: processes, sockets, disks (the store's own tests do that) and the rendezvous.

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
