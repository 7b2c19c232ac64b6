//! Text over the wire: chat, stop strings, tokenizing and back, with a tokenizer of one token a byte.

use std::{path::Path, sync::Arc};

use candlewick::{
    config::{AllowedOrigins, EngineConfig, StreamArgs},
    engine::{
        ModelInfo, ModelText,
        fake::{FakeExecutor, FakeOptions, Gate, Mishap},
    },
    ids::TokenId,
    proto::candlewick::v1::{
        ApplyTemplateRequest, ChatOptions, CompleteRequest, CompleteStreamRequest, DetokenizeRequest, FinishReason,
        GenerateRequest, GenerateStreamRequest, Message, Prompt, Role, TokenizeRequest, chat_client::ChatClient,
        complete_stream_response::Event, finish::Matched, prompt, tokens_client::TokensClient,
    },
    server::ServeOptions,
    text::{ChatTemplate, Tokenizer},
};
use tonic::Code;
use tonic_types::StatusExt;

use super::{Server, config, info, options, read, soon};
use crate::place::repository;

/// Ids that the fake draws from: ASCII, so that every token is a character.
pub(crate) const ASCII: u32 = 128;

/// The character that byte-level vocabularies write for a byte (GPT-2's `bytes_to_unicode`).
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match printable(byte) {
        true => char::from(byte),
        false => {
            let rank = (0..byte).filter(|&b| !printable(b)).count() as u32;
            char::from_u32(256 + rank).unwrap()
        }
    }
}

pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    let vocab: serde_json::Map<_, _> = (0..=255).map(|b| (byte_char(b).to_string(), b.into())).collect();
    let byte_level =
        serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    Arc::new(Tokenizer::from_json_bytes(Path::new("tokenizer.json"), json.to_string().as_bytes()).unwrap())
}

pub(crate) async fn server() -> Server {
    server_with(None, config(), StreamArgs::default()).await
}

/// One whose engine hangs in step `step` until the gate is opened.
pub(crate) async fn server_that_hangs(step: u64) -> (Server, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let mishap = Some((step, Mishap::Hang(gate.clone())));
    (server_with(mishap, config(), StreamArgs::default()).await, gate)
}

/// One with limits of its own.
pub(crate) async fn server_with(mishap: Option<(u64, Mishap)>, config: EngineConfig, streams: StreamArgs) -> Server {
    server_of(mishap, config, ServeOptions { streams, ..ServeOptions::default() }).await
}

/// One that pages of these sites may call.
pub(crate) async fn server_open_to(allowed_origins: AllowedOrigins) -> Server {
    server_of(None, config(), ServeOptions { allowed_origins, ..ServeOptions::default() }).await
}

/// A template that shows all that a chat may be told.
const TELLING: &str = "{% for m in messages %}<{{ m.role }}{{ ' ' ~ m.tool_call_id if m.tool_call_id }}\
    {{ ' ' ~ m.name if m.name }}>{{ '(' ~ m.reasoning_content ~ ')' if m.reasoning_content }}{{ m.content }}\
    {% for c in m.tool_calls or [] %}[{{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}\
    {% endfor %}{% for t in tools or [] %}+{{ t.function.name }}{% endfor %}\
    {{ '/' ~ reasoning_effort if reasoning_effort }}{{ '-' if enable_thinking is defined and not enable_thinking }}\
    {{ '<assistant>' if add_generation_prompt }}";

/// One whose template shows all that a chat may be told.
pub(crate) async fn server_that_shows_prompts() -> Server {
    server_rendering(TELLING, None, config(), ServeOptions::default()).await
}

/// One with these options.
pub(crate) async fn server_of(mishap: Option<(u64, Mishap)>, config: EngineConfig, options: ServeOptions) -> Server {
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>";
    server_rendering(template, mishap, config, options).await
}

async fn server_rendering(
    template: &str,
    mishap: Option<(u64, Mishap)>,
    config: EngineConfig,
    options: ServeOptions,
) -> Server {
    let template = ChatTemplate::new(template, "", "").unwrap();
    let text = ModelText { tokenizer: Some(tokenizer()), chat_template: Some(Arc::new(template)) };
    server_reading(text, mishap, config, options).await
}

/// One whose tokenizer puts a special token before a text and another behind it.
pub(crate) async fn server_with_special_tokens() -> Server {
    let file = repository("tests/data/tokenizers/wordpiece.json");
    let tokenizer = Tokenizer::from_json_bytes(&file, &std::fs::read(&file).unwrap()).unwrap();
    let text = ModelText { tokenizer: Some(Arc::new(tokenizer)), chat_template: None };
    server_reading(text, None, config(), ServeOptions::default()).await
}

async fn server_reading(
    text: ModelText,
    mishap: Option<(u64, Mishap)>,
    config: EngineConfig,
    options: ServeOptions,
) -> Server {
    let info = ModelInfo { vocab_size: 256, ..info() };
    // The fakes of the other tests draw from a larger vocabulary.
    let limits = config.clone();
    let factory = Arc::new(move || {
        let options = FakeOptions { vocab_size: ASCII, mishap: mishap.clone(), ..FakeOptions::default() };
        Ok(Box::new(FakeExecutor::new(&limits, options)) as _)
    });
    Server::with(info, text, config, factory, options).await
}

/// What the fake makes of a text.
pub(crate) fn continued(prompt: &str, n: usize) -> String {
    let ids: Vec<_> = prompt.bytes().map(|b| TokenId(b.into())).collect();
    FakeExecutor::expected(ASCII, &ids, n).into_iter().map(|id| char::from(id.0 as u8)).collect()
}

fn text(prompt: &str) -> Option<Prompt> {
    Some(Prompt { prompt: Some(prompt::Prompt::Text(prompt.into())) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_goes_in_and_comes_out_whole_however_it_is_cut() {
    let server = server().await;
    let mut client = server.generation().await;
    let request = GenerateStreamRequest { prompt: text("Once upon a time"), options: Some(options(60)) };
    let streamed = read(client.generate_stream(request).await.unwrap().into_inner()).await;
    let whole: String = streamed.deltas.iter().map(|delta| delta.text.as_str()).collect();
    assert_eq!(whole, continued("Once upon a time", 60));
    let request = GenerateRequest { prompt: text("Once upon a time"), options: Some(options(60)) };
    assert_eq!(client.generate(request).await.unwrap().into_inner().output.unwrap().text, whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_string_ends_the_stream_is_named_and_none_of_it_is_told() {
    let server = server().await;
    let whole = continued("hello", 60);
    let stop = whole[20..24].to_owned();
    let before = whole.split(&stop).next().unwrap();
    let mut request = GenerateStreamRequest { prompt: text("hello"), options: Some(options(60)) };
    request.options.as_mut().unwrap().sampling.as_mut().unwrap().stop = vec![stop.clone()];
    let read = read(server.generation().await.generate_stream(request).await.unwrap().into_inner()).await;
    let told: String = read.deltas.iter().map(|delta| delta.text.as_str()).collect();
    assert_eq!(told, before);
    let finish = read.finished.unwrap().finish.unwrap();
    assert_eq!((finish.reason(), finish.matched), (FinishReason::Stop, Some(Matched::Stop(stop))));
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_chat_is_to_the_model_can_be_asked_for() {
    let server = server().await;
    let mut tokens = TokensClient::new(server.channel().await);
    let user = Message { role: Role::User.into(), content: "Hi".into(), ..Message::default() };
    let ask = |messages: Vec<Message>| ApplyTemplateRequest { messages, ..ApplyTemplateRequest::default() };
    let applied = tokens.apply_template(ask(vec![user.clone()])).await.unwrap().into_inner();
    assert_eq!(applied.text, "<user>Hi<assistant>");
    let request = DetokenizeRequest { token_ids: applied.token_ids, ..DetokenizeRequest::default() };
    assert_eq!(tokens.detokenize(request).await.unwrap().into_inner().text, applied.text);
    let chat = ChatOptions { chat_template: Some("none".into()), ..ChatOptions::default() };
    let unknown = ApplyTemplateRequest { chat: Some(chat), ..ask(vec![user]) };
    for (request, field) in [(ask(Vec::new()), "messages"), (unknown, "chat.chat_template")] {
        let refused = tokens.apply_template(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(refused.get_details_bad_request().unwrap().field_violations[0].field, field);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_rendered_with_the_template_and_answered() {
    let server = server().await;
    let mut chat = ChatClient::new(server.channel().await);
    let messages = vec![
        Message { role: Role::System.into(), content: "Be brief.".into(), ..Message::default() },
        Message { role: Role::User.into(), content: "Hi".into(), ..Message::default() },
    ];
    let rendered = "<system>Be brief.<user>Hi<assistant>";
    let request = CompleteRequest { messages: messages.clone(), options: Some(options(20)), chat: None };
    let answer = chat.complete(request).await.unwrap().into_inner();
    assert_eq!(answer.started.unwrap().prompt_tokens as usize, rendered.len());
    let message = answer.message.unwrap();
    assert_eq!((message.role(), message.content), (Role::Assistant, continued(rendered, 20)));
    assert_eq!(answer.output.unwrap().token_ids.len(), 20);

    let request = CompleteStreamRequest { messages, options: Some(options(20)), chat: None };
    let mut stream = chat.complete_stream(request).await.unwrap().into_inner();
    let (mut told, mut seq) = (String::new(), 0);
    while let Some(response) = soon("an event", stream.message()).await.unwrap() {
        seq += 1;
        assert_eq!(response.seq, seq);
        if let Event::Delta(delta) = response.event.unwrap() {
            told.push_str(&delta.text);
        }
    }
    assert_eq!(told, continued(rendered, 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokenizing_and_back_gives_the_same_text() {
    let server = server().await;
    let mut tokens = TokensClient::new(server.channel().await);
    // Long enough to be worked on beside the streams.
    let text = "Grüße, 世界 🌍! ".repeat(500);
    let request = TokenizeRequest { text: text.clone(), ..TokenizeRequest::default() };
    let token_ids = tokens.tokenize(request).await.unwrap().into_inner().token_ids;
    assert_eq!(token_ids.len(), text.len());
    let request = DetokenizeRequest { token_ids, ..DetokenizeRequest::default() };
    let plain = tokens.detokenize(request).await.unwrap().into_inner();
    assert_eq!((plain.text, plain.token_strs.len()), (text, 0));

    // A byte a token here: of a character of two, neither half is one.
    let token_ids = "aé".bytes().map(u32::from).collect();
    let request = DetokenizeRequest { token_ids, return_token_strs: Some(true), ..DetokenizeRequest::default() };
    let apart = tokens.detokenize(request).await.unwrap().into_inner();
    assert_eq!(
        (apart.text.as_str(), apart.token_strs),
        ("aé", ["a", "\u{fffd}", "\u{fffd}"].map(String::from).to_vec())
    );

    let beyond = DetokenizeRequest { token_ids: vec![1, 256], ..DetokenizeRequest::default() };
    let refused = tokens.detokenize(beyond).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.get_details_bad_request().unwrap().field_violations[0].field, "token_ids[1]");
    let other = TokenizeRequest { model: Some("other".into()), ..TokenizeRequest::default() };
    assert_eq!(tokens.tokenize(other).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_banned_string_is_taken_back_before_anybody_sees_a_part_of_it() {
    let server = server().await;
    let plain = continued("prompt", 40);
    for at in [0, 3, 20] {
        let banned = plain[at..at + 4].to_owned();
        let mut options = options(40);
        options.sampling.as_mut().unwrap().bad_words = vec![banned.clone(), "\u{7f}\u{7f}never".into()];
        let request = GenerateStreamRequest { prompt: text("prompt"), options: Some(options) };
        let mut client = server.generation().await;
        let told = read(client.generate_stream(request).await.unwrap().into_inner()).await;
        let said: String = told.deltas.iter().map(|delta| delta.text.as_str()).collect();
        assert!(!said.contains(&banned), "{said:?} says {banned:?}");
        assert_eq!((said.len(), &said[..at]), (40, &plain[..at]), "it went back to where the string began");
        assert_ne!(said.as_bytes()[at], plain.as_bytes()[at]);
        assert_eq!(told.finished.unwrap().usage.unwrap().completion_tokens, 40);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_sequences_and_the_prompts_log_probabilities_come_in_one_answer() {
    let server = server().await;
    let mut options = options(12);
    let sampling = options.sampling.as_mut().unwrap();
    (sampling.n, sampling.prompt_logprobs) = (Some(3), Some(0));
    let request = GenerateRequest { prompt: text("prompt"), options: Some(options) };
    let whole = server.generation().await.generate(request).await.unwrap().into_inner();
    assert_eq!(whole.alternatives.len(), 2);
    let others = whole.alternatives.iter().map(|other| other.output.clone().unwrap());
    let all: Vec<_> = std::iter::once(whole.output.unwrap()).chain(others).collect();
    for (index, output) in all.iter().enumerate() {
        // The fake knows no seeds: all say the same.
        assert_eq!((output.index as usize, &output.text), (index, &continued("prompt", 12)));
    }
    let prompt = whole.prompt_logprobs.unwrap();
    let ids: Vec<_> = prompt.logprobs.iter().map(|position| position.chosen.unwrap().token_id as u8).collect();
    assert_eq!((prompt.start, ids), (1, b"rompt".to_vec()));
    // All have gone with their request.
    let mut options = super::options(12);
    options.sampling.as_mut().unwrap().n = Some(129);
    let request = GenerateRequest { prompt: text("prompt"), options: Some(options) };
    let status = server.generation().await.generate(request).await.unwrap_err();
    assert_eq!(status.get_error_details().bad_request().unwrap().field_violations[0].field, "options.sampling.n");
}
