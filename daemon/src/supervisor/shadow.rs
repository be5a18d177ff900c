//! Before a new generation may serve: it is run on what the live one has just answered, and judged.
//!
//! The candidate reads the live record region and answers nobody; it measures, the gate decides. Only a
//! worker that has passed becomes warm, and only a warm one is ever granted the baton: whatever happens
//! before that, its death included, the live generation does not notice.

use super::gate::{self, Plan};
use super::models::Stage;
use super::workers::Purpose;
use super::{Supervisor, Timer};
use inferd_ipc::control::{ReloadAnswer, Verdict, code};
use inferd_ipc::worker_records::{Loaded, ShadowReport, ToWorker};
use std::rc::Rc;
use std::time::Instant;

/// A shadow under way.
#[derive(Debug, Clone)]
pub(super) struct Shadowing {
    plan: Plan,
    began: Instant,
}

impl Supervisor {
    /// A worker is loaded and warm: it is shadowed, if that was asked for, and judged.
    pub(super) fn prove(&mut self, id: u64, worker_id: u64, loaded: &Loaded) {
        let Some(model) = self.models.get(&id) else { return };
        let Some(worker) = self.workers.get(&worker_id) else { return };
        let operation = model.operation.as_ref().filter(|_| worker.purpose == Purpose::Next);
        let Some(live) = model.live.as_ref() else { return self.pass(id, worker_id) };
        let Some(operation) = operation else { return self.pass(id, worker_id) };
        let Some(plan) = operation.gate.plan() else { return self.decide(id, worker_id, loaded, None) };
        let Some(record) = live.record.clone() else {
            let name = &model.name;
            let what = format!(
                "model {name} records nothing, so there is nothing to shadow; set `record_steps`, or reload without a shadow"
            );
            return self.refuse_candidate(id, worker_id, gate::verdict(loaded, None, vec![what], "none"));
        };
        let Some(worker) = self.workers.get_mut(&worker_id) else { return };
        worker.enter(Stage::Shadowing);
        worker.shadowing = Some(Shadowing { plan, began: Instant::now() });
        let load_ms = worker.generation.config.load_ms;
        let ask = ToWorker::Shadow {
            steps: plan.steps,
            for_ms: plan.for_ms,
            wait_ms: plan.wait_ms,
            slots: record.slots,
            layout: record.layout.clone(),
        };
        self.tell(worker_id, &ask, &[Rc::clone(&record.readable)]);
        self.poller.after_ms(plan.wait_ms.max(plan.for_ms.unwrap_or(0)) + load_ms, Timer::Shadow(worker_id));
        self.tell_progress(id, "shadowing", Some((0, plan.steps.unwrap_or(0))));
    }

    /// A candidate says how far its shadow is.
    pub(super) fn on_shadowing(&mut self, worker_id: u64, done: u32, of: u32) {
        let Some(worker) = self.workers.get_mut(&worker_id) else { return };
        if worker.stage != Stage::Shadowing {
            return self.kill_worker(worker_id, "it told of a shadow that nobody asked for");
        }
        if let Some(model) = worker.model {
            self.tell_progress(model, "shadowing", Some((done.min(of), of)));
        }
    }

    /// A candidate has ended its shadow.
    pub(super) fn on_shadowed(&mut self, worker_id: u64, report: ShadowReport) {
        let Some(worker) = self.workers.get_mut(&worker_id) else { return };
        let (Some(id), Some(loaded), Some(shadowing)) =
            (worker.model, worker.loaded.clone(), worker.shadowing.take().filter(|_| worker.stage == Stage::Shadowing))
        else {
            return self.kill_worker(worker_id, "it reported a shadow that nobody asked for");
        };
        if let Err(what) = gate::check_report(&report, &loaded.signature, &shadowing.plan) {
            return self.kill_worker(worker_id, &format!("it reported {what}, which cannot be"));
        }
        self.decide(id, worker_id, &loaded, Some(report));
    }

    /// A shadow has taken too long: its steps' time, and then as much as a load may take to run them.
    pub(super) fn on_shadow_overdue(&mut self, worker_id: u64) {
        let Some(worker) = self.workers.get(&worker_id) else { return };
        let Some(shadowing) = worker.shadowing.as_ref().filter(|_| worker.stage == Stage::Shadowing) else { return };
        let took_ms = shadowing.began.elapsed().as_millis();
        self.kill_worker(
            worker_id,
            &format!("its shadow was not over after {took_ms} ms; raise load_ms or shadow less"),
        );
    }

    fn decide(&mut self, id: u64, worker_id: u64, loaded: &Loaded, report: Option<ShadowReport>) {
        let Some(model) = self.models.get(&id) else { return };
        let Some(operation) = &model.operation else { return };
        let reasons = operation.gate.judge(&loaded.signature, report.as_ref());
        let dry_run = operation.gate.dry_run;
        let state = self.state_fate(id, worker_id);
        let verdict = gate::verdict(loaded, report, reasons, state);
        if !verdict.accepted {
            return self.refuse_candidate(id, worker_id, verdict);
        }
        if dry_run {
            return self.finish_dry_run(id, worker_id, verdict);
        }
        if let Some(operation) = self.models.get_mut(&id).and_then(|model| model.operation.as_mut()) {
            operation.verdict = Some(verdict);
        }
        self.pass(id, worker_id);
    }

    fn pass(&mut self, id: u64, worker_id: u64) {
        if let Some(worker) = self.workers.get_mut(&worker_id) {
            worker.enter(Stage::Warm);
        }
        self.swap_when_possible(id);
    }

    /// The gate stays shut: the candidate goes, whoever asked gets the verdict.
    fn refuse_candidate(&mut self, id: u64, worker_id: u64, verdict: Verdict) {
        let what = format!("the gate refused it: {}", verdict.reasons.join("; "));
        if let Some(model) = self.models.get_mut(&id) {
            model.next = model.next.filter(|next| *next != worker_id);
            if let Some(operation) = &mut model.operation {
                operation.verdict = Some(verdict);
            }
        }
        self.retire_worker(worker_id);
        self.fail_operation(id, &what);
    }

    fn finish_dry_run(&mut self, id: u64, worker_id: u64, verdict: Verdict) {
        let Some(generation) = self.workers.get(&worker_id).map(|worker| Rc::clone(&worker.generation)) else { return };
        let Some(model) = self.models.get_mut(&id) else { return };
        model.next = None;
        let Some(operation) = model.operation.take() else { return };
        tracing::info!(model = %model.name, "a dry run was accepted; nothing changes");
        let answer = ReloadAnswer {
            model: model.name.clone(),
            from_generation: model.generation(),
            to_generation: model.generation(),
            sha256: generation.sha256.clone(),
            load_ms: verdict.load_ms + verdict.warm_up_ms,
            swap_us: 0.0,
            state: verdict.state.clone(),
            verdict,
            gap_us: Vec::new(),
        };
        self.retire_worker(worker_id);
        if let Some(asker) = &operation.asker {
            self.answer(asker, &answer);
        }
        self.apply_wanted(id);
    }

    /// Answers whoever asked for a refused change, with the verdict where there is one.
    pub(super) fn refuse_change(&mut self, operation: &super::operations::Operation, what: &str) {
        let Some(asker) = &operation.asker else { return };
        // What failed after the gate had opened is another matter: an accepting verdict would only confuse.
        let refused = operation.verdict.as_ref().filter(|verdict| !verdict.accepted);
        let data = refused.and_then(|verdict| serde_json::to_value(verdict).ok());
        self.refuse_with(asker, code::REFUSED, what, data);
    }
}
