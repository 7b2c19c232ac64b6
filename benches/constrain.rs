//! What structured output costs: a nested schema of 30 properties over 151,936 tokens.
//!
//! `cargo bench --bench constrain [-- MODEL]`. First the parts by themselves: the compilation, a mask,
//! the taking in of a token. Then steps of a batch of 32, with and without a grammar on half of its rows, turn about, so
//! that a machine's bad minute is everybody's; every row asks for its token's log-probability, so that none is forced
//! past the model and all steps have 32 tokens. Without a model it is Qwen3-0.6B's shape with seeded weights. The
//! vocabulary is a made one: words of one to four syllables, with spaces, quotes and digits.

use std::{path::PathBuf, sync::Arc, time::Instant};

use candlewick::{
    config::{EngineConfig, LoadFormat, ModelArgs},
    engine::{
        executor::StepPlan,
        load::{LoadedModel, load},
        scheduler::Scheduler,
        sequence::{Reader, Sequence},
    },
    ids::{SequenceId, TokenId},
    kernels::machine::keep_freed_memory,
    params::{Constraint, SamplingParams},
    sampling::{
        Sampler, SamplingContext,
        grammar::{Compiler, Grammar, Matcher, Next, Vocabulary},
    },
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde_json::{Value, json};

const VOCAB: usize = 151_936;
const ROWS: u64 = 32;
const PROMPT_TOKENS: usize = 32;
const STEPS: usize = 48;
const ROUNDS: usize = 4;
const EOS: TokenId = TokenId(0);

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

struct Eager;

impl Reader for Eager {
    fn room(&self) -> usize {
        1024
    }
    fn capacity(&self) -> usize {
        1024
    }
    fn cancelled(&self) -> bool {
        false
    }
}

fn main() -> Outcome<()> {
    keep_freed_memory();
    let model = std::env::args().skip(1).find(|arg| !arg.starts_with("--")).map(PathBuf::from);
    let folder = tempfile::tempdir()?;
    let loaded = match model {
        Some(path) => load(&args(path, LoadFormat::Auto), None, &mut |_| ())?,
        None => {
            std::fs::write(folder.path().join("config.json"), qwen3_0_6b().to_string())?;
            load(&args(folder.path().to_owned(), LoadFormat::Dummy), None, &mut |_| ())?
        }
    };
    let vocab_size = loaded.info.vocab_size;
    let words = words(vocab_size);
    let spell = |id: TokenId| (words[id.index()].as_slice(), id == EOS);
    let start = Instant::now();
    // Without a tokenizer of its own the parser cuts forced text greedily.
    let compiler = Compiler::new(&Vocabulary::new(vocab_size, spell, Box::new(|_| Vec::new())))?;
    println!("{vocab_size} tokens, prepared in {:.0} ms", ms(start));
    let start = Instant::now();
    let grammar = Arc::new(compiler.compile(&Constraint::Json(schema().to_string()).into())?);
    println!("schema of 30 properties, compiled in {:.1} ms", ms(start));
    parts(&grammar, vocab_size)?;

    let (mut plain, mut half) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        plain.push(steps(&loaded, None)?);
        half.push(steps(&loaded, Some(&grammar))?);
    }
    let (plain, half) = (median(plain), median(half));
    println!("step of {ROWS} rows, median of {ROUNDS} rounds: {plain:.2} ms; half of them constrained: {half:.2} ms");
    println!("difference: {:+.2} ms, {:+.2} %", half - plain, (half / plain - 1.0) * 100.0);
    Ok(())
}

fn args(path: PathBuf, load_format: LoadFormat) -> ModelArgs {
    ModelArgs { model: Some(path.display().to_string()), load_format, ..ModelArgs::default() }
}

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Times masks and tokens of forty answers, by random logits.
fn parts(grammar: &Grammar, vocab_size: usize) -> Outcome<()> {
    let mut random = SmallRng::seed_from_u64(1);
    let (mut starts, mut masks, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    for seed in 0..40 {
        let params = SamplingParams { seed: Some(seed), ..SamplingParams::default() };
        let context = SamplingContext { eos_token_ids: &[EOS], vocab_size, ..SamplingContext::default() };
        let mut sampler = Sampler::new(&params, &context)?;
        let start = Instant::now();
        let mut matcher = Matcher::new(grammar, &params, &[EOS])?;
        starts.push(ms(start) * 1e3);
        for index in 0..60 {
            matcher.take_forced(usize::MAX).for_each(drop);
            let start = Instant::now();
            let Next::Mask(mask) = matcher.what_next()? else { break };
            masks.push(ms(start) * 1e3);
            let mut logits: Vec<f32> = (0..vocab_size).map(|_| random.random_range(-4.0..4.0)).collect();
            let token = sampler.sample_masked(&mut logits, index, Some(&mask))?;
            let start = Instant::now();
            matcher.accept(token.id)?;
            tokens.push(ms(start) * 1e3);
        }
    }
    for (what, mut times) in [("start of a sequence", starts), ("mask", masks), ("taking in a token", tokens)] {
        times.sort_by(f64::total_cmp);
        let (mean, at) =
            (times.iter().sum::<f64>() / times.len() as f64, |part: f64| times[(times.len() as f64 * part) as usize]);
        println!("{what:20} mean {mean:7.1} µs, median {:7.1}, p99 {:7.1}, of {}", at(0.5), at(0.99), times.len());
    }
    Ok(())
}

/// Milliseconds of a step in which every row decodes, the median; every other row follows `grammar`.
fn steps(loaded: &LoadedModel, grammar: Option<&Arc<Grammar>>) -> Outcome<f64> {
    let config = EngineConfig {
        num_blocks: ROWS as usize * (PROMPT_TOKENS + STEPS + 2).div_ceil(16),
        max_num_seqs: ROWS as usize,
        max_num_batched_tokens: ROWS as usize * PROMPT_TOKENS,
        max_model_len: PROMPT_TOKENS + STEPS + 2,
        enable_prefix_caching: false,
        ..EngineConfig::default()
    };
    let mut runner = loaded.executor_factory(&config, None)()?;
    let mut scheduler = Scheduler::new(&config, 1);
    for row in 0..ROWS {
        let prompt = (0..PROMPT_TOKENS as u64)
            .map(|k| TokenId(((row * 7919 + k * 104_729) % VOCAB as u64 + 1) as u32 % 4000))
            .collect();
        let params =
            SamplingParams { seed: Some(row), logprobs: Some(0), ignore_eos: true, ..SamplingParams::default() };
        let mut sequence = Sequence::new(SequenceId(row), prompt, Arc::new(params), Arc::new(Eager));
        sequence.grammar = grammar.filter(|_| row % 2 == 0).cloned();
        scheduler.add(sequence)?;
    }
    let (mut plan, mut events, mut times) = (StepPlan::default(), Vec::new(), Vec::new());
    for _ in 0..STEPS {
        let start = Instant::now();
        scheduler.schedule(start, &mut plan, &mut events);
        runner.submit(&plan)?;
        scheduler.apply(runner.collect()?, &mut events)?;
        if plan.token_ids.len() == ROWS as usize {
            times.push(ms(start));
        }
        events.clear();
    }
    Ok(median(times))
}

/// An object of objects, 30 properties in all.
fn schema() -> Value {
    let leaf = |k: usize| match k % 5 {
        0 => json!({"type": "string", "maxLength": 24}),
        1 => json!({"type": "integer", "minimum": 0, "maximum": 100_000}),
        2 => json!({"type": "boolean"}),
        3 => json!({"enum": ["small", "medium", "large"]}),
        _ => json!({"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3}),
    };
    let object = |names: Vec<(String, Value)>| {
        let required: Vec<_> = names.iter().map(|(name, _)| name.clone()).collect();
        let properties: serde_json::Map<_, _> = names.into_iter().collect();
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    };
    let inner = |k: usize| object((0..5).map(|n| (format!("field_{k}_{n}"), leaf(k + n))).collect());
    object((0..5).map(|k| (format!("part_{k}"), inner(k))).collect())
}

fn qwen3_0_6b() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": VOCAB, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": true, "hidden_act": "silu", "torch_dtype": "bfloat16"
    })
}

/// A vocabulary: an end, all bytes, then words.
fn words(size: usize) -> Vec<Vec<u8>> {
    let mut random = SmallRng::seed_from_u64(7);
    let syllables =
        ["ka", "to", "ri", "en", "st", "ou", "el", "an", "ing", "ver", "pl", "qua", "er", "mi", "so", "é", "12", "7"];
    let ends = ["", "", "", "", "\"", "\",", "\":", "}", ", ", ".", "\n"];
    let mut seen = std::collections::HashSet::new();
    let mut words = vec![b"<end>".to_vec()];
    words.extend((0..=255).map(|byte| vec![byte]));
    while words.len() < size {
        let mut word = if random.random_range(0..2) == 0 { String::from(" ") } else { String::new() };
        for _ in 0..random.random_range(1..5) {
            word += syllables[random.random_range(0..syllables.len())];
        }
        word += ends[random.random_range(0..ends.len())];
        if seen.insert(word.clone()) {
            words.push(word.into_bytes());
        }
    }
    words
}
