//! How fast the kernels are, beside what the machine can do at most, measured in the same run.
//!
//! `cargo bench --bench kernels [-- --json] [-- FILTER]`: a filter keeps the lines that contain it (`q8_0`, `attention`).
//! Linear runs over enough distinct weights that no cache holds them. Medians of single calls; ratios mean more than
//! absolute numbers on a machine that others use too; the best call shows what that does to the medians.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use candlewick::{
    ids::{BlockId, Slot, StateSlot},
    kernels::{
        activation::{Activation, Gate, gated},
        causal_conv::{ConvState, causal_conv},
        gated_delta::{DeltaGates, DeltaHeads, DeltaState, Sharing, gated_delta},
        linear::{Extras, Inputs, PackedWeight, format::WeightFormat, linear},
        machine::{self, Arithmetic, Limits},
        paged_attention::{AttentionMetadata, Scoring, paged_attention},
        probe::random_weight,
        recurrent::StateRows,
        rms_norm::rms_norm,
        store_kv::{KvLayer, store_kv},
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

type Error = Box<dyn std::error::Error>;

/// `[inputs, outputs]`.
const SHAPES: [[usize; 2]; 2] = [[1024, 3072], [3072, 1024]];
const ROWS: [usize; 5] = [1, 4, 16, 128, 512];
/// Several times any cache.
const WEIGHT_BYTES: usize = 400 << 20;
const TIME_A_LINE: Duration = Duration::from_millis(700);

struct Report {
    json: bool,
    filter: Option<String>,
    limits: Limits,
    lines: Vec<Value>,
}

impl Report {
    fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter))
    }

    /// Times `call(k)` for k = 0, 1, … and prints the median beside the limits.
    fn measure(
        &mut self,
        name: &str,
        bytes: usize,
        (operations, arithmetic): (usize, Arithmetic),
        mut call: impl FnMut(usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if !self.wants(name) {
            return Ok(());
        }
        call(0)?;
        let (mut times, start) = (Vec::new(), Instant::now());
        while start.elapsed() < TIME_A_LINE || times.len() < 5 {
            let start = Instant::now();
            call(times.len() + 1)?;
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let (median, best) = (times[times.len() / 2], times[0]);
        let (read, computed) = (bytes as f64 / median, operations as f64 / median);
        let (of_read, of_computed) =
            (read / self.limits.read_bytes_per_second, computed / self.limits.operations_per_second(arithmetic));
        if self.json {
            self.lines.push(json!({
                "name": name, "median_us": median * 1e6, "best_us": best * 1e6, "bytes_per_second": read, "operations_per_second": computed,
                "fraction_of_memory": of_read, "fraction_of_arithmetic": of_computed,
            }));
        } else {
            println!(
                "{name:<34} {:>9.1} µs (best {:>9.1}) {:>6.1} GB/s ({:>3.0} %) {:>6.0} GFLOP/s ({:>3.0} %)",
                median * 1e6,
                best * 1e6,
                read / 1e9,
                of_read * 100.0,
                computed / 1e9,
                of_computed * 100.0
            );
        }
        Ok(())
    }
}

fn random(rng: &mut StdRng, shape: &[usize]) -> Result<Tensor, Error> {
    let data: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}

fn linears(report: &mut Report, rng: &mut StdRng) -> Result<(), Error> {
    for format in WeightFormat::ALL {
        for shape @ [inputs, outputs] in SHAPES {
            let name = |m: usize| format!("linear {format} {inputs}→{outputs} m={m}");
            if !ROWS.iter().any(|&m| report.wants(&name(m))) {
                continue;
            }
            let raw = random_weight(rng, format, shape);
            let count = WEIGHT_BYTES.div_ceil(raw.bytes.len());
            let pack = |_| PackedWeight::pack(&raw, format, &Device::Cpu);
            let weights = (0..count).map(pack).collect::<Result<Vec<_>, _>>()?;
            for m in ROWS {
                let x = random(rng, &[m, inputs])?;
                report.measure(&name(m), weights[0].bytes(), (2 * m * inputs * outputs, format.arithmetic()), |k| {
                    linear(Inputs::Rows(&x), &weights[k % count], Extras::default())?;
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

/// 16 query heads over 8 of keys and values, 128 dimensions, bfloat16.
fn attention(report: &mut Report, rng: &mut StdRng) -> Result<(), Error> {
    const HEADS: usize = 16;
    const KV_HEADS: usize = 8;
    const HEAD_DIM: usize = 128;
    const BLOCK: usize = 16;
    for (rows, context_len, queries) in [(1, 511, 1), (16, 511, 1), (1, 8191, 1), (1, 0, 512), (1, 3584, 512)] {
        let name = format!("attention {rows}×{queries} after {context_len}");
        if !report.wants(&name) {
            continue;
        }
        let len: usize = context_len + queries;
        let blocks = len.div_ceil(BLOCK);
        let row_bytes = 4 * len * KV_HEADS * HEAD_DIM;
        // Enough layers that no cache holds them.
        let layers = (200usize << 20).div_ceil(rows * row_bytes).min(64);
        let slots: Vec<Slot> = (0..(rows * blocks * BLOCK) as u32).map(Slot).collect();
        let x = random(rng, &[slots.len(), KV_HEADS, HEAD_DIM])?;
        let mut caches = Vec::new();
        for _ in 0..layers {
            let cache = KvLayer::new(rows * blocks, BLOCK, KV_HEADS, HEAD_DIM, DType::BF16, &Device::Cpu)?;
            store_kv(&x, &x, &cache, &slots)?;
            caches.push(cache);
        }
        let meta = AttentionMetadata {
            block_size: BLOCK,
            cu_seqlens: (0..=rows).map(|row| (row * queries) as u32).collect(),
            context_lens: vec![context_len as u32; rows],
            block_tables: (0..(rows * blocks) as u32).map(BlockId).collect(),
            cu_blocks: (0..=rows).map(|row| (row * blocks) as u32).collect(),
        };
        let q = random(rng, &[rows * queries, HEADS, HEAD_DIM])?;
        let pairs = rows * (0..queries).map(|query| context_len + query + 1).sum::<usize>();
        report.measure(&name, rows * row_bytes, (4 * pairs * HEADS * HEAD_DIM, Arithmetic::Float32), |k| {
            paged_attention(&q, &caches[k % layers], &meta, &Scoring::plain(0.088))?;
            Ok(())
        })?;
        if queries > 1 && context_len == 0 {
            report.measure(
                &format!("attention: store_kv n={queries}"),
                3 * row_bytes,
                (0, Arithmetic::Float32),
                |k| Ok(store_kv(&x, &x, &caches[k % layers], &slots)?),
            )?;
        }
    }
    Ok(())
}

/// Layers of Qwen3.5-9B that keep a state.
fn recurrent(report: &mut Report, rng: &mut StdRng) -> Result<(), Error> {
    const HEADS: DeltaHeads =
        DeltaHeads { key_heads: 16, value_heads: 32, key_dim: 128, value_dim: 128, sharing: Sharing::Neighbours };
    const TAPS: usize = 4;
    for (rows, tokens) in [(1, 1), (16, 1), (1, 128), (1, 512)] {
        let names = ["gated_delta", "causal_conv"].map(|kernel| format!("{kernel} {rows}×{tokens}"));
        if !names.iter().any(|name| report.wants(name)) {
            continue;
        }
        let n = rows * tokens;
        let (state_bytes, channels) = (DeltaState::bytes_per_slot(&HEADS), HEADS.qkv());
        // Enough layers that no cache holds them.
        let layers = (200usize << 20).div_ceil(rows * state_bytes).min(64);
        let states = (0..layers).map(|_| DeltaState::new(rows, HEADS, &Device::Cpu)).collect::<Result<Vec<_>, _>>()?;
        let inputs = ConvState::new(rows, TAPS, channels, &Device::Cpu)?;
        let slots: Vec<StateSlot> = (0..rows as u32).map(StateSlot).collect();
        let cu_seqlens: Vec<u32> = (0..=rows).map(|row| (row * tokens) as u32).collect();
        let context_lens = vec![1; rows];
        let rows_of = StateRows { cu_seqlens: &cu_seqlens, context_lens: &context_lens, slots: &slots };
        let (qkv, gating) = (random(rng, &[n, channels])?, random(rng, &[n, 2 * HEADS.value_heads])?);
        let weight = random(rng, &[TAPS, channels])?;
        let gates = DeltaGates { rates: vec![-0.1; HEADS.value_heads], biases: vec![0.0; HEADS.value_heads] };
        let [delta, conv] = &names;
        // A number of a state decays, answers, is corrected and answers again.
        let operations = 7 * n * state_bytes / size_of::<f32>();
        report.measure(delta, 2 * rows * state_bytes, (operations, Arithmetic::Float32), |k| {
            gated_delta(&qkv, &gating, &gates, &states[k % layers], rows_of)?;
            Ok(())
        })?;
        report.measure(conv, 8 * n * channels, (2 * TAPS * n * channels, Arithmetic::Float32), |_| {
            causal_conv(&qkv, &weight, &inputs, rows_of, Activation::Silu)?;
            Ok(())
        })?;
    }
    Ok(())
}

fn elementwise(report: &mut Report, rng: &mut StdRng) -> Result<(), Error> {
    for n in [1, 16, 512] {
        let (x, w) = (random(rng, &[n, 1024])?, random(rng, &[1024])?);
        report.measure(&format!("rms_norm n={n} d=1024"), 8 * n * 1024, (0, Arithmetic::Float32), |_| {
            rms_norm(&x, &w, 1e-6)?;
            Ok(())
        })?;
        let x = random(rng, &[n, 6144])?;
        report.measure(&format!("gated silu n={n} i=3072"), 12 * n * 3072, (0, Arithmetic::Float32), |_| {
            gated(&x, Gate::Of(Activation::Silu))?;
            Ok(())
        })?;
    }
    Ok(())
}

fn main() -> Result<(), Error> {
    machine::keep_freed_memory();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let json = arguments.iter().any(|a| a == "--json");
    let filter = arguments.into_iter().find(|a| !a.starts_with("--"));
    let mut report = Report { json, filter, limits: machine::limits(), lines: Vec::new() };
    let (threads, instructions) = (std::thread::available_parallelism()?.get(), machine::instruction_set());
    let [float32, bfloat16, bytes] = [Arithmetic::Float32, Arithmetic::Bfloat16, Arithmetic::Bytes]
        .map(|arithmetic| report.limits.operations_per_second(arithmetic));
    if !report.json {
        println!(
            "limits of {threads} threads, {instructions}: {:.1} GB/s read, {:.0} GFLOP/s in float32, {:.0} in bfloat16, \
             {:.0} GOP/s in bytes",
            report.limits.read_bytes_per_second / 1e9,
            float32 / 1e9,
            bfloat16 / 1e9,
            bytes / 1e9
        );
    }
    let mut rng = StdRng::seed_from_u64(1);
    linears(&mut report, &mut rng)?;
    attention(&mut report, &mut rng)?;
    recurrent(&mut report, &mut rng)?;
    elementwise(&mut report, &mut rng)?;
    if report.json {
        let limits = json!({
            "threads": threads, "instruction_set": instructions,
            "bytes_per_second": report.limits.read_bytes_per_second,
            "float32_operations_per_second": float32, "bfloat16_operations_per_second": bfloat16,
            "int8_operations_per_second": bytes,
        });
        println!("{}", serde_json::to_string_pretty(&json!({ "limits": limits, "results": report.lines }))?);
    }
    Ok(())
}
