//! Paged attention on the CPU: what the tasks are, and who takes which.
//!
//! A task is one KV head of one row and some of its queries, with all query heads that share the KV head. It goes through
//! the row's keys in tiles of 64. Four ways lead to the same bits:
//!
//! - [`matrix`]: many query vectors, where the machine has tiles and the cache fits them;
//! - [`pairs`]: more than few over bfloat16 where they lie, where the machine multiplies pairs of it;
//! - [`widened`]: any number, over keys and values that are widened first;
//! - [`in_place`]: few, over keys and values where they lie.

use std::cell::RefCell;

use candle_core::Storage;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::matrix;
#[cfg(target_arch = "x86_64")]
use super::pairs;
use super::{PagedAttention, head_cache::HeadCache, heads::Heads, in_place, task::Task, widened};
use crate::kernels::{
    cpu_tensor::{Rows, SharedMatrix, written},
    pool::{current_num_threads, for_each_task},
    simd::Level,
    store_kv::{cache_storage, element::CacheElement, with_elements},
};

/// Query vectors (queries times query heads) a task, at most, where a KV head has fewer query heads.
const VECTORS_A_TASK: usize = 48;
/// Tasks of one query a thread, where there are so many: another one for whoever is done first.
const TASKS_A_THREAD: usize = 2;

/// All queries, `[n, heads * head_dim]`.
pub(super) fn paged_attention(op: &PagedAttention<'_>, q: Rows<'_>) -> candle_core::Result<Vec<f32>> {
    let (keys, _) = op.cache.keys.storage_and_layout();
    let (values, _) = op.cache.values.storage_and_layout();
    let [keys, values]: [&Storage; 2] = [&keys, &values];
    with_elements!(cache_storage(keys)?, keys => Ok(attend(op, q, keys, values_like(keys, cache_storage(values)?)?)))
}

/// The values, which have the type of the keys.
fn values_like<'a, E: candle_core::WithDType>(
    _: &[E],
    values: &'a candle_core::CpuStorage,
) -> candle_core::Result<&'a [E]> {
    values.as_slice::<E>()
}

fn attend<E: CacheElement>(op: &PagedAttention<'_>, q: Rows<'_>, keys: &[E], values: &[E]) -> Vec<f32> {
    let config = *op.cache.config();
    let group = op.heads / config.kv_heads;
    let vectors_a_task = match op.level {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Level::Amx(_) if E::ROUNDED => matrix::VECTORS_A_TASK,
        _ => VECTORS_A_TASK,
    };
    let queries_a_task = (vectors_a_task / group).max(1);
    // A task of one query takes several heads, which lie beside each other.
    let heads_a_task = op.rows.len() * config.kv_heads / (TASKS_A_THREAD * current_num_threads());
    let heads_a_task = heads_a_task.clamp(1, config.kv_heads);
    let mut tasks = Vec::new();
    for row in op.rows {
        let heads_a_task = if row.queries.len() == 1 { heads_a_task } else { 1 };
        for queries in (0..row.queries.len()).step_by(queries_a_task) {
            let queries = queries..row.queries.len().min(queries + queries_a_task);
            let heads = (0..config.kv_heads).step_by(heads_a_task);
            let heads = heads.map(|head| head..config.kv_heads.min(head + heads_a_task));
            tasks.extend(heads.map(|kv_heads| (row, queries.clone(), kv_heads)));
        }
    }
    let write = |out: &SharedMatrix<'_, _>| {
        for_each_task(tasks.len(), true, |index| {
            let (row, queries, kv_heads) = tasks[index].clone();
            let kv_head = kv_heads.start;
            let task = Task { config, kv_head, row, queries, group, q, scoring: op.scoring, out };
            let cache = HeadCache { keys, values, config, kv_head, row };
            run(op.level, &Heads { task, cache, count: kv_heads.len() });
        });
    };
    // SAFETY: the rows have all queries, and each task writes all of its own.
    unsafe { written(q.count * q.width, write) }
}

/// Computes a task for each of some KV heads.
fn run<E: CacheElement>(level: Level, heads: &Heads<'_, E>) {
    thread_local! {
        static VECTORS: RefCell<Vec<widened::Scratch>> = RefCell::default();
    }
    if in_place::suits(&heads.task) {
        return VECTORS.with_borrow_mut(|scratches| in_place::run(level, heads, scratches));
    }
    #[cfg(target_arch = "x86_64")]
    if let Level::Avx512Bf16(bf16) = level
        && E::ROUNDED
        && pairs::suits(&heads.task.config)
    {
        thread_local! {
            static PAIRS: RefCell<Vec<pairs::Scratch>> = RefCell::default();
        }
        return PAIRS.with_borrow_mut(|scratches| pairs::run(bf16, heads, scratches));
    }
    for (task, cache) in heads.each() {
        match level {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Level::Amx(amx) if E::ROUNDED => {
                thread_local! {
                    static TILES: RefCell<matrix::Scratch> = RefCell::default();
                }
                TILES.with_borrow_mut(|scratch| matrix::run(amx, &task, &cache, scratch));
            }
            _ => VECTORS.with_borrow_mut(|scratches| {
                scratches.resize_with(scratches.len().max(1), widened::Scratch::default);
                widened::run(level, &task, &cache, &mut scratches[0]);
            }),
        }
    }
}
