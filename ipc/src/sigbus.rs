//! SIGBUS on a named segment ends one session, not the process.
//!
//! Named POSIX segments cannot be sealed: their client may truncate them under us, and the next
//! access faults. The handler puts an anonymous page where the fault was and marks the mapping as
//! damaged; its owner looks at the mark after every copy. Faults elsewhere keep their default end.

use crate::limits::SIGBUS_GUARDS_MAX;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

struct Entry {
    base: AtomicUsize,
    bytes: AtomicUsize,
    damaged: AtomicBool,
}

static TABLE: [Entry; SIGBUS_GUARDS_MAX] =
    [const { Entry { base: AtomicUsize::new(0), bytes: AtomicUsize::new(0), damaged: AtomicBool::new(false) } };
        SIGBUS_GUARDS_MAX];

/// A guarded mapping; dropping it frees its place in the table.
#[derive(Debug)]
pub struct Guard(usize);

impl Guard {
    /// Guards a mapping, if there is room in the table.
    #[must_use]
    pub(crate) fn new(base: *const u8, bytes: usize) -> Option<Guard> {
        install();
        let taken = |e: &Entry| e.bytes.compare_exchange(0, bytes, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let i = TABLE.iter().position(taken)?;
        TABLE[i].damaged.store(false, Ordering::Relaxed);
        // Release: pairs with the handler's Acquire, which takes an entry only once its base is set.
        TABLE[i].base.store(base as usize, Ordering::Release);
        Some(Guard(i))
    }

    /// Whether a page of it vanished.
    #[must_use]
    pub fn damaged(&self) -> bool {
        TABLE[self.0].damaged.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        TABLE[self.0].base.store(0, Ordering::Release);
        TABLE[self.0].bytes.store(0, Ordering::Release);
    }
}

fn install() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: a zeroed sigaction is valid; the handler is async-signal-safe (atomics, mmap, sigaction).
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
        }
    });
}

extern "C" fn handler(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo.
    let at = unsafe { (*info).si_addr() } as usize;
    for entry in &TABLE {
        let base = entry.base.load(Ordering::Acquire);
        if base == 0 || at < base || at - base >= entry.bytes.load(Ordering::Relaxed) {
            continue;
        }
        entry.damaged.store(true, Ordering::Relaxed);
        let page = at & !4095;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the page lies within a mapping of ours that its guard keeps alive; it is replaced by zeroes, which
        // every reader treats as unvalidated bytes, and no writer's peer can see.
        let r = unsafe { libc::mmap(page as *mut _, 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if r != libc::MAP_FAILED {
            return;
        }
    }
    // SAFETY: a fault that is not ours to mend: restore the default, and the access faults again and ends us.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}
