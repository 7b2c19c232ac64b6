//! How a text is cut before its pieces are encoded, as a part of the `tokenizers` pipeline.
//!
//! The crate's own `Split` runs a backtracking engine, which leaves off without a word after a million steps: a long run
//! of spaces would get wrong ids. So its expressions run in our [`Pattern`]; all other parts are the crate's.

use serde_json::Value;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, Offsets, PostProcessorWrapper, PreTokenizedString, PreTokenizer,
    PreTokenizerWrapper, SplitDelimiterBehavior, TokenizerImpl, pre_tokenizers::byte_level::ByteLevel,
};

use super::pattern::Pattern;

/// The crate's pipeline with our way of cutting.
pub(super) type Pipeline = TokenizerImpl<ModelWrapper, NormalizerWrapper, Cutter, PostProcessorWrapper, DecoderWrapper>;

/// GPT-2's pattern, which a `ByteLevel` stands for.
pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// A pre-tokenizer.
pub(super) enum Cutter {
    Split {
        pattern: Pattern,
        /// The pattern as it was written.
        expression: String,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    /// A space before a text that does not begin with one.
    PrefixSpace,
    Library(PreTokenizerWrapper),
    Sequence(Vec<Cutter>),
}

impl Cutter {
    /// Takes the `pre_tokenizer` of a `tokenizer.json`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn from_json(part: &Value) -> Result<Self, String> {
        match part["type"].as_str() {
            Some("Sequence") => {
                let steps = part["pretokenizers"].as_array().ok_or("a Sequence needs a list of pretokenizers")?;
                steps.iter().map(Self::from_json).collect::<Result<_, _>>().map(Self::Sequence)
            }
            Some("Split") if part["pattern"]["Regex"].is_string() => {
                let expression = part["pattern"]["Regex"].as_str().unwrap_or_default();
                let behavior = serde_json::from_value(part["behavior"].clone()).map_err(|error| error.to_string())?;
                let invert = part["invert"].as_bool().unwrap_or(false);
                Ok(Self::Split {
                    pattern: Pattern::new(expression)?,
                    expression: expression.to_owned(),
                    behavior,
                    invert,
                })
            }
            _ => {
                let library: PreTokenizerWrapper =
                    serde_json::from_value(part.clone()).map_err(|error| error.to_string())?;
                match library {
                    PreTokenizerWrapper::ByteLevel(level) if level.use_regex => Self::byte_level(level, &[GPT2]),
                    other => Ok(Self::Library(other)),
                }
            }
        }
    }

    /// Cuts by [`patterns`](Self::patterns) and spells the pieces as byte-level BPE does.
    ///
    /// # Errors
    /// Which pattern cannot be compiled.
    pub(super) fn byte_level(level: ByteLevel, patterns: &[&str]) -> Result<Self, String> {
        // The patterns see the space that goes before the text.
        let prefix = level.add_prefix_space.then_some(Self::PrefixSpace);
        let spell = Self::Library(level.add_prefix_space(false).use_regex(false).into());
        Ok(Self::Sequence(prefix.into_iter().chain([Self::patterns(patterns)?, spell]).collect()))
    }

    /// Cuts by one pattern after another, each match and each gap a piece of its own.
    ///
    /// # Errors
    /// Which pattern cannot be compiled.
    pub(super) fn patterns(patterns: &[&str]) -> Result<Self, String> {
        let split = |expression: &&str| {
            let pattern = Pattern::new(expression)?;
            let (expression, behavior) = ((*expression).to_owned(), SplitDelimiterBehavior::Isolated);
            Ok(Self::Split { pattern, expression, behavior, invert: false })
        };
        patterns.iter().map(split).collect::<Result<_, String>>().map(Self::Sequence)
    }

    /// Whether any step may only see short texts.
    pub(super) fn backtracks(&self) -> bool {
        match self {
            Self::Split { pattern, .. } => pattern.backtracks(),
            Self::Library(_) | Self::PrefixSpace => false,
            Self::Sequence(steps) => steps.iter().any(Self::backtracks),
        }
    }
}

impl PreTokenizer for Cutter {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        match self {
            Self::Split { pattern, behavior, invert, .. } => {
                text.split(|_, piece| piece.split(Cuts { pattern, invert: *invert }, *behavior))
            }
            Self::PrefixSpace => text.normalize(|piece| {
                if !piece.get().starts_with(' ') {
                    piece.prepend(" ");
                }
                Ok(())
            }),
            Self::Library(library) => library.pre_tokenize(text),
            Self::Sequence(steps) => steps.iter().try_for_each(|step| step.pre_tokenize(text)),
        }
    }
}

/// A pattern as the crate asks for it.
struct Cuts<'p> {
    pattern: &'p Pattern,
    invert: bool,
}

impl tokenizers::tokenizer::pattern::Pattern for Cuts<'_> {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        let pieces = self.pattern.pieces(inside)?;
        Ok(pieces.into_iter().map(|(start, end, is_match)| ((start, end), is_match != self.invert)).collect())
    }
}
