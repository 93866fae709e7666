//! Lets operations run in the order in which they took their tickets.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Condvar, Mutex};

use crate::ticks;

/// A place in the order of operations.
#[derive(Clone, Copy)]
pub(crate) struct Ticket {
    pub(crate) number: u64,
    /// The ticks at which it was taken.
    pub(crate) issued: u64,
}

#[derive(Default)]
pub(crate) struct Order {
    next: AtomicU64,
    turn: AtomicU64,
    sleepers: Mutex<u32>,
    /// Whether there are any, readable without the lock.
    crowded: AtomicU64,
    changed: Condvar,
}

impl Order {
    #[inline]
    pub(crate) fn ticket(&self) -> Ticket {
        Ticket { number: self.next.fetch_add(1, Ordering::Relaxed), issued: ticks::now() }
    }

    /// Waits for the turn of `ticket`, which lasts until the guard is dropped, also by a panic.
    #[inline]
    pub(crate) fn wait(&self, ticket: Ticket) -> Turn<'_> {
        let Ticket { number, .. } = ticket;
        if self.turn.load(Ordering::Acquire) != number {
            self.sleep(number);
        }
        Turn { order: self, ticket: number }
    }

    #[cold]
    fn sleep(&self, ticket: u64) {
        let mut sleepers = self.sleepers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *sleepers += 1;
        self.crowded.store((*sleepers).into(), Ordering::SeqCst);
        // Orders the count before the look at the turn; the other end has a fence between its two as well.
        fence(Ordering::SeqCst);
        while self.turn.load(Ordering::Acquire) != ticket {
            sleepers = self.changed.wait(sleepers).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        *sleepers -= 1;
        self.crowded.store((*sleepers).into(), Ordering::SeqCst);
    }
}

pub(crate) struct Turn<'a> {
    order: &'a Order,
    ticket: u64,
}

impl Drop for Turn<'_> {
    #[inline]
    fn drop(&mut self) {
        self.order.turn.store(self.ticket + 1, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.order.crowded.load(Ordering::Relaxed) > 0 {
            // Under the lock, so that a sleeper is either before its look at the turn or asleep.
            let _sleepers = self.order.sleepers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            self.order.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_in_the_order_of_tickets() {
        let order = Order::default();
        let log = Mutex::new(Vec::new());
        let tickets: Vec<Ticket> = (0..200).map(|_| order.ticket()).collect();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (order, log, tickets) = (&order, &log, &tickets);
                scope.spawn(move || {
                    for ticket in tickets.iter().skip(thread).step_by(4) {
                        let _turn = order.wait(*ticket);
                        log.lock().expect("log").push(ticket.number);
                    }
                });
            }
        });
        assert_eq!(log.into_inner().expect("log"), (0..200).collect::<Vec<_>>());
    }
}
