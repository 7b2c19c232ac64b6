//! Generates the messages and the clients' halves of the services from `proto/`, without a system `protoc`.

use std::error::Error;

const FILES: [&str; 6] = [
    "candlewick/v1/admin.proto",
    "candlewick/v1/chat.proto",
    "candlewick/v1/embeddings.proto",
    "candlewick/v1/generation.proto",
    "candlewick/v1/models.proto",
    "candlewick/v1/tokens.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=../../proto/candlewick");
    let descriptors = protox::compile(FILES, ["../../proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    Ok(())
}
