//! The command line of `inferctl`: one subcommand for every command of the control socket, and the
//! three ordinary clients. The comments here are the help texts, the manual pages and the completions.

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use inferd_client::Queue;
use std::path::PathBuf;

/// Watch and steer inferd, and measure, replay or call its models.
///
/// Exit codes: 0 done; 1 failed, or above the tolerance; 2 wrong arguments; 3 no daemon; 4 the daemon refused the model
/// (what was live still is).
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
    /// Make the next generation of a model, from the same file or another one, and show the verdict on it.
    ///
    /// It is loaded beside the live one, checked (signature, golden pairs), warmed up, and, with --shadow, run on the
    /// steps that the live generation was recorded with. Only then it takes the sessions over, between two steps.
    /// Whatever fails, the live generation answers on.
    Reload(ReloadArgs),
    /// Go back to the previous generation of a model, which was kept.
    Rollback(ModelArg),
    /// List the generations of a model that went live or were refused, newest first.
    History(ModelArg),
    /// Save the last recorded steps of a model to a file that `replay` takes and that serves as a golden pair.
    ///
    /// Works without a worker too: after a crash the file holds the observation that the worker died on.
    Dump(DumpArgs),
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
    /// Check the installation: units, sockets, groups, limits, kernel and CPUs, and say what to do.
    Doctor(JsonArg),
    /// Write a manifest skeleton from a model file: what the file says, and room for what it cannot say.
    Init(InitArgs),
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

/// `inferctl init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The model: .onnx, or TorchScript (.pt, .pth, .ts, .torchscript).
    pub file: PathBuf,
    /// Where to write the manifest; `-` prints it. Default: model.toml beside the model. Never overwrites.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
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
    /// Take this file or folder instead of the one that is live; the daemon opens it.
    #[arg(long, value_name = "FILE")]
    pub path: Option<PathBuf>,
    /// Run the candidate on recorded steps of the live generation, without answering anybody: that many of the most
    /// recent (64), or all that come within a time (5s). 0: none, whatever the configuration says.
    #[arg(long, value_name = "STEPS|SECONDSs", value_parser = shadow)]
    pub shadow: Option<Shadow>,
    /// Refuse the candidate if this output differs by more than VALUE from the recorded one, in any element of any step;
    /// once per output. Wants --shadow, here or in the configuration.
    #[arg(long, value_name = "NAME=VALUE", value_parser = named_bound)]
    pub max_diff: Vec<NamedBound>,
    /// Refuse the candidate if the 99th percentile of its runs on the recorded steps is above this, in microseconds.
    #[arg(long, value_name = "US", value_parser = microseconds)]
    pub max_latency: Option<f64>,
    /// Do everything but the swap: the verdict is shown, the live generation stays.
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON, for scripts.
    #[arg(long)]
    pub json: bool,
}

/// What a candidate is run on before it may take over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shadow {
    /// The most recent recorded steps, this many; 0 for none.
    Steps(u32),
    /// What is recorded within this time.
    Seconds(f64),
}

/// An output and how far it may differ.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedBound {
    /// The output's name.
    pub name: String,
    /// Largest absolute difference.
    pub value: f64,
}

/// `dump`.
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// The model's name.
    pub model: String,
    /// The file to write; it appears whole or not at all.
    #[arg(value_name = "FILE.npz")]
    pub file: PathBuf,
    /// Only the steps of this session, as `inferctl sessions` shows it.
    #[arg(long, value_name = "N")]
    pub session: Option<u64>,
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

fn microseconds(text: &str) -> Result<f64, String> {
    number(text, 0.001, 1e9)
}

fn shadow(text: &str) -> Result<Shadow, String> {
    match text.strip_suffix('s') {
        Some(seconds) => number(seconds, 0.001, 86_400.0).map(Shadow::Seconds),
        None => {
            text.parse().map(Shadow::Steps).map_err(|_| "expected a number of steps (64) or seconds (5s)".to_owned())
        }
    }
}

fn named_bound(text: &str) -> Result<NamedBound, String> {
    // Names of tensors may hold '='; numbers do not.
    let (name, value) = text.rsplit_once('=').filter(|(name, _)| !name.is_empty()).ok_or("expected NAME=VALUE")?;
    Ok(NamedBound { name: name.to_owned(), value: tolerance(value)? })
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
        let agreed = "status models sessions limits stats load unload reload rollback history validate disconnect drain log dump version";
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
        assert!(refused("inferctl reload go2 --shadow many"));
        assert!(refused("inferctl reload go2 --shadow -3"));
        assert!(refused("inferctl reload go2 --shadow 0s"));
        assert!(refused("inferctl reload go2 --max-diff action"));
        assert!(refused("inferctl reload go2 --max-diff action=-1"));
        assert!(refused("inferctl reload go2 --max-latency 0"));
        assert!(!refused("inferctl bench go2 --flat-out --clients 4 --queue latest --json -"));
        assert!(!refused("inferctl --runtime-dir /x replay go2 f.npz --tol 0"));
    }

    #[test]
    fn a_shadow_is_a_number_of_steps_or_of_seconds() {
        assert_eq!(shadow("64"), Ok(Shadow::Steps(64)));
        assert_eq!(shadow("0"), Ok(Shadow::Steps(0)));
        assert_eq!(shadow("2.5s"), Ok(Shadow::Seconds(2.5)));
        assert_eq!(named_bound("a=b=0.5"), Ok(NamedBound { name: "a=b".into(), value: 0.5 }));
    }

    #[test]
    fn a_tensor_s_name_may_hold_what_a_file_s_name_does_not() {
        let want = NamedFile { name: "a=b/c:0".into(), path: "x.npy".into() };
        assert_eq!(named_file("a=b/c:0=x.npy"), Ok(want));
    }
}
