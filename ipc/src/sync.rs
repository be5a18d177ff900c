//! Atomics and fences: the standard library's, or loom's when a model of the orderings is checked.
//!
//! The rings, the sleep handshake and the baton use only these names, so that the loom models
//! compile the very source that ships.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Orders earlier stores, streaming (non-temporal) ones included, before a publishing store.
///
/// Callers fill big tensors with streaming stores, which `release` does not order on x86.
#[inline(always)]
pub fn streaming_store_fence() {
    #[cfg(all(target_arch = "x86_64", not(loom), not(miri)))]
    // SAFETY: `sfence` is part of SSE, which every x86-64 has; it touches no memory of its own.
    unsafe {
        core::arch::x86_64::_mm_sfence();
    }
}

/// A SeqCst fence: the stores before it are seen before the loads after it are made.
///
/// On x86-64 a locked instruction on our own stack, which orders as much as the `mfence` that the compiler makes of
/// [`fence`] and takes an eighth of its time (docs/performance.md).
#[inline(always)]
pub fn full_fence() {
    #[cfg(all(target_arch = "x86_64", not(loom), not(miri)))]
    // SAFETY: adds nothing to the word at the top of this thread's stack, which is mapped and nobody else's.
    unsafe {
        core::arch::asm!("lock or dword ptr [rsp], 0");
    }
    #[cfg(not(all(target_arch = "x86_64", not(loom), not(miri))))]
    fence(Ordering::SeqCst);
}

/// Tells the CPU that this is a spinning loop.
#[inline(always)]
pub fn spin_hint() {
    #[cfg(not(loom))]
    std::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}
