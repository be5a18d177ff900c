//! `make bench`: round trips beside the physical limit of the same run, and sizes.
//!
//! Every row runs in short blocks that alternate with the ping-pong (two pinned processes bouncing
//! one cache line) or, for sleeping rows, with a bare futex ping-pong, so that a figure has its ratio
//! to the limit under the same conditions. Separate processes, release build, default settings but
//! for affinity and spinning. Prints a table; asserts nothing: a slow day is not a failure.
//! `INFERD_BENCH_BLOCKS` sets the number of blocks, `INFERD_BENCH_JSON` a file for the figures;
//! `INFERD_BENCH_ROWS=torch` runs the rows of TorchScript alone.

#[path = "data_path/alloc.rs"]
mod alloc;
#[path = "data_path/limit.rs"]
mod limit;
#[path = "data_path/machine.rs"]
mod machine;
#[path = "data_path/recording.rs"]
mod recording;
#[path = "data_path/rows.rs"]
mod rows;
#[path = "data_path/torch.rs"]
mod torch;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|a| a == "--peer") {
        return limit::serve(&arguments[at + 1..]);
    }
    machine::print();
    let _turn = inferd_tests::turn();
    rows::run();
}
