//! On which CPU a sleeper fell asleep: whether who woke it stands in its way.
//!
//! A kernel puts a woken thread where it slept, most often: always on one CPU, and on virtual ones often although another is
//! idle. Who wakes it there and then spins for its answer keeps it from giving any until the spinning ends. So the sleeper leaves
//! its CPU's number beside its sleeping word, and who finds its own number there sleeps at once. A hint: a wrong number, or
//! a lie, costs its reader what `spin_us = 0` costs.

use crate::mem::Mem;

/// Says that the caller falls asleep on this CPU.
#[inline]
pub(crate) fn falls_asleep_here(words: &Mem, at: usize) {
    // The models check the handshake, of which this is no part.
    #[cfg(not(loom))]
    words.word(at).store(crate::sys::this_cpu(), crate::sync::Ordering::Relaxed);
    #[cfg(loom)]
    let _ = (words, at);
}

/// Whether the peer fell asleep on the CPU that we run on.
#[inline]
pub(crate) fn fell_asleep_here(words: &Mem, at: usize) -> bool {
    #[cfg(not(loom))]
    {
        let cpu = words.word(at).load(crate::sync::Ordering::Relaxed);
        cpu != 0 && cpu == crate::sys::this_cpu()
    }
    #[cfg(loom)]
    {
        let _ = (words, at);
        false
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::Ordering;

    #[test]
    fn only_who_slept_on_our_cpu_is_in_our_way() {
        let words = Mem::heap(64);
        assert!(!fell_asleep_here(&words, 8), "nobody said anything");
        // This thread may be moved between the two lines, but not every time.
        let seen = (0..1000).any(|_| {
            falls_asleep_here(&words, 8);
            fell_asleep_here(&words, 8)
        });
        assert!(seen, "our own");
        words.word(8).store(u64::MAX, Ordering::Relaxed);
        assert!(!fell_asleep_here(&words, 8), "no such CPU");
    }
}
