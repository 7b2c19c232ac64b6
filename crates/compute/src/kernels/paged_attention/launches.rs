//! How the kernels of paged_attention.cu are launched: which rows make a tile, and how many blocks share one out. No choice
//! here changes a bit of the result.

use candle_core::DType;

use super::{Row, Scoring};
use crate::kernels::{
    cuda::{Arg, Call, Launch},
    store_kv::KvCacheConfig,
};

/// Keys that are taken at once.
const KEYS: usize = 64;
/// Keys a split, which begins at a multiple of it.
const SPLIT: usize = 256;
/// Rows (a query and a head of its group) that a warp multiplies at once.
const ROWS: usize = 16;
/// Warps of a block whose warps all work on the same rows.
const WARPS: u32 = 4;
/// Numbers behind each line in shared memory.
const PAD: usize = 8;
/// Memory that is worth spending on results of splits.
const MOST_PARTIAL_BYTES: usize = 256 << 20;

/// What the choice of a launch depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Card {
    /// Shared memory that a block can have.
    pub(super) shared_bytes: usize,
    pub(super) multiprocessors: usize,
}

/// How the rows of a tile are worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// Sixteen rows by all warps of a block: the few queries of decoding.
    Together,
    /// Sixteen rows by each of so many warps: prompts.
    Each(u32),
}

impl Share {
    fn rows(self) -> usize {
        match self {
            Self::Together => ROWS,
            Self::Each(warps) => ROWS * warps as usize,
        }
    }
}

/// The tiles of a launch.
#[derive(Clone, Debug)]
pub(super) struct Tiles {
    /// `[tiles, 2]`: a row of the metadata, and the first of its rows in the tile.
    pub(super) numbers: Vec<u32>,
    /// The most rows that one has.
    rows: usize,
    /// The most splits that one has.
    splits: usize,
}

impl Tiles {
    /// The queries of `rows` with these indices, in tiles of so many rows.
    fn of(rows: &[Row<'_>], indices: &[usize], group: usize, window: usize, each: usize) -> Self {
        let mut tiles = Self { numbers: Vec::new(), rows: 0, splits: 0 };
        for &index in indices {
            let row = &rows[index];
            let count = row.queries.len() * group;
            for first in (0..count).step_by(each) {
                let end = count.min(first + each);
                let end_key = row.context_len + (end - 1) / group + 1;
                let first_key = (row.context_len + first / group + 1).saturating_sub(window);
                tiles.numbers.extend([index as u32, first as u32]);
                tiles.rows = tiles.rows.max(end - first);
                tiles.splits = tiles.splits.max(end_key.div_ceil(SPLIT) - first_key / SPLIT);
            }
        }
        tiles
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.numbers.len() / 2
    }
}

/// One launch, or two where splits are merged by the second.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) share: Share,
    pub(super) tiles: Tiles,
    /// Tiles of keys in shared memory, 1 or 2.
    pub(super) stages: u32,
    /// Blocks that share out the splits of a tile; 0 where one block takes all.
    pub(super) blocks: u32,
}

impl Plan {
    /// The launches of a step's rows: one for those of few queries, one for the others.
    pub(super) fn of(rows: &[Row<'_>], heads: usize, window: usize, config: &KvCacheConfig, card: Card) -> Vec<Self> {
        let group = heads / config.kv_heads;
        let present = (0..rows.len()).filter(|&row| !rows[row].queries.is_empty());
        // A tile of float32 is of sixteen rows, a warp each.
        let few = |&row: &usize| rows[row].queries.len() * group <= ROWS || config.dtype == DType::F32;
        let (few, many): (Vec<usize>, Vec<usize>) = present.partition(few);
        let mut plans = Vec::new();
        for (indices, together) in [(few, true), (many, false)] {
            if !indices.is_empty() {
                let (share, stages) = fitting(config, together, card);
                let tiles = Tiles::of(rows, &indices, group, window, share.rows());
                let blocks = if together { blocks(&tiles, config, card) } else { 0 };
                plans.push(Self { share, tiles, stages, blocks });
            }
        }
        plans
    }

    /// Float32 numbers that results of splits take: sums, and what belongs to them.
    pub(super) fn partials(&self, config: &KvCacheConfig) -> [usize; 2] {
        let lines = if self.blocks == 0 { 0 } else { self.lines(config) };
        [lines * config.head_dim, lines * 2]
    }

    fn lines(&self, config: &KvCacheConfig) -> usize {
        self.tiles.len() * config.kv_heads * self.tiles.rows * self.tiles.splits
    }
}

/// Blocks a tile: enough for the card to be busy.
fn blocks(tiles: &Tiles, config: &KvCacheConfig, card: Card) -> u32 {
    let pairs = tiles.len() * config.kv_heads;
    let partial = pairs * tiles.rows * tiles.splits * (config.head_dim + 2) * size_of::<f32>();
    let wanted = (4 * card.multiprocessors).div_ceil(pairs).min(tiles.splits);
    if wanted < 2 || partial > MOST_PARTIAL_BYTES { 0 } else { wanted as u32 }
}

/// What fits into shared memory, the best first.
fn fitting(config: &KvCacheConfig, together: bool, card: Card) -> (Share, u32) {
    const TOGETHER: &[(Share, u32)] = &[(Share::Together, 2), (Share::Together, 1)];
    const EACH: &[(Share, u32)] =
        &[(Share::Each(4), 2), (Share::Each(4), 1), (Share::Each(2), 2), (Share::Each(2), 1), (Share::Each(1), 1)];
    let choices = if together { TOGETHER } else { EACH };
    let fits = |&(share, stages): &(Share, u32)| shared_bytes(config, share, stages, true) <= card.shared_bytes;
    choices.iter().copied().find(fits).unwrap_or(choices[choices.len() - 1])
}

/// As the kernel lays it out.
fn shared_bytes(config: &KvCacheConfig, share: Share, stages: u32, with_totals: bool) -> usize {
    if config.dtype == DType::F32 {
        return 0;
    }
    let dims = config.head_dim.next_multiple_of(16);
    let (rows, line) = (share.rows(), dims + PAD);
    let queries = rows * line * 2;
    let totals = if with_totals { rows * line * 4 } else { 0 };
    let weights = if share == Share::Together { ROWS * (KEYS + PAD) * 2 + WARPS as usize * ROWS * 4 } else { 0 };
    queries + totals + weights + stages as usize * (dims * (KEYS + PAD) + KEYS * line) * 2
}

/// Addresses on the card of what all launches of a step share, and sizes.
pub(super) struct AttentionLaunch<'a> {
    /// Float32 `[queries, heads, head_dim]`, and the numbers between two queries.
    pub(super) q: (u64, usize),
    pub(super) keys: u64,
    pub(super) values: u64,
    /// Float32 `[queries, heads * head_dim]`.
    pub(super) out: u64,
    /// `[heads]`, 0 for none.
    pub(super) sinks: u64,
    /// As in the metadata.
    pub(super) cu_seqlens: u64,
    pub(super) context_lens: u64,
    pub(super) block_tables: u64,
    pub(super) cu_blocks: u64,
    pub(super) heads: usize,
    pub(super) config: KvCacheConfig,
    pub(super) scoring: &'a Scoring,
}

impl AttentionLaunch<'_> {
    /// The launch of a plan whose tiles and results of splits stand there, and that of the merge where there is one.
    pub(super) fn calls(&self, plan: &Plan, tiles: u64, [sums, stats]: [u64; 2]) -> (Call<23>, Option<Call<23>>) {
        let KvCacheConfig { kv_heads, head_dim, block_size, dtype, .. } = self.config;
        let split_up = plan.blocks > 0;
        let args = [
            Arg::Ptr(self.q.0),
            Arg::U64(self.q.1 as u64),
            Arg::Ptr(self.keys),
            Arg::Ptr(self.values),
            Arg::Ptr(self.out),
            Arg::Ptr(self.sinks),
            Arg::Ptr(self.cu_seqlens),
            Arg::Ptr(self.context_lens),
            Arg::Ptr(self.block_tables),
            Arg::Ptr(self.cu_blocks),
            Arg::Ptr(tiles),
            Arg::Ptr(if split_up { sums } else { 0 }),
            Arg::Ptr(if split_up { stats } else { 0 }),
            Arg::U32(plan.tiles.rows as u32),
            Arg::U32(plan.tiles.splits as u32),
            Arg::U32(self.heads as u32),
            Arg::U32(kv_heads as u32),
            Arg::U32(head_dim as u32),
            Arg::U32(block_size as u32),
            Arg::F32(self.scoring.scale),
            Arg::F32(self.scoring.softcap.unwrap_or(0.0)),
            Arg::U32(u32::try_from(self.scoring.window).unwrap_or(u32::MAX)),
            Arg::U32(plan.stages),
        ];
        let warps = match (dtype, plan.share) {
            (DType::F32, _) => ROWS as u32,
            (_, Share::Together) => WARPS,
            (_, Share::Each(warps)) => warps,
        };
        let grid = |z: usize| [plan.tiles.len() as u32, kv_heads as u32, z as u32];
        let launch = Launch {
            grid: grid(plan.blocks.max(1) as usize),
            block: [32 * warps, 1, 1],
            shared_bytes: shared_bytes(&self.config, plan.share, plan.stages, !split_up) as u32,
        };
        let kernel = kernel(dtype, head_dim, plan.share);
        let threads = head_dim.next_multiple_of(32) as u32;
        let merge = Launch { grid: grid(plan.tiles.rows), block: [threads, 1, 1], shared_bytes: 0 };
        let merge = split_up.then_some(Call { kernel: "candlewick_paged_attention_merge", launch: merge, args });
        (Call { kernel, launch, args }, merge)
    }
}

/// By what the cache holds, who works on a row, and the dimensions of a head.
fn kernel(dtype: DType, head_dim: usize, share: Share) -> &'static str {
    let [together, small, large] = match dtype {
        DType::F32 => return "candlewick_paged_attention_f32",
        DType::F16 => [
            "candlewick_paged_attention_f16_together",
            "candlewick_paged_attention_f16_128",
            "candlewick_paged_attention_f16_256",
        ],
        DType::BF16 => [
            "candlewick_paged_attention_bf16_together",
            "candlewick_paged_attention_bf16_128",
            "candlewick_paged_attention_bf16_256",
        ],
        _ => [
            "candlewick_paged_attention_f8_together",
            "candlewick_paged_attention_f8_128",
            "candlewick_paged_attention_f8_256",
        ],
    };
    match share {
        Share::Together => together,
        Share::Each(_) if head_dim <= 128 => small,
        Share::Each(_) => large,
    }
}
