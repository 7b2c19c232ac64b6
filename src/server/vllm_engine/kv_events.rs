//! What the prefix cache holds, as routers follow it: the engine's log as messages of `smg.grpc.common`.
//!
//! A subscriber names the last batch that it has applied and goes on behind it. Where the log no longer reaches back so
//! far, or the number comes from an earlier process, it gets the cache as it stands: numbered chunks that end where the
//! next batch begins, the first of which clears what the subscriber knew. A reader that falls behind while it is
//! subscribed is told in the same way.

use std::collections::VecDeque;

use futures::{Stream, stream};

use crate::{
    engine::{BlockEvent, KvBatch, KvRead, KvSubscription},
    proto::smg::grpc::common::{
        KvBlock, KvBlocksRemoved, KvBlocksStored, KvCacheCleared, KvCacheEvent, KvEventBatch, KvSnapshotChunk,
        kv_cache_event::Data,
    },
};

/// Blocks of one chunk: a message of a few megabytes where blocks are largest.
const CHUNK_BLOCKS: usize = 1024;

/// The messages of one subscription; it has no end of its own.
pub(super) fn messages(subscription: KvSubscription) -> impl Stream<Item = KvEventBatch> + Send {
    stream::unfold((subscription, VecDeque::new()), |(mut subscription, mut ready)| async move {
        loop {
            if let Some(message) = ready.pop_front() {
                return Some((message, (subscription, ready)));
            }
            match subscription.read().await {
                KvRead::Batch(batch) => ready.push_back(message(&batch)),
                KvRead::Snapshot { through, blocks } => ready.extend(chunks(through, &blocks)),
            }
        }
    })
}

fn message(batch: &KvBatch) -> KvEventBatch {
    KvEventBatch {
        sequence_number: batch.sequence,
        timestamp: batch.at.as_secs_f64(),
        events: events(&batch.events),
        dp_rank: Some(0),
        snapshot: None,
    }
}

fn chunks(through: u64, blocks: &[BlockEvent]) -> Vec<KvEventBatch> {
    let count = blocks.len().div_ceil(CHUNK_BLOCKS).max(1);
    let chunk = |index: usize| {
        let blocks_here = blocks.iter().skip(index * CHUNK_BLOCKS).take(CHUNK_BLOCKS);
        let cleared = (index == 0).then_some(&BlockEvent::Cleared);
        KvEventBatch {
            sequence_number: through.wrapping_sub((count - 1 - index) as u64),
            timestamp: 0.0,
            events: events(cleared.into_iter().chain(blocks_here)),
            dp_rank: Some(0),
            snapshot: Some(KvSnapshotChunk {
                index: index as u32,
                count: count as u32,
                blocks: blocks.len() as u64,
                unknown_before: 0,
            }),
        }
    };
    (0..count).map(chunk).collect()
}

/// The wire has 64 bits for a hash of 128; a router takes it for a name.
fn name(hash: u128) -> i64 {
    hash as i64
}

/// Events in order, runs of one kind put together: blocks that follow each other, and blocks that go.
fn events<'e>(events: impl IntoIterator<Item = &'e BlockEvent>) -> Vec<KvCacheEvent> {
    let mut out: Vec<Data> = Vec::new();
    for event in events {
        match (out.last_mut(), event) {
            (Some(Data::Stored(run)), BlockEvent::Stored { hash, parent: Some(parent), tokens })
                if run.blocks.last().is_some_and(|last| last.block_hash == name(*parent)) =>
            {
                run.blocks.push(block(*hash, tokens));
            }
            (Some(Data::Removed(run)), BlockEvent::Removed { hash }) => run.block_hashes.push(name(*hash)),
            (_, BlockEvent::Stored { hash, parent, tokens }) => out.push(Data::Stored(KvBlocksStored {
                blocks: vec![block(*hash, tokens)],
                parent_block_hash: parent.map(name),
            })),
            (_, BlockEvent::Removed { hash }) => {
                out.push(Data::Removed(KvBlocksRemoved { block_hashes: vec![name(*hash)] }));
            }
            (_, BlockEvent::Cleared) => out.push(Data::Cleared(KvCacheCleared {})),
        }
    }
    (0..).zip(out).map(|(event_id, data)| KvCacheEvent { event_id, data: Some(data) }).collect()
}

fn block(hash: u128, tokens: &[crate::ids::TokenId]) -> KvBlock {
    KvBlock {
        block_hash: name(hash),
        token_ids: tokens.iter().map(|token| token.0).collect(),
        block_size: super::signed(tokens.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TokenId;

    fn stored(hash: u128, parent: Option<u128>) -> BlockEvent {
        BlockEvent::Stored { hash, parent, tokens: [TokenId(1), TokenId(2)].into() }
    }

    #[test]
    fn blocks_that_follow_each_other_are_one_event_and_others_are_not() {
        let all = [
            stored(1, None),
            stored(2, Some(1)),
            stored(9, None),
            BlockEvent::Removed { hash: 2 },
            BlockEvent::Removed { hash: 1 },
            stored(10, Some(9)),
        ];
        let told: Vec<String> = events(&all)
            .into_iter()
            .map(|event| match event.data.unwrap() {
                Data::Stored(run) => {
                    let hashes: Vec<_> = run.blocks.iter().map(|block| block.block_hash).collect();
                    format!("{:?}{hashes:?}", run.parent_block_hash)
                }
                Data::Removed(run) => format!("-{:?}", run.block_hashes),
                Data::Cleared(_) => "cleared".to_owned(),
            })
            .collect();
        assert_eq!(told, ["None[1, 2]", "None[9]", "-[2, 1]", "Some(9)[10]"]);
    }

    #[test]
    fn a_snapshot_ends_with_the_number_that_it_stands_for_and_begins_with_a_clear() {
        let blocks: Vec<_> = (0..CHUNK_BLOCKS as u128 + 1).map(|n| stored(n, n.checked_sub(1))).collect();
        for (blocks, expected) in [(&blocks[..], vec![49, 50]), (&blocks[..5], vec![50]), (&[], vec![50])] {
            let chunks = chunks(50, blocks);
            let numbers: Vec<_> = chunks.iter().map(|chunk| chunk.sequence_number).collect();
            assert_eq!(numbers, expected);
            assert!(matches!(chunks[0].events[0].data, Some(Data::Cleared(_))));
            let told = chunks.iter().flat_map(|chunk| &chunk.events).map(|event| match &event.data {
                Some(Data::Stored(run)) => run.blocks.len(),
                _ => 0,
            });
            assert_eq!(told.sum::<usize>(), blocks.len());
        }
    }
}
