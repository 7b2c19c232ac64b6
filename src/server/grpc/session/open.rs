//! How a session begins: from its first event to the engine's settings.

use std::{sync::Arc, time::Duration};

use prost::Message as _;

use super::super::{Backend, FieldPaths, chat_convert, convert, stream::Teller};
use crate::{
    engine::{Prompt, Request, Session, SessionMemory, SessionSettings, WhenFull},
    error::{Error, Result},
    proto::candlewick::v1 as wire,
    server::backend::name,
};

const OPEN_PATHS: FieldPaths = FieldPaths {
    sampling: "open.options.sampling",
    renamed: &[("options", "open.options"), ("messages", "open.messages"), ("chat", "open.chat")],
};

/// A session that has not begun.
pub(super) struct Opened {
    pub(super) session: Session,
    /// What turns have that do not say otherwise.
    pub(super) defaults: Arc<wire::RequestOptions>,
    pub(super) heartbeat: Duration,
    pub(super) ttl: Duration,
    pub(super) policy: wire::ContextPolicy,
    pub(super) credits: Option<u64>,
}

/// Reads a session's first event.
///
/// # Errors
/// `InvalidArgument` with the field's path; as [`crate::engine::Engine::open_session`].
pub(super) fn open(backend: &Backend, memory: SessionMemory, open: wire::SessionOpen) -> Result<Opened> {
    let wire::SessionOpen { options, system, messages, chat, lease, context_policy, credits, .. } = open;
    let defaults = options.unwrap_or_default();
    refuse(&defaults)?;
    let locate = |error| OPEN_PATHS.locate(error);
    let heartbeat = Teller::heartbeat(backend, Some(&defaults)).map_err(locate)?;
    // What all turns have must be right, so that no turn finds out.
    let checked = request(backend, &defaults, None).map_err(locate)?;
    checked.params.validate().map_err(locate)?;
    let instructions =
        system.map(|content| wire::Message { role: wire::Role::System.into(), content, ..wire::Message::default() });
    let messages = instructions.into_iter().chain(messages).collect();
    let lease = lease.unwrap_or_default();
    let policy = match context_policy.map(wire::ContextPolicy::try_from) {
        None | Some(Ok(wire::ContextPolicy::Unspecified | wire::ContextPolicy::Refuse)) => wire::ContextPolicy::Refuse,
        Some(Ok(wire::ContextPolicy::DropOldest)) => wire::ContextPolicy::DropOldest,
        Some(Err(_)) => return Err(Error::invalid("open.context_policy", "is no ContextPolicy")),
    };
    let cache_salt = defaults.cache_salt.clone().filter(|salt| !salt.is_empty());
    let settings = SessionSettings {
        chat: chat_convert::prompt(messages, chat).map_err(locate)?,
        cache_salt: cache_salt.map(|salt| name("open.options.cache_salt", salt)).transpose()?,
        pinned: lease.pin.unwrap_or(false),
        lease_bytes: lease.max_bytes,
        when_full: match policy {
            wire::ContextPolicy::DropOldest => WhenFull::DropOldest,
            _ => WhenFull::Refuse,
        },
        max_bytes: backend.streams.max_session_bytes,
        other_bytes: defaults.encoded_len(),
        memory,
    };
    if settings.chat.continue_final_message {
        let why = "cannot be in a session: the user speaks, and the model answers";
        return Err(Error::invalid("open.chat.continue_final_message", why));
    }
    let longest = backend.streams.session_ttl;
    let ttl = lease.ttl_ms.map_or(longest, |ms| Duration::from_millis(ms).min(longest));
    let session = backend.engine.open_session(settings)?;
    Ok(Opened { session, defaults: defaults.into(), heartbeat, ttl, policy, credits })
}

/// What is not for sessions.
fn refuse(options: &wire::RequestOptions) -> Result<()> {
    let fields = [
        ("open.options.slow_reader", options.slow_reader.unwrap_or(0) > wire::SlowReader::Pause as i32),
        ("open.options.resumable", options.resumable.unwrap_or(false)),
        ("open.options.idempotency_key", options.idempotency_key.as_ref().is_some_and(|key| !key.is_empty())),
        ("open.options.request_id", options.request_id.as_ref().is_some_and(|id| !id.is_empty())),
    ];
    match fields.iter().find(|(_, set)| *set) {
        Some((field, _)) => Err(Error::invalid(*field, "is not for sessions: leave it unset")),
        None => Ok(()),
    }
}

/// The engine's request of a turn: its own sampling parameters over those of the session, field by field.
///
/// # Errors
/// `InvalidArgument` with the field's path, below `options`; `NotFound` for another model.
pub(super) fn request(
    backend: &Backend,
    defaults: &wire::RequestOptions,
    sampling: Option<wire::SamplingParams>,
) -> Result<Request> {
    let mut options = defaults.clone();
    if let Some(over) = sampling {
        options.sampling = Some(merged(options.sampling.unwrap_or_default(), over)?);
    }
    // The prompt is the session's.
    convert::request(Prompt::Tokens(Vec::new()), Some(options), backend.engine.info())
}

/// `over` where it is set, `under` elsewhere. Lists replace each other whole.
fn merged(mut under: wire::SamplingParams, over: wire::SamplingParams) -> Result<wire::SamplingParams> {
    macro_rules! replaced {
        ($($list:ident),*) => {$(if !over.$list.is_empty() { under.$list.clear(); })*};
    }
    replaced!(
        logit_bias,
        stop,
        stop_token_ids,
        dry_sequence_breakers,
        allowed_token_ids,
        banned_token_ids,
        bad_words,
        samplers
    );
    if over.structured_outputs.is_some() {
        under.structured_outputs = None;
    }
    under.merge(over.encode_to_vec().as_slice()).map_err(|error| Error::internal(format!("sampling: {error}")))?;
    Ok(under)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turns_parameters_replace_the_sessions_field_by_field() {
        let set = wire::SamplingParams::default;
        let under = wire::SamplingParams {
            temperature: Some(0.5),
            top_k: Some(7),
            stop: vec!["a".into(), "b".into()],
            bad_words: vec!["no".into()],
            ..set()
        };
        let over = wire::SamplingParams { temperature: Some(0.0), stop: vec!["c".into()], ..set() };
        let merged = merged(under, over).unwrap();
        assert_eq!((merged.temperature, merged.top_k), (Some(0.0), Some(7)));
        assert_eq!((merged.stop, merged.bad_words), (vec!["c".to_owned()], vec!["no".to_owned()]));
    }
}
