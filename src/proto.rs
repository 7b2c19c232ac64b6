//! The generated wire types.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

/// Our own contract.
pub mod candlewick {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("candlewick.v1");
    }
}

/// The file descriptors of everything above, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("descriptors");
