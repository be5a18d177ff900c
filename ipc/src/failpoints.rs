//! Failpoints: named steps at which a test ends, stops, delays or fails a process.
//!
//! `failpoint!("worker.taken")` marks a step. Without the feature `failpoints` it expands to nothing, and no build
//! that ships has the feature: their programs hold neither these names nor the variable's (tests/tests/failpoints.rs
//! looks). With it, a process looks in the table that `INFERD_FAILPOINTS` names, a file that the test and all its
//! processes map: so a test arms a process while it runs, a passage is counted over all of them, and each armed
//! step acts exactly once. The C client has the same in `client-c/failpoint.h`.

use crate::layout::Backing;
use crate::mem::Mem;
use crate::region::{Access, RegionError, map};
use crate::sync::Ordering;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

/// Steps that may be armed at once.
pub const ENTRIES: usize = 8;
/// Longest name of a step.
pub const NAME_BYTES: usize = 48;
/// Bytes of a table.
pub const TABLE_BYTES: u64 = 4096;

const ENTRY_BYTES: usize = 128;
/// What to do, and with what; then the passage at which it is done (0: not armed), the passages so far, and who did it.
const ACTION: usize = NAME_BYTES;
const VALUE: usize = ACTION + 8;
const DUE: usize = ACTION + 16;
const PASSED: usize = ACTION + 24;
const DONE_BY: usize = ACTION + 32;
const DONE_AT: usize = ACTION + 40;
const _: () = assert!(DONE_AT + 8 <= ENTRY_BYTES && ENTRIES * ENTRY_BYTES <= TABLE_BYTES as usize);

/// What happens at an armed step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A signal to a process, 0 for the one that passes: SIGKILL and SIGABRT end it there, SIGSTOP stops it there; SIGTERM
    /// to a daemon begins its drain at this very step, of whichever process.
    Signal {
        /// Its number.
        signal: i32,
        /// To whom.
        pid: u32,
    },
    /// The process sleeps at the step.
    Sleep {
        /// How long.
        us: u64,
    },
    /// The step fails, where it can: `failpoint!` with a second argument.
    Fail,
}

impl Action {
    fn words(self) -> (u64, u64) {
        match self {
            Action::Signal { signal, pid } => (signal as u64, u64::from(pid)),
            Action::Sleep { us } => (SLEEP, us),
            Action::Fail => (FAIL, 0),
        }
    }
}

/// Beyond every signal's number.
const SLEEP: u64 = 1000;
const FAIL: u64 = 1001;

/// The table of armed steps, shared between a test and its processes.
#[derive(Debug, Clone)]
pub struct Table {
    mem: Mem,
}

fn name_words(name: &str) -> [u64; NAME_BYTES / 8] {
    assert!(name.len() < NAME_BYTES, "{name}: the name of a step is shorter than {NAME_BYTES} bytes");
    let mut bytes = [0; NAME_BYTES];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|k| bytes[8 * i + k])))
}

impl Table {
    /// Makes a table in a file, nothing armed.
    ///
    /// # Errors
    /// The file's, or [`RegionError`].
    pub fn create(path: &Path) -> std::io::Result<Table> {
        let file = File::options().create(true).truncate(true).read(true).write(true).open(path)?;
        file.set_len(TABLE_BYTES)?;
        Table::of(&file).map_err(std::io::Error::other)
    }

    fn of(file: &File) -> Result<Table, RegionError> {
        Ok(Table { mem: map(file.as_fd(), TABLE_BYTES, Access::ReadWrite, Backing::Memfd)? })
    }

    fn word(&self, entry: usize, at: usize) -> &crate::sync::AtomicU64 {
        assert!(entry < ENTRIES, "a table has {ENTRIES} entries");
        self.mem.word(entry * ENTRY_BYTES + at)
    }

    /// Arms a step: at its `due`-th passage from now on (1: the next), in whichever process, `action` is done once.
    pub fn arm(&self, entry: usize, name: &str, action: Action, due: u64) {
        self.disarm(entry);
        for (i, word) in name_words(name).into_iter().enumerate() {
            self.word(entry, 8 * i).store(word, Ordering::Relaxed);
        }
        let (what, value) = action.words();
        self.word(entry, ACTION).store(what, Ordering::Relaxed);
        self.word(entry, VALUE).store(value, Ordering::Relaxed);
        for word in [PASSED, DONE_BY, DONE_AT] {
            self.word(entry, word).store(0, Ordering::Relaxed);
        }
        // Release: who sees it armed sees the rest; pairs with the Acquire in `pass`.
        self.word(entry, DUE).store(due.max(1), Ordering::Release);
    }

    /// Arms it no more. What it has done can still be asked.
    pub fn disarm(&self, entry: usize) {
        self.word(entry, DUE).store(0, Ordering::SeqCst);
    }

    /// The process in which the armed step acted, and when (CLOCK_MONOTONIC nanoseconds).
    #[must_use]
    pub fn done(&self, entry: usize) -> Option<(u32, u64)> {
        let pid = self.word(entry, DONE_BY).load(Ordering::Acquire);
        (pid != 0).then(|| (pid as u32, self.word(entry, DONE_AT).load(Ordering::Relaxed)))
    }

    /// Passages of the armed step.
    #[must_use]
    pub fn passed(&self, entry: usize) -> u64 {
        self.word(entry, PASSED).load(Ordering::Relaxed)
    }
}

#[cfg(feature = "failpoints")]
mod passing {
    use super::{ACTION, DONE_AT, DONE_BY, DUE, ENTRIES, FAIL, PASSED, SLEEP, Table, VALUE, name_words};
    use crate::sync::Ordering;
    use std::fs::File;
    use std::sync::OnceLock;
    use std::time::Duration;

    /// Opened at the first step, before a worker gives up the right to open files.
    fn table() -> Option<&'static Table> {
        static TABLE: OnceLock<Option<Table>> = OnceLock::new();
        TABLE
            .get_or_init(|| {
                let path = std::env::var_os("INFERD_FAILPOINTS")?;
                let file = File::options().read(true).write(true).open(path).expect("the table of failpoints");
                Some(Table::of(&file).expect("the table of failpoints can be mapped"))
            })
            .as_ref()
    }

    /// Passes a step. True when it shall fail.
    pub fn pass(name: &'static str) -> bool {
        let Some(table) = table() else { return false };
        let mut fails = false;
        for entry in 0..ENTRIES {
            let due = table.word(entry, DUE).load(Ordering::Acquire);
            if due != 0 && is_named(table, entry, name) {
                let passed = table.word(entry, PASSED).fetch_add(1, Ordering::Relaxed) + 1;
                if passed == due {
                    fails |= act(table, entry);
                }
            }
        }
        fails
    }

    fn is_named(table: &Table, entry: usize, name: &str) -> bool {
        name_words(name).iter().enumerate().all(|(i, word)| table.word(entry, 8 * i).load(Ordering::Relaxed) == *word)
    }

    fn act(table: &Table, entry: usize) -> bool {
        let what = table.word(entry, ACTION).load(Ordering::Relaxed);
        let value = table.word(entry, VALUE).load(Ordering::Relaxed);
        table.word(entry, DONE_AT).store(crate::sys::now_ns(), Ordering::Relaxed);
        // Release: who sees that it was done sees when.
        table.word(entry, DONE_BY).store(u64::from(std::process::id()), Ordering::Release);
        match what {
            SLEEP => std::thread::sleep(Duration::from_micros(value)),
            FAIL => return true,
            signal => crate::sys::send_signal(value as u32, signal as i32),
        }
        false
    }
}

#[cfg(feature = "failpoints")]
pub use passing::pass;

/// Marks a step at which a process may die; with a second argument, one that may fail, which is then returned.
#[cfg(feature = "failpoints")]
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        $crate::failpoints::pass($name);
    };
    ($name:literal, $failure:expr) => {
        if $crate::failpoints::pass($name) {
            return $failure;
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_what_was_armed_and_what_was_done() {
        let dir = std::env::temp_dir().join(format!("inferd-failpoints.{}", std::process::id()));
        let table = Table::create(&dir).expect("a file");
        table.arm(3, "worker.taken", Action::Sleep { us: 7 }, 2);
        let other = Table::of(&File::options().read(true).write(true).open(&dir).expect("it is there")).expect("maps");
        assert_eq!(other.word(3, DUE).load(Ordering::Relaxed), 2);
        assert_eq!(other.word(3, VALUE).load(Ordering::Relaxed), 7);
        assert_eq!((table.done(3), table.passed(3)), (None, 0));
        std::fs::remove_file(dir).expect("our own file");
    }

    #[test]
    #[should_panic(expected = "shorter than")]
    fn a_name_that_does_not_fit_is_refused() {
        let _ = name_words(&"x".repeat(NAME_BYTES));
    }
}
