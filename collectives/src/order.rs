//! Lets operations run in the order in which they took their tickets.

use crate::sync::{AtomicU64, Condvar, Mutex, Ordering, fence};

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

    /// Lets the turn of `ticket` go by, if it has not been taken.
    #[cold]
    pub(crate) fn pass(&self, ticket: Ticket) {
        if self.turn.load(Ordering::Acquire) <= ticket.number {
            drop(self.wait(ticket));
        }
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

#[cfg(all(not(loom), test))]
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

/// All orders in which threads can take their turns.
#[cfg(all(loom, test))]
mod model {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    struct Log {
        order: Order,
        /// What only the operation whose turn it is touches.
        last: UnsafeCell<u64>,
    }

    // SAFETY: loom's cell finds out for itself who touches it without an order.
    #[allow(unsafe_code)]
    unsafe impl Sync for Log {}

    impl Log {
        #[allow(unsafe_code)]
        fn enter(&self, ticket: Ticket) {
            let _turn = self.order.wait(ticket);
            // SAFETY: loom finds out whether anybody else touches it.
            self.last.with_mut(|last| unsafe {
                assert_eq!(*last, ticket.number, "turns come in the order of tickets");
                *last = ticket.number + 1;
            });
        }
    }

    fn threads(count: u64, preemptions: usize) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(move || {
            let log = Arc::new(Log { order: Order::default(), last: UnsafeCell::new(0) });
            let mut tickets: Vec<Ticket> = (0..count).map(|_| log.order.ticket()).collect();
            let own = tickets.pop().expect("at least one");
            let others: Vec<_> = tickets
                .iter()
                .map(|ticket| {
                    let (log, ticket) = (Arc::clone(&log), *ticket);
                    thread::spawn(move || log.enter(ticket))
                })
                .collect();
            log.enter(own);
            others.into_iter().for_each(|other| other.join().expect("a thread ends"));
        });
    }

    #[test]
    fn loom_two_tickets_take_turns() {
        threads(2, 4);
    }

    #[test]
    fn loom_three_tickets_take_turns() {
        threads(3, 2);
    }
}
