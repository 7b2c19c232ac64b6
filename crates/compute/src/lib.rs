//! What candlewick computes with: the kernels, and the errors and numbers that they share with all above them.
//!
//! A crate of its own because it takes long to compile and seldom changes, and because tests need it fast: development builds
//! optimise it, and not what stands above.

// What only x86-64's wider instructions call; there is no kernel of another processor's yet.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

pub mod error;
pub mod ids;
pub mod kernels;
