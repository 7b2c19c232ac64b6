//! From what a model is loaded with to an engine that runs it.

use std::{path::Path, sync::Arc, time::Duration};

use super::{LoadProgress, device, load_on, memory::ModelMemory};
use crate::{
    config::{EngineArgs, HubArgs, LoraArgs, MachineFacts, ModelArgs, ModelFacts, resolve},
    engine::{Engine, drill},
    error::{Error, Result},
    telemetry::Telemetry,
    weights::hub::short_name,
};

/// All that a model is loaded and run with, so that it can be done again.
#[derive(Clone, Debug)]
pub struct ModelSource {
    /// Which model, and how it is read.
    pub model: ModelArgs,
    /// The limits of its engine.
    pub engine: EngineArgs,
    /// Its adapters.
    pub lora: LoraArgs,
    /// What requests call it; its own name where there is none.
    pub served_model_name: Option<String>,
    /// When its engine panics, once; for drills.
    pub panic_after: Option<Duration>,
}

/// An engine that runs, and where it came from.
pub struct Started {
    /// The engine.
    pub engine: Engine,
    /// What it was loaded with; without, it cannot be loaded again.
    pub source: Option<ModelSource>,
    /// The model's memory; none where it has none to speak of.
    pub memory: Option<ModelMemory>,
}

impl From<Engine> for Started {
    fn from(engine: Engine) -> Self {
        Self { engine, source: None, memory: None }
    }
}

impl ModelSource {
    /// Another model, read and run with the same settings, as far as they are not of one model alone.
    #[must_use]
    pub fn sibling(&self, path: &str, name: &str) -> Self {
        let model = ModelArgs {
            model: Some(path.to_owned()),
            chat_template: None,
            tool_call_parser: None,
            reasoning_parser: None,
            hub: HubArgs { revision: None, ..self.model.hub.clone() },
            ..self.model.clone()
        };
        let lora = LoraArgs { lora_modules: Vec::new(), ..self.lora.clone() };
        Self { model, lora, engine: self.engine.clone(), served_model_name: Some(name.to_owned()), panic_after: None }
    }

    /// Loads the model if it fits into memory, or that of the card that it runs on, and starts an engine for it. `machine` says
    /// what memory there is, before a weight is read; it is told whether the model would fit into how much, so that it can
    /// make room, for which it may block. The model's metrics go on in `telemetry` where that is given.
    ///
    /// # Errors
    /// Why the model cannot be loaded, or what the settings ask for that it cannot do; `FailedPrecondition` with the sum
    /// where it does not fit; what `machine` fails with.
    pub async fn start(
        self,
        machine: impl FnOnce(&dyn Fn(&MachineFacts) -> bool) -> Result<MachineFacts> + Send + 'static,
        telemetry: Option<Arc<Telemetry>>,
        mut progress: impl FnMut(LoadProgress) + Send + 'static,
    ) -> Result<Started> {
        let Self { model: args, engine: limits, lora, served_model_name: name, panic_after } = self.clone();
        let threads = args.threads;
        // Takes seconds to minutes, and others want to be heard meanwhile.
        let loading = tokio::task::spawn_blocking(move || {
            let device = device::open(args.device)?;
            let plan = |facts: &ModelFacts| {
                let facts = facts.with_adapters(&lora);
                let resolved = |machine: &MachineFacts| {
                    let machine = device::memory_for(&device, limits.gpu_memory_utilization, *machine)?;
                    resolve(&limits, &facts, &machine)
                };
                resolved(&machine(&|machine| resolved(machine).is_ok())?)
            };
            let (mut loaded, config) = load_on(&device, &args, name.as_deref(), plan, &mut progress)?;
            loaded.serve_adapters(&lora)?;
            Ok::<_, Error>((loaded, config))
        });
        let loaded = loading.await.map_err(|error| Error::internal(format!("loading the model panicked: {error}")))?;
        let (loaded, config) = loaded?;
        let telemetry = telemetry.unwrap_or_else(|| Arc::new(Telemetry::new(&loaded.info.name)));
        let mut factory = loaded.executor_factory(&config, threads);
        if let Some(after) = panic_after {
            factory = drill::panics_once(factory, after);
        }
        let memory = Some(ModelMemory::of(&loaded.model));
        let engine = Engine::start(loaded.info, loaded.text, config, telemetry, factory).await?;
        Ok(Started { engine, source: Some(self), memory })
    }
}

/// What a model is called unless something else is said: the last part of its path or of its name on the hub.
#[must_use]
pub fn model_name(path: &str) -> String {
    if let Some(name) = short_name(path) {
        return name;
    }
    let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or(path);
    let stem = Path::new(last).file_stem().filter(|_| last.to_ascii_lowercase().ends_with(".gguf"));
    stem.map_or_else(|| last.to_owned(), |stem| stem.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_what_the_last_part_of_its_path_says() {
        let cases =
            [("/a/b/model-1.5.gguf", "model-1.5"), ("Qwen/Qwen3-0.6B@main", "Qwen3-0.6B"), ("dir/", "dir"), ("x", "x")];
        for (path, name) in cases {
            assert_eq!(model_name(path), name, "{path}");
        }
    }
}
