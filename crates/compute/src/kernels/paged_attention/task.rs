//! Some queries and one KV head: what they are, what they see, where their results go.

use std::{cell::RefCell, mem::MaybeUninit, ops::Range};

use super::{
    KEYS, Scoring,
    carried::Carried,
    cascade::{ALL, Query, Stretch},
    register_tile::{GROUP, Vector},
    softmax::Softmax,
};
use crate::kernels::{
    cpu_tensor::{Rows, SharedMatrix},
    simd::{LANES, Simd},
    store_kv::KvCacheConfig,
};

/// A stretch of keys of one KV head, which some queries of a unit go through. A query and a query head are a query vector:
/// those of the first query come first, then those of the second, and so on.
#[derive(Clone)]
pub(super) struct Task<'a> {
    pub(super) config: KvCacheConfig,
    pub(super) kv_head: usize,
    /// The unit's queries.
    pub(super) unit: &'a [Query],
    /// Which of the unit's queries, from its first, and which keys.
    pub(super) stretch: &'a Stretch,
    /// Query heads that share the KV head.
    pub(super) group: usize,
    pub(super) q: Rows<'a>,
    pub(super) scoring: &'a Scoring,
    /// Where the unit's query vectors leave what they have come to before their last stretch, `[query][query head]`.
    pub(super) carried: &'a RefCell<Carried>,
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

impl KeyTile {
    /// The vectors of keys in it that hold some of the positions.
    #[inline(always)]
    pub(super) fn vectors(&self) -> Range<usize> {
        (self.positions.start - self.start) / LANES..(self.positions.end - self.start).div_ceil(LANES)
    }

    /// Where the groups of keys begin whose products are summed together, and which hold some of the positions.
    #[inline(always)]
    pub(super) fn groups(&self) -> impl Iterator<Item = usize> + use<> {
        (self.positions.start / GROUP * GROUP..self.positions.end).step_by(GROUP)
    }
}

impl Task<'_> {
    /// The same queries of another KV head.
    pub(super) fn of_head(&self, kv_head: usize) -> Self {
        Self { kv_head, ..self.clone() }
    }

    /// Query vectors.
    #[inline(always)]
    pub(super) fn vectors(&self) -> usize {
        self.stretch.queries.len() * self.group
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
        let (Query { position, .. }, keys) = (self.query_of(vector), &self.stretch.keys);
        (position + 1).saturating_sub(self.scoring.window).max(keys.start)..keys.end.min(position + 1)
    }

    /// Those of them in the tile at `start`, from its beginning.
    #[inline(always)]
    pub(super) fn visible_in_tile(&self, vector: usize, start: usize) -> Range<usize> {
        let Range { start: first, end } = self.visible(vector);
        first.clamp(start, start + KEYS) - start..end.clamp(start, start + KEYS) - start
    }

    /// Puts a softmax for each query vector into `all`: before it has seen a key, or as it was carried here, where `sums` is
    /// called with what the query vector has summed.
    pub(super) fn begin(&self, all: &mut Vec<Softmax>, mut sums: impl FnMut(usize, &[Vector])) {
        all.clear();
        if self.stretch.keys.start > 0 {
            let carried = self.carried.borrow();
            all.extend((0..self.vectors()).map(|vector| {
                let (softmax, summed) = carried.get(self.place_in_unit(vector));
                sums(vector, summed);
                softmax
            }));
            return;
        }
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

    /// Writes a query vector's result, its sums, `[panel]`, divided by those of its weights; or has both carried on.
    #[inline(always)]
    pub(super) fn finish<'a, S: Simd>(
        &self,
        simd: S,
        vector: usize,
        sums: impl Iterator<Item = &'a Vector>,
        softmax: Softmax,
    ) {
        if self.stretch.keys.end < ALL {
            return self.carried.borrow_mut().put(simd, self.place_in_unit(vector), softmax, sums);
        }
        let divisor = softmax.total(simd);
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

    /// The query of a query vector.
    #[inline(always)]
    fn query_of(&self, vector: usize) -> Query {
        self.unit[self.stretch.queries.start + vector / self.group]
    }

    /// A query vector's place among those of its unit.
    #[inline(always)]
    fn place_in_unit(&self, vector: usize) -> usize {
        let query = self.stretch.queries.start + vector / self.group;
        (query * self.config.kv_heads + self.kv_head) * self.group + vector % self.group
    }

    /// A query vector's row in the batch and its first column there.
    #[inline(always)]
    fn place(&self, vector: usize) -> (usize, usize) {
        (self.query_of(vector).index, (self.kv_head * self.group + vector % self.group) * self.config.head_dim)
    }
}
