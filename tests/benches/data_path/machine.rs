//! What machine this is: figures without it mean nothing.

use std::fs::read_to_string;

fn first_line(path: &str) -> String {
    read_to_string(path).unwrap_or_default().lines().next().unwrap_or("unknown").trim().to_owned()
}

fn cpu_model() -> String {
    let info = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|l| l.starts_with("model name") || l.starts_with("Model"));
    line.and_then(|l| l.split(": ").nth(1)).unwrap_or("unknown").to_owned()
}

/// Prints processor, kernel, governor, load and stolen time.
pub fn print() {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let steal = read_to_string("/proc/stat").unwrap_or_default();
    let steal = steal.lines().next().and_then(|l| l.split_whitespace().nth(8)).unwrap_or("?").to_owned();
    println!("machine   {} x {cpus}, kernel {}", cpu_model(), first_line("/proc/sys/kernel/osrelease"));
    println!(
        "          governor {}, load {}, stolen {steal} ticks since boot",
        first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        first_line("/proc/loadavg"),
    );
    println!("inferd    {}\n", inferd_client::version());
}
