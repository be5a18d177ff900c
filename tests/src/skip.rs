//! Skips have names: what a machine cannot test is said in one line, never passed over in silence.
//!
//! With `CI=true` a skip that `tests/allowed-skips.txt` does not list is a failure, so that coverage
//! cannot shrink unnoticed. The list holds one name per line; `#` begins a comment.

/// Prints `SKIP name: reason`; with `CI=true` panics unless the name is on the list. Returns, so that the caller returns.
///
/// # Panics
/// With `CI=true`, when the name is not on the list.
pub fn skip(name: &str, reason: &str) {
    println!("SKIP {name}: {reason}");
    eprintln!("SKIP {name}: {reason}");
    let in_ci = std::env::var("CI").is_ok_and(|v| v == "true");
    assert!(!in_ci || allowed(name), "CI=true and {name} is not in tests/allowed-skips.txt: {reason}");
}

fn allowed(name: &str) -> bool {
    include_str!("../allowed-skips.txt").lines().map(|l| l.split('#').next().unwrap_or("").trim()).any(|l| l == name)
}

/// Whether the worker of a backend with a library of its own can be tested: it is built, and `TORCH=0` or `ORT=0` does
/// not leave it out. Else says so under the test's name.
#[must_use]
pub fn has_worker(backend: &str, name: &str) -> bool {
    let switched_off = std::env::var(backend.to_uppercase()).is_ok_and(|v| v == "0");
    if switched_off || !crate::places::bin_dir().join(format!("inferd-worker-{backend}")).exists() {
        let why = if switched_off { "it is switched off" } else { "it is not built" };
        skip(name, &format!("inferd-worker-{backend} is not tested: {why} (make {backend})"));
        return false;
    }
    true
}

/// Whether this process may become other users, and see all processes.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
