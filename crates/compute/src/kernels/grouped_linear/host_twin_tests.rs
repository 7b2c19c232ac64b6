//! The kernels of grouped_linear.cu, as host C++, against sums in float64.

use candle_core::DType;
use half::{bf16, f16};

use super::launches::GroupedLinearLaunch;
use crate::kernels::{
    cuda::host_twin::{Order, Output, Twin, address},
    route::TILE_ROWS,
    test_data::{assert_close, floats, rng},
};

static TWIN: Twin = Twin::of("grouped_linear");

/// Experts, and rows of each in order.
struct Case {
    x: Vec<f32>,
    weights: Vec<Vec<f32>>,
    biases: Option<Vec<f32>>,
    /// Whose each row is, where inputs are not the rows' own.
    tokens: Option<Vec<u32>>,
    /// Rows of each expert.
    counts: Vec<u32>,
    inputs: usize,
    outputs: usize,
}

impl Case {
    fn of(counts: &[u32], (inputs, outputs): (usize, usize), with_tokens: bool, with_biases: bool, seed: u64) -> Self {
        let mut rng = rng(seed);
        let rows: u32 = counts.iter().sum();
        let num_tokens = if with_tokens { 11 } else { rows };
        Self {
            x: floats(&mut rng, num_tokens as usize * inputs),
            weights: counts.iter().map(|_| floats(&mut rng, outputs * inputs)).collect(),
            biases: with_biases.then(|| floats(&mut rng, counts.len() * outputs)),
            tokens: with_tokens.then(|| (0..rows).map(|row| row * 7 % num_tokens).collect()),
            counts: counts.to_vec(),
            inputs,
            outputs,
        }
    }

    /// All rows' experts.
    fn experts(&self) -> impl Iterator<Item = usize> {
        self.counts.iter().enumerate().flat_map(|(expert, &count)| std::iter::repeat_n(expert, count as usize))
    }

    fn tiles(&self, height: usize) -> Vec<u32> {
        let (mut tiles, mut first) = (Vec::new(), 0);
        for (expert, &count) in self.counts.iter().enumerate() {
            for from in (first..first + count).step_by(height) {
                tiles.extend([expert as u32, from, (first + count).min(from + height as u32)]);
            }
            first += count;
        }
        // Two that are not needed.
        tiles.extend([super::super::route::NONE; 6]);
        tiles
    }

    /// What the kernel of a type makes of numbers in it.
    fn run<T: Copy>(&self, dtype: DType, height: usize, order: Order, of: fn(f32) -> T) -> Vec<f32> {
        let typed = |numbers: &[f32]| numbers.iter().copied().map(of).collect::<Vec<T>>();
        let (x, weights) = (typed(&self.x), self.weights.iter().map(|weight| typed(weight)).collect::<Vec<_>>());
        let (table, tiles) = (weights.iter().map(|weight| address(weight)).collect::<Vec<_>>(), self.tiles(height));
        let rows = self.counts.iter().sum::<u32>() as usize;
        let mut out = Output::unwritten(rows * self.outputs, 7.0f32);
        let launch = GroupedLinearLaunch {
            dtype,
            x: address(&x),
            tokens: self.tokens.as_deref().map_or(0, address),
            weights: address(&table),
            biases: self.biases.as_deref().map_or(0, address),
            tiles: address(&tiles),
            num_tiles: tiles.len() / 3,
            rows_per_tile: height,
            out: out.address(),
            inputs: self.inputs,
            outputs: self.outputs,
        };
        // SAFETY: the addresses are of buffers of these sizes.
        unsafe { TWIN.run(&launch.call().unwrap(), order) };
        out.written().to_vec()
    }

    /// The sums of what a type keeps of the numbers.
    fn want(&self, kept: fn(f32) -> f32) -> Vec<f64> {
        let mut want = Vec::new();
        for (row, expert) in self.experts().enumerate() {
            let token = self.tokens.as_ref().map_or(row, |tokens| tokens[row] as usize);
            let x = &self.x[token * self.inputs..][..self.inputs];
            for output in 0..self.outputs {
                let weight = &self.weights[expert][output * self.inputs..][..self.inputs];
                let products = x.iter().zip(weight).map(|(&x, &w)| f64::from(kept(x)) * f64::from(kept(w)));
                let bias = self.biases.as_ref().map_or(0.0, |biases| biases[expert * self.outputs + output]);
                want.push(products.sum::<f64>() + f64::from(bias));
            }
        }
        want
    }

    /// The kernels of a type are right, and neither the tiles' height nor the order of threads changes a bit.
    fn check<T: Copy>(&self, dtype: DType, of: fn(f32) -> T, kept: fn(f32) -> f32) -> Vec<f32> {
        let got = self.run(dtype, TILE_ROWS[0], Order::Forward, of);
        assert_close(&got, &self.want(kept), 1e-5);
        assert_eq!(self.run(dtype, TILE_ROWS[0], Order::Reversed, of), got, "{dtype:?}");
        for order in Order::BOTH {
            assert_eq!(self.run(dtype, TILE_ROWS[1], order, of), got, "{dtype:?}");
        }
        got
    }
}

/// Rows of experts with and without any, in part of a tile and in more than one.
const COUNTS: &[u32] = &[3, 0, 16, 70, 1, 0];

#[test]
fn each_row_is_multiplied_by_its_experts_weight_in_every_type() {
    if !TWIN.exists() {
        return;
    }
    // Inputs that are copied in sixteens of bytes or number by number, in one step of 64 or several, and more than one block of outputs.
    for (k, sizes) in [(8, 5), (64, 64), (200, 70), (37, 3), (330, 9)].into_iter().enumerate() {
        let case = Case::of(COUNTS, sizes, k % 2 == 0, k != 1, k as u64);
        case.check(DType::F32, |x| x, |x| x);
        case.check(DType::BF16, bf16::from_f32, |x| bf16::from_f32(x).to_f32());
        case.check(DType::F16, f16::from_f32, |x| f16::from_f32(x).to_f32());
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    if !TWIN.exists() {
        return;
    }
    let all = Case::of(&[5, 33], (96, 20), false, true, 7);
    let got = all.check(DType::BF16, bf16::from_f32, |x| bf16::from_f32(x).to_f32());
    // The 21st row, which is the second expert's 16th.
    let alone = Case {
        x: all.x[20 * 96..21 * 96].to_vec(),
        weights: all.weights,
        biases: all.biases,
        counts: vec![0, 1],
        ..Case::of(&[1], (96, 20), false, true, 7)
    };
    assert_eq!(alone.run(DType::BF16, TILE_ROWS[0], Order::Forward, bf16::from_f32), got[20 * 20..21 * 20]);
}

#[test]
fn what_is_no_number_stays_in_its_row() {
    if !TWIN.exists() {
        return;
    }
    let mut case = Case::of(&[4, 2], (40, 6), false, false, 9);
    case.x[2 * 40 + 7] = f32::NAN;
    for height in TILE_ROWS {
        let got = case.run(DType::BF16, height, Order::Forward, bf16::from_f32);
        let wrong = |row: &[f32]| row.iter().filter(|x| x.is_nan()).count();
        assert_eq!(got.chunks(6).map(wrong).collect::<Vec<_>>(), [0, 0, 6, 0, 0, 0]);
    }
}
