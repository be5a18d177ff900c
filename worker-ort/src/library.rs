//! Finds and opens ONNX Runtime's shared library, once per process.
//!
//! The first of these that is there and new enough: `ORT_DYLIB_PATH`; the option `library`; the system's, as the loader
//! finds it; the one beside this program, where `make ort` and `make install` put it. Who names a library means that one:
//! if it cannot be used, no other is taken. A load without any is refused with all that was tried. A process has one
//! library for good, as ONNX Runtime has one environment.

use inferd_worker::{Fault, ModelError};
use ort::environment::Environment;
use std::ffi::{CStr, OsStr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The minor version of the oldest ONNX Runtime 1.x that has the interface used here.
pub const API_MINOR: u32 = ort::MINOR_VERSION;
/// The variable that names the library.
const VARIABLE: &str = "ORT_DYLIB_PATH";
/// Names that a library has: for developers, by its soname.
const NAMES: [&str; 2] = ["libonnxruntime.so", "libonnxruntime.so.1"];

/// The library that this process uses.
pub struct Library {
    /// As it was given to the loader: a path, or a name that the system knows.
    pub path: PathBuf,
    /// Its version: `1.31.1`.
    pub version: String,
    pub(crate) environment: Environment,
}

/// Where a library may lie.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    path: PathBuf,
    /// Who says so, for messages.
    why: String,
    /// Somebody named this very library.
    named: bool,
}

impl Library {
    /// The library of this process; opened now if no model was loaded before. `configured` is the option `library`.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] lists every place with what is wrong there.
    pub fn open(configured: Option<&str>) -> Result<&'static Library, ModelError> {
        static OPEN: Mutex<Option<&'static Library>> = Mutex::new(None);
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = *open {
            return Ok(library);
        }
        let variable = std::env::var_os(VARIABLE);
        let program = std::env::current_exe().unwrap_or_default();
        let (path, version) = choose(&places(variable.as_deref(), configured, &program))?;
        let environment = environment(&path).map_err(|what| refused(&format!("{}: {what}", path.display())))?;
        tracing::debug!(library = %path.display(), version, "ONNX Runtime is open");
        Ok(*open.insert(Box::leak(Box::new(Library { path, version, environment }))))
    }
}

fn places(variable: Option<&OsStr>, configured: Option<&str>, program: &Path) -> Vec<Place> {
    let named = |path: PathBuf, why: &str| Place { path, why: why.to_owned(), named: true };
    if let Some(path) = variable.filter(|v| !v.is_empty()) {
        return vec![named(path.into(), VARIABLE)];
    }
    if let Some(path) = configured {
        return vec![named(path.into(), "the option library")];
    }
    let system = NAMES.map(|name| Place { path: name.into(), why: "the system's".into(), named: false });
    let folder = program.parent().unwrap_or(Path::new("/"));
    // Tests and examples of a build lie one folder below its programs.
    let built = folder.file_name().is_some_and(|n| n == "deps" || n == "examples").then(|| folder.parent()).flatten();
    let beside = [Some(folder), built].into_iter().flatten().map(|folder| Place {
        path: folder.join(NAMES[1]),
        why: "beside the worker".into(),
        named: false,
    });
    system.into_iter().chain(beside).collect()
}

fn refused(what: &str) -> ModelError {
    let remedy = format!(
        "run `make ort` and `make install`, or install ONNX Runtime 1.{API_MINOR} or newer, or name its library in \
         {VARIABLE} or in the option library"
    );
    ModelError::new(Fault::Unsupported, "ONNX Runtime", format!("no library of it can be used: {what}"), remedy)
}

/// The first place that has a library new enough, and its version.
fn choose(places: &[Place]) -> Result<(PathBuf, String), ModelError> {
    let mut tried = Vec::new();
    for place in places {
        // The loader takes a name without a slash from the system's folders; who names a library means a file.
        let what = if place.named && !place.path.is_absolute() {
            "is not an absolute path".to_owned()
        } else {
            match version_of(&place.path) {
                Ok(version) if is_new_enough(&version) => return Ok((place.path.clone(), version)),
                Ok(version) => format!("is ONNX Runtime {version}, and 1.{API_MINOR} or newer is needed"),
                Err(what) => what,
            }
        };
        tried.push(format!("{} ({}) {what}", place.path.display(), place.why));
    }
    Err(refused(&tried.join("; ")))
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // Another major version has another interface.
    major == 1 && minor >= API_MINOR
}

/// Opens the file and asks it. It stays open when it is ONNX Runtime: closing and opening again would cost twice.
fn version_of(path: &Path) -> Result<String, String> {
    type BaseOf = unsafe extern "C" fn() -> *const ort::sys::OrtApiBase;
    // SAFETY: a library runs its initialisers when it is opened; that this one may run here is the operator's choice.
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| match std::error::Error::source(&e) {
        Some(cause) => format!("cannot be opened: {cause}"),
        None => format!("cannot be opened: {e}"),
    })?;
    // SAFETY: the symbol has this type in every ONNX Runtime since 1.0; nothing else exports its name.
    let base_of = unsafe { library.get::<BaseOf>(b"OrtGetApiBase") };
    let Ok(base_of) = base_of else { return Err("has no OrtGetApiBase: it is not ONNX Runtime".to_owned()) };
    // SAFETY: takes nothing, gives a pointer to a constant of the library or null.
    let base = unsafe { base_of().as_ref() }.ok_or("gives no interface")?;
    // SAFETY: gives a pointer to a constant text of the library, which is open until the end of this function.
    let version = unsafe { CStr::from_ptr((base.GetVersionString)()) }.to_string_lossy().into_owned();
    // ONNX Runtime must not be unloaded once it has run; a wrong one that was only asked does no harm by staying.
    std::mem::forget(library);
    Ok(version)
}

fn environment(path: &Path) -> Result<Environment, String> {
    let builder = ort::init_from(path).map_err(|e| e.to_string())?;
    let builder = builder.with_name("inferd").with_telemetry(false).with_logger(std::sync::Arc::new(log));
    builder.build().map_err(|e| e.message().to_owned())
}

/// ONNX Runtime's own messages: what matters comes back as an error, so these are for whoever asks for more.
fn log(level: ort::logging::LogLevel, _category: &str, _id: &str, place: &str, message: &str) {
    if level >= ort::logging::LogLevel::Warning {
        tracing::debug!(target: "onnxruntime", place, "{message}");
    } else {
        tracing::trace!(target: "onnxruntime", place, "{message}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_names_a_library_gets_no_other() {
        let program = Path::new("/opt/libexec/inferd/inferd-worker-ort");
        let of = |variable: Option<&str>, configured| {
            let places = places(variable.map(OsStr::new), configured, program);
            places.into_iter().map(|p| p.path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(of(Some("/a.so"), Some("/b.so")), ["/a.so"]);
        assert_eq!(of(Some(""), Some("/b.so")), ["/b.so"]);
        let beside = "/opt/libexec/inferd/libonnxruntime.so.1";
        assert_eq!(of(None, None), ["libonnxruntime.so", "libonnxruntime.so.1", beside]);
    }

    #[test]
    fn a_program_of_a_build_folder_looks_one_folder_up_too() {
        let places = places(None, None, Path::new("/target/release/deps/x"));
        assert_eq!(places[2].path, Path::new("/target/release/deps/libonnxruntime.so.1"));
        assert_eq!(places[3].path, Path::new("/target/release/libonnxruntime.so.1"));
    }

    #[test]
    fn what_cannot_be_used_is_listed_with_its_reason_and_the_remedy() {
        let folder = std::env::temp_dir();
        let text = folder.join(format!("inferd.{}.so", std::process::id()));
        std::fs::write(&text, "no library".repeat(100)).expect("a file");
        let place = |path: &Path, named| Place { path: path.to_owned(), why: "here".into(), named };
        let libc = Path::new("libc.so.6");
        let places =
            [place(Path::new("/nowhere/x.so"), true), place(&text, true), place(libc, false), place(libc, true)];
        let error = choose(&places).expect_err("none is ONNX Runtime").to_string();
        std::fs::remove_file(&text).expect("ours");
        for word in [
            "/nowhere/x.so (here) cannot be opened",
            "invalid ELF header",
            "has no OrtGetApiBase",
            "absolute",
            "make ort",
        ] {
            assert!(error.contains(word), "{word:?} is missing in: {error}");
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, good) in
            [("1.18.0", true), ("1.31.1", true), ("1.9.5", false), ("1.17.3", false), ("2.0.0", false), ("", false)]
        {
            assert_eq!(is_new_enough(version), good, "{version}");
        }
    }
}
