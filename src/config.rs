//! The only reader of flags and environment; arguments resolve to the limits that the rest of the crate works with.
//!
//! Two steps, as in ripgrep: parsing says what was asked for ([`EngineArgs`], [`ServeArgs`]), [`resolve`] says what is
//! in force ([`EngineConfig`]) given the model and the machine, and is pure. Flag names are vLLM's where it has the
//! same thing. Every flag is an environment variable too ([`with_environment`]); the command line wins.

mod access;
mod browsers;
mod effective;
mod file;
mod keys;
mod kv_groups;
mod limits;
mod lora;
mod machine;
mod memory;
mod models;
mod resolve;
mod streams;
pub(crate) mod suggest;
#[cfg(test)]
mod tests;
mod tls;
mod values;
mod variables;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Command, ValueEnum, builder::FalseyValueParser};

pub use self::access::{AccessArgs, Secret};
pub use self::browsers::{AllowedOrigins, BrowserArgs};
pub use self::effective::{Effective, Entry, Source};
pub use self::file::matches;
pub use self::keys::{KeyHash, TenantKeys, key_hash, read_keys_file};
pub use self::kv_groups::{KvCacheGroups, LayerPlace};
pub use self::limits::TenantLimits;
pub use self::lora::{LoraArgs, LoraModule};
pub use self::machine::{MachineFacts, MemoryBound, anonymous_bytes, resident_bytes};
pub use self::memory::{MemoryPlan, plan_memory};
pub use self::models::{ModelModule, ModelsArgs};
pub use self::resolve::{ModelFacts, resolve};
pub use self::streams::StreamArgs;
pub use self::tls::{ClientCertificates, TlsArgs};
pub(crate) use self::values::instruction_set;
use self::values::{count, device, kv_cache_memory, number_with_unit, seconds, share};
pub use self::variables::{PREFIX, unknown_variables};
use crate::{
    error::{Error, Result},
    kernels::machine::InstructionSet,
};

/// Limits of one engine, resolved: every field is in force as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// Tokens a KV block.
    pub block_size: usize,
    /// Blocks of the KV cache.
    pub num_blocks: usize,
    /// Which layers share them, and for how long.
    pub kv_groups: KvCacheGroups,
    /// Tokens a step, prefill chunks and decodes together.
    pub max_num_batched_tokens: usize,
    /// What a step that computes prompts beside decodes may take; zero: no matter what; none: twice what decodes take.
    pub itl_target: Option<Duration>,
    /// Sequences that hold blocks and run at once.
    pub max_num_seqs: usize,
    /// Sequences of the largest step of decoding that a card has recorded and runs with one launch; 0: none is.
    pub max_cudagraph_capture_size: usize,
    /// Prompt and generated tokens a sequence; never more than the cache holds.
    pub max_model_len: usize,
    /// Requests that may wait beyond those that run; one more is refused.
    pub max_waiting: usize,
    /// Tokens that may wait for a reader before its sequence leaves the batch.
    pub stream_capacity_tokens: usize,
    /// Whether full blocks are kept and shared by content.
    pub enable_prefix_caching: bool,
    /// Whether all that the model keeps of a sequence stands in blocks, so that another one, or the same one further back,
    /// can go on from some of them. Where it does not, no block is shared or kept for later, a sequence that goes back is
    /// computed anew from its first token, and at most `max_num_seqs` hold blocks at once.
    pub prefixes_are_shared: bool,
    /// Whether routers can be told what the prefix cache holds.
    pub enable_kv_cache_events: bool,
    /// A reader that takes nothing for this long loses its stream (`ABORTED`).
    pub stall_timeout: Duration,
    /// A step that takes this long is given up and the engine restarted.
    pub step_timeout: Duration,
    /// Share of the blocks, in percent, that sessions may keep between two turns.
    pub leased_kv_percent: usize,
    /// Share of the blocks, in percent, that sessions may pin.
    pub pinned_kv_percent: usize,
    /// Bytes that the model may take while it runs: its weights, adapters and KV cache, what it keeps beside that, and what a
    /// step takes on its way. 0 where nobody has added them up.
    pub promised_bytes: u64,
    /// Whether the log has requests with their prompts, and how much of those.
    pub log_requests: Option<LogRequests>,
}

/// How requests stand in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogRequests {
    /// Most characters of a prompt, and most ids of one that has no text; all of it where that is left open.
    pub max_len: Option<usize>,
}

impl EngineArgs {
    /// Sequences of the largest step of decoding that a card records; 0: none is.
    #[must_use]
    pub fn recorded_seqs(&self) -> usize {
        if self.enforce_eager { 0 } else { self.max_cudagraph_capture_size.min(self.max_num_seqs) }
    }
}

impl EngineConfig {
    /// Blocks that sessions may keep between two turns.
    #[must_use]
    pub fn max_leased_blocks(&self) -> usize {
        self.num_blocks.saturating_mul(self.leased_kv_percent) / 100
    }

    /// Blocks, among those, that go last.
    #[must_use]
    pub fn max_pinned_blocks(&self) -> usize {
        self.num_blocks.saturating_mul(self.pinned_kv_percent.min(self.leased_kv_percent)) / 100
    }

    /// Tokens of the longest sequence that the KV cache can hold, whoever else is here.
    #[must_use]
    pub fn longest_cached(&self) -> usize {
        self.kv_groups.longest(self.num_blocks, self.block_size, self.max_num_batched_tokens)
    }

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
            kv_groups: KvCacheGroups::ONE,
            max_num_batched_tokens: 512,
            itl_target: None,
            max_num_seqs: 64,
            max_cudagraph_capture_size: 64,
            max_model_len: 4096,
            max_waiting: 1024,
            stream_capacity_tokens: 64,
            enable_prefix_caching: true,
            prefixes_are_shared: true,
            enable_kv_cache_events: true,
            stall_timeout: Duration::from_secs(120),
            step_timeout: Duration::from_secs(120),
            leased_kv_percent: 50,
            pinned_kv_percent: 25,
            promised_bytes: 0,
            log_requests: None,
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

/// How large the KV cache is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvCacheMemory {
    /// As large as leaves the machine room.
    #[default]
    Auto,
    /// This many bytes, or what fits of them.
    Bytes(usize),
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
    /// 8 bits, floats (E4M3) with a scale an output; inputs are rounded to the same. On NVIDIA cards of compute capability
    /// 8.9 or later.
    #[value(name = "fp8")]
    Fp8,
}

impl Quantization {
    /// The one that `--quantization` calls so.
    ///
    /// # Errors
    /// `InvalidArgument` that names all of them.
    pub fn parse(name: &str) -> Result<Self> {
        let all = Self::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let names = all.map(|value| value.get_name().to_owned()).collect::<Vec<_>>().join(", ");
        Self::from_str(name, false)
            .map_err(|_| Error::invalid("quantization", format!("is {name:?}, must be one of {names}")))
    }
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// The first NVIDIA card, else Apple's GPU, else the CPU: whichever there is and the program was built for.
    #[default]
    Auto,
    /// All cores.
    Cpu,
    /// The NVIDIA card with this number, from 0; needs a build with the feature `cuda`.
    Cuda(usize),
    /// Apple's GPU; needs a build with the feature `metal`.
    Metal,
}

/// Which model, and how it is loaded.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Directory, GGUF file or Hugging Face repository, org/name[:file-or-quantization][@revision]; the built-in model if
    /// left out.
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
    /// Where to compute: `cpu`, `cuda` (the first NVIDIA card), `cuda:1`, `metal`, or `auto`: a card where the program
    /// was built for one that is there, else the CPU.
    #[arg(long, default_value = "auto", value_parser = device)]
    pub device: DeviceKind,
    /// On a card: compute a sequence to the same bits whatever else runs with it, as the CPU always does. Prompts take
    /// longer.
    #[arg(long)]
    pub batch_invariant: bool,
    /// Threads to compute with; all cores if left out.
    #[arg(long, value_name = "N", value_parser = count(1, 4096))]
    pub threads: Option<usize>,
    /// Instructions to compute with on the CPU; the best that it has if left out.
    #[arg(long, value_name = "SET", value_parser = instruction_set())]
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
    /// Where it is looked for if it is no path.
    #[command(flatten)]
    pub hub: HubArgs,
}

/// How models of the Hugging Face hub are found. Every command that takes a model has these flags.
#[derive(Args, Clone, Debug, Default)]
pub struct HubArgs {
    /// Branch, tag or commit of a Hugging Face repository.
    #[arg(long)]
    pub revision: Option<String>,
    /// Keep downloads here instead of in Hugging Face's own cache.
    #[arg(long, value_name = "DIR")]
    pub download_dir: Option<PathBuf>,
    /// Use what was downloaded before, never the network; as does HF_HUB_OFFLINE.
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
    /// Blocks of the KV cache, each of all layers, on any device.
    #[arg(long, value_name = "BLOCKS", value_parser = count(1, u32::MAX.into()), conflicts_with = "kv_cache_memory_bytes")]
    pub num_gpu_blocks_override: Option<usize>,
    /// Share of a card's memory that the server may take, all together; on the CPU it has no meaning.
    #[arg(long, value_name = "SHARE", default_value = "0.9", value_parser = share)]
    pub gpu_memory_utilization: f64,
    /// Bytes of the KV cache (2G, 512M), cut to what fits; `auto` takes a quarter of what weights and activations leave,
    /// at most 4G, and on a card all of it.
    #[arg(long, alias = "kv-cache-memory", value_name = "BYTES", default_value = "auto", value_parser = kv_cache_memory)]
    pub kv_cache_memory_bytes: KvCacheMemory,
    /// Tokens a step, prefill chunks and decodes together.
    #[arg(long, value_name = "TOKENS", default_value = "512", value_parser = count(1, 1 << 20))]
    pub max_num_batched_tokens: usize,
    /// Time between two tokens of a stream, in milliseconds, that prompts computed beside it may stretch it to: steps take
    /// no more of them than fit, and four tokens at the least. 0 for no limit; twice what it is without them if left out.
    #[arg(long, value_name = "MS", value_parser = count(0, 3_600_000))]
    pub itl_target_ms: Option<usize>,
    /// Sequences that run at once.
    #[arg(long, value_name = "N", default_value = "64", value_parser = count(1, 1 << 16))]
    pub max_num_seqs: usize,
    /// On a card: sequences of the largest step of decoding that is recorded as a CUDA graph and run with one launch.
    #[arg(long, value_name = "N", default_value = "256", value_parser = count(1, 1 << 16))]
    pub max_cudagraph_capture_size: usize,
    /// On a card: launch every kernel of a step by itself, nothing recorded.
    #[arg(long)]
    pub enforce_eager: bool,
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
    /// Share of the KV blocks that sessions may keep between two turns; others take them back when they need them.
    #[arg(long, value_name = "PERCENT", default_value = "50", value_parser = count(0, 100))]
    pub leased_kv_percent: usize,
    /// Share of the KV blocks that sessions may pin: those are taken back only where nothing else could run.
    #[arg(long, value_name = "PERCENT", default_value = "25", value_parser = count(0, 100))]
    pub pinned_kv_percent: usize,
    /// Write each request to the log, with its prompt: without this nothing of a prompt stands there.
    #[arg(long, help_heading = "Logging")]
    pub enable_log_requests: bool,
    /// Most characters of a prompt in the log, and most ids of one that came as ids; all of it if left out.
    #[arg(long, value_name = "N", value_parser = count(0, u32::MAX.into()), help_heading = "Logging")]
    pub max_log_len: Option<usize>,
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
    /// Bounds of streams and sessions.
    #[command(flatten)]
    pub streams: StreamArgs,
    /// Adapters beside the model.
    #[command(flatten)]
    pub lora: LoraArgs,
    /// Models beside it.
    #[command(flatten)]
    pub models: ModelsArgs,
    /// Address and port to listen on, for everything.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:50051", help_heading = "Server")]
    pub listen: String,
    /// Name that requests use; the model's own if left out.
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    pub served_model_name: Option<String>,
    /// Who may call.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Encryption.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Who may call from a browser.
    #[command(flatten)]
    pub browsers: BrowserArgs,
    /// Say where it listens as one JSON object; with --print-config print that as one.
    #[arg(long, help_heading = "Server")]
    pub json: bool,
    /// Send a span a request to the collector of traces at this address: OTLP over gRPC, such as http://127.0.0.1:4317.
    #[arg(long, value_name = "URL", help_heading = "Server")]
    pub otlp_traces_endpoint: Option<String>,
    /// Bytes that the machine reads a second at most (25g), as `candlewick doctor` says: the metrics then have it beside what
    /// steps read.
    #[arg(long, value_name = "BYTES", value_parser = number_with_unit, help_heading = "Server")]
    pub memory_bandwidth: Option<usize>,
    /// A drill: have the engine panic once, in the first step after this time, to see how clients bear it.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, help_heading = "Server")]
    pub engine_panic_after: Option<Duration>,
    /// Time that streams have to end after Ctrl-C or SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds, help_heading = "Server")]
    pub drain_timeout: Duration,
    /// The file that this was read from.
    #[command(flatten)]
    pub file: FileArgs,
}

/// A file of settings. None of these can be in it.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Server")]
pub struct FileArgs {
    /// Take settings from a TOML file: flags by their names. Variables and the command line win; read again on SIGHUP.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the configuration in force and where each value came from, and end.
    #[arg(long)]
    pub print_config: bool,
}

/// The arguments of this process.
#[must_use]
pub fn arguments() -> Vec<OsString> {
    std::env::args_os().collect()
}

/// The names of the variables of this process.
pub fn variables() -> impl Iterator<Item = OsString> {
    std::env::vars_os().map(|(name, _)| name)
}

/// A variable that programs share and that is no setting of ours; none where it is empty or not there.
#[must_use]
pub(crate) fn shared_variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// How much is said on standard error.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// What to log: a level (error, warn, info, debug, trace), or directives such as `info,candlewick=debug`.
    #[arg(long = "log-level", id = "log", value_name = "LEVEL", global = true, help_heading = "Logging")]
    pub log: Option<String>,
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
            let name: &'static str = format!("{PREFIX}{}", id.to_uppercase()).leak();
            let arg = if arg.get_action().takes_values() { arg } else { arg.value_parser(FalseyValueParser::new()) };
            arg.env(name).hide_env_values(true)
        })
        .mut_subcommands(with_environment)
}
