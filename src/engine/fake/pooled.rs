//! The fake's vectors: the state of a token is eight numbers, drawn from the hash of all tokens up to it, and a mean adds
//! up the tokens that rows have brought. So a prompt of which the prefix cache gave a part has another mean.

use super::{Context, FakeExecutor, Random, ensure};
use crate::{engine::executor::PlannedRow, error::Result, ids::TokenId, params::Pooling};

/// Numbers of one of the fake's vectors.
pub const EMBEDDING_SIZE: usize = 8;

/// What has come of a sequence that is pooled.
pub(super) struct Pool {
    pooling: Pooling,
    sum: [f64; EMBEDDING_SIZE],
    num_tokens: u32,
}

impl Pool {
    pub(super) fn new(pooling: Pooling) -> Self {
        Self { pooling, sum: [0.0; EMBEDDING_SIZE], num_tokens: 0 }
    }

    /// Takes in the next token's state.
    fn push(&mut self, state: [f64; EMBEDDING_SIZE]) {
        match self.pooling {
            Pooling::Mean => self.sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += x),
            Pooling::Last => self.sum = state,
        }
        self.num_tokens += 1;
    }

    fn vector(&self) -> Vec<f32> {
        let count = match self.pooling {
            Pooling::Mean => f64::from(self.num_tokens.max(1)),
            Pooling::Last => 1.0,
        };
        self.sum.iter().map(|sum| (sum / count) as f32).collect()
    }
}

impl Context {
    /// The state of the last token, each number in [-1, 1).
    fn state(self) -> [f64; EMBEDDING_SIZE] {
        let mut random = Random(self.0);
        [(); EMBEDDING_SIZE].map(|()| (random.next() >> 40) as f64 / f64::from(1 << 23) - 1.0)
    }
}

impl FakeExecutor {
    /// The vector of `prompt` when nothing goes wrong.
    #[must_use]
    pub fn expected_vector(prompt: &[TokenId], pooling: Pooling) -> Vec<f32> {
        let (mut pool, mut context) = (Pool::new(pooling), Context::default());
        for &token in prompt {
            context = context.then(token);
            pool.push(context.state());
        }
        pool.vector()
    }

    /// Takes a row's tokens into its sequence's pool; the vector where they are the last. Their slots have been read.
    pub(super) fn pool_row(&mut self, row: &PlannedRow) -> Result<Option<Vec<f32>>> {
        let context_len = row.context_len as usize;
        let Some(known) = self.sequences.get_mut(&row.id) else { return Ok(None) };
        let Some(pool) = &mut known.pool else { return Ok(None) };
        if context_len == 0 {
            *pool = Pool::new(pool.pooling);
        }
        ensure(pool.pooling == Pooling::Last || pool.num_tokens == row.context_len, || {
            format!("sequence {}: a mean of {} tokens goes on at {context_len}", row.id, pool.num_tokens)
        })?;
        let mut context = Context::default();
        for (position, &token) in known.tokens.iter().take(context_len + row.query.len()).enumerate() {
            context = context.then(token);
            if position >= context_len {
                pool.push(context.state());
            }
        }
        Ok(row.samples.then(|| pool.vector()))
    }
}
