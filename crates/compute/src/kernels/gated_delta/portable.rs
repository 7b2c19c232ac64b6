//! The gated delta rule of candle's own operations, token by token, for devices that have no kernel of ours.

use candle_core::{D, Tensor};

use super::{DeltaGates, DeltaHeads, DeltaState, EPS, Sharing, StateRow};
use crate::{error::Result, kernels::simd::LANES};

pub(super) fn gated_delta(
    qkv: &Tensor,
    gating: &Tensor,
    gates: &DeltaGates,
    state: &DeltaState,
    rows: &[StateRow],
) -> Result<Tensor> {
    let heads = state.heads;
    let DeltaHeads { key_heads, value_heads, key_dim, value_dim, sharing } = heads;
    let (n, keys, strips) = (qkv.dim(0)?, heads.keys(), heads.strips());
    if n == 0 {
        return Ok(qkv.narrow(1, 0, heads.values())?.contiguous()?);
    }
    // `[n, value_heads, 1, key_dim, 1]`, and `[n, value_heads, strips, 16]`.
    let by_head = |first: usize, scale: f64| -> Result<Tensor> {
        let x = qkv.narrow(1, first, keys)?.contiguous()?.reshape((n, key_heads, 1, key_dim))?;
        let unit = (x.broadcast_div(&(x.sqr()?.sum_keepdim(D::Minus1)? + EPS)?.sqrt()?)? * scale)?;
        let each = value_heads / key_heads;
        let shared = match sharing {
            Sharing::Neighbours => unit.broadcast_as((n, key_heads, each, key_dim))?,
            Sharing::Strided => unit.transpose(1, 2)?.broadcast_as((n, each, key_heads, key_dim))?,
        };
        let shared = shared.contiguous()?;
        Ok(shared.reshape((n, value_heads, 1, key_dim, 1))?)
    };
    let (q, k) = (by_head(0, (key_dim as f64).sqrt().recip())?, by_head(keys, 1.0)?);
    let v = qkv.narrow(1, 2 * keys, heads.values())?.contiguous()?.reshape((n, value_heads, value_dim))?;
    let v = v.pad_with_zeros(2, 0, strips * LANES - value_dim)?.reshape((n, value_heads, strips, LANES))?;
    let (decay, share) = decay_and_share(gating, gates, value_heads)?;
    let mut out = Vec::with_capacity(n);
    for row in rows {
        let mut s = state.matrices.narrow(0, row.slot, 1)?.squeeze(0)?.copy()?;
        if row.begins {
            s = s.zeros_like()?;
        }
        for token in row.tokens.clone() {
            let of = |x: &Tensor| x.narrow(0, token, 1)?.squeeze(0);
            s = s.broadcast_mul(&of(&decay)?)?;
            let remembered = s.broadcast_mul(&of(&k)?)?.sum(2)?;
            let correction = (of(&v)? - remembered)?.broadcast_mul(&of(&share)?)?;
            s = (s + correction.unsqueeze(2)?.broadcast_mul(&of(&k)?)?)?;
            out.push(s.broadcast_mul(&of(&q)?)?.sum(2)?.reshape((1, value_heads, strips * LANES))?);
        }
        state.matrices.slice_set(&s.contiguous()?.unsqueeze(0)?, 0, row.slot)?;
    }
    Ok(Tensor::cat(&out, 0)?.narrow(2, 0, value_dim)?.contiguous()?.reshape((n, heads.values()))?)
}

/// `[n, value_heads, 1, 1, 1]`, and `[n, value_heads, 1, 1]`.
fn decay_and_share(gating: &Tensor, gates: &DeltaGates, heads: usize) -> Result<(Tensor, Tensor)> {
    let n = gating.dim(0)?;
    let (mut decays, mut shares) = (Vec::with_capacity(n * heads), Vec::with_capacity(n * heads));
    for token in gating.to_vec2::<f32>()? {
        for head in 0..heads {
            let [decay, share] = gates.of(head, token[head], token[heads + head]);
            decays.push(decay);
            shares.push(share);
        }
    }
    let device = gating.device();
    let decays = Tensor::from_vec(decays, (n, heads, 1, 1, 1), device)?;
    Ok((decays, Tensor::from_vec(shares, (n, heads, 1, 1), device)?))
}
