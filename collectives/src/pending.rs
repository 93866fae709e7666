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

enum State<B> {
    Running,
    Ended(B, Result<(), Error>),
    /// Its thread panicked, and the buffer is gone.
    Lost,
}

struct Cell<B> {
    state: Mutex<State<B>>,
    changed: Condvar,
}

impl<B> Cell<B> {
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn set(&self, state: State<B>) {
        *self.lock() = state;
        self.changed.notify_all();
    }
}

/// The other end of a [`Pending`].
pub(crate) struct Completion<B>(Option<Arc<Cell<B>>>);

impl<B> Completion<B> {
    pub(crate) fn complete(mut self, buffer: B, result: Result<(), Error>) {
        if let Some(cell) = self.0.take() {
            cell.set(State::Ended(buffer, result));
        }
    }
}

impl<B> Drop for Completion<B> {
    fn drop(&mut self) {
        if let Some(cell) = self.0.take() {
            cell.set(State::Lost);
        }
    }
}

/// An operation that has been started.
#[must_use = "the operation's buffer and result come from `wait`"]
pub struct Pending<B>(Arc<Cell<B>>);

impl<B> Pending<B> {
    pub(crate) fn new() -> (Pending<B>, Completion<B>) {
        let cell = Arc::new(Cell { state: Mutex::new(State::Running), changed: Condvar::new() });
        (Pending(Arc::clone(&cell)), Completion(Some(cell)))
    }

    /// Whether it has ended, with or without a result.
    pub fn test(&self) -> bool {
        !matches!(*self.0.lock(), State::Running)
    }

    /// Waits until it has ended; gives the buffer back in any case. It ends for certain: every wait inside has a
    /// deadline.
    ///
    /// # Panics
    /// If the operation panicked.
    pub fn wait(self) -> (B, Result<(), Error>) {
        let mut state = self.0.lock();
        loop {
            match std::mem::replace(&mut *state, State::Running) {
                State::Ended(buffer, result) => return (buffer, result),
                State::Lost => unreachable!("an operation panicked"),
                State::Running => {}
            }
            state = self.0.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

impl<B> std::fmt::Debug for Pending<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pending(ended: {})", self.test())
    }
}
