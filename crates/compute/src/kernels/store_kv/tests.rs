//! The cache's layout and bounds.

use super::*;
use crate::kernels::test_data::{on_threads, random, rng, values};

const DTYPES: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3];

/// `[token][head][dim]` of what stands in these slots.
fn read(cache: &KvLayer, slots: &[Slot]) -> (Vec<f32>, Vec<f32>) {
    let KvCacheConfig { block_size, kv_heads, head_dim, .. } = cache.config;
    let [keys, values] = [&cache.keys, &cache.values].map(|x| values(&x.to_dtype(DType::F32).unwrap()));
    let mut read = (Vec::new(), Vec::new());
    for slot in slots {
        let (block, offset) = (slot.index() / block_size, slot.index() % block_size);
        for head in 0..kv_heads {
            let part = (block * kv_heads + head) * block_size * head_dim;
            read.0.extend((0..head_dim).map(|d| keys[part + d * block_size + offset]));
            read.1.extend((0..head_dim).map(|d| values[part + offset * head_dim + d]));
        }
    }
    read
}

fn rounded(x: &Tensor, dtype: DType) -> Vec<f32> {
    values(&x.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap())
}

#[test]
fn what_was_stored_stands_in_its_slots_and_nowhere_else() {
    let mut rng = rng(1);
    for dtype in DTYPES {
        for (blocks, block_size, heads, head_dim, n) in
            [(4, 16, 2, 32, 9), (9, 1, 1, 8, 5), (5, 7, 3, 20, 30), (64, 16, 8, 128, 300)]
        {
            let caches =
                [(); 3].map(|()| KvLayer::new(blocks, block_size, heads, head_dim, dtype, &Device::Cpu).unwrap());
            let slots: Vec<Slot> = (0..n).map(|k| Slot((k * 7919 % (blocks * block_size)) as u32)).collect();
            let [keys, values] = [(); 2].map(|()| random(&mut rng, &[n, heads, head_dim]));
            on_threads(2, || store_kv(&keys, &values, &caches[0], &slots).unwrap());
            on_threads(1, || store_kv(&keys, &values, &caches[1], &slots).unwrap());
            portable::store(&keys, &values, &caches[2], &slots).unwrap();
            let rest: Vec<Slot> =
                (0..(blocks * block_size) as u32).map(Slot).filter(|slot| !slots.contains(slot)).collect();
            for cache in &caches {
                assert_eq!(read(cache, &slots), (rounded(&keys, dtype), rounded(&values, dtype)), "{dtype:?}");
                let (keys, values) = read(cache, &rest);
                assert!(keys.iter().chain(&values).all(|&x| x == 0.0));
            }
        }
    }
}

#[test]
fn blocks_are_copied_in_order() {
    for dtype in DTYPES {
        let caches = [(); 2].map(|()| KvLayer::new(4, 5, 2, 8, dtype, &Device::Cpu).unwrap());
        let [keys, values] = [2, 3].map(|seed| random(&mut rng(seed), &[5, 2, 8]));
        let slots = |block: u32| (block * 5..block * 5 + 5).map(Slot).collect::<Vec<_>>();
        for cache in &caches {
            store_kv(&keys, &values, cache, &slots(1)).unwrap();
        }
        let copies = [(BlockId(1), BlockId(3)), (BlockId(3), BlockId(0)), (BlockId(0), BlockId(0))];
        copy_blocks(&caches[0], &copies).unwrap();
        portable::copy_blocks(&caches[1], &copies).unwrap();
        for cache in &caches {
            for block in [0, 1, 3] {
                assert_eq!(read(cache, &slots(block)), (rounded(&keys, dtype), rounded(&values, dtype)));
            }
            assert!(read(cache, &slots(2)).0.iter().all(|&x| x == 0.0));
        }
    }
}

#[test]
fn slots_and_blocks_outside_the_cache_are_refused_and_nothing_is_written() {
    let cache = KvLayer::new(2, 4, 1, 8, DType::F32, &Device::Cpu).unwrap();
    let x = random(&mut rng(4), &[2, 1, 8]);
    assert!(store_kv(&x, &x, &cache, &[Slot(0), Slot(8)]).unwrap_err().message.contains("slot 8"));
    assert!(store_kv(&x, &x, &cache, &[Slot(0)]).is_err());
    assert!(copy_blocks(&cache, &[(BlockId(0), BlockId(1)), (BlockId(2), BlockId(0))]).is_err());
    assert!(read(&cache, &[Slot(0)]).0.iter().all(|&x| x == 0.0));
}

#[test]
fn impossible_caches_are_refused() {
    assert!(KvLayer::new(usize::MAX / 2, 16, 8, 128, DType::BF16, &Device::Cpu).is_err());
    assert!(KvLayer::new(1 << 40, 16, 8, 128, DType::BF16, &Device::Cpu).is_err());
    assert!(KvLayer::new(0, 16, 8, 128, DType::BF16, &Device::Cpu).is_err());
    assert!(KvLayer::new(1, 16, 8, 128, DType::U8, &Device::Cpu).is_err());
}

#[test]
fn a_cache_that_no_memory_can_hold_is_an_error() {
    let error = KvLayer::new(1 << 27, 16, 1 << 8, 1 << 10, DType::BF16, &Device::Cpu).unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted);
}
