//! What a TorchScript archive says of its `forward`: the names of its arguments, in order, and how many tensors it returns.
//!
//! The archive is a zip with the module's code as text. Dtypes and shapes are not in it: TorchScript checks them as it runs.

use super::{Declared, Signature};
use inferd_client::limits::ARCHIVE_MEMBER_BYTES_MAX;
use std::io::{Cursor, Read};
use zip::ZipArchive;

/// What a TorchScript file declares.
///
/// # Errors
/// A sentence, when it is none.
pub fn read(bytes: Vec<u8>) -> Result<Signature, String> {
    let mut archive =
        ZipArchive::new(Cursor::new(bytes)).map_err(|e| format!("is no TorchScript archive ({e}): {SAVE}"))?;
    let pickle = archive.file_names().flatten().find(|n| n.ends_with("/data.pkl")).map(|n| n.into_owned());
    let pickle = pickle.ok_or_else(|| format!("is no TorchScript archive (no data.pkl): {SAVE}"))?;
    let (module, class) =
        root_class(&member(&mut archive, &pickle)?).ok_or_else(|| format!("names no module: {SAVE}"))?;
    let code = pickle.replace("data.pkl", &format!("code/{}.py", module.replace('.', "/")));
    let code = String::from_utf8_lossy(&member(&mut archive, &code)?).into_owned();
    let body = code.split_once(&format!("class {class}(")).map_or("", |(_, rest)| rest);
    forward(body).ok_or_else(|| format!("has no forward() with an argument: {SAVE}"))
}

fn member(archive: &mut ZipArchive<Cursor<Vec<u8>>>, name: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = archive.by_name(name).map_err(|e| format!("{name}: {e}"))?;
    file.take(ARCHIVE_MEMBER_BYTES_MAX).read_to_end(&mut bytes).map_err(|e| format!("{name}: {e}"))?;
    Ok(bytes)
}

/// The module that was saved: the first class that its pickle names, as `c` module newline class newline.
fn root_class(pickle: &[u8]) -> Option<(String, String)> {
    let at = pickle.windows(10).position(|w| w == b"c__torch__")? + 1;
    let mut lines = pickle[at..].split(|b| *b == b'\n');
    let mut line = || lines.next().and_then(|l| String::from_utf8(l.to_vec()).ok());
    Some((line()?, line()?))
}

const SAVE: &str = "save it with torch.jit.script(module).save(...) or torch.jit.trace";

/// `def forward(self: __torch__.Policy, x: Tensor) -> Tensor:`, over as many lines as it takes.
fn forward(code: &str) -> Option<Signature> {
    let (_, rest) = code.split_once("def forward(self")?;
    let (head, _) = rest.split_once(":\n")?;
    let (arguments, result) = head.split_once("->")?;
    let arguments = arguments.trim().trim_end_matches(')').split_once(',').map_or("", |(_, rest)| rest);
    let unknown = |name: &str| Declared { name: name.to_owned(), dtype: None, shape: None };
    let names = arguments.split(',').filter_map(|a| a.split(':').next()).map(str::trim).filter(|n| !n.is_empty());
    let inputs: Vec<Declared> = names.map(unknown).collect();
    let outputs = match result.matches("Tensor").count() {
        0 | 1 => vec![unknown("actions")],
        n => (0..n).map(|i| unknown(&format!("out{i}"))).collect(),
    };
    let lacks =
        "TorchScript names arguments and nothing else: name the outputs, and give every tensor its dtype and shape.";
    (!inputs.is_empty()).then_some(Signature { inputs, outputs, lacks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_and_results_of_forward_are_found() {
        let code = "class Policy(Module):\n  def forward(self: __torch__.Policy,\n    x: Tensor,\n    h: Tensor) -> Tuple[Tensor, Tensor]:\n    return x\n";
        let found = forward(code).expect("a forward");
        let names = |tensors: &[Declared]| tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
        assert_eq!(
            (names(&found.inputs), names(&found.outputs)),
            (vec!["x".into(), "h".into()], vec!["out0".into(), "out1".into()])
        );
    }

    #[test]
    fn the_saved_module_is_the_first_that_the_pickle_names() {
        let pickle = b"\x80\x02c__torch__.legged_gym.helpers\nExporter\nq\x00)\x81c__torch__.torch.nn\nLinear\n";
        assert_eq!(root_class(pickle), Some(("__torch__.legged_gym.helpers".to_owned(), "Exporter".to_owned())));
        assert_eq!(root_class(b"nothing of that kind"), None);
    }

    #[test]
    fn something_else_is_refused_with_the_remedy() {
        assert!(read(b"something else".to_vec()).is_err_and(|e| e.contains("torch.jit")));
        assert!(forward("def other(self): pass").is_none());
    }
}
