//! The kernels of paged_attention.cu, as host C++, against the reference, and that no way of launching them changes a bit.

use std::ops::Range;

use candle_core::{CpuStorage, DType, Storage, Tensor};

use super::{
    launches::{AttentionLaunch, Card, Plan, Share},
    tests::{SHAPES, Sequences, Shape},
};
use crate::kernels::{
    cuda::host_twin::{Order, Output, Twin, address},
    test_data::{assert_close, rng, values},
};

static TWIN: Twin = Twin::of("paged_attention");
const H100: Card = Card { shared_bytes: 227 * 1024, multiprocessors: 132 };
const SMALL: Card = Card { shared_bytes: 99 * 1024, multiprocessors: 1 };

fn storage_address(x: &Tensor) -> u64 {
    let (storage, _) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(x)) => address(x),
        Storage::Cpu(CpuStorage::F16(x)) => address(x),
        Storage::Cpu(CpuStorage::BF16(x)) => address(x),
        Storage::Cpu(CpuStorage::F8E4M3(x)) => address(x),
        _ => panic!("no cache"),
    }
}

/// What the launches make of these positions of these sequences.
fn attend(
    sequences: &Sequences,
    rows: &[(usize, Range<usize>)],
    card: Card,
    order: Order,
    change: impl Fn(&mut Plan),
) -> Vec<f32> {
    let (q, meta) = sequences.step(rows);
    let (n, heads, head_dim) = q.dims3().unwrap();
    let (config, scoring) = (*sequences.cache.config(), &sequences.scoring);
    let rows = meta.rows(n, &config, scoring.window).unwrap();
    let q = values(&q);
    let mut out = Output::unwritten(n * heads * head_dim, 7.0f32);
    let launch = AttentionLaunch {
        q: (address(&q), heads * head_dim),
        keys: storage_address(&sequences.cache.keys),
        values: storage_address(&sequences.cache.values),
        out: out.address(),
        sinks: scoring.sinks.as_deref().map_or(0, address),
        cu_seqlens: address(&meta.cu_seqlens),
        context_lens: address(&meta.context_lens),
        block_tables: address(&meta.block_tables),
        cu_blocks: address(&meta.cu_blocks),
        heads,
        config,
        scoring,
    };
    for mut plan in Plan::of(&rows, heads, scoring.window, &config, card) {
        change(&mut plan);
        let [mut sums, mut stats] = plan.partials(&config).map(|len| Output::unwritten(len, 7.0f32));
        let partials = [sums.address(), stats.address()];
        let (attend, merge) = launch.calls(&plan, address(&plan.tiles.numbers), partials);
        // SAFETY: the addresses are of buffers of the sizes that the plan says.
        unsafe {
            TWIN.run(&attend, order);
            if let Some(merge) = merge {
                TWIN.run(&merge, order);
            }
        }
        sums.written();
        stats.written();
    }
    out.written().to_vec()
}

fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2e-6,
        // Rounded to 11 and to 8 bits are queries and weights.
        DType::F16 => 5e-4,
        _ => 4e-3,
    }
}

#[test]
fn it_is_the_reference_for_ragged_rows_of_every_shape() {
    if !TWIN.exists() {
        return;
    }
    let mut rng = rng(1);
    for (index, shape) in SHAPES.iter().enumerate() {
        let cases = [(usize::MAX, None), (1, None), (7, Some(0.7)), (70, None), (usize::MAX, Some(2.0))];
        let (window, softcap) = cases[index % cases.len()];
        let mut sequences = Sequences::new(&mut rng, shape, &[1, 37, 270, 64], window);
        sequences.scoring.softcap = softcap;
        if index % 2 == 0 {
            // Far below the scores, among them and far above.
            let sinks: Vec<f32> = (0..shape.heads).map(|head| [-30.0, 0.5, 3.0][head % 3]).collect();
            sequences.scoring.sinks = Some(sinks.into());
        }
        // A whole prompt, a chunk, single queries of long and of short sequences.
        let rows = [(0, 0..1), (1, 0..37), (2, 240..263), (3, 63..64), (2, 269..270)];
        let reference: Vec<Vec<f64>> = (0..4).map(|sequence| sequences.reference(sequence)).collect();
        let width = shape.heads * shape.head_dim;
        let want: Vec<f64> = rows
            .iter()
            .flat_map(|(sequence, part)| &reference[*sequence][part.start * width..part.end * width])
            .copied()
            .collect();
        let got = attend(&sequences, &rows, H100, Order::Forward, |_| {});
        assert_close(&got, &want, tolerance(shape.dtype));
        assert_eq!(attend(&sequences, &rows, H100, Order::Reversed, |_| {}), got);
    }
}

const FEW: [Shape; 5] = [
    Shape { heads: 4, kv_heads: 2, head_dim: 64, block_size: 16, dtype: DType::BF16 },
    Shape { heads: 3, kv_heads: 1, head_dim: 72, block_size: 24, dtype: DType::F8E4M3 },
    Shape { heads: 2, kv_heads: 1, head_dim: 200, block_size: 16, dtype: DType::F16 },
    Shape { heads: 20, kv_heads: 1, head_dim: 16, block_size: 16, dtype: DType::BF16 },
    Shape { heads: 2, kv_heads: 1, head_dim: 24, block_size: 5, dtype: DType::F32 },
];

#[test]
fn a_query_has_the_same_bits_in_one_piece_in_chunks_alone_and_in_a_batch_however_it_is_launched() {
    if !TWIN.exists() {
        return;
    }
    let mut rng = rng(2);
    for shape in &FEW {
        for window in [usize::MAX, 300] {
            let sequences = Sequences::new(&mut rng, shape, &[600, 90], window);
            let width = shape.heads * shape.head_dim;
            let whole = attend(&sequences, &[(0, 540..600)], H100, Order::Forward, |_| {});
            let part = |range: Range<usize>| &whole[(range.start - 540) * width..(range.end - 540) * width];
            for (index, range) in [540..541, 541..546, 550..590, 598..600, 599..600].into_iter().enumerate() {
                let rows = [(1, 80..90), (0, range.clone()), (1, 89..90)];
                let card = [H100, SMALL][index % 2];
                // Splits by one block, and by several; one tile of keys ahead, and none.
                for (blocks, stages) in [[(0, 1), (2, 2)], [(3, 1), (1, 2)]][index % 2] {
                    let batch = attend(&sequences, &rows, card, Order::Forward, |plan| {
                        plan.stages = stages;
                        if plan.share == Share::Together {
                            plan.blocks = blocks;
                        }
                    });
                    let mine = &batch[10 * width..][..range.len() * width];
                    assert_eq!(
                        mine,
                        part(range.clone()),
                        "{range:?}, {blocks} blocks, {stages} stages, {:?}",
                        shape.dtype
                    );
                }
            }
        }
    }
}

#[test]
fn blocks_before_the_window_need_not_exist() {
    if !TWIN.exists() {
        return;
    }
    for shape in &FEW {
        let mut sequences = Sequences::new(&mut rng(3), shape, &[400], 40);
        for range in [350..400, 399..400] {
            let want = attend(&sequences, &[(0, range.clone())], H100, Order::Forward, |_| {});
            let gone = (range.start + 1 - 40) / shape.block_size;
            let kept = sequences.forget(0, gone);
            let got = attend(&sequences, &[(0, range.clone())], H100, Order::Forward, |_| {});
            assert_eq!(got, want, "{range:?}");
            sequences.remember(0, kept);
        }
    }
}

#[test]
fn large_scores_stay_finite() {
    if !TWIN.exists() {
        return;
    }
    let mut sequences = Sequences::new(&mut rng(4), &FEW[0], &[130], usize::MAX);
    for scale in [1e4, 1e20, -1e30] {
        sequences.scoring.scale = scale;
        let got = attend(&sequences, &[(0, 100..130)], H100, Order::Forward, |_| {});
        assert!(got.iter().all(|x| x.is_finite()), "{scale}");
    }
}

#[test]
fn every_head_fits_into_the_shared_memory_of_the_smallest_card() {
    for head_dim in [8, 64, 80, 128, 192, 256] {
        for dtype in [DType::F32, DType::BF16] {
            let shape = Shape { heads: 4, kv_heads: 2, head_dim, block_size: 16, dtype };
            let sequences = Sequences::new(&mut rng(5), &shape, &[40], usize::MAX);
            let (_, meta) = sequences.step(&[(0, 0..39), (0, 39..40)]);
            let config = *sequences.cache.config();
            let rows = meta.rows(40, &config, usize::MAX).unwrap();
            let scoring = &sequences.scoring;
            let launch = AttentionLaunch {
                q: (0, 0),
                keys: 0,
                values: 0,
                out: 0,
                sinks: 0,
                cu_seqlens: 0,
                context_lens: 0,
                block_tables: 0,
                cu_blocks: 0,
                heads: 4,
                config,
                scoring,
            };
            for plan in Plan::of(&rows, 4, usize::MAX, &config, SMALL) {
                let shared = launch.calls(&plan, 0, [0, 0]).0.launch.shared_bytes as usize;
                assert!(shared <= SMALL.shared_bytes, "{shared} bytes for {head_dim} dimensions, {:?}", plan.share);
            }
        }
    }
}

#[test]
fn a_long_sequence_alone_is_shared_out_and_many_are_not() {
    let sequences = Sequences::new(&mut rng(6), &FEW[0], &[2000], usize::MAX);
    let config = *sequences.cache.config();
    let blocks = |count: usize| {
        let (_, meta) = sequences.step(&vec![(0, 1999..2000); count]);
        let rows = meta.rows(count, &config, usize::MAX).unwrap();
        Plan::of(&rows, 4, usize::MAX, &config, H100)[0].blocks
    };
    // Eight splits; 132 multiprocessors are busy with 264 pairs of a tile and a head.
    assert_eq!((blocks(1), blocks(100), blocks(300)), (8, 3, 0));
}
