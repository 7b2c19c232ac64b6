//! How fast single kernels are here: what `candlewick doctor` and the benches set beside the machine's limits.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use candle_core::{Device, Tensor};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::linear::{
    Extras, Inputs, PackedWeight,
    format::{RawTensor, WeightFormat},
    linear,
};
use crate::error::{Error, Result};

/// `[inputs, outputs]` of the weights that are multiplied: those of a small model.
const SHAPE: [usize; 2] = [1024, 3072];
/// Several times any cache.
const BYTES: usize = 256 << 20;
/// Rows of a prefill.
const ROWS: usize = 512;
const TIME: Duration = Duration::from_millis(400);

/// How fast products with weights of one format are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearRates {
    /// Bytes of weights a second with one row, as a single stream decodes.
    pub read_bytes_per_second: f64,
    /// Floating-point operations a second with 512 rows, as a prompt is computed.
    pub operations_per_second: f64,
}

/// Measures products with weights of a format on the current pool; takes one to two seconds.
///
/// # Errors
/// `Internal` where an operation fails.
pub fn linear_rates(format: WeightFormat) -> Result<LinearRates> {
    let raw = random_weight(&mut ChaCha8Rng::seed_from_u64(1), format, SHAPE);
    let count = BYTES.div_ceil(raw.bytes.len());
    let pack = |_| PackedWeight::pack(&raw, format, &Device::Cpu);
    let weights = (0..count).map(pack).collect::<Result<Vec<_>>>()?;
    let time = |rows: usize| -> Result<f64> {
        let x = Tensor::full(0.5f32, (rows, SHAPE[0]), &Device::Cpu)?;
        let (mut times, start) = (Vec::new(), Instant::now());
        // The first call finds the caches full of something else, as all do.
        for weight in weights.iter().cycle() {
            let call = Instant::now();
            linear(Inputs::Rows(&x), weight, Extras::default())?;
            times.push(call.elapsed().as_secs_f64());
            if start.elapsed() > TIME {
                break;
            }
        }
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().ok_or_else(|| Error::internal("nothing was measured"))
    };
    let bytes = weights.first().map_or(0, PackedWeight::bytes);
    Ok(LinearRates {
        read_bytes_per_second: bytes as f64 / time(1)?,
        operations_per_second: (2 * ROWS * SHAPE[0] * SHAPE[1]) as f64 / time(ROWS)?,
    })
}

/// A weight `[inputs, outputs]` of random bits with small scales, as a file would have it.
pub fn random_weight(rng: &mut impl Rng, format: WeightFormat, [inputs, outputs]: [usize; 2]) -> RawTensor<'static> {
    let mut bytes = vec![0u8; outputs * inputs / format.block_len() * format.block_bytes()];
    rng.fill_bytes(&mut bytes);
    let halves_at: &[usize] = match format {
        WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 | WeightFormat::Fp8 => &[],
        WeightFormat::Q4_0 | WeightFormat::Q8_0 => &[0],
        WeightFormat::Q4K | WeightFormat::Q5K => &[0, 2],
        WeightFormat::Q6K => &[208],
    };
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        for &at in halves_at {
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(0.001).to_le_bytes());
        }
        match format {
            WeightFormat::F32 => block[3] = 0x3c,
            WeightFormat::F16 | WeightFormat::BF16 => block[1] = 0x3c,
            _ => {}
        }
    }
    RawTensor { format: format.into(), shape: vec![outputs, inputs], bytes: Cow::Owned(bytes) }
}
