//! `inferctl reload` and `rollback`: the transaction watched, and its verdict shown.
//!
//! A refusal is a verdict, not an accident: its figures go to standard output as those of an acceptance do, its reasons to
//! standard error, and the exit code is its own. With `--json` standard output has the daemon's answer, or its error
//! with the verdict as `data`, as they came.

use crate::cli::{ReloadArgs, Shadow};
use crate::failure::Failure;
use crate::out::print;
use crate::progress::Bar;
use crate::verdict;
use inferd_client::control::{Command, Reload, Shadow as Asked};
use inferd_client::{AdminClient, Error, verdict_of};
use serde_json::{Value, json};
use std::path::Path;

/// What `reload` asks the daemon for; `path` is absolute.
#[must_use]
pub fn request(args: &ReloadArgs, path: Option<String>) -> Reload {
    let shadow = args.shadow.map(|shadow| match shadow {
        Shadow::Steps(steps) => Asked::Steps(steps),
        Shadow::Seconds(seconds) => Asked::Seconds(seconds),
    });
    Reload {
        model: args.model.clone(),
        path,
        shadow,
        max_diff: args.max_diff.iter().map(|bound| (bound.name.clone(), bound.value)).collect(),
        max_latency_us: args.max_latency,
        dry_run: args.dry_run,
    }
}

/// Runs a reload or a rollback and shows what came of it.
///
/// # Errors
/// [`Failure`]; a refusal too.
pub fn run(runtime_dir: Option<&Path>, model: &str, command: &Command, json: bool) -> Result<(), Failure> {
    let mut client = AdminClient::connect(runtime_dir)?;
    let mut bar = Bar::new();
    let answer = client.call_with_progress(command, &mut |report| bar.report(report));
    bar.clear();
    let text = match &answer {
        Ok(answer) if json => pretty(answer),
        Ok(answer) => {
            let source = |source| Failure::Answer { command: "reload", source };
            verdict::reload(&serde_json::from_value(answer.clone()).map_err(source)?)
        }
        Err(Error::Command(refused)) if json => pretty(&json!({ "error": refused })),
        Err(error) => verdict_of(error).map_or(String::new(), |v| verdict::refused(model, &v)),
    };
    print(&text).map_err(Failure::stdout)?;
    Ok(answer.map(|_| ())?)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
