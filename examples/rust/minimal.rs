//! One inference: attach, one call, print the first output.
//!
//! usage: minimal MODEL. The input is all zeroes; any model will do. Exits 0 if the outcome is ok.

use inferd_client::{AttachOptions, CallOptions, DType, Error, Session};
use std::process::ExitCode;
use std::time::Duration;

fn infer_once(model: &str) -> Result<bool, Error> {
    let mut session = Session::attach(AttachOptions::new(model))?;
    let signature = session.signature().clone();
    let zeroes: Vec<Vec<u8>> = signature.inputs.iter().map(|t| vec![0; t.bytes() as usize]).collect();
    let mut results: Vec<Vec<u8>> = signature.outputs.iter().map(|t| vec![0; t.bytes() as usize]).collect();
    let inputs: Vec<(usize, &[u8])> = zeroes.iter().map(Vec::as_slice).enumerate().collect();
    let mut outputs: Vec<(usize, &mut [u8])> = results.iter_mut().map(Vec::as_mut_slice).enumerate().collect();
    let options = CallOptions { timeout: Some(Duration::from_secs(1)), ..CallOptions::default() };
    let info = session.infer(&inputs, &mut outputs, options)?;
    if !info.is_ok() {
        eprintln!("{}", info.status.name());
        return Ok(false);
    }
    println!("ok, by generation {} in {:.1} us", info.generation, (info.t_done_ns - info.t_submit_ns) as f64 / 1e3);
    if let Some(first) = signature.outputs.first().filter(|t| t.dtype == DType::F32) {
        for (k, bytes) in results[0].chunks_exact(4).enumerate() {
            println!("{}[{k}] = {}", first.name, f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        }
    }
    Ok(true)
}

fn main() -> ExitCode {
    let Some(model) = std::env::args().nth(1) else {
        eprintln!("usage: minimal MODEL");
        return ExitCode::FAILURE;
    };
    match infer_once(&model) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
