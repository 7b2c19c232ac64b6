//! The arithmetic, one folder an operation: contract and dispatch, a scalar reference, and an implementation a device.
//!
//! On the CPU all activations are float32; weights and KV blocks keep their own format and are widened in registers.
//! The result of one row never depends on which other rows are computed with it: the order of the additions that make
//! one output is fixed, whatever the batch, the chunk, the number of threads or the instruction set.
//!
//! Kernels share work over the pool they are called in ([`Pool::install`](pool::Pool::install) chooses it). Inputs may be
//! views whose rows lie apart (a slice of a fused projection); each row must be contiguous, or it is copied first.

pub mod activation;
pub mod argmax;
pub mod causal_conv;
pub mod combine;
mod cpu_tensor;
#[cfg(any(test, feature = "cuda"))]
pub(crate) mod cuda;
pub mod device;
pub mod follow;
pub mod gated_delta;
pub mod graph;
pub mod grouped_linear;
pub mod layer_norm;
pub mod linear;
pub mod machine;
pub mod paged_attention;
pub mod pool;
pub mod probe;
mod processor;
pub mod recurrent;
pub mod rms_norm;
pub mod rope;
pub mod route;
pub mod sample;
mod simd;
pub mod spare;
pub mod store_kv;
#[cfg(test)]
mod test_data;
