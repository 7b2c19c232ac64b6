//! What a forward pass is told of its step, and the KV cache it works on. Passed down, never global.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::{
    config::{KvCacheGroups, LayerPlace},
    error::{Error, Result},
    ids::{BlockId, Slot},
    kernels::{
        paged_attention::AttentionMetadata,
        route::Routing,
        store_kv::{KvLayer, copy_blocks},
    },
    layers::{lora::AdapterRows, state::StepStates},
};

/// Sees every Linear that runs, and what routers say; for tests and profiles.
pub trait LinearObserver: Send + Sync {
    /// The Linear `name` is about to run over `rows` rows.
    fn linear(&self, name: &str, rows: usize);

    /// The router `name` gave each row's experts these scores, `[rows, experts]` or one more a row. Experts are chosen by what
    /// is returned: the same scores, but where a test asks what another choice would lead to.
    ///
    /// # Errors
    /// candle's.
    fn scored(&self, _name: &str, scores: Tensor, _routing: &Routing) -> Result<Tensor> {
        Ok(scores)
    }
}

/// One step, as every layer sees it.
#[derive(Clone, Copy)]
pub struct StepContext<'a> {
    /// The step's ids, u32 `[num_scheduled_tokens]` on the model's device, where the host does not know all of them.
    pub placed_ids: Option<&'a Tensor>,
    /// Position of each token in its sequence: `[num_scheduled_tokens]`.
    pub positions: &'a [u32],
    /// What the layers of each group of the KV cache are told.
    pub groups: &'a [KvGroupStep],
    /// Keys and values of all layers.
    pub kv: &'a KvCache,
    /// What recurrent layers keep of the rows' sequences, where the model has such layers.
    pub states: Option<StepStates<'a>>,
    /// Which rows go through which adapters, where any do.
    pub adapters: Option<&'a AdapterRows>,
    /// Told of every Linear that runs, where somebody wants to know.
    pub observer: Option<&'a dyn LinearObserver>,
}

/// One step, as the layers see it that share block tables.
#[derive(Clone, Debug, Default)]
pub struct KvGroupStep {
    /// Where each token's keys and values go: `[num_scheduled_tokens]`.
    pub slot_mapping: Vec<Slot>,
    /// Which blocks each row attends to.
    pub attention: AttentionMetadata,
}

impl StepContext<'_> {
    /// The cache of one layer, and what its group is told.
    ///
    /// # Errors
    /// `Internal` where the cache has fewer layers, or the step fewer groups: they were made for another model.
    pub fn kv_layer(&self, layer: usize) -> Result<(&KvLayer, &KvGroupStep)> {
        let (group, kv) = self.kv.layer(layer)?;
        let step = self.groups.get(group);
        Ok((kv, step.ok_or_else(|| Error::internal(format!("the step has no KV cache group {group}")))?))
    }

    /// Where the rows begin and end and what comes before them, which all groups are told alike.
    ///
    /// # Errors
    /// `Internal` where the step has no groups: it was made for no model.
    pub fn rows(&self) -> Result<&AttentionMetadata> {
        let first = self.groups.first().ok_or_else(|| Error::internal("the step has no KV cache groups"))?;
        Ok(&first.attention)
    }
}

/// Sizes of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCacheShape {
    /// Layers that keep keys and values.
    pub num_layers: usize,
    /// Blocks; each holds the layers of one group.
    pub num_blocks: usize,
    /// Tokens a block.
    pub block_size: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Numbers a head.
    pub head_dim: usize,
    /// Of the blocks.
    pub dtype: DType,
}

impl KvCacheShape {
    /// Bytes that one token takes in all layers.
    #[must_use]
    pub fn bytes_per_token(&self) -> usize {
        2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.size_in_bytes()
    }
}

/// Keys and values of every layer, in blocks.
///
/// Layers of different groups stand in the same memory: the blocks of a group's tables are its own.
pub struct KvCache {
    shape: KvCacheShape,
    groups: KvCacheGroups,
    /// Of each layer of the model.
    places: Vec<LayerPlace>,
    /// Those of a group.
    layers: Vec<KvLayer>,
}

impl KvCache {
    /// Allocates all blocks, for layers with these windows.
    ///
    /// # Errors
    /// `InvalidArgument` where the sizes are 0, or more slots than a [`Slot`] can number.
    pub fn new(shape: KvCacheShape, windows: &[Option<usize>], device: &Device) -> Result<Self> {
        let slots = shape.num_blocks.checked_mul(shape.block_size).filter(|&n| n > 0 && u32::try_from(n).is_ok());
        if slots.and_then(|slots| slots.checked_mul(shape.bytes_per_token())).is_none() {
            let why = format!(
                "{} blocks of {} tokens are not a KV cache: both must be at least 1 and their product below 2^32",
                shape.num_blocks, shape.block_size
            );
            return Err(Error::invalid("num_gpu_blocks_override", why));
        }
        let KvCacheShape { num_blocks, block_size, num_kv_heads, head_dim, dtype, .. } = shape;
        let groups = KvCacheGroups::of(windows);
        let layer = || KvLayer::new(num_blocks, block_size, num_kv_heads, head_dim, dtype, device);
        let layers = std::iter::repeat_with(layer).take(groups.layers_per_group()).collect::<Result<Vec<_>>>()?;
        Ok(Self { shape, groups, places: groups.places(windows), layers })
    }

    /// Its sizes.
    #[must_use]
    pub fn shape(&self) -> KvCacheShape {
        self.shape
    }

    /// Which layers share its blocks.
    #[must_use]
    pub fn groups(&self) -> KvCacheGroups {
        self.groups
    }

    /// The group of one layer, and where its keys and values are in that group's blocks.
    fn layer(&self, layer: usize) -> Result<(usize, &KvLayer)> {
        let found = self.places.get(layer).and_then(|place| Some((place.group, self.layers.get(place.index)?)));
        found.ok_or_else(|| Error::internal(format!("the KV cache has no layer {layer}")))
    }

    /// Copies whole blocks, source to destination, in every layer of their group.
    ///
    /// # Errors
    /// `Internal` where a block is not of this cache.
    pub fn copy_blocks(&self, copies: &[(BlockId, BlockId)]) -> Result<()> {
        if copies.is_empty() {
            return Ok(());
        }
        self.layers.iter().try_for_each(|layer| copy_blocks(layer, copies))
    }
}

/// Lets a test keep what it observed.
impl<T: LinearObserver + ?Sized> LinearObserver for Arc<T> {
    fn linear(&self, name: &str, rows: usize) {
        (**self).linear(name, rows);
    }

    fn scored(&self, name: &str, scores: Tensor, routing: &Routing) -> Result<Tensor> {
        (**self).scored(name, scores, routing)
    }
}
