//! A recorded run of a model: an npz file with `in.<input>` and `out.<output>` arrays.
//!
//! Each array has a leading step axis, then the tensor. `reset` (bool per step) marks where recurrent
//! state began afresh; arrays of other names are not looked at. Every tensor of the signature must be
//! there. A recorder of a recurrent model also wrote its state pairs, which the daemon keeps itself:
//! so for a stateful model, `in.` and `out.` names beyond the signature are skipped and reported; for
//! any other model they are typos and refused.
//!
//! A file of `inferctl dump` also says how each step ended and whose it was ([`Plan`]).

use crate::array::{Array, ArrayError, Npz, fits};
use inferd_client::{DType, Signature, Status, TensorSpec};
use std::path::{Path, PathBuf};

/// What to read from the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Only inputs, to feed a model with.
    Inputs,
    /// Inputs and outputs, to compare with.
    InputsAndOutputs,
}

/// Steps to feed and to compare with, in the order of the signature.
#[derive(Debug)]
pub struct Recording {
    /// Number of steps; at least 1.
    pub steps: usize,
    /// One array per input, with the step axis.
    pub inputs: Vec<Array>,
    /// One array per output, with the step axis; empty if not wanted.
    pub outputs: Vec<Array>,
    /// Whether state begins afresh, per step; all false if the file does not say.
    pub resets: Vec<bool>,
    /// Arrays that were left out because the daemon keeps the state.
    pub skipped: Vec<String>,
    /// What a replay does with each step.
    pub plan: Vec<Plan>,
}

/// What a replay does with a recorded step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Feed it and compare the answer.
    Compare,
    /// Feed it: it did not end well when it was recorded, so that there is nothing to compare with.
    Feed,
    /// Leave it out: it was never run, or the state that it ran on cannot be reached by a client.
    Leave,
}

/// Why a file cannot be fed to a model.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file itself.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// An array is missing.
    #[error("{path}: no array {name:?} for the model's {tensor}; the file holds {held}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The array's name.
        name: String,
        /// The tensor.
        tensor: String,
        /// What is there instead.
        held: String,
    },
    /// An array that fits no tensor of a model without state.
    #[error("{path}: array {name:?} fits no tensor of the model ({known}), which keeps no state; rename or remove it")]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The array's name.
        name: String,
        /// Inputs or outputs of the model.
        known: String,
    },
    /// A dump of a recurrent model in the middle of its sessions.
    #[error(
        "{path}: no step begins on fresh state, and no client can set the state of another moment; dump again soon after a \
         reset (or with a larger record_steps), or use the file as a golden pair, which starts from the recorded state"
    )]
    NoReset {
        /// The file.
        path: PathBuf,
    },
    /// An array of another dtype, shape or number of steps.
    #[error("{path}: array {name:?} {what}")]
    Misfit {
        /// The file.
        path: PathBuf,
        /// The array's name.
        name: String,
        /// What does not fit.
        what: String,
    },
}

impl Recording {
    /// Reads what the signature asks for, and checks that everything fits.
    ///
    /// # Errors
    /// [`RecordingError`] names the file, the array and what is wrong with it.
    pub fn load(path: &Path, signature: &Signature, wanted: Wanted) -> Result<Recording, RecordingError> {
        let mut npz = Npz::open(path)?;
        let names = npz.names();
        let mut sides = vec![("in.", &signature.inputs)];
        if wanted == Wanted::InputsAndOutputs {
            sides.push(("out.", &signature.outputs));
        }
        let mut skipped = Vec::new();
        for (prefix, tensors) in &sides {
            let known = |name: &str| tensors.iter().any(|t| t.name == name);
            let extra = names.iter().filter(|n| n.strip_prefix(prefix).is_some_and(|rest| !known(rest)));
            for name in extra {
                if !signature.stateful {
                    let known = listed(tensors.iter().map(|t| format!("{prefix}{}", t.name)));
                    return Err(RecordingError::Unknown { path: path.to_owned(), name: name.clone(), known });
                }
                skipped.push(name.clone());
            }
        }
        let mut recording =
            Recording { steps: 0, inputs: vec![], outputs: vec![], resets: vec![], skipped, plan: vec![] };
        for (prefix, tensors) in sides {
            for tensor in tensors {
                let name = format!("{prefix}{}", tensor.name);
                if !names.contains(&name) {
                    let (tensor, held) = (tensor.to_string(), listed(names.iter().cloned()));
                    return Err(RecordingError::Missing { path: path.to_owned(), name, tensor, held });
                }
                let array = npz.read(&name)?;
                recording.take_steps(path, &name, &array, tensor)?;
                if prefix == "in." { recording.inputs.push(array) } else { recording.outputs.push(array) }
            }
        }
        recording.resets = vec![false; recording.steps];
        if names.contains("reset") {
            recording.resets = resets(path, &npz.read("reset")?, recording.steps)?;
        }
        let mut per_step = |name: &str, dtype: DType| {
            let array = if names.contains(name) { npz.read(name)? } else { return Ok(None) };
            let ours = array.dtype == dtype && array.shape == [recording.steps as u64];
            Ok::<_, RecordingError>(ours.then_some(array))
        };
        let statuses = per_step("status", DType::U32)?.map(|a| numbers(&a));
        let sessions = per_step("session", DType::U64)?.map(|a| numbers(&a));
        let dumped = signature.stateful && names.iter().any(|n| n.starts_with("state."));
        let sessions = sessions.filter(|_| dumped);
        recording.plan = plan(recording.steps, statuses.as_deref(), sessions.as_deref(), &recording.resets);
        if wanted == Wanted::InputsAndOutputs && recording.plan.iter().all(|p| *p == Plan::Leave) {
            let (path, name, what) =
                (path.to_owned(), "status".to_owned(), "says that no step was ever run".to_owned());
            return Err(if dumped {
                RecordingError::NoReset { path }
            } else {
                RecordingError::Misfit { path, name, what }
            });
        }
        Ok(recording)
    }

    /// The bytes of a tensor at one step.
    #[must_use]
    pub fn at(array: &Array, steps: usize, step: usize) -> &[u8] {
        let bytes = array.bytes.len() / steps.max(1);
        &array.bytes[step * bytes..(step + 1) * bytes]
    }

    fn take_steps(
        &mut self,
        path: &Path,
        name: &str,
        array: &Array,
        tensor: &TensorSpec,
    ) -> Result<(), RecordingError> {
        let misfit = |what: String| RecordingError::Misfit { path: path.to_owned(), name: name.to_owned(), what };
        let Some((steps, shape)) = array.shape.split_first() else {
            return Err(misfit("is a single number; a recording has a leading step axis".into()));
        };
        fits(tensor, array.dtype, shape).map_err(|what| misfit(format!("(without its step axis) {what}")))?;
        let steps = *steps as usize;
        if steps == 0 {
            return Err(misfit("holds no step".into()));
        }
        if self.steps != 0 && self.steps != steps {
            return Err(misfit(format!("has {steps} steps, the arrays before it have {}", self.steps)));
        }
        self.steps = steps;
        Ok(())
    }
}

fn resets(path: &Path, array: &Array, steps: usize) -> Result<Vec<bool>, RecordingError> {
    if array.dtype != DType::Bool || array.shape != [steps as u64] {
        let what = format!("is {}, expected bool[{steps}]: one mark per step", array.describe());
        return Err(RecordingError::Misfit { path: path.to_owned(), name: "reset".into(), what });
    }
    Ok(array.bytes.iter().map(|b| *b != 0).collect())
}

/// Whole numbers, whatever their size.
fn numbers(array: &Array) -> Vec<u64> {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
    array.bytes.chunks_exact(array.dtype.size_bytes()).map(number).collect()
}

/// What to do with each step. `sessions`: only where state is a session's, and steps stand session by session.
fn plan(steps: usize, statuses: Option<&[u64]>, sessions: Option<&[u64]>, resets: &[bool]) -> Vec<Plan> {
    const RAN_BADLY: [Option<Status>; 3] = [None, Some(Status::ModelError), Some(Status::WorkerLost)];
    let status = |step: usize| statuses.map_or(Some(Status::Ok), |s| Status::from_number(s[step] as u32));
    let mut reachable = sessions.is_none();
    let one = |step: usize| {
        if let Some(sessions) = sessions {
            // The state of a session can be reached from its first reset on.
            reachable &= step > 0 && sessions[step - 1] == sessions[step];
            reachable |= resets[step];
        }
        let last = sessions.is_none_or(|s| s.get(step + 1) != Some(&s[step]));
        match status(step) {
            _ if !reachable => Plan::Leave,
            Some(Status::Ok) => Plan::Compare,
            // It moved no state on: with others behind it, a run that ends well now would.
            bad if last && RAN_BADLY.contains(&bad) => Plan::Feed,
            _ => Plan::Leave,
        }
    };
    (0..steps).map(one).collect()
}

fn listed(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::array::write_npy;
    use std::io::Write;

    /// Writes an npz as numpy.savez_compressed does.
    pub(crate) fn savez(path: &Path, arrays: &[(&str, DType, &[u64], Vec<u8>)]) {
        let dir = tempfile::tempdir().unwrap();
        let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
        for (name, dtype, shape, bytes) in arrays {
            write_npy(&dir.path().join("a"), *dtype, shape, bytes).unwrap();
            zip.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(&std::fs::read(dir.path().join("a")).unwrap()).unwrap();
        }
        zip.finish().unwrap();
    }

    fn signature(stateful: bool) -> Signature {
        let inputs = vec![TensorSpec::new("obs", DType::F32, &[1, 2])];
        Signature { inputs, outputs: vec![TensorSpec::new("act/0:0", DType::F32, &[1])], stateful }
    }

    type Arrays<'a> = Vec<(&'a str, DType, &'a [u64], Vec<u8>)>;

    fn good() -> Arrays<'static> {
        vec![
            ("in.obs", DType::F32, &[3, 1, 2], (0..24).collect()),
            ("out.act/0:0", DType::F32, &[3, 1], vec![7; 12]),
            ("command", DType::F64, &[3], vec![0; 24]),
        ]
    }

    fn load(arrays: &Arrays, stateful: bool, wanted: Wanted) -> Result<Recording, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.npz");
        savez(&path, arrays);
        let name = format!("{}/", dir.path().display());
        Recording::load(&path, &signature(stateful), wanted).map_err(|e| e.to_string().replace(&name, ""))
    }

    #[test]
    fn tensors_are_found_by_name_and_cut_by_step() {
        let r = load(&good(), false, Wanted::InputsAndOutputs).unwrap();
        assert_eq!((r.steps, r.resets.as_slice(), r.skipped.len()), (3, &[false; 3][..], 0));
        assert_eq!(Recording::at(&r.inputs[0], r.steps, 1), (8..16).collect::<Vec<u8>>());
        assert_eq!(load(&good(), false, Wanted::Inputs).unwrap().outputs.len(), 0);
    }

    #[test]
    fn marks_of_reset_are_read_and_checked() {
        let mut arrays = good();
        arrays.push(("reset", DType::Bool, &[3], vec![1, 0, 1]));
        assert_eq!(load(&arrays, false, Wanted::Inputs).unwrap().resets, [true, false, true]);
        arrays[3] = ("reset", DType::Bool, &[2], vec![1, 0]);
        let told = load(&arrays, false, Wanted::Inputs).unwrap_err();
        assert_eq!(told, "r.npz: array \"reset\" is bool[2], expected bool[3]: one mark per step");
    }

    fn words(values: &[u64], bytes: usize) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()[..bytes].to_vec()).collect()
    }

    #[test]
    fn a_dump_s_steps_that_did_not_end_well_are_fed_and_those_that_never_ran_are_not() {
        let mut arrays = good();
        arrays.push(("status", DType::U32, &[3], words(&[1, 3, 0], 4)));
        let r = load(&arrays, false, Wanted::Inputs).unwrap();
        assert_eq!(r.plan, [Plan::Compare, Plan::Leave, Plan::Feed]);
        arrays[3] = ("status", DType::F64, &[3], vec![0; 24]);
        assert_eq!(load(&arrays, false, Wanted::Inputs).unwrap().plan, [Plan::Compare; 3], "somebody else's array");
    }

    #[test]
    fn a_dump_of_a_recurrent_model_is_replayed_from_each_session_s_first_reset_on() {
        let plan = |sessions: &[u64], statuses: &[u64], resets: &[u8]| {
            let n: &'static [u64] = Box::leak(Box::new([sessions.len() as u64]));
            let (obs, act) = (Box::leak(Box::new([n[0], 1, 2])), Box::leak(Box::new([n[0], 1])));
            let arrays = vec![
                ("in.obs", DType::F32, &obs[..], vec![0; sessions.len() * 8]),
                ("out.act/0:0", DType::F32, &act[..], vec![0; sessions.len() * 4]),
                ("state.h", DType::F32, n, vec![0; sessions.len() * 4]),
                ("session", DType::U64, n, words(sessions, 8)),
                ("status", DType::U32, n, words(statuses, 4)),
                ("reset", DType::Bool, n, resets.to_vec()),
            ];
            Ok::<_, String>(load(&arrays, true, Wanted::InputsAndOutputs)?.plan)
        };
        use Plan::{Compare, Feed, Leave};
        let sessions = [4, 4, 4, 7, 7, 7];
        assert_eq!(
            plan(&sessions, &[1; 6], &[0, 1, 0, 0, 0, 1]),
            Ok(vec![Leave, Compare, Compare, Leave, Leave, Compare])
        );
        assert_eq!(plan(&sessions, &[4, 1, 0, 5, 1, 1], &[1, 0, 0, 1, 0, 0]), {
            Ok(vec![Leave, Compare, Feed, Leave, Compare, Compare])
        });
        let told = plan(&sessions, &[1; 6], &[0; 6]).unwrap_err();
        assert!(told.contains("no step begins on fresh state") && told.contains("golden pair"), "{told}");
    }

    #[test]
    fn a_recorder_s_state_is_left_to_the_daemon_and_a_typo_is_not() {
        let mut arrays = good();
        arrays.push(("in.h_in", DType::F32, &[3, 1, 64], vec![0; 768]));
        arrays.push(("out.h_out", DType::F32, &[3, 1, 64], vec![0; 768]));
        let r = load(&arrays, true, Wanted::InputsAndOutputs).unwrap();
        assert_eq!(r.skipped, ["in.h_in", "out.h_out"]);
        let told = load(&arrays, false, Wanted::InputsAndOutputs).unwrap_err();
        assert!(told.starts_with("r.npz: array \"in.h_in\" fits no tensor of the model (in.obs)"), "{told}");
    }

    #[test]
    fn what_is_missing_or_does_not_fit_is_named() {
        let told = |change: &dyn Fn(&mut Arrays<'static>)| {
            let mut arrays = good();
            change(&mut arrays);
            load(&arrays, true, Wanted::InputsAndOutputs).unwrap_err()
        };
        let missing = told(&|a| a[0].0 = "in.obz");
        assert!(
            missing.contains("no array \"in.obs\" for the model's obs f32[1, 2]") && missing.contains("in.obz"),
            "{missing}"
        );
        let steps = told(&|a| (a[1].2, a[1].3) = (&[2, 1], vec![0; 8]));
        assert!(steps.contains("has 2 steps, the arrays before it have 3"), "{steps}");
        let dtype = told(&|a| (a[0].1, a[0].2) = (DType::F64, &[3, 1, 1]));
        assert!(dtype.contains("is f64, the model's \"obs\" is f32"), "{dtype}");
        let shape = told(&|a| (a[0].2, a[0].3) = (&[3, 1, 3], vec![0; 36]));
        assert!(shape.contains("has shape [1, 3], the model's \"obs\" has [1, 2]"), "{shape}");
    }
}
