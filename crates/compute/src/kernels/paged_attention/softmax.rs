//! The softmax of one query vector, a tile of keys at a time.

use std::ops::Range;

use super::{KEY_VECTORS, KEYS, Scoring, register_tile::Vector};
use crate::kernels::simd::{LANES, Simd};

/// The running maximum of a query vector's scores, and the sum of its weights by position modulo sixteen.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    max: f32,
    weights: Vector,
}

impl Softmax {
    /// Of no scores.
    pub(super) const NEW: Self = Self { max: f32::NEG_INFINITY, weights: [0.0; LANES] };

    /// Of a sink alone, which has a weight and no value.
    pub(super) fn of_sink(sink: f32) -> Self {
        let mut weights = [0.0; LANES];
        weights[0] = 1.0;
        Self { max: sink, weights }
    }

    /// Turns the scores of a tile, of which some are `visible`, into weights; the others' are zero. Also gives what the sums
    /// of earlier tiles are to be multiplied with, where the maximum rose.
    ///
    /// Weights that will be `ROUNDED` to bfloat16 are within `2^-14` of themselves, others within two units in the last
    /// place.
    #[inline(always)]
    pub(super) fn weigh<S: Simd, const ROUNDED: bool>(
        &mut self,
        simd: S,
        scoring: &Scoring,
        visible: Range<usize>,
        mut scores: [S::F; KEY_VECTORS],
    ) -> ([S::F; KEY_VECTORS], Option<S::F>) {
        let partly = visible.len() < KEYS;
        for score in &mut scores {
            *score = simd.mul(*score, simd.splat(scoring.scale));
            if let Some(cap) = scoring.softcap {
                *score = soft_capped(simd, *score, cap);
            }
        }
        if partly {
            scores = where_visible(simd, scores, visible.clone(), f32::NEG_INFINITY);
        }
        let [a, b, c, d] = scores;
        let max = simd.max(simd.max(a, b), simd.max(c, d));
        let max = simd.max_lane(simd.max(max, simd.splat(self.max)));
        let mut decay = None;
        let mut sum = simd.load(&self.weights);
        if max > self.max {
            let factor = simd.exp(simd.splat(self.max - max));
            sum = simd.mul(sum, factor);
            self.max = max;
            decay = Some(factor);
        }
        for score in &mut scores {
            let below = simd.sub(*score, simd.splat(self.max));
            *score = if const { ROUNDED } { simd.exp_coarse(below) } else { simd.exp(below) };
        }
        if partly {
            scores = where_visible(simd, scores, visible, 0.0);
        }
        for &weights in &scores {
            sum = simd.add(sum, weights);
        }
        simd.store(sum, &mut self.weights);
        (scores, decay)
    }

    /// The sum of all weights.
    #[inline(always)]
    pub(super) fn total<S: Simd>(&self, simd: S) -> f32 {
        simd.sum(simd.load(&self.weights))
    }
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
fn soft_capped<S: Simd>(simd: S, x: S::F, cap: f32) -> S::F {
    let power = simd.exp(simd.mul(x, simd.splat(2.0 / cap)));
    let one = simd.splat(1.0);
    let fraction = simd.div(simd.splat(2.0), simd.add(power, one));
    simd.mul(simd.sub(one, fraction), simd.splat(cap))
}

/// The lanes that are visible, `other` in all others.
#[inline(always)]
fn where_visible<S: Simd>(
    simd: S,
    vectors: [S::F; KEY_VECTORS],
    visible: Range<usize>,
    other: f32,
) -> [S::F; KEY_VECTORS] {
    let mut lanes = [[0.0; LANES]; KEY_VECTORS];
    for (&vector, lanes) in vectors.iter().zip(&mut lanes) {
        simd.store(vector, lanes);
    }
    let all = lanes.as_flattened_mut();
    all[..visible.start].fill(other);
    all[visible.end..].fill(other);
    let mut masked = vectors;
    for (vector, lanes) in masked.iter_mut().zip(&lanes) {
        *vector = simd.load(lanes);
    }
    masked
}
