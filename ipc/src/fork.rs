//! Tells a forked child from its parent without a system call.
//!
//! A page that the kernel wipes in forked children (`MADV_WIPEONFORK`, Linux 4.14): the parent sees
//! its mark, a child sees zero. A session's mappings are absent in a child, so every call of a client
//! asks first, and asking must cost nothing.

use memmap2::{MmapOptions, MmapRaw};
use std::sync::atomic::{AtomicU64, Ordering};

const MADV_WIPEONFORK: i32 = 18;
const PAGE: usize = 4096;

/// The marked page of the process that made it.
#[derive(Debug)]
pub struct ForkMark {
    page: MmapRaw,
}

impl ForkMark {
    /// Marks this process. None where the kernel refuses; compare process ids then.
    #[must_use]
    pub fn new() -> Option<ForkMark> {
        let page: MmapRaw = MmapOptions::new().len(PAGE).map_anon().ok()?.into();
        // SAFETY: the page is a private anonymous mapping of ours; the advice concerns children only.
        if unsafe { libc::madvise(page.as_mut_ptr().cast(), PAGE, MADV_WIPEONFORK) } != 0 {
            return None;
        }
        let mark = ForkMark { page };
        mark.word().store(1, Ordering::Relaxed);
        Some(mark)
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: in bounds of the page and page-aligned; alive while `self` is; nobody else maps it, and all access
        // is atomic.
        unsafe { AtomicU64::from_ptr(self.page.as_mut_ptr().cast()) }
    }

    /// Whether this is a child of the process that made the mark.
    #[must_use]
    #[inline]
    pub fn in_child(&self) -> bool {
        self.word().load(Ordering::Relaxed) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_told_from_its_parent() {
        let mark = ForkMark::new().expect("Linux 4.14 or newer");
        assert!(!mark.in_child());
        // SAFETY: the child only loads an atomic and exits.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(i32::from(mark.in_child())) };
        }
        let mut status = 0;
        // SAFETY: waits for the child just made; `status` is valid.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(libc::WEXITSTATUS(status), 1);
        assert!(!mark.in_child());
    }
}
