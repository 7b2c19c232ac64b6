//! Generates the wire types from `proto/`, without a system `protoc`.

use std::{env, error::Error, fs, path::PathBuf};

/// Every file with a service; what they import comes along.
const FILES: [&str; 8] = [
    "candlewick/v1/admin.proto",
    "candlewick/v1/generation.proto",
    "candlewick/v1/chat.proto",
    "candlewick/v1/models.proto",
    "candlewick/v1/tokens.proto",
    "candlewick/v1/embeddings.proto",
    "vllm/grpc/engine/vllm_engine.proto",
    "inference/grpc_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let path = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(&path, prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().codec_path("crate::proto::SmallBuffers").compile_fds(descriptors)?;
    Ok(())
}
