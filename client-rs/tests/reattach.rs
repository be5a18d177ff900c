//! Scenarios in which the daemon goes away, and comes back or not.

#![allow(clippy::unwrap_used)]

mod common;

use common::{FakeDaemon, Model};
use inferd_client::{AttachOptions, CallOptions, DType, Error, Outcome, Queue, Session, TensorSpec, Ticket};
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);
const LONG: Option<Duration> = Some(Duration::from_secs(10));

fn attach(dir: &Path) -> Session {
    Session::attach(AttachOptions::new("m").runtime_dir(dir).timeout(10_000 * MS)).unwrap()
}

fn submit(session: &mut Session) -> Result<Ticket, Error> {
    let mut request = session.request()?;
    request.write(0, &[1f32; 8])?;
    request.submit()
}

#[test]
fn the_call_in_flight_is_lost_and_the_next_ones_run_on_new_regions() {
    for spin_us in [0, 2_000_000] {
        let dir = tempfile::tempdir().unwrap();
        let daemon = FakeDaemon::start(dir.path(), Model::new(Queue::InOrder, 2));
        daemon.control.hold.store(true, SeqCst);
        let mut session = attach(dir.path());
        session.set_spin_us(spin_us).unwrap();
        let ticket = submit(&mut session).unwrap();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(20 * MS);
            daemon.kill();
            Instant::now()
        });
        assert!(matches!(session.wait(ticket, LONG), Err(Error::DaemonLost { .. })));
        assert!(killer.join().unwrap().elapsed() < 3_000 * MS, "a death is noticed at once, spinning or asleep");
        assert!(matches!(session.try_wait(ticket), Err(Error::DaemonLost { .. })));
        assert!(session.is_lost());
        let failed = submit(&mut session).unwrap_err();
        assert!(
            matches!(&failed, Error::DaemonLost { cause: Some(cause), .. } if matches!(**cause, Error::NoDaemon { .. }))
        );
        assert!(matches!(submit(&mut session), Err(Error::DaemonLost { cause: None, .. })), "the backoff is not over");
        let _daemon = FakeDaemon::start(dir.path(), Model::new(Queue::InOrder, 2));
        let new = loop {
            match submit(&mut session) {
                Ok(ticket) => break ticket,
                Err(Error::DaemonLost { .. }) => std::thread::sleep(MS),
                Err(e) => panic!("{e}"),
            }
        };
        assert_eq!((new.epoch(), session.epoch(), session.is_lost()), (1, 1, false));
        assert!(matches!(session.wait(ticket, LONG), Err(Error::DaemonLost { .. })), "an old ticket stays lost");
        assert_eq!(session.wait(new, LONG).unwrap().name(), "ok");
    }
}

#[test]
fn a_reply_that_came_before_the_hang_up_is_still_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::start(dir.path(), Model::new(Queue::InOrder, 2));
    let mut session = attach(dir.path());
    let (first, second) = (submit(&mut session).unwrap(), submit(&mut session).unwrap());
    session.wait(second, LONG).unwrap();
    daemon.kill();
    let Outcome::Reply(reply) = session.wait(first, LONG).unwrap() else { panic!("a reply") };
    assert_eq!(reply.element::<f32>(0, 0).unwrap(), 1.0);
}

#[test]
fn polling_without_waiting_notices_the_end_too() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::start(dir.path(), Model::new(Queue::InOrder, 2));
    daemon.control.hold.store(true, SeqCst);
    let mut session = attach(dir.path());
    let ticket = submit(&mut session).unwrap();
    daemon.kill();
    let began = Instant::now();
    let lost = loop {
        match session.try_wait(ticket) {
            Ok(outcome) => assert!(outcome.is_none()),
            Err(e) => break e,
        }
    };
    assert!(matches!(lost, Error::DaemonLost { .. }) && began.elapsed() < 3_000 * MS);
    assert!(matches!(session.arm_poll(), Err(Error::DaemonLost { .. })));
}

#[test]
fn an_explicit_reattach_waits_for_the_daemon_within_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::start(dir.path(), Model::new(Queue::InOrder, 2));
    let options = AttachOptions::new("m").runtime_dir(dir.path()).auto_reattach(false);
    let mut session = Session::attach(options).unwrap();
    session.reattach(MS).unwrap();
    assert_eq!(session.epoch(), 0, "nothing was lost");
    daemon.kill();
    let began = Instant::now();
    assert!(matches!(session.reattach(40 * MS), Err(Error::DaemonLost { cause: Some(_), .. })));
    assert!(began.elapsed() >= 40 * MS && began.elapsed() < 3_000 * MS);
    assert!(matches!(submit(&mut session), Err(Error::DaemonLost { cause: None, .. })));
    let path = dir.path().to_owned();
    let starter = std::thread::spawn(move || {
        std::thread::sleep(50 * MS);
        FakeDaemon::start(&path, Model::new(Queue::InOrder, 2))
    });
    session.reattach(10_000 * MS).unwrap();
    let _daemon = starter.join().unwrap();
    let ticket = submit(&mut session).unwrap();
    assert_eq!((ticket.epoch(), session.wait(ticket, LONG).unwrap().name()), (1, "ok"));
}

#[test]
fn a_model_with_another_signature_is_not_taken_for_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::start(dir.path(), Model::new(Queue::InOrder, 2));
    let mut session = attach(dir.path());
    daemon.kill();
    let mut other = Model::new(Queue::InOrder, 2);
    other.signature.inputs[0] = TensorSpec::new("obs", DType::F32, &[1, 9]);
    let _daemon = FakeDaemon::start(dir.path(), other);
    let changed = session.reattach(10_000 * MS).unwrap_err();
    assert!(matches!(changed, Error::SignatureChanged { .. }) && !changed.is_transient());
    assert!(changed.to_string().contains("obs f32[1, 9]"), "{changed}");
    assert!(session.is_lost());
}

#[test]
fn one_calls_wait_for_the_daemon_and_requests_never_do() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::start(dir.path(), Model::new(Queue::InOrder, 2));
    let mut session = attach(dir.path());
    let (obs, mask, mut action) = ([1u8; 32], [1u8; 3], [0f32; 8]);
    let mut call = |session: &mut Session, timeout| {
        let options = CallOptions { timeout, ..CallOptions::default() };
        session.infer(&[(0, &obs[..]), (1, &mask[..])], &mut [(0, &mut action[..])], options)
    };
    daemon.kill();
    assert!(
        matches!(call(&mut session, LONG), Err(Error::DaemonLost { cause: None, .. })),
        "in flight when it was noticed"
    );
    assert!(matches!(call(&mut session, Some(20 * MS)), Err(Error::DaemonLost { cause: Some(_), .. })));
    let stalled = FakeDaemon::start(dir.path(), Model::new(Queue::InOrder, 2));
    stalled.control.stall.store(true, SeqCst);
    let began = Instant::now();
    while began.elapsed() < 300 * MS {
        let asked = Instant::now();
        assert!(matches!(submit(&mut session), Err(Error::DaemonLost { .. })));
        assert!(asked.elapsed() < 1_000 * MS, "a request does not wait for a daemon that stalls");
    }
    stalled.control.stall.store(false, SeqCst);
    assert!(call(&mut session, LONG).unwrap().is_ok());
    assert_eq!(session.epoch(), 1);
}
