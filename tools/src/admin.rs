//! The operator's commands: send, wait, show.
//!
//! With `--json` the daemon's answer is printed as it came, so that fields which are newer than this
//! program are not lost; otherwise it becomes a table. Long commands show their stage on a terminal.
//! Paths are made absolute here, for the daemon has another working directory.

use crate::cli::Command as Cli;
use crate::failure::Failure;
use crate::out::print;
use crate::progress::Bar;
use crate::{reload, show, verdict};
use inferd_client::AdminClient;
use inferd_client::control::{Command, ModelAnswer, VersionAnswer};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::path::Path;

/// Runs the command; `None` when it is none for the control socket.
///
/// # Errors
/// [`Failure`].
pub fn run(cli: &Cli, runtime_dir: Option<&Path>) -> Option<Result<(), Failure>> {
    let (command, json) = match request(cli)? {
        Ok(request) => request,
        Err(e) => return Some(Err(e)),
    };
    Some(match cli {
        Cli::Version(_) => version(runtime_dir, json),
        Cli::Models(args) => models(runtime_dir, args.model.as_deref(), json),
        Cli::Reload(args) => reload::run(runtime_dir, &args.model, &command, json),
        Cli::Rollback(args) => reload::run(runtime_dir, &args.model, &command, json),
        _ => ask(runtime_dir, &command).and_then(|answer| show_answer(&command, answer, json)),
    })
}

/// What goes to the daemon, and whether the answer shall be JSON.
fn request(cli: &Cli) -> Option<Result<(Command, bool), Failure>> {
    let request = match cli {
        Cli::Status(a) => (Command::Status {}, a.json),
        Cli::Models(a) => (Command::Models {}, a.json),
        Cli::Sessions(a) => (Command::Sessions {}, a.json),
        Cli::Limits(a) => (Command::Limits {}, a.json),
        Cli::Stats(a) => (Command::Stats { model: a.model.clone() }, a.json),
        Cli::Unload(a) => (Command::Unload { model: a.model.clone() }, a.json),
        Cli::Rollback(a) => (Command::Rollback { model: a.model.clone() }, a.json),
        Cli::History(a) => (Command::History { model: a.model.clone() }, a.json),
        Cli::Disconnect(a) => (Command::Disconnect { session: a.session }, a.json),
        Cli::Drain(a) => (Command::Drain {}, a.json),
        Cli::Log(a) => (Command::Log { level: a.level.clone() }, a.json),
        Cli::Version(a) => (Command::Version {}, a.json),
        Cli::Load(_) | Cli::Reload(_) | Cli::Validate(_) => return Some(request_with_path(cli)),
        Cli::Dump(_) | Cli::Init(_) | Cli::Doctor(_) => return None,
        Cli::Bench(_) | Cli::Replay(_) | Cli::Call(_) | Cli::Completions { .. } | Cli::Man { .. } => return None,
    };
    Some(Ok(request))
}

fn request_with_path(cli: &Cli) -> Result<(Command, bool), Failure> {
    Ok(match cli {
        Cli::Load(a) => {
            let (model, backend) = (a.model.clone(), a.backend.clone());
            (Command::Load { model, path: absolute(&a.path)?, backend }, a.json)
        }
        Cli::Reload(a) => {
            let path = a.path.as_deref().map(absolute).transpose()?;
            (Command::Reload(reload::request(a, path)), a.json)
        }
        Cli::Validate(a) => (Command::Validate { path: absolute(&a.path)?, backend: a.backend.clone() }, a.json),
        _ => unreachable!("only commands with a path come here"),
    })
}

fn absolute(path: &Path) -> Result<String, Failure> {
    let absolute =
        std::path::absolute(path).map_err(|source| Failure::Write { path: path.display().to_string(), source })?;
    let text = absolute.to_str().map(str::to_owned);
    text.ok_or_else(|| Failure::Usage(format!("{} is not UTF-8; rename it", path.display())))
}

fn ask(runtime_dir: Option<&Path>, command: &Command) -> Result<Value, Failure> {
    let mut client = AdminClient::connect(runtime_dir)?;
    if !matches!(command, Command::Load { .. } | Command::Validate { .. }) {
        return Ok(client.call(command)?);
    }
    let mut bar = Bar::new();
    let answer = client.call_with_progress(command, &mut |report| bar.report(report));
    bar.clear();
    Ok(answer?)
}

fn show_answer(command: &Command, answer: Value, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&answer);
    }
    let text = match command {
        Command::Status {} => show::status(&typed(answer, "status")?),
        Command::Models {} => show::models(&typed::<Vec<ModelAnswer>>(answer, "models")?),
        Command::Sessions {} => show::sessions(&typed::<Vec<_>>(answer, "sessions")?),
        Command::Limits {} => show::limits(&typed(answer, "limits")?),
        Command::Stats { .. } => show::stats(&typed(answer, "stats")?),
        Command::Load { .. } => show::model(&typed(answer, "load")?),
        Command::History { model } => verdict::history(model, &typed::<Vec<_>>(answer, "history")?),
        Command::Validate { .. } => show::validate(&typed(answer, "validate")?),
        Command::Unload { .. } => show::done(&typed(answer, "unload")?),
        Command::Disconnect { .. } => show::done(&typed(answer, "disconnect")?),
        Command::Drain {} => show::done(&typed(answer, "drain")?),
        Command::Log { .. } => show::done(&typed(answer, "log")?),
        Command::Version {} => show::version(Some(&typed(answer, "version")?)),
        Command::Reload(_) | Command::Rollback { .. } | Command::Dump { .. } => return print_json(&answer),
    };
    print(&text).map_err(Failure::stdout)
}

/// All models, or the details of one.
fn models(runtime_dir: Option<&Path>, name: Option<&str>, json: bool) -> Result<(), Failure> {
    let answer = ask(runtime_dir, &Command::Models {})?;
    let Some(name) = name else { return show_answer(&Command::Models {}, answer, json) };
    let all: Vec<Value> = typed(answer, "models")?;
    let found = all.iter().find(|m| m["model"] == *name);
    let Some(found) = found else {
        let names: Vec<&str> = all.iter().filter_map(|m| m["model"].as_str()).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(Failure::Unknown { what: format!("model {name:?}"), known: names });
    };
    if json {
        return print_json(found);
    }
    print(&show::model(&typed(found.clone(), "models")?)).map_err(Failure::stdout)
}

/// Says this program's version in any case, and the daemon's if there is one.
fn version(runtime_dir: Option<&Path>, json: bool) -> Result<(), Failure> {
    let answer = ask(runtime_dir, &Command::Version {});
    let daemon = answer.as_ref().ok();
    let text = if json {
        let (major, minor) = inferd_client::abi();
        let tools = json!({ "version": inferd_client::version(), "abi": format!("{major}.{minor}") });
        pretty(&json!({ "inferctl": tools, "inferd": daemon }))
    } else {
        let daemon = daemon.map(|v| typed::<VersionAnswer>(v.clone(), "version")).transpose()?;
        show::version(daemon.as_ref())
    };
    print(&text).map_err(Failure::stdout)?;
    answer.map(|_| ())
}

fn typed<T: DeserializeOwned>(answer: Value, command: &'static str) -> Result<T, Failure> {
    serde_json::from_value(answer).map_err(|source| Failure::Answer { command, source })
}

fn print_json(value: &Value) -> Result<(), Failure> {
    print(&pretty(value)).map_err(Failure::stdout)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;
    use clap::Parser;
    use inferd_client::control::{Reload, Shadow};

    fn sent(args: &str) -> Option<Command> {
        let cli = cli::Cli::try_parse_from(args.split(' ')).ok()?;
        Some(request(&cli.command)?.ok()?.0)
    }

    #[test]
    fn arguments_become_commands_and_relative_paths_absolute() {
        let here = std::env::current_dir().map(|d| d.join("a/m.onnx").display().to_string()).unwrap_or_default();
        let reload = Command::Reload(Reload { model: "go2".into(), path: Some(here), ..Reload::default() });
        assert_eq!(sent("inferctl reload go2 --path a/m.onnx"), Some(reload));
        let gated = Reload {
            model: "go2".into(),
            shadow: Some(Shadow::Seconds(2.5)),
            max_diff: [("a=b".to_owned(), 0.1), ("c".to_owned(), 2.0)].into(),
            max_latency_us: Some(500.0),
            dry_run: true,
            ..Reload::default()
        };
        let line = "inferctl reload go2 --shadow 2.5s --max-diff a=b=0.1 --max-diff c=2 --max-latency 500 --dry-run";
        assert_eq!(sent(line), Some(Command::Reload(gated)));
        assert_eq!(sent("inferctl history go2"), Some(Command::History { model: "go2".into() }));
        assert_eq!(sent("inferctl disconnect 7"), Some(Command::Disconnect { session: 7 }));
        assert_eq!(sent("inferctl bench go2"), None);
    }
}
