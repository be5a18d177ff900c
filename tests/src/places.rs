//! Where the built programs lie: one place to look, one message when something is not built.
//!
//! Test binaries live in `<target>/release/deps`; the programs one folder above. `INFERD_BIN_DIR`
//! overrides the folder (an installed tree), `INFERD_C_DRIVER` and `INFERD_PYTHON_DRIVER` those drivers.

use std::path::{Path, PathBuf};

/// The repository's root.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).to_owned()
}

/// The folder of the built programs.
///
/// # Panics
/// When this process has no path.
#[must_use]
pub fn bin_dir() -> PathBuf {
    std::env::var_os("INFERD_BIN_DIR").map_or_else(built_dir, PathBuf::from)
}

/// Where this process and all that was built with it lie.
fn built_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its own path");
    let dir = exe.parent().expect("a program lies in a folder");
    if dir.ends_with("deps") { dir.parent().unwrap_or(dir).to_owned() } else { dir.to_owned() }
}

/// A program of inferd's.
///
/// # Panics
/// When it is not built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    existing(bin_dir().join(name))
}

/// A program that only tests use, a driver say; they are not installed, but may have been built beside inferd's.
///
/// # Panics
/// When it is not built.
#[must_use]
pub fn test_program(name: &str) -> PathBuf {
    let beside = bin_dir().join(name);
    if beside.exists() { beside } else { existing(built_dir().join(name)) }
}

fn existing(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is not built; run `cargo build --release --workspace` first", path.display());
    path
}

/// Whether a worker program lies where the daemon looks: beside it, or in `libexec` of an installed tree.
#[must_use]
pub fn has_worker(name: &str) -> bool {
    let dir = bin_dir();
    dir.join(name).exists() || dir.join("../libexec/inferd").join(name).exists()
}

/// A built example; they are not installed.
///
/// # Panics
/// When this process has no path.
#[must_use]
pub fn example(name: &str) -> PathBuf {
    built_dir().join("examples").join(name)
}

/// The C driver, if it is built.
#[must_use]
pub fn c_driver() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("INFERD_C_DRIVER") {
        return Some(PathBuf::from(path));
    }
    let near = bin_dir().parent().map(|target| target.join("c/driver_c"));
    let candidates =
        [near, Some(repository().join("client-c/build/driver_c")), Some(repository().join("build/c/driver_c"))];
    candidates.into_iter().flatten().find(|p| p.exists())
}

/// The Python driver, if `scripts/python_driver.sh` could make it: it needs an interpreter with NumPy.
#[must_use]
pub fn python_driver() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("INFERD_PYTHON_DRIVER") {
        return Some(PathBuf::from(path));
    }
    bin_dir().parent().map(|target| target.join("python/driver_py")).filter(|p| p.exists())
}

/// Policies and goldens that are data to test with, not to commit; absent on a bare clone.
#[must_use]
pub fn shared() -> Option<PathBuf> {
    let dir = std::env::var_os("INFERD_SHARED").map_or_else(|| repository().join("../shared"), PathBuf::from);
    dir.join("golden").is_dir().then(|| dir.canonicalize().unwrap_or(dir))
}
