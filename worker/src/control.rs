//! The control thread: has the model loaded, then passes the supervisor's records on to the executor.
//!
//! It maps and unmaps sessions, logs, and answers for counters, so that the executor does none of
//! it. It is never pinned to the executor's CPU. Loading and shadow runs lie on threads of idle priority
//! that end before the executor begins; it begins with the first record that concerns serving. When the
//! supervisor is gone or says `Retire` the process ends at once, whatever the other threads are doing.

use crate::aside::{self, Bench};
use crate::backend::{self, Backend};
use crate::confine::{self, Confinement, Profile};
use crate::executor::Executor;
use crate::files::FileSource;
use crate::link::{Link, LinkError};
use crate::mailbox::{Mailbox, Order, Report};
use crate::policy::Policy;
use crate::session::Session;
use crate::stats::Stats;
use crate::{Fault, ModelError, contain, logs, pass_on, realtime, shadow};
use inferd_ipc::baton::{self, Baton};
use inferd_ipc::failpoint;
use inferd_ipc::record::{self, RecordLayout};
use inferd_ipc::region::RegionError;
use inferd_ipc::worker_records::{Confine, FromWorker, Loaded, Loading, ModelSpec, ToWorker};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// The backend's name that leaves the choice to the worker.
pub const AUTO: &str = "auto";
/// Exit status when the model was refused: the supervisor has been told why.
pub const EXIT_REFUSED: i32 = 3;
/// Exit status of one that was told to end, or whose supervisor is gone.
const EXIT_DONE: i32 = 0;
/// Exit status when the supervisor cannot be talked to.
const EXIT_FAILED: i32 = 1;

/// Runs a worker with the backends that this crate carries, until the supervisor ends it or is gone.
pub fn run() -> ! {
    run_with(&[])
}

/// Runs a worker that has backends of its own beside those of this crate; its `main` calls this and nothing else.
pub fn run_with(own: &[&dyn Backend]) -> ! {
    end(run_of(Backends { own, carried: Some(backend::by_name) }))
}

/// Runs a worker that has these backends alone. What this crate carries beside is then not even linked.
pub fn run_only(own: &[&dyn Backend]) -> ! {
    end(run_of(Backends { own, carried: None }))
}

/// Ends the process as it is. What an inference library does at the end of a program (libtorch takes each of its thousands of
/// operators off its lists) costs those who are served meanwhile a tenth of a second of their CPU.
fn end(code: i32) -> ! {
    inferd_ipc::sys::exit_at_once(code)
}

/// Finds a backend that this crate carries.
type ByName = fn(&str) -> Result<Box<dyn Backend>, ModelError>;

/// What a worker can load with.
#[derive(Clone, Copy)]
struct Backends<'a> {
    own: &'a [&'a dyn Backend],
    carried: Option<ByName>,
}

impl Backends<'_> {
    /// Loads by the backend that the spec means.
    fn load(
        &self,
        spec: &ModelSpec,
        files: &mut Handed<'_>,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Warm, ModelError> {
        self.with(spec, |backend| {
            let (policy, mut loaded) = Policy::warm_by(backend, spec, files, progress)?;
            if spec.backend == AUTO {
                loaded.backend.push_str(" (auto)");
            }
            Ok(Warm { policy, loaded, profile: backend.profile(spec) })
        })?
    }

    /// What the worker may need while it loads, before it is known who can load.
    fn profile_before(&self, spec: &ModelSpec) -> Profile {
        // Whom the model is passed on to inherits what was given up, and its options may ask for a GPU.
        if spec.backend == AUTO && spec.options.contains_key("providers") {
            return Profile::Gpu;
        }
        // A backend that is not there is refused when it is to load.
        self.with(spec, |backend| backend.profile(spec)).unwrap_or(Profile::Strict)
    }

    /// The backend that the spec names; the first one of this program where it names none.
    fn with<T>(&self, spec: &ModelSpec, then: impl FnOnce(&dyn Backend) -> T) -> Result<T, ModelError> {
        let is_auto = spec.backend == AUTO;
        let own = self.own.iter().find(|b| is_auto || b.name() == spec.backend);
        match (own, self.carried) {
            (Some(backend), _) => Ok(then(*backend)),
            (None, Some(carried)) => Ok(then(&*carried(if is_auto { pass_on::FIRST } else { &spec.backend })?)),
            (None, None) => {
                let names = self.own.iter().map(|b| b.name()).collect::<Vec<_>>().join(", ");
                let what = format!("is not in this worker, which has {names}");
                let remedy = "correct `backend`, or install the worker that has it beside the daemon";
                Err(ModelError::new(Fault::Unsupported, format!("backend {:?}", spec.backend), what, remedy))
            }
        }
    }
}

fn run_of(backends: Backends<'_>) -> i32 {
    install_panic_hook();
    let parent = std::os::unix::process::parent_id();
    if !inferd_ipc::sys::die_with_parent(parent) {
        return EXIT_FAILED;
    }
    inferd_ipc::sys::ignore_stop_signals();
    failpoint!("worker.started");
    logs::init();
    match work(backends) {
        Ok(code) => code,
        Err(LinkError::Closed) => EXIT_DONE,
        Err(error) => {
            tracing::error!("{error}");
            EXIT_FAILED
        }
    }
}

/// A bug of ours ends the process: restarts are cheap and honest. A panic inside a model is the model's error.
fn install_panic_hook() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !contain::is_containing() {
            default(info);
            std::process::abort();
        }
    }));
}

fn work(backends: Backends<'_>) -> Result<i32, LinkError> {
    let mut link = Link::from_stdin(pass_on::handed())?;
    let (ToWorker::Load(spec), fds) = link.receive()? else { return Ok(EXIT_FAILED) };
    failpoint!("worker.load");
    let _span = tracing::info_span!("worker", model = %spec.model, generation = spec.generation).entered();
    let confinement = Confinement::begin(spec.confine, backends.profile_before(&spec));
    if let Some(cpu) = spec.cpu {
        realtime::avoid_cpu(cpu);
    }
    let spare = pass_on::Spare::of(&spec, &fds)?;
    let mut fds = fds.into_iter();
    let baton = match fds.next().map(|fd| baton::open(fd.as_fd())) {
        Some(Ok(baton)) => baton,
        Some(Err(error)) => return refuse(&link, &error.to_string()),
        None => return refuse(&link, "no baton came with the model: a bug of the supervisor"),
    };
    let mut files = Handed { link: &mut link, model: fds.next(), asked: BTreeMap::new(), early: Vec::new() };
    let loaded = aside::run("loader", spec.loading == Loading::Idle, || load(&spec, &mut files, backends))?;
    let early = std::mem::take(&mut files.early);
    drop(files);
    let warm = match loaded {
        Ok(warm) => warm,
        Err(error) if spare.takes(&error) => return spare.pass_on(&link, spec, early, &error),
        Err(error) => return refuse(&link, &error.to_string()),
    };
    tracing::debug!(load_us = warm.loaded.load_us, warm_up_us = warm.loaded.warm_up_us, "loaded");
    if let Some(message) = realtime::raise_helpers() {
        link.send(&FromWorker::Warning { message })?;
    }
    let bench = Bench::start("shadow-run", spec.confine, warm.profile)?;
    let (policy, loaded) = match confined(&spec, confinement, warm, &bench) {
        Ok(policy) => policy,
        Err(error) => return refuse(&link, &error.to_string()),
    };
    failpoint!("worker.loaded");
    link.send(&FromWorker::Loaded(loaded))?;
    failpoint!("worker.loaded.sent");
    if spec.validate_only {
        return Ok(EXIT_DONE);
    }
    Control::new(link, spec, policy, baton, bench)?.run(early)
}

/// A model that was loaded, checked and warmed up.
struct Warm {
    policy: Policy,
    loaded: Loaded,
    profile: Profile,
}

/// Gives up what a warm model does not need, and shows that it runs all the same.
fn confined(
    spec: &ModelSpec,
    confinement: Confinement,
    warm: Warm,
    bench: &Bench,
) -> Result<(Policy, Loaded), ModelError> {
    let Warm { mut policy, loaded, profile } = warm;
    match confinement.enter(profile)? {
        Some(in_force) if in_force.is_whole() => tracing::info!("confined: {in_force}"),
        Some(in_force) => tracing::warn!("confined in part: {in_force}"),
        None => tracing::info!("not confined: confine = \"off\""),
    }
    if spec.confine != Confine::Off {
        let again = move || (policy.warm_again(), policy);
        let run = if spec.loading == Loading::Idle {
            bench.run(move |_| again())
        } else {
            let no_thread = |e: std::io::Error| {
                ModelError::new(
                    Fault::Confined,
                    "the last warm-up",
                    e.to_string(),
                    "allow the daemon more threads (TasksMax=)",
                )
            };
            aside::run("last-warm-up", false, again).map_err(no_thread)?
        };
        run.0.map_err(confine::inside)?;
        policy = run.1;
    }
    policy.go_live();
    Ok((policy, loaded))
}

fn load(spec: &ModelSpec, files: &mut Handed<'_>, backends: Backends<'_>) -> Result<Warm, ModelError> {
    let socket = files.link.fd().try_clone_to_owned();
    let mut progress = |stage: &str| {
        if stage == "warming" {
            failpoint!("worker.warming");
            inferd_ipc::sys::forget_cold_code();
        }
        let record = match stage.strip_prefix("warning: ") {
            Some(message) => FromWorker::Warning { message: message.to_owned() },
            None => FromWorker::Progress { stage: stage.to_owned() },
        };
        // Progress that cannot be sent is no reason to stop loading; the end of the link is seen later.
        if let (Ok(socket), Ok(bytes)) = (&socket, inferd_ipc::worker_records::encode(&record)) {
            let _ = inferd_ipc::fdpass::send(socket, &bytes, &[]);
        }
    };
    backends.load(spec, files, &mut progress)
}

pub(crate) fn refuse(link: &Link, message: &str) -> Result<i32, LinkError> {
    link.send(&FromWorker::Refused { message: message.to_owned() })?;
    Ok(EXIT_REFUSED)
}

/// Files as the supervisor hands them over.
struct Handed<'a> {
    link: &'a mut Link,
    model: Option<OwnedFd>,
    asked: BTreeMap<String, Vec<u8>>,
    /// Records that came while a file was awaited.
    early: Vec<(ToWorker, Vec<OwnedFd>)>,
}

fn file_error(place: &str, what: impl Into<String>) -> ModelError {
    ModelError::new(Fault::File, format!("file {place:?}"), what, "check the model's folder and the manifest")
}

/// Reads a whole descriptor from offset 0, whatever its position: it is shared with the supervisor.
fn read_all(fd: OwnedFd) -> std::io::Result<Vec<u8>> {
    let file = File::from(fd);
    let length = usize::try_from(file.metadata()?.len()).map_err(std::io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

impl FileSource for Handed<'_> {
    fn model(&mut self) -> Result<Vec<u8>, ModelError> {
        let fd = self.model.take().ok_or_else(|| file_error("model", "no model file came with the record"))?;
        read_all(fd).map_err(|e| file_error("model", e.to_string()))
    }

    fn file(&mut self, name: &str) -> Result<Vec<u8>, ModelError> {
        if let Some(bytes) = self.asked.get(name) {
            return Ok(bytes.clone());
        }
        let link_error = |e: LinkError| file_error(name, e.to_string());
        self.link.send(&FromWorker::NeedFile { name: name.to_owned() }).map_err(link_error)?;
        loop {
            match self.link.receive().map_err(link_error)? {
                (ToWorker::File { name: answered, refused }, mut fds) if answered == name => {
                    if let Some(reason) = refused {
                        return Err(file_error(name, reason));
                    }
                    let fd = fds.pop().ok_or_else(|| file_error(name, "the supervisor sent no descriptor"))?;
                    let bytes = read_all(fd).map_err(|e| file_error(name, e.to_string()))?;
                    self.asked.insert(name.to_owned(), bytes.clone());
                    return Ok(bytes);
                }
                other => self.early.push(other),
            }
        }
    }
}

/// A worker whose model is loaded.
struct Control {
    link: Link,
    spec: ModelSpec,
    baton: Baton,
    layout: RecordLayout,
    mailbox: Arc<Mailbox>,
    stats: Arc<Stats>,
    model: Model,
    /// The thread for shadow runs, until sessions are served.
    bench: Option<Arc<Bench>>,
    /// Failed steps that were reported.
    failures: u64,
}

/// Who has the policy.
enum Model {
    /// Nobody; the executor begins with the first record that concerns it.
    Waiting(Box<Policy>),
    /// A shadow run; whether the executor is to begin when it has ended.
    Shadowing(bool),
    /// The executor.
    Serving,
}

impl Control {
    fn new(link: Link, spec: ModelSpec, policy: Policy, baton: Baton, bench: Bench) -> Result<Control, LinkError> {
        let (mailbox, stats) = (Arc::new(Mailbox::new()?), Arc::new(Stats::default()));
        let (layout, model) = (policy.record_layout(), Model::Waiting(Box::new(policy)));
        let bench = Some(Arc::new(bench));
        Ok(Control { link, spec, baton, layout, mailbox, stats, model, bench, failures: 0 })
    }

    /// The executor is to begin: at once, or when the shadow run gives the policy back.
    fn serve(&mut self) -> Result<(), LinkError> {
        match std::mem::replace(&mut self.model, Model::Serving) {
            Model::Waiting(policy) => {
                self.bench = None;
                let (mailbox, stats) = (self.mailbox.clone(), self.stats.clone());
                let executor = Executor::new(self.spec.clone(), *policy, self.baton.clone(), mailbox, stats);
                std::thread::Builder::new().name("executor".into()).spawn(move || executor.run())?;
            }
            Model::Shadowing(_) => self.model = Model::Shadowing(true),
            Model::Serving => {}
        }
        Ok(())
    }

    fn order(&mut self, order: Order) -> Result<(), LinkError> {
        self.serve()?;
        self.mailbox.order(order);
        Ok(())
    }

    /// Records what is run from now on; the executor takes the recorder over when it begins.
    fn record_steps(&mut self, slots: u32, fds: &[OwnedFd]) -> Result<(), RegionError> {
        let region = fds.first().ok_or(RegionError::Untrusted("no record region came with its record"))?;
        let recorder = record::open_writer(region.as_fd(), &self.layout, slots)?;
        self.mailbox.order(Order::Record(Box::new(recorder)));
        Ok(())
    }

    /// Begins a shadow run aside, which has the policy until it ends.
    fn shadow(
        &mut self,
        wanted: shadow::Wanted,
        layout: RecordLayout,
        slots: u32,
        fds: &[OwnedFd],
    ) -> Result<(), RegionError> {
        let region = fds.first().ok_or(RegionError::Untrusted("no record region came with the shadow"))?;
        let reader = record::open_reader(region.as_fd(), &layout, slots)?;
        let mut policy = match std::mem::replace(&mut self.model, Model::Shadowing(false)) {
            Model::Waiting(policy) if shadow::fits(&policy, &layout) => policy,
            other => {
                self.model = other;
                return Err(RegionError::Untrusted("it holds another model's steps, or this worker serves already"));
            }
        };
        let bench = self.bench.clone().expect("a worker that does not serve yet has it");
        let mailbox = self.mailbox.clone();
        let thread = std::thread::Builder::new().name("shadow".into());
        let begun = thread.spawn(move || {
            let told = mailbox.clone();
            failpoint!("worker.shadow");
            let (report, policy) = bench.run(move |times| {
                let mut progress = |done, of| told.report(Report::Shadowing { done, of });
                (shadow::run(&mut policy, &reader, &layout, wanted, times, &mut progress), policy)
            });
            drop(bench);
            failpoint!("worker.shadowed");
            mailbox.report(Report::Shadowed(Box::new(report), policy));
        });
        begun.map(drop).map_err(|source| RegionError::Os { what: "starting a thread for", bytes: 0, source })
    }

    fn run(mut self, early: Vec<(ToWorker, Vec<OwnedFd>)>) -> Result<i32, LinkError> {
        for (record, fds) in early {
            if let Some(code) = self.record(record, fds)? {
                return Ok(code);
            }
        }
        loop {
            let mut fds = [
                PollFd::new(self.link.fd(), PollFlags::POLLIN),
                PollFd::new(self.mailbox.reported(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(std::io::Error::from(e).into()),
            }
            let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| !r.is_empty());
            let (record, report) = (ready(&fds[0]), ready(&fds[1]));
            if report {
                for report in self.mailbox.reports() {
                    self.report(report)?;
                }
            }
            if record {
                let (record, fds) = self.link.receive()?;
                if let Some(code) = self.record(record, fds)? {
                    return Ok(code);
                }
            }
        }
    }

    /// Carries out one record; an exit code ends the process.
    fn record(&mut self, record: ToWorker, fds: Vec<OwnedFd>) -> Result<Option<i32>, LinkError> {
        match record {
            ToWorker::AddSession { session, uid, geometry, state_bytes, backing } => {
                // The executor begins while the session is mapped.
                self.serve()?;
                match Session::map(session, uid, geometry, state_bytes, backing, fds) {
                    Ok(session) => {
                        failpoint!("worker.session");
                        self.mailbox.order(Order::Add(Box::new(session)));
                    }
                    Err(error) => self.link.send(&FromWorker::SessionFault { session, fault: error.to_string() })?,
                }
            }
            ToWorker::RemoveSession { session } => self.order(Order::Remove(session))?,
            ToWorker::Take { predecessor } => self.order(Order::Take(predecessor))?,
            ToWorker::LetGo => self.order(Order::Look)?,
            ToWorker::Drain => self.order(Order::Drain)?,
            ToWorker::Record { slots } => {
                // A model is served without a record rather than not at all.
                if let Err(error) = self.record_steps(slots, &fds) {
                    let message = format!("its steps are not recorded: {error}");
                    self.link.send(&FromWorker::Warning { message })?;
                }
            }
            ToWorker::Shadow { steps, for_ms, wait_ms, slots, layout } => {
                let wanted = shadow::Wanted { steps, for_ms, wait_ms };
                if let Err(error) = self.shadow(wanted, layout, slots, &fds) {
                    return Ok(Some(refuse(&self.link, &format!("the shadow run: {error}"))?));
                }
            }
            ToWorker::Retire => {
                failpoint!("worker.retire");
                return Ok(Some(EXIT_DONE));
            }
            ToWorker::Stats => self.link.send(&FromWorker::Stats(self.stats.snapshot()))?,
            ToWorker::LogLevel { level } => {
                if let Err(error) = logs::set_level(&level) {
                    tracing::warn!("{error}");
                }
            }
            ToWorker::Load(_) | ToWorker::File { .. } => {
                tracing::warn!("a record came that is only due while loading: a bug of the supervisor");
            }
        }
        Ok(None)
    }

    fn report(&mut self, report: Report) -> Result<(), LinkError> {
        match report {
            Report::Taken => {
                self.link.send(&FromWorker::Taken)?;
                failpoint!("worker.taken.sent");
            }
            Report::Drained => self.link.send(&FromWorker::Drained)?,
            Report::Fault { session, fault } => self.link.send(&FromWorker::SessionFault { session, fault })?,
            Report::Warning(message) => {
                tracing::warn!(model = %self.spec.model, "{message}");
                self.link.send(&FromWorker::Warning { message })?;
            }
            Report::Model { session, request, message } => {
                self.failures += 1;
                tracing::warn!(model = %self.spec.model, session, request, failures = self.failures, "{message}");
            }
            Report::Gone(session) => drop(session),
            Report::Shadowing { done, of } => self.link.send(&FromWorker::Shadowing { done, of })?,
            Report::Shadowed(report, policy) => {
                let serve = matches!(self.model, Model::Shadowing(true));
                self.model = Model::Waiting(policy);
                self.link.send(&FromWorker::Shadowed(*report))?;
                if serve {
                    self.serve()?;
                }
            }
        }
        Ok(())
    }
}
