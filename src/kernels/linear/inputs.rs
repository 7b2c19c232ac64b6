//! What a Linear multiplies: rows as they are, or what is made of rows on the way to being rounded, so that it is never
//! written by itself.

use std::cell::RefCell;

use candle_core::Tensor;

use crate::{
    error::{Error, Result},
    kernels::{
        cpu_tensor::{Rows, cpu_storage, with_contiguous_rows},
        rms_norm, silu_mul,
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
    /// [`silu(gate) * up`](mod@crate::kernels::silu_mul) of rows `[m, 2 * in_features]`, each its gate and then its up half.
    Gated(&'a Tensor),
}

impl<'a> Inputs<'a> {
    /// The rows that they are made of.
    #[must_use]
    pub fn rows(&self) -> &'a Tensor {
        match *self {
            Self::Rows(x) | Self::Normed { x, .. } | Self::Gated(x) => x,
        }
    }

    /// How many there are, and inputs each.
    ///
    /// # Errors
    /// `Internal` where the shapes do not fit.
    pub(super) fn dims(&self) -> Result<(usize, usize)> {
        match (self, self.rows().dims()) {
            (Self::Rows(_), &[m, width]) => Ok((m, width)),
            (Self::Normed { weight, .. }, &[m, width]) if width > 0 && weight.dims() == [width] => Ok((m, width)),
            (Self::Gated(_), &[m, width]) if width.is_multiple_of(2) => Ok((m, width / 2)),
            (Self::Normed { weight, .. }, dims) => {
                Err(Error::internal(format!("linear: x has shape {dims:?}, its norm {:?}", weight.dims())))
            }
            (_, dims) => Err(Error::internal(format!("linear: x has shape {dims:?}, must have rows"))),
        }
    }

    /// As a tensor of its own, by operations of their own.
    pub(super) fn tensor(&self) -> Result<Tensor> {
        match *self {
            Self::Rows(x) => Ok(x.clone()),
            Self::Normed { x, weight, eps } => rms_norm::rms_norm(x, weight, eps),
            Self::Gated(x) => silu_mul::silu_mul(x),
        }
    }

    /// Calls `run` with them on the CPU.
    pub(super) fn on_cpu<T>(&self, run: impl FnOnce(&Source<'_>) -> Result<T>) -> Result<T> {
        let x = with_contiguous_rows(self.rows())?;
        let (storage, layout) = x.storage_and_layout();
        let rows = Rows::new(cpu_storage(&storage)?, layout)?;
        match self {
            Self::Rows(_) => run(&Source::Rows(rows)),
            Self::Gated(_) => run(&Source::Gated(rows)),
            Self::Normed { weight, eps, .. } => {
                let (storage, layout) = weight.storage_and_layout();
                run(&Source::Normed { x: rows, weight: Rows::vector(cpu_storage(&storage)?, layout)?, eps: *eps })
            }
        }
    }
}

/// The same on the CPU.
pub(super) enum Source<'a> {
    Rows(Rows<'a>),
    Normed { x: Rows<'a>, weight: &'a [f32], eps: f64 },
    Gated(Rows<'a>),
}

impl Source<'_> {
    /// How many rows there are.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Rows(x) | Self::Normed { x, .. } | Self::Gated(x) => x.count,
        }
    }

    /// Inputs a row.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::Rows(x) | Self::Normed { x, .. } => x.width,
            Self::Gated(x) => x.width / 2,
        }
    }

    /// One row, made in `room` if it does not stand anywhere.
    #[inline(always)]
    pub(super) fn row<'b, S: Simd>(&'b self, simd: S, row: usize, room: &'b mut [f32]) -> &'b [f32] {
        match self {
            Self::Rows(x) => return x.row(row),
            Self::Normed { x, weight, eps } => rms_norm::cpu::norm(simd, x.row(row), weight, *eps, room),
            Self::Gated(x) => {
                let (gate, up) = x.row(row).split_at(x.width / 2);
                silu_mul::cpu::gate(simd, gate, up, room);
            }
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
