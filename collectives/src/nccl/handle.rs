//! What the threads that use a communicator share: whose turn it is, the first failure, and the way to its end.
//!
//! NCCL allows one thread at a time in a communicator's functions, and a new call only after the last one has said
//! that it is done; only an abort may come at any time. So a call takes its turn, calls, and asks until it is done.
//! An abort marks the failure, which ends all waits here at once, and a thread of its own then calls NCCL's abort.
//! That one frees the communicator, so it waits for an open group to be closed, and for a call in progress to come
//! back; for the latter not for long, as NCCL's abort is also what ends a call that is stuck.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::nccl::abi::{IN_PROGRESS, RawComm};
use crate::nccl::error::Error;
use crate::nccl::library::Library;

/// Ends a communicator from any thread, also while it is being formed. A handle belongs to one
/// [`Config`](crate::nccl::Config).
#[derive(Clone)]
pub struct AbortHandle(pub(super) Arc<Handle>);

impl AbortHandle {
    // Not `Default`: each handle is a thing of its own.
    #[allow(clippy::new_without_default)]
    pub fn new() -> AbortHandle {
        AbortHandle(Arc::new(Handle { state: Mutex::default(), changed: Condvar::new() }))
    }

    /// Ends every waiting and every later call with [`Error::Aborted`], and the communicator's work on the GPU.
    /// Other ranks are not told: they notice by their deadlines, or abort as well. Returns at once.
    pub fn abort(&self, reason: &str) {
        self.0.fail(Error::Aborted(reason.to_owned()));
    }

    /// The error that ended the communicator, if any did.
    pub fn failure(&self) -> Option<Error> {
        self.0.lock().failure.clone()
    }
}

impl std::fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AbortHandle({:?})", self.failure())
    }
}

pub(super) struct Handle {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    armed: bool,
    communicator: Option<(Library, Comm)>,
    failure: Option<Error>,
    /// A thread has its turn.
    busy: bool,
    /// A thread is in one of NCCL's functions with the communicator.
    inside: bool,
    /// Calls are collected in a thread's open group, where NCCL holds the communicator.
    grouped: bool,
    /// The communicator is freed, or was never made.
    ended: bool,
}

#[derive(Clone, Copy)]
struct Comm(RawComm);

// SAFETY: the pointer may be used by any thread, one at a time, which the state's turns see to.
unsafe impl Send for Comm {}

/// How long an abort waits for a call in progress to come back.
const GRACE: Duration = Duration::from_millis(500);

/// Between two questions whether a call is done: nearly always it is at the first.
const FIRST_PAUSE: Duration = Duration::from_micros(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

impl Handle {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wait_until<'a>(&self, state: MutexGuard<'a, State>, deadline: Instant) -> MutexGuard<'a, State> {
        let remaining = deadline.saturating_duration_since(Instant::now());
        match self.changed.wait_timeout(state, remaining) {
            Ok((state, _)) => state,
            Err(poisoned) => poisoned.into_inner().0,
        }
    }

    /// Claims the handle for one communicator; fails if it has been aborted before.
    pub(super) fn arm(&self) -> Result<(), Error> {
        let mut state = self.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        if std::mem::replace(&mut state.armed, true) {
            return Err(Error::Argument("the abort handle belongs to another communicator".to_owned()));
        }
        Ok(())
    }

    /// From now on there is a communicator. It may have failed before it was there.
    pub(super) fn attach(self: &Arc<Self>, library: &Library, comm: RawComm) -> Result<(), Error> {
        let mut state = self.lock();
        state.communicator = Some((library.clone(), Comm(comm)));
        let Some(failure) = state.failure.clone() else { return Ok(()) };
        drop(state);
        self.start_abort();
        Err(failure)
    }

    /// Ends the communicator with `error`, or with the cause that came first; gives the one that counts.
    pub(super) fn fail(self: &Arc<Self>, error: Error) -> Error {
        let mut state = self.lock();
        if let Some(first) = &state.failure {
            return first.clone();
        }
        state.failure = Some(error.clone());
        drop(state);
        self.changed.notify_all();
        self.start_abort();
        error
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        self.lock().failure.clone().map_or(Ok(()), Err)
    }

    /// Waits for other threads' calls to be done.
    pub(super) fn turn(self: &Arc<Self>, what: &'static str, limit: Duration) -> Result<Turn, Error> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            if state.communicator.is_none() {
                return Err(Error::Closed);
            }
            if !state.busy {
                state.busy = true;
                return Ok(Turn { handle: Arc::clone(self), what, deadline, limit });
            }
            if Instant::now() >= deadline {
                drop(state);
                return Err(self.fail(Error::Timeout { what, waited: limit }));
            }
            state = self.wait_until(state, deadline);
        }
    }

    /// Waits until `done` says so, and meanwhile for a failure of the communicator and for the deadline.
    pub(super) fn wait_for(
        self: &Arc<Self>,
        what: &'static str,
        limit: Duration,
        mut done: impl FnMut() -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            if done().map_err(|error| self.fail(error))? {
                return Ok(());
            }
            self.ask()?;
            if start.elapsed() >= limit {
                return Err(self.fail(Error::Timeout { what, waited: limit }));
            }
            self.pause(&mut pause, start + limit);
        }
    }

    /// Asks NCCL how the communicator is: whether its last call is still in progress.
    pub(super) fn ask(self: &Arc<Self>) -> Result<bool, Error> {
        let state = self.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        let Some((library, comm)) = &state.communicator else { return Err(Error::Closed) };
        if state.inside || state.grouped {
            // Another thread's call is with it now, and will ask itself.
            return Ok(false);
        }
        let mut code = 0;
        // SAFETY: the communicator is there as long as the state says so and is locked, and nobody is inside. The
        // function does not wait for anything.
        let answer = unsafe { (library.functions().comm_get_async_error)(comm.0, &raw mut code) };
        let library = library.clone();
        drop(state);
        for (function, code) in [("ncclCommGetAsyncError", answer), ("an operation", code)] {
            if code == IN_PROGRESS {
                return Ok(true);
            }
            library.check(function, code).map_err(|error| self.fail(error))?;
        }
        Ok(false)
    }

    fn pause(&self, pause: &mut Duration, deadline: Instant) {
        let state = self.lock();
        if state.failure.is_none() {
            drop(self.wait_until(state, deadline.min(Instant::now() + *pause)));
        }
        *pause = (*pause * 2).min(LONGEST_PAUSE);
    }

    /// Calls NCCL's abort, once, in a thread of its own, as it may take long.
    fn start_abort(self: &Arc<Self>) {
        if self.lock().communicator.is_none() {
            return;
        }
        let handle = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("nccl-abort".to_owned()).spawn(move || handle.abort());
        if spawned.is_err() {
            self.abort();
        }
    }

    fn abort(&self) {
        let deadline = Instant::now() + GRACE;
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if state.grouped {
                state = self.wait_until(state, now + LONGEST_PAUSE * 1000);
            } else if state.inside && now < deadline {
                state = self.wait_until(state, deadline);
            } else {
                break;
            }
        }
        let taken = state.communicator.take();
        drop(state);
        if let Some((library, comm)) = taken {
            // SAFETY: the communicator was taken out of the state, so nobody else uses it from now on, but for a call
            // that has not come back: NCCL's abort first sets the flag that makes it come back.
            unsafe { (library.functions().comm_abort)(comm.0) };
            self.end();
        }
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Frees a communicator that works, or waits until one that has failed is freed.
    pub(super) fn close(self: &Arc<Self>, limit: Duration) -> Result<(), Error> {
        let result = self.finalize(limit);
        if result.is_err() {
            let deadline = Instant::now() + limit;
            let mut state = self.lock();
            while !state.ended && Instant::now() < deadline {
                state = self.wait_until(state, deadline);
            }
        }
        result
    }

    fn finalize(self: &Arc<Self>, limit: Duration) -> Result<(), Error> {
        let turn = self.turn("ncclCommFinalize", limit)?;
        // SAFETY: the function is given this communicator, whose turn it is.
        turn.call("ncclCommFinalize", |library, comm| unsafe { (library.functions().comm_finalize)(comm) })?;
        turn.settle()?;
        let taken = self.lock().communicator.take();
        let Some((library, comm)) = taken else { return self.check() };
        // SAFETY: the communicator was taken out of the state, so this is its last use, and it has been finalized.
        let code = unsafe { (library.functions().comm_destroy)(comm.0) };
        self.end();
        library.check("ncclCommDestroy", code)
    }
}

/// One thread's turn to call.
pub(super) struct Turn {
    handle: Arc<Handle>,
    what: &'static str,
    deadline: Instant,
    limit: Duration,
}

impl Turn {
    /// Calls a function of NCCL. What it leaves in progress is not waited for yet.
    pub(super) fn call(
        &self,
        function: &'static str,
        call: impl FnOnce(&Library, RawComm) -> c_int,
    ) -> Result<(), Error> {
        let mut state = self.handle.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        let (library, comm) = state.communicator.clone().ok_or(Error::Closed)?;
        state.inside = true;
        drop(state);
        let code = call(&library, comm.0);
        self.handle.lock().inside = false;
        self.handle.changed.notify_all();
        match code {
            IN_PROGRESS => Ok(()),
            code => library.check(function, code).map_err(|error| self.handle.fail(error)),
        }
    }

    /// Keeps the communicator from being freed while NCCL holds it in a group.
    pub(super) fn set_grouped(&self, grouped: bool) {
        self.handle.lock().grouped = grouped;
        self.handle.changed.notify_all();
    }

    /// Waits until the last call is done.
    pub(super) fn settle(&self) -> Result<(), Error> {
        let mut pause = FIRST_PAUSE;
        while self.handle.ask()? {
            if Instant::now() >= self.deadline {
                return Err(self.handle.fail(Error::Timeout { what: self.what, waited: self.limit }));
            }
            self.handle.pause(&mut pause, self.deadline);
        }
        Ok(())
    }

    pub(super) fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.handle.lock();
        (state.busy, state.grouped) = (false, false);
        drop(state);
        self.handle.changed.notify_all();
    }
}
