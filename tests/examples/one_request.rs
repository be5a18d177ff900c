//! Client and executor in one thread, so that what a request costs them can be counted apart from any waiting.
//!
//! `count N` runs N requests through [`phase_submit`], [`phase_serve`] and [`phase_wait`], for a counter of instructions
//! (`tests/tests/instructions.rs`); `time N` prints nanoseconds per request; `spin N` runs the real executor on a thread of its own
//! and prints where the round trip goes, beside the bounce of one line. The daemon's side of the attach is played by a
//! thread, everything else is what ships.

use inferd_client::{AttachOptions, CallOptions, DType, Outcome, Queue, Session, Signature, Ticket, now_ns};
use inferd_ipc::attach::{Attach, Attached, Mapped, Ready, RecordKind, field, head, parse};
use inferd_ipc::baton::{BATON_BYTES, Baton};
use inferd_ipc::fdpass;
use inferd_ipc::layout::{Backing, Geometry, ServingState};
use inferd_ipc::mem::Mem;
use inferd_ipc::record::Recorder;
use inferd_ipc::region::{self, Access, RegionKind};
use inferd_ipc::worker_records::ModelSpec;
use inferd_worker::Policy;
use inferd_worker::executor::Executor;
use inferd_worker::files::Memory;
use inferd_worker::mailbox::{Mailbox, Order};
use inferd_worker::session::Session as Served;
use inferd_worker::stats::Stats;
use inferd_worker::step::Stepper;
use inferd_worker::testing::spec::{echo_spec, tensor};
use inferd_worker::turns::Turns;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use zerocopy::{FromZeros, IntoBytes};

/// Steps that the recorder keeps, as the daemon's default does.
const RECORD_STEPS: u32 = 256;

/// Rounds of `spin`.
const ROUNDS: u32 = 20;

/// How a session is set up.
#[derive(Clone, Copy)]
struct Setup {
    queue: Queue,
    inputs: u64,
    outputs: u64,
    spin_us: u64,
}

fn spec(setup: Setup) -> ModelSpec {
    let mut spec = echo_spec(
        &[tensor("x", DType::F32, &[1, setup.inputs / 4])],
        &[tensor("y", DType::F32, &[1, setup.outputs / 4])],
    );
    spec.spin_us = setup.spin_us;
    spec.warm_up_runs = 1;
    spec
}

/// Plays the daemon for one attach; gives the client's session and the worker's.
fn attach(signature: &Signature, setup: Setup) -> (Session, Served, OwnedFd) {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept, bind, listen, socket};
    use std::os::fd::FromRawFd;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    bind(listener.as_raw_fd(), &UnixAddr::new(&dir.path().join("attach.sock")).expect("short")).expect("bound");
    listen(&listener, Backlog::new(1).expect("one")).expect("listening");
    let (give, take) = mpsc::channel();
    let signature = signature.clone();
    let daemon = std::thread::spawn(move || {
        // SAFETY: accept has just made this descriptor; nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(accept(listener.as_raw_fd()).expect("the client")) };
        let mut buffer = [0; 1024];
        let got = fdpass::recv(&socket, &mut buffer).expect("ATTACH");
        parse::<Attach>(&buffer[..got.bytes], RecordKind::Attach).expect("ATTACH");
        let geometry = Geometry::new(&signature, 4, setup.queue, 1).expect("small enough");
        let mut attached = Attached::new_zeroed();
        attached.head = head(RecordKind::Attached, size_of::<Attached>());
        attached.geometry = geometry;
        (attached.session, attached.generation, attached.backing) = (1, 1, Backing::Memfd as u32);
        (attached.spin_us, attached.version) = (2000, field("0"));
        let create = |kind, bytes| region::create(Backing::Memfd, kind, bytes, "").expect("a region");
        let request = create(RegionKind::Request, geometry.request_bytes);
        let reply = create(RegionKind::Reply, geometry.reply_bytes);
        let replies =
            region::map(reply.fd.as_fd(), geometry.reply_bytes, Access::ReadWrite, Backing::Memfd).expect("mapped");
        region::init_reply(&replies, 1, 1, &signature, &geometry, ServingState::Serving);
        let (ours, theirs) = fdpass::socketpair().expect("a pair");
        let fds = [
            region::for_client(&request, RegionKind::Request).expect("ours"),
            region::for_client(&reply, RegionKind::Reply).expect("ours"),
            theirs,
        ];
        fdpass::send(&socket, attached.as_bytes(), &fds.each_ref().map(AsFd::as_fd)).expect("sent");
        let got = fdpass::recv(&socket, &mut buffer).expect("MAPPED");
        parse::<Mapped>(&buffer[..got.bytes], RecordKind::Mapped).expect("MAPPED");
        region::seal_request(request.fd.as_fd(), geometry.request_bytes, Backing::Memfd).expect("sealed");
        let served = Served::map(1, 0, geometry, 0, Backing::Memfd, vec![request.fd, reply.fd, ours]).expect("mapped");
        let mut ready = Ready::new_zeroed();
        ready.head = head(RecordKind::Ready, size_of::<Ready>());
        fdpass::send(&socket, ready.as_bytes(), &[]).expect("sent");
        give.send((served, socket)).expect("somebody waits");
    });
    let options = AttachOptions::new("m").runtime_dir(dir.path()).spin_us(2000).queue(setup.queue);
    let client = Session::attach(options).expect("attached");
    let (served, socket) = take.recv().expect("served");
    daemon.join().expect("the thread ends");
    (client, served, socket)
}

/// The worker's half of a loop: what the executor does per turn that has work.
struct Serving {
    stepper: Stepper,
    turns: Turns,
    sessions: Vec<Served>,
    mailbox: Mailbox,
}

struct Both {
    client: Session,
    serving: Serving,
    input: Vec<f32>,
    output: Vec<f32>,
    _socket: OwnedFd,
}

fn load(setup: Setup) -> (ModelSpec, Policy, Box<Recorder>) {
    let spec = spec(setup);
    let (policy, loaded) = Policy::load(&spec, &mut Memory::default(), &mut |_| ()).expect("echo loads");
    let layout = loaded.record_layout;
    let record = Mem::heap(layout.region_bytes(RECORD_STEPS) as usize);
    let recorder = Box::new(Recorder::new(record, &layout, RECORD_STEPS));
    (spec, policy, recorder)
}

fn both(setup: Setup) -> Both {
    let (_, policy, recorder) = load(setup);
    let (client, served, socket) = attach(policy.signature(), setup);
    let baton = Baton::new(Mem::heap(BATON_BYTES as usize));
    let mut stepper = Stepper::new(policy, Arc::new(Stats::default()), baton, 0, 1);
    stepper.record(recorder);
    let mut turns = Turns::default();
    turns.rebuild([(0, 1)].into_iter());
    let mailbox = Mailbox::new().expect("descriptors");
    let (input, output) = (vec![1.0; setup.inputs as usize / 4], vec![0.0; setup.outputs as usize / 4]);
    let serving = Serving { stepper, turns, sessions: vec![served], mailbox };
    Both { client, serving, input, output, _socket: socket }
}

#[inline(never)]
fn phase_submit(both: &mut Both) -> Ticket {
    let mut request = both.client.request().expect("a slot is free");
    request.write(0, &both.input).expect("it fits");
    request.submit().expect("serving")
}

#[inline(never)]
fn phase_serve(serving: &mut Serving) {
    let Serving { stepper, turns, sessions, mailbox } = serving;
    assert!(turns.turn(|i| stepper.step(&mut sessions[i], mailbox)), "a request is there");
}

#[inline(never)]
fn phase_wait(both: &mut Both, ticket: Ticket) {
    let outcome = both.client.wait(ticket, Some(Duration::from_secs(1))).expect("an outcome");
    let Outcome::Reply(reply) = outcome else { panic!("superseded") };
    reply.copy_output(0, &mut both.output).expect("it fits");
}

fn count(both: &mut Both, requests: u64) {
    for _ in 0..requests {
        let ticket = phase_submit(both);
        phase_serve(&mut both.serving);
        phase_wait(both, ticket);
    }
}

fn time(both: &mut Both, requests: u64) {
    let mut clock = now_ns();
    for _ in 0..requests {
        std::hint::black_box(now_ns());
    }
    clock = now_ns() - clock;
    for _ in 0..3 {
        let mut spent = [0; 3];
        for _ in 0..requests {
            let a = now_ns();
            let ticket = phase_submit(both);
            let b = now_ns();
            phase_serve(&mut both.serving);
            let c = now_ns();
            phase_wait(both, ticket);
            let d = now_ns();
            spent = [spent[0] + b - a, spent[1] + c - b, spent[2] + d - c];
        }
        let start = now_ns();
        count(both, requests);
        let all = now_ns() - start;
        let per = |ns: u64| ns as f64 / requests as f64;
        println!(
            "one clock reading {:.1} ns; submit {:.1}, serve {:.1}, wait {:.1} (one reading more each); all {:.1} ns",
            per(clock),
            per(spent[0]),
            per(spent[1]),
            per(spent[2]),
            per(all)
        );
    }
}

fn pin(cpu: usize) {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).expect("a CPU");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).expect("pinned");
}

fn spin(setup: Setup, requests: u64) {
    let (spec, policy, recorder) = load(setup);
    let (mut client, served, _socket) = attach(policy.signature(), setup);
    let baton = Baton::new(Mem::heap(BATON_BYTES as usize));
    let mailbox = Arc::new(Mailbox::new().expect("descriptors"));
    let executor = Executor::new(spec, policy, baton.clone(), mailbox.clone(), Arc::new(Stats::default()));
    mailbox.order(Order::Record(recorder));
    mailbox.order(Order::Add(Box::new(served)));
    mailbox.order(Order::Take(None));
    baton.grant(1);
    std::thread::spawn(move || {
        pin(1);
        executor.run();
    });
    pin(0);
    let bounce = bouncer();
    let (input, mut output) = (vec![1.0f32; setup.inputs as usize / 4], vec![0.0f32; setup.outputs as usize / 4]);
    let options = CallOptions { timeout: Some(Duration::from_secs(1)), ..CallOptions::default() };
    let mut times = vec![0; requests as usize];
    for _ in 0..ROUNDS {
        let limit = bounce(&mut times);
        let mut stages = [const { Vec::new() }; 4];
        for time in &mut times {
            let start = now_ns();
            let info = client.infer(&[(0, &input[..])], &mut [(0, &mut output[..])], options).expect("answered");
            assert!(info.is_ok());
            let end = now_ns();
            *time = end - start;
            let moments = [start, info.t_submit_ns, info.t_start_ns, info.t_done_ns, end];
            stages.iter_mut().zip(moments.windows(2)).for_each(|(s, m)| s.push(m[1].saturating_sub(m[0])));
        }
        times.sort_unstable();
        let [before, to, run, back] = stages.map(|mut s| {
            s.sort_unstable();
            s[s.len() / 2]
        });
        let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!("limit {limit} p50 {p50} p99 {p99}: to submit {before}, to start {to}, to done {run}, back {back}");
    }
}

/// Bounces a line with a thread on the worker's CPU.
fn bouncer() -> impl Fn(&mut [u64]) -> u64 {
    use inferd_ipc::sync::Ordering::{Acquire, Release};
    let mem = Mem::heap(4096);
    let theirs = mem.clone();
    std::thread::spawn(move || {
        pin(1);
        let mut n = 0;
        loop {
            let now = theirs.word(0).load(Acquire);
            if now == n {
                std::hint::spin_loop();
                continue;
            }
            if now == u64::MAX {
                theirs.word(128).store(now, Release);
                n = 0;
                theirs.futex_wait(0, now, None);
                while theirs.word(0).load(Acquire) == u64::MAX {
                    std::thread::sleep(Duration::from_millis(1));
                }
                continue;
            }
            n = now;
            theirs.word(128).store(now, Release);
        }
    });
    move |times| {
        // The executor sleeps after its spin time.
        std::thread::sleep(Duration::from_millis(6));
        mem.word(0).store(0, Release);
        mem.futex_wake(0);
        std::thread::sleep(Duration::from_millis(2));
        for (i, time) in times.iter_mut().enumerate() {
            let start = now_ns();
            mem.word(0).store(i as u64 + 1, Release);
            while mem.word(128).load(Acquire) != i as u64 + 1 {
                std::hint::spin_loop();
            }
            *time = now_ns() - start;
        }
        mem.word(0).store(u64::MAX, Release);
        while mem.word(128).load(Acquire) != u64::MAX {
            std::hint::spin_loop();
        }
        times.sort_unstable();
        times[times.len() / 2]
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: u64| arguments.get(i).and_then(|n| n.parse().ok()).unwrap_or(default);
    let queue = if arguments.get(2).is_some_and(|q| q == "latest") { Queue::Latest } else { Queue::InOrder };
    let setup = Setup { queue, inputs: number(3, 64), outputs: number(4, 64), spin_us: 2000 };
    match arguments.first().map(String::as_str) {
        Some("count") => count(&mut both(setup), number(1, 1000)),
        Some("time") => time(&mut both(setup), number(1, 1_000_000)),
        Some("spin") => spin(setup, number(1, 20_000)),
        _ => println!("usage: one_request count|time|spin N [in_order|latest] [input bytes] [output bytes]"),
    }
}
