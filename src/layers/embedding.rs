//! From token ids to rows of the embedding matrix.

use std::sync::Arc;

use candle_core::Tensor;

use crate::{error::Result, ids::TokenId, kernels::linear::PackedWeight};

/// The embedding matrix `[vocab, hidden]`; a model with tied embeddings uses the same packed weight as its head.
pub struct Embedding {
    weight: Arc<PackedWeight>,
}

impl Embedding {
    /// Takes a packed `[vocab, hidden]`.
    pub(crate) fn new(weight: Arc<PackedWeight>) -> Self {
        Self { weight }
    }

    /// The same weight, for a tied head.
    pub(crate) fn weight(&self) -> Arc<PackedWeight> {
        Arc::clone(&self.weight)
    }

    /// Rows `[token_ids.len(), hidden]`, float32.
    ///
    /// # Errors
    /// `Internal` where a token is not in the vocabulary: requests are checked before they are admitted.
    pub fn forward(&self, token_ids: &[TokenId]) -> Result<Tensor> {
        self.weight.gather_rows(token_ids)
    }

    /// The same of ids that are where the matrix is, u32 `[n]`: the host need not know them.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), as far as anybody looks.
    pub fn forward_placed(&self, token_ids: &Tensor) -> Result<Tensor> {
        self.weight.gather_placed_rows(token_ids)
    }
}
