//! Paged attention on an NVIDIA card.

use candle_core::{
    CudaDevice, DType, Tensor,
    cuda_backend::cudarc::driver::sys::CUdevice_attribute::{
        self, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as SHARED_BYTES,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS,
    },
};

use super::{
    AttentionMetadata, Row, Scoring,
    launches::{AttentionLaunch, Card, Plan},
};
use crate::{
    error::{Error, Result},
    kernels::{
        cuda::{Module, card, empty, module, pointer, rows, uploaded},
        store_kv::KvLayer,
    },
};

static MODULE: Module = module!("paged_attention");
/// Most dimensions of a head that the kernels are made for.
pub(super) const MOST_HEAD_DIM: usize = 256;

/// As [`paged_attention`](super::paged_attention), of checked shapes and metadata, whose `rows` these are.
pub(super) fn paged_attention(
    q: &Tensor,
    cache: &KvLayer,
    meta: &AttentionMetadata,
    rows_of_step: &[Row<'_>],
    scoring: &Scoring,
) -> Result<Tensor> {
    let (n, heads, head_dim) = q.dims3()?;
    let (card, q, config) = (card(q)?, rows(q)?, *cache.config());
    let out = empty(card, (n, heads * head_dim), DType::F32)?;
    if n == 0 {
        return Ok(out);
    }
    let tables: &[u32] = bytemuck::cast_slice(&meta.block_tables);
    let numbers = [&meta.cu_seqlens, &meta.context_lens, tables, &meta.cu_blocks];
    let sinks = scoring.sinks.as_deref().map(|sinks| uploaded(card, bytemuck::cast_slice(sinks))).transpose()?;
    let kept = numbers.iter().map(|numbers| uploaded(card, numbers)).collect::<Result<Vec<_>>>()?;
    let address = |index: usize| pointer(&kept[index], DType::U32);
    let launch = AttentionLaunch {
        q: (q.address, q.stride),
        keys: pointer(&cache.keys, config.dtype)?,
        values: pointer(&cache.values, config.dtype)?,
        out: pointer(&out, DType::F32)?,
        sinks: sinks.as_ref().map_or(Ok(0), |sinks| pointer(sinks, DType::U32))?,
        cu_seqlens: address(0)?,
        context_lens: address(1)?,
        block_tables: address(2)?,
        cu_blocks: address(3)?,
        heads,
        config,
        scoring,
    };
    for plan in Plan::of(rows_of_step, heads, scoring.window, &config, facts(card)?) {
        let tiles = uploaded(card, &plan.tiles.numbers)?;
        let [sums, stats] = plan.partials(&config);
        let (sums, stats) = (empty(card, sums, DType::F32)?, empty(card, stats, DType::F32)?);
        let partials = [pointer(&sums, DType::F32)?, pointer(&stats, DType::F32)?];
        let (attend, merge) = launch.calls(&plan, pointer(&tiles, DType::U32)?, partials);
        // SAFETY: the kernels' arguments; the metadata's blocks that a query sees are in the cache, and results of splits have
        // the sizes that the plan says.
        unsafe {
            MODULE.launch(card, &attend)?;
            if let Some(merge) = merge {
                MODULE.launch(card, &merge)?;
            }
        }
    }
    Ok(out)
}

fn facts(card: &CudaDevice) -> Result<Card> {
    let stream = card.cuda_stream();
    let ask = |attribute: CUdevice_attribute| {
        let answer = stream.context().attribute(attribute);
        answer.map(|x| x as usize).map_err(|error| Error::internal(format!("paged_attention: {error}")))
    };
    Ok(Card { shared_bytes: ask(SHARED_BYTES)?, multiprocessors: ask(MULTIPROCESSORS)? })
}
