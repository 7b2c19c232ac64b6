//! The paged KV cache of one layer, and the writes into it.
//!
//! # Layout
//! Keys are `[num_blocks, kv_heads, head_dim, block_size]`: sixteen neighbouring tokens' values of one dimension are one
//! vector, so scores need no sums across lanes. Values are `[num_blocks, kv_heads, block_size, head_dim]`: one token's
//! values are vectors of outputs. A head's part of a block is contiguous in both.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub(super) mod element;
#[cfg(test)]
mod host_twin_tests;
#[cfg(any(test, feature = "cuda"))]
mod launches;
mod portable;
#[cfg(test)]
mod tests;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor, bail};

use super::{
    cpu_tensor::try_zeroed,
    rope::{HeadNorm, RopeStyle, RopeTable, rope},
    spare::give_back,
};
use crate::{
    error::{Code, Error, Result},
    ids::{BlockId, Slot},
};

/// Size and type of one layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCacheConfig {
    /// Blocks.
    pub num_blocks: usize,
    /// Tokens a block.
    pub block_size: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Dimensions a head.
    pub head_dim: usize,
    /// Float32, float16, bfloat16 or eight bits (E4M3).
    pub dtype: DType,
}

impl KvCacheConfig {
    /// Bytes of keys and values that one block takes in one layer.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        2 * self.block_size * self.kv_heads * self.head_dim * self.dtype.size_in_bytes()
    }

    /// Tokens there is room for.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.num_blocks * self.block_size
    }
}

/// Keys and values of one layer. Clones share the storage.
#[derive(Clone, Debug)]
pub struct KvLayer {
    config: KvCacheConfig,
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
}

impl KvLayer {
    /// A cache of zeros. On the CPU the operating system provides the memory when it is first written.
    ///
    /// # Errors
    /// `Internal` where a size is zero, the product overflows or a cache cannot have the type;
    /// `ResourceExhausted` where there is no memory.
    pub fn new(
        num_blocks: usize,
        block_size: usize,
        kv_heads: usize,
        head_dim: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let config = KvCacheConfig { num_blocks, block_size, kv_heads, head_dim, dtype };
        let elements = [num_blocks, block_size, kv_heads, head_dim].into_iter().try_fold(1usize, usize::checked_mul);
        let elements =
            elements.filter(|&n| n > 0 && n < isize::MAX as usize / 8 && u32::try_from(config.slots()).is_ok());
        let elements = elements.ok_or_else(|| Error::internal(format!("a KV cache cannot have {config:?}")))?;
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3) {
            return Err(Error::internal(format!("a KV cache of {dtype:?}: {ELEMENTS}")));
        }
        Ok(Self {
            config,
            keys: zeros(elements, (num_blocks, kv_heads, head_dim, block_size), dtype, device)?,
            values: zeros(elements, (num_blocks, kv_heads, block_size, head_dim), dtype, device)?,
        })
    }

    /// Its size and type.
    #[must_use]
    pub fn config(&self) -> &KvCacheConfig {
        &self.config
    }
}

/// What they can be.
pub(super) const ELEMENTS: &str = "a KV cache has float32, float16, bfloat16 or float8 (E4M3) elements";

type Shape4 = (usize, usize, usize, usize);

/// Zeros that the operating system provides when they are touched; candle's own are written at once.
fn zeros(elements: usize, shape: Shape4, dtype: DType, device: &Device) -> Result<Tensor> {
    fn on_cpu<T: bytemuck::Zeroable + candle_core::WithDType>(elements: usize, shape: Shape4) -> Result<Tensor> {
        let zeros = try_zeroed::<T>(elements).ok_or_else(|| {
            let bytes = elements * size_of::<T>();
            Error::new(Code::ResourceExhausted, format!("no memory for {bytes} bytes of KV cache: use fewer blocks"))
        })?;
        Ok(Tensor::from_vec(zeros, shape, &Device::Cpu)?)
    }
    match (device, dtype) {
        (Device::Cpu, DType::F32) => on_cpu::<f32>(elements, shape),
        (Device::Cpu, DType::F16) => on_cpu::<half::f16>(elements, shape),
        (Device::Cpu, DType::BF16) => on_cpu::<half::bf16>(elements, shape),
        (Device::Cpu, DType::F8E4M3) => on_cpu::<float8::F8E4M3>(elements, shape),
        _ => Ok(Tensor::zeros(shape, dtype, device)?),
    }
}

/// Writes keys and values, float32 `[n, kv_heads, head_dim]` each, to `slots`, `n` of them, rounded to the cache's type.
///
/// # Errors
/// `Internal` where the shapes do not fit or a slot is outside the cache; nothing is written then.
pub fn store_kv(keys: &Tensor, values: &Tensor, cache: &KvLayer, slots: &[Slot]) -> Result<()> {
    let config = cache.config;
    let want = [slots.len(), config.kv_heads, config.head_dim];
    for (name, x) in [("keys", keys), ("values", values)] {
        if x.dims() != want {
            return Err(Error::internal(format!("store_kv: {name} have shape {:?}, must have {want:?}", x.dims())));
        }
    }
    check_slots(slots, &config)?;
    match cache.keys.device() {
        Device::Cpu => cpu::store(keys, values, cache, slots),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::store(keys, values, cache, slots),
        _ => portable::store(keys, values, cache, slots),
    }
}

/// What a token's row of a fused projection holds, and what becomes of it before it is used.
#[derive(Clone, Copy)]
pub struct QkvHeads<'a> {
    /// Heads of queries, which come first; then those of keys and of values, as many as the cache has.
    pub queries: usize,
    /// The RMS norms of a query and of a key, before they are turned.
    pub norms: Option<[HeadNorm<'a>; 2]>,
    /// Where the tokens stand: one position a row.
    pub positions: &'a [u32],
    /// By how much a position turns.
    pub table: &'a RopeTable,
    /// Which dimensions make a pair.
    pub style: RopeStyle,
}

/// [Turns](mod@super::rope) the queries and keys of a fused projection, float32 `[n, heads, head_dim]`, writes keys and values to
/// `slots`, and gives the queries, `[n, queries, head_dim]`. Heads behind the values are left alone.
///
/// # Errors
/// `Internal` where the shapes do not fit, a position is past the table or a slot is outside the cache; nothing is written
/// then.
pub fn rope_and_store_kv(qkv: &Tensor, heads: &QkvHeads<'_>, cache: &KvLayer, slots: &[Slot]) -> Result<Tensor> {
    let KvCacheConfig { kv_heads, head_dim, .. } = cache.config;
    let fits =
        matches!(*qkv.dims(), [n, all, d] if n == slots.len() && all >= heads.queries + 2 * kv_heads && d == head_dim);
    if !fits {
        let (dims, queries, n) = (qkv.dims(), heads.queries, slots.len());
        let why =
            format!("{dims:?} for {n} slots, {queries} heads of queries and {kv_heads} of {head_dim} in the cache");
        return Err(Error::internal(format!("rope_and_store_kv: {why}")));
    }
    #[cfg(feature = "cuda")]
    if let Device::Cuda(_) = cache.keys.device() {
        check_slots(slots, &cache.config)?;
        heads.check(head_dim, slots.len())?;
        return cuda::rope_and_store(qkv, heads, cache, slots);
    }
    let [query_norm, key_norm] = heads.norms.map_or([None; 2], |norms| norms.map(Some));
    let &QkvHeads { queries, positions, table, style, .. } = heads;
    let q = rope(&qkv.narrow(1, 0, queries)?, query_norm, positions, table, style)?;
    let k = rope(&qkv.narrow(1, queries, kv_heads)?, key_norm, positions, table, style)?;
    store_kv(&k, &qkv.narrow(1, queries + kv_heads, kv_heads)?, cache, slots)?;
    give_back(k);
    Ok(q)
}

#[cfg(feature = "cuda")]
impl QkvHeads<'_> {
    /// What [`rope`] would refuse.
    fn check(&self, head_dim: usize, tokens: usize) -> Result<()> {
        let max = self.table.max_positions();
        let past = self.positions.iter().any(|&position| position as usize >= max);
        let narrow = self.norms.is_some_and(|norms| norms.iter().any(|norm| norm.weight.dims() != [head_dim]));
        if self.positions.len() != tokens || 2 * self.table.pairs() > head_dim || past || narrow {
            let (positions, pairs) = (self.positions.len(), self.table.pairs());
            let why =
                format!("{positions} positions below {max}, {pairs} pairs and norms for {tokens} heads of {head_dim}");
            return Err(Error::internal(format!("rope_and_store_kv: {why}")));
        }
        Ok(())
    }
}

fn check_slots(slots: &[Slot], config: &KvCacheConfig) -> Result<()> {
    match slots.iter().find(|slot| slot.index() >= config.slots()) {
        None => Ok(()),
        Some(slot) => {
            Err(Error::internal(format!("store_kv: slot {slot} is past the {} of the cache", config.slots())))
        }
    }
}

/// Copies whole blocks, `(source, destination)` each, in order.
///
/// # Errors
/// `Internal` where a block is outside the cache; nothing is copied then.
pub fn copy_blocks(cache: &KvLayer, copies: &[(BlockId, BlockId)]) -> Result<()> {
    let count = cache.config.num_blocks;
    if let Some(block) = copies.iter().flat_map(|&(from, to)| [from, to]).find(|block| block.index() >= count) {
        return Err(Error::internal(format!("copy_blocks: block {block} is past the {count} of the cache")));
    }
    match cache.keys.device() {
        Device::Cpu => cpu::copy_blocks(cache, copies),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::copy_blocks(cache, copies),
        _ => portable::copy_blocks(cache, copies),
    }
}

/// Evaluates an expression with the elements of a cache tensor's storage as a slice of a
/// [`CacheElement`](element::CacheElement) type.
macro_rules! with_elements {
    ($storage:expr, $data:ident => $body:expr) => {
        match $storage {
            candle_core::CpuStorage::F32($data) => $body,
            candle_core::CpuStorage::F16($data) => $body,
            candle_core::CpuStorage::BF16($data) => $body,
            candle_core::CpuStorage::F8E4M3($data) => $body,
            _ => candle_core::bail!("{}", $crate::kernels::store_kv::ELEMENTS),
        }
    };
}
pub(super) use with_elements;

/// The CPU storage of a cache tensor, for reading.
pub(super) fn cache_storage(storage: &Storage) -> candle_core::Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => bail!("the KV cache is not on the CPU"),
    }
}
