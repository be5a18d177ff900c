//! A mapped range of shared memory, as words and bulk copies.
//!
//! [`Mem`] never hands out a reference to bytes that a peer can write: words are atomics, payloads
//! are copied. Every access is checked against the length of the mapping, which is private; a peer
//! cannot move it. Clones share the mapping. Tests use heap-backed ranges, loom uses cells.

#[cfg(loom)]
pub use self::model::Mem;
#[cfg(not(loom))]
pub use self::real::Mem;

/// How a wait on a word ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Woken, or the word had changed, or a signal came: look again.
    Woken,
    /// The time is up.
    TimedOut,
}

#[cfg(not(loom))]
mod real {
    use super::Wait;
    use crate::sync::{AtomicU64, Ordering};
    use memmap2::MmapRaw;
    use std::sync::Arc;
    use std::time::Duration;

    enum Keep {
        Map(#[expect(dead_code, reason = "kept for its Drop, which unmaps")] MmapRaw, Option<crate::sigbus::Guard>),
        Heap(*mut u8, std::alloc::Layout),
    }

    // SAFETY: a mapping or an allocation may be released by any thread; it is only touched through `Mem`.
    unsafe impl Send for Keep {}
    // SAFETY: as above.
    unsafe impl Sync for Keep {}

    impl Drop for Keep {
        fn drop(&mut self) {
            if let Keep::Heap(at, layout) = self {
                // SAFETY: `at` came from `alloc_zeroed` with this layout and is freed once, by the last clone.
                unsafe { std::alloc::dealloc(*at, *layout) }
            }
        }
    }

    /// A mapped range; see the module.
    #[derive(Clone)]
    pub struct Mem {
        base: *mut u8,
        bytes: usize,
        writable: bool,
        keep: Arc<Keep>,
    }

    // SAFETY: all access goes through atomics and copies; the range lives as long as any clone (`keep`).
    unsafe impl Send for Mem {}
    // SAFETY: as above; concurrent copies race only on payload bytes, whose readers validate by sequence number.
    unsafe impl Sync for Mem {}

    impl std::fmt::Debug for Mem {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Mem").field("bytes", &self.bytes).field("writable", &self.writable).finish()
        }
    }

    impl Mem {
        /// Zeroed private memory, aligned like a page: for tests and for words within one process.
        ///
        /// # Panics
        /// When `bytes` is zero or memory is exhausted.
        #[must_use]
        pub fn heap(bytes: usize) -> Mem {
            let layout = std::alloc::Layout::from_size_align(bytes, 4096).expect("a size that fits");
            assert!(bytes > 0, "an empty range has no words");
            // SAFETY: the layout has a non-zero size.
            let base = unsafe { std::alloc::alloc_zeroed(layout) };
            assert!(!base.is_null(), "out of memory");
            Mem { base, bytes, writable: true, keep: Arc::new(Keep::Heap(base, layout)) }
        }

        pub(crate) fn from_map(map: MmapRaw, writable: bool, guard: Option<crate::sigbus::Guard>) -> Mem {
            Mem { base: map.as_mut_ptr(), bytes: map.len(), writable, keep: Arc::new(Keep::Map(map, guard)) }
        }

        /// Bytes of the range.
        #[must_use]
        pub fn bytes(&self) -> usize {
            self.bytes
        }

        /// Whether a page of a named segment vanished under us (its client truncated it): the session must end.
        #[must_use]
        pub fn damaged(&self) -> bool {
            matches!(&*self.keep, Keep::Map(_, Some(guard)) if guard.damaged())
        }

        #[inline]
        fn check(&self, at: usize, bytes: usize) {
            let inside = at <= self.bytes && bytes <= self.bytes - at;
            assert!(inside, "offset {at}+{bytes} is outside the mapping of {} bytes: a bug of ours", self.bytes);
        }

        /// Bounds and alignment at once: an unaligned offset rotates into one that is far outside.
        #[inline]
        fn check_words(&self, at: usize, words: usize) {
            let (word, end) = (at.rotate_right(3), self.bytes / 8);
            assert!(word < end && words <= end - word, "word {at} is outside the mapping or unaligned: a bug of ours");
        }

        /// The word at `at`. Stores through it need a writable mapping: the kernel answers others with SIGSEGV.
        ///
        /// # Panics
        /// When `at` is outside the range or unaligned: offsets are ours, never a peer's.
        #[must_use]
        #[inline]
        pub fn word(&self, at: usize) -> &AtomicU64 {
            self.check_words(at, 1);
            // SAFETY: in bounds and aligned (checked above, the base is page-aligned); alive while `self` is; a racing
            // peer makes an atomic load return some value, nothing worse.
            unsafe { AtomicU64::from_ptr(self.base.add(at).cast()) }
        }

        /// Copies bytes out. A racing peer can tear the copy; callers validate afterwards by sequence number.
        #[inline]
        pub fn copy_out(&self, at: usize, to: &mut [u8]) {
            self.check(at, to.len());
            // SAFETY: in bounds (checked); `to` is private memory, so the ranges cannot overlap; byte copies need no
            // alignment; a racing peer spoils the bytes copied, which callers do not trust before validation.
            unsafe { std::ptr::copy_nonoverlapping(self.base.add(at), to.as_mut_ptr(), to.len()) }
        }

        /// Copies bytes in.
        #[inline]
        pub fn copy_in(&self, at: usize, from: &[u8]) {
            self.check(at, from.len());
            assert!(self.writable, "this mapping is read-only");
            // SAFETY: in bounds and writable (checked); `from` is private memory; no alignment needed; peers only read
            // this range, and look at it again only after a publishing store.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.base.add(at), from.len()) }
        }

        /// Loads words, relaxed. A racing peer can tear them apart; callers validate afterwards by sequence number.
        #[inline]
        pub fn load_words<const N: usize>(&self, at: usize) -> [u64; N] {
            self.check_words(at, N);
            std::array::from_fn(|i| {
                // SAFETY: in bounds and aligned (checked above, the base is page-aligned); alive while `self` is; a racing
                // peer makes an atomic load return some value, nothing worse.
                unsafe { AtomicU64::from_ptr(self.base.add(at + 8 * i).cast()) }.load(Ordering::Relaxed)
            })
        }

        /// Stores words, relaxed: a header goes from registers to its line.
        #[inline]
        pub fn store_words<const N: usize>(&self, at: usize, words: [u64; N]) {
            self.check_words(at, N);
            assert!(self.writable, "this mapping is read-only");
            for (i, word) in words.into_iter().enumerate() {
                // SAFETY: as in `load_words`, and writable (checked).
                unsafe { AtomicU64::from_ptr(self.base.add(at + 8 * i).cast()) }.store(word, Ordering::Relaxed);
            }
        }

        /// Starts to fetch the line at `at`, and the next one, into this CPU's cache; beyond the range it does nothing.
        #[inline]
        pub fn prefetch(&self, at: usize) {
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            for line in [at, at + 64] {
                if line < self.bytes {
                    use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                    // SAFETY: in bounds (checked); a prefetch reads nothing into the program and never faults.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(self.base.add(line).cast()) }
                }
            }
            #[cfg(not(all(target_arch = "x86_64", not(miri))))]
            let _ = at;
        }

        /// Zeroes bytes.
        #[inline]
        pub fn zero(&self, at: usize, bytes: usize) {
            self.check(at, bytes);
            assert!(self.writable, "this mapping is read-only");
            // SAFETY: as in `copy_in`.
            unsafe { std::ptr::write_bytes(self.base.add(at), 0, bytes) }
        }

        /// A pointer into the range, for callers that read elements in place.
        #[must_use]
        pub fn pointer(&self, at: usize, bytes: usize) -> *const u8 {
            self.check(at, bytes);
            // SAFETY: in bounds (checked).
            unsafe { self.base.add(at) }
        }

        /// A slice that this process alone writes: a slot of the request region on the client's side.
        ///
        /// # Safety
        /// No other mapping of this range may be writable in any process, and no other slice of it may live.
        #[allow(clippy::mut_from_ref)]
        pub(crate) unsafe fn own_slice(&self, at: usize, bytes: usize) -> &mut [u8] {
            self.check(at, bytes);
            assert!(self.writable, "this mapping is read-only");
            // SAFETY: in bounds, alive; exclusively ours by the caller's promise; peers only read.
            unsafe { std::slice::from_raw_parts_mut(self.base.add(at), bytes) }
        }

        /// Sleeps while the low half of the word at `at` equals `expected`'s, until woken or the time is up.
        pub fn futex_wait(&self, at: usize, expected: u64, timeout: Option<Duration>) -> Wait {
            crate::sys::futex_wait(self.word(at), expected as u32, timeout)
        }

        /// Wakes one waiter on the word at `at`.
        pub fn futex_wake(&self, at: usize) {
            crate::sys::futex_wake_one(self.word(at));
        }

        /// Faults every page in, so that no later access does. Kernels before 5.14 are served by touching.
        pub(crate) fn populate(&self) {
            if crate::sys::madvise_populate(self.base, self.bytes, self.writable) {
                return;
            }
            for at in (0..self.bytes).step_by(4096) {
                let word = self.word(at);
                let now = std::hint::black_box(word.load(Ordering::Relaxed));
                if self.writable {
                    // A write that changes nothing. Not `fetch_or(0)`: an optimiser makes a load of that.
                    let _ = word.compare_exchange(now, now, Ordering::Relaxed, Ordering::Relaxed);
                }
            }
        }

        /// Keeps the mapping out of forked children.
        pub(crate) fn dont_fork(&self) {
            crate::sys::madvise_dontfork(self.base, self.bytes);
        }

        /// Locks the range into memory.
        ///
        /// # Errors
        /// The kernel's, usually EPERM or ENOMEM against RLIMIT_MEMLOCK.
        pub fn lock(&self) -> std::io::Result<()> {
            crate::sys::mlock(self.base, self.bytes)
        }
    }
}

#[cfg(loom)]
mod model {
    use super::Wait;
    use crate::sync::{AtomicU64, Ordering};
    use loom::sync::{Arc, Condvar, Mutex};
    use std::time::Duration;

    /// The model's memory: cells of eight bytes and one futex queue.
    #[derive(Clone)]
    pub struct Mem {
        cells: Arc<Vec<AtomicU64>>,
        queue: Arc<(Mutex<()>, Condvar)>,
    }

    impl std::fmt::Debug for Mem {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Mem")
        }
    }

    impl Mem {
        /// Zeroed cells.
        pub fn heap(bytes: usize) -> Mem {
            let cells = (0..bytes.div_ceil(8)).map(|_| AtomicU64::new(0)).collect();
            Mem { cells: Arc::new(cells), queue: Arc::new((Mutex::new(()), Condvar::new())) }
        }

        /// Bytes of the range.
        pub fn bytes(&self) -> usize {
            self.cells.len() * 8
        }

        /// Never, in a model.
        pub fn damaged(&self) -> bool {
            false
        }

        /// The cell at `at`.
        pub fn word(&self, at: usize) -> &AtomicU64 {
            assert!(at % 8 == 0);
            &self.cells[at / 8]
        }

        /// Copies whole cells out, relaxed: a torn copy is possible, as in reality.
        pub fn copy_out(&self, at: usize, to: &mut [u8]) {
            for (i, chunk) in to.chunks_mut(8).enumerate() {
                let bytes = self.word(at + 8 * i).load(Ordering::Relaxed).to_le_bytes();
                chunk.copy_from_slice(&bytes[..chunk.len()]);
            }
        }

        /// Copies whole cells in, relaxed.
        pub fn copy_in(&self, at: usize, from: &[u8]) {
            for (i, chunk) in from.chunks(8).enumerate() {
                let mut bytes = [0; 8];
                bytes[..chunk.len()].copy_from_slice(chunk);
                self.word(at + 8 * i).store(u64::from_le_bytes(bytes), Ordering::Relaxed);
            }
        }

        /// Loads cells, relaxed.
        pub fn load_words<const N: usize>(&self, at: usize) -> [u64; N] {
            std::array::from_fn(|i| self.word(at + 8 * i).load(Ordering::Relaxed))
        }

        /// Stores cells, relaxed.
        pub fn store_words<const N: usize>(&self, at: usize, words: [u64; N]) {
            for (i, word) in words.into_iter().enumerate() {
                self.word(at + 8 * i).store(word, Ordering::Relaxed);
            }
        }

        /// Nothing, in a model.
        pub fn prefetch(&self, _at: usize) {}

        /// Zeroes cells.
        pub fn zero(&self, at: usize, bytes: usize) {
            self.copy_in(at, &vec![0; bytes]);
        }

        /// A futex: the comparison and the going to sleep are one step.
        pub fn futex_wait(&self, at: usize, expected: u64, _timeout: Option<Duration>) -> Wait {
            let guard = self.queue.0.lock().unwrap();
            // The kernel's hash-bucket lock orders this load after the waker's store.
            if self.word(at).load(Ordering::SeqCst) == expected {
                drop(self.queue.1.wait(guard).unwrap());
            }
            Wait::Woken
        }

        /// Wakes one waiter.
        pub fn futex_wake(&self, _at: usize) {
            let _guard = self.queue.0.lock().unwrap();
            self.queue.1.notify_one();
        }
    }
}
