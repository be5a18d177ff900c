//! Writes TorchScript files: the archive that `torch.jit.save` writes, from code and attributes.
//!
//! No PyTorch is needed, so that a bare clone makes its test modules itself, those that PyTorch would refuse to write
//! included. One class `M`; its code is the serialized form of TorchScript, which is nearly the language itself.

use super::npz::archive;
use std::fmt::Write as _;

/// A module to be written.
#[derive(Debug, Clone)]
pub struct Script {
    declarations: String,
    buffers: Vec<String>,
    methods: String,
    items: Vec<u8>,
    data: Vec<Vec<u8>>,
    version: u32,
}

fn text(value: &str) -> Vec<u8> {
    let mut out = vec![b'X'];
    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    out.extend_from_slice(value.as_bytes());
    out
}

fn number(value: u64) -> Vec<u8> {
    let mut out = vec![b'J'];
    out.extend_from_slice(&(value as u32).to_le_bytes());
    out
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(".to_vec(), items.concat(), b"t".to_vec()].concat()
}

/// The serialized form says the type of `self`.
fn typed(signatures: &str) -> String {
    signatures.replace("(self,", "(self: __torch__.M,").replace("(self)", "(self: __torch__.M)")
}

impl Script {
    /// A module with these methods, each `def NAME(self, x: Tensor) -> Tensor:` and its indented body.
    #[must_use]
    pub fn new(methods: &str) -> Script {
        let methods = typed(methods);
        Script {
            declarations: String::new(),
            buffers: Vec::new(),
            methods,
            items: Vec::new(),
            data: Vec::new(),
            version: 3,
        }
        .value("training", "bool", b"\x89")
    }

    /// A module whose `forward` takes `arguments` and returns `returns`: the lines of its body.
    #[must_use]
    pub fn forward(arguments: &str, returns: &str, body: &[&str]) -> Script {
        let body: String = body.iter().map(|line| format!("    {line}\n")).collect();
        Script::new(&format!("  def forward(self, {arguments}) -> {returns}:\n{body}"))
    }

    /// Adds another method.
    #[must_use]
    pub fn method(mut self, signature: &str, returns: &str, body: &[&str]) -> Script {
        let body: String = body.iter().map(|line| format!("    {line}\n")).collect();
        let signature = typed(signature);
        let _ = write!(self.methods, "  def {signature} -> {returns}:\n{body}");
        self
    }

    fn value(mut self, name: &str, ty: &str, pickle: &[u8]) -> Script {
        let _ = writeln!(self.declarations, "  {name} : {ty}");
        self.items.extend_from_slice(&text(name));
        self.items.extend_from_slice(pickle);
        self
    }

    /// Adds an attribute that is a whole number.
    #[must_use]
    pub fn int(self, name: &str, value: u32) -> Script {
        let pickle = number(u64::from(value));
        self.value(name, "int", &pickle)
    }

    /// Adds a buffer of f32.
    #[must_use]
    pub fn buffer(self, name: &str, shape: &[u64], values: &[f32]) -> Script {
        let mut bytes = Vec::new();
        values.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
        let mut script = self.tensor(name, "FloatStorage", shape, values.len(), bytes);
        script.buffers.push(name.to_owned());
        script
    }

    fn tensor(mut self, name: &str, storage: &str, shape: &[u64], count: usize, bytes: Vec<u8>) -> Script {
        let key = self.data.len().to_string();
        self.data.push(bytes);
        let strides: Vec<u64> = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
        let numbers = |all: &[u64]| tuple(&all.iter().map(|n| number(*n)).collect::<Vec<_>>());
        let global = |name: &str| format!("c{name}\n").into_bytes();
        let storage = global(&format!("torch\n{storage}"));
        let id = tuple(&[text("storage"), storage, text(&key), text("cpu"), number(count as u64)]);
        let hooks = [global("collections\nOrderedDict"), b")R".to_vec()].concat();
        let arguments = tuple(&[
            [id, b"Q".to_vec()].concat(),
            number(0),
            numbers(shape),
            numbers(&strides),
            b"\x89".to_vec(),
            hooks,
        ]);
        let pickle = [global("torch._utils\n_rebuild_tensor_v2"), arguments, b"R".to_vec()].concat();
        self.value(name, "Tensor", &pickle)
    }

    /// The format's version that the file claims.
    #[must_use]
    pub fn version(mut self, version: u32) -> Script {
        self.version = version;
        self
    }

    /// The file.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let buffers: String = self.buffers.iter().map(|b| format!("{b:?}, ")).collect();
        let head = format!("class M(Module):\n  __parameters__ = []\n  __buffers__ = [{buffers}]\n");
        let code = head + &self.declarations + &self.methods;
        let pickle = [&b"\x80\x02c__torch__\nM\n)\x81}("[..], &self.items, b"ub."].concat();
        let mut files = vec![
            ("archive/data.pkl".to_owned(), pickle),
            ("archive/code/__torch__.py".to_owned(), code.into_bytes()),
            ("archive/constants.pkl".to_owned(), b"\x80\x02).".to_vec()),
        ];
        for (i, bytes) in self.data.iter().enumerate() {
            files.push((format!("archive/data/{i}"), bytes.clone()));
        }
        files.push(("archive/version".to_owned(), format!("{}\n", self.version).into_bytes()));
        archive(&files)
    }

    /// What `torch.save` writes of weights alone: no code.
    #[must_use]
    pub fn checkpoint() -> Vec<u8> {
        let weights = [&b"\x80\x02}("[..], &text("weight"), &number(1), b"u."].concat();
        archive(&[("archive/data.pkl".to_owned(), weights), ("archive/version".to_owned(), b"3\n".to_vec())])
    }
}
