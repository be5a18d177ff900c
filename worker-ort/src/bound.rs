//! A session of ONNX Runtime with its tensors: the calls that every step makes, and the only unsafe ones per step.
//!
//! Inputs lie in buffers of ours for good; so do outputs of a known shape, which ONNX Runtime writes in place. Where all
//! is bound and computed on the CPU, a step is one call with an IO binding. An output of unknown shape is ONNX Runtime's
//! to allocate, and a device's inputs have to be copied at each run (a binding copies them once, when it is made): then a
//! step is one call by name. Neither allocates anything of ours.

use inferd_ipc::limits::RANK_MAX;
use inferd_ipc::signature::{DType, TensorSpec};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::sys::{
    ONNXTensorElementDataType as Element, OrtIoBinding, OrtLoggingLevel, OrtRunOptions, OrtTensorTypeAndShapeInfo,
    OrtValue,
};
use ort::{AsPointer, ortsys};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::{CString, c_char, c_void};
use std::ptr::{self, NonNull};

/// Every tensor begins on a line of the cache, as its kernels want it.
const ALIGN: usize = 64;

/// Zeroed memory at a fixed place, which this process and ONNX Runtime's kernels write by turns.
struct Buffer {
    start: NonNull<u8>,
    bytes: usize,
}

impl Buffer {
    /// An empty tensor has an address too.
    ///
    /// # Panics
    /// Over `isize::MAX`; every size is checked against `TENSOR_BYTES_MAX` before.
    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes.max(1), ALIGN).expect("a tensor is below its limit")
    }

    fn zeroed(bytes: usize) -> Buffer {
        let layout = Buffer::layout(bytes);
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) });
        Buffer { start: start.unwrap_or_else(|| handle_alloc_error(layout)), bytes }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: in bounds and aligned by `zeroed`, alive with self; kernels write only during a run, which borrows the
        // whole `Bound` mutably, so never while this slice lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this very layout.
        unsafe { dealloc(self.start.as_ptr(), Buffer::layout(self.bytes)) }
    }
}

/// A value of ONNX Runtime that we own.
struct Value(NonNull<OrtValue>);

impl Value {
    /// A tensor over a buffer, which must outlive it.
    fn over(buffer: &Buffer, dtype: DType, shape: &[u64], memory: &MemoryInfo<'_>) -> ort::Result<Value> {
        let shape: Vec<i64> = shape.iter().map(|d| *d as i64).collect();
        let mut value: *mut OrtValue = ptr::null_mut();
        let (start, bytes) = (buffer.start.as_ptr().cast::<c_void>(), buffer.bytes);
        // The length is checked against shape and type by ONNX Runtime.
        ortsys![unsafe CreateTensorWithDataAsOrtValue(
            memory.ptr(), start, bytes, shape.as_ptr(), shape.len(), element(dtype), &mut value
        )?];
        NonNull::new(value).map(Value).ok_or_else(|| ort::Error::new("no tensor was made"))
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        ortsys![unsafe ReleaseValue(self.0.as_ptr())];
    }
}

fn element(dtype: DType) -> Element {
    match dtype {
        DType::F32 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        DType::F64 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        DType::F16 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        DType::Bf16 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        DType::I8 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        DType::I16 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        DType::I32 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        DType::I64 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        DType::U8 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        DType::U16 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        DType::U32 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        DType::U64 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        DType::Bool => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
    }
}

/// What a run left in an output whose place is ONNX Runtime's.
pub(crate) struct Found<'a> {
    /// Lengths of its dimensions.
    pub(crate) shape: &'a [u64],
    /// Row-major; as many as the shape says.
    pub(crate) bytes: &'a [u8],
}

/// A name and what its tensor is; `shape` is none where only a run says it.
pub(crate) struct Tensor {
    pub(crate) name: CString,
    pub(crate) dtype: DType,
    pub(crate) shape: Option<Vec<u64>>,
}

/// An output: a place of ours with its value, or the value that the last run left.
enum Output {
    // The value refers to the buffer, and is dropped before it.
    Fixed { value: Value, buffer: Buffer },
    Free { dtype: DType, value: Option<Value>, shape: Vec<u64>, bytes: usize },
}

/// The tensors of a session.
struct Parts {
    binding: Option<NonNull<OrtIoBinding>>,
    run_options: NonNull<OrtRunOptions>,
    /// For a call by name: names and values as pointers, in the order of the tensors.
    input_names: Vec<*const c_char>,
    output_names: Vec<*const c_char>,
    input_pointers: Vec<*const OrtValue>,
    output_pointers: Vec<*mut OrtValue>,
    // Values before the buffers that they refer to: this is the order in which they are dropped.
    values: Vec<Value>,
    inputs: Vec<Buffer>,
    outputs: Vec<Output>,
    names: Vec<CString>,
}

impl Drop for Parts {
    fn drop(&mut self) {
        if let Some(binding) = self.binding {
            ortsys![unsafe ReleaseIoBinding(binding.as_ptr())];
        }
        ortsys![unsafe ReleaseRunOptions(self.run_options.as_ptr())];
    }
}

/// A session and its tensors.
pub(crate) struct Bound {
    /// Dropped before the session that it refers to.
    parts: Parts,
    session: Session,
}

// SAFETY: one thread at a time uses it (`&mut`); ONNX Runtime's objects are not tied to the thread that made them, and the
// pointers are to blocks of the heap, which stay where they are when this moves.
unsafe impl Send for Bound {}

impl Bound {
    /// Binds the inputs, and the outputs that have a shape. `cpu`: all is computed in memory of the CPU.
    pub(crate) fn new(session: Session, inputs: &[Tensor], outputs: &[Tensor], cpu: bool) -> ort::Result<Bound> {
        let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?;
        let mut parts = Parts::new()?;
        for tensor in inputs {
            let shape = tensor.shape.as_deref().unwrap_or_default();
            let buffer = Buffer::zeroed(bytes_of(tensor.dtype, shape));
            let value = Value::over(&buffer, tensor.dtype, shape, &memory)?;
            parts.input_pointers.push(value.0.as_ptr());
            parts.values.push(value);
            parts.inputs.push(buffer);
            parts.names.push(tensor.name.clone());
        }
        for tensor in outputs {
            let output = match &tensor.shape {
                None => Output::Free { dtype: tensor.dtype, value: None, shape: Vec::new(), bytes: 0 },
                Some(shape) => {
                    let buffer = Buffer::zeroed(bytes_of(tensor.dtype, shape));
                    let value = Value::over(&buffer, tensor.dtype, shape, &memory)?;
                    Output::Fixed { value, buffer }
                }
            };
            parts.output_pointers.push(ptr::null_mut());
            parts.outputs.push(output);
            parts.names.push(tensor.name.clone());
        }
        // The text of a name is a block of its own, which stays where it is when the list moves.
        let (inputs, outputs) = parts.names.split_at(inputs.len());
        parts.input_names = inputs.iter().map(|n| n.as_ptr()).collect();
        parts.output_names = outputs.iter().map(|n| n.as_ptr()).collect();
        if cpu && parts.outputs.iter().all(|o| matches!(o, Output::Fixed { .. })) {
            parts.bind(&session)?;
        }
        Ok(Bound { parts, session })
    }

    /// Gives the session back, for other tensors.
    pub(crate) fn into_session(self) -> Session {
        let Bound { parts, session } = self;
        drop(parts);
        session
    }

    /// The buffer of input `i`.
    pub(crate) fn input_mut(&mut self, i: usize) -> &mut [u8] {
        self.parts.inputs[i].bytes_mut()
    }

    /// Output `i` of the last run, where its place is ours.
    pub(crate) fn output(&self, i: usize) -> &[u8] {
        match &self.parts.outputs[i] {
            Output::Fixed { buffer, .. } => buffer.bytes(),
            Output::Free { .. } => &[],
        }
    }

    /// Output `i` of the last run, where its place is ONNX Runtime's; none after a failed one.
    pub(crate) fn found(&self, i: usize) -> Option<Found<'_>> {
        let Output::Free { value: Some(value), shape, bytes, .. } = &self.parts.outputs[i] else { return None };
        let mut start: *mut c_void = ptr::null_mut();
        ortsys![@ort: unsafe GetTensorMutableData(value.0.as_ptr(), &mut start) as Result].ok()?;
        let bytes = match NonNull::new(start.cast::<u8>()) {
            // SAFETY: a dense tensor in CPU memory, of `bytes` bytes by its own type and shape; it lives as long as its
            // value, which only the next run drops.
            Some(start) if *bytes > 0 => unsafe { std::slice::from_raw_parts(start.as_ptr(), *bytes) },
            _ => &[],
        };
        Some(Found { shape, bytes })
    }

    /// One step.
    pub(crate) fn run(&mut self) -> ort::Result<()> {
        let session = self.session.ptr().cast_mut();
        let parts = &mut self.parts;
        if let Some(binding) = parts.binding {
            ortsys![unsafe RunWithBinding(session, parts.run_options.as_ptr(), binding.as_ptr())?];
            return Ok(());
        }
        for (pointer, output) in parts.output_pointers.iter_mut().zip(&mut parts.outputs) {
            match output {
                Output::Fixed { value, .. } => *pointer = value.0.as_ptr(),
                Output::Free { value, .. } => (*pointer, *value) = (ptr::null_mut(), None),
            }
        }
        let ran = ortsys![@ort: unsafe Run(
            session,
            parts.run_options.as_ptr(),
            parts.input_names.as_ptr(),
            parts.input_pointers.as_ptr(),
            parts.input_pointers.len(),
            parts.output_names.as_ptr(),
            parts.output_names.len(),
            parts.output_pointers.as_mut_ptr()
        ) as Result];
        // After a failed run too: what it left is ours to release.
        for (pointer, output) in parts.output_pointers.iter().zip(&mut parts.outputs) {
            if let Output::Free { value, .. } = output {
                *value = NonNull::new(*pointer).map(Value);
            }
        }
        ran?;
        for output in &mut parts.outputs {
            if let Output::Free { dtype, value, shape, bytes } = output {
                *bytes = measure(value.as_ref(), *dtype, shape)?;
            }
        }
        Ok(())
    }
}

impl Parts {
    fn new() -> ort::Result<Parts> {
        let mut run_options: *mut OrtRunOptions = ptr::null_mut();
        ortsys![unsafe CreateRunOptions(&mut run_options)?];
        let run_options = NonNull::new(run_options).ok_or_else(|| ort::Error::new("no run options were made"))?;
        let parts = Parts {
            binding: None,
            run_options,
            input_names: Vec::new(),
            output_names: Vec::new(),
            input_pointers: Vec::new(),
            output_pointers: Vec::new(),
            values: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            names: Vec::new(),
        };
        // A failed run is told by its status, in full; the library's own log would repeat it at every step.
        let quiet = OrtLoggingLevel::ORT_LOGGING_LEVEL_FATAL as i32;
        ortsys![unsafe RunOptionsSetRunLogSeverityLevel(run_options.as_ptr(), quiet)?];
        Ok(parts)
    }

    fn bind(&mut self, session: &Session) -> ort::Result<()> {
        let mut binding: *mut OrtIoBinding = ptr::null_mut();
        ortsys![unsafe CreateIoBinding(session.ptr().cast_mut(), &mut binding)?];
        let binding = NonNull::new(binding).ok_or_else(|| ort::Error::new("no binding was made"))?;
        // From here on it is released with the rest, whatever fails.
        self.binding = Some(binding);
        for (name, value) in self.input_names.iter().zip(&self.values) {
            ortsys![unsafe BindInput(binding.as_ptr(), *name, value.0.as_ptr())?];
        }
        for (name, output) in self.output_names.iter().zip(&self.outputs) {
            if let Output::Fixed { value, .. } = output {
                ortsys![unsafe BindOutput(binding.as_ptr(), *name, value.0.as_ptr())?];
            }
        }
        Ok(())
    }
}

fn bytes_of(dtype: DType, shape: &[u64]) -> usize {
    TensorSpec::new("", dtype, shape).bytes() as usize
}

/// Writes the shape of what a run left, and gives its bytes.
fn measure(value: Option<&Value>, dtype: DType, shape: &mut Vec<u64>) -> ort::Result<usize> {
    let wrong = |what: &str| ort::Error::new(format!("an output is {what}"));
    let value = value.ok_or_else(|| wrong("absent"))?.0.as_ptr();
    let mut is_tensor = 0;
    ortsys![unsafe IsTensor(value, &mut is_tensor)?];
    if is_tensor == 0 {
        return Err(wrong("not a tensor"));
    }
    let mut info: *mut OrtTensorTypeAndShapeInfo = ptr::null_mut();
    ortsys![unsafe GetTensorTypeAndShape(value, &mut info)?];
    let mut read = || {
        let (mut rank, mut kind) = (0, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED);
        ortsys![unsafe GetTensorElementType(info, &mut kind)?];
        if kind != element(dtype) {
            return Err(wrong("of another element type than the file says"));
        }
        ortsys![unsafe GetDimensionsCount(info, &mut rank)?];
        if rank > RANK_MAX {
            return Err(wrong(&format!("of {rank} dimensions, over the limit of {RANK_MAX}")));
        }
        let mut lengths = [0; RANK_MAX];
        ortsys![unsafe GetDimensions(info, lengths.as_mut_ptr(), rank)?];
        shape.clear();
        shape.extend(lengths[..rank].iter().map(|d| d.unsigned_abs()));
        Ok(bytes_of(dtype, shape))
    };
    let bytes = read();
    ortsys![unsafe ReleaseTensorTypeAndShapeInfo(info)];
    bytes
}
