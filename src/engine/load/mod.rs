//! From a path to everything that an engine serves: the model, its tokenizer and chat template, and its defaults.

mod demo;
mod device;
mod memory;
mod start;
mod vocab;

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::Device;

pub use self::{
    memory::ModelMemory,
    start::{ModelSource, Started, model_name},
};

use crate::{
    arch::{
        self, KeepOptions, Model, ModelLoad,
        config::ModelConfig,
        generation_config::GenerationDefaults,
        long_tail::{LongTail, LongTailLoad},
        pooling_config,
        served::ServedConfig,
        shapes::tensor_shapes,
    },
    config::{
        EngineConfig, HubArgs, LoadFormat, LoraArgs, LoraModule, MachineFacts, ModelArgs, ModelFacts, Quantization,
    },
    engine::{
        Adapters, ExecutorFactory, ModelImpl, ModelInfo, ModelText,
        runner::{FilledSteps, Runner, RunnerConfig},
    },
    error::{Error, Result},
    ids::TokenId,
    kernels::{device::make_batch_invariant, linear::check_fp8, machine::use_instructions, pool::Pool},
    params::Pooling,
    text::{ChatTemplate, TOKENIZER_FILES, Tokenizer, TokenizerConfig},
    weights::{
        TensorSource, Weights,
        file::read_small,
        files::{ModelDirectory, ModelFiles, model_files},
        gguf::{Gguf, GgufSource},
        hub::{self, DownloadProgress, Found, HubOptions},
        safetensors::SafetensorsSource,
        seeded::SeededSource,
    },
};

/// Most bytes of a config.json or generation_config.json.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// What dummy weights are drawn from; any would do, and all machines draw the same.
const DUMMY_SEED: u64 = 0;

/// How far loading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadProgress {
    /// Files come from the hub.
    Downloading {
        /// Bytes that are here.
        bytes: u64,
        /// Of how many.
        total_bytes: u64,
    },
    /// Tensors are packed.
    Loading {
        /// Tensors that are packed.
        tensors: usize,
        /// Of how many.
        total: usize,
    },
}

/// A model, ready to run.
#[derive(Clone)]
pub enum ServedModel {
    /// One of ours, over blocks.
    Paged(Arc<dyn Model>),
    /// One of candle-transformers, a copy a sequence.
    Copied(Arc<LongTail>),
}

impl ServedModel {
    /// The model of ours that it is, if it is one.
    #[must_use]
    pub fn paged(&self) -> Option<&Arc<dyn Model>> {
        match self {
            Self::Paged(model) => Some(model),
            Self::Copied(_) => None,
        }
    }
}

/// What an engine serves.
pub struct LoadedModel {
    /// The model.
    pub model: ServedModel,
    /// What clients are told of it.
    pub info: ModelInfo,
    /// Its tokenizer and chat template, as far as it brings them.
    pub text: ModelText,
}

impl LoadedModel {
    /// Lets requests name adapters, and loads those that are there from the start.
    ///
    /// # Errors
    /// As [`Adapters::load`]; `InvalidArgument` where the model is not of a kind that takes adapters.
    pub fn serve_adapters(&mut self, args: &LoraArgs) -> Result<()> {
        let adapters = match &self.model {
            ServedModel::Paged(model) => Adapters::new(model.clone(), args),
            ServedModel::Copied(_) if !args.enabled() => return Ok(()),
            ServedModel::Copied(_) => {
                let why = format!("{} runs through candle-transformers, which takes none", self.info.architecture);
                return Err(Error::invalid("--enable-lora", why));
            }
        };
        for LoraModule { name, path } in &args.lora_modules {
            adapters.load(name, Path::new(path), &self.info.name)?;
        }
        self.info.adapters = adapters;
        Ok(())
    }

    /// Steps that are filled up: on a card, which has them recorded.
    fn filled_steps(&self, config: &EngineConfig) -> Option<FilledSteps> {
        let &EngineConfig { max_cudagraph_capture_size: most_rows, max_model_len, .. } = config;
        let on_card = self.model.paged().is_some_and(|model| model.adaptable().1.is_cuda());
        (on_card && most_rows > 0).then_some(FilledSteps { most_rows, max_model_len })
    }

    /// Makes runners over this model: each with a KV cache and threads of its own, all with the same weights.
    #[must_use]
    pub fn executor_factory(&self, config: &EngineConfig, threads: Option<usize>) -> ExecutorFactory {
        let model = self.model.clone();
        let config = RunnerConfig {
            num_blocks: config.num_blocks,
            block_size: config.block_size,
            num_states: config.max_num_seqs,
            num_threads: threads.unwrap_or(0),
            eos_token_ids: self.info.eos_token_ids.clone(),
            filled_steps: self.filled_steps(config),
        };
        Arc::new(move || {
            Ok(Box::new(match &model {
                ServedModel::Paged(model) => Runner::new(model.clone(), &config)?,
                ServedModel::Copied(model) => Runner::with_copies(model.clone(), &config)?,
            }))
        })
    }
}

/// Loads the model that `args` names (a directory, a GGUF file, a name on the hub, or nothing for the one inside the
/// program), to be served as `served_model_name` or by its own name.
///
/// # Errors
/// `FailedPrecondition` that names the file and the field or tensor at fault, or the device that is not there; the
/// hub's, where it has to be asked.
pub fn load(
    args: &ModelArgs,
    served_model_name: Option<&str>,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<LoadedModel> {
    Ok(load_planned(args, served_model_name, |_| Ok(()), progress)?.0)
}

/// What a plan decides that a model is loaded by.
pub trait Planned {
    /// Tokens that a sequence may have; the model's longest context where it does not say.
    fn max_model_len(&self) -> Option<usize>;
}

impl Planned for () {
    fn max_model_len(&self) -> Option<usize> {
        None
    }
}

impl Planned for EngineConfig {
    fn max_model_len(&self) -> Option<usize> {
        Some(self.max_model_len)
    }
}

/// As [`load`], after `plan` was told what the model would take, before a weight of it is read: it may refuse, and what it
/// decides comes back with the model.
///
/// # Errors
/// As [`load`], and what `plan` fails with.
pub fn load_planned<T: Planned>(
    args: &ModelArgs,
    served_model_name: Option<&str>,
    plan: impl FnOnce(&ModelFacts) -> Result<T>,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<(LoadedModel, T)> {
    load_on(&device::open(args.device)?, args, served_model_name, plan, progress)
}

/// As [`load_planned`], on this device.
fn load_on<T: Planned>(
    device: &Device,
    args: &ModelArgs,
    served_model_name: Option<&str>,
    plan: impl FnOnce(&ModelFacts) -> Result<T>,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<(LoadedModel, T)> {
    if let Some(set) = args.instruction_set {
        use_instructions(set)?;
    }
    if args.batch_invariant {
        make_batch_invariant();
    }
    if args.quantization == Some(Quantization::Fp8) {
        check_fp8(device).map_err(|error| error.context("--quantization fp8"))?;
    }
    let parts = match args.model.as_deref() {
        None => demo::parts()?,
        Some(model) => {
            let wanted = match args.load_format {
                LoadFormat::Auto => Wanted::Model,
                LoadFormat::Dummy => Wanted::BesideWeights,
            };
            located_parts(&locate(model, &args.hub, wanted, progress)?, model, args.load_format)?
        }
    };
    let parts = with_chat_options(parts, args)?;
    let &ModelArgs { dtype, quantization, kv_cache_dtype, .. } = args;
    let keep = KeepOptions { dtype, quantization, kv_cache_dtype };
    let headers = parts.weights.headers();
    let planned = plan(&parts.config.facts(&keep, &headers)?)?;
    let parts = match planned.max_model_len() {
        Some(max_model_len) => Parts { config: parts.config.up_to(max_model_len), ..parts },
        None => parts,
    };
    let report = RefCell::new(progress);
    let packed = |tensors: usize, total: usize| (report.borrow_mut())(LoadProgress::Loading { tensors, total });
    let pool = Pool::new(args.threads.unwrap_or(0))?;
    let mut loaded = pool.install(|| assemble(parts, args, device, &packed))?;
    if let Some(name) = served_model_name {
        name.clone_into(&mut loaded.info.name);
    }
    Ok((loaded, planned))
}

/// Loads a tokenizer alone: that of a model's directory or GGUF file, a `tokenizer.json`, `.model` or `.tiktoken` file, or
/// of the model inside the program where nothing is named.
///
/// # Errors
/// `FailedPrecondition` that names the file and the field at fault, or says that there is no tokenizer.
pub fn load_tokenizer(path: Option<&Path>) -> Result<Tokenizer> {
    let Some(path) = path else {
        return demo::parts()?.tokenizer.ok_or_else(|| Error::internal("the built-in model has no tokenizer"));
    };
    let found = match model_files(path) {
        Ok(ModelFiles::Gguf(file)) => vocab::gguf_vocab(&Gguf::open(&file)?)?.map(Tokenizer::from_gguf).transpose()?,
        _ if path.is_dir() => Tokenizer::from_directory(path)?,
        _ => Some(Tokenizer::from_file(path)?),
    };
    found.ok_or_else(|| {
        Error::bad_file(path, "tokenizer", format!("is missing: none of {}", TOKENIZER_FILES.join(", ")))
    })
}

/// What of a model is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    Model,
    /// Of a directory all but the weights: its configuration, and what its tokenizer is made of.
    BesideWeights,
}

/// The directory or GGUF file of the model that is called `model`: a path, or a name of the hub, whose files are downloaded
/// as far as they are not here.
///
/// # Errors
/// `InvalidArgument` for what can be neither; the hub's.
pub fn find(model: &str, hub: &HubArgs, wanted: Wanted, progress: &mut dyn FnMut(LoadProgress)) -> Result<PathBuf> {
    Ok(locate(model, hub, wanted, progress)?.path().to_owned())
}

/// Downloads a model of the hub, as far as it is not here, and says where its files are and why it is these. With `verify`,
/// what is here already is checked too, and downloaded again where it is wrong.
///
/// # Errors
/// `InvalidArgument` for what cannot be a model of the hub; the hub's.
pub fn fetch(model: &str, hub: &HubArgs, verify: bool, progress: &mut dyn FnMut(LoadProgress)) -> Result<Found> {
    if is_path(model) {
        return Err(Error::invalid("model", format!("{model} is a path here, not a model of the hub")));
    }
    let options = HubOptions { verify, ..hub_options(hub) };
    let found = on_hub(model, &options, progress)?;
    // What cannot be served is said now and not when it is wanted.
    model_files(&found.path)?;
    Ok(found)
}

/// Where a model is.
enum Located {
    /// At a path.
    Path(PathBuf),
    /// In the hub's cache, where paths say nothing.
    Hub(PathBuf),
}

impl Located {
    fn path(&self) -> &Path {
        match self {
            Self::Path(path) | Self::Hub(path) => path,
        }
    }
}

/// Whether a model is meant by its path: one that exists, or that cannot be a name of the hub.
fn is_path(model: &str) -> bool {
    let path = Path::new(model);
    path.exists() || path.is_absolute() || model.starts_with('.')
}

fn locate(model: &str, hub: &HubArgs, wanted: Wanted, progress: &mut dyn FnMut(LoadProgress)) -> Result<Located> {
    if is_path(model) {
        return Ok(Located::Path(model.into()));
    }
    let options = HubOptions { without_weights: wanted == Wanted::BesideWeights, ..hub_options(hub) };
    let Found { path, why } = on_hub(model, &options, progress)?;
    tracing::info!("{why}");
    Ok(Located::Hub(path))
}

fn hub_options(args: &HubArgs) -> HubOptions {
    HubOptions {
        revision: args.revision.clone(),
        cache_dir: args.download_dir.clone(),
        offline: args.offline,
        memory_bytes: MachineFacts::here().available_memory_bytes.map(|bytes| bytes as u64),
        ..HubOptions::default()
    }
}

fn on_hub(model: &str, options: &HubOptions, progress: &mut dyn FnMut(LoadProgress)) -> Result<Found> {
    hub::resolve(model, options, &mut |DownloadProgress { bytes, total_bytes }| {
        progress(LoadProgress::Downloading { bytes, total_bytes });
    })
}

fn assemble(
    parts: Parts,
    options: &ModelArgs,
    device: &Device,
    progress: &dyn Fn(usize, usize),
) -> Result<LoadedModel> {
    let Parts { name, path, config, weights, tokenizer, chat_template, generation, pooling } = parts;
    let known = config.common();
    if let Some(tokenizer) = &tokenizer {
        tokenizer.ensure_fits(known.vocab_size)?;
    }
    let (model, size) = load_model(&weights, config, device, options, progress)?;

    // Each file may know an end token that the others leave out; whichever comes ends the sequence.
    let mut eos_token_ids = known.eos_token_ids;
    let others = tokenizer.iter().filter_map(Tokenizer::eos).chain(generation.eos_token_ids.iter().copied());
    for id in others {
        if !eos_token_ids.contains(&id) {
            eos_token_ids.push(id);
        }
    }
    let weights_hash = match options.load_format {
        LoadFormat::Auto => weights.fingerprint(),
        // Drawn, not read: the seed is all there is to know.
        LoadFormat::Dummy => format!("dummy-{DUMMY_SEED}"),
    };
    let info = ModelInfo {
        weights_hash,
        name,
        path: path.display().to_string(),
        architecture: known.architecture,
        model_type: known.model_type,
        vocab_size: known.vocab_size,
        embedding_size: known.hidden_size,
        // Copies give logits and no hidden states.
        pooling: pooling.filter(|_| model.paged().is_some()),
        eos_token_ids,
        bos_token_id: known.bos_token_id.or_else(|| tokenizer.as_ref()?.bos()),
        model_impl: match &model {
            ServedModel::Paged(_) => ModelImpl::Candlewick,
            ServedModel::Copied(_) => ModelImpl::CandleTransformers,
        },
        num_parameters: size.num_parameters as u64,
        block_parameters: size.block_parameters as u64,
        weight_bytes: size.weight_bytes as u64,
        kv_bytes_per_token: size.kv_bytes_per_token as u64,
        dtype: size.dtype,
        adapters: Adapters::default(),
        default_params: generation.sampling_params(),
    };
    let text = ModelText { tokenizer: tokenizer.map(Arc::new), chat_template: chat_template.map(Arc::new) };
    Ok(LoadedModel { model, info, text })
}

/// What clients are told of a loaded model's size.
struct Size {
    num_parameters: usize,
    block_parameters: usize,
    weight_bytes: usize,
    kv_bytes_per_token: usize,
    dtype: String,
}

fn load_model(
    weights: &Weights,
    config: ServedConfig,
    device: &Device,
    options: &ModelArgs,
    progress: &dyn Fn(usize, usize),
) -> Result<(ServedModel, Size)> {
    let &ModelArgs { dtype, quantization, kv_cache_dtype, .. } = options;
    match config {
        ServedConfig::Ours(config) => {
            let load = ModelLoad { weights, config: &config, device, dtype, quantization, kv_cache_dtype, progress };
            let model = arch::load(&load)?;
            let arch::ModelInfo { num_parameters, block_parameters, weight_bytes, .. } = *model.info();
            let (kv_bytes_per_token, dtype) = (model.info().kv_shape.bytes_per_token(), model.info().dtype.clone());
            let size = Size { num_parameters, block_parameters, weight_bytes, kv_bytes_per_token, dtype };
            Ok((ServedModel::Paged(model), size))
        }
        ServedConfig::LongTail(config) => {
            let model = LongTail::load(LongTailLoad { weights, config: *config, device, progress })?;
            let size = Size {
                num_parameters: model.num_parameters(),
                block_parameters: model.block_parameters(),
                weight_bytes: model.num_parameters().saturating_mul(size_of::<f32>()),
                kv_bytes_per_token: model.config().kv_bytes_per_token(),
                dtype: "float32".to_owned(),
            };
            Ok((ServedModel::Copied(Arc::new(model)), size))
        }
    }
}

/// A model's parts before its weights are packed.
struct Parts {
    name: String,
    path: PathBuf,
    config: ServedConfig,
    weights: Weights,
    tokenizer: Option<Tokenizer>,
    chat_template: Option<ChatTemplate>,
    generation: GenerationDefaults,
    pooling: Option<Pooling>,
}

/// The parts of the model that `model` was found as.
fn located_parts(located: &Located, model: &str, load_format: LoadFormat) -> Result<Parts> {
    let mut parts = match model_files(located.path())? {
        ModelFiles::Directory(files) => directory_parts(&files, load_format)?,
        ModelFiles::Gguf(path) if load_format == LoadFormat::Dummy => {
            let why = format!("is dummy, which takes the config.json of a directory, not {}", path.display());
            return Err(Error::invalid("--load-format", why));
        }
        ModelFiles::Gguf(path) => gguf_parts(file_name(&path), Gguf::open(&path)?)?,
    };
    if let Located::Hub(_) = located {
        parts.name = model_name(model);
    }
    Ok(parts)
}

fn directory_parts(files: &ModelDirectory, load_format: LoadFormat) -> Result<Parts> {
    let config = ServedConfig::from_hf_json(&files.config_json, &read_text(&files.config_json)?)?;
    let source: Box<dyn TensorSource> = match load_format {
        LoadFormat::Dummy => match &config {
            ServedConfig::Ours(config) => Box::new(SeededSource::new(DUMMY_SEED, tensor_shapes(config))),
            ServedConfig::LongTail(config) => {
                let why = format!("is dummy, which {} has no list of tensors for", config.family().architecture);
                return Err(Error::invalid("--load-format", why));
            }
        },
        LoadFormat::Auto if files.safetensors.is_none() => {
            let why = "is missing, and so is model.safetensors.index.json: there are no weights";
            return Err(Error::bad_file(&files.path, "model.safetensors", why));
        }
        LoadFormat::Auto => Box::new(SafetensorsSource::open(&files.path)?),
    };
    let generation = match &files.generation_config {
        Some(path) => GenerationDefaults::from_json(path, &read_text(path)?, config.common().vocab_size)?,
        None => GenerationDefaults::default(),
    };
    let pooling = match &files.pooling_config {
        Some(path) => pooling_config::from_json(path, &read_text(path)?)?,
        None => Some(Pooling::Last),
    };
    let tokenizer_config = files.tokenizer_config.as_deref().map(TokenizerConfig::from_file).transpose()?;
    Ok(Parts {
        name: file_name(&files.path),
        path: files.path.clone(),
        weights: match &config {
            ServedConfig::Ours(config) => tied_or_not(Weights::new(source), config),
            ServedConfig::LongTail(_) => Weights::new(source),
        },
        tokenizer: Tokenizer::from_directory(&files.path)?,
        chat_template: directory_template(files, tokenizer_config.as_ref()),
        config,
        generation,
        pooling,
    })
}

/// The chat template of a directory; the file of its own counts before the one in tokenizer_config.json.
fn directory_template(files: &ModelDirectory, config: Option<&TokenizerConfig>) -> Option<ChatTemplate> {
    let template = match (&files.chat_template, config) {
        (Some(path), config) => {
            let token =
                |token: fn(&TokenizerConfig) -> Option<&String>| config.and_then(token).map_or("", String::as_str);
            ChatTemplate::from_file(path, token(|c| c.bos_token.as_ref()), token(|c| c.eos_token.as_ref()))
        }
        (None, Some(config)) if !config.chat_templates.is_empty() => ChatTemplate::from_tokenizer_config(config, None),
        (None, _) => return None,
    };
    usable(template)
}

fn gguf_parts(name: String, gguf: Gguf) -> Result<Parts> {
    let gguf = Arc::new(gguf);
    let config = ModelConfig::from_gguf(&gguf)?;
    let tokenizer = vocab::gguf_vocab(&gguf)?.map(Tokenizer::from_gguf).transpose()?;
    let token = |id: Option<TokenId>| id.and_then(|id| tokenizer.as_ref()?.id_to_token(id)).unwrap_or_default();
    let (bos, eos) = (token(config.bos_token_id), token(config.eos_token_ids.first().copied()));
    let template = gguf.string("tokenizer.chat_template")?.map(|source| {
        let file = gguf.path().display().to_string();
        ChatTemplate::new(source, &bos, &eos).map_err(|e| e.context(format_args!("{file}: chat template")))
    });
    Ok(Parts {
        name,
        path: gguf.path().to_owned(),
        config: ServedConfig::Ours(Box::new(config)),
        tokenizer,
        chat_template: template.and_then(usable),
        generation: GenerationDefaults::from_gguf(&gguf)?,
        pooling: pooling_config::from_gguf(&gguf)?,
        weights: Weights::new(Box::new(GgufSource::new(gguf)?)),
    })
}

/// The weights of a model whose head may be its embedding.
fn tied_or_not(weights: Weights, config: &ModelConfig) -> Weights {
    if config.tie_word_embeddings { weights.tied() } else { weights }
}

/// The template and formats that the flags name, in place of the model's own.
fn with_chat_options(mut parts: Parts, args: &ModelArgs) -> Result<Parts> {
    if let Some(path) = &args.chat_template {
        let token =
            |id: Option<TokenId>| id.and_then(|id| parts.tokenizer.as_ref()?.id_to_token(id)).unwrap_or_default();
        let (bos, eos) = match &parts.chat_template {
            Some(template) => (template.tokens().0.to_owned(), template.tokens().1.to_owned()),
            None => (
                token(parts.tokenizer.as_ref().and_then(Tokenizer::bos)),
                token(parts.tokenizer.as_ref().and_then(Tokenizer::eos)),
            ),
        };
        parts.chat_template = Some(ChatTemplate::from_file(path, &bos, &eos)?);
    }
    if let Some(template) = parts.chat_template.take() {
        let (calls, reasoning) = (args.tool_call_parser.as_deref(), args.reasoning_parser.as_deref());
        let format = template.output_format().with_names(calls, reasoning)?;
        parts.chat_template = Some(template.with_output_format(format));
    }
    Ok(parts)
}

/// A model whose chat template cannot be used still serves prompts and token ids.
fn usable(template: Result<ChatTemplate>) -> Option<ChatTemplate> {
    template.inspect_err(|error| tracing::warn!("the model goes without its chat template: {error}")).ok()
}

/// The name of a directory or file without its extension, as requests may use it.
fn file_name(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = if whole.is_dir() { whole.file_name() } else { whole.file_stem() };
    name.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read_small(path, MAX_CONFIG_BYTES)?).map_err(|_| Error::bad_file(path, "file", "is not UTF-8"))
}
