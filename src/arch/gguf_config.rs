//! A model's configuration out of the metadata of a GGUF file (keys as the GGUF specification names them).

use std::ops::RangeInclusive;

use crate::{
    arch::{
        ARCHITECTURES,
        config::{Conventions, ModelConfig, limits},
        gguf_family::Family,
        window::SlidingWindow,
    },
    error::{Error, Result},
    weights::gguf::Gguf,
};

impl ModelConfig {
    /// Reads the configuration of a GGUF file.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the key or tensor that is missing, impossible or not supported.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let general = "general.architecture";
        let prefix = gguf.string(general)?.ok_or_else(|| missing(gguf, general))?;
        let row = ARCHITECTURES.iter().find(|row| row.gguf == Some(prefix)).ok_or_else(|| {
            let known = ARCHITECTURES.iter().filter_map(|row| row.gguf).collect::<Vec<_>>().join(", ");
            wrong(gguf, general, format!("is {prefix}; supported are {known}"))
        })?;
        let keys = Keys { gguf, prefix };
        let num_hidden_layers = keys.hidden_layers()?;
        let moe = keys.moe(Family::of(prefix), num_hidden_layers)?;
        // Mixtral's files go by Llama's name.
        let row = match moe {
            Some(_) if row.name == "LlamaForCausalLM" => super::find(gguf.path(), "MixtralForCausalLM")?,
            _ => row,
        };
        let family = Family::of(prefix);

        let hidden_size = keys.required_size("embedding_length", limits::HIDDEN)?;
        let num_attention_heads = keys.required_size("attention.head_count", limits::HEADS)?;
        let kv_heads = keys.size("attention.head_count_kv", limits::HEADS)?;
        let latent = if family.has_latents { Some(keys.latent(num_attention_heads)?) } else { None };
        // Files count a latent as the one head that all queries share.
        let num_key_value_heads = kv_heads.filter(|_| latent.is_none()).unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let why = format!("is {num_key_value_heads}, must divide the {num_attention_heads} attention heads");
            return Err(keys.wrong("attention.head_count_kv", why));
        }
        let given = match &latent {
            Some(latent) => Some(latent.key()),
            None => keys.size("attention.key_length", 0..=usize::MAX)?,
        };
        let head_dim = given.unwrap_or(hidden_size / num_attention_heads);
        if !limits::HEAD_DIM.contains(&head_dim) || !head_dim.is_multiple_of(2) {
            return Err(keys
                .wrong("attention.key_length", format!("makes heads of {head_dim}: must be even and from 8 to 256")));
        }
        let value_length = keys.size("attention.value_length", 0..=usize::MAX)?;
        if let Some(other) = value_length.filter(|&length| length != head_dim && latent.is_none()) {
            return Err(keys.wrong("attention.value_length", format!("is {other}, must be the key length {head_dim}")));
        }
        let embedding = "token_embd.weight";
        let vocab_size = gguf.tensor(embedding).and_then(|tensor| tensor.shape.first().copied());
        let vocab_size = vocab_size.filter(|size| limits::VOCAB.contains(size)).ok_or_else(|| {
            let range = limits::VOCAB;
            let why = format!("must be there, with {} to {} rows", range.start(), range.end());
            Error::bad_file(gguf.path(), format!("tensor {embedding}"), why)
        })?;
        let (rms, layer) = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon");
        let share = |key: &str| keys.number(key, |x| x > 0.0 && x < 1.0, "between 0 and 1");
        let norm_eps = share(rms)?.or(share(layer)?).ok_or_else(|| keys.missing(rms))?;
        let has = |names: [&str; 2]| {
            let in_layer = |layer| names.iter().any(|name| gguf.tensor(&format!("blk.{layer}.{name}")).is_some());
            Some((0..num_hidden_layers).any(in_layer))
        };
        let rope = keys.rope(latent.map_or(head_dim, |latent| latent.rope), row.rope_style)?;
        let token = |key: &str| Ok(gguf.token_id(key)?.filter(|id| id.index() < vocab_size));
        let ends = ["eos", "eot", "eom"].map(|end| token(&format!("tokenizer.ggml.{end}_token_id")));
        let mut eos_token_ids = ends.into_iter().filter_map(Result::transpose).collect::<Result<Vec<_>>>()?;
        eos_token_ids.dedup();
        let window = keys.size("attention.sliding_window", 0..=*limits::POSITIONS.end())?.filter(|&size| size > 0);
        Ok(Self {
            architecture: row.name.to_owned(),
            model_type: prefix.to_owned(),
            hidden_size,
            intermediate_size: match keys.size("feed_forward_length", limits::INTERMEDIATE)? {
                Some(size) => size,
                // All layers have experts, whose width it is.
                None => moe
                    .as_ref()
                    .and_then(|moe| moe.intermediate_size)
                    .ok_or_else(|| keys.missing("feed_forward_length"))?,
            },
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size,
            norm_eps: norm_eps.into(),
            activation: family.activation,
            local_rope: keys.local_rope(family, &rope)?,
            rope,
            query_growth: None,
            rope_layers: None,
            max_position_embeddings: keys.required_size("context_length", limits::POSITIONS)?,
            tie_word_embeddings: gguf.tensor("output.weight").is_none(),
            attention_bias: has(["attn_q.bias", "attn_qkv.bias"]),
            mlp_bias: has(["ffn_up.bias", "ffn_gate.bias"]),
            sliding_window: SlidingWindow {
                size: window,
                layers: keys.window_layers(num_hidden_layers)?,
                ..SlidingWindow::default()
            },
            moe,
            latent,
            linear_attention: match row.prefixes_are_shared {
                true => None,
                false => Some(keys.linear_attention(num_hidden_layers)?),
            },
            multipliers: keys.multipliers(family, num_hidden_layers, hidden_size / num_attention_heads)?,
            parallel_residual: gguf.bool(&keys.key("use_parallel_residual"))?,
            conventions: Conventions::Gguf,
            eos_token_ids,
            bos_token_id: token("tokenizer.ggml.bos_token_id")?,
        })
    }
}

/// The keys under an architecture's name.
pub(super) struct Keys<'a> {
    pub(super) gguf: &'a Gguf,
    prefix: &'a str,
}

impl Keys<'_> {
    /// `general.architecture`.
    pub(super) fn prefix(&self) -> &str {
        self.prefix
    }

    /// Decoder layers. Those that guess further tokens are counted behind them.
    fn hidden_layers(&self) -> Result<usize> {
        let all = self.required_size("block_count", limits::LAYERS)?;
        let name = "nextn_predict_layers";
        let guessing = self.size(name, 0..=*limits::LAYERS.end())?.unwrap_or(0);
        let layers = all.checked_sub(guessing).filter(|&layers| layers > 0);
        layers.ok_or_else(|| self.wrong(name, format!("is {guessing}, but there are {all} blocks")))
    }

    /// Whether each layer has a window, where the file says: a list, or every so manieth that has none.
    fn window_layers(&self, num_layers: usize) -> Result<Option<Vec<bool>>> {
        let name = "attention.sliding_window_pattern";
        if let Ok(Some(period)) = self.gguf.u64(&self.key(name)) {
            return Ok(Some(
                (1..=num_layers as u64).map(|layer| period == 0 || !layer.is_multiple_of(period)).collect(),
            ));
        }
        let Some(layers) = self.gguf.array_bools(&self.key(name))?.map(Iterator::collect::<Vec<_>>) else {
            return Ok(None);
        };
        // What stands behind the last layer may be counted too.
        match layers.get(..num_layers) {
            Some(layers) => Ok(Some(layers.to_vec())),
            None => Err(self.wrong(name, format!("has {} entries for {num_layers} layers", layers.len()))),
        }
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    pub(super) fn wrong(&self, name: &str, why: impl std::fmt::Display) -> Error {
        wrong(self.gguf, &self.key(name), why)
    }

    pub(super) fn missing(&self, name: &str) -> Error {
        missing(self.gguf, &self.key(name))
    }

    pub(super) fn size(&self, name: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(number) = self.gguf.u64(&self.key(name))? else { return Ok(None) };
        let size = usize::try_from(number).ok().filter(|size| range.contains(size));
        size.map(Some).ok_or_else(|| {
            self.wrong(name, format!("is {number}, must be a whole number from {} to {}", range.start(), range.end()))
        })
    }

    pub(super) fn required_size(&self, name: &str, range: RangeInclusive<usize>) -> Result<usize> {
        self.size(name, range)?.ok_or_else(|| self.missing(name))
    }

    pub(super) fn number(&self, name: &str, holds: impl Fn(f32) -> bool, range: &str) -> Result<Option<f32>> {
        let Some(number) = self.gguf.f32(&self.key(name))? else { return Ok(None) };
        if number.is_finite() && holds(number) {
            return Ok(Some(number));
        }
        Err(self.wrong(name, format!("is {number}, must be {range}")))
    }

    pub(super) fn positive(&self, name: &str) -> Result<Option<f32>> {
        self.number(name, |x| x > 0.0, "a number above 0")
    }
}

fn wrong(gguf: &Gguf, key: &str, why: impl std::fmt::Display) -> Error {
    Error::bad_file(gguf.path(), format!("metadata {key}"), why)
}

fn missing(gguf: &Gguf, key: &str) -> Error {
    wrong(gguf, key, "is missing")
}
