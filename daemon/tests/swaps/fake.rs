//! A worker that speaks the records and plays with the baton, but serves nobody.
//!
//! Its one thread polls, since it is neither fast nor frugal. Its counters say whether it holds the
//! baton (`sleeps`) and which generation it is, so that a scenario can see who serves.

use inferd_ipc::baton::{self, Baton};
use inferd_ipc::fdpass;
use inferd_ipc::record::RecordLayout;
use inferd_ipc::signature::{DType, Signature, TensorSpec};
use inferd_ipc::worker_records::{
    FromWorker, Loaded, ModelSpec, OutputDifference, ShadowReport, ToWorker, WorkerStats, decode, encode,
};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ExitCode, exit};
use std::time::Duration;

/// Exit code of a worker that dies on purpose.
const DIED: i32 = 7;
const POLL: Duration = Duration::from_millis(1);

struct Fake {
    socket: OwnedFd,
    spec: ModelSpec,
    baton: Baton,
    misdeed: String,
    take: Option<Option<(u32, u64)>>,
    holds: bool,
}

/// Runs until it is told to exit, or its socket ends.
pub fn run() -> ExitCode {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().expect("a descriptor");
    let mut buffer = vec![0; 128 << 10];
    let got = loop {
        match fdpass::recv(&socket, &mut buffer) {
            Ok(got) => break got,
            Err(_) => std::thread::sleep(POLL),
        }
    };
    let Ok(ToWorker::Load(spec)) = decode(&buffer[..got.bytes]) else { return ExitCode::FAILURE };
    let baton = baton::open(got.fds[0].as_fd()).expect("a baton");
    let misdeed = spec.options.get("misdeed").cloned().unwrap_or_default();
    let mut fake = Fake { socket, spec, baton, misdeed, take: None, holds: false };
    fake.load(&mut buffer);
    loop {
        match fdpass::recv(&fake.socket, &mut buffer) {
            Ok(got) if got.bytes == 0 => return ExitCode::SUCCESS,
            Ok(got) => fake.on_record(decode(&buffer[..got.bytes]).expect("a record")),
            Err(_) => std::thread::sleep(POLL),
        }
        fake.pass_baton();
    }
}

impl Fake {
    fn is(&self, misdeed: &str) -> bool {
        self.misdeed == misdeed
    }

    fn send(&self, record: &FromWorker) {
        fdpass::send(&self.socket, &encode(record).expect("short"), &[]).expect("sent");
    }

    fn load(&mut self, buffer: &mut [u8]) {
        self.send(&FromWorker::Progress { stage: "loading".into() });
        match self.misdeed.as_str() {
            "refuses" => self.refuse("this file is no good; make a better one"),
            "speaks_garbage" => fdpass::send(&self.socket, b"{}", &[]).expect("sent"),
            "never_loads" => std::thread::sleep(Duration::from_secs(60)),
            "loads_slowly" => std::thread::sleep(Duration::from_millis(700)),
            "dies_loading" => exit(DIED),
            "asks_for_secrets" => self.ask("../secrets", buffer),
            _ => {}
        }
        let width = if self.is("other_signature") { 5 } else { 4 };
        let tensor = |name| vec![TensorSpec::new(name, DType::F32, &[1, width])];
        let loaded = Loaded {
            signature: Signature { inputs: tensor("in"), outputs: tensor("out"), stateful: false },
            state_bytes: 0,
            state_layout: String::new(),
            record_layout: RecordLayout::default(),
            backend: "fake".into(),
            load_us: 1,
            warm_up_us: 1,
            warm_up_runs: 1,
            run_us_p50: 1.0,
            golden_difference_max: None,
        };
        self.send(&FromWorker::Loaded(loaded.clone()));
        if self.is("loads_twice") {
            self.send(&FromWorker::Loaded(loaded));
        }
        if self.is("shadows_unasked") {
            self.send(&FromWorker::Shadowed(ShadowReport::default()));
        }
        if self.spec.validate_only {
            exit(0);
        }
    }

    fn refuse(&self, message: &str) {
        self.send(&FromWorker::Refused { message: message.into() });
        exit(3);
    }

    fn ask(&self, name: &str, buffer: &mut [u8]) {
        self.send(&FromWorker::NeedFile { name: name.into() });
        loop {
            if let Ok(got) = fdpass::recv(&self.socket, buffer) {
                match decode(&buffer[..got.bytes]) {
                    Ok(ToWorker::File { refused: Some(why), .. }) => return self.refuse(&why),
                    _ => return self.refuse("the file was handed over"),
                }
            }
            std::thread::sleep(POLL);
        }
    }

    fn on_record(&mut self, record: ToWorker) {
        match record {
            ToWorker::Take { .. } if self.is("dies_when_granted") => exit(DIED),
            ToWorker::Take { predecessor } => self.take = Some(predecessor),
            ToWorker::Drain if !self.is("ignores_orders") => {
                self.release();
                self.send(&FromWorker::Drained);
            }
            ToWorker::Retire if !self.is("ignores_orders") => exit(0),
            ToWorker::Shadow { steps, for_ms, .. } => self.shadow(steps, for_ms),
            ToWorker::Stats => {
                let mut stats = WorkerStats { sleeps: u64::from(self.holds), ..WorkerStats::default() };
                stats.outcomes.insert("generation".into(), u64::from(self.spec.generation));
                self.send(&FromWorker::Stats(stats));
            }
            _ => {}
        }
    }

    /// Reports a shadow that it never ran.
    fn shadow(&self, steps: Option<u32>, for_ms: Option<u64>) {
        let steps = steps.unwrap_or(for_ms.map_or(0, |ms| ms as u32));
        let mut out = OutputDifference { max: 0.25, mean: 0.125, worst_step: Some(7), nan: 0 };
        let mut report = ShadowReport { steps, state: "none".into(), ..ShadowReport::default() };
        report.new_run.p99_ns = 20_000;
        match self.misdeed.as_str() {
            "dies_shadowing" => exit(DIED),
            "hangs_shadowing" => std::thread::sleep(Duration::from_secs(60)),
            "shadows_slowly" => {
                self.send(&FromWorker::Shadowing { done: 1, of: steps });
                std::thread::sleep(Duration::from_millis(700));
            }
            "shadows_more_than_asked" => report.steps += 1,
            "shadows_a_difference_below_zero" => out.max = -1.0,
            "shadows_nothing" => report.steps = 0,
            "fails_on_recorded_steps" => {
                report.failed = 3;
                report.first_failure = Some("the guard refused output out".into());
            }
            "answers_nan" => out.nan = 2,
            _ => {}
        }
        let name = if self.is("shadows_another_output") { "other" } else { "out" };
        report.outputs.insert(name.into(), out);
        self.send(&FromWorker::Shadowed(report.clone()));
        if self.is("shadows_twice") {
            self.send(&FromWorker::Shadowed(report));
        }
    }

    fn release(&mut self) {
        self.holds = false;
        self.take = None;
        self.baton.release(self.spec.baton_entry, self.spec.ticket);
    }

    fn pass_baton(&mut self) {
        let granted = self.baton.granted() == self.spec.ticket;
        if self.holds && !granted && !self.is("keeps_the_baton") {
            self.release();
        }
        let Some(predecessor) = self.take else { return };
        let free = predecessor.is_none_or(|(entry, ticket)| self.baton.released(entry) == ticket);
        if !self.holds && granted && free && !self.is("never_takes") {
            self.holds = true;
            self.baton.take(self.spec.baton_entry, self.spec.ticket);
            self.send(&FromWorker::Taken);
            if self.is("dies_after_taking") {
                exit(DIED);
            }
        }
    }
}
