//! Both ends of a session's rings against each other, on heap-backed regions: queues, credit,
//! overwriting, resets that survive being skipped, successors, and a client that lies.

#![allow(clippy::unwrap_used)]

use inferd_ipc::layout::{
    Geometry, Queue, REP_SLEEPER_CPU, REPLY_RESET_PENDING, REQ_PUBLISHED, REQ_RELEASED, ServingState, Status,
};
use inferd_ipc::mem::Mem;
use inferd_ipc::requester::{RequestMeta, Requester, Ring};
use inferd_ipc::responder::{Answer, PeerFault, Responder};
use inferd_ipc::signature::{DType, Signature, TensorSpec};
use inferd_ipc::sync::Ordering;
use proptest::prelude::*;

struct Pair {
    client: Requester,
    worker: Responder,
    request: Mem,
    reply: Mem,
    geometry: Geometry,
}

fn pair(slots: u32, queue: Queue) -> Pair {
    let tensor = |n| vec![TensorSpec::new("t", DType::U8, &[n])];
    let signature = Signature { inputs: tensor(32), outputs: tensor(16), stateful: true };
    let geometry = Geometry::new(&signature, slots, queue, 5).unwrap();
    let request = Mem::heap(geometry.request_bytes as usize);
    let reply = Mem::heap(geometry.reply_bytes as usize);
    let mut worker = Responder::open(request.clone(), reply.clone(), geometry).unwrap();
    assert_eq!(worker.set_state(ServingState::Serving), Ring::Done);
    Pair { client: Requester::new(request.clone(), reply.clone(), geometry), worker, request, reply, geometry }
}

/// Keeps the calling thread on the CPU that it is on.
fn stay() {
    // SAFETY: a set of this thread's own; the call reads it and nothing else.
    unsafe {
        let mut here: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(libc::sched_getcpu() as usize, &mut here);
        assert_eq!(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const here), 0);
    }
}

#[test]
fn who_wakes_a_peer_that_fell_asleep_on_the_same_cpu_knows_that_it_is_in_its_way() {
    stay();
    let mut p = pair(4, Queue::InOrder);
    p.submit(1, false);
    assert!(!p.client.in_its_way(), "the worker is awake");
    p.worker.fall_asleep(false);
    p.submit(2, false);
    assert!(p.client.in_its_way());
    // It fell asleep elsewhere.
    p.reply.word(p.geometry.reply_base as usize + REP_SLEEPER_CPU).store(u64::MAX, Ordering::Relaxed);
    p.submit(3, false);
    assert!(!p.client.in_its_way());
    p.worker.wake_up();
    p.serve(OK);
    assert!(!p.worker.in_its_way(), "the client is awake");
    assert!(p.client.poll().is_some() && p.client.arm_socket());
    p.serve(OK);
    assert!(p.worker.in_its_way());
    p.client.wake_up();
    p.serve(OK);
    assert!(!p.worker.in_its_way());
}

const OK: Answer = Answer { status: Status::Ok, flags: 0, t_start_ns: 1, t_done_ns: 2, generation: 1 };

impl Pair {
    fn submit(&mut self, byte: u8, reset: bool) -> u64 {
        assert!(self.client.begin());
        self.client.input_mut(64, 32).fill(byte);
        self.client.publish(&RequestMeta { observation_id: u64::from(byte), reset, ..RequestMeta::default() }).0
    }

    /// Takes and answers one request; returns its number and its first byte.
    fn serve(&mut self, answer: Answer) -> Option<(u64, u8, bool, u32)> {
        let request = self.worker.take().unwrap()?;
        let mut tensor = [0; 32];
        self.worker.read(&request, 64, &mut tensor);
        assert!(self.worker.confirm(&request));
        assert_eq!(tensor, [tensor[0]; 32]);
        self.worker.write(64, &tensor[..16]);
        let _ = self.worker.publish(&request, &answer);
        Some((request.number, tensor[0], request.reset, request.skipped))
    }

    fn successor(&mut self) {
        self.worker = Responder::open(self.request.clone(), self.reply.clone(), self.geometry).unwrap();
    }

    fn word(&self, word: usize) -> &inferd_ipc::sync::AtomicU64 {
        self.request.word(self.geometry.request_base as usize + word)
    }
}

#[test]
fn in_order_runs_each_request_and_refuses_when_all_slots_are_in_flight() {
    let mut p = pair(3, Queue::InOrder);
    for byte in 0..3 {
        p.submit(byte, false);
    }
    assert!(!p.client.begin());
    for byte in 0..3 {
        assert_eq!(p.serve(OK), Some((u64::from(byte), byte, false, 0)));
    }
    assert_eq!(p.serve(OK), None);
    for r in 0..3 {
        let (number, header) = p.client.poll().unwrap();
        assert_eq!((number, header.request, header.observation_id, header.step), (r, r, r, r + 1));
        let mut out = [0; 16];
        p.client.read(number, 64, &mut out);
        assert_eq!(out, [r as u8; 16]);
    }
    assert!(!p.client.begin());
    let _ = p.client.release(1);
    assert!(p.client.begin());
}

#[test]
fn latest_takes_the_newest_and_counts_what_it_skipped() {
    let mut p = pair(4, Queue::Latest);
    for byte in 0..3 {
        p.submit(byte, false);
    }
    assert_eq!(p.serve(OK), Some((2, 2, false, 2)));
    // Round and round: the slot that was due holds something much newer.
    for byte in 3..20 {
        p.submit(byte, false);
    }
    assert_eq!(p.serve(OK), Some((19, 19, false, 16)));
    // Withdrawn for overwriting, nothing newer: nothing to take; published: taken.
    assert!(p.client.begin());
    assert_eq!(p.serve(OK), None);
    p.submit(20, false);
    assert_eq!(p.serve(OK), Some((20, 20, false, 0)));
}

#[test]
fn a_withdrawn_slot_does_not_hide_the_newer_ones_before_the_first_round_ends() {
    let mut p = pair(4, Queue::Latest);
    p.submit(0, false);
    p.submit(1, false);
    assert_eq!(p.serve(OK), Some((1, 1, false, 1)));
    for byte in 2..6 {
        p.submit(byte, false);
    }
    assert!(p.client.begin());
    assert_eq!(p.serve(OK), Some((5, 5, false, 3)));
}

#[test]
fn a_client_that_does_not_release_is_not_run_for() {
    let mut p = pair(2, Queue::Latest);
    for byte in 0..2 {
        p.submit(byte, false);
        assert!(p.serve(OK).is_some());
    }
    p.submit(2, false);
    assert_eq!(p.serve(OK), None);
    assert!(p.worker.quiet());
    p.client.poll().unwrap();
    p.worker.fall_asleep(true);
    assert_eq!(p.client.release(1), Ring::Socket, "a worker without credit is woken by the release");
    assert!(!p.worker.quiet());
    assert_eq!(p.serve(OK), Some((2, 2, false, 0)));
}

#[test]
fn a_reset_survives_being_superseded_expired_and_a_successor() {
    let mut p = pair(2, Queue::Latest);
    p.submit(0, true);
    for byte in 1..9 {
        p.submit(byte, false);
    }
    let expired = Answer { status: Status::Expired, ..OK };
    assert_eq!(p.serve(expired), Some((8, 8, true, 8)));
    let header = p.client.poll().unwrap().1;
    assert_eq!((header.flags & REPLY_RESET_PENDING, header.step), (REPLY_RESET_PENDING, 0));
    let _ = p.client.release(1);
    p.successor();
    p.submit(9, false);
    assert_eq!(p.serve(OK), Some((9, 9, true, 0)));
    p.submit(10, false);
    p.successor();
    assert_eq!(p.serve(OK), Some((10, 10, false, 0)));
}

#[test]
fn one_slot_works_in_both_queues_and_its_last_reply_outlives_a_half_written_one() {
    for queue in [Queue::InOrder, Queue::Latest] {
        let mut p = pair(1, queue);
        for byte in 0..10 {
            p.submit(byte, false);
            assert_eq!(p.serve(OK), Some((u64::from(byte), byte, false, 0)));
            p.client.poll().unwrap();
            let _ = p.client.release(u64::from(byte) + 1);
            // A successor after a worker that died while it wrote the next reply.
            p.worker.write(64, &[0xff; 16]);
            p.successor();
            assert_eq!((p.worker.next_request(), p.worker.step()), (u64::from(byte) + 1, u64::from(byte) + 1));
        }
    }
}

#[test]
fn a_dead_workers_running_request_is_answered_once() {
    let mut p = pair(4, Queue::InOrder);
    p.submit(0, false);
    p.submit(1, false);
    assert!(p.serve(OK).is_some());
    let lost = Answer { status: Status::WorkerLost, ..OK };
    p.successor();
    assert_eq!(p.worker.answer_lost(0, &lost), Ok(None), "its reply stands");
    assert_eq!(p.worker.answer_lost(1, &lost), Ok(Some(Ring::Done)));
    assert_eq!(p.worker.answer_lost(1, &lost), Ok(None));
    let statuses: Vec<u32> = std::iter::from_fn(|| p.client.poll()).map(|(_, h)| h.status).collect();
    assert_eq!(statuses, [Status::Ok as u32, Status::WorkerLost as u32]);
}

#[test]
fn sequence_numbers_and_counts_that_lie_end_the_session() {
    for lie in [7, 2, u64::MAX, 1 << 62] {
        let mut p = pair(4, Queue::InOrder);
        p.request.word(p.geometry.request_slot(0)).store(lie, Ordering::Release);
        assert!(matches!(p.worker.take(), Err(PeerFault::Sequence { .. })), "{lie}");
    }
    // The last but one is a number that belongs into this slot, only too far ahead.
    for lie in [2, 1 << 50, (1 << 47) + 1, u64::MAX] {
        let mut p = pair(4, Queue::Latest);
        p.request.word(p.geometry.request_slot(0)).store(lie, Ordering::Release);
        p.word(REQ_PUBLISHED).store(lie, Ordering::Release);
        assert!(matches!(p.worker.take(), Err(PeerFault::Sequence { .. })), "{lie}");
    }
    let mut p = pair(1, Queue::InOrder);
    p.submit(0, false);
    assert!(p.serve(OK).is_some());
    p.request.word(p.geometry.request_slot(1)).store(2, Ordering::Release);
    p.word(REQ_RELEASED).store(9, Ordering::Release);
    assert_eq!(p.worker.take(), Err(PeerFault::Released { found: 9, least: 0, most: 1 }));
}

#[test]
fn a_hint_that_lies_neither_faults_nor_keeps_the_worker_awake() {
    let mut p = pair(4, Queue::Latest);
    for lie in [1, 3, 1000, u64::MAX] {
        p.word(REQ_PUBLISHED).store(lie, Ordering::Release);
        assert_eq!(p.worker.take(), Ok(None));
        assert!(p.worker.quiet());
    }
}

#[test]
fn headers_that_lie_are_rejected_and_the_next_one_is_served() {
    // Offsets of flags, reset_seq and reserved in the header.
    for (at, value) in [(32, 2u64), (40, 99), (48, 1), (56, 1)] {
        let mut p = pair(4, Queue::InOrder);
        p.submit(0, false);
        p.request.word(p.geometry.request_slot(0) + at).store(value, Ordering::Release);
        let request = p.worker.take().unwrap().unwrap();
        assert!(request.invalid.is_some() && !request.reset, "{at}");
        let _ = p.worker.publish(&request, &Answer { status: Status::Rejected, ..OK });
        p.submit(1, false);
        assert!(p.serve(OK).is_some());
    }
}

#[test]
fn a_damaged_reply_region_is_found_by_the_successor() {
    let p = pair(4, Queue::InOrder);
    for (slot, seq) in [(0, 2u64), (1, 1), (3, u64::MAX)] {
        let reply = Mem::heap(p.geometry.reply_bytes as usize);
        reply.word(p.geometry.reply_slot(slot)).store(seq, Ordering::Release);
        assert!(Responder::open(p.request.clone(), reply, p.geometry).is_err());
    }
}

/// What a script does next.
#[derive(Debug, Clone, Copy)]
enum Op {
    Submit(bool),
    Serve,
    Expire,
    Read,
    Successor,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_script_accounts_for_every_request_once(
        slots in 1u32..6, latest: bool,
        script in prop::collection::vec(prop_oneof![
            3 => any::<bool>().prop_map(Op::Submit),
            3 => Just(Op::Serve), 1 => Just(Op::Expire), 3 => Just(Op::Read), 1 => Just(Op::Successor)
        ], 0..200)
    ) {
        let queue = if latest { Queue::Latest } else { Queue::InOrder };
        let mut p = pair(slots, queue);
        let (mut submitted, mut accounted, mut resets) = (0u64, 0u64, Vec::new());
        for op in script {
            match op {
                Op::Submit(reset) if p.client.begin() => {
                    prop_assert_eq!(p.submit(submitted as u8, reset), submitted);
                    if reset {
                        resets.push(submitted);
                    }
                    submitted += 1;
                }
                Op::Submit(_) => prop_assert!(!latest),
                Op::Serve => if let Some((number, _, reset, _)) = p.serve(OK) {
                    prop_assert_eq!(reset, resets.iter().any(|r| *r <= number));
                    resets.retain(|r| *r > number);
                },
                Op::Expire => { p.serve(Answer { status: Status::Expired, ..OK }); }
                Op::Read => if let Some((r, header)) = p.client.poll() {
                    prop_assert_eq!(header.request, accounted + u64::from(header.skipped));
                    prop_assert!(latest || header.skipped == 0);
                    accounted = header.request + 1;
                    let _ = p.client.release(r + 1);
                },
                Op::Successor => p.successor(),
            }
        }
        while p.serve(OK).is_some() || p.client.poll().map(|(r, h)| { accounted = h.request + 1; p.client.release(r + 1) }).is_some() {}
        prop_assert_eq!(accounted, submitted);
    }
}
