//! A session that is forked: the child must get an error, and either side may die first.
//!
//! `fork rounds=N seed=S`: an orderly client of the library forks in every round; the child tries to use the session, and
//! is then killed, exits, or stays a while after its parent went on. The parent's own answers stay exact. `last=parent`
//! ends with the parent gone and the child alive.

use crate::Deed;
use inferd_client::{AttachOptions, Error, Outcome, Session};
use serde_json::{Value, json};
use std::time::Duration;

/// Exit code of a child that was told that the session is not its own.
const TOLD: i32 = 7;

fn ask(session: &mut Session) -> bool {
    matches!(session.request().map(drop), Err(Error::WrongProcess { .. }))
}

/// The child: uses the session as long as it can; its end must touch nothing of the parent's.
fn child(session: &mut Session, random: u64) -> ! {
    let told = ask(session);
    match random % 3 {
        0 => std::thread::sleep(Duration::from_millis(random % 5)),
        // SAFETY: ends this process, the child, at once.
        1 => unsafe {
            libc::raise(libc::SIGKILL);
        },
        _ => {}
    }
    // SAFETY: ends the child without running anything of the parent's.
    unsafe { libc::_exit(if told { TOLD } else { 1 }) }
}

/// Runs one step and says whether the answer is the bytes that were sent.
fn exact(session: &mut Session, byte: u8) -> bool {
    let sent = [byte; 64];
    let submit = |session: &mut Session| {
        let mut request = session.request()?;
        request.input_mut(0)?.copy_from_slice(&sent);
        request.submit()
    };
    let Ok(ticket) = submit(session) else { return false };
    let outcome = session.wait(ticket, Some(Duration::from_secs(5)));
    let Ok(Outcome::Reply(reply)) = outcome else { return false };
    let mut got = [0u8; 64];
    reply.is_ok() && reply.copy_output(0, &mut got).is_ok() && got == sent
}

/// See the file.
pub fn run(deed: &Deed) -> Value {
    let mut session = Session::attach(AttachOptions::new("m").slots(4)).expect("the daemon listens");
    let (mut told, mut killed, mut wrong) = (0u64, 0u64, 0u64);
    let mut random = deed.number("seed", 1);
    for round in 0..deed.number("rounds", 10) {
        random = inferd_tests::answer::mix(random);
        // SAFETY: this process has one thread; the child calls the library once and exits.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            child(&mut session, random);
        }
        wrong += u64::from(!exact(&mut session, (round % 64) as u8));
        let mut status = 0;
        // SAFETY: waits for the child just made; `status` is valid.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        told += u64::from(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == TOLD);
        killed += u64::from(libc::WIFSIGNALED(status));
        wrong += u64::from(!exact(&mut session, (round % 61) as u8));
    }
    let report = json!({ "told": told, "killed": killed, "wrong": wrong });
    if deed.word("last") == "parent" {
        println!("{report}");
        // SAFETY: as above; the parent ends, and the child outlives it.
        if unsafe { libc::fork() } == 0 {
            std::thread::sleep(Duration::from_millis(300));
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!ask(&mut session))) };
        }
        // SAFETY: ends the parent at once, with everything open.
        unsafe { libc::_exit(0) };
    }
    report
}
