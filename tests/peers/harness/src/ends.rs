//! A peer's two processes: started on their CPUs, asked for blocks, ended. Whatever goes wrong with one is a reason in words.
//!
//! Both inherit the affinity of the thread that starts them, threads of theirs included. They live in a folder that goes with
//! the harness, and end with their stdin: a harness that is killed leaves no process behind.

use crate::limit::pin;
use crate::peers::{Peer, Places, Program};
use inferd_peers_common::{Row, read_block};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long a start may take: a Python peer imports half a second's worth of modules, more on a busy machine.
const START: Duration = Duration::from_secs(20);
/// How long a block may take.
const BLOCK: Duration = Duration::from_secs(20);
/// How long an end may take before the process is killed.
const END: Duration = Duration::from_secs(4);

enum Said {
    Line(String),
    Block(Vec<u64>),
}

struct End {
    child: Child,
    stdin: Option<ChildStdin>,
    said: Receiver<Result<Said, String>>,
    log: PathBuf,
}

impl End {
    fn start(words: &[PathBuf], arguments: &[&str], dir: &Path, cpu: usize) -> Result<End, String> {
        let log = dir.join(format!("{}.log", arguments[0]));
        let stderr = File::create(&log).map_err(|e| e.to_string())?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(arguments).current_dir(dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        pin(cpu);
        let mut child = command.spawn().map_err(|e| format!("{}: {e}", words[0].display()))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().ok_or("no pipe")?);
        let (say, said) = channel();
        std::thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            let mut line = String::new();
            let first = stdout.read_line(&mut line).map(|_| Said::Line(line)).map_err(|e| e.to_string());
            let mut goes_on = say.send(first).is_ok();
            while goes_on {
                let block = read_block(&mut stdout).map(Said::Block).map_err(|e| e.to_string());
                goes_on = block.is_ok() && say.send(block).is_ok();
            }
        });
        Ok(End { child, stdin, said, log })
    }

    fn hear(&mut self, limit: Duration) -> Result<Said, String> {
        match self.said.recv_timeout(limit) {
            Ok(Ok(Said::Line(line))) if line.is_empty() => Err(self.last_words()),
            Ok(said) => said,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Err(format!("no answer within {limit:?}")),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Err(self.last_words()),
        }
    }

    fn say(&mut self, line: &str) -> Result<(), String> {
        let stdin = self.stdin.as_mut().ok_or("already ended")?;
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).map_err(|_| self.last_words())
    }

    /// What it wrote last on stderr, which is why it ended.
    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it ended without a word").trim().to_owned()
    }

    /// Ends it; an error names one that had to be killed.
    fn end(&mut self) -> Result<(), String> {
        self.stdin = None;
        let end = Instant::now() + END;
        while Instant::now() < end {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(format!("{status}: {}", self.last_words())),
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        self.child.kill().ok();
        self.child.wait().ok();
        Err(format!("a process did not end by itself within {END:?}"))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if self.stdin.is_some() {
            let _ = self.end();
        }
    }
}

/// Where and with what a peer is measured.
pub struct Ground<'a> {
    pub places: &'a Places,
    pub dir: &'a Path,
    pub client_cpu: usize,
    pub server_cpu: usize,
    /// Where inferd's daemon listens, and the sizes of the policy's input and output.
    pub runtime_dir: &'a Path,
    pub policy_bytes: (usize, usize),
}

/// Both ends of a peer, ready.
pub struct Ends {
    client: End,
    server: Option<End>,
    polls: bool,
    /// The reply to the row's observation.
    pub first_reply: Vec<u8>,
}

impl Ends {
    /// Starts both and waits until a first call was answered.
    pub fn start(peer: &Peer, row: Row, ground: &Ground<'_>) -> Result<Ends, String> {
        let words = ground.places.command(peer.program)?;
        let dir = ground.dir.join(peer.name);
        std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        let started = Ends::start_in(peer, row, ground, &words, &dir);
        pin(ground.client_cpu);
        started
    }

    fn start_in(peer: &Peer, row: Row, ground: &Ground<'_>, words: &[PathBuf], dir: &Path) -> Result<Ends, String> {
        let policy = ground.places.policy.display().to_string();
        let (mut server, address) = if peer.program == Program::Inferd {
            let model = if peer.name.ends_with("asleep") { "asleep" } else { "spinning" };
            let (request, reply) = row.echo_bytes().unwrap_or(ground.policy_bytes);
            let at = format!("{}_{model}@{}", row.name(), ground.runtime_dir.display());
            (None, vec![at, request.to_string(), reply.to_string()])
        } else {
            let arguments = ["serve", peer.name, row.name(), &policy];
            let mut server = End::start(words, &arguments, dir, ground.server_cpu)?;
            let Said::Line(line) = server.hear(START)? else { return Err("its server said no address".into()) };
            let said: Vec<String> = line.split_whitespace().skip(1).map(str::to_owned).collect();
            (Some(server), said)
        };
        let [address, request, reply] = &address[..] else { return Err("its server said no address".into()) };
        if let Some(server) = server.as_mut().filter(|_| peer.polls) {
            server.say("run")?;
        }
        let arguments = ["ask", peer.name, row.name(), address, request, reply];
        let mut client = End::start(words, &arguments, dir, ground.client_cpu)?;
        let Said::Line(line) = client.hear(START)? else { return Err("its client said nothing".into()) };
        let first_reply = bytes_of(line.trim().strip_prefix("ready ").ok_or("its client is not ready")?)?;
        let mut ends = Ends { client, server, polls: peer.polls, first_reply };
        ends.rest()?;
        Ok(ends)
    }

    fn rest(&mut self) -> Result<(), String> {
        match &mut self.server {
            Some(server) if self.polls => server.say("rest"),
            _ => Ok(()),
        }
    }

    /// Round trips of a block.
    pub fn block(&mut self, count: usize) -> Result<Vec<u64>, String> {
        if let Some(server) = self.server.as_mut().filter(|_| self.polls) {
            server.say("run")?;
        }
        self.client.say(&count.to_string())?;
        let said = self.client.hear(BLOCK)?;
        self.rest()?;
        match said {
            Said::Block(times) => Ok(times),
            Said::Line(line) => Err(line),
        }
    }

    /// Ends both, the client first.
    pub fn end(mut self) -> Result<(), String> {
        let client = self.client.end();
        let server = self.server.as_mut().map_or(Ok(()), End::end);
        client.and(server)
    }
}

fn bytes_of(hex: &str) -> Result<Vec<u8>, String> {
    let byte = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).map_err(|e| e.to_string());
    if !hex.is_ascii() || !hex.len().is_multiple_of(2) {
        return Err("its client's first reply is no bytes".into());
    }
    (0..hex.len()).step_by(2).map(byte).collect()
}
