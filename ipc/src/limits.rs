//! Every bound on a count, a size or a wait, in one place.
//!
//! Code refers to these names and never to a bare number; `inferctl limits` prints [`TABLE`], and a
//! test compares it with `docs/limits.md`. A limit that protects against a peer is enforced where the
//! peer's bytes are parsed. The C client repeats those it needs; `tests/` compares the two.

/// Longest model name in bytes; names are `[A-Za-z0-9._-]+`.
pub const MODEL_NAME_BYTES_MAX: usize = 63;
/// Longest tensor name in bytes.
pub const TENSOR_NAME_BYTES_MAX: usize = 63;
/// Most inputs, and most outputs, that a signature may have.
pub const TENSORS_MAX: usize = 64;
/// Most dimensions of a tensor.
pub const RANK_MAX: usize = 8;
/// Largest tensor in bytes.
pub const TENSOR_BYTES_MAX: u64 = 1 << 30;
/// Largest slot (header and tensors) in bytes.
pub const SLOT_BYTES_MAX: u64 = 1 << 30;
/// Largest region in bytes.
pub const REGION_BYTES_MAX: u64 = 1 << 32;
/// Longest table of element names and units of all tensors, in bytes.
pub const ELEMENT_TEXT_BYTES_MAX: usize = 64 << 10;
/// Most bytes of one half of a state region.
pub const STATE_BYTES_MAX: u64 = REGION_BYTES_MAX / 4;
/// Most slots of a session.
pub const SLOTS_MAX: u32 = 64;
/// Slots of a session when neither the client nor the configuration says.
pub const SLOTS_DEFAULT: u32 = 4;
/// Most models that a daemon serves.
pub const MODELS_MAX: usize = 64;
/// Most sessions on one model.
pub const SESSIONS_PER_MODEL_MAX: usize = 256;
/// Most sessions of one uid, unless configured lower.
pub const SESSIONS_PER_UID_MAX: usize = 128;
/// Most attaches of one uid that have not reached READY.
pub const HALF_ATTACHES_PER_UID_MAX: usize = 16;
/// Most connections of one uid on the attach socket.
pub const CONNECTIONS_PER_UID_MAX: usize = 160;
/// Most connections on the control socket.
pub const CONTROL_CONNECTIONS_MAX: usize = 64;
/// Sessions of one uid that have ended and whose request regions it still maps; each costs the daemon two descriptors.
pub const LINGERING_PER_UID_MAX: usize = 128;
/// Region bytes charged to one uid at most, unless configured.
pub const REGION_BYTES_PER_UID_MAX: u64 = 1 << 30;
/// Named segments of a process that can be guarded against being truncated at once: two per session, and room for those
/// in transit.
pub const SIGBUS_GUARDS_MAX: usize = 4096;
/// Largest step that a client's sequence number may make at once; 2^40 requests take 12 days at 1 MHz.
pub const REQUEST_JUMP_MAX: u64 = 1 << 40;
/// Largest request number; 2^62 requests take 146,000 years at 1 MHz.
pub const REQUEST_NUMBER_MAX: u64 = 1 << 62;
/// The number of the last request that a predecessor may have answered: past `request_number_max` a client gets one by
/// one only, each with a request that was served.
pub const ANSWERED_MAX: u64 = 1 << 63;
/// Connections to a socket of the daemon that wait to be accepted; the kernel refuses further ones.
pub const SOCKET_BACKLOG: i32 = 128;
/// Connections accepted on the attach socket per turn of the supervisor's loop.
pub const ATTACH_ACCEPTS_PER_TURN: usize = 32;
/// Accepting stops for this time when descriptors have run out.
pub const ACCEPT_PAUSE_MS: u64 = 100;
/// Interval at which the regions of ended sessions are looked at, first.
pub const LINGERING_LOOK_MS: u64 = 20;
/// Longest interval at which the regions of ended sessions are looked at.
pub const LINGERING_LOOK_MS_MAX: u64 = 500;
/// Threads that close sockets with descriptors in them at once; further sockets wait, and accepting pauses when they
/// have used up the descriptors.
pub const CLOSERS_MAX: usize = 256;
/// Sockets that may wait for such a thread; with more, nobody is accepted for a while.
pub const CLOSERS_WAITING_MAX: usize = 64;
/// Stack of a thread of the supervisor that closes sockets or reaps workers.
pub const HELPER_STACK_BYTES: usize = 64 << 10;
/// Events that the supervisor takes from the kernel at a time.
pub const EVENTS_PER_WAIT: usize = 64;
/// A client that stalls half-way through an attach is dropped after this.
pub const ATTACH_GRACE_MS: u64 = 2_000;
/// Largest difference between a client's monotonic clock and the daemon's at attach.
pub const CLOCK_SKEW_MS_MAX: u64 = 1_000;
/// A client whose clock is refused after a longer wait than this attaches again with a fresh reading: it was the wait.
pub const CLOCK_STALE_MS: u64 = 500;
/// Longest message in an attach answer, in bytes, with its terminating zero.
pub const ATTACH_MESSAGE_BYTES: usize = 384;
/// Longest record between supervisor and worker in bytes.
pub const WORKER_RECORD_BYTES_MAX: usize = 128 << 10;
/// Most descriptors with one record (`SCM_MAX_FD` of the kernel is 253).
pub const RECORD_FDS_MAX: usize = 8;
/// Records that may wait for a worker that does not read: every session of a model added and removed, and more.
pub const WORKER_RECORDS_WAITING_MAX: usize = 1024;
/// Records taken from one worker per turn of the supervisor's loop.
pub const WORKER_RECORDS_PER_TURN: usize = 32;
/// Workers must send their counters within this time.
pub const WORKER_STATS_MS: u64 = 1_000;
/// Longest line on the control socket in bytes.
pub const CONTROL_LINE_BYTES_MAX: usize = 1 << 20;
/// Most bytes of answers that wait for a slow reader of the control socket; then it is disconnected.
pub const CONTROL_OUTPUT_BYTES_MAX: usize = 16 << 20;
/// Most requests of one control connection that have no answer yet; further ones wait unread.
pub const CONTROL_REQUESTS_OPEN_MAX: usize = 16;
/// Connections accepted on the control socket per turn of the supervisor's loop.
pub const CONTROL_ACCEPTS_PER_TURN: usize = 16;
/// Bytes read from a control connection per turn of the supervisor's loop.
pub const CONTROL_READ_BYTES_PER_TURN: usize = 16 << 10;
/// Longest id of a control request in bytes; it is repeated in every answer.
pub const CONTROL_ID_BYTES_MAX: usize = 256;
/// Validations at a time: each is a process with a model in memory.
pub const VALIDATIONS_MAX: usize = 4;
/// A client waits this long for a command that only looks, or changes little, unless it says otherwise.
pub const COMMAND_TIMEOUT_MS: u64 = 10_000;
/// A client waits this long for a command that loads a model (the daemon's own limits are shorter unless configured).
pub const LONG_COMMAND_TIMEOUT_MS: u64 = 600_000;
/// Models that the service's status line names; the rest is counted.
pub const STATUS_MODELS_MAX: usize = 8;
/// Longest configuration file or manifest in bytes.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Most drop-in files of the configuration.
pub const CONFIG_DROPINS_MAX: usize = 256;
/// Most errors of a configuration that are kept: who reads more at once?
pub const CONFIG_ERRORS_MAX: usize = 100;
/// Largest model file, or external data file, in bytes.
pub const MODEL_FILE_BYTES_MAX: u64 = 16 << 30;
/// Most external data files of a model.
pub const MODEL_FILES_MAX: usize = 256;
/// Threads of the supervisor that copy model files into memory.
pub const STAGING_THREADS: usize = 2;
/// Bytes read, hashed and written at a time where a file is copied; large enough for disks, small enough for the cache.
pub const COPY_CHUNK_BYTES: usize = 256 << 10;
/// Most options of a model, and most symbolic dimensions.
pub const OPTIONS_MAX: usize = 64;
/// Longest file name of external data, in bytes.
pub const MODEL_FILE_NAME_BYTES_MAX: usize = 255;
/// Most golden pairs of a manifest.
pub const GOLDEN_PAIRS_MAX: usize = 16;
/// Longest header of an npy array in a recording; NumPy's own limit.
pub const NPY_HEADER_BYTES_MAX: u64 = 10_000;
/// Most elements that the header of an npy array may name, before its bytes are counted.
pub const NPY_ELEMENTS_MAX: u64 = 1 << 48;
/// Brackets within brackets in the header of an npy array: a dictionary with a tuple, and room for a structured dtype,
/// which is refused later by name.
pub const NPY_DEPTH_MAX: u32 = 4;
/// Largest array that `inferctl` reads from a file, in bytes: hours of recorded steps, yet no exhausted machine.
pub const ARRAY_BYTES_MAX: u64 = 4 << 30;
/// Bytes read of one pickle or code file of a TorchScript archive where its signature is guessed; a longer one is no
/// policy's.
pub const ARCHIVE_MEMBER_BYTES_MAX: u64 = 16 << 20;
/// Bytes at the end of a TorchScript file in which the names of its parts are looked for.
pub const ARCHIVE_DIRECTORY_BYTES: usize = 1 << 20;
/// Nested brackets and calls that the expression of a dimension may have.
pub const DIMENSION_DEPTH_MAX: u32 = 32;
/// Threads of one step of ONNX Runtime at most.
pub const STEP_THREADS_MAX: usize = 64;
/// Characters of an inference library's message that are shown; the rest is cut.
pub const BACKEND_MESSAGE_CHARS_MAX: usize = 700;
/// A worker must report a loaded and warmed model within this time, unless configured.
pub const LOAD_MS_DEFAULT: u64 = 120_000;
/// Longest `load_ms`.
pub const LOAD_MS_MAX: u64 = 3_600_000;
/// Warm-up ends after this time at the latest.
pub const WARM_UP_MS_MAX: u64 = 10_000;
/// Runs in one window of the warm-up.
pub const WARM_UP_WINDOW_RUNS: usize = 50;
/// Two consecutive windows whose medians differ by less than this many percent end the warm-up.
pub const WARM_UP_FLAT_PERCENT: u64 = 5;
/// Runs of a model after its worker was confined: what opens a file does so at the first.
pub const WARM_UP_RUNS_AGAIN: u32 = 3;
/// Runs of one form of a TorchScript model before the faster form is chosen.
pub const TRIAL_RUNS_MAX: usize = 100;
/// The least of them, however long they take.
pub const TRIAL_RUNS_MIN: usize = 8;
/// The first of them, which compile and do not count.
pub const TRIAL_RUNS_FIRST: usize = 2;
/// The time for them.
pub const TRIAL_MS: u64 = 1_000;
/// A step may take this long, unless configured; then the worker counts as hung.
pub const RUN_MS_DEFAULT: u64 = 1_000;
/// Longest `max_run_ms`.
pub const RUN_MS_MAX: u64 = 600_000;
/// Spinning before sleep when nothing is configured.
pub const SPIN_US_DEFAULT: u64 = 50;
/// Longest spinning before sleep.
pub const SPIN_US_MAX: u64 = 10_000_000;
/// Longest spinning before sleep of a SCHED_FIFO worker: real-time throttling stops everybody otherwise.
pub const SPIN_US_FIFO_MAX: u64 = 100_000;
/// Latencies longer than this say that a client's submit time is not a time; they are not recorded.
pub const QUEUE_NS_MAX: u64 = 600_000_000_000;
/// A sleeping client looks at its session socket after this time at the latest.
pub const CLIENT_SLEEP_SLICE_MS: u64 = 10;
/// A spinning client looks at its session socket once per this time.
pub const CLIENT_SPIN_CHECK_US: u64 = 1_000;
/// Replies that a client remembers for tickets that are asked about late, and submit times for replies.
pub const CLIENT_HISTORY: usize = 256;
/// Attempts to copy a `latest` request that is being overwritten, per turn.
pub const LATEST_RETRIES_MAX: u32 = 8;
/// Words that one `futex_waitv` call takes (kernel: FUTEX_WAITV_MAX).
pub const FUTEX_WAITV_MAX: usize = 128;
/// Doorbell bytes read from a session's socket per wake.
pub const DOORBELL_DRAIN_MAX: usize = 64;
/// Worker entries in a model's baton: live, kept, next, and room for those that are dying.
pub const BATON_ENTRIES: usize = 16;
/// Restarts of a model's worker before it is quarantined.
pub const RESTARTS_MAX: u32 = 5;
/// The restart count is forgotten after this time without a death.
pub const RESTART_WINDOW_MS: u64 = 60_000;
/// Wait before the first restart; doubles with each further one.
pub const RESTART_BACKOFF_MS: u64 = 10;
/// Longest wait before a restart.
pub const RESTART_BACKOFF_MS_MAX: u64 = 5_000;
/// Interval at which the supervisor answers requests of a recovering model.
pub const RECOVERY_SWEEP_MS: u64 = 10;
/// The same of a quarantined model, whose clients have been told by the state word.
pub const QUARANTINE_SWEEP_MS: u64 = 1_000;
/// Interval at which the supervisor looks whether a worker's step has taken too long, while it is idle: nobody wakes
/// more often for it.
pub const WATCH_IDLE_MS: u64 = 1_000;
/// Shortest such interval, while it is busy.
pub const WATCH_BUSY_MS: u64 = 10;
/// A worker that was killed must be gone within this time; else its sessions end.
pub const WORKER_EXIT_MS: u64 = 5_000;
/// A worker that closed its socket must be gone within this time.
pub const WORKER_HANG_UP_MS: u64 = 200;
/// A worker that has ended is left as it is for this time, which its threads need to be gone; not longer, for what is
/// not reaped counts.
pub const REAP_DELAY_MS: u64 = 250;
/// Workers that have ended and that the kernel has not let go of; with more, none is started.
pub const WORKERS_UNREAPED_MAX: usize = 256;
/// The old worker must let the baton go within this time after its step limit.
pub const SWAP_MS: u64 = 1_000;
/// How often a release is looked for before an old worker is granted the baton again.
pub const RESUME_LOOK_MS: u64 = 1;
/// A worker that waits for its predecessor's release looks at its own mailbox at this interval.
pub const RELEASE_LOOK_MS: u64 = 5;
/// Draining ends after this time, unless configured.
pub const DRAIN_MS_DEFAULT: u64 = 5_000;
/// Longest `drain_ms`.
pub const DRAIN_MS_MAX: u64 = 600_000;
/// What a start or a drain may still take when systemd's watchdog is told; told again long before it has passed. Loads
/// are bounded by `load_ms` and drains by `drain_ms`, which the unit's own timeouts cannot know.
pub const START_EXTENSION_MS: u64 = 60_000;
/// Backoff of a client that reattaches: first, and longest.
pub const REATTACH_BACKOFF_MS: u64 = 5;
/// Longest backoff of a client that reattaches.
pub const REATTACH_BACKOFF_MS_MAX: u64 = 250;
/// An attach takes at most this long, unless the client says otherwise.
pub const ATTACH_TIMEOUT_MS: u64 = 2_000;
/// A client's pause between two attempts to connect while the daemon's backlog is full.
pub const CONNECT_PAUSE_MS: u64 = 1;
/// Session faults logged per second; the rest is counted.
pub const FAULT_LOGS_PER_S: u32 = 10;
/// Begins and ends of sessions logged per second; the rest is counted.
pub const SESSION_LOGS_PER_S: u32 = 100;
/// Longest value in a line for the journal, in bytes: a datagram must fit into the socket's buffer.
pub const JOURNAL_VALUE_BYTES_MAX: usize = 32 << 10;

/// Steps that are kept of a model, unless configured.
pub const RECORD_STEPS_DEFAULT: u32 = 256;
/// Most `record_steps`.
pub const RECORD_STEPS_MAX: u32 = 65_536;
/// Bytes of a model's record region at most, unless configured.
pub const RECORD_BYTES_DEFAULT: u64 = 8 << 20;
/// Most `record_bytes`.
pub const RECORD_BYTES_MAX: u64 = 1 << 30;
/// A model whose recorded step is larger than this records nothing, unless configured.
pub const RECORD_STEP_BYTES_DEFAULT_MAX: u64 = 64 << 10;
/// Largest number of a recorded step; 2^62 steps take 146,000 years at 1 MHz.
pub const RECORD_SEQ_MAX: u64 = 1 << 62;
/// Most recorded steps that a shadow runs.
pub const SHADOW_STEPS_MAX: u32 = 1_000_000;
/// Longest that a shadow follows the live steps.
pub const SHADOW_MS_MAX: u64 = 3_600_000;
/// A shadow that follows the live steps looks for the next one at this interval.
pub const SHADOW_POLL_US: u64 = 500;
/// Least time between two progress records of a shadow.
pub const SHADOW_PROGRESS_MS: u64 = 100;
/// Most sessions whose own state a shadow keeps; steps of further ones are not run.
pub const SHADOW_SESSIONS_MAX: usize = 256;
/// Longest description of a shadow's first failed step, in bytes.
pub const SHADOW_FAILURE_BYTES_MAX: usize = 2_000;
/// A loading thread of idle priority is looked at after each such time, whether it gets a CPU at all.
pub const LOAD_PATIENCE_MS: u64 = 2_000;
/// Stack of the thread that loads, checks and warms up a model.
pub const LOADER_STACK_BYTES: usize = 8 << 20;
/// Recorded steps that a gate with bounds is judged on, unless it says how many.
pub const SHADOW_STEPS_DEFAULT: u32 = 64;
/// A shadow of so many steps waits this long for steps that are not recorded yet.
pub const SHADOW_WAIT_MS: u64 = 10_000;
/// Bytes of the store, unless configured.
pub const STORE_BYTES_DEFAULT: u64 = 8 << 30;
/// Most `store_bytes`.
pub const STORE_BYTES_MAX: u64 = 1 << 50;
/// Stored generations of one model, unless configured; the live one and the one before it always stay.
pub const STORE_GENERATIONS_DEFAULT: usize = 8;
/// Most `store_generations`.
pub const STORE_GENERATIONS_MAX: usize = 1_000;
/// At its end the daemon waits this long for what is on its way to the store.
pub const STORE_EXIT_MS: u64 = 2_000;
/// Entries of a model's history.
pub const HISTORY_ENTRIES_MAX: usize = 256;
/// Longest file of a history that is read.
pub const HISTORY_BYTES_MAX: u64 = 64 << 20;
/// A watched file must not change for this long before it is reloaded.
pub const WATCH_SETTLE_MS: u64 = 300;
/// Folders that are watched for one model.
pub const WATCH_FILES_MAX: usize = 16;
/// Interval at which memory is looked at while a previous generation is kept alive.
pub const MEMORY_LOOK_MS: u64 = 2_000;
/// Memory is short when less than this of it is available, the machine's or a control group's: kept workers are retired, and
/// a session whose regions would go below it is refused.
pub const MEMORY_SHORT_PERCENT: u64 = 5;
/// Control groups above the daemon whose limits of memory are looked at.
pub const CGROUP_LEVELS_MAX: usize = 16;
/// `models` waits this long for hashes of configured files that have changed.
pub const DRIFT_MS: u64 = 1_000;

/// A named limit, for `inferctl limits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The constant's name in lower case.
    pub name: &'static str,
    /// Its value, in the unit that ends the name.
    pub value: u64,
}

macro_rules! table {
    ($($name:ident),* $(,)?) => {
        /// All limits, in the order of this file.
        pub const TABLE: &[Limit] = &[$(Limit { name: stringify!($name), value: $name as u64 }),*];
    };
}
table!(
    MODEL_NAME_BYTES_MAX,
    TENSOR_NAME_BYTES_MAX,
    TENSORS_MAX,
    RANK_MAX,
    TENSOR_BYTES_MAX,
    SLOT_BYTES_MAX,
    REGION_BYTES_MAX,
    ELEMENT_TEXT_BYTES_MAX,
    STATE_BYTES_MAX,
    SLOTS_MAX,
    SLOTS_DEFAULT,
    MODELS_MAX,
    SESSIONS_PER_MODEL_MAX,
    SESSIONS_PER_UID_MAX,
    HALF_ATTACHES_PER_UID_MAX,
    CONNECTIONS_PER_UID_MAX,
    CONTROL_CONNECTIONS_MAX,
    LINGERING_PER_UID_MAX,
    REGION_BYTES_PER_UID_MAX,
    SIGBUS_GUARDS_MAX,
    REQUEST_JUMP_MAX,
    REQUEST_NUMBER_MAX,
    ANSWERED_MAX,
    SOCKET_BACKLOG,
    ATTACH_ACCEPTS_PER_TURN,
    ACCEPT_PAUSE_MS,
    LINGERING_LOOK_MS,
    LINGERING_LOOK_MS_MAX,
    CLOSERS_MAX,
    CLOSERS_WAITING_MAX,
    HELPER_STACK_BYTES,
    EVENTS_PER_WAIT,
    ATTACH_GRACE_MS,
    CLOCK_SKEW_MS_MAX,
    CLOCK_STALE_MS,
    ATTACH_MESSAGE_BYTES,
    WORKER_RECORD_BYTES_MAX,
    RECORD_FDS_MAX,
    WORKER_RECORDS_WAITING_MAX,
    WORKER_RECORDS_PER_TURN,
    WORKER_STATS_MS,
    CONTROL_LINE_BYTES_MAX,
    CONTROL_OUTPUT_BYTES_MAX,
    CONTROL_REQUESTS_OPEN_MAX,
    CONTROL_ACCEPTS_PER_TURN,
    CONTROL_READ_BYTES_PER_TURN,
    CONTROL_ID_BYTES_MAX,
    VALIDATIONS_MAX,
    COMMAND_TIMEOUT_MS,
    LONG_COMMAND_TIMEOUT_MS,
    STATUS_MODELS_MAX,
    CONFIG_BYTES_MAX,
    CONFIG_DROPINS_MAX,
    CONFIG_ERRORS_MAX,
    MODEL_FILE_BYTES_MAX,
    MODEL_FILES_MAX,
    STAGING_THREADS,
    COPY_CHUNK_BYTES,
    OPTIONS_MAX,
    MODEL_FILE_NAME_BYTES_MAX,
    GOLDEN_PAIRS_MAX,
    NPY_HEADER_BYTES_MAX,
    NPY_ELEMENTS_MAX,
    NPY_DEPTH_MAX,
    ARRAY_BYTES_MAX,
    ARCHIVE_MEMBER_BYTES_MAX,
    ARCHIVE_DIRECTORY_BYTES,
    DIMENSION_DEPTH_MAX,
    STEP_THREADS_MAX,
    BACKEND_MESSAGE_CHARS_MAX,
    LOAD_MS_DEFAULT,
    LOAD_MS_MAX,
    WARM_UP_MS_MAX,
    WARM_UP_WINDOW_RUNS,
    WARM_UP_FLAT_PERCENT,
    WARM_UP_RUNS_AGAIN,
    TRIAL_RUNS_MAX,
    TRIAL_RUNS_MIN,
    TRIAL_RUNS_FIRST,
    TRIAL_MS,
    RUN_MS_DEFAULT,
    RUN_MS_MAX,
    SPIN_US_DEFAULT,
    SPIN_US_MAX,
    SPIN_US_FIFO_MAX,
    QUEUE_NS_MAX,
    CLIENT_SLEEP_SLICE_MS,
    CLIENT_SPIN_CHECK_US,
    CLIENT_HISTORY,
    LATEST_RETRIES_MAX,
    FUTEX_WAITV_MAX,
    DOORBELL_DRAIN_MAX,
    BATON_ENTRIES,
    RESTARTS_MAX,
    RESTART_WINDOW_MS,
    RESTART_BACKOFF_MS,
    RESTART_BACKOFF_MS_MAX,
    RECOVERY_SWEEP_MS,
    QUARANTINE_SWEEP_MS,
    WATCH_IDLE_MS,
    WATCH_BUSY_MS,
    WORKER_EXIT_MS,
    WORKER_HANG_UP_MS,
    REAP_DELAY_MS,
    WORKERS_UNREAPED_MAX,
    SWAP_MS,
    RESUME_LOOK_MS,
    RELEASE_LOOK_MS,
    DRAIN_MS_DEFAULT,
    DRAIN_MS_MAX,
    START_EXTENSION_MS,
    REATTACH_BACKOFF_MS,
    REATTACH_BACKOFF_MS_MAX,
    ATTACH_TIMEOUT_MS,
    CONNECT_PAUSE_MS,
    FAULT_LOGS_PER_S,
    SESSION_LOGS_PER_S,
    JOURNAL_VALUE_BYTES_MAX,
    RECORD_STEPS_DEFAULT,
    RECORD_STEPS_MAX,
    RECORD_BYTES_DEFAULT,
    RECORD_BYTES_MAX,
    RECORD_STEP_BYTES_DEFAULT_MAX,
    RECORD_SEQ_MAX,
    SHADOW_STEPS_MAX,
    SHADOW_MS_MAX,
    SHADOW_POLL_US,
    SHADOW_PROGRESS_MS,
    SHADOW_SESSIONS_MAX,
    SHADOW_FAILURE_BYTES_MAX,
    LOAD_PATIENCE_MS,
    LOADER_STACK_BYTES,
    SHADOW_STEPS_DEFAULT,
    SHADOW_WAIT_MS,
    STORE_BYTES_DEFAULT,
    STORE_BYTES_MAX,
    STORE_GENERATIONS_DEFAULT,
    STORE_GENERATIONS_MAX,
    STORE_EXIT_MS,
    HISTORY_ENTRIES_MAX,
    HISTORY_BYTES_MAX,
    WATCH_SETTLE_MS,
    WATCH_FILES_MAX,
    MEMORY_LOOK_MS,
    MEMORY_SHORT_PERCENT,
    CGROUP_LEVELS_MAX,
    DRIFT_MS,
);
