//! The supervisor's models against a reference, with workers that are values: the test chooses who moves next.
//!
//! A real [`Supervisor`] is asked over its control socket; its workers ([`worker`]) load, take the baton and die one
//! move at a time, and between any two moves may come an operator's command, a death or a timer. Time stands still
//! unless a step moves it, and what staging and store do beside the loop is waited for, so that a failure is the same
//! when it is replayed and shrunk. After every step the supervisor must say what the reference ([`reference`]) says,
//! exactly one worker may have the baton, and nothing of a worker that is gone may be left. Real processes walk in
//! `daemon/tests/swaps/registry.rs`.

mod reference;
mod step;
mod worker;

use super::models::ModelState;
use super::start::{Options, Surroundings, assemble};
use super::{Phase, Supervisor, Timer};
use crate::config::{Config, KeepPrevious, ModelConfig, Overrides};
use crate::logs::Logs;
use inferd_ipc::control::code;
use inferd_ipc::limits::{RESTART_WINDOW_MS, WORKER_EXIT_MS};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config as Proptest, TestRunner};
use reference::{Due, Reference, answered, said};
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use step::{Candidate, Step, folder, of, place, step};
use worker::{Deed, Stage, Workers};

/// Most steps of one case: it has half of them on the average, and can be cut down to none.
const STEPS_MAX: usize = 240;
/// Of them, those that found somebody to do them, and commands, that a case comes to on the average at least.
const DONE: usize = 60;
const COMMANDS: usize = 40;
/// Cases of a run in CI: with the above they make 10^4 commands.
const CASES: usize = 256;
/// How often a failing walk is cut down.
const SHRINKS: u32 = 4096;
/// Workers of a model at a time, below the entries of its baton: those that were told to go do so before there are more.
const WORKERS_MAX: usize = 12;

/// A supervisor and its workers, an operator, and the reference.
struct Walk<'a> {
    place: &'a Path,
    supervisor: Supervisor,
    workers: Workers,
    /// Workers that the reference has been told of.
    known: usize,
    reference: Reference,
    operator: UnixStream,
    /// The other end of the pipe that signals would arrive on.
    _signals: UnixStream,
    unread: Vec<u8>,
    commands: u64,
    answers: BTreeMap<u64, Value>,
    now: Instant,
    /// Descriptors that are watched without any worker.
    watched: usize,
}

impl<'a> Walk<'a> {
    fn begin(place: &'a Path, stores: bool) -> Walk<'a> {
        let good = folder(place, &Candidate { misdeed: "none", file: true });
        let mut config = Config::default();
        let m = ModelConfig { keep_previous: KeepPrevious::No, ..ModelConfig::new("m", &good) };
        config.models.insert("m".to_owned(), m);
        config.daemon.worker_dir = Some(place.to_owned());
        let state = tempfile::tempdir_in(place).expect("a folder").keep();
        // A path that is not absolute is no place for a store.
        config.daemon.state_dir = Some(if stores { state } else { "nowhere".into() });
        let options = Options { config, config_path: None, overrides: Overrides::default(), logs: Logs::nowhere() };
        let workers = Workers::default();
        let (signals, unheard) = super::signals::Signals::unheard().expect("descriptors");
        let now = Instant::now();
        let around = Surroundings {
            started: now,
            runtime_dir: place.to_owned(),
            sockets: super::sockets::Sockets::nowhere().expect("descriptors"),
            signals,
            notify: super::notify::Notify::default(),
            launcher: Box::new(Stage(Rc::clone(&workers))),
        };
        let mut supervisor = assemble(options, around).expect("descriptors and threads");
        supervisor.poller.set_time(now);
        let address = supervisor.sockets.control.local_addr().expect("it listens");
        let operator = UnixStream::connect_addr(&address).expect("it listens");
        operator.set_nonblocking(true).expect("a socket");
        let mut walk = Walk {
            place,
            supervisor,
            workers,
            known: 0,
            reference: Reference::new(stores),
            operator,
            _signals: unheard,
            unread: Vec::new(),
            commands: 0,
            answers: BTreeMap::new(),
            now,
            watched: 0,
        };
        walk.turn();
        walk.watched = walk.supervisor.poller.watched();
        walk.reference.load(0, "m", true, false);
        walk.supervisor.begin();
        walk.turn();
        walk.everybody();
        walk.reference.due.clear();
        assert_eq!(walk.supervisor.phase, Phase::Ready);
        walk
    }

    /// The supervisor turns until nothing is left to do, and the reference hears of the workers that it started.
    fn turn(&mut self) {
        let mut events = Vec::new();
        loop {
            let mut turns = 0;
            while self.supervisor.turn(&mut events).expect("epoll") {
                turns += 1;
                assert!(turns < 1000, "the loop never comes to rest");
            }
            let at_rest = self.supervisor.stager.running() == 0
                && self.supervisor.store.is_idle()
                && self.supervisor.drifting.is_empty();
            if at_rest {
                break;
            }
            let bells = [self.supervisor.stager.wake_fd(), self.supervisor.store.wake_fd()];
            let mut bells = bells.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            let rung = poll(&mut bells, PollTimeout::from(20_000u16)).expect("poll");
            assert!(rung > 0, "staging or store never end");
        }
        while self.known < self.workers.borrow().len() {
            let mut workers = self.workers.borrow_mut();
            let worker = &mut workers[self.known];
            assert_eq!(worker.moves(), Some(Deed::Other), "a worker is told what it is first");
            let spec = worker.spec.as_ref().expect("told");
            let now_ms = self.now.duration_since(self.supervisor.started).as_millis() as u64;
            self.reference.started(worker.pid, &spec.model, spec.generation.into(), spec.validate_only, now_ms);
            self.known += 1;
        }
    }

    fn now_ms(&self) -> u64 {
        self.now.duration_since(self.supervisor.started).as_millis() as u64
    }

    /// One worker makes so many moves at most before the supervisor looks. Says whether it could make one.
    fn moves(&mut self, at: usize, moves: usize) -> bool {
        let mut made = 0;
        while made < moves {
            let worker = &mut self.workers.borrow_mut()[at];
            let Some(deed) = worker.moves() else { break };
            let pid = worker.pid;
            self.reference.happened(pid, deed, self.now_ms());
            made += 1;
        }
        if made > 0 {
            self.turn();
            self.look_at_kills(false);
        }
        made > 0
    }

    /// Whoever can move does, in the order of their start, until nobody can.
    fn everybody(&mut self) -> bool {
        let mut moved = false;
        let mut rounds = 0;
        loop {
            let count = self.known;
            let movers = (0..count).filter(|at| self.moves(*at, 1)).count();
            if movers == 0 {
                return moved;
            }
            (moved, rounds) = (true, rounds + 1);
            assert!(rounds < 1000, "the workers never come to rest");
        }
    }

    fn kill(&mut self, at: usize) {
        let worker = &mut self.workers.borrow_mut()[at];
        let (deed, pid) = (worker.dies(), worker.pid);
        self.reference.happened(pid, deed, self.now_ms());
    }

    /// The supervisor kills whom it must, and when a bound is over whom it may.
    fn look_at_kills(&self, overdue: bool) {
        for worker in self.workers.borrow().iter() {
            let must = worker.misdeed == "speaks_garbage" && worker.loaded || self.reference.is_condemned(worker.pid);
            assert!(!must || worker.doomed || worker.is_gone(), "{} ({}) lives on", worker.pid, worker.misdeed);
            let may = must || overdue || worker.overdue;
            assert!(may || !worker.doomed, "{} ({}) was killed for nothing", worker.pid, worker.misdeed);
        }
    }

    /// Time passes until the first timer that `which` names, if there is one.
    fn wait_for(&mut self, which: impl Fn(&Timer) -> bool) -> bool {
        // What memory is left is the machine's affair.
        self.supervisor.poller.cancel(|timer| *timer == Timer::Memory);
        let Some(at) = self.supervisor.poller.timers().filter(|(_, t)| which(t)).map(|(at, _)| at).min() else {
            return false;
        };
        self.pass(at.max(self.now));
        true
    }

    fn pass(&mut self, at: Instant) {
        // Who was killed is gone long before the next bound is over: else the kernel hangs, which is another story.
        for worker in 0..self.known {
            if self.workers.borrow()[worker].doomed {
                self.moves(worker, 1);
            }
        }
        self.now = at;
        self.supervisor.poller.set_time(at);
        let workers = Rc::clone(&self.workers);
        let holds = |pid| workers.borrow().iter().any(|worker| worker.pid == pid && worker.holds);
        self.reference.waited(holds);
        self.turn();
        self.look_at_kills(true);
        for worker in workers.borrow_mut().iter_mut() {
            worker.overdue |= worker.doomed;
        }
    }

    fn soon(&mut self) -> bool {
        self.wait_for(|timer| matches!(timer, Timer::Restart { .. } | Timer::Resume(_)))
    }

    fn overdue(&mut self) -> bool {
        self.wait_for(|timer| matches!(timer, Timer::Load(_) | Timer::Swap { .. } | Timer::Exit(_)))
    }

    /// Moves and time until nothing is to come any more.
    fn settle(&mut self) {
        for round in 0..200 {
            self.everybody();
            if self.reference.is_settled() {
                return self.compare_what_is_left();
            }
            // A worker that does not do what it should would be waited for in small steps forever.
            let passed = (round % 8 < 7 && self.soon()) || self.overdue() || self.soon();
            assert!(passed, "nothing is due, and yet {:#?}", self.reference);
        }
        panic!("it never comes to rest: {:#?}", self.reference);
    }

    /// Sends a command; its number.
    fn ask(&mut self, method: &str, params: &Value) -> u64 {
        self.commands += 1;
        let line = json!({"jsonrpc": "2.0", "id": self.commands, "method": method, "params": params});
        self.operator.write_all(format!("{line}\n").as_bytes()).expect("the supervisor reads");
        self.commands
    }

    fn listen(&mut self) {
        self.turn();
        let mut buffer = [0; 32 << 10];
        while let Ok(bytes @ 1..) = self.operator.read(&mut buffer) {
            self.unread.extend_from_slice(&buffer[..bytes]);
            self.turn();
        }
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            let message: Value = serde_json::from_slice(&line).expect("JSON");
            if let Some(id) = message["id"].as_u64() {
                self.answers.insert(id, message);
            }
        }
    }

    fn model(&self, index: Index) -> String {
        let names = self.reference.names();
        if names.is_empty() { "nobody".to_owned() } else { index.get(&names).clone() }
    }

    fn load(&mut self, name: &str, candidate: &Candidate) {
        let path = folder(self.place, candidate);
        let command = self.ask("load", &json!({"model": name, "path": path}));
        self.reference.load(command, name, path.exists(), true);
    }

    fn reload(&mut self, name: &str, candidate: &Candidate, dry: bool) {
        let path = folder(self.place, candidate);
        let command = self.ask("reload", &json!({"model": name, "path": path, "dry_run": dry}));
        self.reference.reload(command, name, path.exists(), dry);
    }

    fn rollback(&mut self, name: &str) {
        let command = self.ask("rollback", &json!({"model": name}));
        self.reference.rollback(command, name);
    }

    fn unload(&mut self, name: &str) {
        let command = self.ask("unload", &json!({"model": name}));
        self.reference.unload(command, name);
    }

    /// Does what the step says. Says whether there was anything to do.
    fn step(&mut self, step: &Step) -> bool {
        match step {
            Step::Load { name, candidate } => self.load(name, candidate),
            Step::Reload { model, candidate, dry } => self.reload(&self.model(*model), candidate, *dry),
            Step::Rollback(model) => self.rollback(&self.model(*model)),
            Step::Unload(model) => self.unload(&self.model(*model)),
            Step::Validate(candidate) => {
                let path = folder(self.place, candidate);
                let command = self.ask("validate", &json!({"path": path}));
                self.reference.validate(command, path.exists());
            }
            Step::Miss(method) => {
                let whom = if *method == "disconnect" { json!({"session": 77}) } else { json!({"model": "nobody"}) };
                let command = self.ask(method, &whom);
                self.reference.due.insert(command, Due::Code(code::NOT_FOUND));
            }
            Step::Move { worker, moves } => {
                let count = self.known;
                let first = worker.index(count.max(1));
                return (0..count).any(|at| self.moves((first + at) % count, *moves));
            }
            Step::Everybody => return self.everybody(),
            Step::Kill(worker) => return self.kill_one(*worker, |worker| !worker.is_gone()),
            Step::KillServing(worker) => {
                let serving = self.reference.serving();
                return self.kill_one(*worker, |worker| serving.contains(&worker.pid));
            }
            Step::Soon => return self.soon(),
            Step::Overdue => return self.overdue(),
            Step::Quiet => {
                self.settle();
                self.pass(self.now + Duration::from_millis(RESTART_WINDOW_MS));
            }
        }
        true
    }

    fn kill_one(&mut self, index: Index, which: impl Fn(&worker::Worker) -> bool) -> bool {
        let fit: Vec<usize> = (0..self.known).filter(|at| which(&self.workers.borrow()[*at])).collect();
        if fit.is_empty() {
            return false;
        }
        self.kill(*index.get(&fit));
        true
    }

    /// The supervisor says what the reference says, to everybody who asked.
    fn compare(&mut self) {
        self.listen();
        self.look_at_kills(false);
        let asked = self.ask("models", &json!({}));
        self.listen();
        let answer = self.answers.remove(&asked).expect("looking never waits");
        let models = answer["result"].as_array().expect("a list");
        assert_eq!(models.iter().map(said).collect::<BTreeMap<_, _>>(), self.reference.told());
        for (command, due) in &self.reference.due {
            let answer = self.answers.get(command).map(answered);
            assert_eq!(answer.unwrap_or(Due::Open), *due, "command {command}: {:?}", self.answers.get(command));
        }
        self.reference.due.retain(|_, due| *due == Due::Open);
        self.answers.clear();
        self.compare_workers();
    }

    /// No worker too many or too few, and at most one of a model has the baton: the one that may.
    fn compare_workers(&self) {
        let workers = self.workers.borrow();
        let of_pid = |pid: u32| workers.iter().find(|worker| worker.pid == pid).expect("it was started");
        let theirs: BTreeSet<u32> = self.supervisor.workers.values().map(super::workers::Worker::pid).collect();
        let expected: BTreeMap<u32, u64> = self.reference.workers().collect();
        assert_eq!(theirs, expected.keys().copied().collect(), "the workers that there are");
        let mut holders: BTreeSet<u64> = BTreeSet::new();
        for (pid, instance) in expected.iter().filter(|(_, instance)| **instance > 0) {
            assert!(!of_pid(*pid).holds || holders.insert(*instance), "two workers have one baton");
        }
        for (name, instance, granted) in self.reference.batons() {
            let id = self.supervisor.model_id(name).expect("it is there");
            let model = &self.supervisor.models[&id];
            let entries = expected.values().filter(|of| **of == instance).count();
            assert_eq!(model.entries_out(), entries, "entries of the baton of {name}");
            if let Some(pid) = granted {
                let ticket = of_pid(pid).spec.as_ref().map(|spec| spec.ticket);
                assert_eq!(Some(model.baton.granted()), ticket, "who may have the baton of {name}");
            }
        }
        for (_, timer) in self.supervisor.poller.timers() {
            if let Timer::Load(worker) | Timer::Exit(worker) = timer {
                assert!(self.supervisor.workers.contains_key(worker), "{timer:?} of a worker that is gone");
            }
        }
    }

    /// At rest nothing is left of what was, and each live model has its one worker.
    fn compare_what_is_left(&mut self) {
        self.compare();
        let workers = self.supervisor.workers.len();
        assert_eq!(self.supervisor.poller.watched(), self.watched + 2 * workers, "descriptors that are watched");
        let s = &self.supervisor;
        assert!(s.staging.is_empty() && s.validations.is_empty() && s.stats.is_empty() && s.sessions.count() == 0);
        assert!(s.models.values().all(|model| model.next.is_none() && model.recovery.worker.is_none()));
    }

    /// Workers that were told to go do so before they take up a model's entries.
    fn make_room(&mut self) {
        let mut count: BTreeMap<u64, usize> = BTreeMap::new();
        self.reference.workers().for_each(|(_, instance)| *count.entry(instance).or_default() += 1);
        if count.values().any(|workers| *workers > WORKERS_MAX) {
            self.settle();
        }
    }

    fn end(mut self) {
        self.settle();
        for name in self.reference.names() {
            self.unload(&name);
            self.compare();
        }
        self.settle();
        assert!(self.supervisor.workers.is_empty() && self.supervisor.models.is_empty());
    }
}

fn run(place: &Path, stores: bool, steps: &[Step], counts: &[Cell<usize>; 2]) {
    let mut walk = Walk::begin(place, stores);
    for step in steps {
        walk.make_room();
        let command = !matches!(step, Step::Move { .. } | Step::Everybody | Step::Soon | Step::Overdue | Step::Quiet);
        if walk.step(step) {
            walk.compare();
            counts[0].set(counts[0].get() + 1);
            counts[1].set(counts[1].get() + usize::from(command));
        }
    }
    walk.end();
}

#[test]
fn models_and_their_workers_are_what_the_reference_says_whoever_moves_next() {
    let place = place();
    let config = Proptest { source_file: Some(file!()), max_shrink_iters: SHRINKS, ..Proptest::default() };
    let cases = config.cases as usize;
    let counts = RefCell::new([Cell::new(0), Cell::new(0)]);
    let mut runner = TestRunner::new(config);
    let walks = (prop::bool::weighted(0.1), prop::collection::vec(step(), 0..STEPS_MAX));
    // Another test of this process turns logging on.
    let result = tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::new(), || {
        runner.run(&walks, |(stores, steps)| {
            run(place.path(), stores, &steps, &counts.borrow());
            Ok(())
        })
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let [done, commands] = counts.into_inner().map(Cell::into_inner);
    println!("models in one process: {done} steps agree with the reference, {commands} of them commands and deaths");
    // Of few cases the lengths say nothing.
    let enough = done >= DONE * cases && commands >= COMMANDS * cases;
    assert!(enough || cases < CASES, "only {done} steps, {commands} of them commands and deaths");
}

#[test]
fn a_worker_that_dies_as_it_takes_over_is_not_kept_by_the_one_that_waited_behind_it() {
    let place = place();
    let mut walk = Walk::begin(place.path(), false);
    walk.load("a", &of("none"));
    walk.settle();
    walk.reload("a", &of("dies_after_taking"), false);
    walk.turn();
    walk.everybody();
    assert!(walk.soon(), "the one that died is started again");
    walk.reload("a", &of("none"), false);
    walk.settle();
    walk.rollback("a");
    walk.settle();
    assert_eq!(walk.reference.told()["a"][1], 1, "the one that was kept before");
    walk.end();
}

#[test]
fn an_old_worker_that_does_not_let_go_when_the_new_one_is_gone_is_ended_and_the_next_reload_is_not_held_up() {
    let place = place();
    let mut walk = Walk::begin(place.path(), false);
    walk.load("a", &of("keeps_the_baton"));
    walk.settle();
    walk.reload("a", &of("dies_when_granted"), false);
    walk.settle();
    walk.reload("a", &of("none"), false);
    walk.settle();
    assert_eq!(walk.reference.told()["a"][1], 2);
    walk.end();
}

/// The worker of `a`, by its place among all, has let go for one that is gone, and has yet to resume.
fn about_to_resume(place: &Path) -> (Walk<'_>, usize) {
    let mut walk = Walk::begin(place, false);
    walk.load("a", &of("none"));
    walk.settle();
    let serving = walk.known - 1;
    walk.reload("a", &of("dies_when_granted"), false);
    walk.turn();
    walk.everybody();
    (walk, serving)
}

#[test]
fn an_old_worker_that_dies_before_it_resumes_leaves_its_place_to_the_one_that_waits() {
    let place = place();
    let (mut walk, serving) = about_to_resume(place.path());
    walk.reload("a", &of("none"), false);
    walk.turn();
    walk.everybody();
    walk.kill(serving);
    walk.turn();
    walk.everybody();
    assert_eq!(walk.reference.told()["a"][1], 2, "at once, and not after another load");
    walk.settle();
    walk.end();
}

#[test]
fn an_old_worker_that_says_it_took_a_baton_that_it_was_not_granted_is_killed() {
    let place = place();
    let (mut walk, serving) = about_to_resume(place.path());
    walk.workers.borrow()[serving].claims();
    walk.turn();
    assert!(walk.workers.borrow()[serving].doomed, "the next one is gone, and the old one has yet to resume");
}

#[test]
fn a_killed_worker_whose_files_are_closed_first_has_its_whole_time_to_be_gone() {
    let place = place();
    let mut walk = Walk::begin(place.path(), false);
    let (&id, model) = walk.supervisor.models.iter().next().expect("a model");
    let live = model.live_worker().expect("it serves");
    walk.supervisor.kill_worker(live, "a test wished it");
    walk.workers.borrow()[0].hangs_up();
    walk.turn();
    let state = |walk: &Walk<'_>| walk.supervisor.models[&id].state;
    // Without those who end it when they are killed.
    let later = |walk: &mut Walk<'_>, ms| {
        walk.now += Duration::from_millis(ms);
        walk.supervisor.poller.set_time(walk.now);
        walk.turn();
    };
    later(&mut walk, WORKER_EXIT_MS - 1);
    assert_eq!(state(&walk), ModelState::Live, "its exit says what it was running");
    later(&mut walk, 1);
    assert_eq!(state(&walk), ModelState::Recovering, "it is not waited for any longer");
}
