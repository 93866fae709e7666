//! Operations that run beside the caller, in the order in which they were issued.

#![allow(unsafe_code)]

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::element::{DType, DataMut, Element};
use crate::error::Error;
use crate::segment::SharedBuffer;

/// A buffer that an operation can own while it runs.
pub trait OwnedBuffer: Send + 'static {
    fn data(&mut self) -> DataMut<'_>;
}

impl<T: Element> OwnedBuffer for Vec<T> {
    fn data(&mut self) -> DataMut<'_> {
        self.into()
    }
}

impl<T: Element> OwnedBuffer for SharedBuffer<T> {
    fn data(&mut self) -> DataMut<'_> {
        self.into()
    }
}

/// Memory that something else keeps alive, as a tensor's storage.
#[derive(Debug)]
pub struct RawBuffer {
    dtype: DType,
    pointer: *mut u8,
    count: usize,
}

impl RawBuffer {
    /// # Safety
    /// `pointer` is aligned for `dtype`, and `count` elements behind it stay valid, and untouched by anybody else in
    /// this process, until the operation that takes the buffer has ended: until [`Pending::wait`] has returned, or
    /// [`Pending::test`] has been true.
    pub unsafe fn new(dtype: DType, pointer: *mut u8, count: usize) -> RawBuffer {
        RawBuffer { dtype, pointer, count }
    }
}

// SAFETY: who made the buffer has promised that nobody else touches its elements.
unsafe impl Send for RawBuffer {}

impl OwnedBuffer for RawBuffer {
    fn data(&mut self) -> DataMut<'_> {
        // SAFETY: promised by who made the buffer.
        unsafe { DataMut::from_raw(self.dtype, self.pointer, self.count) }
    }
}

type Outcome<B> = (B, Result<(), Error>);

struct Cell<B> {
    outcome: Mutex<Option<Outcome<B>>>,
    done: Condvar,
}

impl<B> Cell<B> {
    fn lock(&self) -> MutexGuard<'_, Option<Outcome<B>>> {
        self.outcome.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// An operation that has been started.
#[must_use = "the operation's buffer and result come from `wait`"]
pub struct Pending<B>(Arc<Cell<B>>);

impl<B> Pending<B> {
    /// A pending operation and what completes it.
    pub(crate) fn new() -> (Pending<B>, impl FnOnce(B, Result<(), Error>)) {
        let cell = Arc::new(Cell { outcome: Mutex::new(None), done: Condvar::new() });
        let completed = Arc::clone(&cell);
        let complete = move |buffer, result| {
            *completed.lock() = Some((buffer, result));
            completed.done.notify_all();
        };
        (Pending(cell), complete)
    }

    /// Whether it has ended, with or without a result.
    pub fn test(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Waits until it has ended; gives the buffer back in any case. It ends for certain: every wait inside has a
    /// deadline.
    pub fn wait(self) -> (B, Result<(), Error>) {
        let mut outcome = self.0.lock();
        loop {
            if let Some(outcome) = outcome.take() {
                return outcome;
            }
            outcome = self.0.done.wait(outcome).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

impl<B> std::fmt::Debug for Pending<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pending(ended: {})", self.test())
    }
}
