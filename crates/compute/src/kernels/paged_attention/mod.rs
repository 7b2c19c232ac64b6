//! Attention of ragged queries over the paged KV cache.
//!
//! A query at position `p` sees the keys at `0..=p` of its own row, or the last `window` of them. Keys are taken in
//! tiles of 64 that begin at multiples of 64, whatever part of a prompt a step computes: each tile's largest score may
//! raise the running maximum, and rescales what was summed so far (Milakov and Gimelshein, 2018, arXiv:1805.02867).
//! So a query's result does not depend on its chunk, its batch or the size of a block.
//!
//! Over a cache of float32 or float16 everything is computed in float32. Over one of bfloat16 or eight bits, queries are
//! rounded to bfloat16, and so is a weight as it is multiplied with values, relative to the maximum so far; the weights'
//! own sum is of what they were before. Sums are float32 either way, in the order of [`register_tile`].
//!
//! A value that a query does not see is multiplied with zero where others of its sequence see it in the same step: no
//! infinity or NaN among them is kept from it.

mod carried;
mod cascade;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod head_cache;
mod heads;
#[cfg(test)]
mod host_twin_tests;
mod in_place;
#[cfg(any(test, feature = "cuda"))]
mod launches;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod matrix;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod portable;
#[cfg(test)]
mod reference;
mod register_tile;
mod softmax;
mod task;
#[cfg(test)]
mod tests;
mod widened;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor};

use super::{
    cpu_tensor::{Rows, with_contiguous_rows},
    simd::{LANES, Level},
    store_kv::{KvCacheConfig, KvLayer},
};
use crate::{
    error::{Error, Result},
    ids::BlockId,
};

/// Keys a tile; tiles begin at multiples of it.
const KEYS: usize = 64;
/// Vectors of keys in a tile.
const KEY_VECTORS: usize = KEYS / LANES;

/// What becomes of `q kᵀ` before the softmax.
#[derive(Clone, Debug, PartialEq)]
pub struct Scoring {
    /// It is multiplied with this.
    pub scale: f32,
    /// Then it becomes `cap * tanh(score / cap)`, where there is a cap (Gemma 2, arXiv:2408.00118).
    pub softcap: Option<f32>,
    /// Keys that a query sees, itself the last of them: at least one; `usize::MAX` for all before it.
    pub window: usize,
    /// A score a query head that takes part in the softmax and has no value (gpt-oss, arXiv:2508.10925): `[heads]`.
    pub sinks: Option<Arc<[f32]>>,
}

impl Scoring {
    /// All keys, no cap, no sinks.
    #[must_use]
    pub fn plain(scale: f32) -> Self {
        Self { scale, softcap: None, window: usize::MAX, sinks: None }
    }
}

/// Which blocks each row of a step attends to; one for all layers that share a block table.
#[derive(Clone, Debug, Default)]
pub struct AttentionMetadata {
    /// Tokens a block.
    pub block_size: usize,
    /// Where each row's queries begin, and the end: `[rows + 1]`.
    pub cu_seqlens: Vec<u32>,
    /// Tokens before each row's first query: `[rows]`.
    pub context_lens: Vec<u32>,
    /// The rows' block tables, one after another. Blocks that lie wholly before a row's window need not exist.
    pub block_tables: Vec<BlockId>,
    /// Where each row's block table begins in `block_tables`, and the end: `[rows + 1]`.
    pub cu_blocks: Vec<u32>,
}

impl AttentionMetadata {
    /// The rows, checked against each other and the cache, as far as queries with this window see it.
    fn rows(&self, queries: usize, config: &KvCacheConfig, window: usize) -> Result<Vec<Row<'_>>> {
        let &KvCacheConfig { block_size, num_blocks, .. } = config;
        let wrong = |what: String| Error::internal(format!("paged_attention: {what}"));
        if self.block_size != block_size {
            return Err(wrong(format!("blocks of {}, the cache has {block_size}", self.block_size)));
        }
        let count = self.context_lens.len();
        if self.cu_seqlens.len() != count + 1 || self.cu_blocks.len() != count + 1 {
            let (seqlens, blocks) = (self.cu_seqlens.len(), self.cu_blocks.len());
            return Err(wrong(format!("{count} rows, but {seqlens} query bounds and {blocks} block table bounds")));
        }
        if self.cu_seqlens[0] != 0 || self.cu_seqlens[count] as usize != queries {
            return Err(wrong(format!("the rows do not cover the {queries} queries")));
        }
        (0..count)
            .map(|row| {
                let queries = self.cu_seqlens[row] as usize..self.cu_seqlens[row + 1] as usize;
                let blocks = self.cu_blocks[row] as usize..self.cu_blocks[row + 1] as usize;
                let blocks = self.block_tables.get(blocks).filter(|_| queries.start <= queries.end);
                let blocks = blocks.ok_or_else(|| wrong(format!("row {row} has bounds out of order")))?;
                let context_len = self.context_lens[row] as usize;
                let needed = (context_len + queries.len()).div_ceil(block_size);
                if blocks.len() < needed {
                    return Err(wrong(format!("row {row} has {} blocks, needs {needed}", blocks.len())));
                }
                let first_seen = (context_len + 1).saturating_sub(window) / block_size;
                let seen = blocks.get(first_seen..needed).unwrap_or_default();
                if let Some(block) = seen.iter().find(|block| block.index() >= num_blocks) {
                    return Err(wrong(format!("row {row} has block {block}, the cache ends at {num_blocks}")));
                }
                Ok(Row { queries, context_len, blocks })
            })
            .collect()
    }
}

/// One sequence's part of a step.
struct Row<'a> {
    /// Its queries in the batch.
    queries: std::ops::Range<usize>,
    /// The position of the first.
    context_len: usize,
    /// Where the keys at position `p` are: `blocks[p / block_size]`. Those that no query sees may be of no cache.
    blocks: &'a [BlockId],
}

/// Softmax of the scores of the keys that each query sees, times the values.
///
/// `q` is float32 `[n, heads, head_dim]`, the rows' queries one after another, their keys and values already stored;
/// `heads` is a multiple of the cache's heads, neighbouring query heads share one. The result is float32
/// `[n, heads * head_dim]`.
///
/// # Errors
/// `Internal` where the shapes, the metadata and the cache do not fit each other.
pub fn paged_attention(q: &Tensor, cache: &KvLayer, meta: &AttentionMetadata, scoring: &Scoring) -> Result<Tensor> {
    paged_attention_at(Level::best(), q, cache, meta, scoring)
}

fn paged_attention_at(
    level: Level,
    q: &Tensor,
    cache: &KvLayer,
    meta: &AttentionMetadata,
    scoring: &Scoring,
) -> Result<Tensor> {
    let config = *cache.config();
    let &[n, heads, head_dim] = q.dims() else {
        let dims = q.dims();
        return Err(Error::internal(format!("paged_attention: q has shape {dims:?}, must have [n, heads, head_dim]")));
    };
    if head_dim != config.head_dim || heads == 0 || !heads.is_multiple_of(config.kv_heads) || scoring.window == 0 {
        let message = format!("paged_attention: q has shape {:?}, scoring {scoring:?}, the cache {config:?}", q.dims());
        return Err(Error::internal(message));
    }
    if let Some(sinks) = scoring.sinks.as_ref().filter(|sinks| sinks.len() != heads) {
        return Err(Error::internal(format!("paged_attention: {} sinks for {heads} heads", sinks.len())));
    }
    let rows = meta.rows(n, &config, scoring.window)?;
    #[cfg(feature = "cuda")]
    if matches!(q.device(), Device::Cuda(_)) && head_dim <= cuda::MOST_HEAD_DIM {
        return cuda::paged_attention(q, cache, meta, &rows, scoring);
    }
    if !matches!(q.device(), Device::Cpu) {
        return portable::paged_attention(q, cache, &rows, scoring);
    }
    let op = PagedAttention { level, cache, rows: &rows, heads, scoring };
    Ok(with_contiguous_rows(q)?.apply_op1_no_bwd(&op)?)
}

struct PagedAttention<'a> {
    level: Level,
    cache: &'a KvLayer,
    rows: &'a [Row<'a>],
    heads: usize,
    scoring: &'a Scoring,
}

impl CustomOp1 for PagedAttention<'_> {
    fn name(&self) -> &'static str {
        "paged_attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let q = Rows::new(storage, layout)?;
        let out = cpu::paged_attention(self, q)?;
        Ok((CpuStorage::F32(out), Shape::from((q.count, q.width))))
    }
}
