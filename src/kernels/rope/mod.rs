//! rope: see the contract below.
