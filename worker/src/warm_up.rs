//! Running a model until its latency is flat, before anybody waits for it.
//!
//! Also the last check of a load: a model that answers no probe with finite numbers is refused (NaN
//! weights, most likely). The values of a probe do not matter otherwise: limits and conditioning may
//! refuse it. Ends when two windows' medians agree, or after `WARM_UP_MS_MAX`; a least number of runs
//! is granted within that time.

use crate::policy::Policy;
use crate::{Fault, ModelError};
use inferd_ipc::limits::{WARM_UP_FLAT_PERCENT, WARM_UP_MS_MAX, WARM_UP_RUNS_AGAIN, WARM_UP_WINDOW_RUNS};
use inferd_ipc::signature::DType;
use std::time::{Duration, Instant};

/// What a warm-up found out.
pub(crate) struct WarmUp {
    pub(crate) runs: u32,
    pub(crate) elapsed: Duration,
    pub(crate) run_us_p50: f64,
    /// What its inputs were filled with.
    pub(crate) probe: f32,
}

/// Warms `policy` up; `runs_min` of the manifest, 0 for until flat.
///
/// `proven`: golden pairs have shown finite answers already; no probe has to.
pub(crate) fn warm_up(policy: &mut Policy, runs_min: u32, proven: bool) -> Result<WarmUp, ModelError> {
    let start = Instant::now();
    let value = match find_probe(policy) {
        Err(error) if proven && error.fault == Fault::NonFinite => 0.0,
        probe => probe?,
    };
    let (mut window, mut last_median) = (Vec::with_capacity(WARM_UP_WINDOW_RUNS), None::<u64>);
    let mut runs = 0;
    loop {
        fill(policy, value);
        // Conditioning and limits are run as in a session, and may refuse a probe.
        let _ = policy.check_inputs();
        let before = Instant::now();
        if let Err(error) = policy.run()
            && !matches!(error.fault, Fault::Limits | Fault::NonFinite)
        {
            return Err(error);
        }
        window.push(u64::try_from(before.elapsed().as_nanos()).unwrap_or(u64::MAX));
        runs += 1;
        let spent = start.elapsed() >= Duration::from_millis(WARM_UP_MS_MAX);
        if window.len() < WARM_UP_WINDOW_RUNS && !spent {
            continue;
        }
        window.sort_unstable();
        let median = window[window.len() / 2];
        let flat = last_median.is_some_and(|last| {
            last.abs_diff(median).saturating_mul(100) <= median.saturating_mul(WARM_UP_FLAT_PERCENT)
        });
        if spent || (flat && runs >= runs_min) {
            return Ok(WarmUp { runs, elapsed: start.elapsed(), run_us_p50: median as f64 / 1e3, probe: value });
        }
        last_median = Some(median);
        window.clear();
    }
}

/// Runs the probe that the model answered a few times more. It may refuse it as in [`warm_up`]; whatever else it says
/// is new.
pub(crate) fn warm_again(policy: &mut Policy, probe: f32) -> Result<(), ModelError> {
    for _ in 0..WARM_UP_RUNS_AGAIN {
        fill(policy, probe);
        let _ = policy.check_inputs();
        match policy.run() {
            Err(error) if !matches!(error.fault, Fault::Limits | Fault::NonFinite) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The probe value that the model answers: zeros, ones or halves.
fn find_probe(policy: &mut Policy) -> Result<f32, ModelError> {
    let mut first = None;
    for value in [0.0, 1.0, 0.5] {
        fill(policy, value);
        let _ = policy.check_inputs();
        match policy.run() {
            Ok(()) => return Ok(value),
            Err(error) if error.fault == Fault::Limits => return Ok(value),
            Err(error) => first = first.or(Some(error)),
        }
    }
    let error = first.unwrap_or_else(|| ModelError::new(Fault::Run, "warm-up", "made no run", "report this as a bug"));
    let place = format!("{}, on inputs of zeros, ones and halves alike", error.place);
    Err(ModelError { place, ..error })
}

/// Fills every input that clients see, and resets every state.
fn fill(policy: &mut Policy, value: f32) {
    for i in 0..policy.signature().inputs.len() {
        let dtype = policy.signature().inputs[i].dtype;
        fill_bytes(dtype, policy.input_mut(i), value);
    }
    for k in 0..policy.state_offsets().len() {
        policy.reset_state(k);
    }
}

/// Fills a tensor with a number that every dtype has: 0, 1, or 0.5, which is 0 for whole numbers.
pub fn fill_bytes(dtype: DType, bytes: &mut [u8], value: f32) {
    let whole = value as u8;
    match dtype {
        DType::F32 => bytes.as_chunks_mut().0.fill(value.to_ne_bytes()),
        DType::F64 => bytes.as_chunks_mut().0.fill(f64::from(value).to_ne_bytes()),
        DType::F16 => bytes.as_chunks_mut().0.fill(half::f16::from_f32(value).to_ne_bytes()),
        DType::Bf16 => bytes.as_chunks_mut().0.fill(half::bf16::from_f32(value).to_ne_bytes()),
        DType::I8 | DType::U8 | DType::Bool => bytes.fill(whole),
        DType::I16 | DType::U16 => bytes.as_chunks_mut().0.fill(u16::from(whole).to_ne_bytes()),
        DType::I32 | DType::U32 => bytes.as_chunks_mut().0.fill(u32::from(whole).to_ne_bytes()),
        DType::I64 | DType::U64 => bytes.as_chunks_mut().0.fill(u64::from(whole).to_ne_bytes()),
    }
}
