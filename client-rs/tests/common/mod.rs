//! A daemon in a thread, for the client's own tests: the attach handshake and a worker that echoes.
//!
//! Built from `inferd-ipc` alone: real sockets, real sealed regions, the real `Responder`. A test
//! steers it through [`Control`]: hold answers back, answer with another status, refuse attaches, hang
//! up. Scenarios with the real daemon are in `tests/` at the root of the repository.

#![allow(dead_code, clippy::unwrap_used)]

use inferd_client::{AttachStatus, Backing, DType, Queue, ServingState, Signature, Status, TensorSpec, now_ns};
use inferd_ipc::attach::{Attach, Attached, Mapped, Ready, RecordKind, field, head, parse};
use inferd_ipc::fdpass;
use inferd_ipc::layout::{Geometry, REPLY_STATE_RESET, ReplyHeader};
use inferd_ipc::region::{self, Access, RegionKind};
use inferd_ipc::requester::Ring;
use inferd_ipc::responder::{Answer, Responder};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use zerocopy::{FromZeros, IntoBytes};

/// What a test changes while the daemon runs.
#[derive(Default)]
pub struct Control {
    /// Take nothing.
    pub hold: AtomicBool,
    /// End all sessions and stop.
    pub stop: AtomicBool,
    /// Say that the worker fell asleep on the CPU that its thread runs on; answers come all the same.
    pub asleep: AtomicBool,
    /// Answer with this status; 0 is ok.
    pub status: AtomicU32,
    /// Microseconds that a run takes.
    pub run_us: AtomicU64,
    /// What the state word shall say; 0 leaves it.
    pub state: AtomicU64,
    /// Generation that answers carry.
    pub generation: AtomicU32,
    /// Answer the request before this number, whether there is room or not; 0 is nothing.
    pub lie: AtomicU64,
    /// Never answer an ATTACH.
    pub stall: AtomicBool,
    /// Refuse attaches so.
    pub refuse: Mutex<Option<(AttachStatus, String)>>,
    /// Sessions attached so far.
    pub attached: AtomicU64,
}

/// What the daemon serves.
#[derive(Clone)]
pub struct Model {
    pub signature: Signature,
    pub slots: u32,
    pub queue: Queue,
    pub backing: Backing,
}

impl Model {
    pub fn new(queue: Queue, slots: u32) -> Model {
        let inputs = vec![TensorSpec::new("obs", DType::F32, &[1, 8]), TensorSpec::new("mask", DType::U8, &[3])];
        let outputs = vec![TensorSpec::new("action", DType::F32, &[1, 8]), TensorSpec::new("copy", DType::U8, &[3])];
        Model { signature: Signature { inputs, outputs, stateful: false }, slots, queue, backing: Backing::Memfd }
    }
}

pub struct FakeDaemon {
    pub control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

impl FakeDaemon {
    /// Listens in `dir` at once; replaces a stale socket.
    pub fn start(dir: &Path, model: Model) -> FakeDaemon {
        let path = dir.join("attach.sock");
        let _ = std::fs::remove_file(&path);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(16).unwrap()).unwrap();
        let control = Arc::new(Control::default());
        control.generation.store(1, SeqCst);
        let shared = control.clone();
        let thread = std::thread::spawn(move || accept_all(&listener, &model, &shared));
        FakeDaemon { control, thread: Some(thread) }
    }

    pub fn set(&self, state: ServingState) {
        self.control.state.store(state as u64, SeqCst);
    }

    /// Ends every session, as a killed daemon would.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.control.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.end();
    }
}

fn accept_all(listener: &OwnedFd, model: &Model, control: &Arc<Control>) {
    let mut sessions = Vec::new();
    while !control.stop.load(SeqCst) {
        match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(fd) => {
                // SAFETY: accept4 has just made this descriptor; nobody else owns it.
                let socket = unsafe { OwnedFd::from_raw_fd(fd) };
                let (model, control) = (model.clone(), control.clone());
                sessions.push(std::thread::spawn(move || serve(&socket, &model, &control)));
            }
            Err(_) => std::thread::sleep(Duration::from_micros(200)),
        }
    }
    sessions.into_iter().for_each(|s| s.join().unwrap());
}

fn serve(socket: &OwnedFd, model: &Model, control: &Control) {
    let mut buffer = [0; 1024];
    let got = fdpass::recv(socket, &mut buffer).unwrap();
    let Ok(wish) = parse::<Attach>(&buffer[..got.bytes], RecordKind::Attach) else { return };
    while control.stall.load(SeqCst) && !control.stop.load(SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let session = control.attached.fetch_add(1, SeqCst) + 1;
    let mut attached = Attached::new_zeroed();
    attached.head = head(RecordKind::Attached, size_of::<Attached>());
    if let Some((status, message)) = &*control.refuse.lock().unwrap() {
        (attached.status, attached.message) = (*status as u32, field(message));
        fdpass::send(socket, attached.as_bytes(), &[]).unwrap();
        return;
    }
    let slots = if wish.slots == 0 { model.slots } else { wish.slots };
    let queue = Queue::from_number(wish.queue).unwrap_or(model.queue);
    let geometry = Geometry::new(&model.signature, slots, queue, session).unwrap();
    let generation = control.generation.load(SeqCst);
    attached.geometry = geometry;
    (attached.session, attached.generation, attached.backing) = (session, generation, model.backing as u32);
    (attached.spin_us, attached.version) = (50, field("9.8.7"));
    let instance = format!("client-test-{}", std::process::id());
    let request = region::create(model.backing, RegionKind::Request, geometry.request_bytes, &instance).unwrap();
    let reply = region::create(model.backing, RegionKind::Reply, geometry.reply_bytes, &instance).unwrap();
    let replies = region::map(reply.fd.as_fd(), geometry.reply_bytes, Access::ReadWrite, model.backing).unwrap();
    region::init_reply(&replies, session, generation, &model.signature, &geometry, ServingState::Serving);
    let (doorbell, theirs) = fdpass::socketpair().unwrap();
    let for_client = [
        region::for_client(&request, RegionKind::Request).unwrap(),
        region::for_client(&reply, RegionKind::Reply).unwrap(),
        theirs,
    ];
    if fdpass::send(socket, attached.as_bytes(), &for_client.each_ref().map(AsFd::as_fd)).is_err() {
        [&request, &reply].into_iter().filter_map(|r| r.name.as_deref()).for_each(region::unlink);
        return;
    }
    drop(for_client);
    let got = fdpass::recv(socket, &mut buffer).unwrap();
    [&request, &reply].into_iter().filter_map(|r| r.name.as_deref()).for_each(region::unlink);
    if parse::<Mapped>(&buffer[..got.bytes], RecordKind::Mapped).is_err() {
        return;
    }
    region::seal_request(request.fd.as_fd(), geometry.request_bytes, model.backing).unwrap();
    let requests = region::map(request.fd.as_fd(), geometry.request_bytes, Access::ReadOnly, model.backing).unwrap();
    let beside = region::map(reply.fd.as_fd(), geometry.reply_bytes, Access::ReadWrite, model.backing).unwrap();
    let lie = |request: u64| {
        let header = ReplyHeader { seq: request + 1, request, status: Status::Ok as u32, ..ReplyHeader::default() };
        let [seq, rest @ ..] = header.words();
        beside.store_words(geometry.reply_slot(request) + 8, rest);
        beside.word(geometry.reply_slot(request)).store(seq, SeqCst);
    };
    let mut responder = Responder::open(requests, replies, geometry).unwrap();
    responder.set_state(ServingState::Serving);
    let mut ready = Ready::new_zeroed();
    ready.head = head(RecordKind::Ready, size_of::<Ready>());
    fdpass::send(socket, ready.as_bytes(), &[]).unwrap();
    work(responder, socket, &doorbell, model, control, &lie);
}

fn work(
    mut responder: Responder,
    socket: &OwnedFd,
    doorbell: &OwnedFd,
    model: &Model,
    control: &Control,
    lie: &dyn Fn(u64),
) {
    let mut state = 0;
    let ring = |ring| {
        if ring == Ring::Socket {
            fdpass::ring(doorbell)
        }
    };
    while !control.stop.load(SeqCst) && !fdpass::hung_up(socket) {
        let wanted = control.state.load(SeqCst);
        if wanted != state {
            state = wanted;
            ring(responder.set_state(ServingState::from_word(wanted)));
        }
        if let Some(request) = control.lie.swap(0, SeqCst).checked_sub(1) {
            lie(request);
        }
        if control.asleep.load(SeqCst) {
            responder.fall_asleep(false);
        }
        let taken = if control.hold.load(SeqCst) { None } else { responder.take().unwrap() };
        let Some(request) = taken else {
            std::thread::sleep(Duration::from_micros(20));
            continue;
        };
        let t_start_ns = now_ns();
        std::thread::sleep(Duration::from_micros(control.run_us.load(SeqCst)));
        let status = Status::from_number(control.status.load(SeqCst)).unwrap_or(Status::Ok);
        let expired = request.deadline_ns != 0 && request.deadline_ns < t_start_ns;
        let status = if expired { Status::Expired } else { status };
        if status == Status::Ok {
            let (from, to) = (places(&model.signature.inputs), places(&model.signature.outputs));
            for ((at, bytes), (to, _)) in from.into_iter().zip(to) {
                let mut tensor = vec![0; bytes as usize];
                responder.read(&request, at, &mut tensor);
                responder.write(to, &tensor);
            }
        }
        let generation = control.generation.load(SeqCst);
        let flags = if request.reset { REPLY_STATE_RESET } else { 0 };
        ring(responder.publish(&request, &Answer { status, flags, t_start_ns, t_done_ns: now_ns(), generation }));
    }
}

fn places(tensors: &[TensorSpec]) -> Vec<(u64, u64)> {
    let (offsets, _) = inferd_ipc::signature::slot_offsets(tensors);
    offsets.into_iter().zip(tensors.iter().map(TensorSpec::bytes)).collect()
}
