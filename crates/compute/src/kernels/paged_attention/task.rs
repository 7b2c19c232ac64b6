//! Some queries of one row and one KV head: what they are, what they see, where their results go.

use std::{mem::MaybeUninit, ops::Range};

use super::{KEYS, Row, Scoring, register_tile::Vector, softmax::Softmax};
use crate::kernels::{
    cpu_tensor::{Rows, SharedMatrix},
    simd::{LANES, Simd},
    store_kv::KvCacheConfig,
};

/// Some queries of one row and one KV head. A query and a query head are a query vector: those of the first query come
/// first, then those of the second, and so on.
#[derive(Clone)]
pub(super) struct Task<'a> {
    pub(super) config: KvCacheConfig,
    pub(super) kv_head: usize,
    pub(super) row: &'a Row<'a>,
    /// In the row.
    pub(super) queries: Range<usize>,
    /// Query heads that share the KV head.
    pub(super) group: usize,
    pub(super) q: Rows<'a>,
    pub(super) scoring: &'a Scoring,
    pub(super) out: &'a SharedMatrix<'a, MaybeUninit<f32>>,
}

/// A tile of keys that a task has use for.
#[derive(Clone)]
pub(super) struct KeyTile {
    /// Its first position, a multiple of [`KEYS`].
    pub(super) start: usize,
    /// The positions in it that some query of the task sees.
    pub(super) positions: Range<usize>,
    /// Where the last tile's positions end: those before it will be needed soon.
    pub(super) end: usize,
}

impl Task<'_> {
    /// The same queries of another KV head.
    pub(super) fn of_head(&self, kv_head: usize) -> Self {
        Self { kv_head, ..self.clone() }
    }

    /// Query vectors.
    #[inline(always)]
    pub(super) fn vectors(&self) -> usize {
        self.queries.len() * self.group
    }

    /// The tiles of keys that it goes through, in order.
    pub(super) fn key_tiles(&self) -> impl Iterator<Item = KeyTile> + use<> {
        let first = self.visible(0).start;
        let end = self.visible(self.vectors() - 1).end;
        (first / KEYS * KEYS..end).step_by(KEYS).map(move |start| KeyTile {
            start,
            positions: first.max(start)..end.min(start + KEYS),
            end,
        })
    }

    /// Positions of the keys that a query vector sees.
    #[inline(always)]
    fn visible(&self, vector: usize) -> Range<usize> {
        let position = self.row.context_len + self.queries.start + vector / self.group;
        (position + 1).saturating_sub(self.scoring.window)..position + 1
    }

    /// Those of them in the tile at `start`, from its beginning.
    #[inline(always)]
    pub(super) fn visible_in_tile(&self, vector: usize, start: usize) -> Range<usize> {
        let Range { start: first, end } = self.visible(vector);
        first.clamp(start, start + KEYS) - start..end.clamp(start, start + KEYS) - start
    }

    /// Puts a softmax for each query vector into `all`, before it has seen a key.
    pub(super) fn begin_softmax(&self, all: &mut Vec<Softmax>) {
        all.clear();
        match &self.scoring.sinks {
            None => all.resize(self.vectors(), Softmax::NEW),
            Some(sinks) => {
                let sinks = &sinks[self.kv_head * self.group..][..self.group];
                all.extend(sinks.iter().cycle().take(self.vectors()).map(|&sink| Softmax::of_sink(sink)));
            }
        }
    }

    /// A query vector.
    #[inline(always)]
    pub(super) fn query(&self, vector: usize) -> &[f32] {
        let (row, column) = self.place(vector);
        &self.q.row(row)[column..column + self.config.head_dim]
    }

    /// Writes a query vector's result: its sums, `[panel]`, divided by a number.
    #[inline(always)]
    pub(super) fn finish<'a, S: Simd>(
        &self,
        simd: S,
        vector: usize,
        sums: impl Iterator<Item = &'a Vector>,
        divisor: f32,
    ) {
        let (row, column) = self.place(vector);
        // SAFETY: the query head of this row is this task's alone, which holds one such slice at a time.
        let out = unsafe { self.out.slice_mut(row * self.q.width + column, self.config.head_dim) };
        for (out, sum) in out.chunks_mut(LANES).zip(sums) {
            let result = simd.div(simd.load(sum), simd.splat(divisor));
            match out.as_chunks_mut::<LANES>().0 {
                [whole] => simd.store_new(result, whole),
                _ => drop(out.write_copy_of_slice(&simd.to_array(result)[..out.len()])),
            }
        }
    }

    /// A query vector's row in the batch and its first column there.
    #[inline(always)]
    fn place(&self, vector: usize) -> (usize, usize) {
        let row = self.row.queries.start + self.queries.start + vector / self.group;
        (row, (self.kv_head * self.group + vector % self.group) * self.config.head_dim)
    }
}
