//! [`ChatTemplate`]: messages to the prompt that a model was trained on, by the Jinja template that it came with.
//!
//! The environment is the one of Hugging Face's `apply_chat_template`: blocks trimmed, loop controls, methods of Python
//! strings and maps, `raise_exception`, `strftime_now`, `tojson` as Python writes JSON, `{% generation %}` ignored.

use std::{error::Error as _, fmt, io, path::Path, time::SystemTime};

use minijinja::{Environment, ErrorKind, Value as Variable, syntax::SyntaxConfig, value::Serde};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{Code, Error, Result};

use super::{
    ChatMessage, ChatPrompt, OutputFormat, Tool, chat_template_continue as continuation,
    chat_template_json::tojson,
    chat_template_source::{ITERABLE, SAFE_SUM, iterable, rewritten, safe_sum},
    tokenizer::read_bounded,
    tokenizer_config::TokenizerConfig,
};

/// Most bytes of a template; the longest in use have a thirtieth of it.
const MAX_SOURCE_BYTES: usize = 1 << 20;

/// Most instructions of one rendering (well under a second): a hundred thousand messages of a usual template.
const MAX_INSTRUCTIONS: u64 = 10_000_000;

/// How deep macros and blocks may nest; templates that walk a JSON schema stay below a quarter of it, and the stack of
/// a blocking thread holds several times as much.
const MAX_DEPTH: usize = 200;

/// Most bytes of a rendered prompt.
const MAX_PROMPT_BYTES: usize = 32 << 20;

/// The template that is taken where nobody says which; minijinja's errors give it with the line.
const NAME: &str = "chat_template";
/// What models call that one where they have several, and the one for conversations with tools.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// The names that Hugging Face takes reasoning by; templates read the first, gpt-oss's the second.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// What a rendering depends on besides the messages.
#[derive(Clone, Debug)]
pub struct RenderOptions {
    /// End with the start of an answer (`<|im_start|>assistant\n`), so that the model answers. True by default.
    pub add_generation_prompt: bool,
    /// End inside the last message, so that the model goes on with it; `add_generation_prompt` is then left out.
    pub continue_final_message: bool,
    /// Which of the model's templates; by default `tool_use` where there are tools and it is one, else `default`.
    pub template: Option<String>,
    /// Tools as templates know them: OpenAI's shape. Without any the variable is none.
    pub tools: Vec<Value>,
    /// Documents, each a map. Without any the variable is none.
    pub documents: Vec<Value>,
    /// What `strftime_now` calls now, in UTC.
    pub now: SystemTime,
    /// Further variables for the template (`enable_thinking`); they win over ours.
    pub variables: serde_json::Map<String, Value>,
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
            continue_final_message: false,
            template: None,
            tools: Vec::new(),
            documents: Vec::new(),
            now: SystemTime::now(),
            variables: serde_json::Map::new(),
        }
    }
}

/// A compiled chat template with the model's begin and end tokens.
///
/// A template is part of the model, like its weights; requests cannot bring their own. Still none can hang the server:
/// instructions, depth and output are bounded. What minijinja cannot bound is a template that doubles one string over
/// and over in memory.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Names and sources, as they came.
    sources: Vec<(String, String)>,
    bos: String,
    eos: String,
    output_format: OutputFormat,
    hash: Sha256,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("bos", &self.bos).field("eos", &self.eos).finish_non_exhaustive()
    }
}

/// What a template raised, on its way through minijinja's errors.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the texts of the model's begin and end tokens, empty where it has none.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the line where the template is not valid.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        let mut template = Self {
            environment: environment()?,
            sources: Vec::new(),
            bos: bos.to_owned(),
            eos: eos.to_owned(),
            output_format: OutputFormat::of_template(source),
            hash: Sha256::new(),
        };
        template.add(NAME, source)?;
        Ok(template)
    }

    /// The same with one more template, which requests can choose by its name. Its formats of tool calls and reasoning
    /// count where the first one knows none.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_template(mut self, name: &str, source: &str) -> Result<Self> {
        self.add(name, source)?;
        let format = OutputFormat::of_template(source);
        let known = self.output_format;
        // The template for tools knows better how tools are called than the one without.
        let better = if name == TOOL_USE { format.tool_calls.or(known.tool_calls) } else { known.tool_calls };
        self.output_format =
            OutputFormat { tool_calls: better.or(format.tool_calls), reasoning: known.reasoning.or(format.reasoning) };
        Ok(self)
    }

    fn add(&mut self, name: &str, source: &str) -> Result<()> {
        if source.len() > MAX_SOURCE_BYTES {
            let why = format!("has {} bytes, at most {MAX_SOURCE_BYTES} are allowed", source.len());
            return Err(Error::bad_file(NAME, "source", why));
        }
        self.hash.update(name.as_bytes());
        self.hash.update(source.as_bytes());
        self.sources.retain(|(known, _)| known != name);
        self.sources.push((name.to_owned(), source.to_owned()));
        self.environment.add_template_owned(name.to_owned(), rewritten(source)).map_err(broken)
    }

    /// The formats that the model writes its answers in, as the template teaches them.
    #[must_use]
    pub fn output_format(&self) -> OutputFormat {
        self.output_format
    }

    /// SHA-256, in hexadecimal, over the names and sources of all the model's templates.
    #[must_use]
    pub fn hash(&self) -> String {
        self.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The same template, with other formats.
    #[must_use]
    pub fn with_output_format(mut self, output_format: OutputFormat) -> Self {
        self.output_format = output_format;
        self
    }

    /// Name and source of each template; the first is taken where nobody says which.
    #[must_use]
    pub fn sources(&self) -> Vec<(String, String)> {
        let mut sources: Vec<_> = self.sources.iter().collect();
        sources.sort_by_key(|(name, _)| (name != NAME, name));
        let called = |name: &str| if name == NAME { DEFAULT.to_owned() } else { name.to_owned() };
        sources.into_iter().map(|(name, source)| (called(name), source.clone())).collect()
    }

    /// The texts of the begin and end tokens.
    #[must_use]
    pub fn tokens(&self) -> (&str, &str) {
        (&self.bos, &self.eos)
    }

    /// The templates of a `tokenizer_config.json`. Where nobody says which, the one called `name` is taken; without a
    /// name `default`, or the only one.
    ///
    /// # Errors
    /// `FailedPrecondition` where there is none, or one is not valid.
    pub fn from_tokenizer_config(config: &TokenizerConfig, name: Option<&str>) -> Result<Self> {
        let wanted = name.unwrap_or(DEFAULT);
        let templates = &config.chat_templates;
        let only = if name.is_none() && templates.len() == 1 { templates.first() } else { None };
        let Some((_, source)) = templates.iter().find(|(name, _)| name == wanted).or(only) else {
            if templates.is_empty() {
                return Err(Self::missing(&config.path));
            }
            let names: Vec<&str> = templates.iter().map(|(name, _)| name.as_str()).collect();
            let why = format!("has no template called {wanted:?}; it has {}", names.join(", "));
            return Err(Error::bad_file(&config.path, "chat_template", why));
        };
        let token = |token: &Option<String>| token.clone().unwrap_or_default();
        let first = Self::new(source, &token(&config.bos_token), &token(&config.eos_token));
        let all = templates.iter().filter(|(name, _)| name != NAME);
        all.fold(first, |template, (name, source)| template?.with_template(name, source))
            .map_err(|e| e.context(config.path.display()))
    }

    /// The template in a file of its own (`chat_template.jinja`).
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file where it cannot be read or is not valid.
    pub fn from_file(path: &Path, bos: &str, eos: &str) -> Result<Self> {
        let bytes = read_bounded(path, MAX_SOURCE_BYTES as u64)?;
        let source = String::from_utf8(bytes).map_err(|error| Error::bad_file(path, "file", error))?;
        Self::new(&source, bos, eos).map_err(|error| error.context(path.display()))
    }

    /// The error for a chat with a model that has no template: what to do about it.
    #[must_use]
    pub fn missing(model: &Path) -> Error {
        let message = format!(
            "{}: the model has no chat template: put a chat_template.jinja beside it, or send a prompt instead of messages",
            model.display()
        );
        Error::new(Code::FailedPrecondition, message)
    }

    /// The prompt for these messages. Tokenize it without adding special tokens: the template wrote them.
    ///
    /// # Errors
    /// `InvalidArgument` with the template's own words where it refuses the messages, or where a template is asked for
    /// that there is not; `FailedPrecondition` where the template itself fails, or works for too long.
    pub fn render(&self, messages: &[ChatMessage], options: &RenderOptions) -> Result<String> {
        self.render_values(messages.iter().map(ChatMessage::for_template).collect(), options)
    }

    /// The prompt of a conversation, at this time.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_prompt(&self, prompt: &ChatPrompt, now: SystemTime) -> Result<String> {
        let options = RenderOptions {
            add_generation_prompt: prompt.add_generation_prompt,
            continue_final_message: prompt.continue_final_message,
            template: prompt.chat_template.clone(),
            tools: prompt.tools.iter().map(Tool::for_template).collect(),
            documents: prompt.documents.iter().cloned().map(Value::Object).collect(),
            now,
            variables: serde_json::Map::clone(&prompt.chat_template_kwargs),
        };
        self.render(&prompt.messages, &options)
    }

    /// As [`render`](Self::render), for messages of any shape that the template may know: other roles, content in
    /// parts, tool calls. `messages` serializes as a list of maps; what is null in them is left out, as Hugging Face
    /// does.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_messages(&self, messages: impl Serialize, options: &RenderOptions) -> Result<String> {
        match serde_json::to_value(messages) {
            Ok(Value::Array(messages)) => self.render_values(messages, options),
            Ok(_) => Err(Error::invalid("messages", "must be a list")),
            Err(error) => Err(Error::invalid("messages", error.to_string())),
        }
    }

    fn render_values(&self, mut messages: Vec<Value>, options: &RenderOptions) -> Result<String> {
        messages.iter_mut().for_each(normalize);
        let continued = options.continue_final_message.then(|| continuation::mark(&mut messages)).transpose()?;
        let now = options.now;
        let list = |values: &Vec<Value>| match values.is_empty() {
            true => Variable::from(()),
            false => Variable::from(Serde(values)),
        };
        let mut context: Vec<(&str, Variable)> = vec![
            ("messages", Variable::from(Serde(messages))),
            ("tools", list(&options.tools)),
            ("documents", list(&options.documents)),
            ("add_generation_prompt", (options.add_generation_prompt && continued.is_none()).into()),
            ("bos_token", self.bos.as_str().into()),
            ("eos_token", self.eos.as_str().into()),
            ("strftime_now", Variable::from_function(move |format: &str| strftime(now, format))),
        ];
        context.extend(options.variables.iter().map(|(name, value)| (name.as_str(), Variable::from(Serde(value)))));
        let template = self.choose(options)?;
        let mut prompt = Bounded(Vec::new());
        template.render_captured_to(Variable::from_pairs(context), &mut prompt).map_err(|error| refused(&error))?;
        let prompt = String::from_utf8(prompt.0).map_err(|error| Error::internal(error.to_string()))?;
        match continued {
            Some(text) => continuation::cut(prompt, &text),
            None => Ok(prompt),
        }
    }

    /// The template that is asked for, or fits.
    fn choose(&self, options: &RenderOptions) -> Result<minijinja::Template<'_, '_>> {
        if let Some(name) = options.template.as_deref().filter(|name| *name != NAME) {
            return self.environment.get_template(name).map_err(|_| {
                let names: Vec<&str> = self.environment.templates().map(|(name, _)| name).collect();
                let why = format!("is {name:?}, must be one of {}", names.join(", "));
                Error::invalid("chat_template", why)
            });
        }
        let for_tools = if options.tools.is_empty() { None } else { self.environment.get_template(TOOL_USE).ok() };
        match for_tools {
            Some(template) => Ok(template),
            None => self.environment.get_template(NAME).map_err(broken),
        }
    }
}

/// What Jinja has in Hugging Face's `apply_chat_template`, bounded.
fn environment() -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(broken)?);
    environment.set_fuel(Some(MAX_INSTRUCTIONS));
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_function(SAFE_SUM, safe_sum);
    environment.add_function(ITERABLE, iterable);
    // Jinja's undefined value has no entries; minijinja's has no length at all.
    for name in ["length", "count"] {
        environment.add_filter(name, |value: &Variable| match value.is_undefined() {
            true => Ok(0),
            false => minijinja::filters::length(value),
        });
    }
    // None is nothing to go through, unlike what minijinja says; the undefined value is, and empty.
    environment.add_test("iterable", |value: &Variable| !value.is_none() && value.try_iter().is_ok());
    environment.add_function("raise_exception", |message: String| -> Result<Variable, minijinja::Error> {
        let error = minijinja::Error::new(ErrorKind::InvalidOperation, message.clone());
        Err(error.with_source(Raised(message)))
    });
    Ok(environment)
}

/// Leaves out what is null, and gives reasoning all the names that templates look for.
fn normalize(message: &mut Value) {
    let Some(message) = message.as_object_mut() else { return };
    message.retain(|_, value| !value.is_null());
    let reasoning = REASONING_FIELDS.iter().find_map(|field| message.get(*field)).cloned();
    if let Some(reasoning) = reasoning {
        message.entry("thinking").or_insert_with(|| reasoning.clone());
        message.insert("reasoning_content".to_owned(), reasoning);
    }
}

/// Output that refuses to grow without end.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_PROMPT_BYTES {
            return Err(io::Error::other(format!("the prompt would have more than {MAX_PROMPT_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A template that does not compile.
fn broken(error: minijinja::Error) -> Error {
    Error::bad_file(NAME, "source", format!("is not valid: {}", explain(&error)))
}

/// A template that did not finish: by its own decision, or by mistake.
fn refused(error: &minijinja::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return Error::invalid("messages", message.clone());
        }
        cause = inner.source();
    }
    let why = match error.kind() {
        ErrorKind::OutOfFuel => format!("took more than {MAX_INSTRUCTIONS} steps"),
        _ => format!("failed: {}", explain(error)),
    };
    Error::bad_file(NAME, "source", why)
}

/// minijinja's error with its causes, on one line.
fn explain(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text += &format!(": {inner}");
        cause = inner.source();
    }
    text
}

/// The date or time as Python's `strftime` writes it.
fn strftime(now: SystemTime, format: &str) -> Result<String, minijinja::Error> {
    let wrong =
        |error: jiff::Error| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}"));
    let now = jiff::Timestamp::try_from(now).map_err(wrong)?.to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format, &now).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::text::Role;

    fn render(source: &str, messages: &[(Role, &str)]) -> Result<String> {
        let messages: Vec<_> = messages.iter().map(|&(role, content)| ChatMessage::new(role, content)).collect();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_785_000_000);
        ChatTemplate::new(source, "<s>", "</s>")?.render(&messages, &RenderOptions { now, ..RenderOptions::default() })
    }

    #[test]
    fn a_template_sees_messages_tokens_and_the_day() {
        let source = "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'tool' %}{% continue %}{% endif %}\n[{{ m['role'] }}] {{ m.content.strip() }}\n{% endfor %}\n{% if add_generation_prompt %}{{ strftime_now('%d %b %Y') }}>{% endif %}";
        let text = render(source, &[(Role::System, " be\n"), (Role::Tool, "x"), (Role::User, "hi")]).unwrap();
        assert_eq!(text, "<s>[system] be\n[user] hi\n25 Jul 2026>");
    }

    #[test]
    fn what_a_template_raises_is_the_callers_to_mend() {
        let error = render("{% macro no() %}{{ raise_exception('Only user roles!') }}{% endmacro %}{{ no() }}", &[])
            .unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (Code::InvalidArgument, "messages: Only user roles!"));
    }

    #[test]
    fn a_template_that_fails_names_its_line() {
        let error = render("\n{{ messages[0].content.nothing() }}", &[(Role::User, "hi")]).unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition);
        assert!(error.message.contains("chat_template:2"), "{error}");
        let error = render("\n{% if %}", &[]).unwrap_err();
        assert!(error.message.contains("is not valid") && error.message.contains("chat_template:2"), "{error}");
    }

    #[test]
    fn generation_tags_change_nothing() {
        let source = "a {%- generation -%} b{% set x = 1 %} {% endgeneration %}\n{%+ if true %}c{% endif %}";
        assert_eq!(render(source, &[]).unwrap(), "ab c");
        let template = ChatTemplate::new(source, "", "").unwrap();
        assert_eq!(
            template.sources(),
            [("default".to_owned(), source.to_owned())],
            "others get what the model came with"
        );
    }

    #[test]
    fn a_hostile_template_ends_with_an_error() {
        let hostile = [
            "{% for a in range(100000) %}{% for b in range(100000) %}{{ a }}{% endfor %}{% endfor %}",
            "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
            "{{ 'x' * 90000000 }}",
            "{{ 'x' * 9000000000000 }}",
            "{{ 'x' * 10**9 }}",
            "{% set x = 'x' * 10**9 %}{{ x | length }}",
            "{{ ([1] * 10**9) | length }}",
            "{% include 'chat_template' %}",
            "{{ range(10000000000) | list }}",
            "{{ [] | tojson(indent=100000000) }}",
        ];
        for source in hostile {
            let error = render(source, &[]).unwrap_err();
            assert_eq!(error.code, Code::FailedPrecondition, "{source}: {error}");
        }
        for nested in ["(", "[", "{% if 1 %}", "{{ x", "{%"] {
            let error = ChatTemplate::new(&nested.repeat(50_000), "", "").err();
            assert!(error.is_none_or(|error| error.code == Code::FailedPrecondition), "{nested}");
        }
    }

    #[test]
    fn a_conversation_can_be_gone_on_with_where_it_stopped() {
        let go_on = |source: &str, talk: &[(Role, &str)]| {
            let messages: Vec<_> = talk.iter().map(|&(role, content)| ChatMessage::new(role, content)).collect();
            let options = RenderOptions { continue_final_message: true, ..RenderOptions::default() };
            ChatTemplate::new(source, "", "").unwrap().render(&messages, &options)
        };
        let talk = [(Role::User, "a"), (Role::Assistant, "b ")];
        let keeps =
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>{% endfor %}{{ 'G' if add_generation_prompt }}";
        assert_eq!(go_on(keeps, &talk).unwrap(), "[user]a<end>[assistant]b ");
        let trims = keeps.replace("m.content", "m.content | trim");
        assert_eq!(go_on(&trims, &talk).unwrap(), "[user]a<end>[assistant]b");
        for (source, talk) in [("nothing", &talk[..]), (keeps, &[])] {
            let error = go_on(source, talk).unwrap_err();
            assert_eq!(error.violations[0].field, "continue_final_message", "{error}");
        }
    }

    #[test]
    fn tools_choose_the_template_for_tools_unless_another_is_named() {
        let template = ChatTemplate::new("plain", "", "")
            .and_then(|template| template.with_template("tool_use", "{{ tools[0].function.name }}"))
            .and_then(|template| template.with_template("rag", "{{ documents[0].text }}"))
            .unwrap();
        let text = |tools: &[&str], name: Option<&str>| {
            let tools = tools.iter().map(|name| serde_json::json!({ "function": { "name": name } })).collect();
            let documents = vec![serde_json::json!({ "text": "page" })];
            let template_name = name.map(str::to_owned);
            let options = RenderOptions { tools, documents, template: template_name, ..RenderOptions::default() };
            template.render(&[], &options)
        };
        assert_eq!(text(&[], None).unwrap(), "plain");
        assert_eq!(text(&["f"], None).unwrap(), "f");
        assert_eq!(text(&["f"], Some("rag")).unwrap(), "page");
        let error = text(&[], Some("x")).unwrap_err();
        assert_eq!(error.violations[0].field, "chat_template", "{error}");
        assert!(error.message.contains("rag"), "{error}");
    }

    #[test]
    fn a_configuration_gives_its_named_template_or_says_which_it_has() {
        let config = |json: &str| TokenizerConfig::from_json_bytes(Path::new("c.json"), json.as_bytes()).unwrap();
        let two = config(
            r#"{"eos_token": "E", "chat_template": [{"name": "default", "template": "a{{ eos_token }}"}, {"name": "rag", "template": "b"}]}"#,
        );
        let text = |name| {
            ChatTemplate::from_tokenizer_config(&two, name).unwrap().render(&[], &RenderOptions::default()).unwrap()
        };
        assert_eq!([text(None), text(Some("rag"))], ["aE", "b"]);
        let error = ChatTemplate::from_tokenizer_config(&two, Some("x")).unwrap_err();
        assert_eq!(error.message, r#"c.json: chat_template: has no template called "x"; it has default, rag"#);
        let error = ChatTemplate::from_tokenizer_config(&config("{}"), None).unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition);
        assert!(error.message.contains("put a chat_template.jinja beside it"), "{error}");
    }
}
