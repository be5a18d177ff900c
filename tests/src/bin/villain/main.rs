//! A client that means harm, as a program: `villain DEED [key=value]...` against the daemon of `INFERD_RUNTIME_DIR`.
//!
//! Each deed does by bare records, words and system calls what no client library would, and ends with one line of JSON
//! on stdout that says what it managed to do; judging that is the scenario's business (`tests/tests/villains.rs`). It
//! exits with 0 unless the deed could not even be tried. `tests/hostile_c` is the same in C.

mod crowd;
mod flip;
mod fork;
mod linger;
mod matrix;
mod slow;

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What a deed is given.
pub struct Deed {
    /// Where the daemon is.
    pub dir: PathBuf,
    keys: BTreeMap<String, String>,
}

impl Deed {
    /// A number; `default` where it is not given.
    pub fn number(&self, key: &str, default: u64) -> u64 {
        self.keys.get(key).map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{key}={v} is no number")))
    }

    /// A word; empty where it is not given.
    pub fn word(&self, key: &str) -> &str {
        self.keys.get(key).map_or("", String::as_str)
    }
}

fn main() {
    let mut words = std::env::args().skip(1);
    let name = words.next().expect("villain DEED [key=value]...");
    let keys = words.filter_map(|w| w.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))).collect();
    let dir = PathBuf::from(std::env::var_os("INFERD_RUNTIME_DIR").expect("INFERD_RUNTIME_DIR is set"));
    let deed = Deed { dir, keys };
    let report: Value = match name.as_str() {
        "flip" => flip::run(&deed),
        "fork" => fork::run(&deed),
        "matrix" => matrix::run(&deed),
        "linger" => linger::run(&deed),
        "slow" => slow::run(&deed),
        "half" => crowd::half(&deed),
        "flood" => crowd::flood(&deed),
        "keep" => crowd::keep(&deed),
        "fill" => crowd::fill(&deed),
        "innocent" => crowd::innocent(&deed),
        other => panic!("no deed {other:?}"),
    };
    println!("{report}");
}
