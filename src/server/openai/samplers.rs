//! Samplers that OpenAI does not have, by the names that all faces share, beside those of [`Fields`](super::fields).

use serde::Deserialize;

use crate::{
    error::Result,
    ids::TokenId,
    params::{SamplerKind, SamplingParams},
};

/// The fields; what is absent or null is the model's default.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Samplers {
    dynatemp_range: Option<f32>,
    dynatemp_exponent: Option<f32>,
    typical_p: Option<f32>,
    top_n_sigma: Option<f32>,
    xtc_probability: Option<f32>,
    xtc_threshold: Option<f32>,
    mirostat: Option<u32>,
    mirostat_tau: Option<f32>,
    mirostat_eta: Option<f32>,
    dry_multiplier: Option<f32>,
    dry_base: Option<f32>,
    dry_allowed_length: Option<u32>,
    dry_penalty_last_n: Option<i32>,
    dry_sequence_breakers: Option<Vec<String>>,
    banned_token_ids: Option<Vec<u32>>,
    samplers: Option<Vec<String>>,
}

impl Samplers {
    /// What is set, over these parameters.
    ///
    /// # Errors
    /// `InvalidArgument` for a sampler that there is not; ranges are the engine's to check.
    pub(super) fn over(self, params: SamplingParams) -> Result<SamplingParams> {
        Ok(SamplingParams {
            dynatemp_range: self.dynatemp_range.unwrap_or(params.dynatemp_range),
            dynatemp_exponent: self.dynatemp_exponent.unwrap_or(params.dynatemp_exponent),
            typical_p: self.typical_p.unwrap_or(params.typical_p),
            top_n_sigma: self.top_n_sigma.unwrap_or(params.top_n_sigma),
            xtc_probability: self.xtc_probability.unwrap_or(params.xtc_probability),
            xtc_threshold: self.xtc_threshold.unwrap_or(params.xtc_threshold),
            mirostat: self.mirostat.unwrap_or(params.mirostat),
            mirostat_tau: self.mirostat_tau.unwrap_or(params.mirostat_tau),
            mirostat_eta: self.mirostat_eta.unwrap_or(params.mirostat_eta),
            dry_multiplier: self.dry_multiplier.unwrap_or(params.dry_multiplier),
            dry_base: self.dry_base.unwrap_or(params.dry_base),
            dry_allowed_length: self.dry_allowed_length.unwrap_or(params.dry_allowed_length),
            dry_penalty_last_n: self.dry_penalty_last_n.unwrap_or(params.dry_penalty_last_n),
            dry_sequence_breakers: self.dry_sequence_breakers.unwrap_or(params.dry_sequence_breakers),
            banned_token_ids: match self.banned_token_ids {
                Some(ids) => ids.into_iter().map(TokenId).collect(),
                None => params.banned_token_ids,
            },
            samplers: match self.samplers {
                Some(names) => SamplerKind::parse_list(&names)?,
                None => params.samplers,
            },
            ..params
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(body: Value) -> Result<SamplingParams> {
        serde_json::from_value::<Samplers>(body).unwrap().over(SamplingParams::default())
    }

    #[test]
    fn what_is_set_takes_the_place_of_the_default_and_nothing_else_does() {
        let body = json!({
            "dynatemp_range": 0.5, "dynatemp_exponent": 2, "typical_p": 0.9, "top_n_sigma": 1.5, "xtc_probability": 0.5,
            "xtc_threshold": 0.2, "mirostat": 2, "mirostat_tau": 4, "mirostat_eta": 0.2, "dry_multiplier": 0.8,
            "dry_base": 1.5, "dry_allowed_length": 3, "dry_penalty_last_n": 64, "dry_sequence_breakers": ["\n"],
            "banned_token_ids": [3], "samplers": ["top_k", "typ_p"], "temperature": 7,
        });
        let expected = SamplingParams {
            dynatemp_range: 0.5,
            dynatemp_exponent: 2.0,
            typical_p: 0.9,
            top_n_sigma: 1.5,
            xtc_probability: 0.5,
            xtc_threshold: 0.2,
            mirostat: 2,
            mirostat_tau: 4.0,
            mirostat_eta: 0.2,
            dry_multiplier: 0.8,
            dry_base: 1.5,
            dry_allowed_length: 3,
            dry_penalty_last_n: 64,
            dry_sequence_breakers: vec!["\n".into()],
            banned_token_ids: vec![TokenId(3)],
            samplers: vec![SamplerKind::TopK, SamplerKind::TypicalP],
            ..SamplingParams::default()
        };
        assert_eq!(read(body).unwrap(), expected);
        assert_eq!(read(json!({"typical_p": null})).unwrap(), SamplingParams::default());
        assert_eq!(read(json!({"samplers": ["top_z"]})).unwrap_err().violations[0].field, "samplers[0]");
    }
}
