//! Calls that start together: several sends and receives that would otherwise wait for each other.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::nccl::error::Error;
use crate::nccl::handle::{Handle, Turn};
use crate::nccl::library::Library;

thread_local! {
    /// The communicators that the calls of this thread's open group belong to.
    static OPEN: RefCell<Option<Vec<Turn>>> = const { RefCell::new(None) };
}

/// An open group: calls of this thread are collected, and start with [`Group::end`].
///
/// Dropped without it, its calls start nevertheless, as NCCL has no way to take them back, and their communicators
/// fail: the calls that are missing are what other ranks would wait for.
#[derive(Debug)]
pub struct Group {
    library: Library,
    ended: bool,
    /// NCCL's groups belong to threads.
    thread: PhantomData<*const ()>,
}

impl Group {
    pub fn start(library: &Library) -> Result<Group, Error> {
        if is_open() {
            return Err(Error::Argument("this thread has a group open".to_owned()));
        }
        // SAFETY: the function has no preconditions.
        library.check("ncclGroupStart", unsafe { (library.functions().group_start)() })?;
        OPEN.set(Some(Vec::new()));
        Ok(Group { library: library.clone(), ended: false, thread: PhantomData })
    }

    /// Starts the calls, and returns when each has been put on its stream.
    pub fn end(mut self) -> Result<(), Error> {
        self.ended = true;
        let (turns, result) = self.finish();
        result?;
        turns.iter().try_for_each(Turn::settle)
    }

    fn finish(&self) -> (Vec<Turn>, Result<(), Error>) {
        let turns = OPEN.take().unwrap_or_default();
        // SAFETY: the thread has a group open, and the communicators in it are not freed while they are marked so.
        let code = unsafe { (self.library.functions().group_end)() };
        turns.iter().for_each(|turn| turn.set_grouped(false));
        let result = match code {
            crate::nccl::abi::IN_PROGRESS => Ok(()),
            code => self.library.check("ncclGroupEnd", code),
        };
        if let Err(error) = &result {
            turns.iter().for_each(|turn| drop(turn.handle().fail(error.clone())));
        }
        (turns, result)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.ended {
            let (turns, _) = self.finish();
            for turn in turns {
                turn.handle().fail(Error::Aborted("a group of calls was given up half-way".to_owned()));
            }
        }
    }
}

pub(super) fn is_open() -> bool {
    OPEN.with_borrow(Option::is_some)
}

/// Runs `call` with a turn of `handle`: one that the open group keeps until its end, or one that ends when the call
/// has been put on its stream.
pub(super) fn in_turn(
    handle: &Arc<Handle>,
    turn: impl FnOnce() -> Result<Turn, Error>,
    call: impl FnOnce(&Turn) -> Result<(), Error>,
) -> Result<(), Error> {
    OPEN.with_borrow_mut(|open| match open {
        Some(turns) => {
            let place = match turns.iter().position(|turn| Arc::ptr_eq(turn.handle(), handle)) {
                Some(place) => place,
                None => {
                    let turn = turn()?;
                    turn.set_grouped(true);
                    turns.push(turn);
                    turns.len() - 1
                }
            };
            call(&turns[place])
        }
        None => {
            let turn = turn()?;
            call(&turn)?;
            turn.settle()
        }
    })
}
