//! Talks to a running server: a prompt that streams, a session of two turns, and what a refused request carries.
//!
//! ```text
//! cargo run --release -- serve &
//! cargo run --release -p candlewick-client --example grpc_client -- "Once upon a time" http://127.0.0.1:50051
//! ```
//!
//! Takes a key from `CANDLEWICK_API_KEY`. Ends with 0 where everything came as it should.

use std::{env, error::Error, io::Write, time::Duration};

use candlewick_client::{Ask, Client, Code, SamplingParams, Session, SessionOpen, v1::TurnDone};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let text = args.next().unwrap_or_else(|| "Once upon a time".into());
    let address = args.next().unwrap_or_else(|| "http://127.0.0.1:50051".into());
    let mut builder = Client::builder(address).timeout(Duration::from_secs(120));
    if let Ok(key) = env::var("CANDLEWICK_API_KEY") {
        builder = builder.api_key(key);
    }
    let client = builder.connect().await?;
    let models = client.models().await?;
    let model = models.first().ok_or("the server has no model")?;
    eprintln!("{}: {}, {} parameters in {}", model.name, model.architecture, model.num_parameters, model.dtype);

    // A model that came without a tokenizer takes token ids alone.
    let ask = match model.has_tokenizer {
        true => Ask::prompt(text.as_str()),
        false => Ask::prompt(vec![1, 2, 3]),
    };
    let sampling = SamplingParams { temperature: Some(0.8), max_tokens: Some(60), ..SamplingParams::default() };
    // Dropping the stream at any point cancels the request: the server stops at once.
    let mut stream = client.generate_stream(ask.sampling(sampling)).await?;
    while let Some(delta) = stream.next().await? {
        match model.has_tokenizer {
            true => print!("{}", delta.text),
            false => print!("{:?} ", delta.token_ids),
        }
        std::io::stdout().flush()?;
    }
    println!();
    let usage = stream.log().finished.first().and_then(|end| end.usage).ok_or("the stream did not say how it ended")?;
    eprintln!("{} prompt tokens, {} generated", usage.prompt_tokens, usage.completion_tokens);

    if model.has_chat_template {
        converse(&client).await?;
    }

    let wrong = SamplingParams { temperature: Some(-1.0), ..SamplingParams::default() };
    match client.generate(Ask::prompt(vec![1]).sampling(wrong)).await {
        Err(error) if error.code == Code::InvalidArgument => println!("refusal: {}", error.fields()[0].field),
        other => return Err(format!("a wrong temperature was not refused: {other:?}").into()),
    }
    Ok(())
}

/// The second turn computes little more than what is new.
async fn converse(client: &Client) -> Result<(), Box<dyn Error>> {
    let open = SessionOpen { system: Some("You tell stories.".into()), ..SessionOpen::default() };
    let mut session = client.session(open).await?;
    let first = turn(&mut session, "Once upon a time there was a fox.").await?;
    let second = turn(&mut session, "And then?").await?;
    let tokens = |done: &TurnDone| done.usage.map_or(0, |usage| usage.prompt_tokens + usage.completion_tokens);
    let prompt = second.usage.map_or(0, |usage| usage.prompt_tokens);
    if second.turn_index != 1 || second.computed_tokens > prompt.saturating_sub(tokens(&first)) + 17 {
        return Err(format!("the second turn computed more than it brought: {second:?}").into());
    }
    session.close().await?;
    println!("session: turn 2 had {prompt} prompt tokens and computed {}", second.computed_tokens);
    Ok(())
}

async fn turn(session: &mut Session, said: &str) -> Result<TurnDone, candlewick_client::Error> {
    session.say(said).await?.done().await
}
