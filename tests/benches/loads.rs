//! `make bench BENCH=loads`: many sessions, models, slots and bytes, and callers at a robot's rates.
//!
//! `data_path` has one caller that asks flat out; here is what happens to it when there is more of something, and what a
//! control loop sees that asks 50 to 1,000 times a second and sleeps in between. One thread drives all sessions of a row:
//! with two CPUs more would measure the scheduler. Prints tables, writes lines (`FORMAT.md`); asserts nothing about speed.

#[path = "loads/many.rs"]
mod many;
#[path = "loads/open_loop.rs"]
mod open_loop;
#[path = "loads/payload.rs"]
mod payload;
#[path = "loads/sleepers.rs"]
mod sleepers;

fn main() {
    inferd_tests::bench::limit::serve_if_asked();
    let _turn = inferd_tests::turn();
    let lines = inferd_tests::bench::Lines::new();
    let (_, cpu) = inferd_tests::bench::limit::cpus();
    lines.columns();
    open_loop::rows(&lines, cpu);
    payload::rows(&lines, cpu);
    many::rows(&lines, cpu);
    sleepers::rows(&lines, cpu);
}
