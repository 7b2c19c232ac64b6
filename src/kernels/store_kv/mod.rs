//! store_kv: see the contract below.
