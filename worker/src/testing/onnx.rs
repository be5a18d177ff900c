//! Writes small ONNX files: the protobuf wire format, and the few messages of `onnx.proto` needed.
//!
//! ```
//! use inferd_ipc::signature::DType;
//! use inferd_worker::testing::onnx::Onnx;
//! let bytes = Onnx::new()
//!     .input("x", DType::F32, &["batch".into(), 3.into()])
//!     .node("Neg", &["x"], &["y"], &[])
//!     .output("y", DType::F32, &["batch".into(), 3.into()])
//!     .bytes();
//! assert!(!bytes.is_empty());
//! ```

use inferd_ipc::signature::DType;

/// A dimension as the file declares it.
#[derive(Debug, Clone)]
pub enum Dim {
    /// A number.
    Fixed(u64),
    /// A symbol, or an expression of symbols.
    Named(String),
    /// Neither.
    Unknown,
}

impl From<u64> for Dim {
    fn from(v: u64) -> Dim {
        Dim::Fixed(v)
    }
}

impl From<i32> for Dim {
    fn from(v: i32) -> Dim {
        Dim::Fixed(v.unsigned_abs().into())
    }
}

impl From<&str> for Dim {
    fn from(v: &str) -> Dim {
        Dim::Named(v.to_owned())
    }
}

/// An attribute of a node.
#[derive(Debug, Clone)]
pub enum Attribute {
    /// A whole number.
    Int(i64),
    /// Whole numbers.
    Ints(Vec<i64>),
    /// A real number.
    Float(f32),
    /// Text.
    Text(String),
    /// A tensor: dtype, shape, row-major bytes.
    Tensor(DType, Vec<u64>, Vec<u8>),
    /// A subgraph.
    Graph(Graph),
}

/// The number of a dtype in `TensorProto.DataType`.
#[must_use]
pub fn onnx_number(dtype: DType) -> u64 {
    match dtype {
        DType::F32 => 1,
        DType::U8 => 2,
        DType::I8 => 3,
        DType::U16 => 4,
        DType::I16 => 5,
        DType::I32 => 6,
        DType::I64 => 7,
        DType::Bool => 9,
        DType::F16 => 10,
        DType::F64 => 11,
        DType::U32 => 12,
        DType::U64 => 13,
        DType::Bf16 => 16,
    }
}

#[derive(Debug, Clone, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.0.push(v as u8 | 0x80);
            v >>= 7;
        }
        self.0.push(v as u8);
    }

    fn int(mut self, field: u64, v: u64) -> Message {
        self.varint(field << 3);
        self.varint(v);
        self
    }

    fn bytes(mut self, field: u64, v: &[u8]) -> Message {
        self.varint(field << 3 | 2);
        self.varint(v.len() as u64);
        self.0.extend_from_slice(v);
        self
    }

    fn text(self, field: u64, v: &str) -> Message {
        self.bytes(field, v.as_bytes())
    }

    fn message(self, field: u64, v: Message) -> Message {
        self.bytes(field, &v.0)
    }

    fn float(mut self, field: u64, v: f32) -> Message {
        self.varint(field << 3 | 5);
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }
}

fn tensor(name: &str, dtype: DType, shape: &[u64]) -> Message {
    let dims = shape.iter().fold(Message::default(), |m, d| m.int(1, *d));
    dims.int(2, onnx_number(dtype)).text(8, name)
}

fn value_info(name: &str, dtype: DType, shape: &[Dim]) -> Message {
    let dims = shape.iter().fold(Message::default(), |m, d| {
        m.message(
            1,
            match d {
                Dim::Fixed(v) => Message::default().int(1, *v),
                Dim::Named(s) => Message::default().text(2, s),
                Dim::Unknown => Message::default(),
            },
        )
    });
    let tensor_type = Message::default().int(1, onnx_number(dtype)).message(2, dims);
    Message::default().text(1, name).message(2, Message::default().message(1, tensor_type))
}

/// A graph being written; a file's own, or a subgraph.
#[derive(Debug, Clone, Default)]
pub struct Graph(Message);

impl Graph {
    /// A graph without anything.
    #[must_use]
    pub fn new() -> Graph {
        Graph(Message::default().text(2, "graph"))
    }

    /// Adds an input.
    #[must_use]
    pub fn input(self, name: &str, dtype: DType, shape: &[Dim]) -> Graph {
        Graph(self.0.message(11, value_info(name, dtype, shape)))
    }

    /// Adds an output.
    #[must_use]
    pub fn output(self, name: &str, dtype: DType, shape: &[Dim]) -> Graph {
        Graph(self.0.message(12, value_info(name, dtype, shape)))
    }

    /// Adds what the file claims of an inner value.
    #[must_use]
    pub fn value_info(self, name: &str, dtype: DType, shape: &[Dim]) -> Graph {
        Graph(self.0.message(13, value_info(name, dtype, shape)))
    }

    /// Adds a constant: row-major bytes.
    #[must_use]
    pub fn initialiser(self, name: &str, dtype: DType, shape: &[u64], bytes: &[u8]) -> Graph {
        Graph(self.0.message(5, tensor(name, dtype, shape).bytes(9, bytes)))
    }

    /// Adds a constant whose bytes lie in a file beside the model.
    #[must_use]
    pub fn external(self, name: &str, dtype: DType, shape: &[u64], location: &[(&str, &str)]) -> Graph {
        let entry = |k: &str, v: &str| Message::default().text(1, k).text(2, v);
        let tensor = location.iter().fold(tensor(name, dtype, shape), |m, (k, v)| m.message(13, entry(k, v)));
        Graph(self.0.message(5, tensor.int(14, 1)))
    }

    /// Adds a node.
    #[must_use]
    pub fn node(self, op: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, Attribute)]) -> Graph {
        let node = inputs.iter().fold(Message::default(), |m, i| m.text(1, i));
        let node = outputs.iter().fold(node, |m, o| m.text(2, o)).text(4, op);
        let node = attributes.iter().fold(node, |m, (name, value)| {
            let a = Message::default().text(1, name);
            m.message(
                5,
                match value {
                    Attribute::Float(v) => a.float(2, *v).int(20, 1),
                    Attribute::Int(v) => a.int(3, *v as u64).int(20, 2),
                    Attribute::Text(v) => a.text(4, v).int(20, 3),
                    Attribute::Tensor(dtype, shape, bytes) => {
                        a.message(5, tensor("", *dtype, shape).bytes(9, bytes)).int(20, 4)
                    }
                    Attribute::Graph(g) => a.message(6, g.0.clone()).int(20, 5),
                    Attribute::Ints(v) => v.iter().fold(a, |a, v| a.int(8, *v as u64)).int(20, 7),
                },
            )
        });
        Graph(self.0.message(1, node))
    }
}

/// An ONNX file being written.
#[derive(Debug, Clone)]
pub struct Onnx(Graph);

impl Default for Onnx {
    fn default() -> Onnx {
        Onnx::new()
    }
}

macro_rules! forward {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $t:ty),*);)*) => {
        impl Onnx {
            $($(#[$doc])* #[must_use] pub fn $name(self, $($arg: $t),*) -> Onnx { Onnx(self.0.$name($($arg),*)) })*
        }
    };
}
forward! {
    /// Adds an input.
    input(name: &str, dtype: DType, shape: &[Dim]);
    /// Adds an output.
    output(name: &str, dtype: DType, shape: &[Dim]);
    /// Adds what the file claims of an inner value.
    value_info(name: &str, dtype: DType, shape: &[Dim]);
    /// Adds a constant: row-major bytes.
    initialiser(name: &str, dtype: DType, shape: &[u64], bytes: &[u8]);
    /// Adds a constant whose bytes lie in a file beside the model: `location`, `offset`, `length`.
    external(name: &str, dtype: DType, shape: &[u64], location: &[(&str, &str)]);
    /// Adds a node.
    node(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, Attribute)]);
}

impl Onnx {
    /// An empty file of operator set 17.
    #[must_use]
    pub fn new() -> Onnx {
        Onnx(Graph::new())
    }

    /// The file.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        let opset = Message::default().int(2, 17);
        Message::default().int(1, 8).text(2, "inferd tests").message(7, self.0.0).message(8, opset).0
    }
}

/// Row-major bytes of f32 numbers.
#[must_use]
pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

/// `y = x * scale` over f32 `[1, n]`, named `obs` and `action`: the smallest policy.
#[must_use]
pub fn scaler(n: u64, scale: f32) -> Vec<u8> {
    Onnx::new()
        .input("obs", DType::F32, &[1.into(), n.into()])
        .initialiser("scale", DType::F32, &[1], &f32_bytes(&[scale]))
        .node("Mul", &["obs", "scale"], &["action"], &[])
        .output("action", DType::F32, &[1.into(), n.into()])
        .bytes()
}

/// `h_out = h_in + obs`, `action = h_out` over f32 `[1, n]`: the smallest recurrent policy, with the
/// state pair `h_in <- h_out`.
#[must_use]
pub fn accumulator(n: u64) -> Vec<u8> {
    let shape = [1.into(), n.into()];
    Onnx::new()
        .input("obs", DType::F32, &shape)
        .input("h_in", DType::F32, &shape)
        .node("Add", &["h_in", "obs"], &["h_out"], &[])
        .node("Identity", &["h_out"], &["action"], &[])
        .output("action", DType::F32, &shape)
        .output("h_out", DType::F32, &shape)
        .bytes()
}
