//! What a request may ask of generation: the one `SamplingParams` that every face fills in.

mod pooling;
mod structured_outputs;

pub use pooling::Pooling;
pub use structured_outputs::{Constraint, JSON_ESCAPES, JSON_WHITESPACE, StructuredOutputs};

use smallvec::SmallVec;

use crate::{
    error::{Error, Result},
    ids::TokenId,
};

/// Bounds on what one request may carry, so that no client can make the server hold much for it.
pub mod limits {
    /// Stop strings a request.
    pub const STOP_STRINGS: usize = 16;
    /// Bytes a stop string.
    pub const STOP_STRING_BYTES: usize = 1024;
    /// Stop token ids a request.
    pub const STOP_TOKEN_IDS: usize = 128;
    /// Alternatives reported a token.
    pub const LOGPROBS: usize = 20;
    /// Entries of a logit bias.
    pub const LOGIT_BIAS: usize = 1024;
    /// Sequences a request, those included that only compete for a place among the best.
    pub const SEQUENCES: usize = 128;
    /// Banned strings a request.
    pub const BAD_WORDS: usize = 128;
    /// Bytes a banned string.
    pub const BAD_WORD_BYTES: usize = 256;
    /// Sequence breakers of DRY.
    pub const DRY_SEQUENCE_BREAKERS: usize = 16;
    /// Bytes a sequence breaker.
    pub const DRY_SEQUENCE_BREAKER_BYTES: usize = 64;
    /// Bytes of a schema, a regular expression, a grammar, or all choices together.
    pub const CONSTRAINT_BYTES: usize = 256 << 10;
    /// Bytes of a pattern for white space.
    pub const WHITESPACE_PATTERN_BYTES: usize = 256;
    /// Strings to choose from.
    pub const CHOICES: usize = 1024;
    /// Inputs of one call for embeddings, as in OpenAI's API.
    pub const EMBED_INPUTS: usize = 2048;
    /// Those of them that are computed at once: enough to fill a batch, and others get their places.
    pub const EMBED_AT_ONCE: usize = 32;
    /// Numbers of one call's embeddings, all inputs together: 16 MiB.
    pub const EMBED_NUMBERS: usize = 4 << 20;
}

/// How tokens are chosen and when to stop. Names, defaults and ranges are vLLM's; of knobs that vLLM does not have,
/// llama.cpp's. `docs/sampling.md` has the formulas and the order.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token. `>= 0`.
    pub temperature: f32,
    /// Keeps the `k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the smallest set of tokens whose probability reaches this. `(0, 1]`.
    pub top_p: f32,
    /// Keeps tokens at least this share as likely as the most likely one. `[0, 1]`.
    pub min_p: f32,
    /// Divides (positive) or multiplies (negative) the logits of tokens seen in prompt or output. `> 0`, 1 is off.
    pub repetition_penalty: f32,
    /// Taken from a logit for each time the token was generated. `[-2, 2]`.
    pub frequency_penalty: f32,
    /// Taken from a logit once if the token was generated. `[-2, 2]`.
    pub presence_penalty: f32,
    /// Widens the temperature to this much on either side, decided by the entropy; 0 is off. `>= 0`.
    pub dynatemp_range: f32,
    /// Bends the way from the lowest to the highest dynamic temperature. `> 0`, 1 is straight.
    pub dynatemp_exponent: f32,
    /// Keeps the tokens whose surprise is closest to the expected one, until their probability reaches this. `(0, 1]`.
    pub typical_p: f32,
    /// Keeps logits within this many standard deviations of the largest; 0 keeps all. `>= 0`.
    pub top_n_sigma: f32,
    /// How often XTC excludes top choices; 0 is off. `[0, 1]`.
    pub xtc_probability: f32,
    /// What is at least this likely is a top choice to XTC; above 0.5 there is never more than one. `[0, 1]`.
    pub xtc_threshold: f32,
    /// The version of mirostat that chooses how many tokens to keep: 2, or 0 for none.
    pub mirostat: u32,
    /// The surprise in bits that mirostat aims at. `> 0`.
    pub mirostat_tau: f32,
    /// How fast mirostat corrects itself. `[0, 1]`.
    pub mirostat_eta: f32,
    /// How much DRY takes from a token that would go on with a repetition; 0 is off. `>= 0`.
    pub dry_multiplier: f32,
    /// What each further repeated token multiplies DRY's penalty by. `>= 1`.
    pub dry_base: f32,
    /// Repetitions shorter than this are free. `>= 1`.
    pub dry_allowed_length: u32,
    /// How many of the last tokens DRY looks at; -1 all, 0 none.
    pub dry_penalty_last_n: i32,
    /// Text that no repetition reaches across.
    pub dry_sequence_breakers: Vec<String>,
    /// Added to the logits of these tokens. `[-100, 100]` each.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// If any are named, no other token is chosen.
    pub allowed_token_ids: Vec<TokenId>,
    /// Never chosen.
    pub banned_token_ids: Vec<TokenId>,
    /// Never said: a sequence that comes to say one goes back to where it began and on differently.
    pub bad_words: Vec<String>,
    /// In which order these apply, the others not at all; if empty, all in the order of [`SamplerKind::ALL`].
    pub samplers: Vec<SamplerKind>,
    /// Makes the choice repeatable, whatever else is in the batch. Without one the engine draws a seed.
    pub seed: Option<u64>,
    /// Most tokens to generate; without it, to the end of the context.
    pub max_tokens: Option<u32>,
    /// No end-of-sequence or stop token before this many.
    pub min_tokens: u32,
    /// End when the text contains one of these; it is left out of the text.
    pub stop: Vec<String>,
    /// End at one of these tokens.
    pub stop_token_ids: Vec<TokenId>,
    /// Keep the stop string in the text.
    pub include_stop_str_in_output: bool,
    /// Go on past the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Report the chosen token's log-probability and this many alternatives; `Some(0)` the chosen one only.
    pub logprobs: Option<u32>,
    /// The same of each token of the prompt but the first.
    pub prompt_logprobs: Option<u32>,
    /// Sequences to answer with. They share the prompt's blocks; sequence `i` draws as one with the seed `seed + i`.
    pub n: u32,
    /// Sequences to generate, of which the `n` most likely are the answer; without it, `n`.
    pub best_of: Option<u32>,
    /// Ends the reasoning of a chat after so many tokens. Filled in where the chat's prompt is rendered.
    pub thinking_budget: Option<ThinkingBudget>,
    /// What the text must look like.
    pub structured_outputs: Option<StructuredOutputs>,
}

/// How long a model may reason, and how the reasoning is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThinkingBudget {
    /// Most tokens of reasoning.
    pub tokens: u32,
    /// The tokens that start it.
    pub start: Vec<TokenId>,
    /// The tokens that end it; never empty.
    pub end: Vec<TokenId>,
    /// The prompt ends with its start.
    pub begins_inside: bool,
}

/// A sampler whose place in the chain a request may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SamplerKind {
    /// `repetition_penalty`, `frequency_penalty`, `presence_penalty`.
    Penalties,
    /// `dry_multiplier` and its company.
    Dry,
    /// `temperature`, `dynatemp_range`.
    Temperature,
    /// `top_n_sigma`.
    TopNSigma,
    /// `min_p`.
    MinP,
    /// `top_k`.
    TopK,
    /// `typical_p`.
    TypicalP,
    /// `top_p`.
    TopP,
    /// `xtc_probability`, `xtc_threshold`.
    Xtc,
}

impl SamplerKind {
    /// All, in their default order: vLLM's for those that it has.
    pub const ALL: [Self; 9] = [
        Self::Penalties,
        Self::Dry,
        Self::Temperature,
        Self::TopNSigma,
        Self::MinP,
        Self::TopK,
        Self::TypicalP,
        Self::TopP,
        Self::Xtc,
    ];

    /// What requests call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Penalties => "penalties",
            Self::Dry => "dry",
            Self::Temperature => "temperature",
            Self::TopNSigma => "top_n_sigma",
            Self::MinP => "min_p",
            Self::TopK => "top_k",
            Self::TypicalP => "typical_p",
            Self::TopP => "top_p",
            Self::Xtc => "xtc",
        }
    }

    /// A request's list. llama.cpp's `typ_p` is understood too.
    ///
    /// # Errors
    /// `InvalidArgument` that names `samplers[k]` and the names there are.
    pub fn parse_list<S: AsRef<str>>(names: &[S]) -> Result<Vec<Self>> {
        let parse = |(k, name): (usize, &S)| {
            let name = if name.as_ref() == "typ_p" { "typical_p" } else { name.as_ref() };
            Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
                let all = Self::ALL.map(Self::name).join(", ");
                let cut: String = name.chars().take(40).collect();
                Error::invalid(format!("samplers[{k}]"), format!("is {cut:?}, must be one of {all}"))
            })
        };
        names.iter().enumerate().map(parse).collect()
    }
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            typical_p: 1.0,
            top_n_sigma: 0.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            mirostat: 0,
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_penalty_last_n: -1,
            dry_sequence_breakers: ["\n", ":", "\"", "*"].map(String::from).to_vec(),
            logit_bias: Vec::new(),
            allowed_token_ids: Vec::new(),
            banned_token_ids: Vec::new(),
            bad_words: Vec::new(),
            samplers: Vec::new(),
            seed: None,
            max_tokens: None,
            min_tokens: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            include_stop_str_in_output: false,
            ignore_eos: false,
            skip_special_tokens: true,
            logprobs: None,
            prompt_logprobs: None,
            n: 1,
            best_of: None,
            thinking_budget: None,
            structured_outputs: None,
        }
    }
}

impl SamplingParams {
    /// Checks every knob that can be checked without the model's vocabulary.
    ///
    /// # Errors
    /// `InvalidArgument` that names the field, its value and its range.
    pub fn validate(&self) -> Result<()> {
        self.check_ranges()?;
        self.check_lengths()?;
        self.check_counts()
    }

    /// Sequences to generate.
    #[must_use]
    pub fn num_sequences(&self) -> usize {
        self.best_of.unwrap_or(self.n).max(self.n) as usize
    }

    /// Whether repetitions are to be looked for.
    #[must_use]
    pub fn wants_dry(&self) -> bool {
        self.dry_multiplier > 0.0 && self.dry_penalty_last_n != 0
    }

    fn check_ranges(&self) -> Result<()> {
        const TINY: f32 = f32::MIN_POSITIVE;
        const MOST: f32 = f32::MAX;
        // A number that is not a number is in no range.
        let rows = [
            ("temperature", self.temperature, 0.0, MOST, "finite and at least 0"),
            ("top_p", self.top_p, TINY, 1.0, "in (0, 1]"),
            ("min_p", self.min_p, 0.0, 1.0, "in [0, 1]"),
            ("repetition_penalty", self.repetition_penalty, TINY, MOST, "finite and above 0"),
            ("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "in [-2, 2]"),
            ("presence_penalty", self.presence_penalty, -2.0, 2.0, "in [-2, 2]"),
            ("dynatemp_range", self.dynatemp_range, 0.0, MOST, "finite and at least 0"),
            ("dynatemp_exponent", self.dynatemp_exponent, TINY, MOST, "finite and above 0"),
            ("typical_p", self.typical_p, TINY, 1.0, "in (0, 1]"),
            ("top_n_sigma", self.top_n_sigma, 0.0, MOST, "finite and at least 0"),
            ("xtc_probability", self.xtc_probability, 0.0, 1.0, "in [0, 1]"),
            ("xtc_threshold", self.xtc_threshold, 0.0, 1.0, "in [0, 1]"),
            ("mirostat_tau", self.mirostat_tau, TINY, MOST, "finite and above 0"),
            ("mirostat_eta", self.mirostat_eta, 0.0, 1.0, "in [0, 1]"),
            ("dry_multiplier", self.dry_multiplier, 0.0, MOST, "finite and at least 0"),
            ("dry_base", self.dry_base, 1.0, MOST, "finite and at least 1"),
        ];
        for (field, value, least, most, range) in rows {
            if !(least..=most).contains(&value) {
                return Err(Error::invalid(field, format!("is {value}, must be {range}")));
            }
        }
        match self.logit_bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(bias)) {
            Some((token, bias)) => {
                Err(Error::invalid(format!("logit_bias[{token}]"), format!("is {bias}, must be in [-100, 100]")))
            }
            None => Ok(()),
        }
    }

    fn check_lengths(&self) -> Result<()> {
        let lists = [
            ("logit_bias", self.logit_bias.len(), limits::LOGIT_BIAS),
            ("stop", self.stop.len(), limits::STOP_STRINGS),
            ("stop_token_ids", self.stop_token_ids.len(), limits::STOP_TOKEN_IDS),
            ("bad_words", self.bad_words.len(), limits::BAD_WORDS),
            ("dry_sequence_breakers", self.dry_sequence_breakers.len(), limits::DRY_SEQUENCE_BREAKERS),
        ];
        for (field, length, limit) in lists {
            if length > limit {
                let why = format!("has {length} entries, at most {limit} are allowed");
                return Err(Error::invalid(field, why));
            }
        }
        let texts = [
            ("stop", &self.stop, limits::STOP_STRING_BYTES),
            ("bad_words", &self.bad_words, limits::BAD_WORD_BYTES),
            ("dry_sequence_breakers", &self.dry_sequence_breakers, limits::DRY_SEQUENCE_BREAKER_BYTES),
        ];
        for (field, texts, most) in texts {
            if let Some((k, text)) = texts.iter().enumerate().find(|(_, text)| text.is_empty() || text.len() > most) {
                let why = format!("has {} bytes, must have 1 to {most}", text.len());
                return Err(Error::invalid(format!("{field}[{k}]"), why));
            }
        }
        if let Some(k) = (1..self.samplers.len()).find(|&k| self.samplers[..k].contains(&self.samplers[k])) {
            let why = format!("is {:?}, which stands there twice", self.samplers[k].name());
            return Err(Error::invalid(format!("samplers[{k}]"), why));
        }
        Ok(())
    }

    fn check_counts(&self) -> Result<()> {
        if let Some(max_tokens) = self.max_tokens {
            if max_tokens == 0 {
                return Err(Error::invalid("max_tokens", "is 0, must be at least 1"));
            }
            if self.min_tokens > max_tokens {
                let why = format!("is {}, more than max_tokens {max_tokens}", self.min_tokens);
                return Err(Error::invalid("min_tokens", why));
            }
        }
        for (field, n) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            if let Some(n) = n.filter(|&n| n as usize > limits::LOGPROBS) {
                return Err(Error::invalid(field, format!("is {n}, at most {} are allowed", limits::LOGPROBS)));
            }
        }
        if !matches!(self.mirostat, 0 | 2) {
            let why = format!("is {}, must be 2, the version that is offered, or 0", self.mirostat);
            return Err(Error::invalid("mirostat", why));
        }
        if self.dry_allowed_length == 0 {
            return Err(Error::invalid("dry_allowed_length", "is 0, must be at least 1"));
        }
        if self.dry_penalty_last_n < -1 {
            let why = format!("is {}, must be at least -1", self.dry_penalty_last_n);
            return Err(Error::invalid("dry_penalty_last_n", why));
        }
        if self.n == 0 || self.n as usize > limits::SEQUENCES {
            return Err(Error::invalid("n", format!("is {}, must be in [1, {}]", self.n, limits::SEQUENCES)));
        }
        match self.best_of {
            Some(best_of) if best_of < self.n || best_of as usize > limits::SEQUENCES => {
                let why = format!("is {best_of}, must be in [{}, {}], from n up", self.n, limits::SEQUENCES);
                Err(Error::invalid("best_of", why))
            }
            _ => Ok(()),
        }?;
        self.validate_structured_outputs()
    }

    /// A sequence under a grammar never goes back, and nothing but the grammar forces a token.
    fn validate_structured_outputs(&self) -> Result<()> {
        let Some(outputs) = &self.structured_outputs else { return Ok(()) };
        let why =
            "cannot be used with structured output (structured_outputs, response_format, a tool_choice of a tool)";
        if !self.bad_words.is_empty() {
            return Err(Error::invalid("bad_words", why));
        }
        if self.thinking_budget.is_some() {
            return Err(Error::invalid("thinking_token_budget", why));
        }
        outputs.validate()
    }
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's own end-of-sequence token.
    EndOfSequence(TokenId),
    /// A token of `stop_token_ids`.
    StopToken(TokenId),
    /// A string of `stop`.
    StopString(String),
    /// The text is all that `structured_outputs` asks for, and nothing may follow.
    GrammarComplete,
    /// `max_tokens`, or the end of the context.
    Length,
}

/// What a request cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// … of which the prefix cache held this many when the sequence first ran.
    pub cached_tokens: u32,
    /// Tokens generated, a stop token included.
    pub completion_tokens: u32,
}

/// A token and how likely it was.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub id: TokenId,
    /// Set where the request asked for log-probabilities.
    pub logprobs: Option<Box<TokenLogprobs>>,
}

/// Tokens that came together: nearly always one.
pub type SampledTokens = SmallVec<[SampledToken; 1]>;

/// Log-probabilities of a stretch of the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptLogprobs {
    /// Position of the first of them in the prompt, from 0. The prompt's first token, which nothing predicts, has none.
    pub start: u32,
    /// The prompt's tokens there, each with its log-probabilities.
    pub tokens: Vec<SampledToken>,
}

/// Log-probabilities (natural, of the distribution before temperature and truncation) at one position.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// The most likely tokens, most likely first; ties by token id.
    pub top: Vec<(TokenId, f32)>,
}
