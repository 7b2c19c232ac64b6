//! rms_norm: see the contract below.
