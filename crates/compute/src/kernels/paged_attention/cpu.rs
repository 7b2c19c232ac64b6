//! Paged attention on the CPU: what the tasks are, and who takes which.
//!
//! A thread takes a unit of queries ([`cascade`](super::cascade)) and some KV heads. A task is one KV head and a stretch of
//! keys that some of those queries go through, with all query heads that share the KV head, in tiles of 64. Four ways lead
//! to the same bits:
//!
//! - [`matrix`]: many query vectors, where the machine has tiles and the cache fits them;
//! - [`pairs`]: more than few over bfloat16, where the machine multiplies pairs of it;
//! - [`widened`]: any number, over keys and values that are widened first;
//! - [`in_place`]: few, over keys and values where they lie.

use std::cell::RefCell;

use candle_core::Storage;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::matrix;
#[cfg(target_arch = "x86_64")]
use super::pairs;
use super::{
    PagedAttention,
    carried::Carried,
    cascade::{Cascade, Most},
    head_cache::HeadCache,
    heads::Heads,
    in_place,
    task::Task,
    widened,
};
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

thread_local! {
    static CASCADE: RefCell<Cascade> = RefCell::default();
    static CARRIED: RefCell<Carried> = RefCell::default();
}

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
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Bf16(_) if E::ROUNDED => pairs::VECTORS_A_TASK,
        _ => VECTORS_A_TASK,
    };
    let shared_by = TASKS_A_THREAD * current_num_threads();
    let of_a_row = (vectors_a_task / group).max(1);
    // Fewer where threads would have nothing to do.
    let of_a_prefix = (op.rows.len() * config.kv_heads / shared_by).clamp(1, of_a_row);
    let mut cascade = CASCADE.take();
    cascade.plan(op.rows, config.block_size, op.scoring.window, Most { of_a_row, of_a_prefix });
    let Cascade { queries, units, stretches, .. } = &cascade;
    // Single queries are computed for several heads at once, which lie beside each other.
    let heads_a_task = (units.len() * config.kv_heads / shared_by).clamp(1, config.kv_heads);
    let tasks: Vec<_> = units
        .iter()
        .flat_map(|unit| {
            let last = &stretches[unit.stretches.end - 1];
            let heads_a_task = if last.queries.len() == 1 { heads_a_task } else { 1 };
            let heads = (0..config.kv_heads).step_by(heads_a_task);
            heads.map(move |head| (unit, head..config.kv_heads.min(head + heads_a_task)))
        })
        .collect();
    let write = |out: &SharedMatrix<'_, _>| {
        for_each_task(tasks.len(), true, |index| {
            let (unit, ref kv_heads) = tasks[index];
            let queries = &queries[unit.queries.clone()];
            CARRIED.with(|carried| {
                if unit.stretches.len() > 1 {
                    carried.borrow_mut().make_room(queries.len() * op.heads, config.head_dim);
                }
                for stretch in &stretches[unit.stretches.clone()] {
                    let blocks = op.rows[queries[stretch.queries.start].row].blocks;
                    let heads_at_once = if stretch.queries.len() == 1 { kv_heads.len() } else { 1 };
                    for kv_head in kv_heads.clone().step_by(heads_at_once) {
                        let (unit, scoring) = (queries, op.scoring);
                        let task = Task { config, kv_head, unit, stretch, group, q, scoring, carried, out };
                        let cache = HeadCache { keys, values, config, kv_head, blocks };
                        run(op.level, &Heads { task, cache, count: heads_at_once });
                    }
                }
            });
        });
    };
    // SAFETY: the rows have all queries, and each query's last stretch writes all of its own.
    let out = unsafe { written(q.count * q.width, write) };
    CASCADE.set(cascade);
    out
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
