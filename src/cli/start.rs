//! From the command line to a running engine: load, resolve, start.

use std::{io::IsTerminal, sync::Arc};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::say;
use crate::{
    config::{EngineArgs, EngineConfig, LoraArgs, MachineFacts, ModelArgs, ModelFacts, resolve},
    engine::{
        Engine,
        load::{LoadProgress, LoadedModel, load_planned},
    },
    error::{Error, Result},
    telemetry::Telemetry,
};

/// Loads the model and starts an engine for it. Progress is shown where standard error is a terminal.
///
/// # Errors
/// Why the model cannot be loaded, or what the flags ask for that it cannot do.
pub(super) async fn start_engine(
    model: &ModelArgs,
    engine: &EngineArgs,
    lora: &LoraArgs,
    served_model_name: Option<&str>,
) -> Result<Engine> {
    if model.model.is_none() {
        say("no model given: the small built-in demo answers; it knows candlewick and short stories, and little else");
    }
    let (args, name, threads) = (model.clone(), served_model_name.map(str::to_owned), model.threads);
    let (limits, lora) = (engine.clone(), lora.clone());
    // Takes seconds to minutes, and the signals want to be heard meanwhile.
    let loaded = tokio::task::spawn_blocking(move || load_with_progress(&args, &limits, &lora, name.as_deref()));
    let loaded = loaded.await.map_err(|error| Error::internal(format!("loading the model panicked: {error}")))?;
    let (loaded, config) = loaded?;
    let telemetry = Arc::new(Telemetry::new(&loaded.info.name));
    let factory = loaded.executor_factory(&config, threads);
    Engine::start(loaded.info, loaded.text, config, telemetry, factory).await
}

/// Loads the model if it fits into memory, with what is in force for it there.
fn load_with_progress(
    args: &ModelArgs,
    limits: &EngineArgs,
    lora: &LoraArgs,
    name: Option<&str>,
) -> Result<(LoadedModel, EngineConfig)> {
    let bar = LoadBar::new();
    let plan = |facts: &ModelFacts| resolve(limits, &facts.with_adapters(lora), &MachineFacts::here());
    let outcome = load_planned(args, name, plan, &mut |progress| bar.show(progress));
    bar.clear();
    let (mut loaded, config) = outcome?;
    loaded.serve_adapters(lora)?;
    Ok((loaded, config))
}

/// How far loading has come, where standard error is a terminal.
pub(super) struct LoadBar {
    bar: ProgressBar,
    downloading: ProgressStyle,
    loading: ProgressStyle,
}

impl LoadBar {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style =
            |template: &str| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self {
            bar,
            downloading: style("downloading {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}"),
            loading: style("loading {bar:40} {pos}/{len} tensors"),
        }
    }

    pub(super) fn show(&self, progress: LoadProgress) {
        let (style, done, total) = match progress {
            LoadProgress::Downloading { bytes, total_bytes } => (&self.downloading, bytes, total_bytes),
            LoadProgress::Loading { tensors, total } => (&self.loading, tensors as u64, total as u64),
        };
        if self.bar.length() != Some(total) {
            self.bar.set_style(style.clone());
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
    }

    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
