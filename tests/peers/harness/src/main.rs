//! `make bench-peers`: the systems that people use instead, beside inferd, on the same payloads.
//!
//! Every peer is two processes of their own, on the two CPUs that the ping-pong's processes have too, built as release from
//! its registry's packages, warmed, and measured in rounds with the ping-pong and with inferd's daemon (`measure`). Prints a
//! table for each row and asserts nothing about speed; a peer that could not be built or run is a line that says why, and
//! the others go on. `INFERD_BENCH_JSON` names a file for the figures (tests/benches/FORMAT.md),
//! `INFERD_BENCH_ROWS` and `INFERD_BENCH_PEERS` choose, `INFERD_PEERS_TIME_S` is the time for all of it.

mod ends;
mod measure;
mod peers;
mod report;

use ends::{Ends, Ground};
use inferd_client::{AttachOptions, Session};
use inferd_ipc::layout::Backing;
use inferd_peers_common::Row;
// The same ping-pong, and the same lines about the machine, as `make bench`.
use inferd_tests::bench::{limit, machine};
use inferd_tests::{Daemon, DaemonConfig, Model};
use limit::{Kind, Limit};
use measure::Budget;
use peers::{INFERD, PEERS, Peer, Places};
use report::Report;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// How long all of it may take, once built.
const TIME_S: f64 = 330.0;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|a| a == "--peer") {
        limit::serve(&arguments[at + 1..]);
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("inferd-peers: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Whether this variable chooses it: words with spaces or commas, of which it contains one, or nothing for all.
fn is_chosen(variable: &str, name: &str) -> bool {
    let chosen = std::env::var(variable).unwrap_or_default();
    let mut words = chosen.split([' ', ',']).filter(|w| !w.is_empty()).peekable();
    words.peek().is_none() || words.any(|w| name.contains(w))
}

/// A number from the environment.
fn number(variable: &str, otherwise: f64) -> Result<f64, String> {
    match std::env::var(variable) {
        Ok(text) => text.parse().map_err(|e| format!("{variable}: {e}")),
        Err(_) => Ok(otherwise),
    }
}

fn run() -> Result<(), String> {
    let places = Places::find()?;
    machine::print();
    let _turn = inferd_tests::turn();
    let dir = tempfile::Builder::new().prefix("inferd-peers.").tempdir().map_err(|e| e.to_string())?;
    let (client_cpu, server_cpu) = limit::cpus();
    // What a daemon may use, it has from us: it starts before anything is pinned.
    let daemon = start_daemon(&places.policy, server_cpu);
    let runtime_dir = daemon.runtime_dir();
    let policy_bytes = sizes(&runtime_dir)?;
    let ground =
        Ground { places: &places, dir: dir.path(), client_cpu, server_cpu, runtime_dir: &runtime_dir, policy_bytes };
    let mut report = Report::new();
    let time = Duration::from_secs_f64(number("INFERD_PEERS_TIME_S", TIME_S)?);
    let rows: Vec<Row> = Row::ALL.into_iter().filter(|r| is_chosen("INFERD_BENCH_ROWS", r.name())).collect();
    let peers: Vec<Peer> = PEERS.into_iter().filter(|p| is_chosen("INFERD_BENCH_PEERS", p.name)).collect();
    let mut budget = Budget::new(time, rows.len() * peers.len(), number("INFERD_BENCH_SCALE", 1.0)?);
    for row in rows {
        run_row(row, &peers, &ground, &mut budget, &mut report)?;
    }
    report.save()
}

fn run_row(
    row: Row,
    peers: &[Peer],
    ground: &Ground<'_>,
    budget: &mut Budget,
    report: &mut Report,
) -> Result<(), String> {
    limit::pin(ground.client_cpu);
    let mut limit = Limit::start(Kind::Spin, ground.server_cpu);
    let mut inferd = Ends::start(&INFERD, row, ground)?;
    let mut of_inferd = measure::Rounds::default();
    report.head(row);
    for peer in peers {
        let Some(share) = budget.next() else {
            report.peer(row, peer, Err("the time is over (INFERD_PEERS_TIME_S)".into()));
            continue;
        };
        let measured = Ends::start(peer, row, ground).and_then(|mut ends| {
            agree(row, &inferd.first_reply, &ends.first_reply)?;
            let measured = measure::measure(&mut limit, &mut inferd, &mut ends, share, &mut of_inferd);
            // A peer that was measured well but leaves a process or a failure behind is worth a word, not its figures.
            if let Err(e) = ends.end() {
                eprintln!("{}, {}: {e}", peer.name, row.title());
            }
            measured
        });
        report.peer(row, peer, measured);
    }
    if !of_inferd.is_empty() {
        report.inferd(row, &of_inferd.figures());
    }
    inferd.end()
}

/// Every peer gives inferd's answer: bytes of an echo, floats of the policy (two engines round differently).
fn agree(row: Row, ours: &[u8], theirs: &[u8]) -> Result<(), String> {
    const DIFFERENCE_MAX: f32 = 1e-4;
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
    };
    let same = if row == Row::Go2 {
        ours.len() == theirs.len()
            && floats(ours).iter().zip(floats(theirs)).all(|(a, b)| (a - b).abs() <= DIFFERENCE_MAX)
    } else {
        ours == theirs
    };
    if same { Ok(()) } else { Err("its answer is not inferd's".into()) }
}

/// A daemon with each row's model twice: with an executor that spins for 2 ms, and with one that sleeps at once.
fn start_daemon(policy: &Path, cpu: usize) -> Daemon {
    let mut config = DaemonConfig::new(Backing::Memfd);
    for row in Row::ALL {
        for (suffix, spin_us) in [("spinning", "2000"), ("asleep", "0")] {
            let name = format!("{}_{suffix}", row.name());
            let model = match row.echo_bytes() {
                Some((request, reply)) => {
                    Model::bare(&name).input("x", "u8", &[1, request as u64]).output("y", "u8", &[1, reply as u64])
                }
                None => Model::at(&name, policy),
            };
            config = config.model(model.config("cpu", &cpu.to_string()).config("spin_us", spin_us));
        }
    }
    config.start()
}

/// Bytes of the policy's input and output.
fn sizes(runtime_dir: &Path) -> Result<(usize, usize), String> {
    let options = AttachOptions::new(format!("{}_asleep", Row::Go2.name())).runtime_dir(runtime_dir);
    let session = Session::attach(options).map_err(|e| e.to_string())?;
    let signature = session.signature();
    Ok((signature.inputs[0].bytes() as usize, signature.outputs[0].bytes() as usize))
}
