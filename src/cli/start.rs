//! From the command line to a running engine: load, resolve, start.

use std::{io::IsTerminal, path::PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::say;
use crate::{
    config::{EngineArgs, HubArgs, LoraArgs, MachineFacts, ModelArgs, ModelModule, anonymous_bytes},
    engine::{
        Engine,
        load::{LoadProgress, ModelSource, Started, Wanted, find, model_name},
    },
    error::{Error, Result},
};

/// Loads the model and starts an engine for it, which panics once where that is asked for. Progress is shown where standard
/// error is a terminal.
///
/// # Errors
/// Why the model cannot be loaded, or what the flags ask for that it cannot do.
pub(super) async fn start_engine(model: &ModelArgs, engine: &EngineArgs) -> Result<Engine> {
    let (model, engine, lora) = (model.clone(), engine.clone(), LoraArgs::default());
    Ok(start(ModelSource { model, engine, lora, served_model_name: None, panic_after: None }, 0).await?.engine)
}

/// The same for what a server begins with: the first model, and those beside it one after another.
///
/// # Errors
/// The first of any; `InvalidArgument` where two have one name.
pub(super) async fn start_models(first: &ModelSource, others: &[ModelModule]) -> Result<(Started, Vec<Started>)> {
    let started = start(first.clone(), 0).await?;
    let mut names = vec![started.engine.info().name.clone()];
    let mut promised = started.engine.config().promised_bytes;
    let mut more = Vec::with_capacity(others.len());
    for ModelModule { name, path } in others {
        let name = name.clone().unwrap_or_else(|| model_name(path));
        let taken = if names.contains(&name) { Some("another model") } else { None };
        let adapters = &started.engine.info().adapters;
        if let Some(other) = taken.or_else(|| adapters.get(&name).map(|_| "an adapter")) {
            let why = format!("{name:?} is the name of {other} too: give one of them another, as in NAME={path}");
            return Err(Error::invalid("--models", why));
        }
        let other = start(first.sibling(path, &name), promised).await?;
        promised = promised.saturating_add(other.engine.config().promised_bytes);
        names.push(name);
        more.push(other);
    }
    Ok((started, more))
}

/// Starts one beside others that were promised so many bytes.
async fn start(source: ModelSource, promised: u64) -> Result<Started> {
    if source.model.model.is_none() {
        say("no model given: the small built-in demo answers; it knows candlewick and short stories, and little else");
    }
    let machine = MachineFacts::here().beside(promised, anonymous_bytes().unwrap_or(0));
    let bar = LoadBar::new();
    let shown = bar.clone();
    let started = source.start(move |_| Ok(machine), None, move |progress| shown.show(progress)).await;
    bar.clear();
    started
}

/// Where the directory or file of a model is that a command was given, downloaded first if it is of the hub and not here.
///
/// # Errors
/// As [`find`].
pub(super) fn find_model(model: &str, hub: &HubArgs, wanted: Wanted) -> Result<PathBuf> {
    let bar = LoadBar::new();
    let found = find(model, hub, wanted, &mut |progress| bar.show(progress));
    bar.clear();
    found
}

/// How far loading has come, where standard error is a terminal. Clones show the same.
#[derive(Clone)]
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
        let is_new = self.bar.length() != Some(total);
        if is_new {
            self.bar.set_style(style.clone());
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
        if is_new {
            // What was here before is no speed.
            self.bar.reset_eta();
        }
    }

    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
