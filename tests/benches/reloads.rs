//! `make bench BENCH=reloads`: what clients see of a thousand reloads in a row, and of a heavy model on their CPU.
//!
//! Windows with reloads alternate with windows without, in one run, so that every figure has its undisturbed twin. Four
//! clients send a thousand requests a second each; all answers are compared with their generation's. Prints a table;
//! asserts nothing about time. `INFERD_BENCH_ROWS` chooses rows by a part of their names, `INFERD_BENCH_RELOADS` the number of reloads
//! (a thousand at scale 8), `INFERD_BENCH_JSON` a file to which figures and the latency over time are appended (`FORMAT.md`).

#[path = "reloads/client.rs"]
mod client;
#[path = "reloads/priorities.rs"]
mod priorities;
#[path = "../tests/reference/mod.rs"]
mod reference;
#[path = "reloads/rows.rs"]
mod rows;

fn main() {
    let _turn = inferd_tests::turn();
    let lines = inferd_tests::bench::Lines::new();
    rows::run(&lines);
    priorities::run(&lines);
}
