//! The shim, safely: a module of TorchScript with its inputs, outputs and hidden state as byte slices.
//!
//! Every `unsafe` here rests on the same: the pointer is the shim's own, made by `it_open` and closed by `Drop`; a
//! [`Module`] is `Send` and not `Sync`, so that one thread at a time uses it, as the shim asks; buffers of inputs and of
//! hidden state live as long as the module and never move, and an output's until the next run, for which `run` takes
//! `&mut self`. No other process reaches this memory.

use crate::library::{Functions, RawModel, RawTensor, functions, take};
use crate::text::reason;
use inferd_ipc::signature::{DType, TensorSpec};
use inferd_worker::ModelError;
use std::ffi::{CStr, CString, c_int};
use std::marker::PhantomData;

/// An argument of the method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// What it is.
    pub kind: Kind,
    /// Its name in the module's code.
    pub name: String,
    /// Its type, for messages.
    pub ty: String,
    /// The method runs without it.
    pub optional: bool,
}

/// What an argument takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A tensor.
    Tensor,
    /// A tuple of so many tensors.
    Tuple(usize),
    /// A dict of tensors by name.
    Dict,
    /// Something that no client can give.
    Other,
}

/// How an attribute changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A tensor's values.
    State(String),
    /// A tensor's dtype or shape: path, before, after.
    Shape(String, String),
    /// Something that is no tensor: path, type.
    Value(String, String),
}

/// A form of the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Form {
    /// As loaded.
    Loaded = 0,
    /// Frozen.
    Frozen = 1,
    /// Frozen and optimised for inference.
    Optimised = 2,
}

/// A buffer of the shim's.
#[derive(Clone, Copy)]
struct Buffer {
    data: *mut u8,
    bytes: usize,
}

/// A loaded module.
pub struct Module {
    functions: &'static Functions,
    raw: *mut RawModel,
    inputs: Vec<Buffer>,
    hidden: Vec<Buffer>,
    outputs: Vec<Buffer>,
    hidden_after: Vec<Buffer>,
    _one_thread: PhantomData<*mut RawModel>,
}

// SAFETY: the shim lets a model move between threads; nothing in it belongs to one.
unsafe impl Send for Module {}

fn tensor_spec(name: &str, raw: &RawTensor) -> Option<TensorSpec> {
    let dims: Vec<u64> = raw.dims[..raw.rank as usize].iter().map(|d| u64::try_from(*d).unwrap_or(0)).collect();
    Some(TensorSpec::new(name, DType::from_number(raw.dtype)?, &dims))
}

const EMPTY: RawTensor = RawTensor { data: std::ptr::null_mut(), bytes: 0, dims: [0; 8], rank: 0, dtype: 0 };

impl Buffer {
    fn of(raw: &RawTensor) -> Buffer {
        Buffer { data: raw.data, bytes: raw.bytes as usize }
    }

    /// # Safety
    /// The buffer is alive and nobody writes it while the slice lives.
    unsafe fn slice<'a>(self) -> &'a [u8] {
        if self.bytes == 0 || self.data.is_null() {
            return &[];
        }
        // SAFETY: the shim described a contiguous tensor of this many bytes; the caller answers for the rest.
        unsafe { std::slice::from_raw_parts(self.data, self.bytes) }
    }

    /// # Safety
    /// The buffer is alive and nobody else reads or writes it while the slice lives.
    unsafe fn slice_mut<'a>(self) -> &'a mut [u8] {
        // A tensor without elements has no address.
        if self.bytes == 0 || self.data.is_null() {
            return &mut [];
        }
        // SAFETY: as in `slice`.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.bytes) }
    }
}

impl Module {
    /// Opens a file on a device; none is the CPU. The arguments are those of `method`.
    ///
    /// # Errors
    /// The outer error: no libtorch. The inner one is libtorch's message.
    #[allow(clippy::type_complexity)]
    pub fn open(
        file: &[u8],
        device: Option<u16>,
        method: &str,
    ) -> Result<Result<(Module, Vec<Argument>), String>, ModelError> {
        let functions = functions()?;
        let Ok(method) = CString::new(method) else { return Ok(Err("a method's name holds a zero byte".into())) };
        let (mut raw, mut text) = (std::ptr::null_mut(), std::ptr::null_mut());
        let device = device.map_or(-1, c_int::from);
        // SAFETY: the slice outlives the call, which reads it only; the out pointers are ours.
        let error = unsafe {
            (functions.it_open)(file.as_ptr().cast(), file.len(), device, method.as_ptr(), &raw mut raw, &raw mut text)
        };
        if let Some(message) = take(functions, error) {
            return Ok(Err(reason(&message)));
        }
        let module = Module {
            functions,
            raw,
            inputs: Vec::new(),
            hidden: Vec::new(),
            outputs: Vec::new(),
            hidden_after: Vec::new(),
            _one_thread: PhantomData,
        };
        let lines = take(functions, text).unwrap_or_default();
        let argument = |line: &str| {
            let mut words = line.splitn(5, ' ');
            let (kind, tensors, optional) = (words.next()?, words.next()?.parse().ok()?, words.next()? == "1");
            let kind = match kind {
                "tensor" => Kind::Tensor,
                "tuple" => Kind::Tuple(tensors),
                "dict" => Kind::Dict,
                _ => Kind::Other,
            };
            let (name, ty) = (words.next()?.to_owned(), words.next().unwrap_or_default().to_owned());
            Some(Argument { kind, name, ty, optional })
        };
        Ok(Ok((module, lines.lines().filter_map(argument).collect())))
    }

    fn check(&self, error: *mut std::ffi::c_char) -> Result<(), String> {
        take(self.functions, error).map_or(Ok(()), |message| Err(reason(&message)))
    }

    /// Adds an input of an argument: the next element of a tuple, the entry `key` of a dict.
    ///
    /// # Errors
    /// libtorch's message: no memory for it, most likely.
    pub fn add_input(&mut self, argument: usize, spec: &TensorSpec, key: &str) -> Result<(), String> {
        let key = CString::new(key).map_err(|e| e.to_string())?;
        let mut raw = RawTensor { rank: spec.shape.len() as u32, dtype: spec.dtype as u32, ..EMPTY };
        for (to, from) in raw.dims.iter_mut().zip(&spec.shape) {
            *to = i64::try_from(*from).map_err(|e| e.to_string())?;
        }
        // SAFETY: see the module's note; key and description are ours and outlive the call.
        self.check(unsafe { (self.functions.it_add_input)(self.raw, argument, key.as_ptr(), &raw mut raw) })?;
        self.inputs.push(Buffer::of(&raw));
        Ok(())
    }

    /// The buffer of input `i`.
    pub fn input_mut(&mut self, i: usize) -> &mut [u8] {
        // SAFETY: the shim keeps the tensor's storage for the model's life; `&mut self` keeps runs and readers away.
        unsafe { self.inputs[i].slice_mut() }
    }

    /// Remembers every attribute.
    ///
    /// # Errors
    /// libtorch's message.
    pub fn watch(&mut self) -> Result<(), String> {
        // SAFETY: see the module's note.
        self.check(unsafe { (self.functions.it_watch)(self.raw) })
    }

    /// What changed since [`watch`](Module::watch).
    ///
    /// # Errors
    /// libtorch's message.
    pub fn changes(&mut self) -> Result<Vec<Change>, String> {
        let mut text = std::ptr::null_mut();
        // SAFETY: see the module's note.
        self.check(unsafe { (self.functions.it_changes)(self.raw, &raw mut text) })?;
        let change = |line: &str| {
            let mut words = line.splitn(3, ' ');
            let (kind, path, rest) = (words.next()?, words.next()?.to_owned(), words.next().unwrap_or_default());
            Some(match kind {
                "state" => Change::State(path),
                "shape" => Change::Shape(path, rest.to_owned()),
                _ => Change::Value(path, rest.to_owned()),
            })
        };
        Ok(take(self.functions, text).unwrap_or_default().lines().filter_map(change).collect())
    }

    /// Makes a tensor attribute hidden state; its values are those at [`watch`](Module::watch).
    ///
    /// # Errors
    /// There is no such attribute.
    pub fn hide(&mut self, path: &str) -> Result<TensorSpec, String> {
        let name = CString::new(path).map_err(|e| e.to_string())?;
        let mut raw = EMPTY;
        // SAFETY: see the module's note.
        self.check(unsafe { (self.functions.it_hide)(self.raw, name.as_ptr(), &raw mut raw) })?;
        self.hidden.push(Buffer::of(&raw));
        self.hidden_after.push(Buffer { data: std::ptr::null_mut(), bytes: 0 });
        tensor_spec(path, &raw).ok_or_else(|| format!("state {path} has a dtype that cannot be kept"))
    }

    /// What hidden state `k` is before a run.
    pub fn hidden_in_mut(&mut self, k: usize) -> &mut [u8] {
        // SAFETY: as for inputs.
        unsafe { self.hidden[k].slice_mut() }
    }

    /// What hidden state `k` was after the last run or [`show_hidden`](Module::show_hidden).
    pub fn hidden_out(&self, k: usize) -> &[u8] {
        // SAFETY: the shim keeps what it described until it is asked again, which takes `&mut self`.
        unsafe { self.hidden_after[k].slice() }
    }

    /// Reads all hidden state as it stands in the module now.
    ///
    /// # Errors
    /// It changed dtype or shape.
    pub fn show_hidden(&mut self) -> Result<(), String> {
        for k in 0..self.hidden.len() {
            let mut raw = EMPTY;
            // SAFETY: see the module's note.
            self.check(unsafe { (self.functions.it_hidden)(self.raw, k, &raw mut raw) })?;
            self.hidden_after[k] = Buffer::of(&raw);
        }
        Ok(())
    }

    /// Calls a method without arguments.
    ///
    /// # Errors
    /// There is none of that name, or it raised.
    pub fn call(&mut self, method: &str) -> Result<(), String> {
        let method = CString::new(method).map_err(|e| e.to_string())?;
        // SAFETY: see the module's note.
        self.check(unsafe { (self.functions.it_call)(self.raw, method.as_ptr()) })
    }

    /// Makes a form.
    ///
    /// # Errors
    /// libtorch cannot, or the form could not hold the hidden state.
    pub fn form(&mut self, form: Form) -> Result<(), String> {
        // SAFETY: see the module's note.
        self.check(unsafe { (self.functions.it_form)(self.raw, form as c_int) })
    }

    /// Runs a form that was made from here on.
    pub fn use_form(&mut self, form: Form) {
        // SAFETY: see the module's note.
        unsafe { (self.functions.it_use)(self.raw, form as c_int) }
    }

    /// Frees a form that is not used.
    pub fn drop_form(&mut self, form: Form) {
        // SAFETY: see the module's note.
        unsafe { (self.functions.it_drop)(self.raw, form as c_int) }
    }

    /// Computes in f16 (1) or bf16 (2) where that is safe.
    ///
    /// # Errors
    /// libtorch's message.
    pub fn precision(&mut self, number: c_int) -> Result<(), String> {
        // SAFETY: see the module's note.
        self.check(unsafe { (self.functions.it_precision)(self.raw, number) })
    }

    /// From here on outputs have the dtypes and shapes of the last run.
    pub fn settle(&mut self) {
        // SAFETY: see the module's note.
        unsafe { (self.functions.it_settle)(self.raw) }
    }

    /// Seeds libtorch's generators.
    pub fn seed(&mut self, seed: u64) {
        // SAFETY: no pointer.
        unsafe { (self.functions.it_seed)(seed) }
    }

    /// One run, with what stands in the buffers.
    ///
    /// # Errors
    /// The model raised, or gave something else than when it was loaded.
    pub fn run(&mut self) -> Result<(), String> {
        // What the last run gave may be freed by this one.
        self.outputs.clear();
        // SAFETY: see the module's note.
        self.check(unsafe { (self.functions.it_run)(self.raw) })?;
        self.show_hidden()?;
        // SAFETY: see the module's note.
        for i in 0..unsafe { (self.functions.it_outputs)(self.raw) } {
            let (raw, _) = self.raw_output(i);
            self.outputs.push(Buffer::of(&raw));
        }
        Ok(())
    }

    fn raw_output(&self, i: usize) -> (RawTensor, *const std::ffi::c_char) {
        let (mut raw, mut key) = (EMPTY, std::ptr::null());
        // SAFETY: see the module's note; `i` is below `it_outputs`.
        unsafe { (self.functions.it_output)(self.raw, i, &raw mut raw, &raw mut key) };
        (raw, key)
    }

    /// Number of outputs of the last run.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs.len()
    }

    /// The key of output `i` in a dict, or nothing.
    #[must_use]
    pub fn output_key(&self, i: usize) -> String {
        // SAFETY: the shim's string lives until the next run.
        unsafe { CStr::from_ptr(self.raw_output(i).1) }.to_string_lossy().into_owned()
    }

    /// Output `i`, described; none if its dtype is one that no client can hold.
    #[must_use]
    pub fn output_spec(&self, i: usize, name: &str) -> Option<TensorSpec> {
        tensor_spec(name, &self.raw_output(i).0)
    }

    /// Output `i` of the last run.
    #[must_use]
    pub fn output(&self, i: usize) -> &[u8] {
        // SAFETY: the shim holds the tensor until the next run, which takes `&mut self`.
        self.outputs.get(i).map_or(&[], |buffer| unsafe { buffer.slice() })
    }

    /// Nanoseconds of the last run on a device: to it, on it, from it.
    #[must_use]
    pub fn times(&self) -> Option<[u64; 3]> {
        let mut times = [0; 3];
        // SAFETY: see the module's note.
        (unsafe { (self.functions.it_times)(self.raw, &raw mut times) } != 0).then_some(times)
    }

    /// Whether its device still answers.
    #[must_use]
    pub fn device_works(&self) -> bool {
        // SAFETY: see the module's note.
        unsafe { (self.functions.it_device_works)(self.raw) != 0 }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: nobody uses it after this.
        unsafe { (self.functions.it_close)(self.raw) }
    }
}
