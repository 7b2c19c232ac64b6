//! What the driver is asked for: which kernel, how many threads, which arguments.
//!
//! An operation's `launches.rs` makes these from sizes and addresses alone, so that tests can run the same launch on the
//! host twin (`host_twin.rs`) that the card runs.

/// How many blocks of how many threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Blocks in each dimension; none of them may be 0.
    pub(crate) grid: [u32; 3],
    /// Threads of a block in each dimension.
    pub(crate) block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub(crate) shared_bytes: u32,
}

/// One argument of a kernel, by value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Arg {
    /// An address on the card; 0 for none.
    Ptr(u64),
    /// A `uint32_t`.
    U32(u32),
    /// A `uint64_t`.
    U64(u64),
    /// A `float`.
    F32(f32),
}

#[cfg(all(test, unix))]
impl Arg {
    /// Where its value stands, for as long as it does, and how many bytes it has.
    pub(crate) fn value(&self) -> (*const std::ffi::c_void, u32) {
        match self {
            Self::Ptr(x) | Self::U64(x) => (std::ptr::from_ref(x).cast(), 8),
            Self::U32(x) => (std::ptr::from_ref(x).cast(), 4),
            Self::F32(x) => (std::ptr::from_ref(x).cast(), 4),
        }
    }
}

/// A launch of a kernel with all its arguments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Call<const N: usize> {
    /// The kernel's name in its module.
    pub(crate) kernel: &'static str,
    /// Its threads.
    pub(crate) launch: Launch,
    /// What it takes, in order.
    pub(crate) args: [Arg; N],
}
