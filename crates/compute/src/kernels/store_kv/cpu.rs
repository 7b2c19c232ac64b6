//! Writes into the cache on the CPU. Heads are shared out over threads, so tokens are written in order.

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Tensor};

use super::{KvCacheConfig, KvLayer, element::CacheElement, with_elements};
use crate::{
    error::Result,
    ids::{BlockId, Slot},
    kernels::{
        cpu_tensor::{Rows, SharedMatrix, with_contiguous_rows},
        pool::for_each_task,
        simd::{Kernel, LANES, Level, Simd},
    },
};

/// Elements that pay for sharing them out: few, because a token's keys lie in cache lines of their own, which must come first.
const WORTH_SHARING: usize = 4 * 1024;

pub(super) fn store(keys: &Tensor, values: &Tensor, cache: &KvLayer, slots: &[Slot]) -> Result<()> {
    let KvCacheConfig { block_size, head_dim, .. } = cache.config;
    let level = Level::best();
    let keys_op = Store { level, config: cache.config, slots, token_stride: 1, dim_stride: block_size };
    cache.keys.inplace_op2(&with_contiguous_rows(keys)?, &keys_op)?;
    let values_op = Store { level, config: cache.config, slots, token_stride: head_dim, dim_stride: 1 };
    Ok(cache.values.inplace_op2(&with_contiguous_rows(values)?, &values_op)?)
}

pub(super) fn copy_blocks(cache: &KvLayer, copies: &[(BlockId, BlockId)]) -> Result<()> {
    let copy =
        CopyBlocks { block_len: cache.config.block_size * cache.config.kv_heads * cache.config.head_dim, copies };
    cache.keys.inplace_op1(&copy)?;
    Ok(cache.values.inplace_op1(&copy)?)
}

/// Where a token and a dimension lie inside a head's part of a block tells keys and values apart.
struct Store<'a> {
    level: Level,
    config: KvCacheConfig,
    slots: &'a [Slot],
    token_stride: usize,
    dim_stride: usize,
}

impl Store<'_> {
    fn store<E: CacheElement>(&self, cache: &mut [E], x: Rows<'_>) {
        let KvCacheConfig { block_size, kv_heads, head_dim, .. } = self.config;
        let head_len = block_size * head_dim;
        let shared = SharedMatrix::new(cache);
        for_each_task(kv_heads, x.count * x.width > WORTH_SHARING, |head| {
            for (token, slot) in self.slots.iter().enumerate() {
                let (block, offset) = (slot.index() / block_size, slot.index() % block_size);
                // SAFETY: a head's part of the cache is written by this task alone, one such slice at a time.
                let part = unsafe { shared.slice_mut((block * kv_heads + head) * head_len, head_len) };
                let from = &x.row(token)[head * head_dim..(head + 1) * head_dim];
                let to = &mut part[offset * self.token_stride..];
                self.level.run(Place { from, to, stride: self.dim_stride });
            }
        });
    }
}

/// Rounds numbers and puts one every `stride`.
struct Place<'a, E> {
    from: &'a [f32],
    to: &'a mut [E],
    stride: usize,
}

impl<E: CacheElement> Kernel for Place<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        // In pieces, so that they are rounded many at once before they are scattered.
        const PIECE: usize = 2 * LANES;
        let Self { from, to, stride } = self;
        for (piece, from) in from.chunks(PIECE).enumerate() {
            let mut rounded = [E::ZEROS[0]; PIECE];
            rounded.iter_mut().zip(from).for_each(|(to, &x)| *to = E::from_f32(x));
            let to = &mut to[piece * PIECE * stride..];
            match stride {
                1 => to[..from.len()].copy_from_slice(&rounded[..from.len()]),
                _ => to.iter_mut().step_by(stride).zip(&rounded[..from.len()]).for_each(|(to, &x)| *to = x),
            }
        }
    }
}

impl InplaceOp2 for Store<'_> {
    fn name(&self) -> &'static str {
        "store_kv"
    }

    fn cpu_fwd(
        &self,
        cache: &mut CpuStorage,
        _: &Layout,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<()> {
        let x = Rows::new(storage, layout)?;
        with_elements!(cache, cache => self.store(cache, x));
        Ok(())
    }
}

struct CopyBlocks<'a> {
    block_len: usize,
    copies: &'a [(BlockId, BlockId)],
}

impl InplaceOp1 for CopyBlocks<'_> {
    fn name(&self) -> &'static str {
        "copy_blocks"
    }

    fn cpu_fwd(&self, cache: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        with_elements!(cache, cache => {
            for (from, to) in self.copies {
                let from = from.index() * self.block_len;
                cache.copy_within(from..from + self.block_len, to.index() * self.block_len);
            }
        });
        Ok(())
    }
}
