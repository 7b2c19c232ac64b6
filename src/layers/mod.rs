//! What the blocks of an architecture are made of: layers that own their weights, run over all tokens of a step at
//! once and take everything else from the [`StepContext`](context::StepContext).

pub mod attention;
pub mod context;
pub mod embedding;
mod experts;
pub mod gated_delta_net;
pub mod keep;
pub mod latent_attention;
pub mod linear;
pub mod loader;
pub mod lora;
pub mod mlp;
pub mod moe;
pub mod norm;
pub(crate) mod raw;
pub mod rope;
pub mod state;
pub mod sublayer;
