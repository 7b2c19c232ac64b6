//! A weight in panels, as the CPU's kernels read it.

use std::marker::PhantomData;

use super::{
    ahead::LINE,
    aligned::AlignedBytes,
    format::WeightFormat,
    panel::{Float, PanelFormat, STEP, SUPER, SUPER_STEPS, with_format},
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

/// Pairs of panels one after another, `[ceil(out / 64) * 2]`, a pair as its superblocks one after another: a
/// [`Head`](PanelFormat::Head), then [`Step`](PanelFormat::Step)s, eight or, at the end, what is left. Missing outputs and inputs
/// are zero. Thus a pass over a pair reads one stream from its begin to its end.
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
            let pair_bytes = Panels::<F>::pair_bytes(steps);
            let pairs = rows.len().div_ceil(LANES * PANEL_GROUP) * PANEL_GROUP / PAIR;
            let mut bytes = AlignedBytes::zeroed(pairs * pair_bytes);
            if pair_bytes > 0 {
                // What a superblock takes of a row in the file.
                let part = SUPER / format.block_len() * format.block_bytes();
                let pairs = bytes.as_mut_slice().chunks_exact_mut(pair_bytes).zip(rows.chunks(LANES * PAIR));
                let mut work = pairs.map(|pair| (pair, Ok::<_, Error>(()))).collect::<Vec<_>>();
                let pack = |(pair, rows): &mut (&mut [u8], &[Row<'_>])| {
                    for (panel, rows) in rows.chunks(LANES).enumerate() {
                        let rows = rows.iter().map(|row| row.in_format(in_features, format));
                        let rows = rows.collect::<Result<Vec<_>>>()?;
                        for (index, superblock) in pair.chunks_mut(Panels::<F>::SUPER_BYTES).enumerate() {
                            let (head, steps) = superblock.split_at_mut(size_of::<<F as PanelFormat>::Head>());
                            let mut parts = [[].as_slice(); LANES];
                            for (to, row) in parts.iter_mut().zip(&rows) {
                                *to = &row[index * part..row.len().min((index + 1) * part)];
                            }
                            let (head, steps) = (bytemuck::from_bytes_mut(head), bytemuck::cast_slice_mut(steps));
                            F::pack(&parts[..rows.len()], panel, head, steps);
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

/// All panels.
pub(super) struct Panels<'a, F> {
    bytes: &'a [u8],
    steps: usize,
    format: PhantomData<F>,
}

/// A pair of panels.
pub(super) struct Pair<'a, F: PanelFormat> {
    bytes: &'a [u8],
    format: PhantomData<F>,
}

/// A superblock of a pair of panels.
pub(super) struct Superblock<'a, F: PanelFormat> {
    pub(super) head: &'a F::Head,
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

impl<F: PanelFormat> Clone for Superblock<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: PanelFormat> Copy for Superblock<'_, F> {}

impl<'a, F: PanelFormat> Panels<'a, F> {
    const SUPER_BYTES: usize = {
        let (head, step) = (size_of::<F::Head>(), size_of::<F::Step>());
        assert!(head.is_multiple_of(LINE) && step.is_multiple_of(LINE), "no line holds parts of two");
        head + SUPER_STEPS * step
    };

    const fn pair_bytes(steps: usize) -> usize {
        steps.div_ceil(SUPER_STEPS) * size_of::<F::Head>() + steps * size_of::<F::Step>()
    }

    /// Panels `PAIR * pair` and the next.
    #[inline(always)]
    pub(super) fn pair(&self, pair: usize) -> Pair<'a, F> {
        let len = Self::pair_bytes(self.steps);
        Pair { bytes: &self.bytes[pair * len..(pair + 1) * len], format: PhantomData }
    }
}

impl<'a, F: PanelFormat> Pair<'a, F> {
    /// Its superblocks, inputs ascending.
    #[inline(always)]
    pub(super) fn superblocks(&self) -> impl ExactSizeIterator<Item = Superblock<'a, F>> + use<'a, F> {
        self.bytes.chunks(Panels::<F>::SUPER_BYTES).map(Superblock::new)
    }
}

impl<'a, F: Float> Pair<'a, F> {
    /// All its steps, between which nothing else lies.
    #[inline(always)]
    pub(super) fn steps(&self) -> &'a [F::Step] {
        bytemuck::cast_slice(self.bytes)
    }
}

impl<'a, F: PanelFormat> Superblock<'a, F> {
    #[inline(always)]
    fn new(bytes: &'a [u8]) -> Self {
        let (head, steps) = bytes.split_at(size_of::<F::Head>());
        Self { head: bytemuck::from_bytes(head), steps: bytemuck::cast_slice(steps) }
    }

    /// Its bytes, as many as which follow it: the next superblock of its pair or the first of the next pair, to be asked for.
    #[inline(always)]
    pub(super) fn coming(&self) -> (*const u8, usize) {
        (self.steps.as_ptr_range().end.cast(), size_of::<F::Head>() + size_of_val(self.steps))
    }
}
