//! Record regions: where a model's last steps stand, kept across swaps and crashes.
//!
//! A region belongs to a model and to what its steps are made of. The worker that serves writes it; it
//! outlives that worker, so that the observation which killed one can be looked at. Candidates and
//! operators get a descriptor that cannot write. No tensor is looked at here.

use super::Supervisor;
use super::control::Asker;
use inferd_ipc::control::{DumpAnswer, code};
use inferd_ipc::limits::{RECORD_STEP_BYTES_DEFAULT_MAX, RECORD_STEPS_DEFAULT};
use inferd_ipc::record::{self, RecordLayout};
use inferd_ipc::region::{Access, reopen};
use inferd_ipc::worker_records::Loaded;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// A record region.
#[derive(Debug)]
pub(super) struct Record {
    /// For the worker that writes.
    pub fd: Rc<OwnedFd>,
    /// For everybody else.
    pub readable: Rc<OwnedFd>,
    pub layout: RecordLayout,
    pub slots: u32,
}

/// How many steps are recorded of a model whose steps are so large.
fn slots(config: &crate::config::RecordConfig, layout: &RecordLayout) -> u32 {
    match config.steps {
        None if layout.step_bytes() > RECORD_STEP_BYTES_DEFAULT_MAX => 0,
        steps => layout.slots(steps.unwrap_or(RECORD_STEPS_DEFAULT), config.bytes),
    }
}

fn make(layout: &RecordLayout, slots: u32) -> Result<Record, String> {
    let fd = record::create(layout, slots).map_err(|error| error.to_string())?;
    let readable = reopen(fd.as_fd(), Access::ReadOnly).map_err(|error| error.to_string())?;
    Ok(Record { fd: Rc::new(fd), readable: Rc::new(readable), layout: layout.clone(), slots })
}

impl Supervisor {
    /// The region for a worker's steps: the model's own where it fits, else a new one; none where nothing is recorded.
    pub(super) fn record_for(&self, id: u64, loaded: &Loaded) -> Option<Rc<Record>> {
        let model = self.models.get(&id)?;
        let layout = &loaded.record_layout;
        let slots = slots(&model.config.record, layout);
        if slots == 0 {
            return None;
        }
        let live = model.live.as_ref().and_then(|held| held.record.as_ref());
        if let Some(same) = live.filter(|record| record.slots == slots && record.layout.same(layout)) {
            return Some(Rc::clone(same));
        }
        match make(layout, slots) {
            Ok(record) => Some(Rc::new(record)),
            Err(what) => {
                tracing::warn!(model = %model.name, what, "steps are not recorded; lower record_bytes, or give the machine more memory");
                None
            }
        }
    }

    /// `inferctl dump`.
    pub(super) fn dump(&mut self, asker: &Asker, name: &str, session: Option<u64>) {
        let Some(id) = self.model_id(name) else { return self.no_model(asker, name) };
        let Some(model) = self.models.get(&id) else { return };
        let Some(record) = model.live.as_ref().and_then(|held| held.record.clone()) else {
            let what = match model.live {
                None => format!("model {name} has never served: nothing is recorded"),
                Some(_) => format!("model {name} records nothing; set `record_steps` and reload it"),
            };
            return self.refuse(asker, code::NOT_FOUND, &what);
        };
        let answer = DumpAnswer {
            model: name.to_owned(),
            session,
            generation: model.generation(),
            steps: record.slots,
            layout: record.layout.clone(),
            region_bytes: record.layout.region_bytes(record.slots),
        };
        self.answer_with(asker, &answer, Rc::clone(&record.readable));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RecordConfig;
    use inferd_ipc::signature::{DType, TensorSpec};

    #[test]
    fn small_steps_are_recorded_and_large_ones_only_where_somebody_asks() {
        let layout = |elements| RecordLayout {
            inputs: vec![TensorSpec::new("in", DType::F32, &[elements])],
            ..RecordLayout::default()
        };
        let config = |steps, bytes| RecordConfig { steps, bytes };
        let bytes = 8 << 20;
        assert_eq!(slots(&config(None, bytes), &layout(45)), RECORD_STEPS_DEFAULT);
        assert_eq!(slots(&config(None, bytes), &layout(100_000)), 0);
        assert_eq!(slots(&config(Some(16), bytes), &layout(100_000)), 16);
        assert_eq!(slots(&config(Some(0), bytes), &layout(45)), 0);
        assert!(slots(&config(None, 4096), &layout(45)) < RECORD_STEPS_DEFAULT);
    }
}
