//! How the kernels of store_kv.cu are launched.

use candle_core::DType;

use super::KvCacheConfig;
use crate::kernels::{
    cuda::{Arg, Call, Launch},
    rope::{RopeStyle, launches::a_warp_each},
};

/// Addresses on the card, and sizes.
pub(super) struct StoreKvLaunch {
    /// Float32, a row of `kv_heads * head_dim` a token, and the distance between rows.
    pub(super) keys: (u64, usize),
    /// The same.
    pub(super) values: (u64, usize),
    /// `[tokens]`.
    pub(super) slots: u64,
    pub(super) key_cache: u64,
    pub(super) value_cache: u64,
    pub(super) tokens: usize,
    pub(super) config: KvCacheConfig,
}

impl StoreKvLaunch {
    /// A warp a head of a token, at least one.
    pub(super) fn call(&self) -> Call<11> {
        let &KvCacheConfig { kv_heads, head_dim, block_size, dtype, .. } = &self.config;
        Call {
            kernel: match dtype {
                DType::F32 => "candlewick_store_kv_f32",
                DType::F16 => "candlewick_store_kv_f16",
                DType::BF16 => "candlewick_store_kv_bf16",
                _ => "candlewick_store_kv_f8",
            },
            launch: a_warp_each(self.tokens * kv_heads),
            args: [
                Arg::Ptr(self.keys.0),
                Arg::U64(self.keys.1 as u64),
                Arg::Ptr(self.values.0),
                Arg::U64(self.values.1 as u64),
                Arg::Ptr(self.slots),
                Arg::Ptr(self.key_cache),
                Arg::Ptr(self.value_cache),
                Arg::U32(self.tokens as u32),
                Arg::U32(kv_heads as u32),
                Arg::U32(head_dim as u32),
                Arg::U32(block_size as u32),
            ],
        }
    }
}

/// Rotary embedding of queries and keys, and the write of keys and values, in one pass.
pub(super) struct RopeStoreLaunch {
    /// Float32, a row a token, and the distance between rows: `heads` queries, then the keys, then the values.
    pub(super) qkv: (u64, usize),
    /// `[tokens]`.
    pub(super) positions: u64,
    /// `[tokens]`.
    pub(super) slots: u64,
    /// `[positions, 2, pairs]`.
    pub(super) table: u64,
    /// Float32 `[head_dim]`, the norm of a query; 0 for none.
    pub(super) query_norm: u64,
    /// That of a key.
    pub(super) key_norm: u64,
    /// What is added to the means of squares of both.
    pub(super) eps: [f64; 2],
    /// Float32 `[tokens, heads, head_dim]`.
    pub(super) queries: u64,
    pub(super) key_cache: u64,
    pub(super) value_cache: u64,
    pub(super) tokens: usize,
    pub(super) heads: usize,
    pub(super) config: KvCacheConfig,
    pub(super) pairs: usize,
    pub(super) style: RopeStyle,
}

impl RopeStoreLaunch {
    /// A warp a head of a token, at least one.
    pub(super) fn call(&self) -> Call<19> {
        let &KvCacheConfig { kv_heads, head_dim, block_size, dtype, .. } = &self.config;
        Call {
            kernel: match dtype {
                DType::F32 => "candlewick_rope_store_f32",
                DType::F16 => "candlewick_rope_store_f16",
                DType::BF16 => "candlewick_rope_store_bf16",
                _ => "candlewick_rope_store_f8",
            },
            launch: a_warp_each(self.tokens * (self.heads + 2 * kv_heads)),
            args: [
                Arg::Ptr(self.qkv.0),
                Arg::U64(self.qkv.1 as u64),
                Arg::Ptr(self.positions),
                Arg::Ptr(self.slots),
                Arg::Ptr(self.table),
                Arg::Ptr(self.query_norm),
                Arg::Ptr(self.key_norm),
                Arg::F32(self.eps[0] as f32),
                Arg::F32(self.eps[1] as f32),
                Arg::Ptr(self.queries),
                Arg::Ptr(self.key_cache),
                Arg::Ptr(self.value_cache),
                Arg::U32(self.tokens as u32),
                Arg::U32(self.heads as u32),
                Arg::U32(kv_heads as u32),
                Arg::U32(head_dim as u32),
                Arg::U32(block_size as u32),
                Arg::U32(self.pairs as u32),
                Arg::U32(u32::from(self.style == RopeStyle::Interleaved)),
            ],
        }
    }
}

/// Copies of blocks in keys or in values: `pairs` is `[count, 2]`, each a source and a destination.
pub(super) fn copy_blocks(cache: u64, pairs: u64, count: usize, config: &KvCacheConfig) -> Call<4> {
    const THREADS: u32 = 256;
    const MOST_BLOCKS: usize = 1024;
    let bytes = config.block_bytes() / 2;
    let (kernel, words) = match bytes % 16 {
        0 => ("candlewick_copy_blocks_words", bytes / 16),
        _ => ("candlewick_copy_blocks_bytes", bytes),
    };
    let grid = [words.div_ceil(THREADS as usize).min(MOST_BLOCKS) as u32, 1, 1];
    Call {
        kernel,
        launch: Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 },
        args: [Arg::Ptr(cache), Arg::Ptr(pairs), Arg::U32(count as u32), Arg::U64(words as u64)],
    }
}
