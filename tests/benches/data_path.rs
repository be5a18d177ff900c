//! `make bench BENCH=data_path`: round trips beside the physical limit of the same run, and sizes.
//!
//! Every row runs in short blocks that alternate with the ping-pong (two pinned processes bouncing
//! one cache line) or, for sleeping rows, with a bare futex ping-pong, so that a figure has its ratio
//! to the limit under the same conditions. Separate processes, release build, default settings but
//! for affinity and spinning. Prints a table, writes lines (`FORMAT.md`); asserts nothing: a slow day is not a failure.

#[path = "data_path/alloc.rs"]
mod alloc;
#[path = "data_path/counts.rs"]
mod counts;
#[path = "data_path/recording.rs"]
mod recording;
#[path = "data_path/rows.rs"]
mod rows;
#[path = "data_path/torch.rs"]
mod torch;

fn main() {
    inferd_tests::bench::limit::serve_if_asked();
    let _turn = inferd_tests::turn();
    rows::run(&inferd_tests::bench::Lines::new());
}
