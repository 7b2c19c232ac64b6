//! The generated wire types, a module a package.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

/// Our own contract.
pub mod candlewick {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("candlewick.v1");
    }
}

/// The wire that routers speak to vLLM's engine.
pub mod vllm {
    /// As the package is called.
    pub mod grpc {
        /// As the package is called.
        pub mod engine {
            tonic::include_proto!("vllm.grpc.engine");
        }
    }
}

/// What the wires of the SMG router's family share.
pub mod smg {
    /// As the package is called.
    pub mod grpc {
        /// As the package is called.
        pub mod common {
            tonic::include_proto!("smg.grpc.common");
        }
    }
}

/// The Open Inference Protocol.
pub mod inference {
    tonic::include_proto!("inference");
}

/// The file descriptors of everything above, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("descriptors");
