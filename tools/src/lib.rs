//! `inferctl`: the operator's commands, and three ordinary clients that measure, replay and call.
//!
//! An ordinary client of inferd: all it knows of the daemon is `inferd-client`. This library holds
//! everything but `main`, so that tables, recordings, percentiles and arguments are tested without a
//! daemon. Commands print to standard output in one piece; errors and progress go to standard error;
//! the exit code is the verdict (see [`failure`]).

#![forbid(unsafe_code)]

pub mod admin;
pub mod array;
pub mod bench;
pub mod call;
pub mod cli;
pub mod doctor;
pub mod dump;
pub mod failure;
pub mod init;
pub mod npz;
pub mod number;
pub mod out;
pub mod progress;
pub mod recording;
pub mod reload;
pub mod replay;
pub mod show;
pub mod verdict;

use clap::{CommandFactory, Parser};
use cli::{Cli, Command};
use failure::{EXIT_FAILED, Failure};
use std::path::Path;
use std::process::ExitCode;

/// Parses the arguments, runs the command, and says how it went.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_FAILED),
        Err(failure) => {
            eprintln!("inferctl: {}", out::plain(&failure.to_string()));
            ExitCode::from(failure.exit_code())
        }
    }
}

fn dispatch(cli: &Cli) -> Result<bool, Failure> {
    let runtime_dir = cli.runtime_dir.as_deref();
    if let Some(done) = admin::run(&cli.command, runtime_dir) {
        return done.map(|()| true);
    }
    match &cli.command {
        Command::Bench(args) => bench::run(args, runtime_dir),
        Command::Replay(args) => replay::run(args, runtime_dir),
        Command::Dump(args) => dump::run(args, runtime_dir).map(|()| true),
        Command::Call(args) => call::run(args, runtime_dir).map(|()| true),
        Command::Doctor(args) => doctor::run(args, runtime_dir),
        Command::Init(args) => init::run(args),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "inferctl", &mut text);
            out::print(&String::from_utf8_lossy(&text)).map_err(Failure::stdout).map(|()| true)
        }
        Command::Man { dir } => manual(dir.as_deref()).map(|()| true),
        _ => unreachable!("every other command is for the control socket"),
    }
}

fn manual(dir: Option<&Path>) -> Result<(), Failure> {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(Failure::stdout)?;
        return out::print(&String::from_utf8_lossy(&page)).map_err(Failure::stdout);
    };
    clap_mangen::generate_to(Cli::command(), dir)
        .map_err(|source| Failure::Write { path: dir.display().to_string(), source })
}
