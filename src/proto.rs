//! The generated wire types, a module a package, and the codec that their services use.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::ProstCodec;

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

/// [`ProstCodec`] with small buffers: a call has two for as long as it lasts, a session is idle for most of that, and its
/// messages are tokens. Larger ones make the buffers grow.
#[derive(Clone, Debug)]
pub struct SmallBuffers<T, U>(PhantomData<(T, U)>);

/// Bytes that a buffer begins with; as many messages are put together before they are sent, so that it hardly grows.
const BUFFER_BYTES: usize = 1 << 10;

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER_BYTES, BUFFER_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER_BYTES, BUFFER_BYTES))
    }
}

/// The file descriptors of everything above, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("descriptors");
