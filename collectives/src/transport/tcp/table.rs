//! The connections of one rank as they come to be, shared by the operations that need them and the thread that
//! accepts them.
//!
//! Two ranks have one connection, used in both directions; for much data further ones, the lanes. Either end may
//! dial. Where both do at once, the lower rank's connection counts: its acceptor turns the other away, and that end
//! waits for the connection that is on its way.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::monitor::{ControlLink, Watch};
use crate::transport::handshake::{Acceptance, Hello, Purpose, Refusal};
use crate::transport::stream::Stream;

/// Who is at the other end, and what it is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    pub(super) rank: usize,
    pub(super) purpose: Purpose,
    pub(super) lane: u8,
}

enum Slot {
    /// This rank is dialing.
    Dialing,
    /// Connected by the other end, and not yet in use.
    Ready(Stream),
    /// In use.
    Taken,
}

pub(super) struct Table {
    rank: usize,
    /// The rank whose control connection is awaited, and who watches it from the moment when it comes.
    controller: Option<usize>,
    watch: Watch,
    slots: Mutex<HashMap<Key, Slot>>,
    arrived: EventFd,
}

impl Table {
    pub(super) fn new(rank: usize, controller: Option<usize>, watch: Watch) -> nix::Result<Table> {
        let arrived = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Table { rank, controller, watch, slots: Mutex::default(), arrived })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Slot>> {
        self.slots.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Readable when a connection may have come since the last [`Table::take`].
    pub(super) fn arrived(&self) -> BorrowedFd<'_> {
        self.arrived.as_fd()
    }

    /// The connection, if the other end has made it.
    pub(super) fn take(&self, key: Key) -> Option<Stream> {
        // Before the look, so that what comes after it is noticed. An empty counter means nothing came.
        let _ = self.arrived.read();
        match self.lock().entry(key) {
            Entry::Occupied(mut entry) if matches!(entry.get(), Slot::Ready(_)) => match entry.insert(Slot::Taken) {
                Slot::Ready(stream) => Some(stream),
                Slot::Dialing | Slot::Taken => None,
            },
            _ => None,
        }
    }

    /// Whether the connection is there and in use.
    pub(super) fn is_taken(&self, key: Key) -> bool {
        // As above.
        let _ = self.arrived.read();
        matches!(self.lock().get(&key), Some(Slot::Taken))
    }

    /// Says that this rank is about to dial, unless the other end has come first.
    pub(super) fn begin(&self, key: Key) -> Option<Stream> {
        let mut slots = self.lock();
        match slots.insert(key, Slot::Dialing) {
            Some(Slot::Ready(stream)) => {
                slots.insert(key, Slot::Taken);
                Some(stream)
            }
            _ => None,
        }
    }

    /// Dialing has led to a connection.
    pub(super) fn connected(&self, key: Key) {
        self.lock().insert(key, Slot::Taken);
    }

    /// A dialer that has proved itself: takes its connection or turns it away.
    pub(super) fn receive(&self, hello: &Hello, acceptance: Acceptance, epoch: u64) {
        let Hello { purpose, lane, from, .. } = *hello;
        let rank = from as usize;
        let key = Key { rank, purpose, lane };
        let mut slots = self.lock();
        let refusal = match (purpose, slots.get(&key)) {
            (Purpose::Data, Some(Slot::Dialing | Slot::Taken)) if self.rank < rank => Some(Refusal::Crossed),
            (Purpose::Data, Some(Slot::Taken)) => Some(Refusal::Unexpected),
            (Purpose::Data, _) if usize::from(lane) < super::options::LANES => None,
            (Purpose::Control, None) if self.controller == Some(rank) && lane == 0 => None,
            _ => Some(Refusal::Unexpected),
        };
        match refusal {
            Some(refusal) => acceptance.refuse(&refusal, epoch),
            None => {
                if let Some(stream) = acceptance.admit(epoch) {
                    let slot = match purpose {
                        Purpose::Control => {
                            // It fails where the end has come, which is known by then.
                            let _ = self.watch.add(ControlLink { rank, stream, process: None });
                            Slot::Taken
                        }
                        _ => Slot::Ready(stream),
                    };
                    slots.insert(key, slot);
                    drop(slots);
                    // An eventfd's counter cannot overflow by one write.
                    let _ = self.arrived.write(1);
                }
            }
        }
    }

    /// Connections that have come and were never used.
    pub(super) fn drain(&self) -> Vec<(Key, Stream)> {
        let slots = std::mem::take(&mut *self.lock());
        slots
            .into_iter()
            .filter_map(|(key, slot)| match slot {
                Slot::Ready(stream) => Some((key, stream)),
                Slot::Dialing | Slot::Taken => None,
            })
            .collect()
    }
}
