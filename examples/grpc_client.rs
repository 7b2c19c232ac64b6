//! Streams tokens from a running server, as any Rust program can.
//!
//! ```text
//! cargo run --release -- serve &
//! cargo run --release --example grpc_client -- "Once upon a time" http://127.0.0.1:50051
//! ```

use std::{env, error::Error, io::Write};

use candlewick::proto::candlewick::v1::{
    GenerateStreamRequest, ListRequest, Prompt, RequestOptions, SamplingParams, TokenIds,
    generate_stream_response::Event, generation_client::GenerationClient, models_client::ModelsClient, prompt,
};
use tonic::transport::Channel;
use tonic_types::StatusExt;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let text = args.next().unwrap_or_else(|| "Once upon a time".into());
    let address = args.next().unwrap_or_else(|| "http://127.0.0.1:50051".into());
    let channel = Channel::from_shared(address)?.connect().await?;

    let models = ModelsClient::new(channel.clone()).list(ListRequest {}).await?.into_inner().models;
    let model = models.first().ok_or("the server has no model")?;
    eprintln!("{}: {}, {} parameters in {}", model.name, model.architecture, model.num_parameters, model.dtype);

    // A model that came without a tokenizer takes token ids alone.
    let prompt = match model.has_tokenizer {
        true => prompt::Prompt::Text(text),
        false => prompt::Prompt::TokenIds(TokenIds { ids: vec![1, 2, 3] }),
    };
    let request = GenerateStreamRequest {
        prompt: Some(Prompt { prompt: Some(prompt) }),
        options: Some(RequestOptions {
            sampling: Some(SamplingParams {
                temperature: Some(0.8),
                max_tokens: Some(200),
                ..SamplingParams::default()
            }),
            ..RequestOptions::default()
        }),
    };
    let mut stream = match GenerationClient::new(channel).generate_stream(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => {
            let details = status.get_error_details();
            for violation in details.bad_request().iter().flat_map(|bad| &bad.field_violations) {
                eprintln!("{} {}", violation.field, violation.description);
            }
            if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
                eprintln!("try again in {delay:?}");
            }
            return Err(status.into());
        }
    };
    // Dropping the stream at any point cancels the request: the server stops at once.
    while let Some(response) = stream.message().await? {
        match response.event {
            Some(Event::Started(started)) => eprintln!("request {}", started.request_id),
            Some(Event::Delta(delta)) if model.has_tokenizer => print!("{}", delta.text),
            Some(Event::Delta(delta)) => print!("{:?} ", delta.token_ids),
            Some(Event::Finished(finished)) => {
                println!();
                let usage = finished.usage.unwrap_or_default();
                eprintln!("{} prompt tokens, {} generated", usage.prompt_tokens, usage.completion_tokens);
            }
            Some(Event::PromptLogprobs(_) | Event::Progress(_)) | None => {}
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}
