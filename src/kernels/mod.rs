//! The arithmetic, one folder an operation: contract and dispatch, a scalar reference, and an implementation a device.
//!
//! On the CPU all activations are float32; weights and KV blocks keep their own format and are widened in registers.
//! The result of one row never depends on which other rows are computed with it: the order of the additions that make
//! one output is fixed, whatever the batch, the chunk or the number of threads.

pub mod linear;
pub mod paged_attention;
pub mod rms_norm;
pub mod rope;
pub mod silu_mul;
pub mod store_kv;
