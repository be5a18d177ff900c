//! The line that `systemctl status` shows: which models are live, in which generation, for how many sessions,
//! and how long their steps took.
//!
//! It is brought up to date with the watchdog, so that an idle daemon wakes no more often for it. Latencies are the
//! workers' own, asked for only while there are sessions; a worker that does not answer is shown without.

use super::models::Model;
use super::{Phase, Supervisor};
use inferd_ipc::control::StatsAnswer;
use inferd_ipc::limits::{START_EXTENSION_MS, STATUS_MODELS_MAX};
use inferd_ipc::worker_records::StageStats;
use std::time::Duration;

impl Supervisor {
    /// The watchdog is due: so is the status.
    pub(super) fn on_watchdog(&mut self) {
        let Some(interval) = self.notify.watchdog else { return };
        self.notify.watchdog();
        self.poller.after(interval, super::Timer::Watchdog);
        match self.phase {
            Phase::Starting => {
                self.notify.extend_timeout(Duration::from_millis(START_EXTENSION_MS).max(2 * interval));
                self.show_status(&StatsAnswer::new());
            }
            Phase::Ready if self.sessions.count() > 0 => self.begin_status_stats(),
            Phase::Ready => self.show_status(&StatsAnswer::new()),
            Phase::Draining | Phase::Over => {}
        }
    }

    /// Tells the service manager how things stand, if that has changed.
    pub(super) fn show_status(&mut self, stats: &StatsAnswer) {
        if matches!(self.phase, Phase::Starting | Phase::Ready) {
            let line = self.status_line(stats);
            self.notify.status(&line);
        }
    }

    /// How things stand, as a sentence for people.
    pub(super) fn status_line(&self, stats: &StatsAnswer) -> String {
        let mut models: Vec<(u64, &Model)> = self.models.iter().map(|(id, model)| (*id, model)).collect();
        models.sort_by(|a, b| a.1.name.cmp(&b.1.name));
        let live = models.iter().filter(|(_, model)| model.live_worker().is_some()).count();
        let sessions = self.sessions.count();
        let mut line = format!("{live} of {} models live, {sessions} {}", models.len(), plural(sessions, "session"));
        for (at, (id, model)) in models.iter().take(STATUS_MODELS_MAX).enumerate() {
            let ready = self.sessions.ready_of(*id).count();
            line += if at == 0 { ": " } else { "; " };
            line += &of_model(&model.name, model.state.name(), model.generation(), ready);
            if let Some(found) = stats.get(&model.name).filter(|found| found.model.count > 0) {
                line += &format!(", p99 {} queued + {} run", p99(&found.queue), p99(&found.model));
            }
        }
        if models.len() > STATUS_MODELS_MAX {
            line += &format!("; and {} more", models.len() - STATUS_MODELS_MAX);
        }
        line
    }
}

fn of_model(name: &str, state: &str, generation: u32, sessions: usize) -> String {
    let mut text = match (generation, state) {
        (0, _) => return format!("{name} {state}"),
        (_, "live") => format!("{name} generation {generation}"),
        (_, _) => format!("{name} generation {generation} {state}"),
    };
    if sessions > 0 {
        text += &format!(", {sessions} {}", plural(sessions, "session"));
    }
    text
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { noun.to_owned() } else { format!("{noun}s") }
}

fn p99(stage: &StageStats) -> String {
    match stage.p99_ns {
        ns @ 0..10_000 => format!("{:.1} us", ns as f64 / 1e3),
        ns @ 10_000..1_000_000 => format!("{:.0} us", ns as f64 / 1e3),
        ns => format!("{:.1} ms", ns as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_described_as_an_operator_would() {
        assert_eq!(of_model("go2", "live", 3, 2), "go2 generation 3, 2 sessions");
        assert_eq!(of_model("arm", "loading", 0, 0), "arm loading");
        assert_eq!(of_model("arm", "recovering", 1, 1), "arm generation 1 recovering, 1 session");
    }

    #[test]
    fn latencies_are_shown_in_the_unit_that_reads_best() {
        let of = |ns| p99(&StageStats { p99_ns: ns, ..StageStats::default() });
        assert_eq!([900, 9_990, 41_300, 2_500_000].map(of).join("|"), "0.9 us|10.0 us|41 us|2.5 ms");
    }
}
