//! silu_mul: see the contract below.
