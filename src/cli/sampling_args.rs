//! The sampling flags of `generate` and `chat`, spelled as vLLM's `SamplingParams`. What is left out is the model's or
//! the server's default.

use clap::{Args, Command, FromArgMatches, parser::ValueSource};

use super::structured_args::StructuredArgs;
use crate::{
    error::{Error, Result},
    ids::TokenId,
    params::{SamplerKind, SamplingParams},
    proto::candlewick::v1 as pb,
    server::grpc::structured_outputs::to_wire,
};

/// How tokens are chosen and when to stop, as far as the command line says.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sampling")]
pub(super) struct SamplingArgs {
    /// Divides the logits; 0 takes the most likely token.
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Keeps the K most likely tokens; 0 keeps all.
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Keeps the smallest set of tokens that reaches this probability.
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Keeps tokens at least this share as likely as the most likely one.
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Against tokens that prompt or output have already; 1 is off.
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f32>,
    /// Taken from a logit for each time that its token was generated.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Taken from a logit once if its token was generated.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Added to the logits of these tokens.
    #[arg(long, value_name = "ID:BIAS", value_delimiter = ',', value_parser = bias)]
    logit_bias: Vec<(TokenId, f32)>,
    /// Makes the choice repeatable.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Most tokens to generate; to the end of the context if left out.
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// No end before this many tokens.
    #[arg(long, value_name = "N")]
    min_tokens: Option<u32>,
    /// End where the text contains this; may be repeated.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// End at one of these tokens.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    stop_token_ids: Vec<u32>,
    /// Keep the stop string in the text.
    #[arg(long)]
    include_stop_str_in_output: bool,
    /// Go on past the model's end-of-sequence tokens.
    #[arg(long)]
    ignore_eos: bool,
    /// Leave special tokens out of the text [default: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    skip_special_tokens: Option<bool>,
    /// Report log-probabilities, with this many alternatives a token, in `--json`.
    #[arg(long, value_name = "N")]
    logprobs: Option<u32>,
    /// Widens the temperature to this much on either side, decided by the entropy; 0 is off.
    #[arg(long, value_name = "T")]
    dynatemp_range: Option<f32>,
    /// Bends the way from the lowest to the highest dynamic temperature; 1 is straight.
    #[arg(long, value_name = "X")]
    dynatemp_exponent: Option<f32>,
    /// Keeps the tokens about as surprising as expected, until they reach this probability.
    #[arg(long, value_name = "P")]
    typical_p: Option<f32>,
    /// Keeps logits within this many standard deviations of the largest; 0 keeps all.
    #[arg(long, value_name = "X")]
    top_n_sigma: Option<f32>,
    /// How often XTC excludes top choices; 0 is off.
    #[arg(long, value_name = "P")]
    xtc_probability: Option<f32>,
    /// What is at least this likely is a top choice to XTC.
    #[arg(long, value_name = "P")]
    xtc_threshold: Option<f32>,
    /// 2 lets mirostat choose how many tokens to keep; 0 is off.
    #[arg(long, value_name = "VERSION")]
    mirostat: Option<u32>,
    /// The surprise in bits that mirostat aims at.
    #[arg(long, value_name = "X")]
    mirostat_tau: Option<f32>,
    /// How fast mirostat corrects itself.
    #[arg(long, value_name = "X")]
    mirostat_eta: Option<f32>,
    /// How much DRY takes from a token that would go on with a repetition; 0 is off.
    #[arg(long, value_name = "X")]
    dry_multiplier: Option<f32>,
    /// What each further repeated token multiplies that by.
    #[arg(long, value_name = "X")]
    dry_base: Option<f32>,
    /// Repetitions shorter than this are free.
    #[arg(long, value_name = "N")]
    dry_allowed_length: Option<u32>,
    /// How many of the last tokens DRY looks at; -1 all.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    dry_penalty_last_n: Option<i32>,
    /// Text that no repetition reaches across; may be repeated.
    #[arg(long, value_name = "TEXT")]
    dry_sequence_breakers: Vec<String>,
    /// Chooses no other tokens than these.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    allowed_token_ids: Vec<u32>,
    /// Never chooses these tokens.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    banned_token_ids: Vec<u32>,
    /// Never says this; may be repeated.
    #[arg(long, value_name = "TEXT")]
    bad_words: Vec<String>,
    /// The order of the samplers, those not named left out, such as top_k,top_p,temperature.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = sampler)]
    samplers: Vec<SamplerKind>,
    #[command(flatten)]
    structured: StructuredArgs,
    /// Of a command that can show more than one answer.
    #[arg(skip)]
    several: SeveralArgs,
}

/// Flags of a command that can show more than the text of one answer.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sampling")]
pub(super) struct SeveralArgs {
    /// How many answers; printed one after the other when all have ended, in `--json` as `choices`.
    #[arg(short, long, value_name = "N")]
    n: Option<u32>,
    /// Generates this many and keeps the n most likely.
    #[arg(long, value_name = "N")]
    best_of: Option<u32>,
    /// Report log-probabilities of the prompt, with this many alternatives a token, in `--json`.
    #[arg(long, value_name = "N")]
    prompt_logprobs: Option<u32>,
}

impl SeveralArgs {
    pub(super) fn asks_for_several(&self) -> bool {
        self.n.is_some_and(|n| n > 1)
    }
}

impl SamplingArgs {
    /// The same, and these.
    pub(super) fn with(self, several: &SeveralArgs) -> Self {
        Self { several: several.clone(), ..self }
    }

    /// The defaults, with what the command line says in their place.
    pub(super) fn over(&self, defaults: &SamplingParams) -> SamplingParams {
        let args = self.clone();
        let listed = |ids: Vec<u32>| ids.into_iter().map(TokenId).collect::<Vec<_>>();
        SamplingParams {
            temperature: args.temperature.unwrap_or(defaults.temperature),
            top_k: args.top_k.unwrap_or(defaults.top_k),
            top_p: args.top_p.unwrap_or(defaults.top_p),
            min_p: args.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: args.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            frequency_penalty: args.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            presence_penalty: args.presence_penalty.unwrap_or(defaults.presence_penalty),
            logit_bias: list_or(args.logit_bias, &defaults.logit_bias),
            seed: args.seed.or(defaults.seed),
            max_tokens: args.max_tokens.or(defaults.max_tokens),
            min_tokens: args.min_tokens.unwrap_or(defaults.min_tokens),
            stop: list_or(args.stop, &defaults.stop),
            stop_token_ids: list_or(listed(args.stop_token_ids), &defaults.stop_token_ids),
            include_stop_str_in_output: args.include_stop_str_in_output || defaults.include_stop_str_in_output,
            ignore_eos: args.ignore_eos || defaults.ignore_eos,
            skip_special_tokens: args.skip_special_tokens.unwrap_or(defaults.skip_special_tokens),
            logprobs: args.logprobs.or(defaults.logprobs),
            dynatemp_range: args.dynatemp_range.unwrap_or(defaults.dynatemp_range),
            dynatemp_exponent: args.dynatemp_exponent.unwrap_or(defaults.dynatemp_exponent),
            typical_p: args.typical_p.unwrap_or(defaults.typical_p),
            top_n_sigma: args.top_n_sigma.unwrap_or(defaults.top_n_sigma),
            xtc_probability: args.xtc_probability.unwrap_or(defaults.xtc_probability),
            xtc_threshold: args.xtc_threshold.unwrap_or(defaults.xtc_threshold),
            mirostat: args.mirostat.unwrap_or(defaults.mirostat),
            mirostat_tau: args.mirostat_tau.unwrap_or(defaults.mirostat_tau),
            mirostat_eta: args.mirostat_eta.unwrap_or(defaults.mirostat_eta),
            dry_multiplier: args.dry_multiplier.unwrap_or(defaults.dry_multiplier),
            dry_base: args.dry_base.unwrap_or(defaults.dry_base),
            dry_allowed_length: args.dry_allowed_length.unwrap_or(defaults.dry_allowed_length),
            dry_penalty_last_n: args.dry_penalty_last_n.unwrap_or(defaults.dry_penalty_last_n),
            dry_sequence_breakers: list_or(args.dry_sequence_breakers, &defaults.dry_sequence_breakers),
            allowed_token_ids: list_or(listed(args.allowed_token_ids), &defaults.allowed_token_ids),
            banned_token_ids: list_or(listed(args.banned_token_ids), &defaults.banned_token_ids),
            bad_words: list_or(args.bad_words, &defaults.bad_words),
            samplers: list_or(args.samplers, &defaults.samplers),
            prompt_logprobs: args.several.prompt_logprobs.or(defaults.prompt_logprobs),
            n: args.several.n.unwrap_or(defaults.n),
            best_of: args.several.best_of.or(defaults.best_of),
            thinking_budget: defaults.thinking_budget.clone(),
            structured_outputs: args.structured.outputs().or_else(|| defaults.structured_outputs.clone()),
        }
    }

    /// Changes one flag by its name, with or without the dashes.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no flag, with the one that it may have been, or no value of it.
    pub(super) fn set(&mut self, name: &str, value: Option<&str>) -> Result<()> {
        if name.is_empty() {
            return Err(Error::invalid("/set", "takes the name of a flag and its value"));
        }
        let command = Self::augment_args(Command::new("set").no_binary_name(true).disable_help_flag(true));
        let flag = format!("--{}", name.trim_start_matches('-').replace('_', "-"));
        // In one word, so that a negative number is no flag.
        let word = value.map_or_else(|| flag.clone(), |value| format!("{flag}={value}"));
        let said = |error: clap::Error| {
            let text = error.to_string();
            let lines =
                text.lines().map(str::trim).filter(|line| line.starts_with("error:") || line.starts_with("tip:"));
            let lines: Vec<_> = lines.map(|line| line.trim_start_matches("error: ")).collect();
            Error::invalid("/set", lines.join("; "))
        };
        let matches = command.try_get_matches_from([word]).map_err(said)?;
        let before = self.clone();
        self.update_from_arg_matches(&matches).map_err(said)?;
        // A switch that was not named is not turned off.
        let named = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        self.ignore_eos = if named("ignore_eos") { self.ignore_eos } else { before.ignore_eos };
        if !named("include_stop_str_in_output") {
            self.include_stop_str_in_output = before.include_stop_str_in_output;
        }
        if self.structured.is_default() {
            self.structured = before.structured;
        }
        Ok(())
    }

    /// What the command line says, on the wire.
    pub(super) fn to_proto(&self) -> pb::SamplingParams {
        let args = self.clone();
        pb::SamplingParams {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repetition_penalty: args.repetition_penalty,
            frequency_penalty: args.frequency_penalty,
            presence_penalty: args.presence_penalty,
            logit_bias: args.logit_bias.into_iter().map(|(token, bias)| (token.0, bias)).collect(),
            seed: args.seed,
            max_tokens: args.max_tokens,
            min_tokens: args.min_tokens,
            stop: args.stop,
            stop_token_ids: args.stop_token_ids,
            include_stop_str_in_output: args.include_stop_str_in_output.then_some(true),
            ignore_eos: args.ignore_eos.then_some(true),
            skip_special_tokens: args.skip_special_tokens,
            logprobs: args.logprobs,
            dynatemp_range: args.dynatemp_range,
            dynatemp_exponent: args.dynatemp_exponent,
            typical_p: args.typical_p,
            top_n_sigma: args.top_n_sigma,
            xtc_probability: args.xtc_probability,
            xtc_threshold: args.xtc_threshold,
            mirostat: args.mirostat,
            mirostat_tau: args.mirostat_tau,
            mirostat_eta: args.mirostat_eta,
            dry_multiplier: args.dry_multiplier,
            dry_base: args.dry_base,
            dry_allowed_length: args.dry_allowed_length,
            dry_penalty_last_n: args.dry_penalty_last_n,
            dry_sequence_breakers: args.dry_sequence_breakers,
            allowed_token_ids: args.allowed_token_ids,
            banned_token_ids: args.banned_token_ids,
            bad_words: args.bad_words,
            samplers: args.samplers.into_iter().map(|kind| kind.name().to_owned()).collect(),
            prompt_logprobs: args.several.prompt_logprobs,
            n: args.several.n,
            best_of: args.several.best_of,
            structured_outputs: args.structured.outputs().map(to_wire),
        }
    }
}

/// What was given, or else the default.
fn list_or<T: Clone>(given: Vec<T>, default: &[T]) -> Vec<T> {
    if given.is_empty() { default.to_vec() } else { given }
}

/// A sampler's name.
fn sampler(name: &str) -> Result<SamplerKind, String> {
    let parsed = SamplerKind::parse_list(&[name]).map_err(|error| error.message)?;
    parsed.into_iter().next().ok_or_else(|| String::from("must name a sampler"))
}

/// `ID:BIAS`.
fn bias(text: &str) -> Result<(TokenId, f32), String> {
    let parse = || {
        let (id, bias) = text.split_once(':')?;
        Some((TokenId(id.trim().parse().ok()?), bias.trim().parse().ok()?))
    };
    parse().ok_or_else(|| String::from("must be a token id, a colon and a number, such as 15:-2.5"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Sampling {
        #[command(flatten)]
        args: SamplingArgs,
        #[command(flatten)]
        several: SeveralArgs,
    }

    fn parse(line: &str) -> SamplingArgs {
        let parsed = Sampling::try_parse_from(std::iter::once("x").chain(line.split_whitespace())).unwrap();
        parsed.args.with(&parsed.several)
    }

    const ALL: &str = "--temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.5 \
        --frequency-penalty -1 --presence-penalty 0.25 --logit-bias 5:-100,6:1.5 --seed 7 --max-tokens 9 \
        --min-tokens 2 --stop a --stop b --stop-token-ids 1,2 --include-stop-str-in-output --ignore-eos \
        --skip-special-tokens=false --logprobs 4 --dynatemp-range 0.2 --dynatemp-exponent 1.5 --typical-p 0.8 \
        --top-n-sigma 1.5 --xtc-probability 0.5 --xtc-threshold 0.2 --mirostat 2 --mirostat-tau 4 --mirostat-eta 0.2 \
        --dry-multiplier 0.8 --dry-base 1.5 --dry-allowed-length 3 --dry-penalty-last-n -1 --dry-sequence-breakers x \
        --allowed-token-ids 1,2,3 --banned-token-ids 3 --bad-words no --samplers top_k,typ_p,temperature \
        -n 2 --best-of 3 --prompt-logprobs 1";

    #[test]
    fn one_flag_is_set_and_the_others_stay() {
        let mut args = SamplingArgs { ignore_eos: true, top_k: Some(5), ..SamplingArgs::default() };
        args.set("temperature", Some("0.5")).unwrap();
        args.set("--frequency_penalty", Some("-1")).unwrap();
        args.set("stop", Some("a b")).unwrap();
        assert_eq!((args.temperature, args.frequency_penalty, args.top_k), (Some(0.5), Some(-1.0), Some(5)));
        assert!(args.ignore_eos && args.stop == ["a b"]);
        let wrong = |args: &mut SamplingArgs, name, value| args.set(name, value).unwrap_err().message;
        assert!(wrong(&mut args, "temprature", Some("1")).contains("--temperature"));
        assert!(wrong(&mut args, "temperature", Some("warm")).contains("warm"));
        assert!(wrong(&mut args, "temperature", None).contains("value"));
        assert!(wrong(&mut args, "", None).contains("/set"));
        assert_eq!(args.temperature, Some(0.5), "what is refused changes nothing");
    }

    #[test]
    fn flags_take_the_place_of_defaults() {
        let expected = SamplingParams {
            temperature: 0.5,
            top_k: 3,
            top_p: 0.9,
            min_p: 0.1,
            repetition_penalty: 1.5,
            frequency_penalty: -1.0,
            presence_penalty: 0.25,
            logit_bias: vec![(TokenId(5), -100.0), (TokenId(6), 1.5)],
            seed: Some(7),
            max_tokens: Some(9),
            min_tokens: 2,
            stop: vec!["a".into(), "b".into()],
            stop_token_ids: vec![TokenId(1), TokenId(2)],
            include_stop_str_in_output: true,
            ignore_eos: true,
            skip_special_tokens: false,
            logprobs: Some(4),
            dynatemp_range: 0.2,
            dynatemp_exponent: 1.5,
            typical_p: 0.8,
            top_n_sigma: 1.5,
            xtc_probability: 0.5,
            xtc_threshold: 0.2,
            mirostat: 2,
            mirostat_tau: 4.0,
            mirostat_eta: 0.2,
            dry_multiplier: 0.8,
            dry_base: 1.5,
            dry_allowed_length: 3,
            dry_penalty_last_n: -1,
            dry_sequence_breakers: vec!["x".into()],
            allowed_token_ids: vec![TokenId(1), TokenId(2), TokenId(3)],
            banned_token_ids: vec![TokenId(3)],
            bad_words: vec!["no".into()],
            samplers: vec![SamplerKind::TopK, SamplerKind::TypicalP, SamplerKind::Temperature],
            prompt_logprobs: Some(1),
            n: 2,
            best_of: Some(3),
            thinking_budget: None,
            structured_outputs: None,
        };
        assert_eq!(parse(ALL).over(&SamplingParams::default()), expected);
        // And without any flag those very values stay.
        assert_eq!(parse("").over(&expected), expected);
    }

    #[test]
    fn the_wire_carries_what_was_said_and_nothing_else() {
        assert_eq!(parse("").to_proto(), pb::SamplingParams::default());
        let wire = parse(ALL).to_proto();
        assert_eq!((wire.temperature, wire.top_k, wire.seed), (Some(0.5), Some(3), Some(7)));
        assert_eq!((wire.logit_bias[&5], wire.logit_bias[&6]), (-100.0, 1.5));
        assert_eq!((wire.stop, wire.stop_token_ids), (vec!["a".to_owned(), "b".to_owned()], vec![1, 2]));
        assert_eq!((wire.n, wire.best_of, wire.prompt_logprobs), (Some(2), Some(3), Some(1)));
        assert_eq!(wire.samplers, ["top_k", "typical_p", "temperature"]);
        assert_eq!((wire.ignore_eos, wire.skip_special_tokens, wire.logprobs), (Some(true), Some(false), Some(4)));
    }

    #[test]
    fn a_bias_is_an_id_and_a_number() {
        assert_eq!(bias("15:-2.5"), Ok((TokenId(15), -2.5)));
        for text in ["15", ":1", "x:1", "1:x", "-1:1", ""] {
            assert!(bias(text).is_err(), "{text}");
        }
    }
}
