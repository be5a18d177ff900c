//! The state region: a session's recurrent state, in two halves.
//!
//! Step k writes half k % 2, then publishes its reply: publishing is the only commit, so a successor
//! finds the state of the last published step whatever happened since. Only the holder of the baton
//! writes; clients never map it. A region begins with a condition that says what its zeroes mean.

use crate::mem::Mem;
use crate::sync::Ordering;

/// Offset of the condition, written by the supervisor before anybody else maps the region.
const CONDITION: usize = 0;
/// Offset of the step at which this region begins, plus one; written by the first worker that takes it.
const BASE: usize = 128;
/// Offset of half 0.
const HALVES: usize = 256;

/// What a fresh region's zeroes mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Condition {
    /// A new session: zero is its state.
    Fresh = 1,
    /// The operator chose to reset at a reload: the next step runs on zeroes and is flagged.
    Reset = 2,
    /// The state could not be carried: steps need the reset flag.
    Lost = 3,
}

/// Where the next step's state comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Zeroes; `flagged` when the client must be told.
    Zero {
        /// Whether the reply says `state_reset`.
        flagged: bool,
    },
    /// The half at this offset.
    At(usize),
    /// Lost.
    Lost,
}

/// A mapped state region.
#[derive(Debug, Clone)]
pub struct StateRegion {
    mem: Mem,
    half_bytes: usize,
}

/// Bytes of a region whose halves hold `state_bytes`.
#[must_use]
pub fn region_bytes(state_bytes: u64) -> u64 {
    (HALVES as u64 + 2 * state_bytes.next_multiple_of(128)).next_multiple_of(4096)
}

impl StateRegion {
    /// Uses a mapped region.
    ///
    /// # Panics
    /// When the mapping is too small: its size is ours.
    #[must_use]
    pub fn new(mem: Mem, state_bytes: u64) -> StateRegion {
        assert!(mem.bytes() as u64 >= region_bytes(state_bytes), "the region holds both halves");
        StateRegion { mem, half_bytes: state_bytes.next_multiple_of(128) as usize }
    }

    /// Writes the condition of a fresh region.
    pub fn init(&self, condition: Condition) {
        self.mem.word(CONDITION).store(condition as u64, Ordering::Release);
    }

    /// Begins to serve at `step` (of the last published reply): a region that nobody used yet begins here.
    pub fn adopt(&self, step: u64) {
        let base = self.mem.word(BASE);
        if base.load(Ordering::Relaxed) == 0 {
            base.store(step.saturating_add(1), Ordering::Release);
        }
    }

    /// Where the state after `step` lies.
    #[must_use]
    pub fn source(&self, step: u64) -> Source {
        if self.mem.word(BASE).load(Ordering::Relaxed) != step.saturating_add(1) {
            return Source::At(self.half(step));
        }
        match self.mem.word(CONDITION).load(Ordering::Relaxed) {
            1 => Source::Zero { flagged: false },
            2 => Source::Zero { flagged: true },
            _ => Source::Lost,
        }
    }

    /// Offset of the half that holds the state after `step`.
    #[must_use]
    pub fn half(&self, step: u64) -> usize {
        HALVES + (step % 2) as usize * self.half_bytes
    }

    /// Copies state out of a half.
    pub fn read(&self, at: usize, to: &mut [u8]) {
        self.mem.copy_out(at, to);
    }

    /// Copies state into a half.
    pub fn write(&self, at: usize, from: &[u8]) {
        self.mem.copy_in(at, from);
    }
}

/// Creates a state region with its condition.
///
/// # Errors
/// As [`crate::region::create`].
#[cfg(not(loom))]
pub fn create(state_bytes: u64, condition: Condition) -> Result<std::os::fd::OwnedFd, crate::region::RegionError> {
    use crate::{layout::Backing, region};
    use std::os::fd::AsFd;
    let bytes = region_bytes(state_bytes);
    let new = region::create(Backing::Memfd, region::RegionKind::State, bytes, "")?;
    let mem = region::map(new.fd.as_fd(), bytes, region::Access::ReadWrite, Backing::Memfd)?;
    StateRegion::new(mem, state_bytes).init(condition);
    Ok(new.fd)
}

/// Maps a state region in a worker.
///
/// # Errors
/// As [`crate::region::map`].
#[cfg(not(loom))]
pub fn open(fd: std::os::fd::BorrowedFd<'_>, state_bytes: u64) -> Result<StateRegion, crate::region::RegionError> {
    use crate::{layout::Backing, region};
    let bytes = region_bytes(state_bytes);
    region::verify_import(fd, region::RegionKind::State, Backing::Memfd, bytes)?;
    Ok(StateRegion::new(region::map(fd, bytes, region::Access::ReadWrite, Backing::Memfd)?, state_bytes))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_successor_finds_the_last_committed_half() {
        let state = StateRegion::new(Mem::heap(region_bytes(64) as usize), 64);
        state.init(Condition::Fresh);
        state.adopt(0);
        assert_eq!(state.source(0), Source::Zero { flagged: false });
        state.write(state.half(1), &[7; 64]);
        state.adopt(1);
        let Source::At(at) = state.source(1) else { panic!("step 1 was committed") };
        let mut read = [0; 64];
        state.read(at, &mut read);
        assert_eq!(read, [7; 64]);
    }

    #[test]
    fn a_step_that_was_not_published_leaves_the_state_before_it() {
        let state = StateRegion::new(Mem::heap(region_bytes(8) as usize), 8);
        state.init(Condition::Fresh);
        state.adopt(0);
        state.write(state.half(1), &[1; 8]);
        state.write(state.half(2), &[2; 8]);
        let Source::At(at) = state.source(1) else { panic!() };
        let mut read = [0; 8];
        state.read(at, &mut read);
        assert_eq!(read, [1; 8]);
    }

    #[test]
    fn a_lost_state_stays_lost_until_a_step_commits() {
        let state = StateRegion::new(Mem::heap(region_bytes(8) as usize), 8);
        state.init(Condition::Lost);
        state.adopt(41);
        state.adopt(41);
        assert_eq!(state.source(41), Source::Lost);
        assert!(matches!(state.source(42), Source::At(_)));
    }
}
