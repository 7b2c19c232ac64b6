//! What GGUF files of a family leave unsaid, and the keys that only some families have.

use crate::{
    arch::{
        config::{Multipliers, limits},
        gguf_config::Keys,
        moe_config::{MoeConfig, SHARED},
    },
    error::{Error, Result},
    kernels::activation::Activation,
};

/// What files of a family leave unsaid, as llama.cpp has it in code.
pub(crate) struct Family {
    /// `general.architecture`.
    name: &'static str,
    /// The nonlinearity of its feed-forward layers.
    pub(crate) activation: Activation,
    /// The base of wavelengths in layers with a window.
    pub(super) local_theta: Option<f64>,
    /// Whether YaRN's ramp begins and ends at whole frequencies.
    pub(crate) truncates_yarn: bool,
    /// Blocks of the one size whose scores are divided by the root of the model's width a head, not of the head's.
    pub(crate) scaled_by_width: usize,
    /// Whether the logits' scale divides.
    pub(crate) divides_logits: bool,
    /// Whether keys and values come out of a latent.
    pub(super) has_latents: bool,
}

const USUAL: Family = Family {
    name: "",
    activation: Activation::Silu,
    local_theta: None,
    truncates_yarn: true,
    scaled_by_width: 0,
    divides_logits: false,
    has_latents: false,
};

const FAMILIES: &[Family] = &[
    Family { name: "gemma2", activation: Activation::GeluTanh, scaled_by_width: 46, ..USUAL },
    Family {
        name: "gemma3",
        activation: Activation::GeluTanh,
        local_theta: Some(10_000.0),
        scaled_by_width: 62,
        ..USUAL
    },
    Family { name: "starcoder2", activation: Activation::GeluTanh, ..USUAL },
    Family { name: "gpt2", activation: Activation::GeluTanh, ..USUAL },
    Family { name: "gptneox", activation: Activation::Gelu, ..USUAL },
    Family { name: "gpt-oss", truncates_yarn: false, ..USUAL },
    Family { name: "granite", divides_logits: true, ..USUAL },
    Family { name: "deepseek2", has_latents: true, ..USUAL },
];

impl Family {
    /// Of files that call themselves `name`.
    pub(crate) fn of(name: &str) -> &'static Self {
        FAMILIES.iter().find(|family| family.name == name).unwrap_or(&USUAL)
    }
}

impl Keys<'_> {
    /// Experts of a model of so many layers, where the file has such.
    pub(super) fn moe(&self, family: &Family, num_layers: usize) -> Result<Option<MoeConfig>> {
        let Some(num_experts) = self.size("expert_count", 0..=4096)?.filter(|&count| count > 0) else {
            return Ok(None);
        };
        if family.has_latents {
            self.check_gating()?;
        }
        let groups = self.size("expert_group_count", 0..=num_experts)?.filter(|&groups| groups > 0).unwrap_or(1);
        if !num_experts.is_multiple_of(groups) {
            let why = format!("is {groups}, must divide the {num_experts} experts");
            return Err(self.wrong("expert_group_count", why));
        }
        let open = self.size("expert_group_used_count", 0..=groups)?.filter(|&open| open > 0).unwrap_or(groups);
        let experts_per_token = self.required_size("expert_used_count", 1..=num_experts)?;
        if open * (num_experts / groups) < experts_per_token {
            let why = format!("is {open}: too few experts for the {experts_per_token} that a token gets");
            return Err(self.wrong("expert_group_used_count", why));
        }
        // Where experts are scored one by one, files say only that weights are made to sum to 1.
        let renormalize = self.gguf.bool(&self.key("expert_weights_norm"))?;
        let dense = |layer: &usize| self.gguf.tensor(&format!("blk.{layer}.ffn_gate_inp.weight")).is_none();
        Ok(Some(MoeConfig {
            num_experts,
            experts_per_token,
            intermediate_size: self.size("expert_feed_forward_length", limits::INTERMEDIATE)?,
            renormalize: renormalize.or(family.has_latents.then_some(false)),
            dense_layers: (0..num_layers).filter(dense).collect(),
            sparse_step: 1,
            shared_experts: self.size("expert_shared_count", 0..=SHARED)?.unwrap_or(0),
            weighed_expert_size: self.size("expert_shared_feed_forward_length", limits::INTERMEDIATE)?,
            groups: (groups, open),
            routed_scale: self.positive("expert_weights_scale")?.map(f64::from),
        }))
    }

    /// `width_a_head` is the model's width over its heads.
    pub(super) fn multipliers(&self, family: &Family, layers: usize, width_a_head: usize) -> Result<Multipliers> {
        let number = |name: &str| Ok::<_, Error>(self.positive(name)?.map(f64::from));
        let logits = number("logit_scale")?;
        Ok(Multipliers {
            embedding: number("embedding_scale")?,
            residual: number("residual_scale")?,
            attention: number("attention.scale")?,
            query_pre_attn_scalar: (layers == family.scaled_by_width).then_some(width_a_head as f64),
            logits_divisor: logits.filter(|_| family.divides_logits),
            logits: logits.filter(|_| !family.divides_logits),
            attention_softcap: number("attn_logit_softcapping")?,
            logit_softcap: number("final_logit_softcapping")?,
            swiglu_limit: None,
            mscale_all_dim: self.mscale_all_dim(family)?,
        })
    }
}
