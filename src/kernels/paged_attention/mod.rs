//! Attention of ragged queries over the paged KV cache.
//!
//! A query at position `p` sees the keys at `0..=p` of its own row, or the last `window` of them. Keys are taken in
//! tiles of 64 that begin at multiples of 64, whatever part of a prompt a step computes: each tile's largest score may
//! raise the running maximum, and rescales what was summed so far (Milakov and Gimelshein, 2018, arXiv:1805.02867).
//! So a query's result does not depend on its chunk, its batch or the size of a block.

mod cpu;
mod portable;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor};

use super::{
    cpu_tensor::{Rows, with_contiguous_rows},
    simd::Level,
    store_kv::KvLayer,
};
use crate::{
    error::{Error, Result},
    ids::BlockId,
};

/// Which blocks each row of a step attends to; one for all layers of a step.
#[derive(Clone, Debug, Default)]
pub struct AttentionMetadata {
    /// Tokens a block.
    pub block_size: usize,
    /// Where each row's queries begin, and the end: `[rows + 1]`.
    pub cu_seqlens: Vec<u32>,
    /// Tokens before each row's first query: `[rows]`.
    pub context_lens: Vec<u32>,
    /// The rows' block tables, one after another.
    pub block_tables: Vec<BlockId>,
    /// Where each row's block table begins in `block_tables`, and the end: `[rows + 1]`.
    pub cu_blocks: Vec<u32>,
}

impl AttentionMetadata {
    /// The rows, checked against each other and the cache.
    fn rows(&self, queries: usize, block_size: usize, num_blocks: usize) -> Result<Vec<Row<'_>>> {
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
                if let Some(block) = blocks[..needed].iter().find(|block| block.index() >= num_blocks) {
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
    /// Where the keys at position `p` are: `blocks[p / block_size]`.
    blocks: &'a [BlockId],
}

/// Softmax of `scale * q kᵀ` over the keys that each query sees, times the values.
///
/// `q` is float32 `[n, heads, head_dim]`, the rows' queries one after another, their keys and values already stored;
/// `heads` is a multiple of the cache's heads, neighbouring query heads share one. `window` is the number of keys a
/// query sees, itself included; all where `None`. The result is float32 `[n, heads * head_dim]`.
///
/// # Errors
/// `Internal` where the shapes, the metadata and the cache do not fit each other.
pub fn paged_attention(
    q: &Tensor,
    cache: &KvLayer,
    meta: &AttentionMetadata,
    scale: f32,
    window: Option<usize>,
) -> Result<Tensor> {
    paged_attention_at(Level::best(), q, cache, meta, scale, window)
}

fn paged_attention_at(
    level: Level,
    q: &Tensor,
    cache: &KvLayer,
    meta: &AttentionMetadata,
    scale: f32,
    window: Option<usize>,
) -> Result<Tensor> {
    let config = *cache.config();
    let &[n, heads, head_dim] = q.dims() else {
        let dims = q.dims();
        return Err(Error::internal(format!("paged_attention: q has shape {dims:?}, must have [n, heads, head_dim]")));
    };
    if head_dim != config.head_dim || heads == 0 || !heads.is_multiple_of(config.kv_heads) || window == Some(0) {
        let message = format!("paged_attention: q has shape {:?}, window {window:?}, the cache {config:?}", q.dims());
        return Err(Error::internal(message));
    }
    let rows = meta.rows(n, config.block_size, config.num_blocks)?;
    let window = window.unwrap_or(usize::MAX);
    if !matches!(q.device(), Device::Cpu) {
        return portable::paged_attention(q, cache, &rows, scale, window);
    }
    let op = PagedAttention { level, cache, rows: &rows, heads, scale, window };
    Ok(with_contiguous_rows(q)?.apply_op1_no_bwd(&op)?)
}

struct PagedAttention<'a> {
    level: Level,
    cache: &'a KvLayer,
    rows: &'a [Row<'a>],
    heads: usize,
    scale: f32,
    window: usize,
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
