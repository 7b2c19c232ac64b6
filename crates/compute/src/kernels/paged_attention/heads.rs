//! Some neighbouring KV heads with the same queries: in which order their keys and values are taken where they lie.
//!
//! A block has its heads one after another, so all heads are taken over a tile of keys before the next one: memory is read
//! in long pieces, which processors fetch ahead by themselves.

use super::{
    KEYS,
    head_cache::HeadCache,
    task::{KeyTile, Task},
};
use crate::kernels::store_kv::element::CacheElement;

/// Neighbouring KV heads with the same queries.
pub(super) struct Heads<'a, E> {
    /// Of the first of them.
    pub(super) task: Task<'a>,
    /// Of the first of them.
    pub(super) cache: HeadCache<'a, E>,
    pub(super) count: usize,
}

/// What will be read next: the tile that begins there.
pub(super) type Coming<'a, E> = Option<(HeadCache<'a, E>, usize)>;

/// A task's work on one tile, with buffers of its own kind.
pub(super) struct OneTile<'a, E, T> {
    pub(super) task: &'a Task<'a>,
    pub(super) cache: &'a HeadCache<'a, E>,
    pub(super) tile: &'a KeyTile,
    pub(super) coming: Coming<'a, E>,
    pub(super) scratch: &'a mut T,
}

impl<'a, E: CacheElement> Heads<'a, E> {
    /// Every head's task and cache.
    pub(super) fn each(&self) -> impl Iterator<Item = (Task<'a>, HeadCache<'a, E>)> {
        (0..self.count).map(|head| self.get(head))
    }

    /// Begins every head's task, takes all of them through their tiles, and finishes each; `scratches` grow to one a head.
    pub(super) fn run<T: Default>(
        &self,
        scratches: &mut Vec<T>,
        begin: impl Fn(&Task<'_>, &mut T),
        take: impl Fn(OneTile<'_, E, T>),
        finish: impl Fn(&Task<'_>, &T),
    ) {
        scratches.resize_with(scratches.len().max(self.count), T::default);
        for ((task, _), scratch) in self.each().zip(&mut *scratches) {
            begin(&task, scratch);
        }
        for tile in self.task.key_tiles() {
            for (head, scratch) in scratches.iter_mut().enumerate().take(self.count) {
                let (task, cache) = self.get(head);
                take(OneTile { task: &task, cache: &cache, tile: &tile, coming: self.after(head, &tile), scratch });
            }
        }
        for ((task, _), scratch) in self.each().zip(&*scratches) {
            finish(&task, scratch);
        }
    }

    fn get(&self, head: usize) -> (Task<'a>, HeadCache<'a, E>) {
        let kv_head = self.task.kv_head + head;
        (self.task.of_head(kv_head), self.cache.of_head(kv_head))
    }

    /// What comes after a head's tile: that of the next head, or the next tile of the first.
    fn after(&self, head: usize, tile: &KeyTile) -> Coming<'a, E> {
        let (next, start) = if head + 1 < self.count { (head + 1, tile.start) } else { (0, tile.start + KEYS) };
        (start < tile.end).then(|| (self.get(next).1, start))
    }
}
