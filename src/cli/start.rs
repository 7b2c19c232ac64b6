//! From the command line to a running engine: find the model, load it, resolve the limits, start.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    sync::Arc,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{machine, say};
use crate::{
    config::{EngineArgs, ModelArgs, ModelFacts, resolve},
    engine::{
        Engine, ExecutorFactory,
        load::{LoadOptions, LoadedModel, ModelSource, load},
        runner::{Runner, RunnerConfig},
    },
    error::{Error, Result},
    telemetry::Telemetry,
    weights::hub::{self, HubOptions},
};

/// Loads the model and starts an engine for it. Progress is shown where standard error is a terminal.
///
/// # Errors
/// Why the model cannot be loaded, or what the flags ask for that it cannot do.
pub(super) async fn start_engine(
    model: &ModelArgs,
    engine: &EngineArgs,
    served_model_name: Option<&str>,
) -> Result<Engine> {
    if model.model.is_none() {
        say("no model given: using the built-in stand-in with random weights; its text is noise");
    }
    let args = model.clone();
    // Takes seconds to minutes, and signals want to be heard meanwhile.
    let loaded = tokio::task::spawn_blocking(move || load_model(&args)).await;
    let LoadedModel { model: weights, mut info, text } =
        loaded.map_err(|error| Error::internal(format!("loading the model panicked: {error}")))??;
    if let Some(name) = served_model_name {
        info.name = name.to_owned();
    }
    let facts = ModelFacts {
        max_position_embeddings: weights.config().max_position_embeddings,
        kv_bytes_per_token: weights.info().kv_shape.bytes_per_token(),
    };
    let config = resolve(engine, &facts, &machine::facts())?;
    let runner = RunnerConfig {
        num_blocks: config.num_blocks,
        block_size: config.block_size,
        num_threads: model.threads.unwrap_or(0),
        eos_token_ids: info.eos_token_ids.clone(),
    };
    let factory: ExecutorFactory = Arc::new(move || Ok(Box::new(Runner::new(weights.clone(), &runner)?)));
    let telemetry = Arc::new(Telemetry::new(&info.name));
    Engine::start(info, text, config, telemetry, factory).await
}

fn load_model(args: &ModelArgs) -> Result<LoadedModel> {
    let source = match &args.model {
        None => ModelSource::Demo,
        Some(model) => ModelSource::Path(find(model, args)?),
    };
    let bar = bar("loading {bar:40} {pos}/{len} tensors");
    let options = LoadOptions { dtype: args.dtype, device: args.device };
    let loaded = load(&source, options, &|done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    loaded
}

/// The model's folder or file: the path itself where there is something, what the hub has of that name otherwise.
fn find(model: &str, args: &ModelArgs) -> Result<PathBuf> {
    let path = PathBuf::from(model);
    if path.exists() {
        return Ok(path);
    }
    let options = HubOptions {
        revision: args.revision.clone(),
        offline: args.offline,
        cache_dir: args.download_dir.clone(),
        ..HubOptions::default()
    };
    let bar = bar("downloading {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let found = hub::resolve(model, &options, &mut |progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.bytes);
    });
    bar.finish_and_clear();
    found
}

/// A bar on standard error where that is a terminal, nothing elsewhere.
fn bar(template: &str) -> ProgressBar {
    let target = if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(None, target).with_style(style)
}
