//! Fuzz targets: every parser that reads what a client, a worker, an operator or a model's author wrote.
//!
//! One program, so that it is built and linked once: the variable `INFERD_FUZZ_TARGET` names the target, and the rest of the
//! command line is libFuzzer's. scripts/run_fuzz.sh runs them all. A target drives the shipped code as its caller in the product
//! does and asserts what the caller relies on; that nothing crashes, hangs or allocates more than 64 MiB, libFuzzer and
//! AddressSanitizer watch.
#![no_main]

mod control_plane;
mod files;
mod memory;
mod records;

use libfuzzer_sys::{Corpus, fuzz_target};
use std::sync::OnceLock;

/// A target: reads one input.
type Target = fn(&[u8]);

/// All targets. The corpus of one lies in fuzz/corpus, in the folder of its name.
const TARGETS: [(&str, Target); 13] = [
    ("attach", records::attach),
    ("from_worker", records::from_worker),
    ("to_worker", records::to_worker),
    ("ring", memory::ring),
    ("record_region", memory::record_region),
    ("state_and_baton", memory::state_and_baton),
    ("control", control_plane::control),
    ("config", control_plane::config),
    ("manifest", control_plane::manifest),
    ("golden", files::golden),
    ("recording", files::recording),
    ("onnx", files::onnx),
    ("torchscript", files::torchscript),
];

fn target() -> Target {
    static TARGET: OnceLock<Target> = OnceLock::new();
    *TARGET.get_or_init(|| {
        let wanted = std::env::var("INFERD_FUZZ_TARGET").unwrap_or_default();
        let names = TARGETS.map(|(name, _)| name).join(" ");
        if wanted == "list" {
            println!("{names}");
            std::process::exit(0);
        }
        // libfuzzer-sys aborts in the panic hook; what a parser catches itself is no crash. What reaches us is: it aborts
        // on a panic that comes out of the target, too.
        std::panic::set_hook(Box::new(|info| eprintln!("{info}")));
        let found = TARGETS.iter().find(|(name, _)| *name == wanted);
        found.unwrap_or_else(|| panic!("INFERD_FUZZ_TARGET={wanted:?} is none of: {names}")).1
    })
}

fuzz_target!(|data: &[u8]| -> Corpus {
    target()(data);
    Corpus::Keep
});
