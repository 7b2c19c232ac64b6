//! A decoder-only language model: embedding → blocks → norm → head, whatever the block.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::{
    arch::{
        Architecture, BlockLoad, Model, ModelInfo, ModelLoad, block::Block, config::ModelConfig, keep, kv_dtype,
        kv_shape, linear_attention::LinearAttention, outline::Outline,
    },
    config::KvCacheGroups,
    error::{Error, Result},
    ids::TokenId,
    kernels::spare::give_back,
    layers::{
        context::{KvCache, KvCacheShape, KvGroupStep, StepContext},
        embedding::Embedding,
        linear::Linear,
        loader::{LoadTally, TensorLoader},
        lora::AdaptableLinear,
        norm::Norm,
        rope::Rope,
        state::StateCache,
    },
};

/// A model of blocks.
pub struct CausalLm {
    config: ModelConfig,
    info: ModelInfo,
    /// Of each layer, as far as its keys and values are concerned.
    kv_windows: Vec<Option<usize>>,
    prefixes_are_shared: bool,
    device: Device,
    outline: Outline,
    embedding: Embedding,
    /// Learned ones, where the model has such.
    positions: Option<Embedding>,
    blocks: Vec<Block>,
    norm: Norm,
    head: Linear,
    adaptable: Vec<AdaptableLinear>,
}

impl CausalLm {
    /// Loads every tensor the configuration calls for.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn load(architecture: &Architecture, load: &ModelLoad<'_>) -> Result<Self> {
        let &ModelLoad { weights, config, device, dtype, quantization, kv_cache_dtype, progress } = load;
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let outline = (architecture.outline)(config);
        let total = weights.names().iter().filter(|name| outline.has(name)).count();
        let progress = |loaded: usize| progress(loaded, total);
        let tally = LoadTally::default();
        let root = TensorLoader::new(weights, keep(dtype, quantization), device, &tally, &progress);
        let within = root.under(outline.base);
        let bare = !within.contains(&format!("{}.weight", outline.embedding));
        let bare = bare && root.contains(&format!("{}.weight", outline.embedding));
        let loader = if bare { root.clone() } else { within };

        // The embedding comes first: where the file and the configuration disagree, nothing large was made yet.
        let embedding = loader.embedding(outline.embedding, vocab, hidden)?;
        let positions = outline.positions.map(|name| loader.embedding(name, config.max_position_embeddings, hidden));
        let positions = positions.transpose()?;
        let before_blocks = tally.parameters();
        let rope = Arc::new(Rope::new(&config.rope, device)?);
        let local_rope = config.local_rope.as_ref().map(|rope| Rope::new(rope, device).map(Arc::new)).transpose()?;
        let block = |layer| {
            let window = architecture.window(config, layer);
            let loader = loader.under(outline.layers).under(layer);
            let (rope, local_rope) = (Arc::clone(&rope), local_rope.clone());
            (architecture.block)(&BlockLoad { loader, config, layer, window, rope, local_rope })
        };
        let blocks = (0..config.num_hidden_layers).map(block).collect::<Result<Vec<_>>>()?;
        let block_parameters = tally.parameters() - before_blocks;
        let (norm, options) = &outline.norm;
        let norm = loader.norm(norm, hidden, options)?;
        let head = match config.tie_word_embeddings {
            true => root.tied_linear(outline.head, &embedding),
            // GPT-NeoX's own name, and what its class became.
            false if !root.contains(&format!("{}.weight", outline.head)) => root.head("lm_head", vocab, hidden)?,
            false => root.head(outline.head, vocab, hidden)?,
        };
        let format = tally.block_format().ok_or_else(|| Error::internal("a model without weights in its blocks"))?;
        let kv_windows = architecture.kv_windows(config);
        let info = ModelInfo {
            num_parameters: tally.parameters(),
            block_parameters,
            weight_bytes: tally.bytes(),
            dtype: format.to_string(),
            kv_shape: kv_shape(config, kv_dtype(kv_cache_dtype, dtype, format)),
            kv_groups: KvCacheGroups::of(&kv_windows),
        };
        Ok(Self {
            config: config.clone(),
            info,
            kv_windows,
            prefixes_are_shared: architecture.prefixes_are_shared,
            device: device.clone(),
            outline,
            embedding,
            positions,
            blocks,
            norm,
            head,
            adaptable: tally.adaptable(),
        })
    }
}

impl CausalLm {
    /// The residual stream before the first block.
    fn embed(&self, token_ids: &[TokenId], step: &StepContext<'_>) -> Result<Tensor> {
        let mut x = match step.placed_ids {
            Some(ids) => self.embedding.forward_placed(ids)?,
            None => self.embedding.forward(token_ids)?,
        };
        if let Some(learned) = &self.positions {
            let places = step.positions.iter().copied().map(TokenId).collect::<Vec<_>>();
            x = (x + learned.forward(&places)?)?;
        }
        match self.outline.embedding_multiplier {
            Some(multiplier) => Ok((x * multiplier)?),
            None => Ok(x),
        }
    }

    /// The logits of rows of the residual stream after the last block.
    fn head_of(&self, x: &Tensor, step: &StepContext<'_>) -> Result<Tensor> {
        let mut logits = self.head.forward(self.norm.of(x), None, step)?;
        if let Some(multiplier) = self.outline.logit_multiplier {
            logits = (logits * multiplier)?;
        }
        match self.outline.logit_softcap {
            Some(cap) => Ok(((logits / cap)?.tanh()? * cap)?),
            None => Ok(logits),
        }
    }
}

impl Model for CausalLm {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn prefixes_are_shared(&self) -> bool {
        self.prefixes_are_shared
    }

    fn adaptable(&self) -> (&[AdaptableLinear], &Device) {
        (&self.adaptable, &self.device)
    }

    fn hidden(&self, token_ids: &[TokenId], step: &StepContext<'_>) -> Result<Tensor> {
        let differs = |group: &KvGroupStep| group.slot_mapping.len() != token_ids.len();
        if token_ids.len() != step.positions.len() || step.groups.iter().any(differs) {
            return Err(Error::internal("a step's token ids, positions and slots differ in number"));
        }
        let mut x = self.embed(token_ids, step)?;
        for block in &self.blocks {
            let next = block.forward(&x, step)?;
            give_back(std::mem::replace(&mut x, next));
        }
        Ok(x)
    }

    fn logits(&self, hidden: &Tensor, logit_rows: &[u32], step: &StepContext<'_>) -> Result<Tensor> {
        if logit_rows.is_empty() {
            return Ok(Tensor::zeros((0, self.config.vocab_size), DType::F32, &self.device)?);
        }
        // Decoding, every row is asked for.
        if logit_rows.iter().copied().eq(0..hidden.dim(0)? as u32) {
            return self.head_of(hidden, step);
        }
        let x = hidden.index_select(&Tensor::new(logit_rows, &self.device)?, 0)?;
        self.head_of(&x, step)
    }

    fn states(&self, hidden: &Tensor, rows: &[u32]) -> Result<Tensor> {
        self.norm.forward(&hidden.index_select(&Tensor::new(rows, &self.device)?, 0)?)
    }

    fn new_kv_cache(&self, num_blocks: usize, block_size: usize) -> Result<KvCache> {
        KvCache::new(KvCacheShape { num_blocks, block_size, ..self.info.kv_shape }, &self.kv_windows, &self.device)
    }

    fn new_states(&self, num_slots: usize) -> Result<Option<StateCache>> {
        let shape = self.config.linear_attention.as_ref().map(LinearAttention::state_shape);
        shape.map(|shape| StateCache::new(shape, num_slots, &self.device)).transpose()
    }
}
