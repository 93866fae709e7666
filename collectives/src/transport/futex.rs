//! Sleeping on a word of memory that processes share.

#![allow(unsafe_code)]

#[cfg(not(all(loom, test)))]
pub(crate) use kernel::Futex;
#[cfg(all(loom, test))]
pub(crate) use model::Futex;

#[cfg(not(all(loom, test)))]
mod kernel {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[repr(transparent)]
    pub(crate) struct Futex(AtomicU32);

    impl Futex {
        pub(crate) fn load(&self) -> u32 {
            self.0.load(Ordering::SeqCst)
        }

        pub(crate) fn increase(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }

        /// Sleeps while the word holds `expected`, until woken, interrupted or `timeout` has passed. May return early.
        pub(crate) fn wait(&self, expected: u32, timeout: Duration) {
            let timeout = libc::timespec {
                tv_sec: timeout.as_secs().min(i32::MAX as u64) as libc::time_t,
                tv_nsec: timeout.subsec_nanos().into(),
            };
            // SAFETY: the word and the timeout live through the call; the kernel only reads them. Not the private
            // variant, since the word lies in memory of several processes.
            unsafe {
                libc::syscall(libc::SYS_futex, self.0.as_ptr(), libc::FUTEX_WAIT, expected, &raw const timeout);
            }
        }

        /// Wakes all who sleep on the word, in any process.
        pub(crate) fn wake_all(&self) {
            // SAFETY: the word lives through the call; the kernel uses its address only.
            unsafe {
                libc::syscall(libc::SYS_futex, self.0.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
            }
        }
    }
}

/// As the kernel does it: the word is compared under the lock of the queue. Nobody wakes up by the time, so who is not
/// woken is found out.
#[cfg(all(loom, test))]
mod model {
    use std::time::Duration;

    use loom::sync::atomic::{AtomicU32, Ordering};
    use loom::sync::{Condvar, Mutex};

    #[derive(Default)]
    pub(crate) struct Futex {
        word: AtomicU32,
        queue: Mutex<()>,
        woken: Condvar,
    }

    impl Futex {
        pub(crate) fn load(&self) -> u32 {
            self.word.load(Ordering::SeqCst)
        }

        pub(crate) fn increase(&self) {
            self.word.fetch_add(1, Ordering::SeqCst);
        }

        pub(crate) fn wait(&self, expected: u32, _timeout: Duration) {
            let queue = self.queue.lock().expect("queue");
            if self.word.load(Ordering::Relaxed) == expected {
                drop(self.woken.wait(queue).expect("queue"));
            }
        }

        pub(crate) fn wake_all(&self) {
            let _queue = self.queue.lock().expect("queue");
            self.woken.notify_all();
        }
    }
}
