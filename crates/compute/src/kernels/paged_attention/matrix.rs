//! Many query vectors over tiles of keys and values that Intel's tiles multiply: queries and weights are rounded to
//! bfloat16, keys and values are that, or no more, already.
//!
//! Query vectors go in pairs of sixteen. A tile of 64 keys is laid out once for all of a task's pairs; a pair's scores
//! become weights in registers and tiles again, and its sums of values are put aside between two tiles of keys.

use super::{
    KEY_VECTORS, KEYS, head_cache::HeadCache, register_tile::GROUP, softmax::Softmax, task::KeyTile, task::Task,
};
use crate::kernels::{
    simd::{
        LANES, Simd,
        amx::{Amx, Sums, TILE_ROWS, Tile, TileKernel, TileSimd, Tiles},
    },
    store_kv::{KvCacheConfig, element::CacheElement},
};

/// Query vectors a task, at most: so many that laying out keys and values is little beside multiplying them.
pub(super) const VECTORS_A_TASK: usize = 128;
/// Tiles that stand beside each other in a product.
const PAIR: usize = 2;
/// Query vectors of a pair of tiles.
const PAIR_ROWS: usize = PAIR * TILE_ROWS;
/// Pairs of key vectors in a tile of keys.
const KEY_PAIRS: usize = KEY_VECTORS / PAIR;
/// Groups of keys in a tile of keys.
const KEY_GROUPS: usize = KEYS / GROUP;

/// Buffers of one thread. A head's dimensions are taken in `parts` of 32, the last filled up with zeros.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[pair of query tiles][part][query tile]`.
    queries: Vec<[Tile; PAIR]>,
    /// `[pair of key vectors][part][key vector]`.
    keys: Vec<[Tile; PAIR]>,
    /// `[part][group of keys][half of the part]`.
    values: Vec<[Tile; PAIR]>,
    /// `[pair of query tiles][part][query tile][half of the part]`.
    sums: Vec<[Sums; PAIR * PAIR]>,
    /// One a query vector.
    softmax: Vec<Softmax>,
}

/// Computes a task.
pub(super) fn run<E: CacheElement>(amx: Amx, task: &Task<'_>, cache: &HeadCache<'_, E>, scratch: &mut Scratch) {
    amx.run(Matrix { task, cache, scratch, parts: task.config.head_dim.div_ceil(GROUP) });
}

struct Matrix<'a, E> {
    task: &'a Task<'a>,
    cache: &'a HeadCache<'a, E>,
    scratch: &'a mut Scratch,
    parts: usize,
}

impl<E: CacheElement> TileKernel for Matrix<'_, E> {
    #[inline(always)]
    fn run(mut self, simd: TileSimd, tiles: &mut Tiles) {
        self.begin(simd);
        for tile in self.task.key_tiles() {
            self.lay_out_keys(simd, &tile);
            self.lay_out_values(simd, &tile);
            for pair in 0..self.task.vectors().div_ceil(PAIR_ROWS) {
                self.pair(simd, tiles, &tile, pair);
            }
        }
        self.finish(simd);
    }
}

impl<E: CacheElement> Matrix<'_, E> {
    /// Lays out the queries.
    #[inline(always)]
    fn begin(&mut self, simd: TileSimd) {
        let (vectors, parts) = (self.task.vectors(), self.parts);
        let pairs = vectors.div_ceil(PAIR_ROWS);
        let Scratch { queries, keys, values, sums, softmax } = &mut *self.scratch;
        for (tiles, count) in [(&mut *queries, pairs * parts), (keys, KEY_PAIRS * parts), (values, parts * KEY_GROUPS)]
        {
            tiles.clear();
            tiles.resize(count, [Tile::ZERO; PAIR]);
        }
        sums.clear();
        sums.resize(pairs * parts, [Sums::ZERO; PAIR * PAIR]);
        self.task.begin(softmax, |vector, summed| {
            for (panel, &sum) in summed.iter().enumerate() {
                let (pair, row) = (vector / PAIR_ROWS, vector % PAIR_ROWS);
                let sums = &mut sums[pair * parts + panel / PAIR][row / TILE_ROWS * PAIR + panel % PAIR];
                sums.0[row % TILE_ROWS] = sum;
            }
        });
        for vector in 0..vectors {
            let (pair, row) = (vector / PAIR_ROWS, vector % PAIR_ROWS);
            let (whole, rest) = self.task.query(vector).as_chunks::<GROUP>();
            let mut last = [0.0; GROUP];
            last[..rest.len()].copy_from_slice(rest);
            let to = &mut queries[pair * parts..(pair + 1) * parts];
            for (tiles, part) in to.iter_mut().zip(whole.iter().chain([&last])) {
                simd.store_row(part, &mut tiles[row / TILE_ROWS].0[row % TILE_ROWS]);
            }
        }
    }

    /// Lays out the tile's keys, two dimensions beside each other; those at other positions are left as they are.
    #[inline(always)]
    fn lay_out_keys(&mut self, simd: TileSimd, tile: &KeyTile) {
        let KvCacheConfig { block_size, head_dim, .. } = self.task.config;
        let (cache, parts) = (self.cache, self.parts);
        let keys = &mut self.scratch.keys;
        let zeros = E::ZEROS;
        if block_size.is_multiple_of(LANES) {
            for vector in 0..KEY_VECTORS {
                let first = tile.start + vector * LANES;
                if first + LANES <= tile.positions.start || first >= tile.positions.end {
                    continue;
                }
                // Whole vectors: a block has room for all their keys, and scores of those not asked for are not used.
                let run = cache.run(first..first + LANES);
                let mut dims =
                    cache.keys[run.part].chunks_exact(block_size).map(|keys| keys[run.offset..].first_chunk());
                for pair in 0..head_dim.div_ceil(2) {
                    let (part, row) = (pair / TILE_ROWS, pair % TILE_ROWS);
                    let to = &mut keys[vector / PAIR * parts + part][vector % PAIR].0[row];
                    let [even, odd] = [(); 2].map(|()| dims.next().flatten().unwrap_or(&zeros));
                    E::store_pairs(simd, even, odd, to);
                }
            }
            return;
        }
        let mut rest = tile.positions.clone();
        while !rest.is_empty() {
            let run = cache.run(rest.clone());
            rest.start = run.positions.end;
            for (dim, from) in cache.keys[run.part].chunks_exact(block_size).enumerate() {
                for (key, from) in run.positions.clone().zip(&from[run.offset..]) {
                    let (vector, lane) = ((key - tile.start) / LANES, key % LANES);
                    let tile = &mut keys[vector / PAIR * parts + dim / GROUP][vector % PAIR];
                    tile.0[dim % GROUP / 2][2 * lane + dim % 2] = half::bf16::from_f32(from.to_f32()).to_bits();
                }
            }
        }
    }

    /// Lays out the tile's values, two keys beside each other; those at other positions become zeros.
    #[inline(always)]
    fn lay_out_values(&mut self, simd: TileSimd, tile: &KeyTile) {
        let head_dim = self.task.config.head_dim;
        for pair in 0..KEYS / 2 {
            let positions = [0, 1].map(|k| tile.start + 2 * pair + k);
            if positions[0] >= tile.positions.end.next_multiple_of(GROUP) {
                break;
            }
            let rows = positions.map(|position| match tile.positions.contains(&position) {
                true => &self.cache.values_from(position)[..head_dim],
                false => &[],
            });
            let (group, row) = (pair / TILE_ROWS, pair % TILE_ROWS);
            for panel in 0..head_dim.div_ceil(LANES) {
                let to = &mut self.scratch.values[panel / PAIR * KEY_GROUPS + group][panel % PAIR].0[row];
                let whole = rows.map(|row| row.get(panel * LANES..).and_then(<[E]>::first_chunk));
                if let [Some(even), Some(odd)] = whole {
                    E::store_pairs(simd, even, odd, to);
                    continue;
                }
                let [even, odd] = rows.map(|row| {
                    let mut values = E::ZEROS;
                    let row = row.get(panel * LANES..).unwrap_or_default();
                    values.iter_mut().zip(row).for_each(|(to, &from)| *to = from);
                    values
                });
                E::store_pairs(simd, &even, &odd, to);
            }
        }
    }

    /// Takes a pair of query tiles over the keys and values.
    #[inline(always)]
    fn pair(&mut self, simd: TileSimd, tiles: &mut Tiles, tile: &KeyTile, pair: usize) {
        let (task, parts, avx512) = (self.task, self.parts, simd.avx512());
        let Scratch { queries, keys, values, sums, softmax } = &mut *self.scratch;
        let vectors = pair * PAIR_ROWS..task.vectors().min((pair + 1) * PAIR_ROWS);
        let seen = |vector| task.visible_in_tile(vector, tile.start);
        // The last sees the latest keys, the first the earliest.
        let seen_until = seen(vectors.end - 1).end;
        if seen_until == 0 || seen(vectors.start).start == KEYS {
            return;
        }
        let queries = &queries[pair * parts..(pair + 1) * parts];
        let sums = &mut sums[pair * parts..(pair + 1) * parts];
        // `[pair of key vectors][query tile][key vector]`.
        let mut scores = [[Sums::ZERO; PAIR * PAIR]; KEY_PAIRS];
        for (keys, scores) in keys.chunks_exact(parts).zip(&mut scores).take(seen_until.div_ceil(PAIR * LANES)) {
            tiles.multiply::<1, 0>(true, queries, keys, scores, std::ptr::null());
        }
        // `[group of keys][query tile]`.
        let mut weights = [[Tile::ZERO; PAIR]; KEY_GROUPS];
        for vector in vectors.clone() {
            let (which, row) = ((vector - vectors.start) / TILE_ROWS, vector % TILE_ROWS);
            let visible = seen(vector);
            if visible.is_empty() {
                continue;
            }
            let mut scored = [avx512.zero(); KEY_VECTORS];
            for (k, scored) in scored.iter_mut().enumerate() {
                *scored = avx512.load(&scores[k / PAIR][which * PAIR + k % PAIR].0[row]);
            }
            let (weighed, decay) = softmax[vector].weigh::<_, true>(avx512, task.scoring, visible, scored);
            for (both, weights) in weighed.as_chunks::<2>().0.iter().zip(&mut weights) {
                simd.store_rounded(both[0], both[1], &mut weights[which].0[row]);
            }
            if let Some(decay) = decay {
                for sum in sums.iter_mut().flat_map(|sums| &mut sums[which * PAIR..(which + 1) * PAIR]) {
                    let sum = &mut sum.0[row];
                    avx512.store(avx512.mul(avx512.load(sum), decay), sum);
                }
            }
        }
        let groups = seen_until.div_ceil(GROUP);
        for (values, sums) in values.chunks_exact(KEY_GROUPS).zip(sums) {
            tiles.multiply::<1, 0>(false, &weights[..groups], &values[..groups], sums, std::ptr::null());
        }
    }

    /// Divides the sums by the weights.
    #[inline(always)]
    fn finish(&self, simd: TileSimd) {
        let avx512 = simd.avx512();
        for (vector, &softmax) in self.scratch.softmax.iter().enumerate() {
            let (pair, row) = (vector / PAIR_ROWS, vector % PAIR_ROWS);
            let sums = &self.scratch.sums[pair * self.parts..(pair + 1) * self.parts];
            let tile = row / TILE_ROWS * PAIR..(row / TILE_ROWS + 1) * PAIR;
            let sums = sums.iter().flat_map(|sums| &sums[tile.clone()]).map(|sums| &sums.0[row % TILE_ROWS]);
            self.task.finish(avx512, vector, sums, softmax);
        }
    }
}
