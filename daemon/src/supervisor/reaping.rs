//! Taking leave of workers that have ended, on a thread that nobody waits for.
//!
//! Who waits for a process takes its entries below `/proc` away, and the kernel turns in a circle at that as long as one of
//! the process's threads is at the same work. A thread of idle priority, as every loader has one, may be at it for long
//! where no CPU is idle; the loop would not turn meanwhile, and would take the CPU from those who serve. So the loop reads
//! how a worker ended and leaves it as it is (`WNOWAIT`), and this thread waits for it: a little later, when those threads have
//! had their turn, and as nice as can be. What has not been waited for holds no more than its process id.

use inferd_ipc::limits::{HELPER_STACK_BYTES, REAP_DELAY_MS};
use inferd_ipc::sys;
use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// As nice as can be. Idle priority would fall behind where loaders take what is idle.
const NICE: i32 = 19;
/// What a status says of a process that left a core image.
const DUMPED: i32 = 0x80;

/// The supervisor's end of the thread.
#[derive(Debug)]
pub(super) struct Reaper {
    ended: Sender<(Child, Instant)>,
    left: Arc<AtomicUsize>,
}

impl Reaper {
    /// Starts the thread; it ends when this is dropped.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn start() -> io::Result<Reaper> {
        let (ended, waiting) = channel();
        let left = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&left);
        thread::Builder::new().name("reaper".to_owned()).stack_size(HELPER_STACK_BYTES).spawn(move || {
            // Where even this is forbidden, it goes on at the priority it has.
            let _ = sys::set_nice(NICE);
            reap(&waiting, &count);
        })?;
        Ok(Reaper { ended, left })
    }

    /// Waits, on the thread, for a process that has ended or was killed.
    pub fn reap(&self, child: Child) {
        self.left.fetch_add(1, Ordering::Relaxed);
        // The thread ends after this only.
        let _ = self.ended.send((child, Instant::now() + Duration::from_millis(REAP_DELAY_MS)));
    }

    /// How many have not been waited for.
    pub fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }
}

fn reap(waiting: &Receiver<(Child, Instant)>, left: &AtomicUsize) {
    for (mut child, due) in waiting {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // An error means that somebody else has waited for it: it is gone all the same.
        let _ = child.wait();
        left.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a process ended, which is still to be waited for; none while it runs.
///
/// # Errors
/// The kernel's: it is no child of ours, or was waited for.
pub(super) fn how_it_ended(child: &Child) -> nix::Result<Option<ExitStatus>> {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    // Nobody has waited for it as long as we hold it: the number is its own.
    let number = Pid::from_raw(child.id() as i32);
    loop {
        return match waitid(Id::Pid(number), look) {
            Err(Errno::EINTR) => continue,
            Err(errno) => Err(errno),
            Ok(WaitStatus::Exited(_, code)) => Ok(Some(ExitStatus::from_raw((code & 0xff) << 8))),
            Ok(WaitStatus::Signaled(_, signal, dumped)) => {
                Ok(Some(ExitStatus::from_raw(signal as i32 | if dumped { DUMPED } else { 0 })))
            }
            Ok(_) => Ok(None),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn started(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).spawn().expect("a shell")
    }

    fn within(what: &str, mut holds: impl FnMut() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < Duration::from_secs(20), "{what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn how_a_worker_ended_can_be_read_before_it_is_waited_for() {
        for script in ["exit 0", "exit 7", "exit 255", "kill -KILL $$", "kill -TERM $$"] {
            let mut child = started(script);
            within("it ends", || how_it_ended(&child).expect("our child").is_some());
            let read = how_it_ended(&child).expect("our child").expect("it is still there");
            assert_eq!(child.wait().expect("nobody else waits"), read, "{script}");
            assert_eq!(how_it_ended(&child), Err(Errno::ECHILD), "{script}");
        }
        let mut child = started("sleep 60");
        assert_eq!(how_it_ended(&child), Ok(None));
        child.kill().expect("it runs");
        child.wait().expect("nobody else waits");
    }

    #[test]
    fn the_reaper_waits_for_those_that_have_ended_and_for_those_that_will() {
        let reaper = Reaper::start().expect("a thread");
        let gone = started("exit 0");
        within("it ends", || how_it_ended(&gone).expect("our child").is_some());
        let children = [gone, started("sleep 0.05")];
        let ids = children.each_ref().map(|child| Id::Pid(Pid::from_raw(child.id() as i32)));
        children.into_iter().for_each(|child| reaper.reap(child));
        within("all are reaped", || reaper.left() == 0);
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        assert_eq!(ids.map(|id| waitid(id, look)), [Err(Errno::ECHILD); 2]);
    }
}
