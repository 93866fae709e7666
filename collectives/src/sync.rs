//! What threads and processes keep each other in step with. Under `--cfg loom` the tests take loom's in its place, which
//! goes through all orders in which they could run: see `make test-loom`.

#[cfg(all(loom, test))]
pub(crate) use loom::sync::{
    Condvar, Mutex,
    atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence},
};
#[cfg(not(all(loom, test)))]
pub(crate) use std::sync::{
    Condvar, Mutex,
    atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence},
};
