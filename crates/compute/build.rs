//! With the feature `cuda`: every `src/kernels/*/*.cu` becomes a fatbin in `OUT_DIR`, machine code for compute capability 8.0,
//! 8.9 and 9.0, and PTX that the driver compiles for later ones. Without it: nothing, and nothing but Rust is needed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

/// What the kernels are compiled for; `candlewick doctor` tells a card that is older from one that is newer.
const TARGETS: [&str; 4] = [
    "arch=compute_80,code=sm_80",
    "arch=compute_89,code=sm_89",
    "arch=compute_90,code=sm_90",
    "arch=compute_90,code=compute_90",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=src/kernels");
    for variable in ["NVCC", "CUDA_HOME", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where to write"));
    let (nvcc, headers) = (nvcc(), Path::new("src/kernels/cuda"));
    let shared = with_extension(entries(headers), "cuh").iter().map(|header| changed(header)).max();
    let shared = shared.max(Some(changed(Path::new("build.rs"))));
    for source in sources(Path::new("src/kernels")) {
        let image = out.join(source.file_name().expect("a file")).with_extension("fatbin");
        // Kernels take longer to compile than all Rust around them, and cargo asks whenever a file beside them has changed.
        let made = fs::metadata(&image).ok().filter(|image| image.len() > 0).and_then(|image| image.modified().ok());
        if made > shared.max(Some(changed(&source))) {
            continue;
        }
        let mut command = Command::new(&nvcc);
        command.args(["--fatbin", "-std=c++17", "-O3", "-I"]).arg(headers);
        command.args(TARGETS.iter().flat_map(|target| ["-gencode", target]));
        command.arg("-o").arg(&image).arg(&source);
        let output = command.output();
        let output = output.unwrap_or_else(|error| panic!("{}: {error}. {HINT}", nvcc.display()));
        assert!(
            output.status.success(),
            "{} cannot be compiled:\n{}",
            source.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

const HINT: &str =
    "The feature `cuda` needs CUDA's compiler: deploy/cuda/setup.sh fetches one, or set NVCC or CUDA_HOME";

/// The compiler that candle's own kernels are compiled with.
fn nvcc() -> PathBuf {
    let path = |variable| env::var_os(variable).map(PathBuf::from);
    path("NVCC").or_else(|| Some(path("CUDA_HOME")?.join("bin/nvcc"))).unwrap_or_else(|| "nvcc".into())
}

/// All kernels, one file an operation.
fn sources(kernels: &Path) -> Vec<PathBuf> {
    let folders = entries(kernels).into_iter().filter(|path| path.is_dir());
    let mut sources = with_extension(folders.flat_map(|folder| entries(&folder)).collect(), "cu");
    sources.sort();
    sources
}

fn with_extension(mut paths: Vec<PathBuf>, wanted: &str) -> Vec<PathBuf> {
    paths.retain(|path| path.extension().is_some_and(|extension| extension == wanted));
    paths
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.expect("can be listed").path()).collect()
}

/// When a file was written last.
fn changed(path: &Path) -> SystemTime {
    let changed = fs::metadata(path).and_then(|file| file.modified());
    changed.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
