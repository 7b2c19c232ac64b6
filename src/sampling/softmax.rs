//! Exponentials of a vocabulary of logits, and sums of them: what a draw costs when nothing truncates, so branch-free
//! and vectorized.

/// `e^x` for `x <= 0`, within 3 units in the last place; 0 below the smallest normal number.
///
/// `2^n · e^r` with `n = round(x / ln 2)` and `|r| <= ln 2 / 2`; the polynomial is the Taylor series to `r^7`, whose
/// remainder is below `2^-26` of the result.
#[inline]
pub(super) fn exp_nonpositive(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5 · 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    // Clamped so that the exponent below stays normal; what was clamped becomes 0 at the end.
    let clamped = x.max(-87.0);
    let n = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut sum = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + coefficient;
    }
    let scaled = sum * f32::from_bits(((n as i32 + 127) as u32) << 23);
    if x < -87.0 { 0.0 } else { scaled }
}

/// `Σ e^(x - max)`, `max` being the largest.
pub(super) fn sum_exp(values: &[f32], max: f32) -> f64 {
    values.chunks(CHUNK).map(|chunk| chunk_sum(chunk.iter().map(|&x| exp_nonpositive(x - max)))).sum()
}

/// Replaces each value by `e^(x - max)` and writes the sum of each [`CHUNK`] of them to `sums`; their total is returned.
pub(super) fn exp_in_place(values: &mut [f32], max: f32, sums: &mut Vec<f64>) -> f64 {
    sums.clear();
    for chunk in values.chunks_mut(CHUNK) {
        for x in &mut *chunk {
            *x = exp_nonpositive(*x - max);
        }
        sums.push(chunk_sum(chunk.iter().copied()));
    }
    sums.iter().sum()
}

/// Sums over a distribution, from which its entropy and the spread of its logits follow.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    /// The largest logit.
    pub max: f32,
    /// Logits that are not masked.
    pub count: usize,
    /// `Σ e^(x - max)`.
    pub total: f64,
    /// `Σ (x - max) e^(x - max)`.
    weighted: f64,
    /// `Σ (x - max)`.
    sum: f64,
    /// `Σ (x - max)²`.
    squares: f64,
}

impl Moments {
    /// Of logits of which `max` is the largest.
    pub(super) fn of(logits: impl Iterator<Item = f32>, max: f32) -> Self {
        let mut moments = Self { max, ..Self::default() };
        for x in logits.filter(|&x| x > f32::NEG_INFINITY) {
            let (x, e) = (f64::from(x - max), f64::from(exp_nonpositive(x - max)));
            moments.count += 1;
            moments.total += e;
            moments.weighted += x * e;
            moments.sum += x;
            moments.squares += x * x;
        }
        moments
    }

    /// The same of a vocabulary: [`CHUNK`] at a time in 16 lanes of single precision, without a branch.
    pub(super) fn of_slice(logits: &[f32], max: f32) -> Self {
        let mut moments = Self { max, ..Self::default() };
        for chunk in logits.chunks(CHUNK) {
            let [mut count, mut total, mut weighted, mut sum, mut squares] = [[0.0f32; 16]; 5];
            for lanes in chunk.chunks(16) {
                for (k, &logit) in lanes.iter().enumerate() {
                    let in_play = logit > f32::NEG_INFINITY;
                    let x = if in_play { logit - max } else { 0.0 };
                    let (one, e) = if in_play { (1.0, exp_nonpositive(x)) } else { (0.0, 0.0) };
                    count[k] += one;
                    total[k] += e;
                    weighted[k] += x * e;
                    sum[k] += x;
                    squares[k] += x * x;
                }
            }
            let lanes = |lanes: [f32; 16]| lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
            moments.count += lanes(count) as usize;
            moments.total += lanes(total);
            moments.weighted += lanes(weighted);
            moments.sum += lanes(sum);
            moments.squares += lanes(squares);
        }
        moments
    }

    /// `ln Σ e^(x - max)`.
    #[must_use]
    pub fn log_total(&self) -> f64 {
        self.total.ln()
    }

    /// `-Σ p ln p`, in nats.
    #[must_use]
    pub fn entropy(&self) -> f64 {
        (self.log_total() - self.weighted / self.total).max(0.0)
    }

    /// The standard deviation of the logits, as of a whole population.
    #[must_use]
    pub fn deviation(&self) -> f64 {
        let n = self.count.max(1) as f64;
        (self.squares / n - (self.sum / n).powi(2)).max(0.0).sqrt()
    }
}

/// Values summed in single precision before the sum goes on in double.
pub(super) const CHUNK: usize = 256;

/// In 16 lanes, so that the order of the additions, and with it the last bit, is the same on every machine.
fn chunk_sum(values: impl Iterator<Item = f32>) -> f64 {
    let mut lanes = [0.0f32; 16];
    for (k, value) in values.enumerate() {
        lanes[k % 16] += value;
    }
    lanes.iter().map(|&lane| f64::from(lane)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_that_of_double_precision() {
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_nonpositive(f32::MIN), 0.0);
        for k in 0..87_000 {
            let x = -(k as f32) * 1e-3;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp_nonpositive(x)) - exact).abs() / exact;
            assert!(error < 3.0 * f64::from(f32::EPSILON), "e^{x}: relative error {error}");
        }
    }

    #[test]
    fn the_moments_of_a_vocabulary_are_those_of_double_precision() {
        let logits: Vec<f32> = (0..50_001u32)
            .map(|k| if k % 7 == 3 { f32::NEG_INFINITY } else { (k * 7919 % 20_011) as f32 / 1000.0 - 3.0 })
            .collect();
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (chunks, single) = (Moments::of_slice(&logits, max), Moments::of(logits.iter().copied(), max));
        let left: Vec<f64> = logits.iter().filter(|x| x.is_finite()).map(|&x| f64::from(x)).collect();
        let total: f64 = left.iter().map(|x| (x - f64::from(max)).exp()).sum();
        let entropy: f64 = left.iter().map(|x| (x - f64::from(max)).exp() / total).map(|p| -p * p.ln()).sum();
        let mean = left.iter().sum::<f64>() / left.len() as f64;
        let variance = left.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / left.len() as f64;
        for moments in [chunks, single] {
            assert_eq!(moments.count, left.len());
            assert!((moments.entropy() - entropy).abs() < 1e-4, "{} for {entropy}", moments.entropy());
            assert!((moments.deviation() / variance.sqrt() - 1.0).abs() < 1e-4, "{}", moments.deviation());
        }
    }

    #[test]
    fn the_sum_of_a_vocabulary_is_that_of_double_precision() {
        let values: Vec<f32> = (0..150_001).map(|k| -((k * 7919 % 20_011) as f32) / 1000.0).collect();
        let exact: f64 = values.iter().map(|&x| f64::from(x).exp()).sum();
        let mut copy = values.clone();
        let mut sums = Vec::new();
        for sum in [sum_exp(&values, 0.0), exp_in_place(&mut copy, 0.0, &mut sums)] {
            assert!((sum / exact - 1.0).abs() < 1e-6, "{sum} for {exact}");
        }
        assert_eq!(sums.len(), values.len().div_ceil(CHUNK));
    }
}
