//! `inferctl call`: one inference from the command line.
//!
//! Inputs come from `.npy` files, or are zeros where the caller says so; nothing is guessed. Outputs
//! are printed like NumPy prints arrays, or saved. The session is new, so recurrent state is fresh.

use crate::array::{Array, fits, read_npy, write_npy};
use crate::cli::{CallArgs, NamedFile};
use crate::failure::{Failure, remedy};
use crate::number::{element, render};
use crate::out::{nanoseconds, plain, print};
use inferd_client::{AttachOptions, CallOptions, ReplyInfo, Session, Signature, TensorSpec, now_ns};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Duration;

/// Runs the command.
///
/// # Errors
/// [`Failure`].
pub fn run(args: &CallArgs, runtime_dir: Option<&Path>) -> Result<(), Failure> {
    let mut options = AttachOptions::new(&args.model).auto_reattach(false);
    if let Some(dir) = runtime_dir {
        options = options.runtime_dir(dir);
    }
    let mut session = Session::attach(options)?;
    let signature = session.signature().clone();
    let inputs = inputs(&signature, args)?;
    check_outputs(&signature, &args.output)?;
    let mut outputs: Vec<Vec<u8>> = signature.outputs.iter().map(|t| vec![0; t.bytes() as usize]).collect();
    let timeout = Some(Duration::from_millis(args.timeout_ms));
    let info = {
        let given: Vec<(usize, &[u8])> = inputs.iter().map(|a| a.bytes.as_slice()).enumerate().collect();
        let mut taken: Vec<(usize, &mut [u8])> = outputs.iter_mut().map(Vec::as_mut_slice).enumerate().collect();
        session.infer(&given, &mut taken, CallOptions { timeout, ..CallOptions::default() })?
    };
    let seen_ns = now_ns();
    if !info.is_ok() {
        let outcome = info.status.name();
        return Err(Failure::NotOk {
            request: format!("the call of {}", args.model),
            outcome,
            remedy: remedy(outcome),
        });
    }
    for file in &args.output {
        for (tensor, bytes) in signature.outputs.iter().zip(&outputs).filter(|(t, _)| t.name == file.name) {
            write_npy(&file.path, tensor.dtype, &tensor.shape, bytes)?;
        }
    }
    let round_trip_ns = seen_ns.saturating_sub(info.t_submit_ns);
    let text = if args.json {
        json_text(args, &signature, &outputs, &info, round_trip_ns)
    } else {
        text(args, &signature, &outputs, &info, round_trip_ns)
    };
    print(&text).map_err(Failure::stdout)
}

/// One array per input, in the signature's order.
fn inputs(signature: &Signature, args: &CallArgs) -> Result<Vec<Array>, Failure> {
    known(&signature.inputs, &args.input, "input")?;
    let given = |t: &TensorSpec| args.input.iter().find(|f| f.name == t.name);
    let missing: Vec<String> =
        signature.inputs.iter().filter(|t| given(t).is_none()).map(ToString::to_string).collect();
    if !missing.is_empty() && !args.zeros {
        return Err(Failure::Usage(format!(
            "missing: {}; give each with --input NAME=FILE.npy, or --zeros for all that are not given",
            missing.join(", ")
        )));
    }
    let array = |t: &TensorSpec| match given(t) {
        None => Ok(Array { dtype: t.dtype, shape: t.shape.clone(), bytes: vec![0; t.bytes() as usize] }),
        Some(file) => {
            let array = read_npy(&file.path)?;
            match fits(t, array.dtype, &array.shape) {
                Ok(()) => Ok(array),
                Err(what) => Err(Failure::Usage(format!("{} {what}", file.path.display()))),
            }
        }
    };
    signature.inputs.iter().map(array).collect()
}

fn check_outputs(signature: &Signature, files: &[NamedFile]) -> Result<(), Failure> {
    known(&signature.outputs, files, "output")
}

fn known(tensors: &[TensorSpec], files: &[NamedFile], side: &str) -> Result<(), Failure> {
    for (i, file) in files.iter().enumerate() {
        if !tensors.iter().any(|t| t.name == file.name) {
            let all: Vec<String> = tensors.iter().map(ToString::to_string).collect();
            let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
            return Err(Failure::Usage(format!("the model has no {side} {:?}; it has {all}", file.name)));
        }
        if files[..i].iter().any(|other| other.name == file.name) {
            return Err(Failure::Usage(format!("{side} {:?} is given twice", file.name)));
        }
    }
    Ok(())
}

fn saved_to<'a>(args: &'a CallArgs, tensor: &TensorSpec) -> Option<&'a Path> {
    args.output.iter().find(|f| f.name == tensor.name).map(|f| f.path.as_path())
}

fn text(args: &CallArgs, signature: &Signature, outputs: &[Vec<u8>], info: &ReplyInfo, round_trip_ns: u64) -> String {
    let mut out = String::new();
    for (tensor, bytes) in signature.outputs.iter().zip(outputs) {
        match saved_to(args, tensor) {
            Some(path) => out += &format!("{} -> {}\n", plain(&tensor.to_string()), plain(&path.display().to_string())),
            None => {
                let value = render(tensor.dtype, &tensor.shape, bytes);
                out += &format!("{}\n{value}\n", plain(&tensor.to_string()));
            }
        }
    }
    let (queue, run) = stages(info);
    out += &format!(
        "generation {}, round trip {} (queue {}, model {})\n",
        info.generation,
        nanoseconds(round_trip_ns),
        nanoseconds(queue),
        nanoseconds(run),
    );
    out
}

fn json_text(
    args: &CallArgs,
    signature: &Signature,
    outputs: &[Vec<u8>],
    info: &ReplyInfo,
    round_trip_ns: u64,
) -> String {
    let mut tensors = Map::new();
    for (tensor, bytes) in signature.outputs.iter().zip(outputs) {
        let mut value = json!({ "dtype": tensor.dtype.name(), "shape": tensor.shape });
        match saved_to(args, tensor) {
            Some(path) => value["file"] = json!(path.display().to_string()),
            None => {
                let numbers = (0..).map_while(|k| element(tensor.dtype, bytes, k));
                value["data"] = Value::Array(numbers.map(crate::number::Number::to_json).collect());
            }
        }
        tensors.insert(tensor.name.clone(), value);
    }
    let (queue_ns, model_ns) = stages(info);
    let value = json!({
        "model": args.model,
        "outcome": info.status.name(),
        "generation": info.generation,
        "round_trip_ns": round_trip_ns,
        "queue_ns": queue_ns,
        "model_ns": model_ns,
        "outputs": tensors,
    });
    serde_json::to_string_pretty(&value).unwrap_or_default() + "\n"
}

fn stages(info: &ReplyInfo) -> (u64, u64) {
    (info.t_start_ns.saturating_sub(info.t_submit_ns), info.t_done_ns.saturating_sub(info.t_start_ns))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use inferd_client::DType;

    fn signature() -> Signature {
        let tensor = |name, n| TensorSpec::new(name, DType::F32, &[1, n]);
        Signature { inputs: vec![tensor("obs", 2), tensor("cmd", 3)], outputs: vec![tensor("act", 2)], stateful: false }
    }

    fn args(input: &[(&str, &Path)], zeros: bool) -> CallArgs {
        let input = input.iter().map(|(n, p)| NamedFile { name: (*n).into(), path: (*p).into() }).collect();
        CallArgs { model: "m".into(), input, output: vec![], zeros, timeout_ms: 1, json: false }
    }

    #[test]
    fn missing_inputs_are_named_and_zeros_fill_only_those() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("obs.npy");
        write_npy(&path, DType::F32, &[2], &[1; 8]).unwrap();
        let told = inputs(&signature(), &args(&[("obs", &path)], false)).unwrap_err();
        assert!(told.to_string().starts_with("missing: cmd f32[1, 3]; give each"), "{told}");
        assert_eq!(told.exit_code(), 2);
        let arrays = inputs(&signature(), &args(&[("obs", &path)], true)).unwrap();
        assert_eq!((arrays[0].bytes.clone(), arrays[1].bytes.clone()), (vec![1; 8], vec![0; 12]));
    }

    #[test]
    fn unknown_repeated_and_unfitting_inputs_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        write_npy(&path, DType::F64, &[1, 2], &[0; 16]).unwrap();
        let told = |input: &[(&str, &Path)]| inputs(&signature(), &args(input, true)).unwrap_err().to_string();
        assert!(told(&[("obz", &path)]).contains("no input \"obz\"; it has obs f32[1, 2], cmd f32[1, 3]"));
        assert!(told(&[("obs", &path), ("obs", &path)]).contains("given twice"));
        assert!(told(&[("obs", &path)]).contains("is f64, the model's \"obs\" is f32"));
        assert!(told(&[("obs", &dir.path().join("none.npy"))]).contains("none.npy"));
    }
}
