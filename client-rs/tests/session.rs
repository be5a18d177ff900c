//! Scenarios of one session against a daemon in a thread: calls, queues, tickets, waiting.

#![allow(clippy::unwrap_used)]

mod common;

use common::{FakeDaemon, Model};
use inferd_client::{
    AttachOptions, AttachStatus, Backing, CallOptions, Error, Outcome, Queue, ServingState, Session, Status, Ticket,
    now_ns,
};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);
const LONG: Option<Duration> = Some(Duration::from_secs(10));

fn start(model: Model) -> (tempfile::TempDir, FakeDaemon, Session) {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::start(dir.path(), model);
    let session = Session::attach(AttachOptions::new("m").runtime_dir(dir.path()).timeout(10_000 * MS)).unwrap();
    (dir, daemon, session)
}

fn submit(session: &mut Session, fill: f32) -> Ticket {
    let mut request = session.request().unwrap();
    request.input_as_mut::<f32>(0).unwrap().fill(fill);
    request.write(1, &[7u8; 3]).unwrap();
    request.observation_id(fill as u64).submit().unwrap()
}

fn call(session: &mut Session, fill: f32, timeout: Option<Duration>) -> Result<(u64, f32), Error> {
    let mut action = [0f32; 8];
    let (obs, mask) = ([fill; 8], [1u8, 2, 3]);
    let obs = obs.map(f32::to_le_bytes).concat();
    let options = CallOptions { timeout, observation_id: fill as u64, ..CallOptions::default() };
    let info = session.infer(&[(0, &obs[..]), (1, &mask[..])], &mut [(0, &mut action[..])], options)?;
    assert_eq!(info.status, Status::Ok);
    Ok((info.observation_id, action[7]))
}

#[test]
fn a_call_comes_back_with_its_own_answer_on_both_backings() {
    for backing in [Backing::Memfd, Backing::Posix] {
        let (_dir, daemon, mut session) = start(Model { backing, ..Model::new(Queue::InOrder, 4) });
        assert_eq!((session.backing(), session.slots(), session.spin_us()), (backing, 4, 50));
        assert_eq!((session.daemon_version(), session.generation(), session.epoch()), ("9.8.7", 1, 0));
        assert_eq!(session.signature().inputs[0].to_string(), "obs f32[1, 8]");
        for i in 0..100 {
            assert_eq!(call(&mut session, i as f32, LONG).unwrap(), (i, i as f32));
        }
        daemon.control.generation.store(2, SeqCst);
        call(&mut session, 1.0, LONG).unwrap();
        assert_eq!(session.generation(), 2);
    }
}

#[test]
fn replies_are_read_by_copy_by_element_and_by_pointer() {
    let (_dir, _daemon, mut session) = start(Model::new(Queue::InOrder, 2));
    let before = now_ns();
    let ticket = submit(&mut session, 2.5);
    let Outcome::Reply(reply) = session.wait(ticket, LONG).unwrap() else { panic!("in_order never supersedes") };
    let (mut floats, mut bytes) = ([0f32; 8], [0u8; 32]);
    reply.copy_output(0, &mut floats).unwrap();
    reply.copy_output(0, &mut bytes).unwrap();
    assert_eq!((floats, bytes[..4] == 2.5f32.to_le_bytes()), ([2.5; 8], true));
    assert_eq!((reply.element::<f32>(0, 7).unwrap(), reply.element::<u8>(1, 2).unwrap()), (2.5, 7));
    let (pointer, length) = reply.as_ptr(0).unwrap();
    assert_eq!((pointer as usize % 64, length), (0, 32));
    for wrong in [
        reply.copy_output(0, &mut [0f32; 7]),
        reply.copy_output(0, &mut [0f64; 4]),
        reply.copy_output(2, &mut [0u8; 3]),
        reply.element::<f32>(0, 8).map(drop),
        reply.element::<f32>(0, usize::MAX).map(drop),
    ] {
        assert!(matches!(wrong, Err(Error::Tensor { .. })));
    }
    let info = *reply.header();
    assert_eq!((info.ticket, info.status, info.observation_id), (ticket, Status::Ok, 2));
    assert!(before <= info.t_submit_ns && info.t_submit_ns <= info.t_start_ns && info.t_start_ns <= info.t_done_ns);
}

#[test]
fn output_is_withheld_unless_the_status_is_ok() {
    let (_dir, daemon, mut session) = start(Model::new(Queue::InOrder, 2));
    daemon.control.status.store(Status::ModelError as u32, SeqCst);
    let ticket = submit(&mut session, 1.0);
    let outcome = session.wait(ticket, LONG).unwrap();
    assert_eq!(outcome.name(), "model_error");
    let Outcome::Reply(reply) = outcome else { panic!("a reply") };
    let refused =
        [reply.copy_output(0, &mut [0f32; 8]), reply.as_ptr(0).map(drop), reply.element::<f32>(0, 0).map(drop)];
    assert!(refused.iter().all(|r| matches!(r, Err(Error::NoOutput { status: Status::ModelError }))));
}

#[test]
fn in_order_refuses_when_all_slots_are_in_flight_and_tickets_may_be_claimed_in_any_order() {
    let (_dir, daemon, mut session) = start(Model::new(Queue::InOrder, 3));
    daemon.control.hold.store(true, SeqCst);
    let tickets: Vec<Ticket> = (0..3).map(|i| submit(&mut session, i as f32)).collect();
    assert!(matches!(session.request(), Err(Error::Again { slots: 3, .. })));
    assert!(session.try_wait(tickets[0]).unwrap().is_none());
    daemon.control.hold.store(false, SeqCst);
    for i in [2, 0] {
        let Outcome::Reply(reply) = session.wait(tickets[i], LONG).unwrap() else { panic!("a reply") };
        assert_eq!(reply.element::<f32>(0, 0).unwrap(), i as f32);
    }
    assert!(matches!(session.wait(tickets[0], LONG), Err(Error::TicketSpent { .. })));
    submit(&mut session, 9.0);
    assert!(session.request().is_err(), "ticket 1 is unclaimed, so 2's slot is not released");
    session.abandon(tickets[1]);
    submit(&mut session, 10.0);
    for fill in [9.0, 10.0] {
        assert_eq!(session.next_reply(LONG).unwrap().unwrap().element::<f32>(0, 0).unwrap(), fill);
    }
    assert!(session.next_reply(Some(MS)).unwrap().is_none());
}

#[test]
fn a_timed_out_call_is_abandoned_and_later_calls_get_their_own_reply() {
    for queue in [Queue::InOrder, Queue::Latest] {
        let (_dir, daemon, mut session) = start(Model::new(queue, 2));
        daemon.control.hold.store(true, SeqCst);
        for i in 0..2 {
            assert!(matches!(call(&mut session, i as f32, Some(3 * MS)), Err(Error::Timeout { .. })));
        }
        if queue == Queue::InOrder {
            let began = Instant::now();
            assert!(matches!(call(&mut session, 2.0, Some(5 * MS)), Err(Error::Again { .. })));
            assert!(began.elapsed() >= 5 * MS, "it waits for a slot within its own timeout");
        }
        daemon.control.hold.store(false, SeqCst);
        for i in 10..60 {
            assert_eq!(call(&mut session, i as f32, LONG).unwrap(), (i, i as f32));
        }
    }
}

#[test]
fn a_call_without_a_free_slot_returns_at_once_when_none_can_come_free() {
    let (_dir, _daemon, mut session) = start(Model::new(Queue::InOrder, 1));
    let ticket = submit(&mut session, 1.0);
    while session.arm_poll().map(|ready| !ready).unwrap() {}
    assert!(matches!(call(&mut session, 2.0, None), Err(Error::Again { .. })));
    session.wait(ticket, LONG).unwrap();
    assert_eq!(call(&mut session, 3.0, None).unwrap(), (3, 3.0));
}

#[test]
fn latest_runs_the_newest_and_says_what_superseded_the_others() {
    let (_dir, daemon, mut session) = start(Model::new(Queue::Latest, 2));
    daemon.control.hold.store(true, SeqCst);
    let tickets: Vec<Ticket> = (0..20).map(|i| submit(&mut session, i as f32)).collect();
    daemon.control.hold.store(false, SeqCst);
    let newest = tickets[19];
    match session.wait(tickets[4], LONG).unwrap() {
        Outcome::Superseded { by } => assert_eq!(by, newest),
        Outcome::Reply(reply) => panic!("{:?} is not the newest", reply.header()),
    }
    let Outcome::Reply(reply) = session.try_wait(newest).unwrap().unwrap() else { panic!("the newest is run") };
    assert_eq!((reply.header().skipped, reply.element::<f32>(0, 0).unwrap()), (19, 19.0));
}

#[test]
fn unclaimed_replies_never_starve_a_newer_request_in_latest() {
    let (_dir, _daemon, mut session) = start(Model::new(Queue::Latest, 2));
    for i in 0..200 {
        let ticket = submit(&mut session, i as f32);
        if i % 10 == 9 {
            let Outcome::Reply(reply) = session.wait(ticket, LONG).unwrap() else { panic!("the newest is run") };
            assert_eq!(reply.header().observation_id, i);
        }
    }
}

#[test]
fn a_reply_beyond_what_was_released_ends_the_session() {
    let (_dir, daemon, mut session) = start(Model::new(Queue::InOrder, 2));
    let tickets = [0.0, 1.0].map(|x| submit(&mut session, x));
    // Room comes in order: with the first one outstanding there is none.
    assert_eq!(session.wait(tickets[1], LONG).unwrap().name(), "ok");
    daemon.control.lie.store(2 + 1, SeqCst);
    while daemon.control.lie.load(SeqCst) != 0 {
        std::thread::sleep(MS);
    }
    std::thread::sleep(20 * MS);
    let lied = session.wait(tickets[0], LONG).map(|outcome| outcome.name()).unwrap_err();
    assert!(lied.to_string().contains("not released"), "{lied}");
}

#[test]
fn a_dropped_request_leaves_no_older_one_without_an_outcome() {
    let (_dir, daemon, mut session) = start(Model::new(Queue::Latest, 1));
    daemon.control.hold.store(true, SeqCst);
    let ticket = submit(&mut session, 1.0);
    drop(session.request().unwrap());
    daemon.control.hold.store(false, SeqCst);
    assert_eq!(session.wait(ticket, LONG).unwrap().name(), "superseded");
    assert_eq!(call(&mut session, 5.0, LONG).unwrap(), (5, 5.0));
}

#[test]
fn a_leaked_reply_is_released_by_the_next_call() {
    let (_dir, _daemon, mut session) = start(Model::new(Queue::InOrder, 1));
    for i in 0..5 {
        let ticket = submit(&mut session, i as f32);
        std::mem::forget(session.wait(ticket, LONG).unwrap());
    }
}

#[test]
fn sleeping_clients_are_woken_and_deadlines_and_resets_arrive() {
    let (_dir, daemon, mut session) = start(Model::new(Queue::InOrder, 2));
    session.set_spin_us(0).unwrap();
    daemon.control.run_us.store(2_000, SeqCst);
    let began = Instant::now();
    for i in 0..10 {
        assert_eq!(call(&mut session, i as f32, LONG).unwrap().0, i);
    }
    assert!(began.elapsed() < 90 * MS, "10 runs of 2 ms took {:?}: no ring came", began.elapsed());
    let mut request = session.request().unwrap();
    request.write(0, &[0f32; 8]).unwrap();
    let ticket = request.deadline_ns(1).reset().submit().unwrap();
    let Outcome::Reply(reply) = session.wait(ticket, LONG).unwrap() else { panic!("a reply") };
    assert_eq!((reply.status(), reply.state_reset()), (Status::Expired, true));
}

/// Sleeps of the calling thread so far.
fn sleeps() -> i64 {
    nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD).unwrap().voluntary_context_switches()
}

#[test]
fn a_client_does_not_spin_on_the_cpu_that_the_woken_worker_waits_for() {
    use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
    // The fake daemon's threads inherit it.
    let mut here = CpuSet::new();
    here.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(nix::unistd::Pid::from_raw(0), &here).unwrap();
    let (_dir, daemon, mut session) = start(Model::new(Queue::InOrder, 4));
    session.set_spin_us(10_000_000).unwrap();
    daemon.control.hold.store(true, SeqCst);
    let mut timed_out = |after| {
        let before = sleeps();
        assert!(matches!(call(&mut session, 1.0, Some(after)), Err(Error::Timeout { .. })));
        sleeps() - before
    };
    assert!(timed_out(200 * MS) < 3, "an awake worker is spun for");
    daemon.control.asleep.store(true, SeqCst);
    std::thread::sleep(200 * MS);
    assert!(timed_out(600 * MS) >= 5, "a sleep each 10 ms");
}

#[test]
fn an_event_loop_is_woken_through_the_pollable_descriptor() {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let (_dir, daemon, mut session) = start(Model::new(Queue::InOrder, 2));
    daemon.control.run_us.store(1_000, SeqCst);
    for i in 0..20 {
        let ticket = submit(&mut session, i as f32);
        while session.try_wait(ticket).unwrap().is_none() {
            if !session.arm_poll().unwrap() {
                let ready = poll(&mut [PollFd::new(session.poll_fd(), PollFlags::POLLIN)], PollTimeout::from(5_000u16));
                assert_eq!(ready.unwrap(), 1, "no ring came");
            }
        }
    }
}

#[test]
fn a_recovering_model_refuses_at_once_and_serves_again_later() {
    let (_dir, daemon, mut session) = start(Model::new(Queue::InOrder, 2));
    daemon.set(ServingState::Recovering);
    while session.state() != ServingState::Recovering {
        std::thread::sleep(MS);
    }
    let began = Instant::now();
    assert!(matches!(call(&mut session, 1.0, LONG), Err(Error::Unavailable { state: ServingState::Recovering, .. })));
    assert!(matches!(session.request(), Err(Error::Unavailable { .. })));
    assert!(began.elapsed() < 1_000 * MS);
    daemon.set(ServingState::Serving);
    while session.state() != ServingState::Serving {
        std::thread::sleep(MS);
    }
    assert_eq!(call(&mut session, 1.0, LONG).unwrap(), (1, 1.0));
}

#[test]
fn calls_with_missing_repeated_or_misshapen_tensors_publish_nothing() {
    let (_dir, _daemon, mut session) = start(Model::new(Queue::InOrder, 1));
    let (obs, mask) = ([0u8; 32], [0u8; 3]);
    let none: &mut [(usize, &mut [f32])] = &mut [];
    for inputs in [
        &[(0, &obs[..])][..],
        &[(0, &obs[..]), (0, &obs[..])],
        &[(0, &obs[..]), (1, &obs[..])],
        &[(0, &obs[..]), (2, &mask[..])],
    ] {
        let refused = session.infer(inputs, none, CallOptions::default());
        assert!(matches!(refused, Err(Error::Tensor { .. })));
    }
    let good = [(0, &obs[..]), (1, &mask[..])];
    let refused = session.infer(&good, &mut [(0, &mut [0f64; 4][..])], CallOptions::default());
    assert!(matches!(refused, Err(Error::Tensor { .. })));
    assert!(session.infer(&good, none, CallOptions::default()).unwrap().is_ok());
}

#[test]
fn refusals_carry_the_daemon_s_own_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::start(dir.path(), Model::new(Queue::InOrder, 1));
    let options = AttachOptions::new("m").runtime_dir(dir.path());
    *daemon.control.refuse.lock().unwrap() =
        Some((AttachStatus::UnknownModel, "no model m; there are a, b".to_owned()));
    let refused = Session::attach(options.clone()).unwrap_err();
    assert!(matches!(&refused, Error::Attach { status: AttachStatus::UnknownModel, .. }));
    assert!(refused.to_string().contains("no model m; there are a, b"));
    *daemon.control.refuse.lock().unwrap() = None;
    daemon.control.stall.store(true, SeqCst);
    let began = Instant::now();
    assert!(matches!(Session::attach(options.timeout(30 * MS)), Err(Error::Timeout { .. })));
    assert!(began.elapsed() < 1_000 * MS);
}

#[test]
fn a_missing_daemon_is_one_error_with_all_places() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Session::attach(AttachOptions::new("m").runtime_dir(dir.path())).unwrap_err();
    assert!(matches!(&missing, Error::NoDaemon { tried } if tried.len() == 1 && tried[0].dir == dir.path()));
    FakeDaemon::start(dir.path(), Model::new(Queue::InOrder, 1)).kill();
    let stale = Session::attach(AttachOptions::new("m").runtime_dir(dir.path())).unwrap_err();
    assert!(stale.to_string().contains("stale"), "{stale}");
    let long = "x".repeat(200);
    let long = Session::attach(AttachOptions::new("m").runtime_dir(long)).unwrap_err();
    assert!(matches!(long, Error::NoDaemon { .. }));
}

#[test]
fn a_session_moves_between_threads() {
    let (_dir, _daemon, mut session) = start(Model::new(Queue::InOrder, 1));
    std::thread::spawn(move || call(&mut session, 4.0, LONG).unwrap()).join().unwrap();
}
