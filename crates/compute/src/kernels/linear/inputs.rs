//! What a Linear multiplies: rows as they are, or what is made of rows on the way to being rounded, so that it is never
//! written by itself.

use std::cell::RefCell;

#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::Tensor;

use crate::{
    error::{Error, Result},
    kernels::{
        activation::{self, Activation, Gate},
        cpu_tensor::{Rows, cpu_storage, with_contiguous_rows},
        layer_norm, rms_norm,
        simd::Simd,
    },
};

/// What a Linear multiplies, `[m, in_features]`, all float32.
#[derive(Clone, Copy)]
pub enum Inputs<'a> {
    /// These rows.
    Rows(&'a Tensor),
    /// The [RMS norms](mod@crate::kernels::rms_norm) of rows, with a weight `[in_features]`.
    Normed {
        /// The rows.
        x: &'a Tensor,
        /// The norm's weight.
        weight: &'a Tensor,
        /// What is added to the mean of squares.
        eps: f64,
    },
    /// The [layer norms](mod@crate::kernels::layer_norm) of rows, with a weight `[in_features]` and perhaps a bias.
    LayerNormed {
        /// The rows.
        x: &'a Tensor,
        /// The norm's weight.
        weight: &'a Tensor,
        /// The norm's bias.
        bias: Option<&'a Tensor>,
        /// What is added to the variance.
        eps: f64,
    },
    /// The [gates](mod@crate::kernels::activation) of rows `[m, 2 * in_features]`, each its gate and then its up half.
    Gated(&'a Tensor, Gate),
    /// The [activations](mod@crate::kernels::activation) of rows.
    Activated(&'a Tensor, Activation),
}

impl<'a> Inputs<'a> {
    /// The rows that they are made of.
    #[must_use]
    pub fn rows(&self) -> &'a Tensor {
        match *self {
            Self::Rows(x)
            | Self::Normed { x, .. }
            | Self::LayerNormed { x, .. }
            | Self::Gated(x, _)
            | Self::Activated(x, _) => x,
        }
    }

    /// How many there are, and inputs each.
    ///
    /// # Errors
    /// `Internal` where the shapes do not fit.
    pub(in crate::kernels) fn dims(&self) -> Result<(usize, usize)> {
        match (self, self.rows().dims()) {
            (Self::Rows(_) | Self::Activated(..), &[m, width]) => Ok((m, width)),
            (Self::Normed { weight, .. }, &[m, width]) if width > 0 && weight.dims() == [width] => Ok((m, width)),
            (Self::LayerNormed { weight, bias, .. }, &[m, width])
                if width > 0 && weight.dims() == [width] && bias.is_none_or(|bias| bias.dims() == [width]) =>
            {
                Ok((m, width))
            }
            (Self::Gated(..), &[m, width]) if width.is_multiple_of(2) => Ok((m, width / 2)),
            (Self::Normed { weight, .. } | Self::LayerNormed { weight, .. }, dims) => {
                Err(Error::internal(format!("linear: x has shape {dims:?}, its norm {:?}", weight.dims())))
            }
            (_, dims) => Err(Error::internal(format!("linear: x has shape {dims:?}, must have rows"))),
        }
    }

    /// As a tensor of its own, by operations of their own.
    ///
    /// # Errors
    /// `Internal` where the shapes do not fit.
    pub fn tensor(&self) -> Result<Tensor> {
        match *self {
            Self::Rows(x) => Ok(x.clone()),
            Self::Normed { x, weight, eps } => rms_norm::rms_norm(x, weight, eps),
            Self::LayerNormed { x, weight, bias, eps } => layer_norm::layer_norm(x, weight, bias, eps),
            Self::Gated(x, gate) => activation::gated(x, gate),
            Self::Activated(x, activation) => activation::activated(x, activation),
        }
    }

    /// As a tensor of its own on a card, in the type that it is multiplied in.
    ///
    /// # Errors
    /// `Internal` where the shapes do not fit.
    #[cfg(feature = "cuda")]
    pub(in crate::kernels) fn on_card(&self, dtype: DType) -> Result<Tensor> {
        match *self {
            Self::Rows(x) => super::cuda::rounded(x, dtype),
            Self::Normed { x, weight, eps } => rms_norm::cuda::rms_norm(x, weight, eps, dtype),
            Self::LayerNormed { x, weight, bias, eps } => layer_norm::cuda::layer_norm(x, weight, bias, eps, dtype),
            Self::Gated(x, gate) => activation::cuda::gated(x, gate, dtype),
            Self::Activated(x, activation) => activation::cuda::activated(x, activation, dtype),
        }
    }

    /// Calls `run` with them on the CPU.
    pub(super) fn on_cpu<T>(&self, run: impl FnOnce(&Source<'_>) -> Result<T>) -> Result<T> {
        let x = with_contiguous_rows(self.rows())?;
        let (storage, layout) = x.storage_and_layout();
        let rows = Rows::new(cpu_storage(&storage)?, layout)?;
        match self {
            Self::Rows(_) => run(&Source::Rows(rows)),
            Self::Gated(_, gate) => run(&Source::Gated(rows, *gate)),
            Self::Activated(_, activation) => run(&Source::Activated(rows, *activation)),
            Self::Normed { weight, eps, .. } => {
                let (storage, layout) = weight.storage_and_layout();
                run(&Source::Normed { x: rows, weight: Rows::vector(cpu_storage(&storage)?, layout)?, eps: *eps })
            }
            Self::LayerNormed { weight, bias, eps, .. } => {
                let (storage, layout) = weight.storage_and_layout();
                let weight = Rows::vector(cpu_storage(&storage)?, layout)?;
                let bias = bias.map(Tensor::storage_and_layout);
                let bias = bias.as_ref().map(|(storage, layout)| Rows::vector(cpu_storage(storage)?, layout));
                run(&Source::LayerNormed { x: rows, weight, bias: bias.transpose()?, eps: *eps })
            }
        }
    }
}

/// The same on the CPU.
pub(super) enum Source<'a> {
    Rows(Rows<'a>),
    Normed { x: Rows<'a>, weight: &'a [f32], eps: f64 },
    LayerNormed { x: Rows<'a>, weight: &'a [f32], bias: Option<&'a [f32]>, eps: f64 },
    Gated(Rows<'a>, Gate),
    Activated(Rows<'a>, Activation),
}

impl Source<'_> {
    /// How many rows there are.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Rows(x)
            | Self::Normed { x, .. }
            | Self::LayerNormed { x, .. }
            | Self::Gated(x, _)
            | Self::Activated(x, _) => x.count,
        }
    }

    /// Inputs a row.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::Rows(x) | Self::Normed { x, .. } | Self::LayerNormed { x, .. } | Self::Activated(x, _) => x.width,
            Self::Gated(x, _) => x.width / 2,
        }
    }

    /// One row, made in `room` if it does not stand anywhere.
    #[inline(always)]
    pub(super) fn row<'b, S: Simd>(&'b self, simd: S, row: usize, room: &'b mut [f32]) -> &'b [f32] {
        match self {
            Self::Rows(x) => return x.row(row),
            Self::Normed { x, weight, eps } => rms_norm::cpu::norm(simd, x.row(row), weight, *eps, room),
            Self::LayerNormed { x, weight, bias, eps } => {
                layer_norm::cpu::norm(simd, x.row(row), weight, *bias, *eps, room);
            }
            Self::Gated(x, kind) => {
                let (gate, up) = x.row(row).split_at(x.width / 2);
                activation::cpu::gate_row(simd, *kind, gate, up, room);
            }
            Self::Activated(x, kind) => activation::cpu::activate_row(simd, *kind, x.row(row), room),
        }
        room
    }

    /// Calls `run` with room for a row.
    pub(super) fn with_room<T>(&self, run: impl FnOnce(&mut [f32]) -> T) -> T {
        thread_local! {
            static ROOM: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
        }
        ROOM.with_borrow_mut(|room| {
            room.resize(room.len().max(self.width()), 0.0);
            run(&mut room[..self.width()])
        })
    }
}
