//! What machine this is: figures without it mean nothing.

use serde_json::{Value, json};
use std::fs::read_to_string;
use std::process::Command;

fn first_line(path: &str) -> String {
    read_to_string(path).unwrap_or_default().lines().next().unwrap_or("unknown").trim().to_owned()
}

fn cpu_model() -> String {
    let info = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|l| l.starts_with("model name") || l.starts_with("Model"));
    line.and_then(|l| l.split(": ").nth(1)).unwrap_or("unknown").to_owned()
}

/// Which CPUs share a core, a last cache and a node with the first; and whether a hypervisor is below.
fn topology() -> String {
    let cpu0 = "/sys/devices/system/cpu/cpu0";
    let last_cache = (0..5).rev().map(|i| format!("{cpu0}/cache/index{i}/shared_cpu_list"));
    let last_cache = last_cache.map(|p| first_line(&p)).find(|l| l != "unknown").unwrap_or_else(|| "unknown".into());
    let info = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has_hypervisor = info.lines().any(|l| l.starts_with("flags") && l.contains(" hypervisor"));
    format!(
        "CPU 0 shares its core with {}, its last cache with {last_cache}, its node with {}{}",
        first_line(&format!("{cpu0}/topology/thread_siblings_list")),
        first_line("/sys/devices/system/node/node0/cpulist"),
        if has_hypervisor { "; virtual CPUs" } else { "" }
    )
}

/// Ticks of a hundredth of a second that a hypervisor gave to others, since boot.
#[must_use]
pub fn steal_ticks() -> u64 {
    let stat = read_to_string("/proc/stat").unwrap_or_default();
    stat.lines().next().and_then(|l| l.split_whitespace().nth(8)).and_then(|t| t.parse().ok()).unwrap_or(0)
}

fn output_of(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output().ok().filter(|o| o.status.success());
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

/// Everything, as a line for the file of figures.
#[must_use]
pub fn head(clock_ns: f64) -> Value {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    json!({
        "kind": "head",
        "machine": format!("{} x {cpus}", cpu_model()),
        "kernel": first_line("/proc/sys/kernel/osrelease"),
        "governor": first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "clocksource": first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "topology": topology(),
        "load": first_line("/proc/loadavg"),
        "steal_ticks": steal_ticks(),
        "rustc": output_of("rustc", "--version"),
        "version": inferd_client::version(),
        "clock_ns": clock_ns,
        "scale": crate::bench::scale(),
        "time": output_of("date", "-uIminutes"),
    })
}

/// Prints processor, kernel, governor, load and stolen time.
pub fn print() {
    let head = head(crate::bench::clock_ns());
    let text = |key: &str| head[key].as_str().map_or_else(|| head[key].to_string(), str::to_owned);
    println!("machine   {}, kernel {}", text("machine"), text("kernel"));
    println!("          governor {}, load {}, stolen {} ticks", text("governor"), text("load"), text("steal_ticks"));
    println!("          {}", text("topology"));
    println!("          clock {}, one reading {:.1} ns", text("clocksource"), head["clock_ns"].as_f64().unwrap_or(0.0));
    println!("inferd    {}, {}\n", text("version"), text("rustc"));
}
