//! Work on threads of idle priority: loading, warm-up, shadow runs.
//!
//! Where others are served meanwhile, they do not notice; where no CPU is ever idle, the work goes on as that of a nice
//! thread after a while. A lowered thread cannot come back without a right, so none of these ever serves.
//! [`run`] takes a thread for one piece of work. [`Bench`] keeps one that began before the worker was confined: it
//! has the kernel's account of itself open, which nobody can open later.

use crate::confine::{Confinement, Profile};
use crate::realtime;
use inferd_ipc::limits::{LOAD_PATIENCE_MS, LOADER_STACK_BYTES};
use inferd_ipc::sys::{self, ThreadTimes};
use inferd_ipc::worker_records::Confine;
use std::io;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// What a watcher must know of a thread.
struct Watched {
    number: i32,
    times: Option<Arc<ThreadTimes>>,
}

impl Watched {
    /// The calling thread.
    fn this() -> Watched {
        Watched { number: sys::thread_number(), times: ThreadTimes::of_this_thread().map(Arc::new) }
    }

    /// Takes the answer, and relieves the thread where no CPU is ever idle; none when it ended without one.
    fn answer<T>(&self, answers: &mpsc::Receiver<T>) -> Option<T> {
        let patience = Duration::from_millis(LOAD_PATIENCE_MS);
        loop {
            match answers.recv_timeout(patience) {
                Ok(answer) => return Some(answer),
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let times = self.times.as_ref().and_then(|times| times.read());
                    if realtime::relieve(self.number, times) {
                        return answers.recv().ok();
                    }
                }
            }
        }
    }
}

/// Runs something on a thread of its own that ends with it; of idle priority if so.
///
/// # Errors
/// No thread could be had.
pub fn run<T: Send>(name: &str, idle: bool, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let span = tracing::Span::current();
    std::thread::scope(|scope| {
        let (tell_who, who) = mpsc::channel();
        let (tell, answers) = mpsc::channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(LOADER_STACK_BYTES);
        let working = thread.spawn_scoped(scope, move || {
            let _span = span.entered();
            // Whoever listens waits for us; an answer that nobody takes is nobody's loss.
            let _ = tell_who.send(Watched::this());
            prepare(idle);
            let _ = tell.send(work());
        })?;
        let answer = match (idle, who.recv()) {
            (true, Ok(watched)) => watched.answer(&answers),
            _ => answers.recv().ok(),
        };
        // A panic outside the model has ended the process already.
        working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(answer.expect("a thread that did not panic has answered"))
    })
}

/// Lets the calling thread compute as the executor does; at idle priority if so.
fn prepare(idle: bool) {
    if idle {
        realtime::lower();
    }
    sys::flush_denormals_to_zero();
}

type Job = Box<dyn FnOnce(Option<Arc<ThreadTimes>>) + Send>;

/// A thread of idle priority that waits for work; it ends when this is dropped.
pub struct Bench {
    jobs: mpsc::Sender<Job>,
    watched: Watched,
}

impl Bench {
    /// Starts the thread, which gives up its files on the way.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn start(name: &str, wanted: Confine, profile: Profile) -> io::Result<Bench> {
        let span = tracing::Span::current();
        let (jobs, waiting) = mpsc::channel::<Job>();
        let (tell_who, who) = mpsc::channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(LOADER_STACK_BYTES);
        thread.spawn(move || {
            let _span = span.entered();
            let watched = Watched::this();
            let times = watched.times.clone();
            Confinement::enter_thread(wanted, profile);
            let _ = tell_who.send(watched);
            for job in waiting {
                prepare(true);
                job(times.clone());
            }
        })?;
        let watched = who.recv().map_err(|_| io::Error::other("the thread for shadow runs ended"))?;
        Ok(Bench { jobs, watched })
    }

    /// Runs something there, and waits for it.
    ///
    /// # Panics
    /// When the work did: outside of a model that has ended the process already.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce(Option<Arc<ThreadTimes>>) -> T + Send + 'static) -> T {
        let (tell, answers) = mpsc::channel();
        let job: Job = Box::new(move |times| {
            let _ = tell.send(work(times));
        });
        self.jobs.send(job).expect("the thread waits for work");
        self.watched.answer(&answers).expect("the thread has answered")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_aside_gives_its_answer_back_on_either_kind_of_thread() {
        assert_eq!(run("test", true, || 7).expect("a thread"), 7);
        assert_eq!(run("test", false, || 8).expect("a thread"), 8);
        let bench = Bench::start("test", Confine::Off, Profile::Strict).expect("a thread");
        assert_eq!(bench.run(|_| sys::thread_number()), bench.run(|_| sys::thread_number()), "it is one thread");
    }

    #[test]
    fn a_thread_of_a_bench_knows_how_long_it_ran() {
        let bench = Bench::start("test", Confine::Off, Profile::Strict).expect("a thread");
        // Kernels without an account of it are allowed; a clock that stands still is not.
        let spin = |times: Option<Arc<ThreadTimes>>| {
            let before = times.as_ref()?.read()?.0;
            let start = std::time::Instant::now();
            while start.elapsed() < Duration::from_millis(20) {
                std::hint::spin_loop();
            }
            Some((before, times.as_ref()?.read()?.0))
        };
        if let Some((before, after)) = bench.run(spin) {
            assert!(after > before, "{before} then {after}");
        }
    }
}
