//! Workers that are values of the test: each makes one move when it is told to, so that the test chooses who is first.
//!
//! A worker speaks the records and plays with the baton as the fake processes of `daemon/tests/swaps` do, and serves
//! nobody. What it does wrong stands in its model's options. Its process ends where it says so, where the supervisor
//! has killed it, or where the test does; only then does its exit become readable.

use super::super::process::{Launched, Launcher, Process};
use super::super::reaping::Reaper;
use inferd_ipc::baton::{self, Baton};
use inferd_ipc::fdpass;
use inferd_ipc::record::RecordLayout;
use inferd_ipc::signature::{DType, Signature, TensorSpec};
use inferd_ipc::worker_records::{FromWorker, Loaded, ModelSpec, ToWorker, decode, encode};
use std::cell::RefCell;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::rc::Rc;

/// Above every process id that the kernel gives: what is done to one of these by its number reaches nobody.
const PID_FIRST: u32 = 1 << 30;
/// Exit codes, in the form of wait(2).
const DIED: i32 = 7 << 8;
const REFUSED: i32 = 3 << 8;
const KILLED: i32 = 9;

/// What a worker has just done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// It has loaded a model of this width.
    Loaded(u64),
    /// It has taken the baton, and not said so yet.
    Took,
    /// It has said that it took the baton.
    Told,
    /// Its process is gone.
    Exited,
    /// What nobody but its own file knows: a record read, a refusal, a release.
    Other,
}

/// A worker's own side.
pub struct Worker {
    pub pid: u32,
    /// What it was told first.
    pub spec: Option<ModelSpec>,
    pub misdeed: String,
    /// It was killed, and its exit has not been seen.
    pub doomed: bool,
    /// It was killed when a bound was over.
    pub overdue: bool,
    /// It has the baton, as far as it knows.
    pub holds: bool,
    pub loaded: bool,
    socket: UnixStream,
    exit: UnixStream,
    baton: Option<Baton>,
    take: Option<Option<(u32, u64)>>,
    tell: bool,
    /// How its next move ends it.
    leaves: Option<i32>,
    status: Option<ExitStatus>,
}

impl Worker {
    pub fn is_gone(&self) -> bool {
        self.status.is_some()
    }

    fn is(&self, misdeed: &str) -> bool {
        self.misdeed == misdeed
    }

    fn send(&self, bytes: &[u8]) {
        fdpass::send(&self.socket, bytes, &[]).expect("the supervisor reads");
    }

    fn say(&self, record: &FromWorker) {
        self.send(&encode(record).expect("short"));
    }

    /// It says that it took the baton, though it did not.
    pub fn claims(&self) {
        self.say(&FromWorker::Taken);
    }

    /// Its files are closed, and it is not gone yet.
    pub fn hangs_up(&self) {
        self.socket.shutdown(Shutdown::Both).expect("it was open");
    }

    /// The process ends, by a signal of the test's.
    pub fn dies(&mut self) -> Deed {
        self.end(KILLED)
    }

    fn end(&mut self, status: i32) -> Deed {
        self.status = Some(ExitStatus::from_raw(status));
        (self.holds, self.doomed) = (false, false);
        // Not by closing: another test that forks holds what is open here for a moment.
        self.socket.shutdown(Shutdown::Both).expect("it was open");
        self.exit.write_all(&[1]).expect("somebody waits");
        Deed::Exited
    }

    /// Makes the next move, if there is one to make.
    pub fn moves(&mut self) -> Option<Deed> {
        if self.is_gone() {
            return None;
        }
        if self.doomed {
            return Some(self.end(KILLED));
        }
        if let Some(status) = self.leaves {
            return Some(self.end(status));
        }
        if self.tell {
            self.tell = false;
            self.say(&FromWorker::Taken);
            return Some(Deed::Told);
        }
        if self.baton.is_none() {
            return self.begins();
        }
        if !self.loaded {
            return self.loads();
        }
        self.reads().or_else(|| self.passes_the_baton())
    }

    /// The first record says who it is.
    fn begins(&mut self) -> Option<Deed> {
        let (record, fds) = self.receive()?;
        let ToWorker::Load(spec) = record else { panic!("the first record was {record:?}") };
        assert_eq!(fds.len(), 1 + usize::from(!spec.file.is_empty()), "a baton, and a file where there is one");
        self.baton = Some(baton::open(fds[0].as_fd()).expect("a baton"));
        self.misdeed = spec.options.get("misdeed").cloned().unwrap_or_default();
        self.spec = Some(spec);
        Some(Deed::Other)
    }

    fn receive(&self) -> Option<(ToWorker, Vec<OwnedFd>)> {
        let mut buffer = vec![0; 16 << 10];
        let got = fdpass::recv(&self.socket, &mut buffer).ok()?;
        assert!(got.bytes > 0 && !got.truncated, "the supervisor closes no socket before its worker is gone");
        Some((decode(&buffer[..got.bytes]).expect("a record"), got.fds))
    }

    fn loads(&mut self) -> Option<Deed> {
        match self.misdeed.as_str() {
            "refuses" => {
                self.say(&FromWorker::Refused { message: "this file is no good".into() });
                self.leaves = Some(REFUSED);
                return Some(Deed::Other);
            }
            "speaks_garbage" => {
                self.send(b"{}");
                // It waits to be killed for it.
                self.loaded = true;
                return Some(Deed::Other);
            }
            "dies_loading" => return Some(self.end(DIED)),
            "never_loads" => return self.reads(),
            _ => {}
        }
        let width = if self.is("other_signature") { 5 } else { 4 };
        let tensor = |name| vec![TensorSpec::new(name, DType::F32, &[1, width])];
        self.loaded = true;
        self.say(&FromWorker::Loaded(Loaded {
            signature: Signature { inputs: tensor("in"), outputs: tensor("out"), stateful: false },
            state_bytes: 0,
            state_layout: String::new(),
            record_layout: RecordLayout::default(),
            backend: "scripted".into(),
            load_us: 1,
            warm_up_us: 1,
            warm_up_runs: 1,
            run_us_p50: 1.0,
            golden_difference_max: None,
        }));
        Some(Deed::Loaded(width))
    }

    fn reads(&mut self) -> Option<Deed> {
        let (record, _) = self.receive()?;
        match record {
            ToWorker::Take { .. } if self.is("dies_when_granted") => return Some(self.end(DIED)),
            ToWorker::Take { predecessor } => self.take = Some(predecessor),
            ToWorker::Retire if !self.is("ignores_orders") => return Some(self.end(0)),
            _ => {}
        }
        Some(Deed::Other)
    }

    fn passes_the_baton(&mut self) -> Option<Deed> {
        let (baton, spec) = (self.baton.as_ref()?, self.spec.as_ref()?);
        let (entry, ticket) = (spec.baton_entry, spec.ticket);
        let granted = baton.granted() == ticket;
        if self.holds && !granted && !self.is("keeps_the_baton") {
            (self.holds, self.take) = (false, None);
            baton.release(entry, ticket);
            return Some(Deed::Other);
        }
        let predecessor = self.take?;
        let free = predecessor.is_none_or(|(entry, ticket)| baton.released(entry) == ticket);
        if self.holds || !granted || !free || self.is("never_takes") {
            return None;
        }
        (self.holds, self.take, self.tell) = (true, None, true);
        baton.take(entry, ticket);
        if self.is("dies_after_taking") {
            self.leaves = Some(DIED);
        }
        Some(Deed::Took)
    }
}

/// All workers that were ever started, in the order of their start.
pub type Workers = Rc<RefCell<Vec<Worker>>>;

/// Starts workers that are values.
pub struct Stage(pub Workers);

impl Launcher for Stage {
    fn launch(&mut self, _: &Path, _: &str) -> io::Result<Launched> {
        let (socket, theirs) = fdpass::socketpair()?;
        let (exit, ends) = UnixStream::pair()?;
        let mut all = self.0.borrow_mut();
        let at = all.len();
        all.push(Worker {
            pid: PID_FIRST + at as u32,
            spec: None,
            misdeed: String::new(),
            doomed: false,
            overdue: false,
            holds: false,
            loaded: false,
            socket: UnixStream::from(theirs),
            exit: ends,
            baton: None,
            take: None,
            tell: false,
            leaves: None,
            status: None,
        });
        let process = Box::new(Handle { workers: Rc::clone(&self.0), at });
        Ok(Launched { process, socket, exit: exit.into() })
    }
}

/// The supervisor's hold on one of them.
struct Handle {
    workers: Workers,
    at: usize,
}

impl Process for Handle {
    fn id(&self) -> u32 {
        PID_FIRST + self.at as u32
    }

    fn kill(&mut self) -> io::Result<()> {
        let worker = &mut self.workers.borrow_mut()[self.at];
        worker.doomed = !worker.is_gone();
        Ok(())
    }

    fn how_it_ended(&self) -> io::Result<Option<ExitStatus>> {
        Ok(self.workers.borrow()[self.at].status)
    }

    fn reap(self: Box<Self>, _reaper: &Reaper) {}
}
