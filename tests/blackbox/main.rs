//! The real `muster`, its real processes and the real kubectl. Every test has a server of its own in a fresh folder on
//! a free port.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may fail, wait and start things"
)]

mod bench;
mod crash;
mod examples;
mod flight;
mod gangs;
mod harness;
mod idle;
mod kubectl;
mod malformed;
mod pods;
mod process;
mod run;
mod streams;
mod trace;
mod unprivileged;
mod up;
mod upstream;
