//! Shared memory full of a peer's words: the rings, a record region, state and baton.
//!
//! The input is a program: each step writes a word or a header as the peer would, or makes one call of our side.

use inferd_ipc::baton::{BATON_BYTES, Baton};
use inferd_ipc::layout::{Geometry, Queue, REQ_PUBLISHED, REQ_RELEASED, Status};
use inferd_ipc::limits::BATON_ENTRIES;
use inferd_ipc::mem::Mem;
use inferd_ipc::record::{Read, RecordLayout, RecordReader, Recorder};
use inferd_ipc::responder::{Answer, PeerFault, Responder, last_done_ns};
use inferd_ipc::signature::{DType, Signature, TensorSpec};
use inferd_ipc::state::{Source, StateRegion, region_bytes};
use inferd_ipc::sync::Ordering;

/// Reads an input from its front; zeros once it is used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let n = N.min(self.0.len());
        bytes[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        bytes
    }

    fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// A number near a limit, near what is due, or any.
    fn number(&mut self, due: u64) -> u64 {
        match self.byte() {
            near @ 0..128 => due.wrapping_add(u64::from(near)).wrapping_sub(8),
            128..160 => (1 << 62) - 4 + u64::from(self.byte()),
            160..176 => u64::MAX - u64::from(self.byte()),
            _ => self.word(),
        }
    }
}

const ANSWER: Answer = Answer { status: Status::Ok, flags: 0, t_start_ns: 1, t_done_ns: 2, generation: 3 };

fn geometry(slots: u32, queue: Queue) -> Geometry {
    let tensor = |n| vec![TensorSpec::new("t", DType::U8, &[n])];
    let signature = Signature { inputs: tensor(32), outputs: tensor(16), stateful: true };
    Geometry::new(&signature, slots, queue, 5).expect("a small geometry")
}

/// A worker, and the supervisor in its place, over rings whose every word is a peer's.
pub fn ring(bytes: &[u8]) {
    let mut input = Input(bytes);
    let choice = input.byte();
    let geometry = geometry(1 + u32::from(choice >> 4), if choice & 1 == 0 { Queue::Latest } else { Queue::InOrder });
    let (request, reply) = (Mem::heap(geometry.request_bytes as usize), Mem::heap(geometry.reply_bytes as usize));
    if choice & 2 != 0 {
        // A worker that died was its model author's: whoever opens its replies expects nothing of them.
        for slot in 0..geometry.reply_count() {
            reply.copy_in(geometry.reply_slot(slot), &input.take::<64>());
        }
    }
    let _ = last_done_ns(&reply, &geometry, 3);
    let Ok(mut worker) = Responder::open(request.clone(), reply.clone(), geometry) else { return };
    let mut last = worker.next_request().checked_sub(1);
    while !input.0.is_empty() {
        let due = worker.next_request();
        match input.byte() % 10 {
            0 => {
                let (at, value) = (geometry.request_slot(u64::from(input.byte())), input.number(due + 1));
                request.word(at).store(value, Ordering::Release);
            }
            1 => {
                let (slot, header) = (u64::from(input.byte()), input.take::<64>());
                request.copy_in(geometry.request_slot(slot), &header);
            }
            2 => word(&request, &geometry, REQ_PUBLISHED).store(input.number(due), Ordering::Release),
            3 => word(&request, &geometry, REQ_RELEASED).store(input.number(due), Ordering::Release),
            4 => {
                // An honest client's next request.
                request.word(geometry.request_slot(due)).store(due + 1, Ordering::Release);
            }
            5 => drop(worker.quiet()),
            6 => {
                if worker.answer_all(Answer { status: Status::Unavailable, ..ANSWER }, &mut |_| {}).is_err() {
                    return;
                }
                last = worker.next_request().checked_sub(1).max(last);
            }
            7 => {
                if worker.answer_lost(input.number(due), &ANSWER).is_err() {
                    return;
                }
                last = worker.next_request().checked_sub(1).max(last);
            }
            8 => {
                if worker.rebuild().is_err() {
                    panic!("our own replies are sound");
                }
                assert_eq!(worker.next_request(), due, "a successor goes on where its predecessor was");
            }
            _ => match serve(&mut worker, last) {
                Ok(served) => last = served.or(last),
                Err(_) => return,
            },
        }
    }
}

/// One step of the executor's loop. Returns the request's number.
fn serve(worker: &mut Responder, last: Option<u64>) -> Result<Option<u64>, PeerFault> {
    let Some(taken) = worker.take()? else { return Ok(None) };
    assert!(last.is_none_or(|last| taken.number > last), "a request is taken once, in order");
    let mut tensor = [0; 32];
    worker.read(&taken, 64, &mut tensor);
    if !worker.confirm(&taken) {
        return Ok(None);
    }
    worker.write(64, &tensor[..16]);
    let status = if taken.invalid.is_some() { Status::Rejected } else { Status::Ok };
    let _ = worker.publish(&taken, &Answer { status, ..ANSWER });
    assert_eq!(worker.next_request(), taken.number + 1);
    Ok(Some(taken.number))
}

fn word<'m>(request: &'m Mem, geometry: &Geometry, word: usize) -> &'m inferd_ipc::sync::AtomicU64 {
    request.word(geometry.request_base as usize + word)
}

/// A candidate, or `inferctl dump`, over a record region that a worker filled.
pub fn record_region(bytes: &[u8]) {
    let mut input = Input(bytes);
    let tensor = |name, n| vec![TensorSpec::new(name, DType::F32, &[n])];
    let states = if input.byte() & 1 == 0 { vec![] } else { tensor("h", 3) };
    let layout = RecordLayout { inputs: tensor("x", 5), states, outputs: tensor("y", 2) };
    let slots = 2 + u32::from(input.byte() % 4);
    let used = layout.used_bytes(slots) as usize;
    let mem = Mem::heap(used);
    let content: Vec<u8> = (0..used / 8).flat_map(|_| input.take::<8>()).collect();
    mem.copy_in(0, &content);
    let reader = RecordReader::new(mem.clone(), &layout, slots);
    let next = reader.next();
    for number in [0, 1, next.wrapping_sub(1), next, u64::MAX, 1 << 62, input.word()] {
        let _ = reader.has(number);
        if let Read::Step(step) = reader.read(number) {
            assert_eq!(step.number, number);
            assert_eq!((step.input(0).len(), step.output(0).len()), (20, 8));
            layout.states.iter().enumerate().for_each(|(k, spec)| assert_eq!(step.state(k).len() as u64, spec.bytes()));
        }
    }
    assert!(reader.steps().count() as u64 <= reader.slots());
    // The next worker goes on in whatever stands there.
    let mut recorder = Recorder::new(mem, &layout, slots);
    recorder.adopt();
    recorder.begin(&inferd_ipc::record::Begun::default());
    recorder.begun();
    recorder.end(Status::Ok, 0, 1);
}

/// What a dead worker left in its sessions' state and in the model's baton.
pub fn state_and_baton(bytes: &[u8]) {
    let mut input = Input(bytes);
    let state_bytes = 1 + u64::from(input.byte());
    let mem = Mem::heap(region_bytes(state_bytes) as usize);
    for at in (0..256).step_by(8) {
        mem.word(at).store(input.number(1), Ordering::Release);
    }
    let region = StateRegion::new(mem, state_bytes);
    let step = input.number(0);
    region.adopt(step);
    if let Source::At(at) = region.source(step) {
        region.read(at, &mut vec![0; state_bytes as usize]);
    }
    region.write(region.half(step.wrapping_add(1)), &vec![1; state_bytes as usize]);
    let mem = Mem::heap(BATON_BYTES as usize);
    for _ in 0..16 {
        let at = usize::from(u16::from_le_bytes(input.take())) % (BATON_BYTES as usize / 8) * 8;
        mem.word(at).store(input.word(), Ordering::Release);
    }
    let baton = Baton::new(mem);
    for entry in 0..BATON_ENTRIES as u32 {
        let _ = (baton.running(entry), baton.steps(entry), baton.taken(entry), baton.taken_at_ns(entry));
        baton.clear(entry);
        assert!(baton.running(entry).is_none() && baton.released(entry) == 0, "nothing of the dead one is left");
    }
}
