//! Where the daemon's sockets are: the search for the runtime directory.
//!
//! In order: what the caller says; `$INFERD_RUNTIME_DIR`; `$XDG_RUNTIME_DIR/inferd` if the socket
//! exists there; `/run/inferd`. `RUNTIME_DIRECTORY` is ignored: a robot's service has one of its own.
//! A session searches once, at its first attach, and reattaches in the same place. An error lists
//! every place that was looked at and why it was not taken.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

/// Name of the socket for robot processes, in the runtime directory.
pub const ATTACH_SOCKET: &str = "attach.sock";
/// Name of the socket for operators, in the runtime directory.
pub const CONTROL_SOCKET: &str = "control.sock";

const SYSTEM_DIR: &str = "/run/inferd";

/// A place that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// Which rule named it: `runtime_dir option`, `$INFERD_RUNTIME_DIR`, `$XDG_RUNTIME_DIR/inferd`, `system default`.
    pub rule: &'static str,
    /// The directory; empty when the variable is not set.
    pub dir: PathBuf,
    /// Why it was not taken, or how connecting there failed; empty for the directory that is in use.
    pub why: String,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rule)?;
        if !self.dir.as_os_str().is_empty() {
            write!(f, " {}", self.dir.display())?;
        }
        if self.why.is_empty() { Ok(()) } else { write!(f, " ({})", self.why) }
    }
}

/// The directory that a search ended in, and all that was looked at, itself last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDir {
    /// The directory.
    pub dir: PathBuf,
    /// Every place looked at, in order; the last one is `dir`.
    pub tried: Vec<Tried>,
}

impl RuntimeDir {
    /// The list for [`crate::Error::NoDaemon`]: the last place failed for this reason.
    pub(crate) fn failed(&self, why: &dyn fmt::Display) -> Vec<Tried> {
        let mut tried = self.tried.clone();
        if let Some(last) = tried.last_mut() {
            last.why = why.to_string();
        }
        tried
    }
}

/// Finds the runtime directory for `socket` ([`ATTACH_SOCKET`] or [`CONTROL_SOCKET`]); never fails, for
/// whether a daemon listens there shows when connecting.
#[must_use]
pub fn runtime_dir(explicit: Option<&Path>, socket: &str) -> RuntimeDir {
    search(explicit, socket, |name| std::env::var_os(name), Path::exists)
}

fn search(
    explicit: Option<&Path>,
    socket: &str,
    env: impl Fn(&str) -> Option<OsString>,
    exists: impl Fn(&Path) -> bool,
) -> RuntimeDir {
    let mut tried = Vec::new();
    let take = |mut tried: Vec<Tried>, rule, dir: PathBuf| {
        tried.push(Tried { rule, dir: dir.clone(), why: String::new() });
        RuntimeDir { dir, tried }
    };
    let mut skip = |rule, dir, why: String| tried.push(Tried { rule, dir, why });
    if let Some(dir) = explicit {
        return take(Vec::new(), "runtime_dir option", dir.to_owned());
    }
    let set = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("INFERD_RUNTIME_DIR") {
        return take(Vec::new(), "$INFERD_RUNTIME_DIR", dir);
    }
    skip("$INFERD_RUNTIME_DIR", PathBuf::new(), "not set".to_owned());
    match set("XDG_RUNTIME_DIR").map(|dir| dir.join("inferd")) {
        Some(dir) if exists(&dir.join(socket)) => return take(tried, "$XDG_RUNTIME_DIR/inferd", dir),
        Some(dir) => skip("$XDG_RUNTIME_DIR/inferd", dir, format!("no {socket} there")),
        None => skip("$XDG_RUNTIME_DIR/inferd", PathBuf::new(), "not set".to_owned()),
    }
    take(tried, "system default", PathBuf::from(SYSTEM_DIR))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(vars: &[(&str, &str)], socket_in: &str) -> RuntimeDir {
        let env = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        search(None, ATTACH_SOCKET, env, |path| path.starts_with(socket_in))
    }

    #[test]
    fn the_environment_comes_first_then_the_users_socket_then_the_system() {
        let both = [("INFERD_RUNTIME_DIR", "/a"), ("XDG_RUNTIME_DIR", "/x")];
        assert_eq!(with(&both, "/x").dir, Path::new("/a"));
        assert_eq!(with(&both[1..], "/x").dir, Path::new("/x/inferd"));
        assert_eq!(with(&both[1..], "/none").dir, Path::new("/run/inferd"));
        assert_eq!(with(&[("INFERD_RUNTIME_DIR", "")], "/none").dir, Path::new("/run/inferd"));
    }

    #[test]
    fn a_service_s_own_runtime_directory_is_ignored() {
        assert_eq!(with(&[("RUNTIME_DIRECTORY", "/run/robot")], "/run/robot").dir, Path::new("/run/inferd"));
    }

    #[test]
    fn an_error_lists_all_that_were_tried() {
        let found = with(&[("XDG_RUNTIME_DIR", "/x")], "/none");
        let text: Vec<String> = found.failed(&"refused").iter().map(ToString::to_string).collect();
        let expected = [
            "$INFERD_RUNTIME_DIR (not set)",
            "$XDG_RUNTIME_DIR/inferd /x/inferd (no attach.sock there)",
            "system default /run/inferd (refused)",
        ];
        assert_eq!(text, expected);
    }
}
