//! What a GGUF file of a family cannot say, or says and llama.cpp does not read: models that need it are refused by the name
//! of the field, so that nothing is lost in silence.

use std::{fmt::Display, path::Path};

use super::{
    family::{Family, Windows},
    latent,
};
use crate::{
    arch::{Architecture, config::ModelConfig, gguf_family::Family as Implied, gpt_oss::LIMIT, smollm3},
    error::{Error, Result},
    kernels::activation::Activation,
    layers::rope::{RopeScaling, Yarn},
};

/// Turns of YaRN's ramp, which llama.cpp takes for granted in files of most families.
const BETAS: (f64, f64) = (32.0, 1.0);

/// A model, and how it would be written.
struct Said<'a> {
    path: &'a Path,
    family: &'a Family,
    row: &'a Architecture,
    config: &'a ModelConfig,
    /// What files leave unsaid.
    implied: &'a Implied,
}

/// Refuses a model that is more than its file would say; `path` is that of its config.json.
///
/// # Errors
/// `FailedPrecondition` that names the field.
pub(super) fn check(path: &Path, family: &Family, row: &Architecture, config: &ModelConfig) -> Result<()> {
    let said = Said { path, family, row, config, implied: Implied::of(family.name) };
    said.windows()?;
    said.rope()?;
    said.activation()?;
    said.multipliers()?;
    said.layers()?;
    if family.name == latent::NAME { latent::check(path, config) } else { Ok(()) }
}

impl Said<'_> {
    fn refused(&self, field: &str, why: impl Display) -> Result<()> {
        Err(Error::bad_file(self.path, field, why))
    }

    fn windows(&self) -> Result<()> {
        let Self { family: &Family { name, windows, .. }, row, config, .. } = *self;
        let (field, context, count) = ("sliding_window", config.max_position_embeddings, config.num_hidden_layers);
        let sizes = (0..count).filter_map(|layer| row.window(config, layer)).collect::<Vec<_>>();
        let narrow = sizes.iter().find(|&&size| size < context);
        match (windows, narrow) {
            (Windows::Unknown, Some(size)) => {
                self.refused(field, format_args!("is {size} of {context} tokens, which GGUF cannot say of {name}"))
            }
            (Windows::InAll, Some(_)) if sizes.len() < count => {
                let why =
                    format_args!("is that of {} of {count} layers, and GGUF's {name} has one for all", sizes.len());
                self.refused(field, why)
            }
            (Windows::ListedIn(layers), _) if layers != count && config.sliding_window.size.is_some() => {
                let why = format_args!(
                    "is given, and llama.cpp takes one in {name} of {layers} layers alone, not of {count}"
                );
                self.refused(field, why)
            }
            (Windows::ListedIn(layers), _) if layers == count && config.sliding_window.size.is_none() => {
                self.refused(field, format_args!("is missing, and llama.cpp takes one in {name} of {layers} layers"))
            }
            _ => Ok(()),
        }
    }

    fn rope(&self) -> Result<()> {
        let Self { family: &Family { name, has_divisors, .. }, config, implied, .. } = *self;
        let field = "rope_scaling";
        if config.query_growth.is_some() {
            let why = format_args!("is given, which GGUF cannot say of {name}");
            return self.refused("rope_parameters.llama_4_scaling_beta", why);
        }
        match &config.rope.scaling {
            RopeScaling::Default | RopeScaling::Linear { .. } => {}
            RopeScaling::Llama3 { .. } | RopeScaling::Divisors(_) if has_divisors => {}
            RopeScaling::LongRope(_) if name == "phi3" => {}
            RopeScaling::Yarn(_) if config.local_rope.is_some() => {
                return self
                    .refused(field, "is YaRN's beside positions of layers with a window, which GGUF cannot say");
            }
            RopeScaling::Yarn(yarn) if (yarn.beta_fast, yarn.beta_slow) != BETAS => {
                let Yarn { beta_fast, beta_slow, .. } = yarn;
                let why = format_args!(
                    "has beta_fast {beta_fast} and beta_slow {beta_slow}; of {name} llama.cpp takes 32 and 1"
                );
                return self.refused(field, why);
            }
            RopeScaling::Yarn(yarn) if yarn.truncate != implied.truncates_yarn => {
                let why = format_args!(
                    "has truncate {}, and GGUF's {name} is always {}",
                    yarn.truncate, implied.truncates_yarn
                );
                return self.refused(field, why);
            }
            RopeScaling::Yarn(_) => {}
            RopeScaling::Dynamic { .. } => return self.refused(field, "is dynamic, which GGUF cannot say"),
            RopeScaling::Llama3 { .. } => {
                return self.refused(field, format_args!("is llama3's, which llama.cpp does not read of {name}"));
            }
            RopeScaling::LongRope(_) | RopeScaling::Divisors(_) => {
                return self.refused(field, format_args!("is longrope, which llama.cpp does not read of {name}"));
            }
        }
        let local = config.local_rope.as_ref().is_none_or(|local| local.scaling == RopeScaling::Default);
        if local {
            Ok(())
        } else {
            self.refused("rope_parameters.sliding_attention", "is scaled, which GGUF cannot say")
        }
    }

    fn activation(&self) -> Result<()> {
        let Self { config, implied, family, .. } = *self;
        if config.activation == implied.activation {
            return Ok(());
        }
        let name = |of: Activation| Activation::NAMES.iter().find(|row| row.1 == of).map_or("another", |row| row.0);
        let (given, known) = (name(config.activation), name(implied.activation));
        self.refused("hidden_act", format_args!("is {given}; GGUF's {} is always {known}", family.name))
    }

    fn multipliers(&self) -> Result<()> {
        let Self { config, implied, family: &Family { name, .. }, .. } = *self;
        let m = &config.multipliers;
        match name {
            "gemma2" | "gemma3" => {
                let by_width = config.num_hidden_layers == implied.scaled_by_width;
                let known = if by_width { config.hidden_size / config.num_attention_heads } else { config.head_dim };
                let given = m.query_pre_attn_scalar.unwrap_or(config.head_dim as f64);
                if given != known as f64 {
                    let why = format_args!("is {given}, and llama.cpp takes {known} for {name} of these sizes");
                    return self.refused("query_pre_attn_scalar", why);
                }
                if name == "gemma3" && m.attention_softcap.is_some() {
                    return self.refused("attn_logit_softcapping", "is given, which GGUF cannot say of gemma3");
                }
                if name == "gemma2" && m.attention_softcap.is_none() {
                    return self.refused("attn_logit_softcapping", "is missing, and llama.cpp takes 50 for gemma2");
                }
                if name == "gemma2" && m.logit_softcap.is_none() {
                    return self.refused("final_logit_softcapping", "is missing, and llama.cpp takes 30 for gemma2");
                }
            }
            "gpt-oss" if m.swiglu_limit.is_some_and(|limit| limit != LIMIT) => {
                return self
                    .refused("swiglu_limit", format_args!("is not {LIMIT}, which is all that GGUF's gpt-oss has"));
            }
            _ => {}
        }
        Ok(())
    }

    /// What differs from layer to layer, or of experts.
    fn layers(&self) -> Result<()> {
        let Self { config, family: &Family { name, .. }, .. } = *self;
        let turns = |layer| smollm3::turns(config.rope_layers.as_deref(), layer);
        let usual = |layer| smollm3::turns(None, layer);
        if name == "smollm3" && (0..config.num_hidden_layers).any(|layer| turns(layer) != usual(layer)) {
            return self.refused("no_rope_layers", "are not every fourth, which is all that GGUF's smollm3 has");
        }
        if name.starts_with("qwen3") && config.moe.as_ref().is_some_and(|moe| moe.renormalize == Some(false)) {
            return self.refused("norm_topk_prob", "is false, which GGUF cannot say of this architecture");
        }
        Ok(())
    }
}
