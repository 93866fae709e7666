//! Deaths, noticed before the dead process's memory is given back, which takes a while where there is much of it: a
//! descriptor of the process tells afterwards only.
//!
//! Each rank has a thread that holds a lock in the shared memory, of the kind that the kernel gives up for a thread
//! that dies ("robust futex"): that comes first of all that it does about an exit. It marks the lock and wakes one of
//! those who sleep on it: the ranks of a host stand in a ring, and each sleeps on the locks of the next one on either
//! side that has not left. So two watch each, and no rank more than two, however many there are. Where the kernel
//! cannot sleep on several words at once, the descriptors remain.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use crate::breaker::Breaker;
use crate::error::{Error, LossCause};

use super::region::Region;

/// What the kernel has marked a lock with, whose holder has died.
const OWNER_DIED: u32 = 0x4000_0000;
/// Asks the kernel to wake who sleeps.
const WAITERS: u32 = 0x8000_0000;

/// As the kernel declares it.
#[repr(C)]
struct RobustListHead {
    list: *mut RobustListHead,
    futex_offset: libc::c_long,
    pending: *mut RobustListHead,
}

/// As the kernel declares it.
#[repr(C)]
struct WaitWord {
    value: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

const SIZE_U32: u32 = 2;

/// The thread; ends when dropped.
pub(crate) struct Life {
    stop: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Life {
    /// Holds the lock of the rank at place `me` of `ranks`, and watches those of its neighbours.
    pub(crate) fn start(
        region: Arc<Region>,
        me: usize,
        ranks: Vec<usize>,
        breaker: Arc<Breaker>,
    ) -> std::io::Result<Life> {
        let stop = Arc::new(AtomicU32::new(0));
        let own = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("collectives-life".to_owned())
            .spawn(move || live(&region, me, &ranks, &breaker, &own))?;
        Ok(Life { stop, thread: Some(thread) })
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.stop.store(1, Ordering::SeqCst);
        wake(&self.stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn live(region: &Region, me: usize, ranks: &[usize], breaker: &Breaker, stop: &AtomicU32) {
    let word = region.life(me);
    // One entry, whose lock is the word: the kernel adds the offset to the entry's address.
    let mut entry = RobustListHead { list: ptr::null_mut(), futex_offset: 0, pending: ptr::null_mut() };
    let mut head = RobustListHead { list: ptr::null_mut(), futex_offset: 0, pending: ptr::null_mut() };
    let (entry, head) = (&raw mut entry, &raw mut head);
    // SAFETY: both live in this frame, longer than the kernel knows of them: the list is emptied at the end. It takes
    // the place of the C library's for this thread, which holds none of the mutexes that stand in that one.
    unsafe {
        (*entry).list = head;
        (*head).list = entry;
        (*head).futex_offset = word.as_ptr().addr().wrapping_sub(entry.addr()) as libc::c_long;
        libc::syscall(libc::SYS_set_robust_list, head, size_of::<RobustListHead>());
    }
    // SAFETY: the call takes nothing.
    let thread = unsafe { libc::syscall(libc::SYS_gettid) } as u32;
    word.store(thread | WAITERS, Ordering::SeqCst);
    wake(word);
    watch(region, me, ranks, breaker, stop);
    // Whatever it has found, others watch this one.
    while stop.load(Ordering::SeqCst) == 0 {
        sleep(stop, 0);
    }
    word.store(0, Ordering::SeqCst);
    // It has left: who has watched it looks for the next.
    wake(word);
    // SAFETY: as above; but for the kernel, which reads it when the thread dies, nobody else knows the list.
    unsafe { (*head).list = head };
    // SAFETY: the null pointer is the empty list; the kernel keeps none for this thread from then on.
    unsafe { libc::syscall(libc::SYS_set_robust_list, ptr::null::<RobustListHead>(), size_of::<RobustListHead>()) };
}

fn watch(region: &Region, me: usize, ranks: &[usize], breaker: &Breaker, stop: &AtomicU32) {
    while stop.load(Ordering::SeqCst) == 0 {
        let mut words = vec![wait_word(stop, 0)];
        for place in neighbours(me, ranks.len(), |place| region.has_left(place)) {
            let word = region.life(place);
            let value = word.load(Ordering::SeqCst);
            if value & OWNER_DIED != 0 {
                // What it has said before its end counts more than the end.
                let cause = LossCause::ProcessEnded;
                breaker.trip(region.head().abort().unwrap_or(Error::PeerLost { rank: ranks[place], cause }));
                return;
            }
            words.push(wait_word(word, value));
        }
        // SAFETY: the words and what they point to live through the call, which only reads them; without a timeout.
        let result = unsafe {
            libc::syscall(
                libc::SYS_futex_waitv,
                words.as_ptr(),
                words.len(),
                0,
                ptr::null::<libc::timespec>(),
                libc::CLOCK_MONOTONIC,
            )
        };
        // Woken, interrupted or changed before; anything else will not get better.
        if result < 0 && !matches!(errno(), libc::EAGAIN | libc::EINTR) {
            return;
        }
    }
}

/// The next places after and before `me` in a ring of `count` whose ranks have not left; each once.
fn neighbours(me: usize, count: usize, has_left: impl Fn(usize) -> bool) -> Vec<usize> {
    let there = |place: &usize| !has_left(*place);
    let next = (1..count).map(|step| (me + step) % count).find(there);
    let previous = (1..count).map(|step| (me + count - step) % count).find(there);
    next.into_iter().chain(previous.filter(|_| previous != next)).collect()
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn wait_word(word: &AtomicU32, value: u32) -> WaitWord {
    WaitWord { value: value.into(), address: word.as_ptr().addr() as u64, flags: SIZE_U32, reserved: 0 }
}

fn sleep(word: &AtomicU32, value: u32) {
    // SAFETY: the word lives through the call, which only reads it; without a timeout.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, ptr::null::<libc::timespec>());
    }
}

fn wake(word: &AtomicU32) {
    // SAFETY: the word lives through the call; the kernel uses its address only.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_on_either_side_that_has_not_left_are_watched() {
        let nobody = |_: usize| false;
        let rows: &[(Vec<usize>, &[usize])] = &[
            (neighbours(0, 1, nobody), &[]),
            (neighbours(0, 2, nobody), &[1]),
            (neighbours(1, 3, nobody), &[2, 0]),
            (neighbours(0, 1000, nobody), &[1, 999]),
            (neighbours(999, 1000, nobody), &[0, 998]),
            (neighbours(0, 5, |place| place == 1 || place == 4), &[2, 3]),
            (neighbours(0, 4, |place| place != 2), &[2]),
            (neighbours(3, 4, |_| true), &[]),
        ];
        for (found, expected) in rows {
            assert_eq!(found, expected);
        }
    }
}
