//! Compiles the shim against libtorch's headers into a shared object, which the worker carries inside itself.
//!
//! `LIBTORCH` names the folder with `include` and `lib`; `make torch` sets it. The object is not linked into the program:
//! a program that needs libtorch to start could not say that it is missing. Without the feature nothing is done.

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    println!("cargo::rerun-if-changed=shim");
    #[cfg(feature = "libtorch")]
    shim::build();
}

#[cfg(feature = "libtorch")]
mod shim {
    use std::path::{Path, PathBuf};

    pub fn build() {
        let Some(libtorch) = std::env::var_os("LIBTORCH").filter(|v| !v.is_empty()).map(PathBuf::from) else {
            panic!("LIBTORCH names no folder of libtorch 2.11.0; run `make torch`, which finds or fetches one");
        };
        let (include, lib) = (libtorch.join("include"), libtorch.join("lib"));
        assert!(include.join("torch/script.h").is_file(), "{} holds no torch/script.h", include.display());
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .pic(true)
            .opt_level(2)
            .debug(false)
            .flag("-fvisibility=hidden")
            .define("_GLIBCXX_USE_CXX11_ABI", "1")
            .include("shim")
            // The headers are others': their warnings are not ours.
            .flag(format!("-isystem{}", include.display()))
            .flag(format!("-isystem{}", include.join("torch/csrc/api/include").display()))
            .files(["shim/model.cpp", "shim/run.cpp", "shim/state.cpp"]);
        let objects = build.compile_intermediates();
        let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("libinferd_torch.so");
        link(&build, &objects, &lib, &out);
        println!("cargo::rustc-env=INFERD_TORCH_SHIM={}", out.display());
        println!("cargo::rustc-env=INFERD_TORCH_BUILT_WITH={}", libtorch.display());
    }

    fn link(build: &cc::Build, objects: &[PathBuf], lib: &Path, out: &Path) {
        let mut command = build.get_compiler().to_command();
        command.arg("-shared").arg("-o").arg(out).args(objects).arg(format!("-L{}", lib.display()));
        // No libtorch.so and no libtorch_cuda.so: the same object serves with the CPU libraries alone. What the CPU
        // library links itself (CUPTI, the CUDA runtime) is its own affair.
        command.args([
            "-ltorch_cpu",
            "-lc10",
            "-Wl,-z,now",
            "-Wl,--allow-shlib-undefined",
            "-Wl,-soname,libinferd_torch.so",
        ]);
        let status = command.status().expect("the C++ compiler runs");
        assert!(status.success(), "the shim was not linked: {command:?}");
    }
}
