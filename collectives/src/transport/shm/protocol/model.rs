//! All orders in which a few ranks can run a few steps of the protocol, by loom: who is not woken is a deadlock, and
//! memory that two touch without an order is found out. Windows and buffers are loom's cells, one for each range that
//! a rank touches as one.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::transport::shm::region::SETS;

/// What `shm::Group` waits with until it looks again; nobody wakes up by it here.
const LIMIT: Duration = Duration::MAX;

impl Head {
    fn zeroed() -> Head {
        let abort = AbortRecord {
            state: AtomicU32::default(),
            length: AtomicU32::default(),
            bytes: std::array::from_fn(|_| AtomicU8::default()),
        };
        let sleep = Sleep { bell: Futex::default(), sleepers: AtomicU32::default(), rung: AtomicU64::default() };
        Head { sleep: Line(sleep), abort: Line(abort) }
    }
}

impl Post {
    fn zeroed() -> Post {
        Post { meeting: AtomicU64::default(), words: std::array::from_fn(|_| AtomicU64::default()) }
    }
}

impl Outbox {
    fn zeroed() -> Outbox {
        Outbox {
            posted: AtomicU64::default(),
            words: std::array::from_fn(|_| AtomicU64::default()),
            offer: std::array::from_fn(|_| AtomicU64::default()),
            taken: Line(Taken { chunks: AtomicU64::default(), read: AtomicU64::default() }),
        }
    }
}

/// What the ranks share.
struct Shared<const RANKS: usize> {
    head: Head,
    posts: [[Post; 2]; RANKS],
    /// By set and rank.
    windows: Vec<[UnsafeCell<u64>; RANKS]>,
}

// SAFETY: loom's cells find out for themselves who touches them without an order.
unsafe impl<const RANKS: usize> Sync for Shared<RANKS> {}

impl<const RANKS: usize> Shared<RANKS> {
    fn new(sets: u64) -> Arc<Shared<RANKS>> {
        Arc::new(Shared {
            head: Head::zeroed(),
            posts: std::array::from_fn(|_| std::array::from_fn(|_| Post::zeroed())),
            windows: (0..sets).map(|_| std::array::from_fn(|_| UnsafeCell::new(0))).collect(),
        })
    }

    fn post(&self, place: usize, meeting: u64) -> &Post {
        &self.posts[place][(meeting % 2) as usize]
    }

    fn window(&self, turn: u64, place: usize) -> &UnsafeCell<u64> {
        &self.windows[(turn % self.windows.len() as u64) as usize][place]
    }

    /// As `Group::meet`: one look, as if it had looked long enough, and then to sleep.
    fn meet(&self, me: usize, meeting: u64) {
        self.post(me, meeting).come(meeting);
        self.wait_for_all(me, meeting);
    }

    /// As `Group::agree`: gives what the others have posted.
    fn agree(&self, me: usize, meeting: u64, word: u64) -> [u64; RANKS] {
        self.post(me, meeting).write(&[word; WORDS]);
        self.meet(me, meeting);
        std::array::from_fn(|place| self.post(place, meeting).words()[0])
    }

    fn wait_for_all(&self, me: usize, meeting: u64) {
        let all = || (0..RANKS).all(|place| place == me || self.post(place, meeting).has_come(meeting));
        if !all() {
            self.head.sleep_until(|| if all() { ControlFlow::Break(()) } else { ControlFlow::Continue(LIMIT) });
        }
        self.head.complete(meeting);
    }

    fn show(&self, me: usize, turn: u64, value: u64) {
        // SAFETY: loom finds out whether anybody else touches it.
        self.window(turn, me).with_mut(|window| unsafe { *window = value });
    }

    fn see(&self, place: usize, turn: u64) -> u64 {
        // SAFETY: as for showing.
        self.window(turn, place).with(|window| unsafe { *window })
    }
}

/// Goes through the orders with so many involuntary switches between threads.
fn model(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(run);
}

/// Runs `rank` as every rank, this thread being the first.
fn ranks<const RANKS: usize, T: Send + Sync + 'static>(
    shared: &Arc<T>,
    rank: impl Fn(&T, usize) + Copy + Send + 'static,
) {
    let others: Vec<_> = (1..RANKS)
        .map(|me| {
            let shared = Arc::clone(shared);
            thread::spawn(move || rank(&shared, me))
        })
        .collect();
    rank(shared, 0);
    others.into_iter().for_each(|other| other.join().expect("a rank ends"));
}

/// What is shown before a meeting is seen after it, meeting after meeting, and everybody who sleeps is woken.
#[test]
fn loom_two_ranks_meet_three_times() {
    model(3, || {
        ranks::<2, _>(&Shared::<2>::new(SETS), |shared, me| {
            for meeting in 1..=3 {
                shared.show(me, meeting, 10 * meeting + me as u64);
                let words = shared.agree(me, meeting, 100 * meeting + me as u64);
                assert_eq!(words, [100 * meeting, 100 * meeting + 1]);
                assert_eq!(shared.see(1 - me, meeting), 10 * meeting + 1 - me as u64);
            }
        });
    });
}

#[test]
fn loom_three_ranks_meet_twice() {
    model(1, || {
        ranks::<3, _>(&Shared::<3>::new(SETS), |shared, me| {
            for meeting in 1..=2 {
                shared.show(me, meeting, meeting);
                shared.agree(me, meeting, meeting);
                (0..3).for_each(|place| assert_eq!(shared.see(place, meeting), meeting));
            }
        });
    });
}

/// The deepest use of the sets: as in a reduction over several hosts, a rank shows a chunk while results of the chunk
/// three before it are still copied.
fn reuse(sets: u64) {
    model(2, move || {
        ranks::<2, _>(&Shared::<2>::new(sets), |shared, me| {
            // The first chunks are there, and intervals 2 to 4 follow.
            shared.meet(me, 1);
            for interval in 2..=4u64 {
                shared.show(me, interval + 1, interval + 1);
                shared.see(1 - me, interval - 2);
                shared.meet(me, interval);
            }
        });
    });
}

#[test]
fn loom_four_sets_of_windows_are_enough() {
    assert_eq!(SETS, 4);
    reuse(SETS);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_three_sets_of_windows_are_too_few() {
    reuse(SETS - 1);
}

/// What two ranks need for messages from the first to the second.
struct Mail {
    head: Head,
    outbox: Outbox,
    buffers: Vec<UnsafeCell<u64>>,
}

// SAFETY: as for `Shared`.
unsafe impl Sync for Mail {}

impl Mail {
    fn new(buffers: usize) -> Arc<Mail> {
        let buffers = (0..buffers).map(|_| UnsafeCell::new(0)).collect();
        Arc::new(Mail { head: Head::zeroed(), outbox: Outbox::zeroed(), buffers })
    }

    fn buffer(&self, number: u64) -> &UnsafeCell<u64> {
        &self.buffers[(number % self.buffers.len() as u64) as usize]
    }

    fn until(&self, done: impl Fn() -> bool) {
        if !done() {
            self.head.sleep_until(|| if done() { ControlFlow::Break(()) } else { ControlFlow::Continue(LIMIT) });
        }
    }

    /// As `Group::message`: as many chunks as given, the first being `sent`.
    fn send(&self, call: u64, chunks: u64, sent: &mut u64) {
        self.outbox.announce(&[call; CALL_WORDS], &[0; OFFER_WORDS]);
        for _ in 0..chunks {
            self.until(|| self.outbox.has_room(*sent));
            // SAFETY: loom finds out whether anybody else touches it.
            self.buffer(*sent).with_mut(|buffer| unsafe { *buffer = *sent });
            *sent += 1;
            self.outbox.post(1, *sent);
            self.head.ring_for_sleepers();
        }
        self.until(|| self.outbox.taken() == *sent);
    }

    fn receive(&self, call: u64, chunks: u64) {
        for chunk in 0..chunks {
            self.until(|| self.outbox.next_for(1).is_some());
            let number = self.outbox.next_for(1).expect("a chunk");
            if chunk == 0 {
                assert_eq!(self.outbox.words(), [call; CALL_WORDS]);
            }
            // SAFETY: as for sending.
            let chunk = self.buffer(number).with(|buffer| unsafe { *buffer });
            assert_eq!(chunk, number, "the chunk is the one that was sent");
            self.outbox.take(number, false);
            self.head.ring_for_sleepers();
        }
    }
}

/// Two messages that are offered: the first is read where it lies, in the place of a buffer, the second is not. What
/// has been read may be changed by its sender at once.
#[test]
fn loom_an_offer_is_read_or_declined() {
    model(2, || {
        ranks::<2, _>(&Mail::new(1), |mail, me| {
            for (sent, value) in [(1, 7), (2, 8)] {
                if me == 0 {
                    // SAFETY: as for sending.
                    mail.buffer(0).with_mut(|source| unsafe { *source = value });
                    mail.outbox.announce(&[value; CALL_WORDS], &[value; OFFER_WORDS]);
                    mail.outbox.post(1, sent);
                    mail.head.ring_for_sleepers();
                    mail.until(|| mail.outbox.taken() == sent);
                    assert_eq!(mail.outbox.is_read(sent), value == 7);
                } else {
                    mail.until(|| mail.outbox.next_for(1).is_some());
                    let number = mail.outbox.next_for(1).expect("an offer");
                    assert_eq!(mail.outbox.offer(), [value; OFFER_WORDS]);
                    if value == 7 {
                        // SAFETY: as for sending.
                        mail.buffer(0).with(|source| assert_eq!(unsafe { *source }, value));
                    }
                    mail.outbox.take(number, value == 7);
                    mail.head.ring_for_sleepers();
                }
            }
        });
    });
}

fn messages(buffers: usize) {
    model(2, move || {
        ranks::<2, _>(&Mail::new(buffers), |mail, me| match me {
            0 => {
                let mut sent = 0;
                mail.send(7, 3, &mut sent);
                mail.send(8, 1, &mut sent);
            }
            _ => {
                mail.receive(7, 3);
                mail.receive(8, 1);
            }
        });
    });
}

#[test]
fn loom_two_messages_through_two_buffers() {
    messages(2);
}

#[test]
#[should_panic(expected = "the chunk is the one that was sent")]
fn loom_one_buffer_is_too_few() {
    messages(1);
}

#[test]
fn loom_an_abort_wakes_who_sleeps_and_the_first_counts() {
    model(2, || {
        ranks::<3, _>(&Arc::new(Head::zeroed()), |head, me| match me {
            0 => {
                let error = head.sleep_until(|| match head.abort() {
                    Some(error) => ControlFlow::Break(error),
                    None => ControlFlow::Continue(LIMIT),
                });
                let rank = error.rank();
                assert!(rank == Some(1) || rank == Some(2), "{error:?}");
                assert_eq!(head.abort(), Some(error), "it stays");
            }
            _ => head.post_abort(&Error::PeerLeft { rank: me }.encode()),
        });
    });
}
