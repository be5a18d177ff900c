//! The manifest `model.toml`: what a model file cannot say of itself, and which file that is.
//!
//! [`resolve`] turns a configured path into a [`ModelSource`]: manifest, model file, folder and backend.
//! A manifest that exists is sound in itself; whether it fits the model file is found out by the worker.
//! Every file that a manifest names lies below the manifest's folder.

mod parse;
pub(crate) use parse::is_relative_below;
#[cfg(test)]
mod tests;

use crate::config::reader::Document;
use crate::config::{Config, ConfigError, ConfigErrors, ModelConfig, Place};
use crate::staging::{self, StageFile};
use inferd_ipc::signature::Signature;
use inferd_ipc::worker_records::{Device, GoldenPair, Loading, ModelSpec, Precision, StatePair, TensorRules};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of a manifest in a model's folder.
pub const MANIFEST: &str = "model.toml";
/// Backends that inferd brings; a worker of one's own may have any name.
pub const BACKENDS: [&str; 4] = ["tract", "torch", "ort", "echo"];
/// Leaves the choice to the worker: tract where it loads the file, else ONNX Runtime.
const AUTO: &str = "auto";
/// Backends whose files say the order of their inputs and outputs.
const SELF_DESCRIBING: [&str; 3] = ["tract", "ort", AUTO];

/// What a reload does with the state of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnReload {
    /// The new generation continues it, where names and shapes are the same.
    #[default]
    Carry,
    /// The next step runs on fresh state and says so.
    Reset,
}

/// A parsed `model.toml`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Manifest {
    /// The model file, relative to the manifest's folder; none for backends without one.
    pub file: Option<String>,
    /// Backend, unless the configuration says otherwise.
    pub backend: Option<String>,
    /// SHA-256 that the model file must have, in lower-case hexadecimal.
    pub sha256: Option<String>,
    /// Licence of the model: shown, never interpreted.
    pub licence: Option<String>,
    /// Where the model came from: shown, never interpreted.
    pub source: Option<String>,
    /// What a reload does with state.
    pub on_reload: OnReload,
    /// Values of symbolic dimensions.
    pub dimensions: BTreeMap<String, u64>,
    /// Rules per input.
    pub inputs: BTreeMap<String, TensorRules>,
    /// Rules per output.
    pub outputs: BTreeMap<String, TensorRules>,
    /// Order of the inputs: `input_order`, else that of the `[inputs.NAME]` tables.
    pub input_order: Vec<String>,
    /// Order of the outputs: `output_order`, else that of the `[outputs.NAME]` tables.
    pub output_order: Vec<String>,
    /// Whether the orders were given by `input_order`, `output_order`.
    pub order_given: [bool; 2],
    /// Recurrent state pairs.
    pub state: Vec<StatePair>,
    /// Golden pairs.
    pub golden: Vec<GoldenPair>,
    /// Least number of warm-up runs; 0 for until latency is flat.
    pub warm_up_runs: u32,
    /// Where it runs.
    pub device: Option<Device>,
    /// What it computes in.
    pub precision: Option<Precision>,
    /// Options of the backend.
    pub options: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(file: &Path) -> Result<Manifest, ConfigErrors> {
        Manifest::parse(&Document::read(file)?)
    }

    /// Reads a manifest from text.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(document: &Document) -> Result<Manifest, ConfigErrors> {
        let mut errors = Vec::new();
        let manifest = parse::manifest(document, &mut errors);
        ConfigErrors::check(errors)?;
        Ok(manifest)
    }
}

/// A model's files and what is known of them before a worker has looked inside.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSource {
    /// The manifest; empty when there is none.
    pub manifest: Manifest,
    /// Path of the manifest, if there is one.
    pub manifest_path: Option<PathBuf>,
    /// Its text, as it was parsed.
    pub manifest_text: Option<String>,
    /// Absolute path of the model file; none for backends without one.
    pub file: Option<PathBuf>,
    /// Whether the operator named the model file itself; its path may then be a link to anywhere.
    pub file_named: bool,
    /// The folder below which all further files are looked for.
    pub folder: PathBuf,
    /// The model file's path relative to `folder`; empty without a file.
    pub file_name: String,
    /// Backend.
    pub backend: String,
}

/// What a worker's spec holds beside configuration and manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerRole {
    /// The generation that this worker will be.
    pub generation: u32,
    /// The worker's ticket in the baton.
    pub ticket: u64,
    /// Index of the worker's entry in the baton.
    pub baton_entry: u32,
    /// The live signature that it must equal, if there is one.
    pub expect: Option<Signature>,
    /// Only load, check and warm up.
    pub validate_only: bool,
    /// At which priority.
    pub loading: Loading,
}

impl ModelSource {
    /// The typed spec for a worker.
    #[must_use]
    pub fn spec(&self, model: &ModelConfig, all: &Config, role: WorkerRole) -> ModelSpec {
        let m = &self.manifest;
        let mut options = m.options.clone();
        options.extend(model.options.clone());
        // An order that follows from the tables' order would be wrong for a file that has one of its own.
        let described = SELF_DESCRIBING.contains(&self.backend.as_str());
        let order = |given: bool, names: &Vec<String>| {
            if given || !described { names.clone() } else { Vec::new() }
        };
        ModelSpec {
            model: model.name.clone(),
            generation: role.generation,
            ticket: role.ticket,
            baton_entry: role.baton_entry,
            backend: self.backend.clone(),
            file: self.file_name.clone(),
            device: model.device.or(m.device).unwrap_or_default(),
            precision: model.precision.or(m.precision).unwrap_or_default(),
            options,
            dimensions: m.dimensions.clone(),
            inputs: m.inputs.clone(),
            outputs: m.outputs.clone(),
            input_order: order(m.order_given[0], &m.input_order),
            output_order: order(m.order_given[1], &m.output_order),
            state: m.state.clone(),
            golden: m.golden.clone(),
            warm_up_runs: m.warm_up_runs,
            cpu: model.cpu,
            scheduling: model.scheduling,
            nice: model.nice,
            spin_us: model.spin_us,
            mlock: all.ipc.mlock,
            waiting: all.ipc.waiting,
            confine: model.confine.unwrap_or(all.worker.confine),
            expect: role.expect,
            validate_only: role.validate_only,
            loading: role.loading,
        }
    }

    /// Whether the model file and the golden files are there and readable.
    #[must_use]
    pub fn check_files(&self) -> Vec<ConfigError> {
        let golden = self
            .manifest
            .golden
            .iter()
            .map(|pair| StageFile::Below { folder: self.folder.clone(), name: pair.file.clone() });
        let refused = |file: StageFile| {
            let fault = staging::probe(&file).err()?;
            let mut error = ConfigError::nowhere(format!("{file}: {}", fault.what()), fault.remedy());
            error.place = self.manifest_path.as_deref().map(Place::file);
            Some(error)
        };
        StageFile::of_model(self).into_iter().chain(golden).filter_map(refused).collect()
    }
}

/// Finds a model's manifest, file and backend. `path` is a model file, or a folder with `model.toml`; a manifest
/// beside a model file counts if its `file` names it.
///
/// # Errors
/// The path is relative or missing, the manifest is wrong, or no backend follows from either.
pub fn resolve(path: &Path, backend: Option<&str>) -> Result<ModelSource, ConfigErrors> {
    let name = path.display();
    if !path.is_absolute() {
        let what = format!("the model's path {name} is not absolute");
        return Err(ConfigError::nowhere(what, "write the whole path from /").into());
    }
    let meta = std::fs::metadata(path).map_err(|e| {
        let remedy = match e.kind() {
            std::io::ErrorKind::NotFound => "put the model there, or correct `path`",
            std::io::ErrorKind::PermissionDenied => "let the user that runs inferd read it and enter its folders",
            _ => "name a model file, or a folder with model.toml",
        };
        ConfigError::nowhere(format!("the model {name} cannot be found: {e}"), remedy)
    })?;
    let mut source = if meta.is_dir() { from_folder(path)? } else { from_file(path)? };
    source.backend = choose_backend(&source, backend)?;
    if source.file.is_none() && source.backend != "echo" {
        let manifest = source.manifest_path.as_deref().unwrap_or(path);
        let what = format!("`file` is missing, and backend {:?} needs a model file", source.backend);
        return Err(ConfigError::at(Place::file(manifest), what, "name the model file in `file`").into());
    }
    Ok(source)
}

fn from_folder(folder: &Path) -> Result<ModelSource, ConfigErrors> {
    let path = folder.join(MANIFEST);
    if path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        let what = format!("the folder {} holds no {MANIFEST}", folder.display());
        return Err(ConfigError::nowhere(what, "name the model file itself, or write a manifest that names it").into());
    }
    let document = Document::read(&path)?;
    let manifest = Manifest::parse(&document)?;
    let file_name = manifest.file.clone().unwrap_or_default();
    Ok(ModelSource {
        file: manifest.file.as_ref().map(|f| folder.join(f)),
        file_named: false,
        manifest,
        manifest_path: Some(path),
        manifest_text: Some(document.text().to_owned()),
        folder: folder.to_owned(),
        file_name,
        backend: String::new(),
    })
}

fn from_file(file: &Path) -> Result<ModelSource, ConfigErrors> {
    let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else {
        let what = format!("{} is no model file", file.display());
        return Err(ConfigError::nowhere(what, "name a model file, or a folder with model.toml").into());
    };
    let file_name = name.to_string_lossy().into_owned();
    if file_name == MANIFEST {
        return from_folder(folder);
    }
    let path = folder.join(MANIFEST);
    let mut source = ModelSource {
        manifest: Manifest::default(),
        manifest_path: None,
        manifest_text: None,
        file: Some(file.to_owned()),
        file_named: true,
        folder: folder.to_owned(),
        file_name,
        backend: String::new(),
    };
    // The manifest of another model in the same folder is none of this model's business, not even its mistakes.
    let ours = |m: &Manifest| m.file.as_deref().is_some_and(|f| Path::new(f) == Path::new(&source.file_name));
    match path.symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(source),
        _ => {}
    }
    let document = Document::read(&path)?;
    let mut errors = Vec::new();
    let manifest = parse::manifest(&document, &mut errors);
    // One whose `file` cannot be read might well be ours: serving without it would be a guess.
    if ours(&manifest) || (manifest.file.is_none() && !errors.is_empty()) {
        ConfigErrors::check(errors)?;
        source.manifest = manifest;
        source.manifest_path = Some(path);
        source.manifest_text = Some(document.text().to_owned());
    }
    Ok(source)
}

fn choose_backend(source: &ModelSource, configured: Option<&str>) -> Result<String, ConfigError> {
    let given = configured.or(source.manifest.backend.as_deref());
    if let Some(backend) = given.filter(|b| *b != AUTO) {
        if crate::config::is_backend_name(backend) {
            return Ok(backend.to_owned());
        }
        let what = format!("{backend:?} is not a backend's name");
        return Err(ConfigError::nowhere(what, format!("give one of {}", BACKENDS.join(", "))));
    }
    let suffix = Path::new(&source.file_name).extension().map(|e| e.to_string_lossy().to_lowercase());
    match suffix.as_deref() {
        Some("onnx") => Ok(given.unwrap_or("tract").to_owned()),
        Some("pt" | "pth" | "ts") => Ok("torch".to_owned()),
        _ => {
            let of = source.file.as_ref().or(source.manifest_path.as_ref()).unwrap_or(&source.folder);
            let what = format!("no backend follows from {}", of.display());
            let remedy = format!(
                "set `backend` in the configuration or in {MANIFEST} to one of {} (.onnx is tract; .pt, .pth and .ts are torch)",
                BACKENDS.join(", ")
            );
            Err(ConfigError::nowhere(what, remedy))
        }
    }
}
