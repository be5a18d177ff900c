//! Counting system calls of running processes with strace, for the claim that a request makes none.
//!
//! strace may be missing, or tracing forbidden: ask [`has_strace`] first and skip by name.

use crate::ms;
use std::process::{Command, Stdio};

/// System calls that all threads of a process make while `work` runs, counted by strace.
///
/// # Panics
/// When strace cannot attach.
pub fn system_calls(pid: u32, dir: &std::path::Path, work: impl FnOnce()) -> u64 {
    let file = dir.join(format!("strace.{pid}"));
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-p", &pid.to_string(), "-o"])
        .arg(&file)
        .stderr(Stdio::null())
        .spawn()
        .expect("strace is there");
    let status = format!("/proc/{pid}/status");
    crate::within(ms(3000), "strace is attached", || {
        std::fs::read_to_string(&status).is_ok_and(|s| s.contains(&format!("TracerPid:\t{}", strace.id())))
    });
    std::thread::sleep(ms(100));
    work();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(strace.id() as i32), nix::sys::signal::Signal::SIGINT).ok();
    strace.wait().ok();
    std::fs::read_to_string(&file).unwrap_or_default().lines().filter(|l| l.contains('(')).count() as u64
}

/// Whether strace is here and may trace.
#[must_use]
pub fn has_strace() -> bool {
    let ran = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    ran.is_ok_and(|s| s.success())
}
