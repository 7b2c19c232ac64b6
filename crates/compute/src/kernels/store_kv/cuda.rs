//! Writes into a cache on an NVIDIA card.

use candle_core::{DType, Tensor};

use super::{
    KvLayer, QkvHeads,
    launches::{self, RopeStoreLaunch, StoreKvLaunch},
};
use crate::{
    error::Result,
    ids::{BlockId, Slot},
    kernels::cuda::{Module, card, empty, module, pointer, rows, uploaded},
};

static MODULE: Module = module!("store_kv");

/// As [`store_kv`](super::store_kv), of checked shapes and slots.
pub(super) fn store(keys: &Tensor, values: &Tensor, cache: &KvLayer, slots: &[Slot]) -> Result<()> {
    if slots.is_empty() {
        return Ok(());
    }
    let (card, keys, values) = (card(&cache.keys)?, rows(keys)?, rows(values)?);
    let slots = uploaded(card, bytemuck::cast_slice(slots))?;
    let launch = StoreKvLaunch {
        keys: (keys.address, keys.stride),
        values: (values.address, values.stride),
        slots: pointer(&slots, DType::U32)?,
        key_cache: pointer(&cache.keys, cache.config.dtype)?,
        value_cache: pointer(&cache.values, cache.config.dtype)?,
        tokens: keys.count,
        config: cache.config,
    };
    // SAFETY: the kernel's arguments; every slot is in the cache, whose tensors have the configuration's size.
    unsafe { MODULE.launch(card, &launch.call()) }
}

/// As [`rope_and_store_kv`](super::rope_and_store_kv), of checked shapes, positions and slots.
pub(super) fn rope_and_store(qkv: &Tensor, heads: &QkvHeads<'_>, cache: &KvLayer, slots: &[Slot]) -> Result<Tensor> {
    let config = cache.config;
    let (card, rows) = (card(&cache.keys)?, rows(qkv)?);
    let queries = empty(card, (rows.count, heads.queries, config.head_dim), DType::F32)?;
    if rows.count == 0 {
        return Ok(queries);
    }
    let (positions, slots) = (uploaded(card, heads.positions)?, uploaded(card, bytemuck::cast_slice(slots))?);
    let [query_norm, key_norm] = match heads.norms {
        Some(norms) => norms.map(|norm| norm.weight.contiguous().map(Some)),
        None => [Ok(None), Ok(None)],
    };
    let (query_norm, key_norm) = (query_norm?, key_norm?);
    let address = |weight: &Option<Tensor>| weight.as_ref().map_or(Ok(0), |weight| pointer(weight, DType::F32));
    let launch = RopeStoreLaunch {
        qkv: (rows.address, rows.stride),
        positions: pointer(&positions, DType::U32)?,
        slots: pointer(&slots, DType::U32)?,
        table: pointer(&heads.table.table, DType::F32)?,
        query_norm: address(&query_norm)?,
        key_norm: address(&key_norm)?,
        eps: heads.norms.map_or([0.0; 2], |norms| norms.map(|norm| norm.eps)),
        queries: pointer(&queries, DType::F32)?,
        key_cache: pointer(&cache.keys, config.dtype)?,
        value_cache: pointer(&cache.values, config.dtype)?,
        tokens: rows.count,
        heads: heads.queries,
        config,
        pairs: heads.table.pairs(),
        style: heads.style,
    };
    // SAFETY: the kernel's arguments; every slot is in the cache and every position in the table, a row has the queries, the
    // keys and the values, and a norm's weight `head_dim` numbers.
    unsafe { MODULE.launch(card, &launch.call()) }?;
    Ok(queries)
}

/// As [`copy_blocks`](super::copy_blocks), of blocks in the cache.
pub(super) fn copy_blocks(cache: &KvLayer, copies: &[(BlockId, BlockId)]) -> Result<()> {
    if copies.is_empty() {
        return Ok(());
    }
    let card = card(&cache.keys)?;
    let pairs: Vec<u32> = copies.iter().flat_map(|&(from, to)| [from.0, to.0]).collect();
    let uploaded = uploaded(card, &pairs)?;
    for tensor in [&cache.keys, &cache.values] {
        let (at, pairs) = (pointer(tensor, cache.config.dtype)?, pointer(&uploaded, DType::U32)?);
        // SAFETY: the kernel's arguments; all blocks are in the cache.
        unsafe { MODULE.launch(card, &launches::copy_blocks(at, pairs, copies.len(), &cache.config)) }?;
    }
    Ok(())
}
