//! Finding libtorch at run time, and the shim's functions in this process.
//!
//! A folder is looked for in this order: `INFERD_LIBTORCH`; `../../lib/inferd/libtorch` beside an installed worker; the
//! folder that the worker was built with. Its libraries are opened by their whole paths, globally, before the shim, which
//! then finds them loaded: no LD_LIBRARY_PATH, no rpath. The shim itself travels in this program and is opened from a
//! memfd. A model never names a folder: what it names would be run. Loaded libraries stay for the process's life.

use inferd_worker::{Fault, ModelError};
use libc::{RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW, c_char, c_int, c_void, size_t};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The release that the shim was compiled for: C++ has no interface that outlives one.
pub const VERSION: &str = "2.11.0";

static SHIM: &[u8] = include_bytes!(env!("INFERD_TORCH_SHIM"));
const BUILT_WITH: &str = env!("INFERD_TORCH_BUILT_WITH");
/// From an installed worker's folder (`libexec/inferd`) to the libraries of its package.
const INSTALLED: &str = "../../lib/inferd/libtorch";

/// A model of the shim's.
#[repr(C)]
pub struct RawModel {
    _opaque: [u8; 0],
}

/// A tensor as the shim describes it: `struct it_tensor`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RawTensor {
    pub data: *mut u8,
    pub bytes: u64,
    pub dims: [i64; 8],
    pub rank: u32,
    pub dtype: u32,
}

type Error = *mut c_char;

macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The shim's functions; `shim.h` says what each does.
        #[allow(missing_docs)]
        pub struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Functions {
            /// Looks every function up in the opened shim.
            fn of(shim: *mut c_void) -> Result<Functions, String> {
                Ok(Functions { $($name: {
                    let name = concat!(stringify!($name), "\0");
                    // SAFETY: `shim` is an open library and `name` ends in a zero.
                    let found = unsafe { libc::dlsym(shim, name.as_ptr().cast()) };
                    if found.is_null() {
                        return Err(format!("the shim lacks {}", stringify!($name)));
                    }
                    // SAFETY: the shim is built from the sources beside this file; `shim.h` declares this very type.
                    unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(found) }
                },)* })
            }
        }
    };
}

functions! {
    it_start: fn() -> Error;
    it_free: fn(*mut c_char);
    it_open: fn(*const c_void, size_t, c_int, *const c_char, *mut *mut RawModel, *mut *mut c_char) -> Error;
    it_close: fn(*mut RawModel);
    it_device_works: fn(*mut RawModel) -> c_int;
    it_add_input: fn(*mut RawModel, size_t, *const c_char, *mut RawTensor) -> Error;
    it_watch: fn(*mut RawModel) -> Error;
    it_changes: fn(*mut RawModel, *mut *mut c_char) -> Error;
    it_hide: fn(*mut RawModel, *const c_char, *mut RawTensor) -> Error;
    it_hidden: fn(*mut RawModel, size_t, *mut RawTensor) -> Error;
    it_call: fn(*mut RawModel, *const c_char) -> Error;
    it_form: fn(*mut RawModel, c_int) -> Error;
    it_use: fn(*mut RawModel, c_int);
    it_drop: fn(*mut RawModel, c_int);
    it_precision: fn(*mut RawModel, c_int) -> Error;
    it_settle: fn(*mut RawModel);
    it_seed: fn(u64);
    it_run: fn(*mut RawModel) -> Error;
    it_outputs: fn(*mut RawModel) -> size_t;
    it_output: fn(*mut RawModel, size_t, *mut RawTensor, *mut *const c_char);
    it_times: fn(*mut RawModel, *mut [u64; 3]) -> c_int;
}

/// The functions, loaded at the first call.
///
/// # Errors
/// [`Fault::Unsupported`]: no libtorch, or another than this worker was built for, with what to install.
pub fn functions() -> Result<&'static Functions, ModelError> {
    static LOADED: OnceLock<Result<Functions, ModelError>> = OnceLock::new();
    LOADED.get_or_init(load).as_ref().map_err(Clone::clone)
}

/// Loads the CUDA half of libtorch too, before the first question about devices.
///
/// # Errors
/// [`Fault::Unsupported`]: the folder has none.
pub fn load_cuda() -> Result<(), ModelError> {
    static LOADED: OnceLock<Result<(), ModelError>> = OnceLock::new();
    let load = || {
        let folder = folder()?;
        for name in ["libc10_cuda.so", "libtorch_cuda.so"] {
            let path = folder.join("lib").join(name);
            if !path.is_file() {
                let place = format!("libtorch in {}", folder.display());
                let remedy = "install a PyTorch with CUDA (pip install torch==2.11.0), and name its folder `torch` in INFERD_LIBTORCH for the daemon";
                return Err(ModelError::new(
                    Fault::Unsupported,
                    place,
                    format!("has no {name}: it serves CPUs alone"),
                    remedy,
                ));
            }
            open(&path, RTLD_GLOBAL).map_err(|what| broken(&folder, what))?;
        }
        Ok(())
    };
    LOADED.get_or_init(load).clone()
}

fn load() -> Result<Functions, ModelError> {
    let folder = folder()?;
    if let Some(version) = version_of(&folder)
        && version.split('+').next() != Some(VERSION)
    {
        return Err(broken(&folder, format!("it is {version}, and this worker was built for {VERSION}")));
    }
    for name in ["libc10.so", "libtorch_cpu.so"] {
        open(&folder.join("lib").join(name), RTLD_GLOBAL).map_err(|what| broken(&folder, what))?;
    }
    let functions = shim().and_then(Functions::of).map_err(|what| broken(&folder, what))?;
    // SAFETY: no argument; the shim catches what is thrown, and its message is taken over.
    let error = unsafe { (functions.it_start)() };
    match take(&functions, error) {
        Some(what) => Err(broken(&folder, what)),
        None => Ok(functions),
    }
}

fn folder() -> Result<PathBuf, ModelError> {
    if let Some(folder) = std::env::var_os("INFERD_LIBTORCH").filter(|v| !v.is_empty()).map(PathBuf::from) {
        return if is_libtorch(&folder) { Ok(folder) } else { Err(missing(&folder, "INFERD_LIBTORCH names it")) };
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(INSTALLED)));
    if let Some(beside) = beside.filter(|b| is_libtorch(b)) {
        return Ok(beside);
    }
    let built_with = PathBuf::from(BUILT_WITH);
    if is_libtorch(&built_with) { Ok(built_with) } else { Err(missing(&built_with, "this worker was built with it")) }
}

fn is_libtorch(folder: &Path) -> bool {
    folder.join("lib/libtorch_cpu.so").is_file()
}

fn missing(folder: &Path, why: &str) -> ModelError {
    let what = format!("is not there ({why})");
    let remedy = format!(
        "install PyTorch {VERSION} (make torch, or pip install torch=={VERSION}), and name its folder `torch` in INFERD_LIBTORCH for the daemon"
    );
    ModelError::new(Fault::Unsupported, format!("{}/lib/libtorch_cpu.so", folder.display()), what, remedy)
}

fn broken(folder: &Path, what: String) -> ModelError {
    let remedy = format!("name a whole PyTorch {VERSION} in INFERD_LIBTORCH, or build the worker again (make torch)");
    ModelError::new(Fault::Unsupported, format!("libtorch in {}", folder.display()), what, remedy)
}

/// What a PyTorch's `version.py` or a libtorch's `build-version` says.
fn version_of(folder: &Path) -> Option<String> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let quoted = |text: String| {
        let line = text.lines().find(|l| l.starts_with("__version__"))?.to_owned();
        line.split(['\'', '"']).nth(1).map(str::to_owned)
    };
    read("version.py").and_then(quoted).or_else(|| read("build-version").map(|v| v.trim().to_owned()))
}

fn open(path: &Path, scope: c_int) -> Result<*mut c_void, String> {
    let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: the name ends in a zero. The library's initialisers run now, on this thread, before any model is there.
    let library = unsafe { libc::dlopen(name.as_ptr(), RTLD_NOW | scope) };
    if !library.is_null() {
        return Ok(library);
    }
    // SAFETY: dlerror gives a string that lives until the next call on this thread, or null.
    let why = unsafe { libc::dlerror() };
    // SAFETY: as above.
    let why = if why.is_null() { "no reason given".into() } else { unsafe { CStr::from_ptr(why) }.to_string_lossy() };
    Err(format!("{} cannot be loaded: {why}", path.display()))
}

/// The shim from this program's own bytes: one file to carry, and no second one to lose.
fn shim() -> Result<*mut c_void, String> {
    const MFD_EXEC: u32 = 0x10;
    let mut fd = -1;
    // Kernels before 6.3 do not know the flag, and need none.
    for flags in [libc::MFD_CLOEXEC | MFD_EXEC, libc::MFD_CLOEXEC] {
        // SAFETY: the name ends in a zero.
        fd = unsafe { libc::memfd_create(c"libinferd_torch.so".as_ptr(), flags) };
        if fd >= 0 {
            break;
        }
    }
    if fd < 0 {
        return Err(format!("memfd_create: {}; vm.memfd_noexec must be below 2", std::io::Error::last_os_error()));
    }
    // SAFETY: a new descriptor that nobody else owns.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(SHIM).map_err(|e| e.to_string())?;
    open(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())), RTLD_LOCAL)
}

/// Takes a message of the shim over; none for success.
pub fn take(functions: &Functions, text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the shim gave a string that ends in a zero, and nobody else has it.
    let message = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: as above; it is not used after this.
    unsafe { (functions.it_free)(text) };
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_libtorch_is_named_with_what_to_install() {
        let error = missing(Path::new("/opt/nothing"), "INFERD_LIBTORCH names it").to_string();
        assert!(error.contains("/opt/nothing/lib/libtorch_cpu.so") && error.contains("make torch"), "{error}");
        assert!(!is_libtorch(Path::new("/opt/nothing")));
    }

    #[test]
    fn the_version_of_the_libtorch_that_is_there_is_read() {
        let version = version_of(&folder().expect("the worker was built with one"));
        assert!(version.is_none_or(|v| v.starts_with(VERSION)), "{VERSION} is what the shim was compiled for");
    }
}
