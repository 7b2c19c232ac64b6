//! The fields that completions and chat completions share: sampling, streaming, and vLLM's additions.

use std::{collections::BTreeMap, vec};

use serde::Deserialize;

use crate::{
    engine::{Engine, Prompt, PromptOptions, Request, Truncate},
    error::{Error, Result},
    ids::TokenId,
    params::SamplingParams,
    server::{
        backend::{Backend, name},
        http::{Http, call::Call, choices::MAX_CHOICES},
    },
};

/// Every field may be left out, or null.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Fields {
    pub(super) model: Option<String>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u32>,
    best_of: Option<u32>,
    use_beam_search: Option<bool>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    /// -1 and 0 keep all.
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    /// Token ids are the keys of a map, so they are strings.
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<i64>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    min_tokens: Option<u32>,
    stop: Option<OneOrMany>,
    stop_token_ids: Option<Vec<u32>>,
    bad_words: Option<Vec<String>>,
    allowed_token_ids: Option<Vec<u32>>,
    include_stop_str_in_output: Option<bool>,
    ignore_eos: Option<bool>,
    skip_special_tokens: Option<bool>,
    priority: Option<i32>,
    cache_salt: Option<String>,
    /// -1 keeps what fits.
    truncate_prompt_tokens: Option<i64>,
    add_special_tokens: Option<bool>,
    pub(super) return_tokens_as_token_ids: Option<bool>,
}

/// What a stream carries besides text.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamOptions {
    /// A last chunk with the usage of the whole call.
    pub(super) include_usage: Option<bool>,
    /// Every chunk with the usage of its choice so far.
    pub(super) continuous_usage_stats: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "must be a string or an array of strings")]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Vec<String> {
    fn from(some: OneOrMany) -> Self {
        match some {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

impl Fields {
    /// What the stream is to carry, where the answer is to be one.
    pub(super) fn streams(&self) -> Option<StreamOptions> {
        (self.stream == Some(true)).then(|| self.stream_options.unwrap_or_default())
    }

    /// Answers a prompt.
    ///
    /// # Errors
    /// `InvalidArgument` for none, or more than a call may have; and for what is not offered.
    pub(super) fn answers(&self) -> Result<usize> {
        let n = self.n.unwrap_or(1);
        if n == 0 || n as usize > MAX_CHOICES {
            return Err(Error::invalid("n", format!("is {n}, must be 1 to {MAX_CHOICES}")));
        }
        if self.best_of.is_some_and(|best_of| best_of != n) {
            return Err(Error::invalid("best_of", "is not offered: leave it out, and use n"));
        }
        if self.use_beam_search == Some(true) {
            return Err(Error::invalid("use_beam_search", "is not offered"));
        }
        Ok(n as usize)
    }

    /// The sampling parameters: what is set over the model's defaults.
    ///
    /// # Errors
    /// `InvalidArgument` for what cannot be read; ranges are the engine's to check.
    pub(super) fn params(&mut self, defaults: &SamplingParams) -> Result<SamplingParams> {
        let defaults = defaults.clone();
        let top_k = self.top_k.map(|k| u32::try_from(k.max(0)).unwrap_or(u32::MAX));
        if let Some(k) = self.top_k.filter(|&k| k < -1) {
            return Err(Error::invalid("top_k", format!("is {k}, must be -1 or more")));
        }
        let ids = |ids: Vec<u32>| ids.into_iter().map(TokenId).collect();
        if self.allowed_token_ids.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::invalid("allowed_token_ids", "is empty: then no token could come"));
        }
        Ok(SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            logit_bias: self.logit_bias.take().map(logit_bias).transpose()?.unwrap_or(defaults.logit_bias),
            // Negative seeds are seeds too.
            seed: self.seed.map(i64::cast_unsigned).or(defaults.seed),
            max_tokens: self.max_completion_tokens.or(self.max_tokens).or(defaults.max_tokens),
            min_tokens: self.min_tokens.unwrap_or(defaults.min_tokens),
            stop: self.stop.take().map(Vec::from).unwrap_or(defaults.stop),
            stop_token_ids: self.stop_token_ids.take().map_or(defaults.stop_token_ids, ids),
            bad_words: self.bad_words.take().unwrap_or(defaults.bad_words),
            allowed_token_ids: self.allowed_token_ids.take().map_or(defaults.allowed_token_ids, ids),
            include_stop_str_in_output: self.include_stop_str_in_output.unwrap_or(defaults.include_stop_str_in_output),
            ignore_eos: self.ignore_eos.unwrap_or(defaults.ignore_eos),
            skip_special_tokens: self.skip_special_tokens.unwrap_or(defaults.skip_special_tokens),
            ..defaults
        })
    }

    /// How prompts become tokens, and how many of them are kept.
    fn prompt_options(&self, max_model_len: usize) -> Result<PromptOptions> {
        let truncate = match self.truncate_prompt_tokens {
            None => None,
            Some(-1) => Some(Truncate::ToFit),
            Some(tokens) => match usize::try_from(tokens).ok().filter(|tokens| (1..=max_model_len).contains(tokens)) {
                Some(tokens) => Some(Truncate::To(tokens)),
                None => {
                    let why = format!("is {tokens}, must be -1, or 1 to the context of {max_model_len}");
                    return Err(Error::invalid("truncate_prompt_tokens", why));
                }
            },
        };
        Ok(PromptOptions { add_special_tokens: self.add_special_tokens, truncate })
    }

    /// The engine's requests, one a prompt, each of which is to have so many answers.
    ///
    /// # Errors
    /// `InvalidArgument` for too many requests, and for a number of tokens that no prompt can be cut to.
    pub(super) fn requests(
        &self,
        engine: &Engine,
        request_id: &str,
        prompts: Vec<Prompt>,
        answers: usize,
        params: SamplingParams,
    ) -> Result<Requests> {
        let most = MAX_CHOICES.min(engine.config().max_live());
        let number = prompts.len().saturating_mul(answers);
        if number > most {
            let field = if answers > most { "n" } else { "prompt" };
            return Err(Error::invalid(field, format!("asks for {number} answers, at most {most} are allowed")));
        }
        let cache_salt = self.cache_salt.clone().filter(|salt| !salt.is_empty());
        let cache_salt = cache_salt.map(|salt| name("cache_salt", salt)).transpose()?;
        let alike = Request {
            request_id: request_id.to_owned(),
            model: self.model.clone(),
            prompt: Prompt::Tokens(Vec::new()),
            prompt_options: self.prompt_options(engine.config().max_model_len)?,
            params,
            priority: self.priority.unwrap_or(0),
            cache_salt,
            tenant: None,
            network: None,
            deadline: None,
            stream: crate::engine::StreamOptions::default(),
        };
        Ok(Requests { alike, prompts: prompts.into_iter() })
    }
}

/// The engine's requests of a call. Each is made when it is its turn: what they have in common may be as large as a body.
pub(super) struct Requests {
    /// All but the prompt.
    pub(super) alike: Request,
    prompts: vec::IntoIter<Prompt>,
}

impl Requests {
    /// Those to come.
    pub(super) fn prompts(&self) -> &[Prompt] {
        self.prompts.as_slice()
    }
}

impl Iterator for Requests {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        Some(Request { prompt: self.prompts.next()?, ..self.alike.clone() })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.prompts.size_hint()
    }
}

impl ExactSizeIterator for Requests {}

/// The model that is asked.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    model: Option<String>,
}

/// The model that a call names.
///
/// # Errors
/// `InvalidArgument` where it is no name; as [`Models::backend`](crate::server::models::Models::backend).
pub(super) async fn backend_of(http: &Http, call: &Call) -> Result<Backend> {
    let Named { model } = call.parse().map_err(|error| http.models.refused(error))?;
    http.models.backend(&call.caller, model.as_deref(), None).await
}

fn logit_bias(bias: BTreeMap<String, f32>) -> Result<Vec<(TokenId, f32)>> {
    let entry = |(token, bias): (String, f32)| match token.parse() {
        Ok(id) => Ok((TokenId(id), bias)),
        Err(_) => Err(Error::invalid("logit_bias", "must have token ids as its keys")),
    };
    let mut entries = bias.into_iter().map(entry).collect::<Result<Vec<_>>>()?;
    // "7" and "07" are one token.
    entries.sort_by_key(|&(id, _)| id);
    entries.dedup_by_key(|&mut (id, _)| id);
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_and_words_that_may_not_come_are_read() {
        let body = json!({"bad_words": ["no"], "allowed_token_ids": [3, 4], "stop_token_ids": [5]});
        let mut fields: Fields = serde_json::from_value(body).unwrap();
        let params = fields.params(&SamplingParams::default()).unwrap();
        assert_eq!((params.bad_words, params.allowed_token_ids), (vec!["no".to_owned()], vec![TokenId(3), TokenId(4)]));
        assert_eq!(params.stop_token_ids, [TokenId(5)]);
        let mut none: Fields = serde_json::from_value(json!({"allowed_token_ids": []})).unwrap();
        let error = none.params(&SamplingParams::default()).unwrap_err();
        assert_eq!(error.violations[0].field, "allowed_token_ids");
    }
}
