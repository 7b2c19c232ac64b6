//! A weight in panels, as the CPU's kernels read it.

use super::{
    format::WeightFormat,
    panel::{PanelFormat, STEP, with_format},
    rows::Row,
};
use crate::{
    error::{Error, Result},
    kernels::{pool::for_each_mut, simd::LANES},
};

/// Panels that some passes read together; their number is rounded up to a multiple of it.
pub(super) const PANEL_GROUP: usize = 4;
/// Panels whose blocks lie in turn: what passes with tiles read, in the order in which they read it.
pub(super) const PAIR: usize = 2;

/// Pairs of panels one after another: `[ceil(out / 64) * 2][blocks a panel]` of [`PanelFormat::Block`], missing outputs and
/// inputs zero.
pub(super) struct Packed {
    pub(super) format: WeightFormat,
    pub(super) out_features: usize,
    pub(super) in_features: usize,
    bytes: AlignedBytes,
}

impl Packed {
    pub(super) fn new(rows: &[Row<'_>], in_features: usize, format: WeightFormat) -> Result<Self> {
        with_format!(format, F => {
            let pair_bytes = in_features.div_ceil(STEP * F::STEPS) * size_of::<<F as PanelFormat>::Block>();
            let pairs = rows.len().div_ceil(LANES * PANEL_GROUP) * PANEL_GROUP / PAIR;
            let mut bytes = AlignedBytes::zeroed(pairs * pair_bytes);
            if pair_bytes > 0 {
                // What a packed block takes of a row in the file.
                let part = STEP * F::STEPS / format.block_len() * format.block_bytes();
                let pairs = bytes.as_mut_slice().chunks_exact_mut(pair_bytes).zip(rows.chunks(LANES * PAIR));
                let mut work = pairs.map(|pair| (pair, Ok::<_, Error>(()))).collect::<Vec<_>>();
                let pack = |(pair, rows): &mut (&mut [u8], &[Row<'_>])| {
                    let blocks: &mut [<F as PanelFormat>::Block] = bytemuck::cast_slice_mut(pair);
                    for (panel, rows) in rows.chunks(LANES).enumerate() {
                        let rows = rows.iter().map(|row| row.in_format(in_features, format));
                        let rows = rows.collect::<Result<Vec<_>>>()?;
                        for (index, block) in blocks.iter_mut().enumerate() {
                            let mut parts = [[].as_slice(); LANES];
                            for (to, row) in parts.iter_mut().zip(&rows) {
                                *to = &row[index * part..row.len().min((index + 1) * part)];
                            }
                            F::pack(&parts[..rows.len()], panel, block);
                        }
                    }
                    Ok(())
                };
                for_each_mut(&mut work, |(pair, outcome)| *outcome = pack(pair));
                work.into_iter().try_for_each(|(_, outcome)| outcome)?;
            }
            Ok(Self { format, out_features: rows.len(), in_features, bytes })
        })
    }

    /// Bytes of all panels.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len
    }

    /// All panels; `F` must be the weight's own format.
    pub(super) fn panels<F: PanelFormat>(&self) -> Panels<'_, F> {
        assert_eq!(F::FORMAT, self.format);
        let blocks = bytemuck::cast_slice(self.bytes.as_slice());
        Panels { blocks, blocks_a_panel: self.in_features.div_ceil(STEP * F::STEPS) }
    }
}

/// The blocks of all panels.
pub(super) struct Panels<'a, F: PanelFormat> {
    blocks: &'a [F::Block],
    blocks_a_panel: usize,
}

impl<F: PanelFormat> Clone for Panels<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: PanelFormat> Copy for Panels<'_, F> {}

impl<'a, F: PanelFormat> Panels<'a, F> {
    /// The blocks of panels `PAIR * pair` and the next.
    #[inline(always)]
    pub(super) fn pair(&self, pair: usize) -> &'a [F::Block] {
        &self.blocks[pair * self.blocks_a_panel..][..self.blocks_a_panel]
    }
}

/// Bytes at a cache line's boundary, that the operating system zeroes when they are first touched.
struct AlignedBytes {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBytes {
    const ALIGNMENT: usize = 64;

    fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + Self::ALIGNMENT];
        let start = bytes.as_ptr().align_offset(Self::ALIGNMENT);
        Self { bytes, start, len }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }
}
