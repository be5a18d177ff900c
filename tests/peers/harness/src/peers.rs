//! The peers: what each is called, which program is its two ends, and how its sides wait.

use std::path::PathBuf;

/// A peer's two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The daemon serves, `peer-plain` asks.
    Inferd,
    /// A program of this workspace.
    Rust(&'static str),
    /// `python/peer.py`.
    Python,
}

/// A line of the table.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Its word on the programs' command lines and in the JSON.
    pub name: &'static str,
    /// Its name in the table, with versions where a lock file does not say them.
    pub title: &'static str,
    /// How its sides wait for each other.
    pub waits: &'static str,
    pub program: Program,
    /// Whether its server polls, and must be told to rest.
    pub polls: bool,
}

impl Peer {
    const fn new(name: &'static str, title: &'static str, waits: &'static str, program: Program) -> Peer {
        Peer { name, title, waits, program, polls: false }
    }

    const fn polling(name: &'static str, title: &'static str, program: Program) -> Peer {
        Peer { name, title, waits: "polls", program, polls: true }
    }
}

/// What every other one is measured beside.
pub const INFERD: Peer = Peer::new("inferd", "inferd, spinning", "spins 2 ms", Program::Inferd);

const PLAIN: Program = Program::Rust("peer-plain");
const ICEORYX2: Program = Program::Rust("peer-iceoryx2");
const ZENOH: Program = Program::Rust("peer-zenoh");

/// Fastest kinds first: who spins, who sleeps in shared memory, who goes through the kernel, who goes through Python.
pub const PEERS: [Peer; 14] = [
    Peer::polling("raw-sync-busy", "shared_memory + raw_sync BusyEvent", PLAIN),
    Peer::polling("iceoryx2", "iceoryx2 request-response", ICEORYX2),
    Peer::new("inferd-asleep", "inferd, asleep", "futex", Program::Inferd),
    Peer::new("raw-sync-event", "shared_memory + raw_sync Event", "pthread condition", PLAIN),
    Peer::new("iceoryx2-events", "iceoryx2 request-response + events", "its listener", ICEORYX2),
    Peer::new("unix-stream", "Unix stream socket", "blocking read", PLAIN),
    Peer::new("unix-seqpacket", "Unix SOCK_SEQPACKET", "blocking recv", PLAIN),
    Peer::new("zenoh-shm", "zenoh query, shared memory", "tokio", ZENOH),
    Peer::new("zenoh-tcp", "zenoh query, loopback TCP", "tokio", ZENOH),
    Peer::new("grpc", "gRPC (tonic), Unix socket", "tokio", Program::Rust("peer-grpc")),
    Peer::new("gr00t", "ZeroMQ REQ/REP + msgpack (GR00T)", "zmq threads", Program::Python),
    Peer::new("openpi", "WebSocket + msgpack (openpi)", "asyncio, a thread", Program::Python),
    Peer::new("waitress", "HTTP + pickle, Flask on waitress", "select, threads", Program::Python),
    Peer::new("flask", "HTTP + pickle, Flask on werkzeug", "a thread a call", Program::Python),
];

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Places {
    /// The folder of this program: the other peers lie beside it.
    pub programs: PathBuf,
    /// The Python of the pinned environment, or why there is none.
    pub python: Result<PathBuf, String>,
    /// `python/peer.py`.
    pub script: PathBuf,
    pub policy: PathBuf,
}

impl Places {
    /// From the environment that scripts/bench_peers.sh sets.
    pub fn find() -> Result<Places, String> {
        let exe = std::env::current_exe().map_err(|e| e.to_string())?;
        let programs = exe.parent().ok_or("this program has no folder")?.to_owned();
        let var = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| !p.as_os_str().is_empty());
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let policy = var("INFERD_GO2_POLICY").ok_or("INFERD_GO2_POLICY names no policy; run `make bench-peers`")?;
        let python = var("INFERD_PEERS_PYTHON").ok_or_else(|| "its Python environment could not be made".to_owned());
        Ok(Places { programs, python, script: root.join("../python/peer.py"), policy })
    }

    /// The first words of a peer's command line, or why it cannot be run.
    pub fn command(&self, program: Program) -> Result<Vec<PathBuf>, String> {
        let built = |name: &str| {
            let path = self.programs.join(name);
            if path.exists() { Ok(vec![path]) } else { Err(format!("{name} was not built")) }
        };
        match program {
            Program::Inferd => built("peer-plain"),
            Program::Rust(name) => built(name),
            Program::Python => Ok(vec![self.python.clone()?, self.script.clone()]),
        }
    }
}
