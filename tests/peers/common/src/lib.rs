//! What every peer agrees on: the rows, the model behind the server, and how the harness drives both ends.
//!
//! A peer is a program with two roles. `serve PEER ROW POLICY` says `ready ADDRESS REQUEST_BYTES REPLY_BYTES` on stdout, reads
//! `run` and `rest` on stdin ([`Gate`]) and ends with it. `ask PEER ROW ADDRESS REQUEST_BYTES REPLY_BYTES` makes one call, says
//! `ready HEX` (its reply), and for every line COUNT measures a block: it says COUNT and then as many round trips in
//! nanoseconds, eight bytes each. What the clock sees is what a control loop would wait for: from an observation in the caller's
//! memory to an action in the caller's memory. Every reply is compared with its request, outside of the clock's readings.
//! The transports are the peers' own; affinity comes from whoever starts the process.

mod gate;
mod model;

pub use gate::Gate;
pub use inferd_ipc::sys::now_ns;
pub use model::Model;

use std::io::{BufRead, Write};

/// What a peer's functions fail with: said on stderr, and the harness reports the row as not run.
pub type Failure = Box<dyn std::error::Error>;

/// What is sent and what comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// 64 bytes, and the same 64 back.
    Echo64,
    /// 1 KiB, and its first 256 bytes back.
    Echo1k,
    /// A VGA image of 921,600 bytes, and its first 256 back.
    Image,
    /// The observation of a quadruped's policy, and its action.
    Go2,
}

impl Row {
    /// Every row, in the order of the table.
    pub const ALL: [Row; 4] = [Row::Echo64, Row::Echo1k, Row::Image, Row::Go2];

    /// Its word on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Row::Echo64 => "echo64",
            Row::Echo1k => "echo1k",
            Row::Image => "image",
            Row::Go2 => "go2",
        }
    }

    /// Its title in the table.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Row::Echo64 => "echo 64 B / 64 B",
            Row::Echo1k => "echo 1 KiB / 256 B",
            Row::Image => "echo 921,600 B / 256 B",
            Row::Go2 => "Go2 policy",
        }
    }

    /// Bytes of a request and of a reply; `None` where the policy's file says it.
    #[must_use]
    pub fn echo_bytes(self) -> Option<(usize, usize)> {
        match self {
            Row::Echo64 => Some((64, 64)),
            Row::Echo1k => Some((1024, 256)),
            Row::Image => Some((921_600, 256)),
            Row::Go2 => None,
        }
    }

    /// The observation that every client sends: sevens, or 0.1 in every element of the policy's.
    #[must_use]
    pub fn observation(self, bytes: usize) -> Vec<u8> {
        match self {
            Row::Go2 => 0.1f32.to_le_bytes().into_iter().cycle().take(bytes).collect(),
            _ => vec![7; bytes],
        }
    }
}

/// A client of a peer.
pub trait Client {
    /// Sends an observation and waits for the action.
    ///
    /// # Errors
    /// Whatever went wrong: the row ends.
    fn call(&mut self, observation: &[u8], action: &mut [u8]) -> Result<(), Failure>;
}

/// How a peer's two ends are started: the server's loop, and a client of the server at this address. Sizes are those of a
/// request and a reply in bytes.
pub struct Peer {
    /// Its word on a command line.
    pub name: &'static str,
    /// Serves the model until the gate says stop. To be called `ready` with the address.
    pub serve: fn(Model, &Gate, &dyn Fn(&str)) -> Result<(), Failure>,
    /// Connects.
    pub connect: fn(&str, usize, usize) -> Result<Box<dyn Client>, Failure>,
}

/// The `main` of a program with these peers.
#[must_use]
pub fn run(peers: &[Peer]) -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let find = |name: &str| peers.iter().find(|p| p.name == name).ok_or(format!("no peer {name:?} in this program"));
    let row = |name: &str| Row::ALL.into_iter().find(|r| r.name() == name).ok_or(format!("no row {name:?}"));
    let done = (|| match words[..] {
        ["serve", peer, name, policy] => serve(find(peer)?, row(name)?, policy),
        ["ask", peer, name, address, request, reply] => {
            ask(find(peer)?, row(name)?, address, request.parse()?, reply.parse()?)
        }
        _ => Err("usage: serve PEER ROW POLICY | ask PEER ROW ADDRESS REQUEST_BYTES REPLY_BYTES".into()),
    })();
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}: {e}", words.join(" "));
            std::process::ExitCode::FAILURE
        }
    }
}

fn serve(peer: &Peer, row: Row, policy: &str) -> Result<(), Failure> {
    let model = Model::of(row, policy)?;
    let (request, reply) = model.bytes();
    let gate = Gate::on_stdin();
    (peer.serve)(model, &gate, &|address| {
        println!("ready {address} {request} {reply}");
    })
}

fn ask(peer: &Peer, row: Row, address: &str, request: usize, reply: usize) -> Result<(), Failure> {
    let mut client = (peer.connect)(address, request, reply)?;
    let (mut observation, mut action) = (row.observation(request), vec![0; reply]);
    client.call(&observation, &mut action)?;
    let first = action.clone();
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready {}", first.iter().map(|b| format!("{b:02x}")).collect::<String>())?;
    let mut calls = 0u64;
    for line in std::io::stdin().lines() {
        let count: usize = line?.trim().parse()?;
        let mut times = Vec::with_capacity(count * 8);
        // A tenth as many before, to wake the other side.
        for i in 0..count + count / 10 {
            calls += 1;
            if row != Row::Go2 {
                observation[..8].copy_from_slice(&calls.to_le_bytes());
            }
            let start = now_ns();
            client.call(&observation, &mut action)?;
            let took = now_ns() - start;
            let is_right = if row == Row::Go2 { action == first } else { action[..8] == calls.to_le_bytes() };
            if !is_right {
                return Err(format!("the reply is not that of call {calls}").into());
            }
            if i >= count / 10 {
                times.extend_from_slice(&took.to_le_bytes());
            }
        }
        writeln!(out, "{count}")?;
        out.write_all(&times)?;
        out.flush()?;
    }
    Ok(())
}

/// Reads a block that a client wrote: how many, and the round trips.
///
/// # Errors
/// When the stream ends or is not what a client writes.
pub fn read_block(from: &mut impl BufRead) -> Result<Vec<u64>, Failure> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let count: usize = line.trim().parse().map_err(|_| format!("the client said {line:?} instead of a block"))?;
    let mut bytes = vec![0; count * 8];
    from.read_exact(&mut bytes)?;
    Ok(bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes"))).collect())
}
