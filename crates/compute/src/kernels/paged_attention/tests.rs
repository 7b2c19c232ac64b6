//! Paged attention against its reference, and its invariance.

use candle_core::DType;
use rand::{RngExt, rngs::StdRng};

use super::*;
use crate::{
    ids::Slot,
    kernels::{
        store_kv::store_kv,
        test_data::{assert_close, bits, on_threads, random, rng, tensor, values},
    },
};

/// Sequences in a cache, whatever part of them a step computes.
pub(super) struct Sequences {
    pub(super) scoring: Scoring,
    pub(super) cache: KvLayer,
    /// `[len, heads, head_dim]` and `[len, kv_heads, head_dim]`, as rounded by the cache.
    all: Vec<[Tensor; 3]>,
    tables: Vec<Vec<BlockId>>,
}

pub(super) struct Shape {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) block_size: usize,
    pub(super) dtype: DType,
}

impl Sequences {
    /// Their blocks lie scattered over a cache whose unwritten slots are NaN.
    pub(super) fn new(rng: &mut StdRng, shape: &Shape, lens: &[usize], window: usize) -> Self {
        let &Shape { heads, kv_heads, head_dim, block_size, dtype } = shape;
        let needed: Vec<usize> = lens.iter().map(|len| len.div_ceil(block_size)).collect();
        let num_blocks = needed.iter().sum::<usize>() + 3;
        let mut free: Vec<BlockId> = (0..num_blocks as u32).map(BlockId).collect();
        let cache = KvLayer::new(num_blocks, block_size, kv_heads, head_dim, dtype, &Device::Cpu).unwrap();
        let nan = tensor(
            vec![f32::NAN; num_blocks * block_size * kv_heads * head_dim],
            &[num_blocks * block_size, kv_heads, head_dim],
        );
        let slots: Vec<Slot> = (0..(num_blocks * block_size) as u32).map(Slot).collect();
        store_kv(&nan, &nan, &cache, &slots).unwrap();
        let (mut all, mut tables) = (Vec::new(), Vec::new());
        for (&len, &needed) in lens.iter().zip(&needed) {
            let table: Vec<BlockId> = (0..needed).map(|_| free.swap_remove(rng.random_range(0..free.len()))).collect();
            let q = random(rng, &[len, heads, head_dim]);
            let [k, v] = [(); 2].map(|()| {
                let exact = random(rng, &[len, kv_heads, head_dim]);
                exact.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap()
            });
            let slot = |p: usize| Slot(table[p / block_size].0 * block_size as u32 + (p % block_size) as u32);
            store_kv(&k, &v, &cache, &(0..len).map(slot).collect::<Vec<_>>()).unwrap();
            all.push([q, k, v]);
            tables.push(table);
        }
        let scoring = Scoring { window, ..Scoring::plain(1.0 / (head_dim as f32).sqrt()) };
        Self { scoring, cache, all, tables }
    }

    /// Queries and metadata of a step that computes these positions of these sequences.
    pub(super) fn step(&self, rows: &[(usize, std::ops::Range<usize>)]) -> (Tensor, AttentionMetadata) {
        let block_size = self.cache.config().block_size;
        let mut meta = AttentionMetadata { block_size, cu_seqlens: vec![0], cu_blocks: vec![0], ..Default::default() };
        let mut queries = Vec::new();
        for (sequence, range) in rows {
            queries.push(self.all[*sequence][0].narrow(0, range.start, range.len()).unwrap());
            meta.cu_seqlens.push(meta.cu_seqlens[meta.cu_seqlens.len() - 1] + range.len() as u32);
            meta.context_lens.push(range.start as u32);
            meta.block_tables.extend(&self.tables[*sequence]);
            meta.cu_blocks.push(meta.block_tables.len() as u32);
        }
        (Tensor::cat(&queries, 0).unwrap(), meta)
    }

    fn attend(&self, rows: &[(usize, std::ops::Range<usize>)]) -> Tensor {
        let (q, meta) = self.step(rows);
        paged_attention(&q, &self.cache, &meta, &self.scoring).unwrap()
    }

    fn attend_at(&self, level: Level, rows: &[(usize, std::ops::Range<usize>)]) -> Tensor {
        let (q, meta) = self.step(rows);
        paged_attention_at(level, &q, &self.cache, &meta, &self.scoring).unwrap()
    }

    fn portable(&self, rows: &[(usize, std::ops::Range<usize>)]) -> Tensor {
        let (q, meta) = self.step(rows);
        let config = self.cache.config();
        let rows = meta.rows(q.dims()[0], config, self.scoring.window).unwrap();
        portable::paged_attention(&q, &self.cache, &rows, &self.scoring).unwrap()
    }

    /// A whole sequence.
    pub(super) fn reference(&self, sequence: usize) -> Vec<f64> {
        let [q, k, v] = &self.all[sequence];
        let (len, heads, head_dim) = q.dims3().unwrap();
        let group = heads / k.dims()[1];
        let mut out = vec![0.0; len * heads * head_dim];
        for head in 0..heads {
            let part = |x: &Tensor, head| values(&x.narrow(1, head, 1).unwrap().contiguous().unwrap());
            let (q, k, v) = (part(q, head), part(k, head / group), part(v, head / group));
            let one = reference::attention(&q, &k, &v, head_dim, &self.scoring, head);
            for (query, one) in one.chunks_exact(head_dim).enumerate() {
                out[(query * heads + head) * head_dim..][..head_dim].copy_from_slice(one);
            }
        }
        out
    }

    /// Gives the first blocks of a sequence's table back; they are returned.
    pub(super) fn forget(&mut self, sequence: usize, blocks: usize) -> Vec<BlockId> {
        let gone = self.tables[sequence][..blocks].to_vec();
        self.tables[sequence][..blocks].fill(BlockId::NULL);
        gone
    }

    /// Puts them back.
    pub(super) fn remember(&mut self, sequence: usize, blocks: Vec<BlockId>) {
        self.tables[sequence][..blocks.len()].copy_from_slice(&blocks);
    }

    /// Has a sequence begin as the first one does: the blocks, and what is in them.
    fn begin_alike(&mut self, sequence: usize, blocks: usize) {
        let tokens = blocks * self.cache.config().block_size;
        let (first, rest) = self.tables.split_at_mut(sequence);
        rest[0][..blocks].copy_from_slice(&first[0][..blocks]);
        for x in 1..3 {
            let rest = self.all[sequence][x].narrow(0, tokens, self.len(sequence) - tokens).unwrap();
            self.all[sequence][x] = Tensor::cat(&[self.all[0][x].narrow(0, 0, tokens).unwrap(), rest], 0).unwrap();
        }
    }

    pub(super) fn len(&self, sequence: usize) -> usize {
        self.all[sequence][0].dims()[0]
    }
}

pub(super) const SHAPES: [Shape; 12] = [
    Shape { heads: 4, kv_heads: 2, head_dim: 64, block_size: 16, dtype: DType::F32 },
    Shape { heads: 1, kv_heads: 1, head_dim: 8, block_size: 1, dtype: DType::F32 },
    Shape { heads: 6, kv_heads: 2, head_dim: 80, block_size: 5, dtype: DType::BF16 },
    Shape { heads: 3, kv_heads: 3, head_dim: 100, block_size: 32, dtype: DType::F16 },
    Shape { heads: 8, kv_heads: 1, head_dim: 96, block_size: 100, dtype: DType::BF16 },
    Shape { heads: 14, kv_heads: 2, head_dim: 128, block_size: 16, dtype: DType::BF16 },
    Shape { heads: 2, kv_heads: 2, head_dim: 256, block_size: 48, dtype: DType::F16 },
    Shape { heads: 60, kv_heads: 1, head_dim: 33, block_size: 16, dtype: DType::F32 },
    Shape { heads: 6, kv_heads: 2, head_dim: 128, block_size: 16, dtype: DType::BF16 },
    Shape { heads: 4, kv_heads: 1, head_dim: 64, block_size: 32, dtype: DType::F16 },
    Shape { heads: 4, kv_heads: 2, head_dim: 128, block_size: 16, dtype: DType::F8E4M3 },
    Shape { heads: 5, kv_heads: 1, head_dim: 72, block_size: 24, dtype: DType::F8E4M3 },
];

#[test]
fn it_is_the_reference_for_ragged_rows_of_every_shape() {
    let mut rng = rng(1);
    for shape in &SHAPES {
        // Rounded to 8 bits are queries, by at most 2^-9 of themselves, and weights.
        let tolerance = if matches!(shape.dtype, DType::F32 | DType::F16) { 2e-6 } else { 3e-3 };
        for (window, softcap) in [(usize::MAX, None), (1, None), (7, Some(0.7)), (70, None), (usize::MAX, Some(2.0))] {
            let mut sequences = Sequences::new(&mut rng, shape, &[1, 37, 150, 64], window);
            sequences.scoring.softcap = softcap;
            let rows: Vec<_> = (0..4).map(|s| (s, 0..sequences.len(s))).collect();
            let want: Vec<f64> = (0..4).flat_map(|s| sequences.reference(s)).collect();
            assert_close(&values(&sequences.attend(&rows)), &want, tolerance);
            assert_close(&values(&sequences.portable(&rows)), &want, 2e-6);
        }
    }
}

#[test]
fn a_query_has_the_same_bits_in_one_piece_in_chunks_alone_and_in_a_batch() {
    let mut rng = rng(2);
    for shape in &SHAPES {
        for window in [usize::MAX, 70] {
            let sequences = Sequences::new(&mut rng, shape, &[200, 90], window);
            let whole = sequences.attend(&[(0, 0..200)]);
            let part = |range: std::ops::Range<usize>| bits(&whole.narrow(0, range.start, range.len()).unwrap());
            for chunk in [1, 5, 64, 77] {
                for start in (0..200).step_by(chunk) {
                    let range = start..200.min(start + chunk);
                    let alone = sequences.attend(&[(0, range.clone())]);
                    assert_eq!(bits(&alone), part(range.clone()), "chunk {range:?} of a head of {}", shape.head_dim);
                }
            }
            let batch = sequences.attend(&[(1, 80..90), (0, 130..171), (1, 3..4), (0, 199..200)]);
            assert_eq!(bits(&batch.narrow(0, 10, 41).unwrap()), part(130..171));
            assert_eq!(bits(&batch.narrow(0, 52, 1).unwrap()), part(199..200));
        }
    }
}

#[test]
fn instruction_sets_threads_and_block_sizes_give_the_same_bits() {
    for shape in &SHAPES {
        let sequences = Sequences::new(&mut rng(3), shape, &[100, 70], 80);
        let rows = [(0, 0..100), (1, 20..70)];
        let want = bits(&sequences.attend(&rows));
        for level in Level::tested() {
            assert_eq!(bits(&sequences.attend_at(level, &rows)), want, "{level:?}");
        }
        for threads in [1, 2, 3] {
            assert_eq!(bits(&on_threads(threads, || sequences.attend(&rows))), want, "{threads} threads");
        }
        for block_size in [1, 3, 16, 64] {
            let mut other = Sequences::new(&mut rng(4), &Shape { block_size, ..*shape }, &[100, 70], 80);
            for (sequence, table) in other.tables.iter().enumerate() {
                let slot = |p: usize| Slot(table[p / block_size].0 * block_size as u32 + (p % block_size) as u32);
                let slots: Vec<Slot> = (0..sequences.len(sequence)).map(slot).collect();
                let [_, k, v] = &sequences.all[sequence];
                store_kv(k, v, &other.cache, &slots).unwrap();
            }
            other.all.clone_from(&sequences.all);
            assert_eq!(bits(&other.attend(&rows)), want, "blocks of {block_size}");
        }
    }
}

#[test]
fn sequences_that_begin_alike_have_the_same_bits_as_alone() {
    for (index, shape) in SHAPES.iter().enumerate() {
        let lens = [300, 290, 270, 300, 128, 20];
        let mut sequences = Sequences::new(&mut rng(11), shape, &lens, [usize::MAX, 280][index % 2]);
        sequences.scoring.sinks = (index % 3 == 0).then(|| vec![0.5; shape.heads].into());
        for (sequence, alike) in [(1, 260), (2, 200), (3, 130), (4, 128)] {
            sequences.begin_alike(sequence, alike / shape.block_size);
        }
        let rows: Vec<_> = lens.iter().enumerate().map(|(sequence, &len)| (sequence, len - 1..len)).collect();
        let alone: Vec<_> = rows.iter().map(|row| sequences.attend(std::slice::from_ref(row))).collect();
        let want = bits(&Tensor::cat(&alone, 0).unwrap());
        for level in Level::tested() {
            for threads in [1, 3] {
                let together = on_threads(threads, || sequences.attend_at(level, &rows));
                assert_eq!(bits(&together), want, "{level:?}, {threads} threads, heads of {}", shape.head_dim);
            }
        }
        let tolerance = if matches!(shape.dtype, DType::F32 | DType::F16) { 1e-5 } else { 2e-2 };
        for ((sequence, range), alone) in rows.into_iter().zip(alone) {
            let whole = sequences.reference(sequence);
            let width = whole.len() / sequences.len(sequence);
            assert_close(&values(&alone), &whole[range.start * width..], tolerance);
        }
    }
}

#[test]
fn blocks_before_the_window_need_not_exist_and_those_in_it_must() {
    for (index, shape) in SHAPES.iter().enumerate() {
        let window = [1, 7, 40, 70][index % 4];
        let mut sequences = Sequences::new(&mut rng(10), shape, &[200], window);
        // Some whole, some chunks, and the single queries that decoding has.
        for range in [0..200, 150..200, 137..171, 199..200, 96..97] {
            let want = sequences.attend(&[(0, range.clone())]);
            let portable = sequences.portable(&[(0, range.clone())]);
            let first_seen = (range.start + 1).saturating_sub(window) / shape.block_size;
            let table = sequences.tables[0].clone();
            sequences.tables[0][..first_seen].fill(BlockId::NULL);
            for level in Level::tested() {
                let got = sequences.attend_at(level, &[(0, range.clone())]);
                assert_eq!(bits(&got), bits(&want), "{level:?}, {range:?}, window {window}");
            }
            assert_eq!(bits(&sequences.portable(&[(0, range.clone())])), bits(&portable), "{range:?}");
            sequences.tables[0][first_seen] = BlockId::NULL;
            let (q, meta) = sequences.step(&[(0, range.clone())]);
            let error = paged_attention(&q, &sequences.cache, &meta, &sequences.scoring).unwrap_err();
            assert!(error.message.contains("the cache ends at"), "{range:?}: {error}");
            sequences.tables[0] = table;
        }
    }
}

#[test]
fn large_scores_stay_finite() {
    let mut rng = rng(5);
    let mut sequences = Sequences::new(&mut rng, &SHAPES[0], &[130], usize::MAX);
    for scale in [1e4, 1e20, -1e30] {
        sequences.scoring.scale = scale;
        let got = values(&sequences.attend(&[(0, 0..130)]));
        assert!(got.iter().all(|x| x.is_finite()));
        assert_close(&got, &sequences.reference(0), 1e-2);
    }
}

#[test]
fn metadata_that_does_not_fit_is_refused() {
    let sequences = Sequences::new(&mut rng(6), &SHAPES[0], &[40], usize::MAX);
    let (q, good) = sequences.step(&[(0, 0..40)]);
    type Change = fn(&mut AttentionMetadata);
    let changes: [(Change, &str); 7] = [
        (|meta| meta.block_size = 8, "blocks of 8"),
        (|meta| meta.context_lens[0] = 9, "has 3 blocks, needs 4"),
        (|meta| meta.context_lens.push(0), "2 rows"),
        (|meta| meta.cu_seqlens[1] = 41, "cover"),
        (|meta| meta.cu_blocks[1] = 4, "out of order"),
        (|meta| meta.block_tables[2] = BlockId(1000), "block 1000"),
        (|meta| meta.cu_blocks[0] = 1, "needs 3"),
    ];
    for (change, message) in changes {
        let mut meta = good.clone();
        change(&mut meta);
        let error = paged_attention(&q, &sequences.cache, &meta, &sequences.scoring).unwrap_err();
        assert!(error.message.contains(message), "{error}");
    }
    let (narrow, blind) = (q.narrow(2, 0, 32).unwrap(), Scoring { window: 0, ..sequences.scoring.clone() });
    assert!(paged_attention(&narrow, &sequences.cache, &good, &sequences.scoring).is_err());
    assert!(paged_attention(&q, &sequences.cache, &good, &blind).is_err());
}

#[test]
fn a_step_without_queries_gives_nothing() {
    let sequences = Sequences::new(&mut rng(7), &SHAPES[0], &[4], usize::MAX);
    let meta = AttentionMetadata { block_size: 16, cu_seqlens: vec![0], cu_blocks: vec![0], ..Default::default() };
    let q = sequences.all[0][0].narrow(0, 0, 0).unwrap();
    assert_eq!(paged_attention(&q, &sequences.cache, &meta, &sequences.scoring).unwrap().dims(), [0, 4 * 64]);
}

#[test]
fn a_sink_takes_its_part_of_the_softmax_on_every_path() {
    for (index, shape) in SHAPES.iter().enumerate() {
        let mut sequences = Sequences::new(&mut rng(8), shape, &[150, 3], [usize::MAX, 40][index % 2]);
        // Far below the scores, among them and far above.
        let sinks: Vec<f32> = (0..shape.heads).map(|head| [-30.0, 0.5, 3.0][head % 3]).collect();
        sequences.scoring.sinks = Some(sinks.into());
        let rows = [(0, 0..150), (1, 0..3)];
        let all = sequences.attend(&rows);
        let want = [sequences.reference(0), sequences.reference(1)].concat();
        assert_close(
            &values(&all),
            &want,
            if shape.dtype == DType::F32 || shape.dtype == DType::F16 { 1e-5 } else { 2e-2 },
        );
        assert_close(&values(&sequences.portable(&rows)), &want, 1e-4);
        for level in Level::tested() {
            assert_eq!(bits(&sequences.attend_at(level, &rows)), bits(&all), "{level:?}, heads of {}", shape.head_dim);
            let last = sequences.attend_at(level, &[(0, 149..150)]);
            assert_eq!(bits(&last), bits(&all.narrow(0, 149, 1).unwrap()), "{level:?}, heads of {}", shape.head_dim);
        }
    }
}

#[test]
fn sinks_that_are_not_one_a_head_are_refused() {
    let mut sequences = Sequences::new(&mut rng(9), &SHAPES[0], &[4], usize::MAX);
    sequences.scoring.sinks = Some([0.0; 3].into());
    let (q, meta) = sequences.step(&[(0, 0..4)]);
    let error = paged_attention(&q, &sequences.cache, &meta, &sequences.scoring).unwrap_err();
    assert!(error.message.contains("3 sinks for 4 heads"), "{error}");
}
