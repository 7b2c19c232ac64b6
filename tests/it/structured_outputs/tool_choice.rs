//! Calls that a request asks for come, whatever the model would have said.

use std::sync::Arc;

use candlewick::{
    engine::{Engine, Event, Finished, Prompt, Request, vocabulary},
    error::{Code, Error},
    ids::TokenId,
    params::{Constraint, SamplingParams},
    sampling::grammar::{Compiler, Matcher, Next},
    text::{ChatMessage, ChatPrompt, ChatTemplate, Grammar, Piece, Role, Tool, ToolCallFormat, ToolChoice},
};
use futures::StreamExt;
use serde_json::{Value, json};

use super::{demo, engine::start, params, validity::check};

/// Teaches Hermes' format of calls.
const CALLS: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\
    {{ '<tool_call>' if tools }}<assistant>";
/// The same, and reasoning, which it begins.
const THINKS: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\
    {{ '<tool_call>' if tools }}<assistant><think>\n";

async fn engine(template: &str) -> Engine {
    let mut loaded = demo();
    loaded.text.chat_template = Some(Arc::new(ChatTemplate::new(template, "", "").unwrap()));
    start(loaded, super::engine::config()).await
}

fn schema() -> Value {
    json!({"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer",
        "minimum": 1, "maximum": 9}}, "required": ["city", "days"], "additionalProperties": false})
}

fn chat(choice: ToolChoice) -> ChatPrompt {
    let tool = |name: &str| Tool { name: name.into(), description: None, parameters: schema().as_object().cloned() };
    ChatPrompt {
        tools: [tool("weather"), tool("trains")].into(),
        tool_choice: choice,
        ..vec![ChatMessage::new(Role::User, "Tell me about a fox.")].into()
    }
}

struct Answer {
    text: String,
    reasoning: String,
    /// Names and arguments.
    calls: Vec<(String, String)>,
    finished: Finished,
}

async fn answer(engine: &Engine, chat: ChatPrompt, params: SamplingParams) -> Result<Answer, Error> {
    let params = SamplingParams { max_tokens: Some(700), ..params };
    let mut stream = engine.generate(Request { params, ..Request::new(Prompt::Chat(chat)) }).await?;
    let (mut text, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
    while let Some(event) = stream.next().await {
        match event? {
            Event::Delta(delta) => delta.pieces.into_iter().for_each(|piece| match piece {
                Piece::Text(more) => text += &more,
                Piece::Reasoning(more) => reasoning += &more,
                Piece::ToolCall { name, .. } => calls.push((name, String::new())),
                Piece::Arguments { index, delta } => calls[index].1 += &delta,
            }),
            Event::Finished(finished) => return Ok(Answer { text, reasoning, calls, finished }),
            _ => {}
        }
    }
    Err(Error::internal("the stream ended without an end"))
}

fn seeded(seed: u64) -> SamplingParams {
    SamplingParams { seed: Some(seed), ..SamplingParams::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_required_or_named_call_is_made() {
    let engine = engine(CALLS).await;
    // Ends as soon as it may: after the first call.
    let end = |seed| SamplingParams {
        logit_bias: engine.info().eos_token_ids.iter().map(|&id| (id, 100.0)).collect(),
        ..seeded(seed)
    };
    let mut whole = 0;
    for seed in 0..4 {
        for (choice, names) in
            [(ToolChoice::Required, &["weather", "trains"][..]), (ToolChoice::Named("trains".into()), &["trains"])]
        {
            let answer = answer(&engine, chat(choice), end(seed)).await.unwrap();
            assert_eq!(answer.text, "", "{:?}", answer.calls);
            if !answer.finished.tool_calls {
                continue; // Cut off.
            }
            whole += 1;
            assert!(!answer.calls.is_empty());
            for (name, arguments) in answer.calls {
                assert!(names.contains(&name.as_str()), "{name}");
                check(&serde_json::from_str(&arguments).unwrap(), &schema()).unwrap();
            }
        }
    }
    assert!(whole >= 4, "{whole} of 8 were whole: too few to show anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_by_name_is_called_once() {
    let engine = engine(CALLS).await;
    // Ends only where nothing else may come.
    let endless = |seed| SamplingParams {
        logit_bias: engine.info().eos_token_ids.iter().map(|&id| (id, -100.0)).collect(),
        ..seeded(seed)
    };
    let mut whole = 0;
    for seed in 0..8 {
        let answer = answer(&engine, chat(ToolChoice::Named("trains".into())), endless(seed)).await.unwrap();
        assert_eq!(answer.calls.len(), 1, "{:?}", answer.calls);
        whole += usize::from(answer.finished.tool_calls);
    }
    assert!(whole >= 2, "{whole} of 8 were whole: too few to show anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_cannot_be_asked_for_is_refused_by_name() {
    let engine = engine(THINKS).await;
    let refused = async |chat: ChatPrompt, params: SamplingParams| {
        let error = answer(&engine, chat, params).await.err().unwrap();
        assert_eq!(error.code, Code::InvalidArgument, "{error}");
        error.violations[0].field.clone()
    };
    let required = || chat(ToolChoice::Required);
    assert_eq!(refused(required(), params(Constraint::JsonObject)).await, "tool_choice");
    let banning = SamplingParams { bad_words: vec!["no".into()], ..seeded(1) };
    assert_eq!(refused(required(), banning).await, "bad_words");
    let thrifty = ChatPrompt { thinking_token_budget: Some(5), ..required() };
    assert_eq!(refused(thrifty, seeded(1)).await, "thinking_token_budget");
    let mut unfollowable = required();
    Arc::make_mut(&mut unfollowable.tools)[0].parameters =
        json!({"type": "array", "uniqueItems": true}).as_object().cloned();
    assert_eq!(refused(unfollowable, seeded(1)).await, "tool_choice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_a_form_is_no_reasoning_even_where_the_template_began_one() {
    let engine = engine(THINKS).await;
    let chat = ChatPrompt::from(vec![ChatMessage::new(Role::User, "Tell me about a fox.")]);
    let answer = answer(&engine, chat, params(Constraint::Choice(vec!["yes".into(), "no".into()]))).await.unwrap();
    assert!(["yes", "no"].contains(&answer.text.as_str()) && answer.reasoning.is_empty(), "{}", answer.text);
}

/// Grammars of calls on the vocabulary of the model inside the program.
struct Calls {
    compiler: Compiler,
    /// The bytes of its tokens.
    tokens: Vec<Vec<u8>>,
    eos: TokenId,
}

impl Calls {
    fn new() -> Self {
        let loaded = demo();
        let (tokenizer, size) = (loaded.text.tokenizer.expect("a tokenizer"), loaded.info.vocab_size);
        let compiler = Compiler::new(&vocabulary(&tokenizer, size)).expect("a vocabulary");
        let tokens = (0..size as u32).map(|id| tokenizer.token_bytes(TokenId(id)).to_vec()).collect();
        Self { compiler, tokens, eos: tokenizer.eos().expect("an end") }
    }

    /// Whether the format's grammar for a call of this tool, or for one and no more, takes a text to its end.
    fn take(&self, format: &str, tool: &Tool, one_call: bool, text: &str) -> bool {
        let special = |_: &str| None;
        let grammar = Grammar::new(&special);
        let grammar = if one_call { grammar.one_call() } else { grammar };
        let format = ToolCallFormat::named(format).expect("a format");
        let lark = format.constraint(std::slice::from_ref(tool), &ToolChoice::Required, None, "", &grammar);
        let constraint = Constraint::Grammar(lark.expect("a choice").expect("a grammar"));
        let compiled = self.compiler.compile(&constraint.into()).unwrap_or_else(|error| panic!("{error}"));
        let mut matcher = Matcher::new(&compiled, &SamplingParams::default(), &[self.eos]).expect("a start");
        let mut rest = text.as_bytes();
        loop {
            match matcher.what_next().expect("a mask") {
                Next::Complete => return rest.is_empty(),
                Next::Forced => {
                    for id in matcher.take_forced(usize::MAX).collect::<Vec<_>>() {
                        let Some(after) = rest.strip_prefix(self.tokens[id.index()].as_slice()) else { return false };
                        rest = after;
                    }
                }
                Next::Mask(mask) if rest.is_empty() => return mask.allows(self.eos),
                Next::Mask(mask) => {
                    let fits = |id: &usize| !self.tokens[*id].is_empty() && rest.starts_with(&self.tokens[*id]);
                    let fits = (0..self.tokens.len()).filter(|id| fits(id) && mask.allows(TokenId(*id as u32)));
                    let Some(longest) = fits.max_by_key(|id| self.tokens[*id].len()) else { return false };
                    matcher.accept(TokenId(longest as u32)).expect("an allowed token");
                    rest = &rest[self.tokens[longest].len()..];
                }
            }
        }
    }
}

#[test]
fn an_argument_that_refers_to_a_definition_is_followed_in_tags_too() {
    let parameters = json!({
        "type": "object", "required": ["place"], "properties": {"place": {"$ref": "#/$defs/place"}},
        "$defs": {"place": {"type": "array", "items": {"$ref": "#/$defs/degrees"}, "minItems": 2, "maxItems": 2},
                  "degrees": {"type": "integer", "minimum": -180, "maximum": 180}},
    });
    let tool = Tool { name: "weather".into(), description: None, parameters: parameters.as_object().cloned() };
    let calls = Calls::new();
    let call = |place: &str| {
        format!("<tool_call>\n<function=weather>\n<parameter=place>\n{place}\n</parameter>\n</function>\n</tool_call>")
    };
    assert!(calls.take("qwen3_coder", &tool, false, &call("[7, -180]")));
    assert!(!calls.take("qwen3_coder", &tool, false, &call("[7]")));
    assert!(!calls.take("qwen3_coder", &tool, false, &call("[7, 181]")));
    for format in ToolCallFormat::all_names() {
        assert!(!calls.take(format, &tool, false, "no call"), "{format}");
    }
}

#[test]
fn an_argument_that_refers_to_the_whole_schema_is_followed_in_tags_too() {
    // A tree: what is asked for of the whole is asked for of each branch, and a property may be a definition as well.
    let parameters = json!({
        "type": "object", "required": ["left"], "additionalProperties": false,
        "properties": {"left": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "size": {"type": "integer", "maximum": 9},
                       "depth": {"$ref": "#/properties/size"}, "$ref": {"const": {"$ref": "#"}}},
    });
    let tool = Tool { name: "tree".into(), description: None, parameters: parameters.as_object().cloned() };
    let calls = Calls::new();
    let takes = |arguments: &[(&str, &str)]| {
        let tagged = |(key, value): &(&str, &str)| format!("<parameter={key}>\n{value}\n</parameter>\n");
        let arguments: String = arguments.iter().map(tagged).collect();
        let call = format!("<tool_call>\n<function=tree>\n{arguments}</function>\n</tool_call>");
        calls.take("qwen3_coder", &tool, false, &call)
    };
    assert!(takes(&[("left", r#"{"left": {"left": null, "size": 3}}"#)]));
    assert!(!takes(&[("left", r#"{"left": {"size": 3}}"#)]));
    assert!(takes(&[("left", "null"), ("depth", "-3")]) && !takes(&[("left", "null"), ("depth", "10")]));
    assert!(takes(&[("left", "null"), ("$ref", r##"{"$ref": "#"}"##)]));
    let envelope =
        |left: &str| format!("<tool_call>\n{{\"name\": \"tree\", \"arguments\": {{\"left\": {left}}}}}\n</tool_call>");
    assert!(calls.take("hermes", &tool, false, &envelope(r#"{"left": null}"#)));
    assert!(!calls.take("hermes", &tool, false, &envelope("{}")));
}

#[test]
fn a_grammar_of_one_call_ends_behind_it() {
    let tool = Tool { name: "clock".into(), description: None, parameters: None };
    let calls = Calls::new();
    let call = r#"<tool_call>
{"name": "clock", "arguments": {}}
</tool_call>"#;
    let two = format!("{call}\n{call}");
    assert!(calls.take("hermes", &tool, true, call) && calls.take("hermes", &tool, false, call));
    assert!(!calls.take("hermes", &tool, true, &two) && calls.take("hermes", &tool, false, &two));
    let list = r#"[{"name": "clock", "arguments": {}}, {"name": "clock", "arguments": {}}]"#;
    assert!(!calls.take("json", &tool, true, list) && calls.take("json", &tool, false, list));
}
