//! Tool calls and reasoning over the wire: a scripted model, a tokenizer of one token a byte.

use std::{collections::VecDeque, sync::Arc};

use candlewick::{
    engine::{
        ModelInfo, ModelText,
        executor::{Executor, SequenceOutput, StepOutput, StepPlan},
    },
    error::Result,
    ids::TokenId,
    params::SampledToken,
    proto::candlewick::v1::{
        ChatOptions, CompleteRequest, CompleteStreamRequest, FinishReason, Message, RequestOptions, Role, Tool,
        ToolCall, ToolChoice, ToolChoiceMode, chat_client::ChatClient, complete_stream_response::Event,
        tool_choice::Choice,
    },
    server::ServeOptions,
    text::ChatTemplate,
};
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt;

use super::{Server, config, info, options, soon, text::tokenizer};

/// The byte that ends the scripted answer.
const END: u8 = 0;

/// Says the same bytes to everybody.
struct Scripted {
    script: &'static str,
    outputs: VecDeque<StepOutput>,
}

impl Executor for Scripted {
    fn submit(&mut self, plan: &StepPlan) -> Result<()> {
        let says = |n: u32| self.script.as_bytes().get(n as usize).copied().unwrap_or(END);
        let token = |n| SampledToken { id: TokenId(says(n).into()), logprobs: None };
        let rows = plan.rows.iter().filter(|row| row.samples);
        let sequences = rows.map(|row| SequenceOutput {
            id: row.id,
            tokens: [token(row.num_output_tokens)].into_iter().collect(),
            num_written: 0,
            complete: false,
        });
        self.outputs.push_back(StepOutput { sequences: sequences.collect(), ..StepOutput::default() });
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput> {
        Ok(self.outputs.pop_front().unwrap_or_default())
    }
}

const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\
    {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}{% endfor %}\
    {{ '<no tools>' if not tools }}<assistant>{{ '<think>' if thinks }}";

/// Reasoning, text, and two calls.
pub(crate) const SCRIPT: &str = "<think>\nI need it.\n</think>\n\nLet me look.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": \
    {\"city\": \"München\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"clock\", \"arguments\": {}}\n</tool_call>";

/// One whose model says this to everybody.
pub(crate) async fn server(script: &'static str) -> Server {
    let template = ChatTemplate::new(TEMPLATE, "", "").unwrap();
    let text = ModelText { tokenizer: Some(tokenizer()), chat_template: Some(Arc::new(template)) };
    let info = ModelInfo { vocab_size: 256, eos_token_ids: vec![TokenId(END.into())], ..info() };
    let factory = Arc::new(move || Ok(Box::new(Scripted { script, outputs: VecDeque::new() }) as _));
    Server::with(info, text, config(), factory, ServeOptions::default()).await
}

fn tool(name: &str) -> Tool {
    let schema = r#"{"type": "object", "properties": {"city": {"type": "string"}}}"#;
    Tool { name: name.into(), description: None, parameters_json: Some(schema.into()) }
}

fn with_tools(choice: Option<Choice>) -> ChatOptions {
    ChatOptions {
        tools: vec![tool("get_weather"), tool("clock")],
        tool_choice: choice.map(|choice| ToolChoice { choice: Some(choice) }),
        ..ChatOptions::default()
    }
}

fn ask(chat: ChatOptions, options: RequestOptions) -> CompleteRequest {
    let user = Message { role: Role::User.into(), content: "Weather?".into(), ..Message::default() };
    CompleteRequest { messages: vec![user], options: Some(options), chat: Some(chat) }
}

async fn client(server: &Server) -> ChatClient<Channel> {
    ChatClient::new(server.channel().await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reasoning_text_and_calls_come_apart_at_once_and_piece_by_piece() {
    let server = server(SCRIPT).await;
    let mut chat = client(&server).await;
    let request = ask(with_tools(None), options(400));
    let whole = chat.complete(request.clone()).await.unwrap().into_inner();
    let message = whole.message.unwrap();
    assert_eq!((message.content.as_str(), message.reasoning.as_deref()), ("Let me look.", Some("I need it.")));
    let calls: Vec<_> = message.tool_calls.iter().map(|c| (c.name.as_str(), c.arguments.as_str())).collect();
    assert_eq!(calls, [("get_weather", "{\"city\": \"München\"}"), ("clock", "{}")]);
    assert_ne!(message.tool_calls[0].id, message.tool_calls[1].id);
    assert_eq!(whole.finished.unwrap().finish.unwrap().reason(), FinishReason::ToolCalls);

    let CompleteRequest { messages, options, chat: asked } = request;
    let request = CompleteStreamRequest { messages, options, chat: asked };
    let mut stream = chat.complete_stream(request).await.unwrap().into_inner();
    let (mut text, mut reasoning, mut calls) = (String::new(), String::new(), Vec::<(String, String, u32)>::new());
    let mut reason = None;
    while let Some(response) = soon("an event", stream.message()).await.unwrap() {
        match response.event.unwrap() {
            Event::Started(_) | Event::Progress(_) | Event::PromptLogprobs(_) => {}
            Event::Delta(delta) => {
                text += &delta.text;
                reasoning += &delta.reasoning;
                for call in delta.tool_calls {
                    if let Some(name) = call.name {
                        assert!(call.id.is_some_and(|id| id.starts_with("call_")));
                        calls.push((name, String::new(), 0));
                    }
                    let last = calls.last_mut().unwrap();
                    last.1 += &call.arguments;
                    last.2 += 1;
                }
            }
            Event::Finished(finished) => reason = Some(finished.finish.unwrap().reason()),
        }
    }
    assert_eq!(
        (text.as_str(), reasoning.as_str(), reason),
        ("Let me look.", "I need it.", Some(FinishReason::ToolCalls))
    );
    assert_eq!((calls[0].0.as_str(), calls[0].1.as_str()), ("get_weather", "{\"city\": \"München\"}"));
    assert!(calls[0].2 > 3, "the arguments came in {} parts", calls[0].2);
    assert_eq!((calls[1].0.as_str(), calls[1].1.as_str()), ("clock", "{}"));
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_max_tokens_cuts_off_ends_as_length() {
    let server = server(SCRIPT).await;
    let mut chat = client(&server).await;
    // In the arguments of the first call; between the two; one token before the end of the second.
    let second = SCRIPT.rfind("<tool_call>").unwrap();
    for max_tokens in [SCRIPT.find("Mü").unwrap() + 1, second, SCRIPT.rfind("{}").unwrap() + 2] {
        let answer = chat.complete(ask(with_tools(None), options(max_tokens as u32))).await.unwrap().into_inner();
        assert_eq!(answer.finished.unwrap().finish.unwrap().reason(), FinishReason::Length, "{max_tokens}");
        assert_eq!(answer.message.unwrap().content, "Let me look.");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_choice_against_tools_leaves_calls_as_text_and_others_must_be_possible() {
    let server = server(SCRIPT).await;
    let mut chat = client(&server).await;
    let none = with_tools(Some(Choice::Mode(ToolChoiceMode::None.into())));
    let answer = chat.complete(ask(none, options(400))).await.unwrap().into_inner();
    let message = answer.message.unwrap();
    assert!(message.content.contains("<tool_call>") && message.tool_calls.is_empty(), "{message:?}");
    assert_eq!(answer.finished.unwrap().finish.unwrap().reason(), FinishReason::Stop);

    let unknown = with_tools(Some(Choice::Name("nobody".into())));
    let twice = ChatOptions { tools: vec![tool("f"), tool("f")], ..ChatOptions::default() };
    let nonsense = with_tools(Some(Choice::Mode(77)));
    let budget = ChatOptions { continue_final_message: Some(true), ..ChatOptions::default() };
    let wrong = [(unknown, "chat.tool_choice"), (nonsense, "chat.tool_choice"), (twice, "chat.tools[1].name")];
    for (options_of_chat, field) in wrong {
        let refused = chat.complete(ask(options_of_chat, options(5))).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(refused.get_details_bad_request().unwrap().field_violations[0].field, field);
    }
    // The template keeps messages whole, so this one can be gone on with.
    chat.complete(ask(budget, options(5))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_template_sees_calls_and_answers_of_tools_and_the_requests_own_variables() {
    let server = server("ok").await;
    let mut chat = client(&server).await;
    let call = ToolCall { id: "a".into(), name: "clock".into(), arguments: "{\"n\": 1}".into() };
    let message =
        |role: Role, content: &str| Message { role: role.into(), content: content.into(), ..Message::default() };
    let messages = vec![
        message(Role::User, "Time?"),
        Message { tool_calls: vec![call], ..message(Role::Assistant, "") },
        Message { tool_call_id: Some("a".into()), name: Some("clock".into()), ..message(Role::Tool, "12:00") },
    ];
    let kwargs = ChatOptions { chat_template_kwargs_json: Some("{\"thinks\": true}".into()), ..ChatOptions::default() };
    let request = CompleteRequest { messages, options: Some(options(5)), chat: Some(kwargs) };
    let answer = chat.complete(request).await.unwrap().into_inner();
    let rendered = "<user>Time?<assistant><tool_call>clock {\"n\": 1}<tool>12:00<no tools><assistant><think>";
    assert_eq!(answer.started.unwrap().prompt_tokens as usize, rendered.len());
    // The prompt ends inside the reasoning, so the answer is all reasoning.
    assert_eq!(answer.message.unwrap().reasoning.as_deref(), Some("ok"));
}
