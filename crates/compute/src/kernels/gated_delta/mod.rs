//! The gated delta rule (Yang et al., 2024, arXiv:2412.06464): attention whose keys and values are one matrix `S` a head,
//! however long the sequence. Each token lets it decay, replaces what it answers to the token's key by the token's value, as
//! far as the token says, and asks it the token's query:
//!
//! ```text
//! S = decay S;  S = S + k (beta (v - Sᵀk))ᵀ;  y = Sᵀq
//! ```
//!
//! A token's result and the state after it are computed from the state before it, one token after the other in the order of
//! the sequence, in a prompt as in decoding: so they do not depend on how a sequence is cut into steps. The sums over a key
//! are four chains of multiply-adds, added as a tree.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod host_twin_tests;
#[cfg(any(test, feature = "cuda"))]
mod launches;
mod portable;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use candle_core::{Device, Tensor};

use super::{
    cpu_tensor::{Rows, cpu_storage, with_contiguous_rows},
    recurrent::{StateRow, StateRows, in_place, zeros},
    simd::{LANES, Level},
};
use crate::error::{Error, Result};

/// What is added to the sum of squares of a query or key before it is brought to length 1.
const EPS: f64 = 1e-6;
/// Most numbers of a key.
pub const MOST_KEY_DIM: usize = 256;

/// Heads of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaHeads {
    /// Of queries and keys; divides `value_heads`.
    pub key_heads: usize,
    /// Of values, each with a state.
    pub value_heads: usize,
    /// Numbers of a query or key, at most [`MOST_KEY_DIM`].
    pub key_dim: usize,
    /// Numbers of a value.
    pub value_dim: usize,
    /// Which value heads share a query and a key.
    pub sharing: Sharing,
}

/// Which value heads share a query and a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Neighbours.
    Neighbours,
    /// Those that are as far apart as there are key heads: the order of llama.cpp's files of Qwen3.5.
    Strided,
}

impl DeltaHeads {
    /// The head whose query and key a value head has.
    fn key_head(&self, value_head: usize) -> usize {
        match self.sharing {
            Sharing::Neighbours => value_head / (self.value_heads / self.key_heads),
            Sharing::Strided => value_head % self.key_heads,
        }
    }

    /// Numbers of all queries, or of all keys, of a token.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Numbers of all values of a token.
    #[must_use]
    pub fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Numbers of its queries, keys and values.
    #[must_use]
    pub fn qkv(&self) -> usize {
        2 * self.keys() + self.values()
    }

    /// Vectors of a value, the last of which may be filled up.
    fn strips(&self) -> usize {
        self.value_dim.div_ceil(LANES)
    }
}

/// The states of one layer.
#[derive(Clone, Debug)]
pub struct DeltaState {
    heads: DeltaHeads,
    /// Float32 `[slots, value_heads, strips, key_dim, 16]`: sixteen numbers of a value for all of a key lie together, which is
    /// what a task works on.
    matrices: Tensor,
}

impl DeltaState {
    /// States of zeros.
    ///
    /// # Errors
    /// `Internal` for impossible sizes, `ResourceExhausted` where there is no memory.
    pub fn new(num_slots: usize, heads: DeltaHeads, device: &Device) -> Result<Self> {
        let DeltaHeads { key_heads, value_heads, key_dim, .. } = heads;
        if key_heads == 0 || !value_heads.is_multiple_of(key_heads) || !(1..=MOST_KEY_DIM).contains(&key_dim) {
            return Err(Error::internal(format!("gated_delta: there can be no {heads:?}")));
        }
        let matrices = zeros(&[num_slots, value_heads, heads.strips(), key_dim, LANES], device)?;
        Ok(Self { heads, matrices })
    }

    /// Bytes of one sequence's.
    #[must_use]
    pub fn bytes_per_slot(heads: &DeltaHeads) -> usize {
        [heads.value_heads, heads.strips(), heads.key_dim, LANES]
            .into_iter()
            .fold(size_of::<f32>(), usize::saturating_mul)
    }
}

/// What the gates of a layer are made with.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaGates {
    /// What the logarithm of a decay is multiplied with, below 0: `[value_heads]`.
    pub rates: Vec<f32>,
    /// What is added to what a token says of its decay: `[value_heads]`.
    pub biases: Vec<f32>,
}

impl DeltaGates {
    /// A head's decay, `e^(rate log(1 + e^(alpha + bias)))`, and how far the token replaces, `1 / (1 + e^-beta)`.
    fn of(&self, head: usize, beta: f32, alpha: f32) -> [f32; 2] {
        let x = f64::from(alpha) + f64::from(self.biases[head]);
        // log(1 + e^x) without an overflow.
        let softplus = x.max(0.0) + (-x.abs()).exp().ln_1p();
        let decay = (f64::from(self.rates[head]) * softplus).exp();
        [decay as f32, (1.0 / (1.0 + (-f64::from(beta)).exp())) as f32]
    }
}

/// What the states answer to each token's queries, `[n, value_heads * value_dim]`; the states are those after the rows' last
/// tokens then.
///
/// `qkv` is float32 `[n, 2 * key_heads * key_dim + value_heads * value_dim]`, the rows' tokens one after another, each its
/// queries, keys and values; queries and keys are brought to length 1 here, and queries divided by the root of `key_dim`.
/// `gating` is float32 `[n, 2 * value_heads]`, what each token says of how far it replaces and of its decay.
///
/// # Errors
/// `Internal` where the shapes, the rows and the states do not fit each other; no state has changed then.
pub fn gated_delta(
    qkv: &Tensor,
    gating: &Tensor,
    gates: &DeltaGates,
    state: &DeltaState,
    rows: StateRows<'_>,
) -> Result<Tensor> {
    gated_delta_at(Level::best(), qkv, gating, gates, state, rows)
}

fn gated_delta_at(
    level: Level,
    qkv: &Tensor,
    gating: &Tensor,
    gates: &DeltaGates,
    state: &DeltaState,
    rows: StateRows<'_>,
) -> Result<Tensor> {
    let heads = state.heads;
    let count = heads.value_heads;
    let tokens = match (qkv.dims(), gating.dims()) {
        (&[n, width], &[m, gating])
            if n == m
                && width == heads.qkv()
                && gating == 2 * count
                && [gates.rates.len(), gates.biases.len()] == [count; 2] =>
        {
            n
        }
        (qkv, gating) => {
            let why = format!("gated_delta: qkv has shape {qkv:?}, the gates {gating:?}, for {heads:?}");
            return Err(Error::internal(why));
        }
    };
    let rows = rows.checked("gated_delta", tokens, state.matrices.dims()[0])?;
    #[cfg(feature = "cuda")]
    if let Device::Cuda(_) = qkv.device() {
        return cuda::gated_delta(qkv, gating, gates, state, &rows);
    }
    if !matches!(qkv.device(), Device::Cpu) {
        return portable::gated_delta(qkv, gating, gates, state, &rows);
    }
    let gating = with_contiguous_rows(gating)?;
    let (storage, layout) = gating.storage_and_layout();
    let gating = Rows::new(cpu_storage(&storage)?, layout)?;
    let delta = GatedDelta { level, heads, gating, gates, rows: &rows };
    let out = in_place("gated_delta", &state.matrices, qkv, |states, qkv| cpu::gated_delta(&delta, states, qkv))?;
    Ok(Tensor::from_vec(out, (tokens, heads.values()), &Device::Cpu)?)
}

struct GatedDelta<'a> {
    level: Level,
    heads: DeltaHeads,
    gating: Rows<'a>,
    gates: &'a DeltaGates,
    rows: &'a [StateRow],
}
