//! Paged attention of candle's own operations, a row at a time, for devices that have no kernel of ours.

use candle_core::{D, DType, Tensor};

use super::{Row, Scoring};
use crate::{error::Result, ids::BlockId, kernels::store_kv::KvLayer};

pub(super) fn paged_attention(q: &Tensor, cache: &KvLayer, rows: &[Row<'_>], scoring: &Scoring) -> Result<Tensor> {
    let (_, heads, head_dim) = q.dims3()?;
    let mut outputs = Vec::with_capacity(rows.len());
    for row in rows.iter().filter(|row| !row.queries.is_empty()) {
        let q = q.narrow(0, row.queries.start, row.queries.len())?;
        outputs.push(attend(&q, cache, row, scoring)?.reshape((row.queries.len(), heads * head_dim))?);
    }
    match outputs.as_slice() {
        [] => Ok(q.reshape((0, heads * head_dim))?),
        outputs => Ok(Tensor::cat(outputs, 0)?),
    }
}

fn attend(q: &Tensor, cache: &KvLayer, row: &Row<'_>, scoring: &Scoring) -> Result<Tensor> {
    let &Scoring { scale, softcap, window, .. } = scoring;
    let config = cache.config();
    let (n, heads, head_dim) = q.dims3()?;
    let group = heads / config.kv_heads;
    // Blocks before the first query's window may be gone.
    let first_block = (row.context_len + 1).saturating_sub(window) / config.block_size;
    let first = first_block * config.block_size;
    let len = row.context_len + n - first;
    let blocks = &row.blocks[first_block..][..len.div_ceil(config.block_size)];
    let slots = blocks.len() * config.block_size;
    let ids = Tensor::from_slice(bytemuck::cast_slice::<BlockId, u32>(blocks), blocks.len(), q.device())?;
    // [kv_heads, head_dim, len] and [kv_heads, len, head_dim]: slots that were not written are cut off.
    let keys = cache.keys.index_select(&ids, 0)?.permute((1, 2, 0, 3))?.reshape((config.kv_heads, head_dim, slots))?;
    let keys = keys.narrow(2, 0, len)?.to_dtype(DType::F32)?.contiguous()?;
    let values = cache.values.index_select(&ids, 0)?.transpose(0, 1)?.reshape((config.kv_heads, slots, head_dim))?;
    let values = values.narrow(1, 0, len)?.to_dtype(DType::F32)?.contiguous()?;
    // Query heads of a KV head and queries together: [kv_heads, group * n, head_dim].
    let q = q.transpose(0, 1)?.contiguous()?.reshape((config.kv_heads, group * n, head_dim))?;
    let mut scores = (q.matmul(&keys)? * f64::from(scale))?.reshape((heads, n, len))?;
    if let Some(cap) = softcap.map(f64::from) {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    let hidden = (0..n).flat_map(|query| {
        let position = row.context_len + query - first;
        (0..len).map(
            move |key| if key > position || key.saturating_add(window) <= position { f32::NEG_INFINITY } else { 0.0 },
        )
    });
    let mask = Tensor::from_iter(hidden, q.device())?.reshape((1, n, len))?;
    let scores = scores.broadcast_add(&mask)?;
    let scores = match &scoring.sinks {
        Some(sinks) => {
            let sinks = Tensor::from_slice(sinks, (heads, 1, 1), q.device())?.broadcast_as((heads, n, 1))?;
            Tensor::cat(&[&scores, &sinks.contiguous()?], 2)?
        }
        None => scores,
    };
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?.narrow(2, 0, len)?.contiguous()?;
    let out = weights.reshape((config.kv_heads, group * n, len))?.matmul(&values)?;
    Ok(out.reshape((heads, n, head_dim))?.transpose(0, 1)?.contiguous()?)
}
