//! How the hidden states of an input become one vector.

use crate::error::{Error, Result};

/// What is taken of an input's hidden states: those after the model's last norm, which Hugging Face's transformers call
/// `last_hidden_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// That of the last token.
    Last,
}

impl Pooling {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Mean, Self::Last];

    /// What requests call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Last => "last",
        }
    }

    /// The pooling of that name.
    ///
    /// # Errors
    /// `InvalidArgument` that names `pooling` and what there is.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|pooling| pooling.name() == name).ok_or_else(|| {
            let all = Self::ALL.map(Self::name).join(" or ");
            let cut: String = name.chars().take(40).collect();
            Error::invalid("pooling", format!("is {cut:?}, must be {all}"))
        })
    }
}
