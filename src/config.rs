//! The only reader of flags and environment; arguments resolve to the limits that the rest of the crate works with.
//!
//! Two steps, as in ripgrep: parsing says what was asked for ([`EngineArgs`], [`ServeArgs`]), [`resolve`] says what is
//! in force ([`EngineConfig`]) given the model and the machine, and is pure. Flag names are vLLM's where it has the
//! same thing. Every flag is an environment variable too ([`with_environment`]); the command line wins.

mod browsers;
mod values;

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Command, ValueEnum, builder::FalseyValueParser};

pub use self::browsers::{AllowedOrigins, BrowserArgs};
use self::values::{count, number_with_unit, seconds};
use crate::error::{Error, Result};

/// Limits of one engine, resolved: every field is in force as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// Tokens a KV block.
    pub block_size: usize,
    /// Blocks of the KV cache.
    pub num_blocks: usize,
    /// Tokens a step, prefill chunks and decodes together.
    pub max_num_batched_tokens: usize,
    /// Sequences that hold blocks and run at once.
    pub max_num_seqs: usize,
    /// Prompt and generated tokens a sequence; never more than the cache holds.
    pub max_model_len: usize,
    /// Requests that may wait beyond those that run; one more is refused.
    pub max_waiting: usize,
    /// Tokens that may wait for a reader before its sequence leaves the batch.
    pub stream_capacity_tokens: usize,
    /// Whether full blocks are kept and shared by content.
    pub enable_prefix_caching: bool,
    /// Whether routers can be told what the prefix cache holds.
    pub enable_kv_cache_events: bool,
    /// A reader that takes nothing for this long loses its stream (`ABORTED`).
    pub stall_timeout: Duration,
    /// A step that takes this long is given up and the engine restarted.
    pub step_timeout: Duration,
}

impl EngineConfig {
    /// Requests that may be here at once, running or waiting.
    #[must_use]
    pub fn max_live(&self) -> usize {
        self.max_num_seqs.saturating_add(self.max_waiting)
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            block_size: 16,
            num_blocks: 1024,
            max_num_batched_tokens: 512,
            max_num_seqs: 64,
            max_model_len: 4096,
            max_waiting: 1024,
            stream_capacity_tokens: 64,
            enable_prefix_caching: true,
            enable_kv_cache_events: true,
            stall_timeout: Duration::from_secs(120),
            step_timeout: Duration::from_secs(120),
        }
    }
}

/// The numbers to compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// What the file has: quantized weights stay as they are, 16-bit ones go with bfloat16, 32-bit ones with float32.
    #[default]
    Auto,
    /// Single precision throughout, KV cache included.
    #[value(name = "float32", alias = "float")]
    Float32,
    /// bfloat16 weights and KV cache.
    #[value(name = "bfloat16")]
    Bfloat16,
}

/// What keys and values are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum KvCacheDtype {
    /// bfloat16, or float32 for weights of that.
    #[default]
    Auto,
    /// Single precision.
    #[value(name = "float32", alias = "float")]
    Float32,
    /// Half precision: more bits than bfloat16 has, for numbers up to 65504.
    #[value(name = "float16", alias = "half")]
    Float16,
    /// bfloat16.
    #[value(name = "bfloat16")]
    Bfloat16,
    /// Eight bits (E4M3): half the memory of bfloat16, and errors of up to a sixteenth of each number.
    #[value(name = "fp8", alias = "fp8_e4m3")]
    Fp8,
}

/// What weights are quantized to while they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Quantization {
    /// 8.5 bits a weight: hardly to be told from the original.
    #[value(name = "q8_0")]
    Q8_0,
    /// 6.6 bits.
    #[value(name = "q6_k")]
    Q6K,
    /// 5.5 bits.
    #[value(name = "q5_k")]
    Q5K,
    /// 4.5 bits: the better of the two at that size.
    #[value(name = "q4_k")]
    Q4K,
    /// 4.5 bits.
    #[value(name = "q4_0")]
    Q4_0,
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LoadFormat {
    /// The model's files.
    #[default]
    Auto,
    /// Drawn from a seed: a config.json is enough to measure a model's speed.
    Dummy,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// All cores.
    #[default]
    Cpu,
    /// The first NVIDIA GPU; needs a build with the feature `cuda`.
    Cuda,
    /// Apple's GPU; needs a build with the feature `metal`.
    Metal,
}

/// Instructions that the CPU's kernels are made of. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InstructionSet {
    /// What every CPU of this architecture has.
    Baseline,
    /// AVX2, FMA and F16C.
    #[value(name = "avx2")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    #[value(name = "avx512")]
    Avx512,
    /// Those, and AMX tiles of bfloat16.
    #[value(name = "amx")]
    Amx,
}

/// Which model, and how it is loaded.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Directory, GGUF file or Hugging Face repository; the built-in model if left out.
    pub model: Option<String>,
    /// Numbers to compute with.
    #[arg(long, value_enum, default_value = "auto")]
    pub dtype: Dtype,
    /// Quantize weights that are stored as plain numbers.
    #[arg(long, short, value_enum)]
    pub quantization: Option<Quantization>,
    /// Numbers to keep keys and values in.
    #[arg(long, value_enum, default_value = "auto")]
    pub kv_cache_dtype: KvCacheDtype,
    /// Where weights come from.
    #[arg(long, value_enum, default_value = "auto")]
    pub load_format: LoadFormat,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceKind,
    /// Threads to compute with; all cores if left out.
    #[arg(long, value_name = "N", value_parser = count(1, 4096))]
    pub threads: Option<usize>,
    /// Instructions to compute with on the CPU; the best that it has if left out.
    #[arg(long, value_enum, value_name = "SET")]
    pub instruction_set: Option<InstructionSet>,
    /// Chat template to use instead of the model's own: a Jinja file.
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// Format of the model's tool calls; told by its chat template if left out.
    #[arg(long, value_name = "NAME")]
    pub tool_call_parser: Option<String>,
    /// How the model marks its reasoning; told by its chat template if left out.
    #[arg(long, value_name = "NAME")]
    pub reasoning_parser: Option<String>,
    /// Branch, tag or commit of a Hugging Face repository.
    #[arg(long)]
    pub revision: Option<String>,
    /// Keep downloads here instead of in Hugging Face's own cache.
    #[arg(long, value_name = "DIR")]
    pub download_dir: Option<PathBuf>,
    /// Use what was downloaded before, never the network.
    #[arg(long)]
    pub offline: bool,
}

/// Limits of the engine, as asked for.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Prompt and generated tokens a sequence; the model's context, as far as the KV cache holds it, if left out.
    #[arg(long, value_name = "TOKENS", value_parser = number_with_unit)]
    pub max_model_len: Option<usize>,
    /// Tokens a KV block.
    #[arg(long, value_name = "TOKENS", default_value = "16", value_parser = count(1, 1024))]
    pub block_size: usize,
    /// Blocks of the KV cache, on any device.
    #[arg(long, value_name = "BLOCKS", value_parser = count(1, u32::MAX.into()), conflicts_with = "kv_cache_memory_bytes")]
    pub num_gpu_blocks_override: Option<usize>,
    /// Bytes of the KV cache (2G, 512M); a quarter of the free memory, at most 4G, if left out.
    #[arg(long, value_name = "BYTES", value_parser = number_with_unit)]
    pub kv_cache_memory_bytes: Option<usize>,
    /// Tokens a step, prefill chunks and decodes together.
    #[arg(long, value_name = "TOKENS", default_value = "512", value_parser = count(1, 1 << 20))]
    pub max_num_batched_tokens: usize,
    /// Sequences that run at once.
    #[arg(long, value_name = "N", default_value = "64", value_parser = count(1, 1 << 16))]
    pub max_num_seqs: usize,
    /// Requests that may wait beyond those that run; one more is refused.
    #[arg(long, value_name = "N", default_value = "1024", value_parser = count(1, 1 << 20))]
    pub max_waiting: usize,
    /// Tokens that may wait for a reader before its sequence leaves the batch.
    #[arg(long, value_name = "TOKENS", default_value = "64", value_parser = count(1, 1 << 16))]
    pub stream_capacity_tokens: usize,
    /// Share the KV blocks of common prefixes; on unless turned off.
    #[arg(
        long, value_name = "BOOL", default_value = "true", default_missing_value = "true", num_args = 0..=1,
        require_equals = true, action = ArgAction::Set, overrides_with = "no_enable_prefix_caching"
    )]
    pub enable_prefix_caching: bool,
    /// Do not share the KV blocks of common prefixes.
    #[arg(long, overrides_with = "enable_prefix_caching")]
    pub no_enable_prefix_caching: bool,
    /// Tell routers that subscribe what the prefix cache holds.
    #[arg(long, value_name = "BOOL", default_value = "true", action = ArgAction::Set)]
    pub enable_kv_cache_events: bool,
    /// A reader that takes nothing for this long loses its stream.
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    pub stall_timeout: Duration,
    /// A step that takes this long is given up and the engine restarted.
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    pub step_timeout: Duration,
}

/// What `serve` takes.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The engine's limits.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Address and port to listen on, for everything.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:50051", help_heading = "Server")]
    pub listen: String,
    /// Name that requests use; the model's own if left out.
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    pub served_model_name: Option<String>,
    /// Who may call from a browser.
    #[command(flatten)]
    pub browsers: BrowserArgs,
    /// Time that streams have to end after Ctrl-C or SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds, help_heading = "Server")]
    pub drain_timeout: Duration,
}

/// How much is said on standard error.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// What to log: a level (error, warn, info, debug, trace), or directives such as `info,candlewick=debug`.
    #[arg(long = "log-level", id = "log", value_name = "LEVEL", global = true, help_heading = "Logging")]
    pub log: Option<String>,
}

/// What [`resolve`] must know of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// Positions the model can tell apart.
    pub max_position_embeddings: usize,
    /// Bytes that one token's keys and values take, all layers together.
    pub kv_bytes_per_token: usize,
}

/// What [`resolve`] must know of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineFacts {
    /// Memory that is free on the device, once the weights are loaded; `None` where nobody can say.
    pub available_memory_bytes: Option<usize>,
}

/// Share of the free memory that the KV cache takes unless told otherwise, its cap, and what it takes where nobody
/// knows how much is free.
const DEFAULT_KV_SHARE: usize = 4;
const DEFAULT_KV_CAP_BYTES: usize = 4 << 30;
const UNKNOWN_MEMORY_KV_BYTES: usize = 1 << 30;

const MAX_MODEL_LEN: &str = "--max-model-len";

/// What is in force for this model on this machine.
///
/// The number of blocks is `--num-gpu-blocks-override`, or what fits into `--kv-cache-memory-bytes`, or what fits into
/// a quarter of the free memory and 4 GiB, but then no more than `--max-num-seqs` sequences of full length can use.
/// Without `--max-model-len` a sequence may be as long as the model's context and the KV cache allow.
///
/// # Errors
/// `InvalidArgument` that names the flag and says which value would do.
pub fn resolve(args: &EngineArgs, model: &ModelFacts, machine: &MachineFacts) -> Result<EngineConfig> {
    let context = model.max_position_embeddings;
    if let Some(asked) = args.max_model_len.filter(|asked| !(1..=context).contains(asked)) {
        let why = format!("is {asked}, must be from 1 to the model's context of {context} tokens");
        return Err(Error::invalid(MAX_MODEL_LEN, why));
    }
    let num_blocks = num_blocks(args, model, machine)?;
    let max_model_len = max_model_len(args, model, num_blocks * args.block_size)?;
    Ok(EngineConfig {
        block_size: args.block_size,
        num_blocks,
        max_num_batched_tokens: args.max_num_batched_tokens,
        max_num_seqs: args.max_num_seqs,
        max_model_len,
        max_waiting: args.max_waiting,
        stream_capacity_tokens: args.stream_capacity_tokens,
        enable_prefix_caching: args.enable_prefix_caching && !args.no_enable_prefix_caching,
        enable_kv_cache_events: args.enable_kv_cache_events,
        stall_timeout: args.stall_timeout,
        step_timeout: args.step_timeout,
    })
}

fn num_blocks(args: &EngineArgs, model: &ModelFacts, machine: &MachineFacts) -> Result<usize> {
    let block_bytes = model.kv_bytes_per_token.saturating_mul(args.block_size).max(1);
    let (flag, blocks) = if let Some(blocks) = args.num_gpu_blocks_override {
        ("--num-gpu-blocks-override", blocks)
    } else if let Some(bytes) = args.kv_cache_memory_bytes {
        ("--kv-cache-memory-bytes", bytes / block_bytes)
    } else {
        let bytes = machine
            .available_memory_bytes
            .map_or(UNKNOWN_MEMORY_KV_BYTES, |available| (available / DEFAULT_KV_SHARE).min(DEFAULT_KV_CAP_BYTES));
        let longest = args.max_model_len.unwrap_or(model.max_position_embeddings);
        let usable = longest.div_ceil(args.block_size).saturating_mul(args.max_num_seqs);
        ("--kv-cache-memory-bytes", (bytes / block_bytes).min(usable))
    };
    if blocks == 0 {
        let why = format!("is too small for a block of {} tokens, which takes {block_bytes} bytes", args.block_size);
        return Err(Error::invalid(flag, why));
    }
    // Slots are numbered with 32 bits.
    let most = u32::MAX as usize / args.block_size;
    if blocks > most {
        return Err(Error::invalid(flag, format!("makes {blocks} blocks of {}, at most {most} work", args.block_size)));
    }
    Ok(blocks)
}

fn max_model_len(args: &EngineArgs, model: &ModelFacts, capacity_tokens: usize) -> Result<usize> {
    match args.max_model_len {
        Some(asked) if asked > capacity_tokens => {
            let tokens = asked.div_ceil(args.block_size).saturating_mul(args.block_size);
            let bytes = tokens.saturating_mul(model.kv_bytes_per_token);
            let why = format!(
                "is {asked}, but the KV cache holds {capacity_tokens} tokens: ask for at most that many, or make the \
                 cache larger with --kv-cache-memory-bytes {bytes}"
            );
            Err(Error::invalid(MAX_MODEL_LEN, why))
        }
        Some(asked) => Ok(asked),
        None => {
            let context = model.max_position_embeddings;
            if capacity_tokens < context {
                tracing::warn!(
                    "sequences end at {capacity_tokens} tokens, which is what the KV cache holds; the model could go \
                     on to {context} (--kv-cache-memory-bytes makes the cache larger)"
                );
            }
            Ok(context.min(capacity_tokens))
        }
    }
}

/// Lets every argument of a command and its subcommands be given as an environment variable as well:
/// `--max-model-len` as `CANDLEWICK_MAX_MODEL_LEN`. A flag without a value is turned on by anything but an empty
/// string, `0`, `no`, `false` and `off`. A `--no-…` flag has no variable of its own: the other one's can say `false`,
/// and so the command line always wins.
#[must_use]
pub fn with_environment(command: Command) -> Command {
    command
        .mut_args(|arg| {
            let id = arg.get_id().as_str();
            if id.starts_with("no_") {
                return arg;
            }
            // Names live as long as the process, which builds its commands once.
            let name: &'static str = format!("CANDLEWICK_{}", id.to_uppercase()).leak();
            let arg = if arg.get_action().takes_values() { arg } else { arg.value_parser(FalseyValueParser::new()) };
            arg.env(name).hide_env_values(true)
        })
        .mut_subcommands(with_environment)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Serve {
        #[command(flatten)]
        args: ServeArgs,
    }

    fn parse(line: &str) -> Result<ServeArgs, clap::Error> {
        Serve::try_parse_from(std::iter::once("serve").chain(line.split_whitespace())).map(|serve| serve.args)
    }

    /// A context of 1000 tokens, 64 bytes a token: 1 KiB a block of 16.
    const MODEL: ModelFacts = ModelFacts { max_position_embeddings: 1000, kv_bytes_per_token: 64 };
    const MACHINE: MachineFacts = MachineFacts { available_memory_bytes: Some(1 << 20) };

    fn resolved(line: &str) -> Result<EngineConfig> {
        resolve(&parse(line).unwrap().engine, &MODEL, &MACHINE)
    }

    #[test]
    fn defaults_are_those_of_the_configuration() {
        let args = parse("").unwrap();
        assert_eq!(args.listen, "127.0.0.1:50051");
        assert_eq!(args.drain_timeout, Duration::from_secs(30));
        assert_eq!((args.model.dtype, args.model.device), (Dtype::Auto, DeviceKind::Cpu));
        let big = MachineFacts { available_memory_bytes: Some(1 << 40) };
        let facts = ModelFacts { max_position_embeddings: 4096, kv_bytes_per_token: 64 };
        // 64 sequences of 4096 tokens is all that can be used, however much memory there is.
        let expected = EngineConfig { num_blocks: 64 * 4096 / 16, ..EngineConfig::default() };
        assert_eq!(resolve(&args.engine, &facts, &big).unwrap(), expected);
    }

    #[test]
    fn blocks_and_context_follow_from_flags_model_and_memory() {
        // (flags, blocks, context)
        let cases = [
            // A quarter of 1 MiB makes 256 blocks, enough for the context of 1000.
            ("", 256, 1000),
            ("--num-gpu-blocks-override 24", 24, 384),
            ("--num-gpu-blocks-override 24 --max-model-len 384", 24, 384),
            ("--num-gpu-blocks-override 5000", 5000, 1000),
            ("--kv-cache-memory-bytes 100K", 100, 1000),
            ("--kv-cache-memory-bytes 10240", 10, 160),
            ("--kv-cache-memory-bytes 10k", 9, 144),
            ("--max-model-len 512", 256, 512),
            // No more blocks than two sequences of 100 tokens can use.
            ("--max-model-len 100 --max-num-seqs 2", 14, 100),
            ("--block-size 1", 4096, 1000),
            ("--block-size 1024", 4, 1000),
        ];
        for (line, num_blocks, max_model_len) in cases {
            let config = resolved(line).unwrap();
            assert_eq!((config.num_blocks, config.max_model_len), (num_blocks, max_model_len), "{line}");
        }
    }

    #[test]
    fn what_cannot_be_in_force_is_refused_by_the_name_of_its_flag() {
        let cases = [
            ("--max-model-len 1001", "--max-model-len", "context of 1000"),
            ("--max-model-len 0", "--max-model-len", "from 1 to"),
            ("--num-gpu-blocks-override 24 --max-model-len 385", "--max-model-len", "--kv-cache-memory-bytes 25600"),
            ("--kv-cache-memory-bytes 1000", "--kv-cache-memory-bytes", "1024 bytes"),
            ("--num-gpu-blocks-override 4000000000", "--num-gpu-blocks-override", "at most"),
        ];
        for (line, flag, says) in cases {
            let error = resolved(line).unwrap_err();
            assert_eq!(error.violations[0].field, flag, "{line}");
            assert!(error.message.contains(says), "{line}: {error}");
        }
    }

    #[test]
    fn a_machine_that_does_not_say_gets_a_gibibyte() {
        let facts = ModelFacts { max_position_embeddings: 1 << 20, kv_bytes_per_token: 1 << 16 };
        let config = resolve(&parse("").unwrap().engine, &facts, &MachineFacts::default()).unwrap();
        assert_eq!(config.num_blocks * config.block_size * facts.kv_bytes_per_token, 1 << 30);
        assert_eq!(config.max_model_len, 1 << 14);
    }

    #[test]
    fn absurd_models_overflow_nothing() {
        let facts = ModelFacts { max_position_embeddings: usize::MAX, kv_bytes_per_token: usize::MAX };
        let error = resolve(&parse("").unwrap().engine, &facts, &MACHINE).unwrap_err();
        assert_eq!(error.violations[0].field, "--kv-cache-memory-bytes");
    }

    #[test]
    fn prefix_caching_follows_the_last_flag() {
        for (line, enabled) in [
            ("", true),
            ("--enable-prefix-caching", true),
            ("--enable-prefix-caching=false", false),
            ("--no-enable-prefix-caching", false),
            ("--enable-prefix-caching --no-enable-prefix-caching", false),
            ("--no-enable-prefix-caching --enable-prefix-caching", true),
        ] {
            assert_eq!(resolved(line).unwrap().enable_prefix_caching, enabled, "{line}");
        }
    }

    #[test]
    fn flags_out_of_range_are_usage_errors() {
        for line in [
            "--block-size 0",
            "--block-size 1025",
            "--max-num-seqs 0",
            "--max-num-batched-tokens x",
            "--kv-cache-memory-bytes 3Q",
            "--kv-cache-memory-bytes 99999999999T",
            "--kv-cache-memory-bytes 1G --num-gpu-blocks-override 5",
            "--drain-timeout 0",
            "--step-timeout -1",
            "--step-timeout nan",
            "--dtype float16",
            "--device tpu",
            "--threads 0",
            "a b",
            "--no-such-flag",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert_eq!(parse("--dtype float").unwrap().model.dtype, Dtype::Float32);
        assert_eq!(parse("--stall-timeout 0.25").unwrap().engine.stall_timeout, Duration::from_millis(250));
    }

    #[test]
    fn units_are_those_of_vllm() {
        for (text, number) in
            [("7", 7), ("1k", 1000), ("1K", 1024), ("2m", 2_000_000), ("2G", 2 << 30), ("1t", 1_000_000_000_000)]
        {
            assert_eq!(number_with_unit(text).unwrap(), number, "{text}");
        }
        for text in ["", "K", "1KB", "-1", "1.5G", "１"] {
            assert!(number_with_unit(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_argument_has_its_variable() {
        use clap::CommandFactory;
        let command = with_environment(Serve::command());
        assert!(command.get_arguments().count() > 20);
        for arg in command.get_arguments().filter(|arg| arg.get_id() != "no_enable_prefix_caching") {
            let variable = arg.get_env().unwrap().to_str().unwrap();
            let name = arg.get_long().unwrap_or("model").replace('-', "_").to_uppercase();
            assert_eq!(variable, format!("CANDLEWICK_{name}"));
        }
    }
}
