//! Every step at which a test may end a process, and what makes a process pass it.
//!
//! `tests/tests/failpoints.rs` compares this list with the sources: a step that is in no campaign is a failure.

/// What makes a process pass a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The daemon starts.
    Start,
    /// A client attaches.
    Attach,
    /// Requests are served.
    Serve,
    /// A session ends.
    Leave,
    /// A model is reloaded, and its new generation begins to serve.
    Reload,
    /// The same, with a shadow run.
    Shadow,
    /// A worker dies while it runs a request, and another one takes its place.
    Death,
    /// The daemon drains.
    Drain,
}

/// A step: its name, and what makes a process pass it.
pub type Step = (&'static str, When);

/// Of a client, in Rust and in C.
pub const CLIENT: [Step; 14] = [
    ("client.connected", When::Attach),
    ("client.attach.sent", When::Attach),
    ("client.attached", When::Attach),
    ("client.mapped", When::Attach),
    ("client.mapped.sent", When::Attach),
    ("client.ready", When::Attach),
    ("client.begun", When::Serve),
    ("client.header", When::Serve),
    ("client.published", When::Serve),
    ("client.hinted", When::Serve),
    ("client.bell", When::Serve),
    ("client.polled", When::Serve),
    ("client.released", When::Serve),
    ("client.asleep", When::Serve),
];

/// Of a worker; those named `reply` are the supervisor's too, where it answers in a worker's place.
pub const WORKER: [Step; 32] = [
    ("worker.started", When::Reload),
    ("worker.load", When::Reload),
    ("worker.warming", When::Reload),
    ("worker.loaded", When::Reload),
    ("worker.loaded.sent", When::Reload),
    ("worker.session", When::Reload),
    ("worker.granted", When::Reload),
    ("worker.taken", When::Reload),
    ("worker.adopted", When::Reload),
    ("worker.taken.sent", When::Reload),
    ("worker.letting.go", When::Reload),
    ("worker.released", When::Reload),
    ("worker.retire", When::Reload),
    ("worker.shadow", When::Shadow),
    ("worker.shadowed", When::Shadow),
    ("worker.took", When::Serve),
    ("worker.running", When::Serve),
    ("worker.recorded", When::Serve),
    ("worker.ran", When::Serve),
    ("worker.written", When::Serve),
    ("worker.state.part", When::Serve),
    ("worker.state.stored", When::Serve),
    ("reply.header", When::Serve),
    ("reply.published", When::Serve),
    ("reply.bell", When::Serve),
    ("worker.rang", When::Serve),
    ("worker.ended", When::Serve),
    ("worker.asleep", When::Serve),
    ("worker.removed", When::Leave),
    ("worker.draining", When::Drain),
    ("worker.drain.answered", When::Drain),
    ("worker.drained", When::Drain),
];

/// Of the daemon.
pub const DAEMON: [Step; 37] = [
    ("daemon.starting", When::Start),
    ("daemon.started", When::Start),
    ("daemon.accepted", When::Attach),
    ("daemon.regions", When::Attach),
    ("daemon.made", When::Attach),
    ("daemon.attached", When::Attach),
    ("daemon.seal", When::Attach),
    ("daemon.sealed", When::Attach),
    ("daemon.handed", When::Attach),
    ("daemon.ready", When::Attach),
    ("daemon.reap", When::Leave),
    ("daemon.reaped", When::Leave),
    ("daemon.freed", When::Leave),
    ("daemon.stage", When::Reload),
    ("daemon.staged", When::Reload),
    ("daemon.launched", When::Reload),
    ("daemon.loaded", When::Reload),
    ("daemon.swap", When::Reload),
    ("daemon.granted", When::Reload),
    ("daemon.told", When::Reload),
    ("daemon.taken", When::Reload),
    ("daemon.kept", When::Reload),
    ("daemon.retiring", When::Reload),
    ("daemon.store.opened", When::Reload),
    ("daemon.store.text", When::Reload),
    ("daemon.store.renaming", When::Reload),
    ("daemon.store.renamed", When::Reload),
    ("daemon.shadowed", When::Shadow),
    ("daemon.worker.gone", When::Death),
    ("daemon.lost", When::Death),
    ("daemon.recovering", When::Death),
    ("daemon.restart", When::Death),
    ("daemon.recovered", When::Death),
    ("daemon.draining", When::Drain),
    ("daemon.drain.told", When::Drain),
    ("daemon.drained", When::Drain),
    ("daemon.ended", When::Drain),
];
