//! `inferctl doctor`: looks at an installation as a colleague would, and says what to do about each finding.
//!
//! It only reads: units and sockets, groups, the limits that the configuration needs, the kernel, the CPUs. A *fault*
//! keeps something from working and makes the exit code 1; a *hint* costs latency or safety; the rest is well. What can
//! be judged from text is judged in [`judge`], which tests feed with machines that do not exist; what asks the system is
//! in [`machine`].

pub mod judge;
pub mod machine;

use crate::cli::JsonArg;
use crate::failure::Failure;
use crate::out;
use machine::Machine;
use serde::Serialize;
use std::path::Path;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but slower or less safe than it could.
    Hint,
    /// Does not work.
    Fault,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad.
    pub level: Level,
    /// What was looked at.
    pub about: &'static str,
    /// What was found.
    pub what: String,
    /// What to do; empty when it is well.
    pub remedy: String,
}

impl Finding {
    pub(crate) fn ok(about: &'static str, what: impl Into<String>) -> Finding {
        Finding { level: Level::Ok, about, what: what.into(), remedy: String::new() }
    }

    pub(crate) fn hint(about: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { level: Level::Hint, about, what: what.into(), remedy: remedy.into() }
    }

    pub(crate) fn fault(about: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { level: Level::Fault, about, what: what.into(), remedy: remedy.into() }
    }
}

/// Looks at everything and shows it. True if there is no fault.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(args: &JsonArg, runtime_dir: Option<&Path>) -> Result<bool, Failure> {
    let machine = Machine::here(runtime_dir);
    let mut findings = judge::units(&machine);
    findings.extend(judge::sockets(&machine));
    findings.extend(judge::groups(&machine));
    findings.extend(judge::limits(&machine));
    findings.extend(judge::kernel(&machine));
    findings.extend(judge::cpus(&machine));
    findings.extend(machine::daemon(runtime_dir));
    let sound = findings.iter().all(|finding| finding.level != Level::Fault);
    let text = if args.json {
        let json = serde_json::to_string_pretty(&findings);
        json.map_err(|source| Failure::Answer { command: "doctor", source })? + "\n"
    } else {
        shown(&findings)
    };
    out::print(&text).map_err(Failure::stdout)?;
    Ok(sound)
}

fn shown(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.level {
            Level::Ok => "ok   ",
            Level::Hint => "hint ",
            Level::Fault => "FAULT",
        };
        text += &format!("{mark} {}: {}\n", finding.about, out::plain(&finding.what));
        if !finding.remedy.is_empty() {
            text += &format!("      -> {}\n", finding.remedy);
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    text += &format!("{} well, {} hints, {} faults\n", count(Level::Ok), count(Level::Hint), count(Level::Fault));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_shows_what_to_do_and_the_sum_comes_last() {
        let findings = [
            Finding::ok("attach.sock", "group inferd, mode 0660"),
            Finding::fault("control.sock", "mode 0666", "chmod 0660 /run/inferd/control.sock"),
        ];
        let want = "\
ok    attach.sock: group inferd, mode 0660
FAULT control.sock: mode 0666
      -> chmod 0660 /run/inferd/control.sock
1 well, 0 hints, 1 faults
";
        assert_eq!(shown(&findings), want);
    }
}
