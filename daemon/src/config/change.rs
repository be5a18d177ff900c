//! What a model's configuration says about its changes: the gate that every new generation passes, what
//! is kept of the previous one, what is recorded to prove the next, and whether its files are watched.

use super::error::ConfigError;
use super::reader::Section;
use inferd_ipc::control::Shadow;
use inferd_ipc::limits;
use std::collections::BTreeMap;
use toml::Spanned;

/// `[models.NAME.gate]`: what a new generation must show before it serves, unless the command says otherwise.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GateConfig {
    /// Recorded steps that it is run on.
    pub shadow: Option<Shadow>,
    /// Largest difference per output.
    pub max_diff: BTreeMap<String, f64>,
    /// Longest p99 of a run, in microseconds.
    pub max_latency_us: Option<f64>,
}

/// What is kept of the previous generation, for `rollback`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepPrevious {
    /// Nothing: neither its worker nor a way back.
    No,
    /// Its worker, ready to take over at once; its files too.
    Alive,
    /// Its files in the store: a rollback loads them.
    Disk,
}

/// What is recorded of a model's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordConfig {
    /// Steps at most, 0 for none; without it the default, for models whose steps are small.
    pub steps: Option<u32>,
    /// Bytes of the region at most.
    pub bytes: u64,
}

impl Default for RecordConfig {
    fn default() -> RecordConfig {
        RecordConfig { steps: None, bytes: limits::RECORD_BYTES_DEFAULT }
    }
}

/// Reads `[models.NAME.gate]`.
pub(super) fn gate(s: &mut Section<'_>, errors: &mut Vec<ConfigError>) -> GateConfig {
    let mut gate = GateConfig::default();
    let Some(mut s) = s.section("gate", errors) else { return gate };
    gate.shadow = shadow(&mut s, errors);
    if let Some(section) = s.section("max_diff", errors) {
        gate.max_diff = differences(section, errors);
    }
    let expected = "a number of microseconds above 0";
    if let Some(value) = s.value::<f64>("max_latency_us", expected, errors) {
        if value.get_ref().is_finite() && *value.get_ref() > 0.0 {
            gate.max_latency_us = Some(value.into_inner());
        } else {
            let what = format!("{} is {}", s.key("max_latency_us"), value.get_ref());
            s.refuse(&value, what, &format!("give {expected}"), errors);
        }
    }
    s.finish(errors);
    gate
}

/// A number of steps, or a time as `"5s"`.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Span {
    Steps(i64),
    Time(String),
}

fn shadow(s: &mut Section<'_>, errors: &mut Vec<ConfigError>) -> Option<Shadow> {
    let expected = format!(
        "a number of steps up to {}, or a time up to {} s as \"5s\"",
        limits::SHADOW_STEPS_MAX,
        limits::SHADOW_MS_MAX / 1000
    );
    let value: Spanned<Span> = s.value("shadow", &expected, errors)?;
    let shadow = match value.get_ref() {
        Span::Steps(steps) => u32::try_from(*steps).ok().map(Shadow::Steps),
        Span::Time(text) => text.strip_suffix('s').and_then(|t| t.trim().parse().ok()).map(Shadow::Seconds),
    };
    if let Some(shadow) = shadow.filter(|shadow| check(*shadow).is_ok()) {
        return Some(shadow);
    }
    let what = format!("{} does not fit", s.key("shadow"));
    s.refuse(&value, what, &format!("give {expected}"), errors);
    None
}

/// Whether a shadow is within its limits.
///
/// # Errors
/// A sentence with the remedy.
pub(crate) fn check(shadow: Shadow) -> Result<(), String> {
    let seconds_max = limits::SHADOW_MS_MAX as f64 / 1000.0;
    match shadow {
        Shadow::Steps(steps) if steps > limits::SHADOW_STEPS_MAX => {
            Err(format!("a shadow of {steps} steps is over the limit of {}; give fewer", limits::SHADOW_STEPS_MAX))
        }
        Shadow::Seconds(seconds) if !(seconds.is_finite() && seconds > 0.0 && seconds <= seconds_max) => {
            Err(format!("a shadow takes more than 0 s and at most {seconds_max} s; give such a time"))
        }
        _ => Ok(()),
    }
}

/// `max_diff = { action = 0.1 }`.
fn differences(section: Section<'_>, errors: &mut Vec<ConfigError>) -> BTreeMap<String, f64> {
    let place = section.place();
    let title = section.key("max_diff");
    let mut bounds = BTreeMap::new();
    for (name, value) in section.rest() {
        let number = super::reader::option_text(value.get_ref()).and_then(|text| text.replace('_', "").parse().ok());
        match number.filter(|bound: &f64| bound.is_finite() && *bound >= 0.0) {
            Some(bound) => {
                bounds.insert(name.into_inner(), bound);
            }
            None => {
                let what = format!("{title}: the bound of output {:?} is no number of 0 or more", name.get_ref());
                errors.push(ConfigError::at(place.clone(), what, "give the largest absolute difference allowed"));
            }
        }
    }
    bounds
}

/// Reads `keep_previous`.
pub(super) fn keep_previous(s: &mut Section<'_>, errors: &mut Vec<ConfigError>) -> Option<KeepPrevious> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Kept {
        Alive(bool),
        Word(String),
    }
    let expected = "true, false or \"disk\"";
    let value: Spanned<Kept> = s.value("keep_previous", expected, errors)?;
    match value.get_ref() {
        Kept::Alive(true) => Some(KeepPrevious::Alive),
        Kept::Alive(false) => Some(KeepPrevious::No),
        Kept::Word(word) if word == "disk" => Some(KeepPrevious::Disk),
        Kept::Word(word) => {
            let what = format!("{}: {word:?} is no way to keep a generation", s.key("keep_previous"));
            s.refuse(&value, what, &format!("give {expected}"), errors);
            None
        }
    }
}

/// Reads `record_steps` and `record_bytes`.
pub(super) fn record(s: &mut Section<'_>, errors: &mut Vec<ConfigError>) -> RecordConfig {
    let default = RecordConfig::default();
    let steps = s.count("record_steps", 0, u64::from(limits::RECORD_STEPS_MAX), errors).map(|steps| steps as u32);
    let bytes = s.count("record_bytes", 4096, limits::RECORD_BYTES_MAX, errors).unwrap_or(default.bytes);
    RecordConfig { steps, bytes }
}
