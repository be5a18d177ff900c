//! Clients that do what no library would: bare records and words against a daemon on both backings.
//!
//! The liar's session ends, or its request is `rejected`; a bystander on the same model keeps a clean
//! ledger, and supervisor and worker live on. The campaign of the threat model repeats these by the million.

use inferd_ipc::attach::{self, AttachStatus, RecordKind};
use inferd_ipc::fdpass;
use inferd_ipc::layout::{Backing, Queue, REQ_PUBLISHED, REQ_RELEASED, RequestHeader, Status};
use inferd_tests::raw::{RawAttach, RawSession, wish};
use inferd_tests::{Client, Daemon, DaemonConfig, Driver, Model, ms, now_ns, turn, within};
use std::os::fd::AsFd;
use zerocopy::IntoBytes;

const X: [u8; 64] = [0x3e; 64];

/// Runs `villain` beside a bystander, on both backings; afterwards everybody else must be as before.
fn beside_a_bystander(villain: impl Fn(&Daemon)) {
    for backing in [Backing::Memfd, Backing::Posix] {
        let _turn = turn();
        let model = Model::counter("m").queue(4, "in_order").config("max_run_ms", "2000");
        let daemon = DaemonConfig::new(backing).model(model).start();
        let program = Client::Rust.program().expect("built");
        let mut bystander = Driver::start(&program, &daemon.runtime_dir());
        bystander.ok("attach model=m slots=4");
        bystander.exchange("fill=1").expect("ok");
        let (worker, baseline) = (daemon.worker("m"), daemon.baseline());
        bystander.begin("loop seconds=1.2 rate_hz=500 depth=2 check=count");
        villain(&daemon);
        let summary = bystander.finish(ms(20_000)).clean();
        assert_eq!(summary.count("ok"), summary.number("sent"), "{}", summary.json);
        assert_eq!((daemon.worker("m"), daemon.model("m").worker_deaths), (worker, 0), "the worker lives");
        within(ms(2000), "only the bystander's session is left", || daemon.sessions().len() == 1);
        daemon.settles_to(&baseline);
    }
}

fn session(daemon: &Daemon, queue: Queue) -> RawSession {
    RawAttach::attach(&daemon.runtime_dir(), "m", 4, queue)
}

#[test]
fn rejected_is_the_outcome_of_an_unknown_flag_reserved_bytes_and_an_impossible_reset() {
    beside_a_bystander(|daemon| {
        let s = session(daemon, Queue::InOrder);
        let bad: [fn(&mut RequestHeader); 4] =
            [|h| h.flags = 2, |h| h.flags = u32::MAX, |h| h.reserved = [0, 1], |h| h.reset_seq = 1 << 50];
        for (n, spoil) in bad.iter().enumerate() {
            let n = n as u64;
            let mut header = RequestHeader { observation_id: 40 + n, ..s.header(n) };
            spoil(&mut header);
            s.publish(n, &header, &[&X]);
            let reply = s.wait(n);
            assert_eq!((RawSession::status(&reply), reply.observation_id), (Status::Rejected, 40 + n));
            assert_eq!((reply.request, reply.step, reply.seq), (n, 0, n + 1));
            s.release(n + 1);
        }
        s.publish(4, &s.header(4), &[&X]);
        let reply = s.wait(4);
        assert_eq!((RawSession::status(&reply), reply.step), (Status::Ok, 1), "the session goes on");
    });
}

#[test]
fn rule_3_and_the_credit_of_an_in_order_session_hold_for_bare_words_too() {
    beside_a_bystander(|daemon| {
        let s = session(daemon, Queue::InOrder);
        (0..4).for_each(|n| s.publish(n, &s.header(n), &[&X]));
        let mut done = 0;
        for r in 0..4 {
            let reply = s.wait(r);
            assert_eq!((reply.request, reply.seq, reply.generation, reply.skipped), (r, r + 1, 1, 0));
            assert!(reply.t_start_ns >= done && reply.t_done_ns >= reply.t_start_ns);
            done = reply.t_done_ns;
        }
        // Nothing is released: a client that does not read is not run for.
        s.publish(4, &s.header(4), &[&X]);
        std::thread::sleep(ms(50));
        assert!(s.reply(4).is_none(), "no credit, no run");
        s.release(1);
        assert_eq!(s.wait(4).request, 4);
    });
}

#[test]
fn a_released_count_that_jumps_or_runs_backwards_ends_that_session_only() {
    beside_a_bystander(|daemon| {
        // The worker looks at the count when its credit is used up: after as many replies as there are slots.
        for lie in [1u64 << 40, u64::MAX] {
            let s = session(daemon, Queue::InOrder);
            for n in 0..4 {
                s.publish(n, &s.header(n), &[&X]);
                let _ = s.wait(n);
            }
            s.word(REQ_RELEASED, lie);
            s.publish(4, &s.header(4), &[&X]);
            assert!(s.ended_within(ms(3000)), "released = {lie}");
            assert!(s.reply(4).is_none());
        }
        let s = session(daemon, Queue::InOrder);
        for n in 0..8 {
            s.publish(n, &s.header(n), &[&X]);
            let _ = s.wait(n);
            s.release(n + 1);
        }
        s.word(REQ_RELEASED, 1);
        for n in 8..12 {
            s.publish(n, &s.header(n), &[&X]);
        }
        assert!(s.ended_within(ms(3000)), "released ran backwards");
    });
}

#[test]
fn a_sequence_number_that_jumps_ends_that_session_only() {
    beside_a_bystander(|daemon| {
        for queue in [Queue::InOrder, Queue::Latest] {
            for lie in [7u64 << 50, u64::MAX, 3] {
                let s = session(daemon, queue);
                s.publish(0, &s.header(0), &[&X]);
                let _ = s.wait(0);
                s.release(1);
                let header = RequestHeader { seq: lie, ..s.header(1) };
                s.publish(1, &header, &[&X]);
                s.word(REQ_PUBLISHED, lie);
                s.ring();
                // An odd number in `latest` may also be taken for a slot that is being overwritten: never answered.
                let ended = s.ended_within(ms(if queue == Queue::InOrder { 3000 } else { 200 }));
                assert!(ended || (queue == Queue::Latest && s.reply(1).is_none()), "{queue:?}: seq {lie}");
            }
        }
    });
}

#[test]
fn words_and_payloads_that_change_while_they_are_read_spoil_only_their_own_session() {
    beside_a_bystander(|daemon| {
        let s = session(daemon, Queue::Latest);
        let end = now_ns() + 500_000_000;
        let (mut n, mut writes) = (0u64, 0u64);
        while now_ns() < end {
            let header = RequestHeader { t_submit_ns: n.wrapping_mul(0x9e37), ..s.header(n) };
            s.publish(n, &header, &[&[n as u8 & 0x3f; 64]]);
            for flip in 0..200u64 {
                s.write(n, &RequestHeader { observation_id: flip, ..header }, &[&[flip as u8 & 0x3f; 64]]);
                writes += 1;
            }
            n += 1;
            let published = (n.saturating_sub(8)..n).rev().find(|r| s.reply(*r).is_some());
            published.into_iter().for_each(|r| s.word(REQ_RELEASED, r + 1));
        }
        assert!(writes > 10_000, "only {writes} writes");
    });
}

#[test]
fn attaches_that_stall_leave_the_path_or_carry_descriptors_are_refused() {
    beside_a_bystander(|daemon| {
        let dir = daemon.runtime_dir();
        let connect = || RawAttach::connect(&dir).expect("the daemon listens");
        // Bytes that are no record.
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 104], &[0xff; 2000]] {
            let raw = connect();
            raw.send(bytes, &[]).expect("the daemon listens");
            assert!(raw.ended_within(ms(3000)), "no record, no session");
        }
        // MAPPED before ATTACH.
        let raw = connect();
        let mapped = attach::Mapped { head: attach::head(RecordKind::Mapped, size_of::<attach::Mapped>()) };
        raw.send(mapped.as_bytes(), &[]).expect("the daemon listens");
        assert!(raw.ended_within(ms(3000)), "MAPPED before ATTACH");
        // Descriptors, with an otherwise good record.
        let raw = connect();
        let (a, b) = fdpass::socketpair().expect("descriptors");
        // Where the kernel can refuse them (SO_PASSRIGHTS), they do not even arrive.
        if raw.send(wish("m", 4, None).as_bytes(), &[a.as_fd(), b.as_fd()]).is_ok() {
            let refused = raw.receive().is_none_or(|(bytes, _)| {
                attach::parse::<attach::Attached>(&bytes, RecordKind::Attached).is_ok_and(|a| a.status != 0)
            });
            assert!(refused, "descriptors of a client are refused");
        }
        // Half an attach: dropped after the grace time.
        let raw = connect();
        let (attached, _fds) = raw.ask(&wish("m", 4, None));
        assert_eq!(attached.status, AttachStatus::Ok as u32);
        assert!(raw.ended_within(ms(3500)), "half an attach");
        // Words after READY: the session socket carries nothing from a client.
        let s = session(daemon, Queue::InOrder);
        s.attach.send(&[0; 64], &[]).expect("the daemon listens");
        assert!(s.ended_within(ms(3000)), "a client that goes on talking");
    });
}

#[test]
fn wishes_that_the_model_or_the_clock_does_not_allow_are_refused_with_a_sentence() {
    beside_a_bystander(|daemon| {
        let connect = || RawAttach::connect(&daemon.runtime_dir()).expect("the daemon listens");
        let good = || wish("m", 4, None);
        let mut other_abi = good();
        other_abi.head.abi_major = 2;
        let hour_ago = now_ns().saturating_sub(3_600_000_000_000).max(1);
        let cases = [
            (other_abi, AttachStatus::AbiMismatch, "2.0"),
            (wish("nobody", 4, None), AttachStatus::UnknownModel, "nobody"),
            (wish("../m", 4, None), AttachStatus::BadRequest, "name"),
            (wish("m", 5, None), AttachStatus::BadRequest, "slots"),
            (attach::Attach { queue: 9, ..good() }, AttachStatus::BadRequest, "queue"),
            (attach::Attach { flags: 1, ..good() }, AttachStatus::BadRequest, "flag"),
            (attach::Attach { clock_ns: hour_ago, ..good() }, AttachStatus::ClockSkew, "clock"),
        ];
        for (wish, status, word) in cases {
            let (attached, fds) = connect().ask(&wish);
            let message = attach::text(&attached.message).unwrap_or("");
            assert_eq!(attached.status, status as u32, "{message}");
            assert!(message.contains(word) && fds.is_empty(), "{word:?} is not in {message:?}");
        }
    });
}

#[test]
fn a_client_that_sealed_or_shrank_its_region_first_gets_no_session() {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let _turn = turn();
    let daemon = DaemonConfig::new(Backing::Memfd).model(Model::echo("m")).start();
    let raw = || RawAttach::connect(&daemon.runtime_dir()).expect("the daemon listens");
    // Sealed against sealing before MAPPED: the daemon cannot add its own seals.
    let first = raw();
    let (attached, fds) = first.ask(&wish("m", 4, None));
    let seal = |fd: &std::os::fd::OwnedFd, flags| fcntl(fd.as_fd(), FcntlArg::F_ADD_SEALS(flags));
    seal(&fds[0], SealFlag::F_SEAL_SEAL).expect("before the second phase a client may");
    let session = RawSession::map(first, &attached, fds);
    assert_eq!(session.mapped(), AttachStatus::BadRegion as u32);
    // Punched: pages are missing, a worker would fault them in.
    let second = raw();
    let (attached, fds) = second.ask(&wish("m", 4, None));
    let session = RawSession::map(second, &attached, fds);
    inferd_ipc::region::punch(session.request_fd.as_fd(), attached.geometry.request_bytes);
    assert_eq!(session.mapped(), AttachStatus::BadRegion as u32);
    // After READY neither works any more.
    let session = RawAttach::attach(&daemon.runtime_dir(), "m", 4, Queue::InOrder);
    assert!(nix::unistd::ftruncate(&session.request_fd, 0).is_err());
    assert!(seal(&session.request_fd, SealFlag::F_SEAL_SEAL).is_err());
    assert!(nix::unistd::write(&session.request_fd, &[1]).is_err(), "FUTURE_WRITE");
    inferd_ipc::region::punch(session.request_fd.as_fd(), attached.geometry.request_bytes);
    session.publish(0, &session.header(0), &[&X]);
    assert_eq!(RawSession::status(&session.wait(0)), Status::Ok, "punching changed nothing");
    assert!(nix::unistd::write(&session.reply_fd, &[1]).is_err(), "the reply region is read-only for clients");
    drop(session);
}

#[test]
fn a_truncated_named_segment_ends_its_session_and_not_the_worker() {
    beside_a_bystander(|daemon| {
        let s = session(daemon, Queue::InOrder);
        if s.attached.backing != Backing::Posix as u32 {
            return;
        }
        s.publish(0, &s.header(0), &[&X]);
        let _ = s.wait(0);
        s.release(1);
        s.publish(1, &s.header(1), &[&X]);
        let _ = s.wait(1);
        nix::unistd::ftruncate(&s.request_fd, 0).expect("nobody hinders it there");
        assert!(s.ended_within(ms(3000)), "a truncated segment ends its session");
    });
}
