//! Tokens a second of a quantized Qwen3 on the CPU: one stream and sixteen, ours and candle-transformers' own model on
//! the same file.
//!
//! `cargo bench --bench serve_cpu [-- MODEL.gguf]`; without a file it writes a small one with random weights. Ratios are
//! what counts: all four are measured one after another in each round, so that a machine's bad minute is everybody's, and
//! the median of the rounds' ratios is printed beside the median speeds.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file},
};
use candle_transformers::models::quantized_qwen3::ModelWeights;
use candlewick::{
    arch::{Model, ModelLoad, config::ModelConfig, load},
    config::{Dtype, KvCacheDtype},
    engine::{
        executor::{AdmittedSequence, Executor, PlannedRow, StepPlan},
        runner::{Runner, RunnerConfig},
    },
    ids::{BlockId, SequenceId, Slot, TokenId},
    kernels::machine::keep_freed_memory,
    params::SamplingParams,
    weights::{
        Weights,
        gguf::{Gguf, GgufSource},
    },
};

const PROMPT_TOKENS: usize = 128;
const NEW_TOKENS: usize = 32;
const STREAMS: usize = 16;
const ROUNDS: usize = 5;
const BLOCK_SIZE: usize = 16;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    keep_freed_memory();
    // Cargo passes `--bench` along.
    let given = std::env::args().skip(1).find(|arg| !arg.starts_with("--")).map(PathBuf::from);
    let directory = tempfile::tempdir()?;
    let path = match given {
        Some(path) => path,
        None => {
            let path = directory.path().join("small-qwen3.gguf");
            write_small_qwen3(&path)?;
            path
        }
    };
    println!("{}", path.display());
    println!("prompt {PROMPT_TOKENS} tokens, {NEW_TOKENS} new ones a stream, greedy; median of {ROUNDS} rounds\n");

    let (ours, theirs) = (load_ours(&path)?, load_theirs(&path)?);
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push([
            measure_ours(&ours, 1)?,
            measure_theirs(&theirs, 1)?,
            measure_ours(&ours, STREAMS)?,
            measure_theirs(&theirs, STREAMS)?,
        ]);
    }
    println!("{:12} {:>3} streams  prefill tok/s  decode tok/s", "", "");
    for (who, (name, streams)) in
        [("candlewick", 1), ("candle", 1), ("candlewick", STREAMS), ("candle", STREAMS)].into_iter().enumerate()
    {
        let median = |of: fn(&Rates) -> f64| median(rounds.iter().map(|round| of(&round[who])));
        println!("{name:12} {streams:3} streams  {:13.1}  {:12.1}", median(|r| r.prefill), median(|r| r.decode));
    }
    let ratio = |of: fn(&Rates) -> f64, a: usize, b: usize| median(rounds.iter().map(|r| of(&r[a]) / of(&r[b])));
    let [decode, prefill]: [fn(&Rates) -> f64; 2] = [|r| r.decode, |r| r.prefill];
    println!();
    println!("{STREAMS} streams against 1, decode:                {:5.2}", ratio(decode, 2, 0));
    println!("ours against candle, 1 stream,   decode:   {:5.2}", ratio(decode, 0, 1));
    println!("ours against candle, 1 stream,   prefill:  {:5.2}", ratio(prefill, 0, 1));
    println!(
        "ours against candle, {STREAMS} streams, decode:   {:5.2} (candle runs them in turn)",
        ratio(decode, 2, 3)
    );
    println!("ours against candle, {STREAMS} streams, prefill:  {:5.2}", ratio(prefill, 2, 3));
    Ok(())
}

/// Tokens a second.
#[derive(Clone, Copy)]
struct Rates {
    prefill: f64,
    decode: f64,
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values = values.collect::<Vec<_>>();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn prompt(stream: usize, vocab_size: usize) -> Vec<TokenId> {
    (0..PROMPT_TOKENS).map(|k| TokenId(((stream * 7919 + k * 104_729 + 1) % vocab_size) as u32)).collect()
}

fn load_ours(path: &Path) -> Outcome<Arc<dyn Model>> {
    let gguf = Arc::new(Gguf::open(path)?);
    let config = ModelConfig::from_gguf(&gguf)?;
    let weights = Weights::new(Box::new(GgufSource::new(gguf)?));
    let load_of = ModelLoad {
        weights: &weights,
        config: &config,
        device: &Device::Cpu,
        dtype: Dtype::Auto,
        quantization: None,
        kv_cache_dtype: KvCacheDtype::Auto,
        progress: &|_, _| (),
    };
    Ok(load(&load_of)?)
}

fn measure_ours(model: &Arc<dyn Model>, streams: usize) -> Outcome<Rates> {
    let blocks_each = (PROMPT_TOKENS + NEW_TOKENS).div_ceil(BLOCK_SIZE);
    let num_blocks = streams * blocks_each;
    let config = RunnerConfig {
        num_blocks,
        block_size: BLOCK_SIZE,
        num_states: 0,
        num_threads: 0,
        eos_token_ids: Vec::new(),
        filled_steps: None,
    };
    let mut runner = Runner::new(Arc::clone(model), &config)?;
    let params = Arc::new(SamplingParams { temperature: 0.0, ignore_eos: true, ..SamplingParams::default() });
    let prompts = (0..streams).map(|s| prompt(s, model.config().vocab_size)).collect::<Vec<_>>();

    let mut last = Vec::new();
    let start = Instant::now();
    for (stream, prompt) in prompts.iter().enumerate() {
        let mut plan = StepPlan::default();
        let id = SequenceId(stream as u64);
        plan.admitted.push(AdmittedSequence {
            id,
            params: Arc::clone(&params),
            prompt: prompt.as_slice().into(),
            dry_breakers: [].into(),
            grammar: None,
            pooling: None,
            adapter: None,
        });
        schedule(&mut plan, stream, blocks_each, prompt, 0, 0);
        runner.submit(&plan)?;
        last.push(runner.collect()?.sequences[0].tokens[0].id);
    }
    let prefill = (streams * PROMPT_TOKENS) as f64 / start.elapsed().as_secs_f64();

    let start = Instant::now();
    for generated in 1..NEW_TOKENS {
        let mut plan = StepPlan::default();
        for (stream, token) in last.iter().enumerate() {
            let context = PROMPT_TOKENS + generated - 1;
            schedule(&mut plan, stream, blocks_each, &[*token], context, generated);
        }
        runner.submit(&plan)?;
        last = runner.collect()?.sequences.iter().map(|sequence| sequence.tokens[0].id).collect();
    }
    let decode = (streams * (NEW_TOKENS - 1)) as f64 / start.elapsed().as_secs_f64();
    Ok(Rates { prefill, decode })
}

/// Adds a row: stream `n` owns blocks `n * blocks_each ..`.
fn schedule(
    plan: &mut StepPlan,
    stream: usize,
    blocks_each: usize,
    tokens: &[TokenId],
    context: usize,
    num_output_tokens: usize,
) {
    let (first_token, first_block) = (plan.token_ids.len(), plan.block_tables.len());
    let base = stream * blocks_each;
    let positions = context..context + tokens.len();
    plan.token_ids.extend_from_slice(tokens);
    plan.slot_mapping.extend(positions.clone().map(|p| Slot((base * BLOCK_SIZE + p) as u32)));
    plan.positions.extend(positions.map(|p| p as u32));
    plan.block_tables.extend((base..base + blocks_each).map(|block| BlockId(block as u32)));
    plan.rows.push(PlannedRow {
        id: SequenceId(stream as u64),
        query: first_token..plan.token_ids.len(),
        blocks: first_block..plan.block_tables.len(),
        context_len: context as u32,
        samples: true,
        num_output_tokens: num_output_tokens as u32,
        prompt_targets: 0..0,
        max_new_tokens: 1,
        follows: None,
    });
}

fn load_theirs(path: &Path) -> Outcome<ModelWeights> {
    let mut file = File::open(path)?;
    let content = gguf_file::Content::read(&mut file)?;
    Ok(ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?)
}

fn measure_theirs(model: &ModelWeights, streams: usize) -> Outcome<Rates> {
    let forward = |model: &mut ModelWeights, ids: Vec<u32>, at: usize| -> Outcome<(u32, usize)> {
        let logits = model.forward(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?, at)?.squeeze(0)?;
        Ok((logits.argmax(0)?.to_scalar::<u32>()?, logits.dim(0)?))
    };
    let vocab_size = forward(&mut model.clone(), vec![0], 0)?.1;
    let mut running = vec![model.clone(); streams];
    let mut last = Vec::new();
    let start = Instant::now();
    for (stream, model) in running.iter_mut().enumerate() {
        let ids = prompt(stream, vocab_size).iter().map(|id| id.0).collect();
        last.push(forward(model, ids, 0)?.0);
    }
    let prefill = (streams * PROMPT_TOKENS) as f64 / start.elapsed().as_secs_f64();
    let start = Instant::now();
    for generated in 1..NEW_TOKENS {
        for (model, last) in running.iter_mut().zip(&mut last) {
            *last = forward(model, vec![*last], PROMPT_TOKENS + generated - 1)?.0;
        }
    }
    let decode = (streams * (NEW_TOKENS - 1)) as f64 / start.elapsed().as_secs_f64();
    Ok(Rates { prefill, decode })
}

/// A Qwen3 of 40 million parameters in Q8_0: small enough to write in a moment, too large for any cache.
fn write_small_qwen3(path: &Path) -> Outcome<()> {
    let (hidden, mlp, layers, heads, kv_heads, head_dim, vocab) = (512usize, 1536, 8, 8, 4, 64, 16_384);
    let mut metadata = vec![("general.architecture".to_owned(), gguf_file::Value::String("qwen3".to_owned()))];
    for (key, value) in [
        ("embedding_length", hidden),
        ("feed_forward_length", mlp),
        ("block_count", layers),
        ("context_length", 4096),
        ("attention.head_count", heads),
        ("attention.head_count_kv", kv_heads),
        ("attention.key_length", head_dim),
        ("attention.value_length", head_dim),
    ] {
        metadata.push((format!("qwen3.{key}"), gguf_file::Value::U32(value as u32)));
    }
    for (key, value) in [("rope.freq_base", 1e6), ("attention.layer_norm_rms_epsilon", 1e-6)] {
        metadata.push((format!("qwen3.{key}"), gguf_file::Value::F32(value)));
    }
    let matrix = |out: usize, input: usize| {
        let spread = (input as f32).sqrt().recip();
        QTensor::quantize(&Tensor::randn(0f32, spread, (out, input), &Device::Cpu)?, GgmlDType::Q8_0)
    };
    let norm =
        |size: usize| QTensor::quantize(&Tensor::ones(size, candle_core::DType::F32, &Device::Cpu)?, GgmlDType::F32);
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), matrix(vocab, hidden)?),
        ("output_norm.weight".to_owned(), norm(hidden)?),
    ];
    for layer in 0..layers {
        let mut add = |name: &str, tensor: QTensor| tensors.push((format!("blk.{layer}.{name}.weight"), tensor));
        add("attn_norm", norm(hidden)?);
        add("ffn_norm", norm(hidden)?);
        add("attn_q_norm", norm(head_dim)?);
        add("attn_k_norm", norm(head_dim)?);
        add("attn_q", matrix(heads * head_dim, hidden)?);
        add("attn_k", matrix(kv_heads * head_dim, hidden)?);
        add("attn_v", matrix(kv_heads * head_dim, hidden)?);
        add("attn_output", matrix(hidden, heads * head_dim)?);
        add("ffn_gate", matrix(mlp, hidden)?);
        add("ffn_up", matrix(mlp, hidden)?);
        add("ffn_down", matrix(hidden, mlp)?);
    }
    let metadata = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect::<Vec<_>>();
    let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect::<Vec<_>>();
    gguf_file::write(&mut File::create(path)?, &metadata, &tensors)?;
    Ok(())
}
