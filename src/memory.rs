//! Freed memory goes back to the machine. The allocator keeps it otherwise: of what reading the schemas and the store
//! took at the start, more than a fifth of the whole process.
#![allow(unsafe_code)]

use std::time::Duration;

/// The start is over by then.
const FIRST: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(60);

/// Gives back now and then, for ever.
pub(crate) async fn give_back() {
    tokio::time::sleep(FIRST).await;
    loop {
        // Some milliseconds, during which no other task should wait for this thread. A failed one is tried again.
        let _ = tokio::task::spawn_blocking(trim).await;
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: glibc's own call, safe from any thread; it changes only memory that is not allocated.
    unsafe { nix::libc::malloc_trim(0) };
}

/// Other allocators do so by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}
