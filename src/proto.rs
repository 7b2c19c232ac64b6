//! The generated wire types, a module a package, and the codec that their services use.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

use std::{cell::RefCell, marker::PhantomData};

use prost::{Message, bytes::BufMut};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
};
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
    type Encoder = AtOnce<T>;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        AtOnce(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER_BYTES, BUFFER_BYTES))
    }
}

/// Encodes a message into a vector, and that into the call's buffer: prost writes byte after byte, which costs a buffer that
/// may be cut into parts a call each, and a vector next to nothing.
#[derive(Debug)]
pub struct AtOnce<T>(PhantomData<T>);

/// A vector that has grown larger is given back.
const KEPT_BYTES: usize = 1 << 14;

thread_local! {
    static ENCODED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl<T: Message> Encoder for AtOnce<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        ENCODED.with_borrow_mut(|encoded| {
            let all = message.encode(encoded).map_err(|error| Status::internal(error.to_string()));
            to.reserve(encoded.len());
            to.put_slice(encoded);
            encoded.clear();
            encoded.shrink_to(KEPT_BYTES);
            all
        })
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, BUFFER_BYTES)
    }
}

/// The file descriptors of everything above, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("descriptors");
