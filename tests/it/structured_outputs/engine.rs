//! Through the engine, with the model inside the program.

use std::{sync::Arc, time::Duration};

use candlewick::{
    config::EngineConfig,
    engine::{Engine, Event, Finished, Prompt, Request, load::LoadedModel},
    error::{Code, Error},
    ids::TokenId,
    params::{Constraint, FinishReason, SamplingParams, StructuredOutputs},
    telemetry::Telemetry,
};
use futures::StreamExt;
use serde_json::Value;

use super::{demo, params, validity::check};

async fn engine(config: EngineConfig) -> Engine {
    start(demo(), config).await
}

pub(super) async fn start(loaded: LoadedModel, config: EngineConfig) -> Engine {
    let factory = loaded.executor_factory(&config, Some(2));
    Engine::start(loaded.info, loaded.text, config, Arc::new(Telemetry::new("demo")), factory).await.unwrap()
}

pub(super) fn config() -> EngineConfig {
    EngineConfig {
        num_blocks: 512,
        max_num_seqs: 16,
        max_num_batched_tokens: 256,
        max_model_len: 1024,
        ..EngineConfig::default()
    }
}

fn request(params: SamplingParams) -> Request {
    Request { params, ..Request::new(Prompt::Text("Tell me about a fox.".into())) }
}

struct Answer {
    text: String,
    tokens: Vec<u32>,
    /// Tokens of each delivery.
    deliveries: Vec<usize>,
    finished: Finished,
}

async fn answer(engine: &Engine, params: SamplingParams) -> Result<Answer, Error> {
    let mut stream = engine.generate(request(params)).await?;
    let (mut text, mut tokens, mut deliveries) = (String::new(), Vec::new(), Vec::new());
    while let Some(event) = stream.next().await {
        match event? {
            Event::Started(_) | Event::Prompt(_) => {}
            Event::Delta(delta) => {
                text += &delta.text;
                tokens.extend(delta.tokens.iter().map(|token| token.id.0));
                deliveries.push(delta.tokens.len());
                assert!(delta.tokens.iter().all(|token| token.logprobs.is_some()) || !delta.tokens.is_empty());
            }
            Event::Finished(finished) => return Ok(Answer { text, tokens, deliveries, finished }),
        }
    }
    Err(Error::internal("the stream ended without an end"))
}

const SCHEMA: &str = r#"{"type": "object", "properties": {
    "animal": {"type": "string", "maxLength": 12}, "legs": {"type": "integer", "minimum": 0, "maximum": 8},
    "colours": {"type": "array", "items": {"enum": ["red", "brown", "black"]}, "minItems": 1, "maxItems": 3}},
    "required": ["animal", "legs", "colours"], "additionalProperties": false}"#;

fn tight(constraint: Constraint) -> SamplingParams {
    let outputs = StructuredOutputs { disable_any_whitespace: true, ..constraint.into() };
    SamplingParams { structured_outputs: Some(outputs), ..SamplingParams::default() }
}

fn schema(seed: u64) -> SamplingParams {
    SamplingParams { seed: Some(seed), max_tokens: Some(400), ..tight(Constraint::Json(SCHEMA.into())) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_what_was_asked_for_and_end_by_themselves() {
    let engine = engine(config()).await;
    let wanted: Value = serde_json::from_str(SCHEMA).unwrap();
    for seed in 0..4 {
        let answer = answer(&engine, schema(seed)).await.unwrap();
        let value: Value =
            serde_json::from_str(&answer.text).unwrap_or_else(|error| panic!("{error}: {}", answer.text));
        check(&value, &wanted).unwrap();
        assert_eq!(answer.finished.reason, FinishReason::GrammarComplete);
        assert_eq!(answer.finished.usage.completion_tokens as usize, answer.tokens.len());
        assert!(answer.deliveries.iter().any(|&tokens| tokens > 1), "keys are forced, so they come many at a time");
    }
    let regex = answer(&engine, params(Constraint::Regex("[A-Z][a-z]{2,4}-[0-9]{2}".into()))).await.unwrap();
    let (name, number) = regex.text.split_once('-').unwrap();
    assert!(name.chars().all(char::is_alphabetic) && (3..=5).contains(&name.len()), "{}", regex.text);
    assert!(number.len() == 2 && number.parse::<u8>().is_ok(), "{}", regex.text);
    let choices = ["a fox", "a hen", "foxes"];
    let choice = answer(&engine, params(Constraint::Choice(choices.map(String::from).to_vec()))).await.unwrap();
    assert!(choices.contains(&choice.text.as_str()), "{}", choice.text);
    let sum = "root ::= number (\"+\" number){1,2}\nnumber ::= [1-9] [0-9]?";
    let sum = answer(&engine, params(Constraint::Grammar(sum.into()))).await.unwrap();
    assert!(sum.text.split('+').all(|number| number.parse::<u8>().is_ok()) && sum.text.contains('+'), "{}", sum.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_crowd_preemption_and_a_slow_reader_change_nothing() {
    let alone = engine(config()).await;
    let mut expected = Vec::new();
    for seed in 0..6 {
        expected.push(answer(&alone, schema(seed)).await.unwrap().tokens);
    }
    // Room for about two of them: the others lose their blocks again and again; and for one token a reader.
    let tiny = EngineConfig { num_blocks: 12, max_model_len: 160, stream_capacity_tokens: 1, ..config() };
    let crowded = engine(tiny).await;
    let params = |seed| SamplingParams { max_tokens: Some(100), ..schema(seed) };
    let answers = (0..6).map(|seed| answer(&crowded, params(seed)));
    for (answer, expected) in futures::future::join_all(answers).await.into_iter().zip(expected) {
        let tokens = answer.unwrap().tokens;
        assert_eq!(tokens, expected[..tokens.len()]);
        assert_eq!(tokens.len(), expected.len().min(100));
    }
    let preemptions = crowded.telemetry().encode();
    assert!(!preemptions.contains("vllm:num_preemptions_total{model_name=\"demo\"} 0"), "nobody was preempted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_probabilities_come_with_every_token_and_change_none() {
    let engine = engine(config()).await;
    let plain = answer(&engine, schema(5)).await.unwrap();
    let mut stream = engine.generate(request(SamplingParams { logprobs: Some(1), ..schema(5) })).await.unwrap();
    let mut tokens = Vec::new();
    while let Some(event) = stream.next().await {
        if let Event::Delta(delta) = event.unwrap() {
            assert!(delta.tokens.iter().all(|token| token.logprobs.is_some()));
            tokens.extend(delta.tokens.iter().map(|token| token.id.0));
        }
    }
    assert_eq!(tokens, plain.tokens);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_limits_hold_as_well() {
    let engine = engine(config()).await;
    // Cut off in the midst of what is forced.
    let cut = answer(&engine, SamplingParams { max_tokens: Some(3), ..schema(1) }).await.unwrap();
    assert_eq!((cut.tokens.len(), cut.finished.reason), (3, FinishReason::Length));
    // A stop string counts, and what was forced behind it does not.
    let stop = SamplingParams { stop: vec!["\"legs\"".into()], ..schema(1) };
    let stopped = answer(&engine, stop).await.unwrap();
    assert_eq!(stopped.finished.reason, FinishReason::StopString("\"legs\"".into()));
    assert!(stopped.text.starts_with("{\"animal\":\"") && stopped.text.ends_with("\","), "{}", stopped.text);
    // A complete text ends, whatever was said of the end.
    let endless = SamplingParams { ignore_eos: true, min_tokens: 50, ..params(Constraint::Regex("a{2,3}".into())) };
    let ended = answer(&engine, endless).await.unwrap();
    assert_eq!((ended.text.as_str(), ended.finished.reason), ("aaa", FinishReason::GrammarComplete));
    // The end comes only where the text is complete, even if nothing else is likely.
    let eos = engine.info().eos_token_ids.clone();
    let eager = SamplingParams {
        logit_bias: eos.iter().map(|&id| (id, 100.0)).collect(),
        ..params(Constraint::Regex("[a-c]{4}[a-c]*".into()))
    };
    let ended = answer(&engine, eager).await.unwrap();
    assert!(eos.contains(&ended_by(&ended.finished)));
    // A token may spell more than one letter.
    assert!(ended.tokens.len() <= 5 && ended.text.len() >= 4, "{}", ended.text);
}

fn ended_by(finished: &Finished) -> TokenId {
    match finished.reason {
        FinishReason::EndOfSequence(id) => id,
        ref other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_followed_is_refused_and_others_go_on() {
    let engine = engine(config()).await;
    let other = engine.generate(request(SamplingParams {
        max_tokens: Some(200),
        ignore_eos: true,
        ..SamplingParams::default()
    }));
    let mut other = other.await.unwrap();
    let hostile = [
        Constraint::Json(r#"{"type": "array", "uniqueItems": true}"#.into()),
        Constraint::Json(format!("{}{{}}{}", r#"{"items":"#.repeat(3000), "}".repeat(3000))),
        Constraint::Json(format!("{{\"enum\": [{}]}}", vec!["\"x\""; 80_000].join(","))),
        Constraint::Regex("(".repeat(10_000)),
        Constraint::Grammar(format!("start: {}\"a\"{}", "(".repeat(9000), ")".repeat(9000))),
    ];
    for constraint in hostile {
        let outputs = StructuredOutputs::from(constraint);
        let refused =
            answer(&engine, SamplingParams { structured_outputs: Some(outputs.clone()), ..SamplingParams::default() });
        let refused = tokio::time::timeout(Duration::from_secs(60), refused).await.expect("bounded time");
        let error = refused.err().unwrap_or_else(|| panic!("admitted: {}", outputs.field()));
        assert_eq!(
            (error.code, error.violations[0].field.as_str()),
            (Code::InvalidArgument, outputs.field()),
            "{error}"
        );
        assert!(matches!(other.next().await, Some(Ok(_))), "the other stream goes on");
    }
    let mut last = None;
    while let Some(event) = other.next().await {
        last = Some(event.unwrap());
    }
    assert!(matches!(last, Some(Event::Finished(finished)) if finished.reason == FinishReason::Length));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_that_leave_no_token_end_their_stream_alone() {
    let engine = engine(config()).await;
    let other = engine.generate(request(SamplingParams {
        max_tokens: Some(100),
        ignore_eos: true,
        ..SamplingParams::default()
    }));
    let mut other = other.await.unwrap();
    // Every token that may come ends the sequence, and none may before two of them.
    let tokenizer = engine.text().tokenizer.clone().unwrap();
    let starts_with_a = (0..engine.info().vocab_size as u32)
        .map(TokenId)
        .filter(|&id| tokenizer.token_bytes(id).starts_with(b"a"))
        .take(candlewick::params::limits::STOP_TOKEN_IDS)
        .collect();
    let contradiction = SamplingParams {
        min_tokens: 2,
        stop_token_ids: starts_with_a,
        ..params(Constraint::Choice(vec!["a".into(), "aa".into()]))
    };
    let error = answer(&engine, contradiction).await.err().unwrap();
    assert_eq!(error.code, Code::Aborted, "{error}");
    // What is forced is not above the other parameters either.
    let banned = (0..engine.info().vocab_size as u32).map(TokenId);
    let banned = banned.filter(|&id| tokenizer.token_bytes(id).contains(&b'f')).collect();
    let forced = SamplingParams { banned_token_ids: banned, ..params(Constraint::Regex("a fox".into())) };
    let error = answer(&engine, forced).await.err().unwrap();
    assert_eq!(error.code, Code::Aborted, "{error}");
    let mut last = None;
    while let Some(event) = other.next().await {
        last = Some(event.unwrap());
    }
    assert!(matches!(last, Some(Event::Finished(finished)) if finished.reason == FinishReason::Length));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_constraint_is_compiled_once_and_many_push_out_the_oldest() {
    let engine = engine(config()).await;
    // More than are remembered, twice round: what was pushed out is compiled again, and nothing piles up.
    for round in 0..2 {
        let answers = (0..70).step_by(1 + round).map(|k| {
            let choice = Constraint::Choice(vec![format!("{k}"), format!("{k} ")]);
            let engine = &engine;
            async move { (k, answer(engine, params(choice)).await.unwrap().text) }
        });
        for (k, text) in futures::future::join_all(answers).await {
            assert_eq!(text.trim_end(), k.to_string());
        }
    }
}

/// The text of each sequence of a request.
async fn answers(engine: &Engine, params: SamplingParams) -> Vec<String> {
    let mut texts = vec![String::new(); params.n as usize];
    let mut stream = engine.generate(request(params)).await.unwrap();
    while let Some(event) = stream.next().await {
        if let Event::Delta(delta) = event.unwrap() {
            texts[delta.index as usize] += &delta.text;
        }
    }
    texts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_sequence_of_a_request_follows_the_grammar_by_itself() {
    let engine = engine(config()).await;
    let wanted: Value = serde_json::from_str(SCHEMA).unwrap();
    let mut alone = Vec::new();
    for seed in 10..13 {
        alone.push(answer(&engine, schema(seed)).await.unwrap().text);
    }
    assert_eq!(answers(&engine, SamplingParams { n: 3, ..schema(10) }).await, alone);
    for text in answers(&engine, SamplingParams { n: 2, best_of: Some(4), ..schema(10) }).await {
        check(&serde_json::from_str(&text).unwrap(), &wanted).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_back_or_forces_tokens_of_its_own_is_refused_beside_a_grammar() {
    let engine = engine(config()).await;
    let bad_words = SamplingParams { bad_words: vec!["no".into()], ..schema(1) };
    let error = answer(&engine, bad_words).await.err().unwrap();
    assert_eq!((error.code, error.violations[0].field.as_str()), (Code::InvalidArgument, "bad_words"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_prompts_log_probabilities_come_beside_what_is_forced() {
    // A reader with little room, so that both kinds compete for it.
    let engine = engine(EngineConfig { stream_capacity_tokens: 4, ..config() }).await;
    let plain = answer(&engine, schema(3)).await.unwrap();
    let both = answer(&engine, SamplingParams { prompt_logprobs: Some(1), ..schema(3) }).await.unwrap();
    assert_eq!(both.tokens, plain.tokens);
}
