//! One row's keys and values of one KV head, wherever their blocks lie.

use std::ops::Range;

use super::{KEY_VECTORS, KEYS, register_tile::Vector, task::KeyTile};
use crate::{
    ids::BlockId,
    kernels::{
        simd::{LANES, Simd},
        store_kv::{KvCacheConfig, element::CacheElement},
    },
};

/// One row's keys and values of one head.
#[derive(Clone, Copy)]
pub(super) struct HeadCache<'a, E> {
    pub(super) keys: &'a [E],
    pub(super) values: &'a [E],
    pub(super) config: KvCacheConfig,
    pub(super) kv_head: usize,
    /// The row's block table.
    pub(super) blocks: &'a [BlockId],
}

/// Neighbouring positions in one block.
pub(super) struct Run {
    /// The head's part of the block, in keys and in values.
    pub(super) part: Range<usize>,
    /// The first position's place in the block.
    pub(super) offset: usize,
    pub(super) positions: Range<usize>,
}

impl<'a, E: CacheElement> HeadCache<'a, E> {
    /// Those of another head.
    pub(super) fn of_head(&self, kv_head: usize) -> Self {
        Self { kv_head, ..*self }
    }

    /// The positions from `positions.start` as far as they lie in one block.
    #[inline(always)]
    pub(super) fn run(&self, positions: Range<usize>) -> Run {
        let KvCacheConfig { block_size, kv_heads, head_dim, .. } = self.config;
        let (index, offset) = (positions.start / block_size, positions.start % block_size);
        let len = block_size * head_dim;
        let start = (self.blocks[index].index() * kv_heads + self.kv_head) * len;
        let end = positions.end.min(positions.start + block_size - offset);
        Run { part: start..start + len, offset, positions: positions.start..end }
    }

    /// The keys from a position to the end of its block, every `block_size` one dimension's.
    #[inline(always)]
    pub(super) fn keys_from(&self, position: usize) -> &'a [E] {
        let run = self.run(position..position + 1);
        &self.keys[run.part][run.offset..]
    }

    /// The values from a position to the end of its block, every `head_dim` one key's.
    #[inline(always)]
    pub(super) fn values_from(&self, position: usize) -> &'a [E] {
        let run = self.run(position..position + 1);
        &self.values[run.part][run.offset * self.config.head_dim..]
    }

    /// Some of the keys' memory, which is where values from a position to the end of its block are in theirs; none where the
    /// row has no such position.
    #[inline(always)]
    pub(super) fn keys_beside(&self, position: usize) -> &'a [E] {
        if position / self.config.block_size >= self.blocks.len() {
            return &[];
        }
        let run = self.run(position..position + 1);
        let part = self.keys.get(run.part).unwrap_or_default();
        part.get(run.offset * self.config.head_dim..).unwrap_or_default()
    }

    /// Widens the tile's keys into `[vector][dim][key]`; those at other positions are left as they are. Meanwhile asks for
    /// the keys that stand a tile further.
    #[inline(always)]
    pub(super) fn widen_keys<S: Simd>(&self, simd: S, tile: &KeyTile, to: &mut [Vector]) {
        let KeyTile { start, ref positions, end } = *tile;
        let KvCacheConfig { block_size, head_dim, .. } = self.config;
        if block_size.is_multiple_of(LANES) {
            for (vector, to) in to.chunks_exact_mut(head_dim).take(KEY_VECTORS).enumerate() {
                let first = start + vector * LANES;
                if first + LANES <= positions.start || first >= positions.end {
                    continue;
                }
                // Whole vectors: a block has room for all their keys, and scores of those not asked for are not used.
                let run = self.run(first..first + LANES);
                let coming = self.run(if first + KEYS < end { first + KEYS..end } else { first..first + 1 });
                let coming = self.keys[coming.part].chunks_exact(block_size).map(|keys| &keys[coming.offset]);
                for ((from, to), coming) in self.keys[run.part].chunks_exact(block_size).zip(to).zip(coming) {
                    simd.prefetch_far(coming);
                    if let Some(from) = from[run.offset..].first_chunk() {
                        simd.store(E::load(simd, from), to);
                    }
                }
            }
            return;
        }
        let mut rest = positions.clone();
        while !rest.is_empty() {
            let run = self.run(rest.clone());
            rest.start = run.positions.end;
            for (dim, from) in self.keys[run.part].chunks_exact(block_size).enumerate() {
                for (key, from) in run.positions.clone().zip(&from[run.offset..]) {
                    let key = key - start;
                    to[key / LANES * head_dim + dim][key % LANES] = from.to_f32();
                }
            }
        }
    }

    /// Widens the tile's values into `[panel][key][dim]`; those at other positions become zeros. Meanwhile asks for the
    /// values that stand a tile further.
    #[inline(always)]
    pub(super) fn widen_values<S: Simd>(&self, simd: S, tile: &KeyTile, to: &mut [Vector]) {
        let KeyTile { start, ref positions, end } = *tile;
        let head_dim = self.config.head_dim;
        for panel in to.chunks_exact_mut(KEYS).take(head_dim.div_ceil(LANES)) {
            panel[..positions.start - start].fill([0.0; LANES]);
            panel[positions.end - start..].fill([0.0; LANES]);
        }
        let mut rest = positions.clone();
        while !rest.is_empty() {
            let run = self.run(rest.clone());
            rest.start = run.positions.end;
            let first = run.positions.start;
            let coming = self.run(if first + KEYS < end { first + KEYS..end } else { first..first + 1 });
            let coming = &self.values[coming.part][coming.offset * head_dim..];
            let rows = self.values[run.part][run.offset * head_dim..].chunks_exact(head_dim);
            for (row, (key, from)) in run.positions.zip(rows).enumerate() {
                let (from, tail) = from.as_chunks::<LANES>();
                let to = &mut to[key - start..];
                for (panel, from) in from.iter().enumerate() {
                    if let Some(coming) = coming.get(row * head_dim + panel * LANES) {
                        simd.prefetch_far(coming);
                    }
                    simd.store(E::load(simd, from), &mut to[panel * KEYS]);
                }
                if !tail.is_empty() {
                    for (from, to) in tail.iter().zip(&mut to[from.len() * KEYS]) {
                        *to = from.to_f32();
                    }
                }
            }
        }
    }
}
