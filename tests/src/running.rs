//! What workers are running at this moment, as their daemon sees it: scenarios that need a request in its run wait for it.

use crate::daemon::Daemon;
use crate::within;
use inferd_ipc::baton::{BATON_BYTES, Baton, Running};
use inferd_ipc::layout::Backing;
use inferd_ipc::limits::BATON_ENTRIES;
use inferd_ipc::region::{self, Access};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::time::Duration;

impl Daemon {
    /// Batons of its models, on the supervisor's descriptors.
    fn batons(&self) -> Vec<Baton> {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.pid())).into_iter().flatten().flatten();
        let batons = descriptors.filter(|entry| {
            fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:inferd-baton"))
        });
        let map = |file: File| region::map(file.as_fd(), BATON_BYTES, Access::ReadOnly, Backing::Memfd);
        batons
            .filter_map(|entry| File::open(entry.path()).ok().and_then(|file| map(file).ok()).map(Baton::new))
            .collect()
    }

    /// Waits until some worker runs this request of some session, counted from 0 in each.
    ///
    /// # Panics
    /// When none does within ten seconds.
    pub fn until_runs(&self, request: u64) {
        let runs = |running: Option<Running>| running.is_some_and(|running| running.request == request);
        within(Duration::from_secs(10), &format!("a worker runs request {request}"), || {
            self.batons().iter().any(|baton| (0..BATON_ENTRIES as u32).any(|entry| runs(baton.running(entry))))
        });
    }
}
