//! What candlewick computes with: the kernels, and the errors and numbers that they share with all above them.
//!
//! A crate of its own because it takes long to compile and seldom changes, and because tests need it fast: development builds
//! optimise it, and not what stands above.

pub mod error;
pub mod ids;
pub mod kernels;
