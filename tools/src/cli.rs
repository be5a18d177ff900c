//! The command line of `inferctl`: one subcommand for every command of the control socket, and the
//! three ordinary clients. The comments here are the help texts, the manual pages and the completions.

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use inferd_client::Queue;
use std::path::PathBuf;

/// Watch and steer inferd, and measure, replay or call its models.
///
/// Exit codes: 0 done; 1 refused, failed, or above the tolerance; 2 wrong arguments; 3 no daemon.
#[derive(Debug, Parser)]
#[command(name = "inferctl", version, max_term_width = 100)]
pub struct Cli {
    /// The daemon's runtime directory. Default: $INFERD_RUNTIME_DIR, then $XDG_RUNTIME_DIR/inferd if a daemon's
    /// socket is there, then /run/inferd.
    #[arg(long, global = true, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the daemon at a glance.
    Status(JsonArg),
    /// List models; details of one if it is named.
    Models(ModelsArgs),
    /// List sessions.
    Sessions(JsonArg),
    /// List every limit of the daemon.
    Limits(JsonArg),
    /// Show counters and latencies per model, measured by the workers.
    Stats(StatsArgs),
    /// Serve another model until the daemon ends (the configuration is not written).
    Load(LoadArgs),
    /// Stop serving a model; its sessions end.
    Unload(ModelArg),
    /// Make the next generation of a model, from the same file or another one; refused if the signature differs.
    Reload(ReloadArgs),
    /// Go back to the previous generation of a model, which was kept.
    Rollback(ModelArg),
    /// Load, check and warm up a model without serving it.
    Validate(ValidateArgs),
    /// End a session.
    Disconnect(DisconnectArgs),
    /// Answer what is in flight, refuse the rest, and end the daemon.
    Drain(JsonArg),
    /// Change the log level of the daemon and its workers.
    Log(LogArgs),
    /// Show the versions of this program and of the daemon.
    Version(JsonArg),
    /// Measure a model's latency as a client.
    Bench(BenchArgs),
    /// Feed a recording to a model and compare its answers.
    Replay(ReplayArgs),
    /// Run a model once.
    Call(CallArgs),
    /// Print the completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all of them into a folder.
    Man {
        /// Write one page per subcommand here.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// For commands without arguments of their own.
#[derive(Debug, Args)]
pub struct JsonArg {
    /// Print JSON, for scripts.
    #[arg(long)]
    pub json: bool,
}

/// A model, by its name.
#[derive(Debug, Args)]
pub struct ModelArg {
    /// The model's name.
    pub model: String,
    /// Print JSON, for scripts.
    #[arg(long)]
    pub json: bool,
}

/// `models`.
#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// Show this model with its signature, paths and warnings.
    pub model: Option<String>,
    /// Print JSON, for scripts.
    #[arg(long)]
    pub json: bool,
}

/// `stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Only this model.
    pub model: Option<String>,
    /// Print JSON, for scripts.
    #[arg(long)]
    pub json: bool,
}

/// `load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// The name that it shall have.
    pub model: String,
    /// The model file, or a folder with model.toml; the daemon opens it.
    pub path: PathBuf,
    /// The backend; chosen from the file when omitted.
    #[arg(long)]
    pub backend: Option<String>,
    /// Print JSON, for scripts.
    #[arg(long)]
    pub json: bool,
}

/// `reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// The model's name.
    pub model: String,
    /// Take this file or folder instead of the configured one; the daemon opens it.
    #[arg(long)]
    pub path: Option<PathBuf>,
    /// Print JSON, for scripts.
    #[arg(long)]
    pub json: bool,
}

/// `validate`.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// The model file, or a folder with model.toml; the daemon opens it.
    pub path: PathBuf,
    /// The backend; chosen from the file when omitted.
    #[arg(long)]
    pub backend: Option<String>,
    /// Print JSON, for scripts.
    #[arg(long)]
    pub json: bool,
}

/// `disconnect`.
#[derive(Debug, Args)]
pub struct DisconnectArgs {
    /// The session's number, as `inferctl sessions` shows it.
    pub session: u64,
    /// Print JSON, for scripts.
    #[arg(long)]
    pub json: bool,
}

/// `log`.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// A filter directive: error, warn, info, debug, trace, or for example inferd=trace.
    pub level: String,
    /// Print JSON, for scripts.
    #[arg(long)]
    pub json: bool,
}

/// How a session's requests are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QueueArg {
    /// Each request is run, in order.
    #[value(name = "in_order", alias = "in-order")]
    InOrder,
    /// Only the newest request is run.
    #[value(name = "latest")]
    Latest,
}

impl From<QueueArg> for Queue {
    fn from(queue: QueueArg) -> Queue {
        match queue {
            QueueArg::InOrder => Queue::InOrder,
            QueueArg::Latest => Queue::Latest,
        }
    }
}

/// `bench`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("pace").args(["rate", "flat_out"])))]
pub struct BenchArgs {
    /// The model's name.
    pub model: String,
    /// Requests per second of each client, at absolute times that do not wait for replies (open loop).
    #[arg(long, value_name = "HZ", default_value = "1000", value_parser = rate)]
    pub rate: f64,
    /// Instead of a rate: each client sends its next request when it has the reply (closed loop).
    #[arg(long)]
    pub flat_out: bool,
    /// How long to measure, in seconds.
    #[arg(long, value_name = "S", default_value = "5", value_parser = duration)]
    pub duration: f64,
    /// Clients, each a thread with a session of its own; their phases are spread.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub clients: u32,
    /// How requests are taken; default: as the model's configuration says.
    #[arg(long)]
    pub queue: Option<QueueArg>,
    /// Slots of each session; default: as many as the model's configuration allows.
    #[arg(long, value_name = "N")]
    pub slots: Option<u32>,
    /// Spinning before sleep, in microseconds; default: as long as the model's worker.
    #[arg(long, value_name = "US")]
    pub spin_us: Option<u32>,
    /// Deadline of each request after its submit, in microseconds.
    #[arg(long, value_name = "US", value_parser = clap::value_parser!(u64).range(1..))]
    pub deadline_us: Option<u64>,
    /// Give up waiting for a request after this time, in milliseconds.
    #[arg(long, value_name = "MS", default_value = "1000", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub timeout_ms: u64,
    /// Inputs: a recording with `in.<input>` arrays, fed in a circle. Default: zeros.
    #[arg(long, value_name = "FILE.npz")]
    pub input: Option<PathBuf>,
    /// Also write the figures to this file as JSON; `-`: print them instead of the tables.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// `replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The model's name.
    pub model: String,
    /// The recording: `in.<input>` and `out.<output>` arrays with a leading step axis, and optionally `reset`.
    #[arg(value_name = "FILE.npz")]
    pub file: PathBuf,
    /// Largest absolute difference allowed.
    #[arg(long, default_value = "1e-4", value_parser = tolerance)]
    pub tol: f64,
    /// Give up waiting for a step after this time, in milliseconds.
    #[arg(long, value_name = "MS", default_value = "60000", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub timeout_ms: u64,
    /// Print JSON, for scripts.
    #[arg(long)]
    pub json: bool,
}

/// A tensor and a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    /// The tensor's name.
    pub name: String,
    /// The file.
    pub path: PathBuf,
}

/// `call`.
#[derive(Debug, Args)]
pub struct CallArgs {
    /// The model's name.
    pub model: String,
    /// An input's value; once per input.
    #[arg(long, value_name = "NAME=FILE.npy", value_parser = named_file)]
    pub input: Vec<NamedFile>,
    /// Save this output instead of printing it; any number of times.
    #[arg(long, value_name = "NAME=FILE.npy", value_parser = named_file)]
    pub output: Vec<NamedFile>,
    /// Inputs that are not given are zeros.
    #[arg(long)]
    pub zeros: bool,
    /// Give up waiting after this time, in milliseconds.
    #[arg(long, value_name = "MS", default_value = "60000", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub timeout_ms: u64,
    /// Print JSON, for scripts.
    #[arg(long)]
    pub json: bool,
}

fn number(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (least..=most).contains(&value) { Ok(value) } else { Err(format!("must be from {least} to {most}")) }
}

fn rate(text: &str) -> Result<f64, String> {
    number(text, 0.001, 1e6)
}

fn duration(text: &str) -> Result<f64, String> {
    number(text, 0.001, 1e6)
}

fn tolerance(text: &str) -> Result<f64, String> {
    number(text, 0.0, f64::MAX)
}

fn named_file(text: &str) -> Result<NamedFile, String> {
    // Tensor names may hold '='; file names of arrays hardly ever do.
    match text.rsplit_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok(NamedFile { name: name.to_owned(), path: path.into() })
        }
        _ => Err("expected NAME=FILE.npy".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_control_socket_has_a_subcommand() {
        let cli = Cli::command();
        let names: Vec<&str> = cli.get_subcommands().map(clap::Command::get_name).collect();
        let agreed =
            "status models sessions limits stats load unload reload rollback validate disconnect drain log version";
        for name in agreed.split(' ') {
            assert!(names.contains(&name), "{name}");
        }
    }

    #[test]
    fn wrong_numbers_and_contradictions_are_refused() {
        let refused = |args: &str| Cli::try_parse_from(args.split(' ')).is_err();
        assert!(refused("inferctl bench go2 --rate 0"));
        assert!(refused("inferctl bench go2 --rate nan"));
        assert!(refused("inferctl bench go2 --rate 5 --flat-out"));
        assert!(refused("inferctl bench go2 --duration -1"));
        assert!(refused("inferctl replay go2 f.npz --tol -1"));
        assert!(refused("inferctl call go2 --input obs"));
        assert!(!refused("inferctl bench go2 --flat-out --clients 4 --queue latest --json -"));
        assert!(!refused("inferctl --runtime-dir /x replay go2 f.npz --tol 0"));
    }

    #[test]
    fn a_tensor_s_name_may_hold_what_a_file_s_name_does_not() {
        let want = NamedFile { name: "a=b/c:0".into(), path: "x.npy".into() };
        assert_eq!(named_file("a=b/c:0=x.npy"), Ok(want));
    }
}
