//! Models of the orderings, over the shipped source: every interleaving that loom finds within its
//! bounds. Run with `RUSTFLAGS="--cfg loom" cargo test -p inferd-ipc --test loom --release`.
//!
//! A lost wake shows as a deadlock, a torn or stale read as a failed assertion.
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

use inferd_ipc::baton::{BATON_BYTES, Baton};
use inferd_ipc::layout::{Geometry, Queue, ServingState, Status};
use inferd_ipc::mem::Mem;
use inferd_ipc::record::{Begun, Read, RecordLayout, RecordReader, Recorder};
use inferd_ipc::requester::{RequestMeta, Requester};
use inferd_ipc::responder::{Answer, Responder};
use inferd_ipc::signature::{DType, TensorSpec};
use inferd_ipc::sync::{Ordering, fence};
use loom::thread;
use std::time::Duration;

const OK: Answer = Answer { status: Status::Ok, flags: 0, t_start_ns: 0, t_done_ns: 0, generation: 1 };
/// The tensor lies right after the header.
const TENSOR: u64 = 64;

struct Session {
    request: Mem,
    reply: Mem,
    geometry: Geometry,
}

fn session(slots: u32, queue: Queue) -> Session {
    let geometry = Geometry {
        slots,
        queue: queue as u32,
        request_bytes: 4096,
        request_base: 0,
        request_slots: 512,
        request_stride: 128,
        reply_bytes: 4096,
        reply_base: 128,
        reply_slots: 640,
        reply_stride: 128,
    };
    let session = Session {
        request: Mem::heap(geometry.request_slot_end() as usize),
        reply: Mem::heap(geometry.reply_slot_end() as usize),
        geometry,
    };
    let _ = session.worker().set_state(ServingState::Serving);
    session
}

impl Session {
    fn client(&self) -> Requester {
        Requester::new(self.request.clone(), self.reply.clone(), self.geometry)
    }

    fn worker(&self) -> Responder {
        Responder::open(self.request.clone(), self.reply.clone(), self.geometry).unwrap()
    }
}

fn submit(client: &mut Requester, value: u64) {
    assert!(client.begin());
    client.write(TENSOR, &value.to_le_bytes());
    let _ = client.publish(&RequestMeta { observation_id: value, ..RequestMeta::default() });
}

/// Takes one request, if any; checks that header and tensor belong together; answers with the tensor.
fn serve(worker: &mut Responder) -> Option<u64> {
    let request = worker.take().unwrap()?;
    let mut tensor = [0; 8];
    worker.read(&request, TENSOR, &mut tensor);
    if !worker.confirm(&request) {
        return None;
    }
    let value = u64::from_le_bytes(tensor);
    assert_eq!(value, request.observation_id, "header and tensor of one request");
    assert_eq!(value, request.number + 1, "the request that its number says");
    worker.write(TENSOR, &tensor);
    let _ = worker.publish(&request, &OK);
    Some(value)
}

/// The executor's way to sleep over one session.
fn sleep(worker: &mut Responder) {
    worker.fall_asleep(false);
    let (mem, at, bell) = worker.doorbell();
    let mem = mem.clone();
    fence(Ordering::SeqCst);
    if worker.quiet() {
        mem.futex_wait(at, bell, None);
    }
    worker.wake_up();
}

fn read(client: &mut Requester) -> Option<u64> {
    let (reply, header) = client.poll()?;
    let mut tensor = [0; 8];
    client.read(reply, TENSOR, &mut tensor);
    assert_eq!(u64::from_le_bytes(tensor), header.observation_id);
    let _ = client.release(reply + 1);
    Some(header.observation_id)
}

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 100_000;
    builder.max_duration = Some(Duration::from_secs(20));
    builder.check(check);
}

#[test]
fn a_request_and_its_reply_are_seen_whole() {
    model(|| {
        let s = session(2, Queue::InOrder);
        let (mut client, mut worker) = (s.client(), s.worker());
        let served = thread::spawn(move || (0..2).filter_map(|_| serve(&mut worker)).collect::<Vec<_>>());
        submit(&mut client, 1);
        submit(&mut client, 2);
        let seen = read(&mut client);
        assert!(seen.is_none() || seen == Some(1));
        let served = served.join().unwrap();
        assert!([vec![], vec![1], vec![1, 2]].contains(&served));
    });
}

#[test]
fn a_request_that_is_overwritten_while_it_is_read_is_never_torn() {
    model(|| {
        let s = session(1, Queue::Latest);
        let (mut client, mut worker) = (s.client(), s.worker());
        let served = thread::spawn(move || serve(&mut worker));
        submit(&mut client, 1);
        submit(&mut client, 2);
        let served = served.join().unwrap();
        assert!([None, Some(1), Some(2)].contains(&served));
    });
}

#[test]
fn latest_withdraws_and_republishes_without_hiding_the_newest() {
    model(|| {
        let s = session(2, Queue::Latest);
        let (mut client, mut worker) = (s.client(), s.worker());
        submit(&mut client, 1);
        let client = thread::spawn(move || {
            submit(&mut client, 2);
            submit(&mut client, 3);
        });
        let first = serve(&mut worker);
        client.join().unwrap();
        let last = serve(&mut worker);
        assert_eq!(first.max(last), Some(3), "whatever was taken first, the newest is not lost");
    });
}

#[test]
fn a_worker_on_its_way_to_sleep_does_not_miss_a_request() {
    model(|| {
        let s = session(2, Queue::InOrder);
        let (mut client, mut worker) = (s.client(), s.worker());
        let served = thread::spawn(move || {
            loop {
                if let Some(value) = serve(&mut worker) {
                    return value;
                }
                sleep(&mut worker);
            }
        });
        submit(&mut client, 1);
        assert_eq!(served.join().unwrap(), 1);
    });
}

#[test]
fn a_client_on_its_way_to_sleep_does_not_miss_its_reply() {
    model(|| {
        let s = session(2, Queue::InOrder);
        let (mut client, mut worker) = (s.client(), s.worker());
        submit(&mut client, 1);
        let served = thread::spawn(move || serve(&mut worker));
        loop {
            if let Some(value) = read(&mut client) {
                assert_eq!(value, 1);
                break;
            }
            client.sleep(None);
        }
        served.join().unwrap();
    });
}

#[test]
fn a_client_on_its_way_to_sleep_does_not_miss_that_the_model_is_gone() {
    model(|| {
        let s = session(2, Queue::InOrder);
        let (mut client, mut worker) = (s.client(), s.worker());
        assert_eq!(client.state(), ServingState::Serving);
        let supervisor = thread::spawn(move || {
            let _ = worker.set_state(ServingState::Recovering);
        });
        while client.state() == ServingState::Serving {
            client.sleep(None);
        }
        supervisor.join().unwrap();
    });
}

#[test]
fn a_worker_without_credit_is_woken_by_the_release() {
    model(|| {
        let s = session(1, Queue::Latest);
        let (mut client, mut worker) = (s.client(), s.worker());
        submit(&mut client, 1);
        assert_eq!(serve(&mut worker), Some(1));
        submit(&mut client, 2);
        let served = thread::spawn(move || {
            loop {
                if let Some(value) = serve(&mut worker) {
                    return value;
                }
                sleep(&mut worker);
            }
        });
        assert_eq!(read(&mut client), Some(1));
        assert_eq!(served.join().unwrap(), 2);
    });
}

#[test]
fn a_worker_on_its_way_to_sleep_does_not_miss_what_replaces_a_withdrawn_request() {
    model(|| {
        let s = session(1, Queue::Latest);
        let (mut client, mut worker) = (s.client(), s.worker());
        submit(&mut client, 1);
        let client = thread::spawn(move || {
            submit(&mut client, 2);
            client
        });
        let mut served = Vec::new();
        while served.last() != Some(&2) {
            match serve(&mut worker) {
                Some(value) => served.push(value),
                // Between withdrawing and publishing there is nothing to take, and the one slot has no reply to wait for.
                None if served.is_empty() => sleep(&mut worker),
                // The credit for a second reply comes with the first one's release.
                None => break,
            }
        }
        let mut client = client.join().unwrap();
        if served == [1] {
            assert_eq!(read(&mut client), Some(1));
            assert_eq!(serve(&mut worker), Some(2));
        }
    });
}

#[test]
fn a_client_asleep_across_a_swap_is_woken_by_the_successor() {
    model(|| {
        let s = session(2, Queue::InOrder);
        let baton = Baton::new(Mem::heap(BATON_BYTES as usize / 8));
        let (mut client, mut new) = (s.client(), s.worker());
        baton.grant(1);
        submit(&mut client, 1);
        baton.grant(2);
        let old = thread::spawn({
            let baton = baton.clone();
            move || baton.release(0, 1)
        });
        let successor = thread::spawn(move || {
            while !baton.wait_released(0, 1, Duration::MAX) {}
            new.rebuild().unwrap();
            serve(&mut new)
        });
        loop {
            if let Some(value) = read(&mut client) {
                assert_eq!(value, 1);
                break;
            }
            client.sleep(None);
        }
        old.join().unwrap();
        assert_eq!(successor.join().unwrap(), Some(1));
    });
}

#[test]
fn the_baton_hands_over_everything_that_was_published() {
    model(|| {
        let s = session(2, Queue::InOrder);
        let baton = Baton::new(Mem::heap(BATON_BYTES as usize / 8));
        let (mut client, mut old, mut new) = (s.client(), s.worker(), s.worker());
        baton.grant(1);
        submit(&mut client, 1);
        submit(&mut client, 2);
        let predecessor = thread::spawn({
            let baton = baton.clone();
            move || {
                let mut served = Vec::new();
                // At most two steps, then it looks at the grant like the executor does.
                while served.len() < 2 && baton.granted() == 1 {
                    served.extend(serve(&mut old));
                }
                while baton.granted() == 1 {
                    loom::thread::yield_now();
                }
                baton.release(0, 1);
                served
            }
        });
        baton.grant(2);
        while !baton.wait_released(0, 1, Duration::MAX) {}
        new.rebuild().unwrap();
        let after: Vec<u64> = (0..2).filter_map(|_| serve(&mut new)).collect();
        let before = predecessor.join().unwrap();
        assert_eq!([before, after].concat(), [1, 2], "each request once, in order");
    });
}

#[test]
fn who_sees_a_release_sees_every_reply_before_it() {
    model(|| {
        let s = session(1, Queue::InOrder);
        let baton = Baton::new(Mem::heap(BATON_BYTES as usize / 8));
        let (mut client, mut old, mut new) = (s.client(), s.worker(), s.worker());
        submit(&mut client, 1);
        let predecessor = thread::spawn({
            let baton = baton.clone();
            move || {
                assert_eq!(serve(&mut old), Some(1));
                baton.release(0, 1);
            }
        });
        if baton.released(0) == 1 {
            new.rebuild().unwrap();
            assert_eq!(new.next_request(), 1, "the successor goes on behind it");
        }
        predecessor.join().unwrap();
    });
}

#[test]
fn a_recorded_step_is_read_whole_or_not_at_all() {
    model(|| {
        let tensor = |name| vec![TensorSpec::new(name, DType::U64, &[1])];
        let layout = RecordLayout { inputs: tensor("x"), states: vec![], outputs: tensor("y") };
        let mem = Mem::heap(layout.used_bytes(1) as usize);
        let mut recorder = Recorder::new(mem.clone(), &layout, 1);
        let reader = RecordReader::new(mem, &layout, 1);
        let writer = thread::spawn(move || {
            for value in 1..3u64 {
                recorder.begin(&Begun { observation_id: value, ..Begun::default() });
                recorder.input(0, &value.to_le_bytes());
                recorder.begun();
                recorder.output(0, &(value + 10).to_le_bytes());
                recorder.end(Status::Ok, 0, value);
            }
        });
        for number in 0..2 {
            let Read::Step(step) = reader.read(number) else { continue };
            let value = number + 1;
            assert_eq!(step.begun.observation_id, value, "its own header");
            assert_eq!(step.input(0), value.to_le_bytes(), "its own input");
            if step.status.is_some() {
                assert_eq!((step.status, step.run_ns), (Some(Status::Ok), value));
                assert_eq!(step.output(0), (value + 10).to_le_bytes(), "its own output");
            }
        }
        writer.join().unwrap();
        assert!(matches!(reader.read(1), Read::Step(step) if step.status == Some(Status::Ok)));
    });
}
