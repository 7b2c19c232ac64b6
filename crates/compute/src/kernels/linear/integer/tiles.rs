//! Products of bytes with Intel's tiles.
//!
//! A weight times its group's factor has 16 bits: a signed high byte and a low one without a sign, which are tiles of their
//! own, so that tiles sum a superblock. A superblock of a pair of panels is made such tiles, which stay in the first-level
//! cache, and all tiles of rows are taken over them, with the sums put aside in between; meanwhile the next superblock's
//! weights are asked for. While tiles take a product, vectors add what the last one gave.

use std::{cell::Cell, ops::Range};

use super::{
    super::{
        ahead::Ahead,
        outputs::{Outputs, WRITTEN},
        packed::{PAIR, PANEL_GROUP, Panels, Superblock},
        panel::{QUADS, Quantized, STEP, SUPER_STEPS},
    },
    inputs::{Line, PART, PARTS, Rows},
};
use crate::kernels::simd::{
    LANES, Simd,
    amx::{Sums, TILE_ROWS, Tile},
    amx_integers::{Bytes, IntegerSums, IntegerTileKernel, IntegerTiles},
    avx512::Avx512,
};

/// Rows a tile.
pub(super) const HEIGHT: usize = TILE_ROWS;
/// Bytes of rows that stay in the second-level cache while the weights pass by.
const ROW_BLOCK_BYTES: usize = 1024 * 1024;
/// Most tiles of rows a block.
const ROW_BLOCK_TILES: usize = 32;
/// Most tiles of rows that leave the asking for weights to their unpacking.
const FEW_TILES: usize = 2;

thread_local! {
    /// Where the last sums were put aside, for the next.
    static SUMS: Cell<Vec<TileSums>> = const { Cell::new(Vec::new()) };
}

/// A tile of rows' sums of the panels that are written together.
type TileSums = [[Sums; PAIR]; WRITTEN];

/// What passes share: weights as they are multiplied, and what two products gave.
struct Room {
    chunks: [Chunk; PAIR],
    products: [Product; 2],
}

/// Some groups of panels, all rows.
pub(super) struct Task<'a, F: Quantized> {
    pub(super) rows: &'a Rows,
    pub(super) panels: Panels<'a, F>,
    pub(super) groups: Range<usize>,
    pub(super) out: &'a Outputs<'a>,
}

/// A superblock of a panel as it is multiplied.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Chunk {
    /// High and low bytes.
    weights: [[Bytes; 2]; PARTS],
    /// Each step's factors of minima in bfloat16, twice, then zeros.
    min_factors: Tile,
    units: [f32; LANES],
    minus_min_units: [f32; LANES],
}

/// What a product gives before it is added: sums of high and of low bytes, and of minima.
#[repr(C, align(64))]
struct Product {
    sums: [IntegerSums; 2],
    minima: Sums,
}

impl Chunk {
    const ZERO: Self = Self {
        weights: [[Bytes::ZERO; 2]; PARTS],
        min_factors: Tile::ZERO,
        units: [0.0; LANES],
        minus_min_units: [0.0; LANES],
    };

    /// Takes a superblock of a panel. Behind its last step stays what was there: zeros are multiplied with that.
    #[inline(always)]
    fn fill<F: Quantized>(
        &mut self,
        simd: Avx512,
        Superblock { head, steps }: Superblock<'_, F>,
        panel: usize,
        ahead: &mut Ahead,
    ) {
        simd.store(F::units(simd, head, panel), &mut self.units);
        for (index, step) in steps.iter().enumerate() {
            let weights = F::unsigned(simd, step, panel);
            let [high, low] = &mut self.weights[index / (SUPER_STEPS / PARTS)];
            let first = index % (SUPER_STEPS / PARTS) * QUADS;
            for group in 0..const { STEP / F::GROUP } {
                let factors = F::factors(simd, step, panel, group);
                for k in group * const { F::GROUP / 4 }..(group + 1) * const { F::GROUP / 4 } {
                    let weights = simd.sub_bytes(weights[k], F::OFFSET);
                    simd.store_products(weights, factors, &mut high.0[first + k], &mut low.0[first + k]);
                }
            }
            ahead.ask(simd);
        }
        if const { F::HAS_MINS } {
            let minus = simd.sub(simd.zero(), F::min_units(simd, head, panel));
            simd.store(minus, &mut self.minus_min_units);
            for (step, to) in steps.iter().zip(&mut self.min_factors.0) {
                // So few bits that their bfloat16 is the upper half of the float.
                let factors = simd.as_integers(simd.to_f32(F::min_factors(simd, step, panel)));
                let twice = simd.or(factors, simd.shr::<16>(factors));
                simd.store(simd.as_floats(twice), bytemuck::cast_mut(to));
            }
        }
    }
}

impl Product {
    const ZERO: Self = Self { sums: [IntegerSums::ZERO; 2], minima: Sums::ZERO };

    /// Adds some of sixteen rows to the sums, as [`super::vector`] does.
    #[inline(always)]
    fn add<F: Quantized>(
        &self,
        simd: Avx512,
        chunk: &Chunk,
        scales: &[f32; HEIGHT],
        rows: Range<usize>,
        sums: &mut Sums,
    ) {
        let (units, minus) = (simd.load(&chunk.units), simd.load(&chunk.minus_min_units));
        let [high, low] = &self.sums;
        for r in rows {
            let [high, low] = [&high.0[r], &low.0[r]].map(bytemuck::cast_ref::<_, [f32; LANES]>);
            let [high, low] = [simd.as_integers(simd.load(high)), simd.as_integers(simd.load(low))];
            let mut product = simd.mul(simd.to_f32(simd.add_integers(simd.shl::<8>(high), low)), units);
            if const { F::HAS_MINS } {
                product = simd.fma(simd.load(&self.minima.0[r]), minus, product);
            }
            simd.store(simd.fma(product, simd.splat(scales[r]), simd.load(&sums.0[r])), &mut sums.0[r]);
        }
    }
}

impl<F: Quantized> IntegerTileKernel for Task<'_, F> {
    fn rows(&self) -> usize {
        self.rows.count
    }

    #[inline(always)]
    fn run(self, simd: Avx512, tiles: &mut IntegerTiles) {
        let tile_bytes = self.rows.superblocks() * HEIGHT * PARTS * PART;
        let count = self.rows.tiles();
        let most = (ROW_BLOCK_BYTES / tile_bytes.max(1)).clamp(1, ROW_BLOCK_TILES);
        // Blocks of about the same size.
        let block = count.div_ceil(count.div_ceil(most).max(1)).max(1);
        let mut sums = SUMS.take();
        sums.resize(sums.len().max(count.min(block)), [[Sums::ZERO; PAIR]; WRITTEN]);
        let mut room = Room { chunks: [Chunk::ZERO; PAIR], products: [Product::ZERO, Product::ZERO] };
        let pairs = self.groups.start * PANEL_GROUP / PAIR..self.groups.end * PANEL_GROUP / PAIR;
        for first in (0..count).step_by(block) {
            let rows = first..count.min(first + block);
            for begin in pairs.clone().step_by(WRITTEN) {
                let some = begin..pairs.end.min(begin + WRITTEN);
                for (which, pair) in some.clone().enumerate() {
                    self.pair(simd, tiles, pair, rows.clone(), &mut room, (&mut sums, which));
                }
                for (tile, sums) in rows.clone().zip(&sums) {
                    let (rows, panels) = (self.rows.rows_of(tile), sums.as_flattened());
                    self.out.store_panels(simd, rows, begin * PAIR, some.len() * PAIR, |panel| &panels[panel].0);
                }
            }
        }
        SUMS.set(sums);
    }
}

impl<F: Quantized> Task<'_, F> {
    /// Some tiles of rows over a pair of panels, `which` of those that are written together.
    #[inline(always)]
    fn pair(
        &self,
        simd: Avx512,
        tiles: &mut IntegerTiles,
        pair: usize,
        rows: Range<usize>,
        room: &mut Room,
        (sums, which): (&mut [TileSums], usize),
    ) {
        let panels = self.panels.pair(pair);
        for sums in &mut sums[..rows.len()] {
            sums[which] = [Sums::ZERO; PAIR];
        }
        for (index, superblock) in panels.superblocks().enumerate() {
            let (steps, (next, bytes)) = (superblock.steps, superblock.coming());
            let (fills, products) =
                if rows.len() <= FEW_TILES { (PAIR * steps.len(), 0) } else { (0, rows.len() * PAIR * PARTS) };
            let mut ahead = Ahead::new(next, bytes, fills);
            for (panel, chunk) in room.chunks.iter_mut().enumerate() {
                chunk.fill::<F>(simd, superblock, panel, &mut ahead);
            }
            let ahead = Ahead::new(next, bytes, products);
            let parts = steps.len().div_ceil(SUPER_STEPS / PARTS);
            self.superblock(simd, tiles, (index, parts), rows.clone(), room, (sums, which), ahead);
        }
    }

    /// Some tiles of rows over a superblock, each product's sums added while the next one is taken.
    #[inline(always)]
    fn superblock(
        &self,
        simd: Avx512,
        tiles: &mut IntegerTiles,
        (index, parts): (usize, usize),
        rows: Range<usize>,
        Room { chunks, products }: &mut Room,
        (sums, which): (&mut [TileSums], usize),
        mut ahead: Ahead,
    ) {
        let count = rows.len() * PAIR;
        for product in 0..=count {
            let [even, odd] = products;
            let (to, from) = if product % 2 == 0 { (even, odd) } else { (odd, even) };
            let next = (product < count).then(|| (rows.start + product / PAIR, &chunks[product % PAIR]));
            if next.is_some() {
                tiles.begin(product % 2 == 1);
            }
            let before = product.checked_sub(1);
            for part in 0..PARTS {
                if let Some((tile, chunk)) = next.filter(|_| part < parts) {
                    let x = self.rows.superblock::<HEIGHT>(tile, index).bytes;
                    tiles.add(product % 2 == 1, lines(&x[part]), &chunk.weights[part]);
                }
                if let Some(before) = before {
                    let (tile, panel) = (before / PAIR, before % PAIR);
                    let scales = self.rows.superblock::<HEIGHT>(rows.start + tile, index).scales;
                    let some = part * (HEIGHT / PARTS)..(part + 1) * (HEIGHT / PARTS);
                    from.add::<F>(simd, &chunks[panel], scales, some, &mut sums[tile][which][panel]);
                }
                ahead.ask(simd);
            }
            if let Some((tile, chunk)) = next {
                if const { F::HAS_MINS } {
                    let x = self.rows.halves::<HEIGHT>(tile, index);
                    tiles.minima(lines(x), &chunk.min_factors, &mut to.minima);
                }
                tiles.end(product % 2 == 1, &mut to.sums);
            }
        }
    }
}

#[inline(always)]
fn lines(rows: &[Line; HEIGHT]) -> &[[u8; PART]; HEIGHT] {
    bytemuck::cast_ref(rows)
}
