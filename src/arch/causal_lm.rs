//! A decoder-only language model: embedding → blocks → norm → head, whatever the block.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::{
    arch::{Block, BlockLoad, Model, ModelInfo, ModelLoad, config::ModelConfig, keep, kv_dtype},
    error::{Error, Result},
    ids::TokenId,
    layers::{
        context::{KvCache, KvCacheShape, StepContext},
        embedding::Embedding,
        linear::Linear,
        loader::{LoadTally, TensorLoader},
        norm::RmsNorm,
        rope::Rope,
    },
};

/// A model of blocks `B`.
pub struct CausalLm<B> {
    config: ModelConfig,
    info: ModelInfo,
    device: Device,
    embedding: Embedding,
    blocks: Vec<B>,
    norm: RmsNorm,
    head: Linear,
}

impl<B: Block> CausalLm<B> {
    /// Loads every tensor the configuration calls for.
    ///
    /// # Errors
    /// `FailedPrecondition` that names a tensor which is missing or misshapen.
    pub fn load(load: &ModelLoad<'_>) -> Result<Self> {
        let &ModelLoad { weights, config, device, dtype, quantization, kv_cache_dtype, progress } = load;
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let total = weights.names().len();
        let progress = |loaded: usize| progress(loaded, total);
        let tally = LoadTally::default();
        let loader = TensorLoader::new(weights, keep(dtype, quantization), device, &tally, &progress);

        // The embedding comes first: where the file and the configuration disagree, nothing large was made yet.
        let embedding = loader.embedding("model.embed_tokens", vocab, hidden)?;
        let before_blocks = tally.parameters();
        let rope = Arc::new(Rope::new(&config.rope, device)?);
        let block = |layer| {
            let loader = loader.under(format_args!("model.layers.{layer}"));
            B::load(&BlockLoad { loader, config, layer, rope: Arc::clone(&rope) })
        };
        let blocks = (0..config.num_hidden_layers).map(block).collect::<Result<Vec<_>>>()?;
        let block_parameters = tally.parameters() - before_blocks;
        let norm = loader.rms_norm("model.norm", hidden, config.rms_norm_eps)?;
        let head = match config.tie_word_embeddings {
            true => loader.tied_linear("lm_head", &embedding),
            false => loader.head("lm_head", vocab, hidden)?,
        };
        let query = [config.num_attention_heads * config.head_dim, hidden];
        let format = loader.kept_format("model.layers.0.self_attn.q_proj.weight", query)?;
        let info = ModelInfo {
            num_parameters: tally.parameters(),
            block_parameters,
            weight_bytes: tally.bytes(),
            dtype: format.to_string(),
            kv_shape: KvCacheShape {
                num_layers: config.num_hidden_layers,
                num_blocks: 1,
                block_size: 1,
                num_kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                dtype: kv_dtype(kv_cache_dtype, dtype, format),
            },
        };
        Ok(Self { config: config.clone(), info, device: device.clone(), embedding, blocks, norm, head })
    }
}

impl<B: Block> Model for CausalLm<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn hidden(&self, token_ids: &[TokenId], step: &StepContext<'_>) -> Result<Tensor> {
        if token_ids.len() != step.positions.len() || token_ids.len() != step.slot_mapping.len() {
            return Err(Error::internal("a step's token ids, positions and slots differ in number"));
        }
        let mut x = self.embedding.forward(token_ids)?;
        for block in &self.blocks {
            x = block.forward(&x, step)?;
        }
        Ok(x)
    }

    fn logits(&self, hidden: &Tensor, logit_rows: &[u32], step: &StepContext<'_>) -> Result<Tensor> {
        if logit_rows.is_empty() {
            return Ok(Tensor::zeros((0, self.config.vocab_size), DType::F32, &self.device)?);
        }
        let x = hidden.index_select(&Tensor::new(logit_rows, &self.device)?, 0)?;
        self.head.forward(self.norm.of(&x), step)
    }

    fn new_kv_cache(&self, num_blocks: usize, block_size: usize) -> Result<KvCache> {
        KvCache::new(KvCacheShape { num_blocks, block_size, ..self.info.kv_shape }, &self.device)
    }
}
