//! The gate: what a new generation must have shown before it serves.
//!
//! Pure. A command's own words win over the model's configured gate, field by field. Without bounds a
//! shadow still refuses what failed on a recorded step or answered NaN there; a gate that could not be
//! judged, for want of recorded steps, refuses too: silence proves nothing.

use crate::config::{GateConfig, check_shadow};
use inferd_ipc::control::{Reload, Shadow, Verdict};
use inferd_ipc::limits::{SHADOW_STEPS_DEFAULT, SHADOW_WAIT_MS};
use inferd_ipc::signature::Signature;
use inferd_ipc::worker_records::{Loaded, ShadowReport};
use std::collections::BTreeMap;

/// What is asked of one new generation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gate {
    /// Recorded steps to run.
    pub shadow: Option<Shadow>,
    max_diff: BTreeMap<String, f64>,
    max_latency_us: Option<f64>,
    /// Judge, and do not go live.
    pub dry_run: bool,
}

/// How a shadow is asked for in the worker's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// So many steps.
    pub steps: Option<u32>,
    /// Those of this time.
    pub for_ms: Option<u64>,
    /// How long to wait for steps that are not there.
    pub wait_ms: u64,
}

impl Gate {
    /// The configured gate, and what a command says against it.
    ///
    /// # Errors
    /// A sentence: a value is out of its range.
    pub fn new(configured: &GateConfig, asked: Option<&Reload>) -> Result<Gate, String> {
        let mut gate = Gate {
            shadow: configured.shadow,
            max_diff: configured.max_diff.clone(),
            max_latency_us: configured.max_latency_us,
            dry_run: false,
        };
        if let Some(asked) = asked {
            gate.shadow = asked.shadow.or(gate.shadow);
            gate.max_diff.extend(asked.max_diff.clone());
            gate.max_latency_us = asked.max_latency_us.or(gate.max_latency_us);
            gate.dry_run = asked.dry_run;
        }
        if let Some((name, bound)) = gate.max_diff.iter().find(|(_, bound)| !(bound.is_finite() && **bound >= 0.0)) {
            return Err(format!("the bound of output {name:?} is {bound}; give a number of 0 or more"));
        }
        if let Some(bound) = gate.max_latency_us.filter(|bound| !(bound.is_finite() && *bound > 0.0)) {
            return Err(format!("the longest latency is {bound} us; give a number above 0"));
        }
        gate.shadow.map_or(Ok(()), check_shadow)?;
        if gate.shadow == Some(Shadow::Steps(0)) {
            // Asked for nothing: bounds without steps cannot be judged, and only a command can have said so.
            (gate.shadow, gate.max_diff, gate.max_latency_us) = (None, BTreeMap::new(), None);
        } else if gate.shadow.is_none() && (!gate.max_diff.is_empty() || gate.max_latency_us.is_some()) {
            gate.shadow = Some(Shadow::Steps(SHADOW_STEPS_DEFAULT));
        }
        Ok(gate)
    }

    /// The gate of a generation that served before, and of a first one: nothing to be compared with.
    #[must_use]
    pub fn open() -> Gate {
        Gate::default()
    }

    /// How the shadow is asked for, if there is one.
    #[must_use]
    pub fn plan(&self) -> Option<Plan> {
        match self.shadow? {
            Shadow::Steps(steps) => Some(Plan { steps: Some(steps), for_ms: None, wait_ms: SHADOW_WAIT_MS }),
            Shadow::Seconds(seconds) => {
                Some(Plan { steps: None, for_ms: Some((seconds * 1000.0).ceil() as u64), wait_ms: 0 })
            }
        }
    }

    /// Why the generation is refused; nothing where it is not.
    #[must_use]
    pub fn judge(&self, signature: &Signature, report: Option<&ShadowReport>) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.shadow.is_none() {
            return reasons;
        }
        let names: Vec<&str> = signature.outputs.iter().map(|output| output.name.as_str()).collect();
        for name in self.max_diff.keys().filter(|name| !names.contains(&name.as_str())) {
            reasons.push(format!("max_diff names output {name:?}, which is none of: {}", names.join(", ")));
        }
        let Some(report) = report.filter(|report| report.steps > 0) else {
            reasons.push(
                "no recorded step could be run: nobody sent requests in that time; send some, or reload without a shadow"
                    .to_owned(),
            );
            return reasons;
        };
        if report.failed > 0 {
            let first = report.first_failure.as_deref().unwrap_or("no message");
            reasons.push(format!("{} of {} recorded steps failed: {first}", report.failed, report.steps));
        }
        for (name, difference) in &report.outputs {
            if difference.nan > 0 {
                reasons.push(format!("output {name} has {} NaN that the live generation has not", difference.nan));
            }
            if let Some(bound) = self.max_diff.get(name).filter(|bound| difference.max > **bound) {
                let step = difference.worst_step.map_or(String::new(), |id| format!(" (observation {id})"));
                reasons.push(format!("output {name} differs by {:.6}{step}; max_diff is {bound}", difference.max));
            }
        }
        let p99_us = report.new_run.p99_ns as f64 / 1000.0;
        if let Some(bound) = self.max_latency_us.filter(|bound| p99_us > *bound) {
            reasons.push(format!("its p99 is {p99_us:.1} us; max_latency_us is {bound}"));
        }
        reasons
    }
}

/// The verdict on a loaded generation.
#[must_use]
pub fn verdict(loaded: &Loaded, report: Option<ShadowReport>, reasons: Vec<String>, state: &str) -> Verdict {
    Verdict {
        accepted: reasons.is_empty(),
        live: false,
        reasons,
        shadow: report,
        golden_difference_max: loaded.golden_difference_max,
        run_us_p50: loaded.run_us_p50,
        load_ms: loaded.load_us as f64 / 1000.0,
        warm_up_ms: loaded.warm_up_us as f64 / 1000.0,
        warm_up_runs: loaded.warm_up_runs,
        state: state.to_owned(),
    }
}

/// Whether a worker may have found that out; a report is believed as far as it cannot be a lie.
///
/// # Errors
/// What is impossible about it.
pub fn check_report(report: &ShadowReport, signature: &Signature, plan: &Plan) -> Result<(), String> {
    if plan.steps.is_some_and(|steps| report.steps > steps) || report.failed > report.steps {
        return Err(format!("{} steps, {} failed", report.steps, report.failed));
    }
    for (name, difference) in &report.outputs {
        if !signature.outputs.iter().any(|output| output.name == *name) {
            return Err(format!("an output {name:?}"));
        }
        let sound = difference.max.is_finite() && difference.mean.is_finite() && difference.mean >= 0.0;
        if !sound || difference.max < 0.0 {
            return Err(format!("a difference of {} for output {name}", difference.max));
        }
    }
    let judged = report.steps > report.failed;
    match signature.outputs.iter().find(|output| judged && !report.outputs.contains_key(&output.name)) {
        Some(missing) => Err(format!("nothing of output {}", missing.name)),
        None => Ok(()),
    }
}
