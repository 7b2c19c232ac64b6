//! The kernels as host C++: `c++` compiles an operation's .cu with `host.hpp` in the place of CUDA, and tests call what
//! comes of it with the launches that a card would get.
//!
//! What is compiled is kept in `target/host-twins` under the hash of its sources. On a machine without a C++ compiler, or one that
//! runs no Linux, the tests say so and hold nothing.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use super::launch::Call;

const KERNELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/kernels");
const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/host-twins");
/// Products and sums stay apart where the source has them apart, as nvcc's intrinsics have it.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O1",
    "-ffp-contract=off",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-U_FORTIFY_SOURCE",
    "-x",
    "c++",
];

/// In which order a launch runs its blocks, and each block its threads: a result may not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Forward,
    Reversed,
}

impl Order {
    pub(crate) const BOTH: [Self; 2] = [Self::Forward, Self::Reversed];
}

/// The compiled kernels of one operation.
pub(crate) struct Twin {
    operation: &'static str,
    library: OnceLock<Option<Library>>,
}

struct Library(*mut c_void);
// SAFETY: a handle of the dynamic loader, which any thread may use; the kernels keep their state a thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

/// As in host.hpp.
#[repr(C)]
struct HostLaunch {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    reversed: u32,
    message: *mut c_char,
    message_len: u32,
}

type Entry = unsafe extern "C" fn(*const HostLaunch, *mut *mut c_void, *const u32, u32) -> c_int;

unsafe extern "C" {
    fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

impl Twin {
    /// Of `kernels/<operation>/<operation>.cu`.
    pub(crate) const fn of(operation: &'static str) -> Self {
        Self { operation, library: OnceLock::new() }
    }

    /// Whether there is one: false, and a line that says so, where there is no C++ compiler.
    pub(crate) fn exists(&self) -> bool {
        self.library().is_some()
    }

    /// Runs a launch to its end.
    ///
    /// # Safety
    /// As on a card: its addresses, which are those of host memory, cover what the kernel reads and writes.
    #[track_caller]
    pub(crate) unsafe fn run<const N: usize>(&self, call: &Call<N>, order: Order) {
        // SAFETY: the caller's promise.
        if let Err(message) = unsafe { self.try_run(call, order) } {
            panic!("{} on the host: {message}", call.kernel);
        }
    }

    /// The same, with what went wrong.
    ///
    /// # Safety
    /// As above.
    pub(crate) unsafe fn try_run<const N: usize>(&self, call: &Call<N>, order: Order) -> Result<(), String> {
        let library = self.library().ok_or("there is no C++ compiler")?;
        let name = CString::new(format!("{}_on_host", call.kernel)).expect("a name");
        // SAFETY: a library that was loaded and a name that ends.
        let entry = unsafe { dlsym(library.0, name.as_ptr()) };
        if entry.is_null() {
            return Err(format!("{}.cu has no HOST_TWIN({})", self.operation, call.kernel));
        }
        // SAFETY: all that HOST_TWIN defines have this type.
        let entry: Entry = unsafe { std::mem::transmute(entry) };
        let mut args = call.args.map(|_| std::ptr::null_mut());
        let mut sizes = [0; N];
        for (k, arg) in call.args.iter().enumerate() {
            let (value, size) = arg.value();
            (args[k], sizes[k]) = (value.cast_mut(), size);
        }
        let mut message = [0 as c_char; 256];
        let launch = HostLaunch {
            grid: call.launch.grid,
            block: call.launch.block,
            shared_bytes: call.launch.shared_bytes,
            reversed: u32::from(order == Order::Reversed),
            message: message.as_mut_ptr(),
            message_len: message.len() as u32,
        };
        // SAFETY: arguments by address, whose number and sizes the entry compares with the kernel's; their meaning is the
        // caller's promise.
        match unsafe { entry(&launch, args.as_mut_ptr(), sizes.as_ptr(), N as u32) } {
            0 => Ok(()),
            // SAFETY: the entry has written a string that ends.
            _ => Err(unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy().into_owned()),
        }
    }

    fn library(&self) -> Option<&Library> {
        self.library.get_or_init(|| load(self.operation)).as_ref()
    }
}

fn load(operation: &str) -> Option<Library> {
    if !cfg!(target_os = "linux") {
        let _ = writeln!(io::stderr(), "{operation}.cu was not run: its fibers are Linux's");
        return None;
    }
    let source = Path::new(KERNELS).join(operation).join(format!("{operation}.cu"));
    let kept = Path::new(KEPT).join(format!("{operation}-{:016x}.so", fingerprint(&source)));
    if !kept.exists() && !compile(&source, &kept) {
        // Not by the macro, which a test that passes keeps to itself.
        let _ = writeln!(io::stderr(), "{operation}.cu was not run: this machine has no C++ compiler (c++)");
        return None;
    }
    const NOW: c_int = 2;
    let path = CString::new(kept.to_str().expect("a path in UTF-8")).expect("a path");
    // SAFETY: a path that ends; what is loaded was compiled from this crate's sources and does nothing as it is loaded.
    let library = unsafe { dlopen(path.as_ptr(), NOW) };
    assert!(!library.is_null(), "{} cannot be loaded", kept.display());
    Some(Library(library))
}

/// Of everything that the twin is made of.
fn fingerprint(source: &Path) -> u64 {
    let mut files: Vec<PathBuf> = fs::read_dir(Path::new(KERNELS).join("cuda"))
        .expect("the headers")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cuh" || extension == "hpp"))
        .collect();
    files.sort();
    files.push(source.to_owned());
    let mut hasher = DefaultHasher::new();
    FLAGS.hash(&mut hasher);
    for file in &files {
        fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).hash(&mut hasher);
    }
    hasher.finish()
}

/// False where there is no compiler; panics where it refuses the source.
fn compile(source: &Path, kept: &Path) -> bool {
    fs::create_dir_all(KEPT).expect("a folder beside what cargo builds");
    // Another process may compile the same.
    let own = kept.with_extension(format!("{}.so", std::process::id()));
    let mut compiler = Command::new("c++");
    compiler.args(FLAGS).arg("-I").arg(Path::new(KERNELS).join("cuda")).arg(source).arg("-o").arg(&own);
    match compiler.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => return false,
        Err(error) => panic!("c++: {error}"),
        Ok(output) if !output.status.success() => {
            panic!("{} as host C++:\n{}", source.display(), String::from_utf8_lossy(&output.stderr))
        }
        Ok(_) => {}
    }
    fs::rename(&own, kept).expect("the library is in place");
    true
}

/// The address of what a kernel reads.
pub(crate) fn address<T>(data: &[T]) -> u64 {
    data.as_ptr() as u64
}

/// What a kernel writes, between margins that it must leave alone.
pub(crate) struct Output<T> {
    data: Vec<T>,
    margin: T,
}

const MARGIN: usize = 64;

impl<T: Copy + PartialEq + std::fmt::Debug> Output<T> {
    /// Numbers that stand there before; `margin` stands around them.
    pub(crate) fn of(data: &[T], margin: T) -> Self {
        Self { data: [&[margin; MARGIN], data, &[margin; MARGIN]].concat(), margin }
    }

    /// `len` numbers that no kernel would write.
    pub(crate) fn unwritten(len: usize, margin: T) -> Self {
        Self { data: vec![margin; len + 2 * MARGIN], margin }
    }

    /// Where the first of them stands.
    pub(crate) fn address(&mut self) -> u64 {
        self.data[MARGIN..].as_mut_ptr() as u64
    }

    /// What was written.
    #[track_caller]
    pub(crate) fn written(&self) -> &[T] {
        let (before, rest) = self.data.split_at(MARGIN);
        let (data, after) = rest.split_at(rest.len() - MARGIN);
        assert!(before.iter().chain(after).all(|x| *x == self.margin), "the kernel has written past its output");
        data
    }
}
