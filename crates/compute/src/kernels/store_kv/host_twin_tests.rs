//! The kernels of store_kv.cu, as host C++, against what the CPU stores.

use candle_core::{DType, Device, Tensor};

use super::{
    KvCacheConfig, KvLayer,
    launches::{RopeStoreLaunch, StoreKvLaunch, copy_blocks},
    store_kv,
};
use crate::{
    ids::{BlockId, Slot},
    kernels::{
        cuda::host_twin::{Order, Output, Twin, address},
        rope::{HeadNorm, RopeStyle, RopeTable, rope},
        test_data::{floats, rng, tensor, values},
    },
};

static TWIN: Twin = Twin::of("store_kv");
const DTYPES: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3];

fn config((num_blocks, block_size, kv_heads, head_dim): (usize, usize, usize, usize), dtype: DType) -> KvCacheConfig {
    KvCacheConfig { num_blocks, block_size, kv_heads, head_dim, dtype }
}

fn layer(config: &KvCacheConfig) -> KvLayer {
    let &KvCacheConfig { num_blocks, block_size, kv_heads, head_dim, dtype } = config;
    KvLayer::new(num_blocks, block_size, kv_heads, head_dim, dtype, &Device::Cpu).unwrap()
}

/// A cache's bytes.
fn bytes(x: &Tensor) -> Vec<u8> {
    let x = x.flatten_all().unwrap();
    match x.dtype() {
        DType::F32 => bytemuck::cast_slice(&x.to_vec1::<f32>().unwrap()).to_vec(),
        DType::F16 => bytemuck::cast_slice(&x.to_vec1::<half::f16>().unwrap()).to_vec(),
        DType::BF16 => bytemuck::cast_slice(&x.to_vec1::<half::bf16>().unwrap()).to_vec(),
        _ => bytemuck::cast_slice(&x.to_vec1::<float8::F8E4M3>().unwrap()).to_vec(),
    }
}

/// Room for a cache's keys or values, of zeros. Words, because a card's addresses are aligned.
fn room(config: &KvCacheConfig) -> Output<u64> {
    Output::of(&vec![0; (config.num_blocks * config.block_bytes() / 2).div_ceil(8)], u64::MAX)
}

fn written(room: &Output<u64>, config: &KvCacheConfig) -> Vec<u8> {
    bytemuck::cast_slice(room.written())[..config.num_blocks * config.block_bytes() / 2].to_vec()
}

#[test]
fn it_stores_what_the_cpu_stores_in_every_type() {
    if !TWIN.exists() {
        return;
    }
    let mut rng = rng(1);
    for dtype in DTYPES {
        for (sizes, n) in [((4, 16, 2, 32), 9), ((9, 1, 1, 8), 5), ((5, 7, 3, 20), 30), ((8, 16, 2, 128), 50)] {
            let config = config(sizes, dtype);
            let mut slots: Vec<Slot> = (0..n).map(|k| Slot((k * 7919 % config.slots()) as u32)).collect();
            let width = config.kv_heads * config.head_dim;
            let mut keys = floats(&mut rng, n * width);
            keys.iter_mut().for_each(|x| *x *= 600.0);
            keys[3..8].copy_from_slice(&[f32::INFINITY, -1e-3, f32::NAN, 1e-9, -0.0]);
            let values = floats(&mut rng, n * width);
            let want = layer(&config);
            let shape = [n, config.kv_heads, config.head_dim];
            store_kv(&tensor(keys.clone(), &shape), &tensor(values.clone(), &shape), &want, &slots).unwrap();
            // A token that only fills up the batch.
            slots.push(Slot(u32::MAX));
            keys.extend(vec![9.0; width]);
            for order in Order::BOTH {
                let (mut key_cache, mut value_cache) = (room(&config), room(&config));
                let launch = StoreKvLaunch {
                    keys: (address(&keys), width),
                    values: (address(&values), width),
                    slots: address(&slots),
                    key_cache: key_cache.address(),
                    value_cache: value_cache.address(),
                    tokens: n + 1,
                    config,
                };
                // SAFETY: the addresses are of buffers of these sizes; of the last token's values nothing is read.
                unsafe { TWIN.run(&launch.call(), order) };
                assert!(written(&key_cache, &config) == bytes(&want.keys), "{dtype:?}, {order:?}");
                assert!(written(&value_cache, &config) == bytes(&want.values), "{dtype:?}, {order:?}");
            }
        }
    }
}

#[test]
fn norms_rotary_embedding_and_the_write_in_one_pass_are_the_three_after_another() {
    if !TWIN.exists() {
        return;
    }
    let mut rng = rng(2);
    for (dtype, (heads, kv_heads, head_dim, pairs), style) in [
        (DType::BF16, (4, 2, 64, 32), RopeStyle::Halves),
        (DType::F32, (3, 3, 20, 7), RopeStyle::Interleaved),
        (DType::F8E4M3, (8, 1, 128, 64), RopeStyle::Halves),
        (DType::F16, (5, 5, 33, 8), RopeStyle::Halves),
    ] {
        let config = config((4, 16, kv_heads, head_dim), dtype);
        let slots: Vec<Slot> = (0..20).map(|k| Slot(k * 13 % 64)).collect();
        let positions: Vec<u32> = (0..20).map(|k| k * 7 % 50).collect();
        let inv_freq: Vec<f32> = (0..pairs).map(|k| 0.7f32.powi(k)).collect();
        let table = RopeTable::new(&inv_freq, 50, 1.0, &Device::Cpu).unwrap();
        let angles = values(&table.table);
        let width = (heads + 2 * kv_heads) * head_dim;
        let qkv = tensor(floats(&mut rng, 20 * width), &[20, heads + 2 * kv_heads, head_dim]);
        let [query_norm, key_norm] = [(); 2].map(|()| tensor(floats(&mut rng, head_dim), &[head_dim]));
        for normed in [false, true] {
            let part = |first, count| qkv.narrow(1, first, count).unwrap();
            let turned = |x: &Tensor, weight: &Tensor| {
                let norm = normed.then_some(HeadNorm { weight, eps: 1e-6 });
                rope(x, norm, &positions, &table, style).unwrap()
            };
            let (queries, keys) = (turned(&part(0, heads), &query_norm), turned(&part(heads, kv_heads), &key_norm));
            let want = layer(&config);
            store_kv(&keys, &part(heads + kv_heads, kv_heads), &want, &slots).unwrap();
            let (rows, query_weight, key_weight) = (values(&qkv), values(&query_norm), values(&key_norm));
            let weight = |weight: &[f32]| if normed { address(weight) } else { 0 };
            for order in Order::BOTH {
                let (mut key_cache, mut value_cache) = (room(&config), room(&config));
                let mut out = Output::unwritten(20 * heads * head_dim, 7.0f32);
                let launch = RopeStoreLaunch {
                    qkv: (address(&rows), width),
                    positions: address(&positions),
                    slots: address(&slots),
                    table: address(&angles),
                    query_norm: weight(&query_weight),
                    key_norm: weight(&key_weight),
                    eps: [1e-6; 2],
                    queries: out.address(),
                    key_cache: key_cache.address(),
                    value_cache: value_cache.address(),
                    tokens: 20,
                    heads,
                    config,
                    pairs: pairs as usize,
                    style,
                };
                // SAFETY: the addresses are of buffers of these sizes.
                unsafe { TWIN.run(&launch.call(), order) };
                // A norm's sum has an order of its own, so numbers may fall to the other side of a rounding.
                let near = |got: &[f32], want: &Tensor, tolerance: f32| {
                    let want = values(&want.to_dtype(DType::F32).unwrap());
                    got.len() == want.len()
                        && got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= tolerance * b.abs().max(0.02))
                };
                assert!(near(out.written(), &queries, 1e-5), "{dtype:?}, normed: {normed}");
                let key_bytes = written(&key_cache, &config);
                let stored = Tensor::from_raw_buffer(&key_bytes, dtype, want.keys.dims(), &Device::Cpu).unwrap();
                let unit = match dtype {
                    DType::F32 => 1e-5,
                    DType::F16 => 2e-3,
                    DType::BF16 => 1e-2,
                    _ => 0.13,
                };
                assert!(near(&values(&stored.to_dtype(DType::F32).unwrap()), &want.keys, unit), "{dtype:?}");
                assert!(written(&value_cache, &config) == bytes(&want.values), "{dtype:?}, {order:?}");
            }
        }
    }
}

#[test]
fn blocks_are_copied_in_order() {
    if !TWIN.exists() {
        return;
    }
    for (sizes, dtype) in [((4, 5, 2, 8), DType::BF16), ((4, 3, 1, 7), DType::F8E4M3), ((4, 16, 2, 32), DType::F32)] {
        let config = config(sizes, dtype);
        let want = layer(&config);
        let keys = tensor(
            floats(&mut rng(3), config.slots() * config.kv_heads * config.head_dim),
            &[config.slots(), config.kv_heads, config.head_dim],
        );
        let slots: Vec<Slot> = (0..config.slots() as u32).map(Slot).collect();
        store_kv(&keys, &keys, &want, &slots).unwrap();
        let before = bytes(&want.keys);
        let copies = [(BlockId(1), BlockId(3)), (BlockId(3), BlockId(0)), (BlockId(0), BlockId(0))];
        super::copy_blocks(&want, &copies).unwrap();
        let pairs: Vec<u32> = copies.iter().flat_map(|&(from, to)| [from.0, to.0]).collect();
        for order in Order::BOTH {
            let mut padded = before.clone();
            padded.resize(before.len().next_multiple_of(8), 0);
            let words: Vec<u64> = padded.as_chunks().0.iter().copied().map(u64::from_ne_bytes).collect();
            let mut cache = Output::of(&words, u64::MAX);
            // SAFETY: the cache has the configuration's size, and the blocks are inside it.
            unsafe { TWIN.run(&copy_blocks(cache.address(), address(&pairs), copies.len(), &config), order) };
            assert!(written(&cache, &config) == bytes(&want.keys), "{dtype:?}, {order:?}");
        }
    }
}
