//! Models to test with: a folder with a `model.toml` for the echo backend, or a path to a real file.
//!
//! An echo model answers output k with the bytes of input k, repeated or cut to length, and feeds a
//! state pair with itself + 1. [`Model::counter`] lets a client see its state: output 1 shows it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// One model of a daemon under test.
#[derive(Debug, Clone)]
pub struct Model {
    /// Its name in the configuration.
    pub name: String,
    /// Keys of `[models.NAME]`, as TOML values.
    pub config: BTreeMap<String, String>,
    /// A path to serve instead of a folder of our own.
    pub path: Option<PathBuf>,
    /// Inputs: name, and the body of `[inputs.NAME]`.
    pub inputs: Vec<(String, String)>,
    /// Outputs: name, and the body of `[outputs.NAME]`.
    pub outputs: Vec<(String, String)>,
    /// State pairs: input, output.
    pub state: Vec<(String, String)>,
    /// The backend's options.
    pub options: BTreeMap<String, String>,
    /// Lines at the top of the manifest.
    pub top: Vec<String>,
    /// A file beside the manifest, which echo does not look at.
    pub weights: Option<Vec<u8>>,
}

fn tensor(dtype: &str, shape: &[u64]) -> String {
    format!("dtype = {dtype:?}\nshape = {shape:?}\n")
}

impl Model {
    /// An echo model without tensors yet.
    #[must_use]
    pub fn bare(name: &str) -> Model {
        Model {
            name: name.to_owned(),
            config: BTreeMap::new(),
            path: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            state: Vec::new(),
            options: BTreeMap::new(),
            top: Vec::new(),
            weights: None,
        }
        .config("backend", "\"echo\"")
    }

    /// An echo model: x f32[1,16] -> y f32[1,16].
    #[must_use]
    pub fn echo(name: &str) -> Model {
        Model::bare(name).input("x", "f32", &[1, 16]).output("y", "f32", &[1, 16])
    }

    /// A stateful echo model: besides x -> y, `peek` shows the state h before the step; h becomes h + 1.
    #[must_use]
    pub fn counter(name: &str) -> Model {
        Model::echo(name)
            .input("h", "f32", &[1, 4])
            .output("peek", "f32", &[1, 4])
            .output("h_out", "f32", &[1, 4])
            .state("h", "h_out")
            .option("show_state", "peek")
    }

    /// A model served from a path as it is: no manifest of ours.
    #[must_use]
    pub fn at(name: &str, path: &Path) -> Model {
        let mut model = Model::bare(name);
        model.path = Some(path.to_owned());
        model.config.remove("backend");
        model
    }

    /// Sets a key of `[models.NAME]` to a TOML value.
    #[must_use]
    pub fn config(mut self, key: &str, value: &str) -> Model {
        self.config.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets slots and queue.
    #[must_use]
    pub fn queue(self, slots: u32, queue: &str) -> Model {
        self.config("slots", &slots.to_string()).config("queue", &format!("{queue:?}"))
    }

    /// Adds an input.
    #[must_use]
    pub fn input(mut self, name: &str, dtype: &str, shape: &[u64]) -> Model {
        self.inputs.push((name.to_owned(), tensor(dtype, shape)));
        self
    }

    /// Adds an output.
    #[must_use]
    pub fn output(mut self, name: &str, dtype: &str, shape: &[u64]) -> Model {
        self.outputs.push((name.to_owned(), tensor(dtype, shape)));
        self
    }

    /// Adds a line to the manifest's section of an input or output.
    ///
    /// # Panics
    /// When there is no such tensor.
    #[must_use]
    pub fn rule(mut self, name: &str, line: &str) -> Model {
        let found = self.inputs.iter_mut().chain(&mut self.outputs).find(|(n, _)| n == name);
        let (_, body) = found.expect("a tensor of this model");
        writeln!(body, "{line}").expect("text");
        self
    }

    /// Adds a state pair.
    #[must_use]
    pub fn state(mut self, input: &str, output: &str) -> Model {
        self.state.push((input.to_owned(), output.to_owned()));
        self
    }

    /// Sets an option of the backend.
    #[must_use]
    pub fn option(mut self, key: &str, value: impl ToString) -> Model {
        self.options.insert(key.to_owned(), value.to_string());
        self
    }

    /// Adds a line at the top of the manifest.
    #[must_use]
    pub fn top(mut self, line: &str) -> Model {
        self.top.push(line.to_owned());
        self
    }

    /// Gives the model a file: its bytes are staged, handed over and stored like any other's.
    #[must_use]
    pub fn weights(mut self, bytes: &[u8]) -> Model {
        self.top.retain(|line| !line.starts_with("file ="));
        self.weights = Some(bytes.to_owned());
        self.top("file = \"weights.bin\"")
    }

    /// The manifest's text.
    #[must_use]
    pub fn manifest(&self) -> String {
        let mut text = self.top.join("\n") + "\n";
        let names = |tensors: &[(String, String)]| tensors.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
        let mut put = |line: String| text.push_str(&line);
        put(format!("input_order = {:?}\noutput_order = {:?}\n", names(&self.inputs), names(&self.outputs)));
        for (kind, tensors) in [("inputs", &self.inputs), ("outputs", &self.outputs)] {
            tensors.iter().for_each(|(name, body)| put(format!("[{kind}.{name}]\n{body}")));
        }
        for (input, output) in &self.state {
            put(format!("[[state]]\ninput = {input:?}\noutput = {output:?}\n"));
        }
        put("[options]\n".to_owned());
        for (key, value) in &self.options {
            let quoted = if value.parse::<i64>().is_ok() { value.clone() } else { format!("{value:?}") };
            put(format!("{key} = {quoted}\n"));
        }
        text
    }

    /// Writes the model's folder below `dir` (unless it has a path) and returns what to serve.
    ///
    /// # Panics
    /// When the disk refuses.
    #[must_use]
    pub fn write(&self, dir: &Path) -> PathBuf {
        if let Some(path) = &self.path {
            return path.clone();
        }
        let folder = dir.join(&self.name);
        std::fs::create_dir_all(&folder).expect("a folder for the model");
        std::fs::write(folder.join("model.toml"), self.manifest()).expect("a manifest");
        if let Some(bytes) = &self.weights {
            std::fs::write(folder.join("weights.bin"), bytes).expect("the model's file");
        }
        folder
    }

    /// The section `[models.NAME]` of the configuration.
    #[must_use]
    pub fn section(&self, path: &Path) -> String {
        let keys: String = self.config.iter().map(|(k, v)| format!("{k} = {v}\n")).collect();
        format!("[models.{:?}]\npath = {:?}\n{keys}", self.name, path.display().to_string())
    }
}
