//! Who shares cached blocks: requests of equal salts, or without one.

use std::sync::Arc;

/// See the [module](self). Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Salt {
    words: Arc<str>,
    is_told: bool,
}

impl Salt {
    /// Of blocks that are told to nobody.
    #[must_use]
    pub fn untold(words: impl Into<Arc<str>>) -> Self {
        Self { words: words.into(), is_told: false }
    }

    /// Of blocks that whoever may know of everybody's is told.
    #[must_use]
    pub fn told(words: impl Into<Arc<str>>) -> Self {
        Self { words: words.into(), is_told: true }
    }

    /// What it is.
    #[must_use]
    pub fn words(&self) -> &str {
        &self.words
    }

    /// Whether its blocks are told.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.is_told
    }
}
