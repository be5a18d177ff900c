//! A supervisor of one worker process, as small as a test needs it, and the client of its sessions.

use inferd_ipc::baton::{self, Baton};
use inferd_ipc::layout::{Backing, Geometry, Queue, ReplyHeader, ServingState};
use inferd_ipc::record::{self, RecordLayout, RecordReader};
use inferd_ipc::region::{self, Access, RegionKind};
use inferd_ipc::requester::{RequestMeta, Requester, Ring};
use inferd_ipc::signature::Signature;
use inferd_ipc::state::{self, Condition};
use inferd_ipc::worker_records::{FromWorker, Loaded, ModelSpec, ShadowReport, ToWorker, decode, encode};
use inferd_ipc::{fdpass, limits};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// A model's baton and record region, which outlive its workers.
pub struct Place {
    pub baton: Baton,
    baton_fd: OwnedFd,
}

impl Place {
    pub fn new() -> Place {
        let (baton, baton_fd) = baton::create().expect("a baton");
        Place { baton, baton_fd }
    }
}

/// A record region with its layout.
pub struct Record {
    pub fd: OwnedFd,
    pub layout: RecordLayout,
    pub slots: u32,
}

impl Record {
    pub fn new(layout: &RecordLayout, slots: u32) -> Record {
        Record { fd: record::create(layout, slots).expect("a region"), layout: layout.clone(), slots }
    }

    pub fn reader(&self) -> RecordReader {
        record::open_reader(self.fd.as_fd(), &self.layout, self.slots).expect("a record region")
    }
}

/// A worker process.
pub struct Worker {
    child: Child,
    socket: OwnedFd,
    ticket: u64,
    entry: u32,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Worker {
    /// Starts a worker on this spec; its generation and entry say which one it is.
    pub fn start(place: &Place, spec: &ModelSpec) -> Worker {
        let (socket, theirs) = fdpass::socketpair().expect("a socket pair");
        let mut command = Command::new(env!("CARGO_BIN_EXE_inferd-worker"));
        let child = command.stdin(Stdio::from(theirs)).spawn().expect("the worker starts");
        let worker = Worker { child, socket, ticket: spec.ticket, entry: spec.baton_entry };
        worker.tell(&ToWorker::Load(spec.clone()), &[place.baton_fd.as_fd()]);
        worker
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn tell(&self, record: &ToWorker, fds: &[BorrowedFd<'_>]) {
        fdpass::send(&self.socket, &encode(record).expect("short"), fds).expect("the worker listens");
    }

    /// The next record but progress; none when the worker is gone.
    pub fn hear(&self) -> Option<FromWorker> {
        self.hear_but(|record| matches!(record, FromWorker::Progress { .. } | FromWorker::Shadowing { .. }))
    }

    /// Waits until the shadow has run this many steps, and so knows which are the recent ones.
    pub fn shadowing(&self, steps: u32) {
        let early = |record: &FromWorker| matches!(record, FromWorker::Shadowing { done, .. } if *done < steps);
        match self.hear_but(early) {
            Some(FromWorker::Shadowing { .. }) => {}
            other => panic!("no progress: {other:?}"),
        }
    }

    /// The next record that is not to be passed over; none when the worker is gone.
    fn hear_but(&self, passed_over: impl Fn(&FromWorker) -> bool) -> Option<FromWorker> {
        let mut buffer = vec![0; limits::WORKER_RECORD_BYTES_MAX];
        let start = Instant::now();
        loop {
            match fdpass::recv(&self.socket, &mut buffer) {
                Ok(got) if got.bytes == 0 => return None,
                Ok(got) => {
                    let record = decode(&buffer[..got.bytes]).expect("a record");
                    if !passed_over(&record) {
                        return Some(record);
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
            assert!(start.elapsed() < PATIENCE, "the worker says nothing");
        }
    }

    pub fn loaded(&self) -> Loaded {
        match self.hear() {
            Some(FromWorker::Loaded(loaded)) => loaded,
            other => panic!("not loaded: {other:?}"),
        }
    }

    pub fn shadow(&self, record: &Record, steps: Option<u32>, for_ms: Option<u64>, wait_ms: u64) {
        let read_only = region::reopen(record.fd.as_fd(), Access::ReadOnly).expect("reopened");
        let (slots, layout) = (record.slots, record.layout.clone());
        self.tell(&ToWorker::Shadow { steps, for_ms, wait_ms, slots, layout }, &[read_only.as_fd()]);
    }

    pub fn shadowed(&self) -> ShadowReport {
        match self.hear() {
            Some(FromWorker::Shadowed(report)) => report,
            other => panic!("no report: {other:?}"),
        }
    }

    pub fn record(&self, record: &Record) {
        self.tell(&ToWorker::Record { slots: record.slots }, &[record.fd.as_fd()]);
    }

    /// Grants the baton and waits until it is taken.
    pub fn take(&self, place: &Place, predecessor: Option<&Worker>) {
        place.baton.grant(self.ticket);
        self.tell(&ToWorker::Take { predecessor: predecessor.map(|p| (p.entry, p.ticket)) }, &[]);
        if let Some(predecessor) = predecessor {
            predecessor.tell(&ToWorker::LetGo, &[]);
        }
        assert_eq!(self.hear(), Some(FromWorker::Taken));
    }

    /// Ends the socket, as a supervisor that died does.
    pub fn hang_up(&mut self) {
        self.socket = fdpass::socketpair().expect("a socket pair").0;
    }

    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the worker does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Name and scheduling policy (`man 2 sched_setscheduler`) of every thread.
    pub fn threads(&self) -> Vec<(String, u32)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("alive");
        let read = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
            // pid (name) state ...: the policy is field 41, the 39th after the name.
            let (name, fields) = stat.split_once('(')?.1.rsplit_once(')')?;
            Some((name.to_owned(), fields.split_ascii_whitespace().nth(38)?.parse().ok()?))
        };
        tasks.flatten().filter_map(read).collect()
    }
}

/// A session and its client.
pub struct Session {
    number: u64,
    geometry: Geometry,
    fds: Vec<OwnedFd>,
    state_bytes: u64,
    doorbell: OwnedFd,
    client: Requester,
}

impl Session {
    pub fn new(number: u64, signature: &Signature, state_bytes: u64) -> Session {
        let geometry = Geometry::new(signature, 4, Queue::InOrder, number).expect("a geometry");
        let make = |kind, bytes| region::create(Backing::Memfd, kind, bytes, "").expect("a region").fd;
        let request = make(RegionKind::Request, geometry.request_bytes);
        let reply = make(RegionKind::Reply, geometry.reply_bytes);
        let map =
            |fd: &OwnedFd, bytes| region::map(fd.as_fd(), bytes, Access::ReadWrite, Backing::Memfd).expect("maps");
        let (requests, replies) = (map(&request, geometry.request_bytes), map(&reply, geometry.reply_bytes));
        region::init_reply(&replies, number, 1, signature, &geometry, ServingState::Serving);
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)
                .expect("a doorbell");
        let mut fds = vec![request, reply, theirs];
        if state_bytes > 0 {
            fds.push(state::create(state_bytes, Condition::Fresh).expect("a state region"));
        }
        let client = Requester::new(requests, replies, geometry);
        Session { number, geometry, fds, state_bytes, doorbell: ours, client }
    }

    /// Adds this session to a worker.
    pub fn add_to(&self, worker: &Worker) {
        let (session, geometry, state_bytes) = (self.number, self.geometry, self.state_bytes);
        let record = ToWorker::AddSession { session, uid: 0, geometry, state_bytes, backing: Backing::Memfd };
        let fds: Vec<BorrowedFd<'_>> = self.fds.iter().map(AsFd::as_fd).collect();
        worker.tell(&record, &fds);
    }

    /// Submits floats as the only input.
    pub fn submit(&mut self, label: u64, input: &[f32], reset: bool) {
        assert!(self.client.begin());
        let bytes: Vec<u8> = input.iter().flat_map(|v| v.to_ne_bytes()).collect();
        self.client.write(64, &bytes);
        let meta = RequestMeta { observation_id: label, reset, ..RequestMeta::default() };
        if self.client.publish(&meta).1 == Ring::Socket {
            fdpass::ring(&self.doorbell);
        }
    }

    /// Submits, and waits for the reply: its header and the first floats of its first output.
    pub fn ask(&mut self, label: u64, input: &[f32], reset: bool) -> (ReplyHeader, Vec<f32>) {
        self.submit(label, input, reset);
        let start = Instant::now();
        loop {
            if let Some((reply, header)) = self.client.poll() {
                let mut bytes = vec![0; 4 * input.len()];
                self.client.read(reply, 64, &mut bytes);
                let _ = self.client.release(reply + 1);
                let floats = bytes.as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b)).collect();
                return (header, floats);
            }
            assert!(start.elapsed() < PATIENCE, "no reply");
            self.client.sleep(Some(Duration::from_millis(5)));
        }
    }
}
