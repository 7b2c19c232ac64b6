//! A weight in panels, as the CPU's kernels read it.

use std::marker::PhantomData;

use super::{
    aligned::AlignedBytes,
    format::WeightFormat,
    panel::{PanelFormat, STEP, SUPER, SUPER_STEPS, with_format},
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

/// Pairs of panels one after another: `[ceil(out / 64) * 2]` times the [`Head`](PanelFormat::Head)s of a pair's superblocks,
/// then its [`Step`](PanelFormat::Step)s, missing outputs and inputs zero.
pub(super) struct Packed {
    pub(super) format: WeightFormat,
    pub(super) out_features: usize,
    pub(super) in_features: usize,
    bytes: AlignedBytes,
}

impl Packed {
    pub(super) fn new(rows: &[Row<'_>], in_features: usize, format: WeightFormat) -> Result<Self> {
        with_format!(format, F => {
            let steps = in_features.div_ceil(STEP);
            let (head_bytes, pair_bytes) = (Panels::<F>::head_bytes(steps), Panels::<F>::pair_bytes(steps));
            let pairs = rows.len().div_ceil(LANES * PANEL_GROUP) * PANEL_GROUP / PAIR;
            let mut bytes = AlignedBytes::zeroed(pairs * pair_bytes);
            if pair_bytes > 0 {
                // What a superblock takes of a row in the file.
                let part = SUPER / format.block_len() * format.block_bytes();
                let pairs = bytes.as_mut_slice().chunks_exact_mut(pair_bytes).zip(rows.chunks(LANES * PAIR));
                let mut work = pairs.map(|pair| (pair, Ok::<_, Error>(()))).collect::<Vec<_>>();
                let pack = |(pair, rows): &mut (&mut [u8], &[Row<'_>])| {
                    let (heads, steps) = pair.split_at_mut(head_bytes);
                    let mut heads = of_size::<<F as PanelFormat>::Head>(heads);
                    let steps: &mut [<F as PanelFormat>::Step] = bytemuck::cast_slice_mut(steps);
                    for (panel, rows) in rows.chunks(LANES).enumerate() {
                        let rows = rows.iter().map(|row| row.in_format(in_features, format));
                        let rows = rows.collect::<Result<Vec<_>>>()?;
                        for (index, steps) in steps.chunks_mut(SUPER_STEPS).enumerate() {
                            let mut parts = [[].as_slice(); LANES];
                            for (to, row) in parts.iter_mut().zip(&rows) {
                                *to = &row[index * part..row.len().min((index + 1) * part)];
                            }
                            F::pack(&parts[..rows.len()], panel, heads.as_mut().map(|heads| &mut heads[index]), steps);
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
        self.bytes.as_slice().len()
    }

    /// All panels; `F` must be the weight's own format.
    pub(super) fn panels<F: PanelFormat>(&self) -> Panels<'_, F> {
        assert_eq!(F::FORMAT, self.format);
        Panels { bytes: self.bytes.as_slice(), steps: self.in_features.div_ceil(STEP), format: PhantomData }
    }
}

/// Bytes as what they are, unless that has no size.
fn of_size<T: bytemuck::Pod>(bytes: &mut [u8]) -> Option<&mut [T]> {
    (size_of::<T>() > 0).then(|| bytemuck::cast_slice_mut(bytes))
}

/// All panels.
pub(super) struct Panels<'a, F> {
    bytes: &'a [u8],
    steps: usize,
    format: PhantomData<F>,
}

/// A pair of panels.
pub(super) struct Pair<'a, F: PanelFormat> {
    /// One a superblock; none where they have no size.
    pub(super) heads: &'a [F::Head],
    pub(super) steps: &'a [F::Step],
}

impl<F> Clone for Panels<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Panels<'_, F> {}

impl<F: PanelFormat> Clone for Pair<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: PanelFormat> Copy for Pair<'_, F> {}

impl<'a, F: PanelFormat> Panels<'a, F> {
    const fn head_bytes(steps: usize) -> usize {
        steps.div_ceil(SUPER_STEPS) * size_of::<F::Head>()
    }

    const fn pair_bytes(steps: usize) -> usize {
        Self::head_bytes(steps) + steps * size_of::<F::Step>()
    }

    /// Panels `PAIR * pair` and the next.
    #[inline(always)]
    pub(super) fn pair(&self, pair: usize) -> Pair<'a, F> {
        let len = Self::pair_bytes(self.steps);
        let (heads, steps) = self.bytes[pair * len..(pair + 1) * len].split_at(Self::head_bytes(self.steps));
        let heads = if const { size_of::<F::Head>() == 0 } { &[] } else { bytemuck::cast_slice(heads) };
        Pair { heads, steps: bytemuck::cast_slice(steps) }
    }
}

impl<F: PanelFormat> Pair<'_, F> {
    /// What passes read behind a superblock, to be asked for: the next one's head and steps, in this pair or, behind its last, in
    /// the one that follows `on` pairs later, if that is there.
    #[inline(always)]
    pub(super) fn coming(&self, superblock: usize, on: usize) -> (*const F::Head, *const F::Step) {
        let len = size_of_val(self.heads) + size_of_val(self.steps);
        let (superblock, bytes) = if superblock + 1 < self.heads.len() { (superblock + 1, 0) } else { (0, on * len) };
        let steps = self.steps.as_ptr().wrapping_add(superblock * SUPER_STEPS);
        (self.heads.as_ptr().wrapping_add(superblock).wrapping_byte_add(bytes), steps.wrapping_byte_add(bytes))
    }
}
