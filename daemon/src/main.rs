//! `inferd`: reads the command line and the configuration, then serves until it is told to stop.
//!
//! Every refusal is one message on standard error and exit code 1; a drain that was asked for exits 0.
//! A bug aborts the process: a restart is cheap and honest, and clients reattach.

#![forbid(unsafe_code)]

use clap::Parser;
use inferd::config::{Config, ConfigErrors, Overrides};
use inferd::logs::Logs;
use inferd::supervisor::{Options, run};
use std::path::PathBuf;
use std::process::ExitCode;

/// Serves neural-network policies to robot processes through shared memory.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Configuration file, instead of INFERD_CONFIG or the default; drop-ins lie beside it in inferd.d/*.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration, the models' files and their workers, then exit
    #[arg(long)]
    check_config: bool,
    /// Directory of the sockets
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// Directory of the worker binaries
    #[arg(long, value_name = "DIR")]
    worker_dir: Option<PathBuf>,
    /// Directory of stored generations and their history
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// What to log: a level, or targets with levels ("info,inferd=debug")
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    abort_on_panic();
    match serve(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("inferd: {message}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: Arguments) -> Result<(), String> {
    let Arguments { config: config_path, check_config, runtime_dir, worker_dir, state_dir, log } = arguments;
    let overrides = Overrides { runtime_dir, worker_dir, state_dir };
    let config = Config::load(config_path.as_deref(), &overrides).map_err(|errors| message(&errors))?;
    if check_config {
        config.check().map_err(|errors| message(&errors))?;
        println!("the configuration is sound: {} models", config.models.len());
        return Ok(());
    }
    let logs = Logs::start(log.as_deref()).map_err(|error| error.to_string())?;
    run(Options { config, config_path, overrides, logs }).map_err(|error| error.to_string())
}

fn message(errors: &ConfigErrors) -> String {
    errors.to_string().replace('\n', "\ninferd: ")
}

/// A panic anywhere, helper threads included, ends the process: half a supervisor is worse than none.
fn abort_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        tracing::error!(%info, "a bug: aborting");
        std::process::abort();
    }));
}
