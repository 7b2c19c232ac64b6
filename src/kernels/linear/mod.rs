//! `y = x Wᵀ + b` for a weight in any format, packed once at load.

pub mod format;
