//! The gated delta rule on the CPU. Numbers of a value do not know of each other, so that sixteen of them are a task: their
//! part of a state stays in the first-level cache while a prompt's tokens go over it.

use std::{mem::MaybeUninit, ops::Range};

use super::{DeltaHeads, EPS, GatedDelta, MOST_KEY_DIM};
use crate::kernels::{
    cpu_tensor::{Rows, SharedMatrix, for_each_row_range, written},
    pool::for_each_task,
    simd::{Kernel, LANES, Simd},
};

/// Numbers of states that pay for waking another thread.
const WORTH_SHARING: usize = 16 * 1024;
/// Chains that a sum over a key is made of.
const CHAINS: usize = 4;

pub(super) fn gated_delta(op: &GatedDelta<'_>, states: &mut [f32], qkv: Rows<'_>) -> Vec<f32> {
    let heads = op.heads;
    let DeltaHeads { value_heads, key_dim, value_dim, .. } = heads;
    let (strips, width) = (heads.strips(), heads.values());
    let gates = gates(op);
    let states = SharedMatrix::new(states);
    let matrix = key_dim * LANES;
    let worth = qkv.count * value_heads * strips * matrix > WORTH_SHARING;
    let write = |out: &SharedMatrix<'_, MaybeUninit<f32>>| {
        for_each_task(op.rows.len() * value_heads * strips, worth, |task| {
            let (row, head, strip) =
                (&op.rows[task / strips / value_heads], task / strips % value_heads, task % strips);
            let place = (row.slot * value_heads + head) * strips + strip;
            // SAFETY: a state is one row's alone, and this part of it this task's.
            let state = unsafe { states.slice_mut(place * matrix, matrix) };
            if row.begins {
                state.fill(0.0);
            }
            let first = head * value_dim + strip * LANES;
            let columns = first..(first + LANES).min((head + 1) * value_dim);
            let state = state.as_chunks_mut().0;
            op.level.run(Strip {
                heads,
                qkv,
                gates: &gates,
                tokens: row.tokens.clone(),
                head,
                columns,
                width,
                state,
                out,
            });
        });
    };
    // SAFETY: the rows cover all tokens, the heads and strips all of a token's results.
    unsafe { written(qkv.count * width, write) }
}

/// Decay and share of each token and head.
fn gates(op: &GatedDelta<'_>) -> Vec<[f32; 2]> {
    let heads = op.heads.value_heads;
    let mut gates = vec![[0.0; 2]; op.gating.count * heads];
    let shared = SharedMatrix::new(&mut gates);
    // Two exponentials and a logarithm, in double precision.
    for_each_row_range(op.gating.count, 64 * heads, |tokens| {
        // SAFETY: the ranges of tokens do not overlap.
        let gates = unsafe { shared.slice_mut(tokens.start * heads, tokens.len() * heads) };
        for (token, gates) in tokens.zip(gates.chunks_exact_mut(heads)) {
            let (betas, alphas) = op.gating.row(token).split_at(heads);
            for (head, gate) in gates.iter_mut().enumerate() {
                *gate = op.gates.of(head, betas[head], alphas[head]);
            }
        }
    });
    gates
}

/// Up to sixteen numbers of a head's value, for all tokens of a row.
struct Strip<'a> {
    heads: DeltaHeads,
    qkv: Rows<'a>,
    gates: &'a [[f32; 2]],
    tokens: Range<usize>,
    head: usize,
    /// Which, among a token's values.
    columns: Range<usize>,
    /// How many of these a token has.
    width: usize,
    state: &'a mut [[f32; LANES]],
    out: &'a SharedMatrix<'a, MaybeUninit<f32>>,
}

impl Kernel for Strip<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { heads, qkv, gates, tokens, head, columns, width, state, out } = self;
        let (key_dim, keys) = (heads.key_dim, heads.keys());
        let key_head = heads.key_head(head);
        let query_scale = (key_dim as f64).sqrt().recip();
        let (mut q, mut k) = ([0.0; MOST_KEY_DIM], [0.0; MOST_KEY_DIM]);
        let (q, k) = (&mut q[..key_dim], &mut k[..key_dim]);
        for token in tokens {
            let row = qkv.row(token);
            unit(simd, &row[key_head * key_dim..][..key_dim], query_scale, q);
            unit(simd, &row[keys + key_head * key_dim..][..key_dim], 1.0, k);
            let value = &row[2 * keys..][columns.clone()];
            let value = match value.first_chunk() {
                Some(value) => simd.load(value),
                None => simd.load_partial(value, 0.0),
            };
            let [decay, share] = gates[token * heads.value_heads + head];
            let remembered = decay_and_read(simd, state, decay, k);
            let correction = simd.mul(simd.sub(value, remembered), simd.splat(share));
            let y = write_and_read(simd, state, correction, k, q);
            // SAFETY: a row's tokens and these columns of them are this task's alone; the slice is gone with this turn.
            let out = unsafe { out.cleared_mut(token * width + columns.start, columns.len()) };
            match out.as_chunks_mut().0 {
                [out] => simd.store(y, out),
                _ => simd.store_partial(y, out),
            }
        }
    }
}

/// `x` at length 1, times a scale.
#[inline(always)]
fn unit<S: Simd>(simd: S, x: &[f32], scale: f64, out: &mut [f32]) {
    let (whole, tail) = x.as_chunks::<LANES>();
    let mut squares = simd.zero();
    for x in whole {
        let x = simd.load(x);
        squares = simd.fma(x, x, squares);
    }
    let last = simd.load_partial(tail, 0.0);
    squares = simd.fma(last, last, squares);
    let scale = simd.splat((scale / (f64::from(simd.sum(squares)) + EPS).sqrt()) as f32);
    let (out, out_tail) = out.as_chunks_mut::<LANES>();
    for (x, out) in whole.iter().zip(out) {
        simd.store(simd.mul(simd.load(x), scale), out);
    }
    simd.store_partial(simd.mul(last, scale), out_tail);
}

/// Lets a state decay; what it answers to a key then.
#[inline(always)]
fn decay_and_read<S: Simd>(simd: S, state: &mut [[f32; LANES]], decay: f32, k: &[f32]) -> S::F {
    let decay = simd.splat(decay);
    let mut sums = [simd.zero(); CHAINS];
    let (state, state_tail) = state.as_chunks_mut::<CHAINS>();
    let (k, k_tail) = k.as_chunks::<CHAINS>();
    for (state, k) in state.iter_mut().zip(k) {
        for chain in 0..CHAINS {
            let decayed = simd.mul(simd.load(&state[chain]), decay);
            simd.store(decayed, &mut state[chain]);
            sums[chain] = simd.fma(decayed, simd.splat(k[chain]), sums[chain]);
        }
    }
    for (state, k) in state_tail.iter_mut().zip(k_tail) {
        let decayed = simd.mul(simd.load(state), decay);
        simd.store(decayed, state);
        sums[0] = simd.fma(decayed, simd.splat(*k), sums[0]);
    }
    total(simd, sums)
}

/// Adds a correction to what a state answers to a key; what it answers to a query then.
#[inline(always)]
fn write_and_read<S: Simd>(simd: S, state: &mut [[f32; LANES]], correction: S::F, k: &[f32], q: &[f32]) -> S::F {
    let mut sums = [simd.zero(); CHAINS];
    let (state, state_tail) = state.as_chunks_mut::<CHAINS>();
    let (k, k_tail) = k.as_chunks::<CHAINS>();
    let (q, q_tail) = q.as_chunks::<CHAINS>();
    for ((state, k), q) in state.iter_mut().zip(k).zip(q) {
        for chain in 0..CHAINS {
            let new = simd.fma(correction, simd.splat(k[chain]), simd.load(&state[chain]));
            simd.store(new, &mut state[chain]);
            sums[chain] = simd.fma(new, simd.splat(q[chain]), sums[chain]);
        }
    }
    for ((state, k), q) in state_tail.iter_mut().zip(k_tail).zip(q_tail) {
        let new = simd.fma(correction, simd.splat(*k), simd.load(state));
        simd.store(new, state);
        sums[0] = simd.fma(new, simd.splat(*q), sums[0]);
    }
    total(simd, sums)
}

#[inline(always)]
fn total<S: Simd>(simd: S, [a, b, c, d]: [S::F; CHAINS]) -> S::F {
    simd.add(simd.add(a, b), simd.add(c, d))
}
