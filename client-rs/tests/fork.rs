//! A forked child gets an error from every call, and neither hurts nor keeps the parent's session.

#![allow(clippy::unwrap_used)]

mod common;

use common::{FakeDaemon, Model};
use inferd_client::{AttachOptions, CallOptions, Error, Queue, ServingState, Session};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::time::Duration;

fn wrong<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::WrongProcess { attached_pid }) if attached_pid != std::process::id())
}

#[test]
fn a_forked_child_gets_an_error_and_the_parent_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let _daemon = FakeDaemon::start(dir.path(), Model::new(Queue::InOrder, 2));
    let mut session = Session::attach(AttachOptions::new("m").runtime_dir(dir.path())).unwrap();
    let (obs, mask, mut action) = ([1u8; 32], [1u8; 3], [0f32; 8]);
    let ticket = session.request().unwrap().submit().unwrap();
    // SAFETY: the child calls the session only, whose calls return before they touch a lock or the heap, and leaves
    // through _exit.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let mut right = wrong(session.request().map(drop));
            right &= wrong(session.try_wait(ticket).map(drop));
            right &= wrong(session.wait(ticket, None).map(drop));
            right &= wrong(session.next_reply(None).map(drop));
            right &= wrong(session.arm_poll());
            right &= wrong(session.reattach(Duration::ZERO));
            right &= session.state() == ServingState::Closed;
            session.abandon(ticket);
            session.disarm_poll();
            let inputs = [(0, &obs[..]), (1, &mask[..])];
            right &= wrong(session.infer(&inputs, &mut [(0, &mut action[..])], CallOptions::default()));
            drop(session);
            // SAFETY: ends the child without running the harness's exit handlers.
            unsafe { nix::libc::_exit(if right { 0 } else { 1 }) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
            assert_eq!(session.wait(ticket, Some(Duration::from_secs(10))).unwrap().name(), "ok");
        }
    }
}
