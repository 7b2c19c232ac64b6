//! Writes into the cache by candle's own operations, one a token, for devices that have no kernel of ours.

use candle_core::Tensor;

use super::KvLayer;
use crate::{
    error::Result,
    ids::{BlockId, Slot},
};

pub(super) fn store(keys: &Tensor, values: &Tensor, cache: &KvLayer, slots: &[Slot]) -> Result<()> {
    let (keys, values) = (keys.to_dtype(cache.config.dtype)?, values.to_dtype(cache.config.dtype)?);
    for (token, slot) in slots.iter().enumerate() {
        let (block, offset) = (slot.index() / cache.config.block_size, slot.index() % cache.config.block_size);
        let key = keys.narrow(0, token, 1)?.unsqueeze(3)?.contiguous()?;
        cache.keys.narrow(0, block, 1)?.slice_set(&key, 3, offset)?;
        let value = values.narrow(0, token, 1)?.unsqueeze(2)?.contiguous()?;
        cache.values.narrow(0, block, 1)?.slice_set(&value, 2, offset)?;
    }
    Ok(())
}

pub(super) fn copy_blocks(cache: &KvLayer, copies: &[(BlockId, BlockId)]) -> Result<()> {
    for (from, to) in copies {
        for tensor in [&cache.keys, &cache.values] {
            tensor.slice_set(&tensor.narrow(0, from.index(), 1)?.copy()?, 0, to.index())?;
        }
    }
    Ok(())
}
