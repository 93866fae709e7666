//! A clock that costs next to nothing to read: the processor's counter where it has a steady one.

#![allow(unsafe_code)]

use std::time::Duration;

/// Counts since some moment; equal on all processors of the host.
#[inline(always)]
pub(crate) fn now() -> u64 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: every x86-64 has the instruction, and Linux leaves it to user space.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    {
        let counter: u64;
        // SAFETY: reads the virtual counter, which Linux lets user space do, and changes nothing.
        unsafe { std::arch::asm!("mrs {}, cntvct_el0", out(reg) counter, options(nomem, nostack)) };
        counter
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    {
        monotonic()
    }
}

/// Nanoseconds of the host's monotonic clock.
pub(crate) fn monotonic() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| Duration::from(time).as_nanos() as u64)
}

/// One moment by both clocks. Two of them tell how fast the counter counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Moment {
    pub(crate) ticks: u64,
    pub(crate) nanoseconds: u64,
}

impl Moment {
    pub(crate) fn now() -> Moment {
        Moment { ticks: now(), nanoseconds: monotonic() }
    }

    /// When by the monotonic clock the counter stood at `ticks`, from this moment and a later one.
    pub(crate) fn at(self, later: Moment, ticks: u64) -> u64 {
        let counted = later.ticks.saturating_sub(self.ticks).max(1);
        let passed = later.nanoseconds.saturating_sub(self.nanoseconds);
        let since = u128::from(ticks.saturating_sub(self.ticks)) * u128::from(passed) / u128::from(counted);
        self.nanoseconds.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_turned_into_times() {
        let first = Moment { ticks: 1000, nanoseconds: 50 };
        let later = Moment { ticks: 4000, nanoseconds: 1050 };
        assert_eq!(first.at(later, 2500), 550);
        assert_eq!(first.at(later, 10), 50, "nothing lies before the first moment");
        assert_eq!(first.at(first, u64::MAX), 50);
    }

    #[test]
    fn the_counter_goes_forward() {
        let first = now();
        assert!(now() >= first);
    }
}
