//! The Rust client's driver: speaks the line protocol of `DRIVER.md` over `inferd-client`.
//!
//! It decides nothing: it calls the library as a robot program would and says what came back. A
//! `Request` borrows its session, so `request` is tried and dropped, `write` is buffered, and `submit`
//! takes the slot again. Allocations are counted by the global allocator.

mod commands;
mod keys;
mod looping;

use serde_json::{Value, json};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicU64, Ordering};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is handed to the system's allocator unchanged; counting touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are System's requirements.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above; `at` came from System.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above; `at` came from System.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

/// Allocations of this process so far.
fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Why a command failed: the error's name and text, and what else belongs into the answer.
struct Failure {
    error: &'static str,
    message: String,
    more: Value,
}

impl Failure {
    fn usage(message: impl Into<String>) -> Failure {
        Failure { error: "usage", message: message.into(), more: json!({}) }
    }
}

impl From<inferd_client::Error> for Failure {
    fn from(error: inferd_client::Error) -> Failure {
        Failure { error: commands::error_name(&error), message: error.to_string(), more: json!({}) }
    }
}

fn main() {
    let mut driver = commands::Driver::default();
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        if line.trim() == "quit" {
            break;
        }
        let answer = match driver.command(&line) {
            Ok(mut answer) => {
                answer["ok"] = true.into();
                answer
            }
            Err(failure) => {
                let mut answer = failure.more;
                answer["ok"] = false.into();
                answer["error"] = failure.error.into();
                answer["message"] = failure.message.into();
                answer
            }
        };
        if writeln!(out, "{answer}").and_then(|()| out.flush()).is_err() {
            break;
        }
    }
}
