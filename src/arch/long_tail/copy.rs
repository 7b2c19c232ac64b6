//! A sequence's own copy of a model, and the three ways in which modules let one be made.

use std::sync::Arc;

use candle_core::{D, Device, Result as CandleResult, Tensor};

use crate::{
    error::{Error, Result},
    ids::TokenId,
};

/// Computes ids `[1, n]` that come after so many others; gives the last one's logits, `[.., vocab]`.
pub(super) type Decoder = Box<dyn FnMut(&Tensor, usize) -> CandleResult<Tensor> + Send>;

/// Makes a decoder for a sequence that begins.
pub(super) type Begin = Box<dyn Fn() -> CandleResult<Decoder> + Send + Sync>;

/// What a module can be given at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunks {
    /// Any piece of a text: its causal mask knows of what came before.
    Any,
    /// A text's beginning; what follows, token by token.
    First,
    /// Token by token.
    One,
}

/// A module whose model can be cloned, cache included.
pub(super) fn cloned<M: Clone + Send + Sync + 'static>(
    model: M,
    forward: fn(&mut M, &Tensor, usize) -> CandleResult<Tensor>,
) -> Begin {
    Box::new(move || {
        let mut model = model.clone();
        Ok(Box::new(move |ids: &Tensor, position: usize| forward(&mut model, ids, position)))
    })
}

/// A module whose cache or state stands outside of the model.
pub(super) fn beside<S: Send + 'static>(
    new_state: impl Fn() -> CandleResult<S> + Send + Sync + 'static,
    forward: impl Fn(&Tensor, usize, &mut S) -> CandleResult<Tensor> + Send + Sync + 'static,
) -> Begin {
    let forward = Arc::new(forward);
    Box::new(move || {
        let (mut state, forward) = (new_state()?, Arc::clone(&forward));
        Ok(Box::new(move |ids: &Tensor, position: usize| forward(ids, position, &mut state)))
    })
}

/// A module whose model has its cache inside and cannot be cloned: it is built anew over the same tensors.
pub(super) fn built<M: Send + 'static>(
    build: impl Fn() -> CandleResult<M> + Send + Sync + 'static,
    forward: fn(&mut M, &Tensor, usize) -> CandleResult<Tensor>,
) -> Begin {
    Box::new(move || {
        let mut model = build()?;
        Ok(Box::new(move |ids: &Tensor, position: usize| forward(&mut model, ids, position)))
    })
}

/// A model as one sequence has it: the weights of all, and what its tokens left.
pub struct ModelCopy {
    decoder: Decoder,
    chunks: Chunks,
    vocab_size: usize,
    device: Device,
    /// Tokens that it has computed.
    num_tokens: usize,
}

impl ModelCopy {
    pub(super) fn new(decoder: Decoder, chunks: Chunks, vocab_size: usize, device: Device) -> Self {
        Self { decoder, chunks, vocab_size, device, num_tokens: 0 }
    }

    /// Tokens that it has computed.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Computes `tokens`, at least one, after those it has computed; gives the last one's logits, `[vocab]`.
    ///
    /// # Errors
    /// `Internal` where an operation fails; what the copy has computed is not known then.
    pub fn forward(&mut self, tokens: &[TokenId]) -> Result<Tensor> {
        let (mut logits, mut left) = (None, tokens);
        while !left.is_empty() {
            let at_once = match self.chunks {
                Chunks::Any => left.len(),
                Chunks::First if self.num_tokens == 0 => left.len(),
                Chunks::First | Chunks::One => 1,
            };
            let (now, later) = left.split_at(at_once);
            let ids = Tensor::from_slice(bytemuck::cast_slice::<TokenId, u32>(now), (1, now.len()), &self.device)?;
            logits = Some((self.decoder)(&ids, self.num_tokens)?);
            self.num_tokens += at_once;
            left = later;
        }
        let logits = logits.ok_or_else(|| Error::internal("no tokens to compute"))?.flatten_all()?;
        let found = logits.dim(D::Minus1)?;
        if found != self.vocab_size {
            let why = format!("the module gives {found} logits for a vocabulary of {}", self.vocab_size);
            return Err(Error::internal(why));
        }
        Ok(logits)
    }
}
