//! No allocation per request after attach: counted by the global allocator, for the calling thread.

#![allow(clippy::unwrap_used)]

mod common;

use common::{FakeDaemon, Model};
use inferd_client::{AttachOptions, CallOptions, Error, Outcome, Queue, Session};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is passed on to the system's allocator unchanged; counting touches a thread-local number only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `alloc` above with this layout, that is, from the system's allocator.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_of(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn no_request_allocates_once_attached() {
    assert!(allocations_of(|| drop(std::hint::black_box(Box::new(1)))) > 0, "the counter counts");
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::start(dir.path(), Model::new(Queue::InOrder, 2));
    for queue in [Queue::InOrder, Queue::Latest] {
        let mut session = Session::attach(AttachOptions::new("m").runtime_dir(dir.path()).queue(queue)).unwrap();
        let (obs, mask, mut action) = ([3u8; 32], [1u8; 3], [0f32; 8]);
        let options = CallOptions { timeout: Some(Duration::from_secs(10)), ..CallOptions::default() };
        let calls = allocations_of(|| {
            for spin_us in [0, 1_000] {
                session.set_spin_us(spin_us).unwrap();
                for _ in 0..200 {
                    let inputs = [(0, &obs[..]), (1, &mask[..])];
                    assert!(session.infer(&inputs, &mut [(0, &mut action[..])], options).unwrap().is_ok());
                    let mut request = session.request().unwrap();
                    request.input_mut(0).unwrap().copy_from_slice(&obs);
                    let ticket = request.submit().unwrap();
                    let Outcome::Reply(reply) = session.wait(ticket, options.timeout).unwrap() else {
                        panic!("a reply")
                    };
                    reply.copy_output(0, &mut action).unwrap();
                }
            }
        });
        assert_eq!(calls, 0, "{queue:?}");
    }
    let mut session = Session::attach(AttachOptions::new("m").runtime_dir(dir.path())).unwrap();
    daemon.control.hold.store(true, SeqCst);
    let refusals = allocations_of(|| {
        for _ in 0..2 {
            let ticket = session.request().unwrap().submit().unwrap();
            assert!(matches!(session.wait(ticket, Some(Duration::from_millis(1))), Err(Error::Timeout { .. })));
        }
        assert!(matches!(session.request(), Err(Error::Again { .. })));
    });
    assert_eq!(refusals, 0, "what a control loop meets does not allocate either");
}
