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

/// Of the messages that come with every token, what comes once a stream: kept apart, so that it does not make each of them
/// as large as the parameters of a request, which would be copied from layer to layer with every token.
const RARE: [&str; 10] = [
    "candlewick.v1.GenerateStreamResponse.event.started",
    "candlewick.v1.GenerateStreamResponse.event.finished",
    "candlewick.v1.CompleteStreamResponse.event.started",
    "candlewick.v1.CompleteStreamResponse.event.finished",
    "candlewick.v1.ResumeResponse.event.started",
    "candlewick.v1.ResumeResponse.event.finished",
    "candlewick.v1.SessionResponse.event.opened",
    "candlewick.v1.SessionResponse.event.turn_started",
    "candlewick.v1.SessionResponse.event.turn_done",
    "vllm.grpc.engine.GenerateResponse.response.complete",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let path = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(&path, prost::Message::encode_to_vec(&descriptors))?;
    let builder = tonic_prost_build::configure().codec_path("crate::proto::SmallBuffers");
    RARE.into_iter().fold(builder, |builder, field| builder.boxed(field)).compile_fds(descriptors)?;
    Ok(())
}
