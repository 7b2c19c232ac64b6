//! LoRA adapters as PEFT writes them: a directory with `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Whatever a configuration asks for that is not `y += (alpha / r) · B (A x)` beside a Linear is refused by the name of its
//! field, and every tensor is used or refused by its name.

use std::{collections::HashSet, path::Path};

use candle_core::Device;
use serde_json::{Map, Value};

use crate::{
    error::{Error, Result},
    layers::lora::{AdaptableLinear, AdaptablePart, Adapter, LowRank, Place},
    weights::{TensorSource, file::read_small, safetensors::SafetensorsSource, shown},
};

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Most bytes of an adapter_config.json.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// What PEFT puts before a module's name.
const PREFIX: &str = "base_model.model.";

/// Fields that ask for something else than a plain adapter wherever they are set (not null, false, empty or "none").
const UNSUPPORTED: [&str; 18] = [
    "use_dora",
    "modules_to_save",
    "bias",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "corda_config",
    "kasa_config",
    "lora_ga_config",
    "monteclora_config",
    "velora_config",
];
/// Initializations that change the model's own weights too: an adapter of one must be converted when it is saved.
const CHANGES_THE_MODEL: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// What an adapter_config.json says.
#[derive(Debug, PartialEq)]
struct PeftConfig {
    rank: usize,
    /// What `B (A x)` is multiplied with.
    scale: f32,
    /// The last parts of the names of the modules that have adapters, where the file lists them.
    targets: Option<Vec<String>>,
    /// Whether only some layers have them.
    some_layers: bool,
}

impl PeftConfig {
    fn read(path: &Path, max_rank: usize) -> Result<Self> {
        let wrong = |field: &str, why: String| Error::bad_file(path, field, why);
        let root: Value = serde_json::from_slice(&read_small(path, MAX_CONFIG_BYTES)?)
            .map_err(|error| wrong("json", error.to_string()))?;
        let root = root.as_object().ok_or_else(|| wrong("json", "must be an object".into()))?;
        let kind = root.get("peft_type").and_then(Value::as_str).unwrap_or_default();
        if kind != "LORA" {
            return Err(wrong("peft_type", format!("is {:?}, only LORA is served", shown(kind))));
        }
        if let Some(field) = UNSUPPORTED.iter().find(|field| is_set(root, field)) {
            let value = shown(&root[*field].to_string());
            return Err(wrong(field, format!("is {value}, which is not served: only plain LoRA matrices are")));
        }
        let init = root.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
        if CHANGES_THE_MODEL.iter().any(|kind| init.starts_with(kind)) {
            let why = format!(
                "is {:?}: such an adapter changes the model's own weights, convert it to plain LoRA",
                shown(init)
            );
            return Err(wrong("init_lora_weights", why));
        }
        let rank = root.get("r").and_then(Value::as_u64).and_then(|rank| usize::try_from(rank).ok());
        let rank = rank.filter(|&rank| rank > 0).ok_or_else(|| wrong("r", "must be a whole number above 0".into()))?;
        if rank > max_rank {
            return Err(wrong("r", format!("is {rank}, at most --max-lora-rank {max_rank} is allowed")));
        }
        let alpha = root.get("lora_alpha").and_then(Value::as_f64).filter(|alpha| alpha.is_finite());
        let alpha = alpha.ok_or_else(|| wrong("lora_alpha", "must be a number".into()))?;
        // Rank-stabilized (Kalajdzievski 2023, arXiv 2312.03732).
        let divisor =
            if root.get("use_rslora") == Some(&Value::Bool(true)) { (rank as f64).sqrt() } else { rank as f64 };
        let names =
            |list: &Vec<Value>| list.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
        let targets = match root.get("target_modules") {
            Some(Value::Array(list)) => {
                Some(names(list).ok_or_else(|| wrong("target_modules", "must be a list of names".into()))?)
            }
            _ => None,
        };
        let some_layers = is_set(root, "layers_to_transform") || is_set(root, "exclude_modules");
        Ok(Self { rank, scale: (alpha / divisor) as f32, targets, some_layers })
    }

    /// Whether a module must have an adapter.
    fn must_have(&self, module: &str) -> bool {
        let is =
            |target: &String| module == target || module.strip_suffix(target).is_some_and(|rest| rest.ends_with('.'));
        !self.some_layers && self.targets.as_ref().is_some_and(|targets| targets.iter().any(is))
    }
}

fn is_set(root: &Map<String, Value>, field: &str) -> bool {
    match root.get(field) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::String(text)) => text != "none",
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
        Some(_) => true,
    }
}

/// Loads the adapter in `directory` as number `id`, to stand beside `linears` on `device`.
///
/// # Errors
/// `FailedPrecondition` that names the file and the field or tensor that is missing, misshapen, of too great a rank, not
/// finite, or for no module of the model.
pub fn load_adapter(
    directory: &Path,
    (id, name): (u64, &str),
    linears: &[AdaptableLinear],
    max_rank: usize,
    device: &Device,
) -> Result<Adapter> {
    let config = PeftConfig::read(&directory.join(CONFIG_FILE), max_rank)?;
    let path = directory.join(WEIGHTS_FILE);
    if !path.is_file() {
        return Err(Error::bad_file(directory, WEIGHTS_FILE, "is missing; adapters in pickles are not read"));
    }
    let file = AdapterFile { source: SafetensorsSource::open(&path)?, path: &path };
    file.refuse_strangers(linears)?;
    let mut found = Vec::new();
    for linear in linears {
        let mut parts = Vec::new();
        for AdaptablePart { name: module, outputs, places } in &linear.parts {
            let [a, b] = ["lora_A", "lora_B"].map(|which| file.name(module, which));
            if !config.must_have(module) && a.is_none() && b.is_none() {
                continue;
            }
            let rank = config.rank;
            let a = file.numbers(a, module, "lora_A", [rank, linear.inputs], 1.0)?;
            let b = file.numbers(b, module, "lora_B", [*outputs, rank], config.scale)?;
            let rows = |rows: &[usize]| rows.iter().flat_map(|row| &b[row * rank..(row + 1) * rank]).copied().collect();
            let place = |place: &Place| (place.columns.clone(), place.rows.as_deref().map_or_else(|| b.clone(), rows));
            parts.push(LowRank { rank, a, b: places.iter().map(place).collect() });
        }
        if !parts.is_empty() {
            found.push((linear, parts));
        }
    }
    if found.is_empty() {
        return Err(Error::bad_file(&path, "tensors", "are for no module of this model"));
    }
    Adapter::new(id, name.to_owned(), found, device)
}

/// The tensors of an adapter.
struct AdapterFile<'a> {
    source: SafetensorsSource,
    path: &'a Path,
}

impl AdapterFile<'_> {
    /// The names that a module's matrix may have.
    fn spellings(module: &str, which: &str) -> [String; 2] {
        [format!("{PREFIX}{module}.{which}.weight"), format!("{PREFIX}{module}.{which}.default.weight")]
    }

    /// The one that it has.
    fn name(&self, module: &str, which: &str) -> Option<String> {
        Self::spellings(module, which)
            .into_iter()
            .find(|name| self.source.contains(name) || self.source.refusal(name).is_some())
    }

    /// The numbers of a matrix, times `scale`.
    fn numbers(
        &self,
        name: Option<String>,
        module: &str,
        which: &str,
        shape: [usize; 2],
        scale: f32,
    ) -> Result<Vec<f32>> {
        let [usual, _] = Self::spellings(module, which);
        let wrong = |why: String| {
            let name = name.as_ref().unwrap_or(&usual);
            Err(Error::bad_file(self.path, format!("tensor {}", shown(name)), why))
        };
        let Some(stored) = &name else { return wrong("is missing".into()) };
        let Some(raw) = self.source.get(stored) else {
            return wrong(self.source.refusal(stored).unwrap_or_else(|| "cannot be read".into()));
        };
        if raw.shape != shape {
            return wrong(format!("has shape {:?}, but the model and the rank call for {shape:?}", raw.shape));
        }
        let mut numbers = raw.to_f32();
        numbers.iter_mut().for_each(|number| *number *= scale);
        if numbers.iter().any(|number| !number.is_finite()) {
            return wrong("has numbers that are not finite, or are not once they are scaled".into());
        }
        Ok(numbers)
    }

    /// Refuses a file with a tensor that nobody would look at.
    fn refuse_strangers(&self, linears: &[AdaptableLinear]) -> Result<()> {
        let mut ours = HashSet::new();
        for part in linears.iter().flat_map(|linear| &linear.parts) {
            ours.extend(["lora_A", "lora_B"].into_iter().flat_map(|which| Self::spellings(&part.name, which)));
        }
        match self.source.weights().iter().find(|name| !ours.contains(*name)) {
            Some(name) => {
                let why = "is for no Linear of this model's blocks that an adapter can stand beside";
                Err(Error::bad_file(self.path, format!("tensor {}", shown(name)), why))
            }
            None => Ok(()),
        }
    }
}
