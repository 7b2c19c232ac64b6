//! Steps of decoding, filled up to a few sizes, so that a card has each of them recorded and runs it with one launch.
//!
//! A step of this kind is one token a sequence, and all of them are sampled. Rows that fill it up belong to nobody: they write into
//! blocks of their own at the end of the cache, and nobody asks what comes of them. What layers are told of a step (positions,
//! slots, block tables) is written where the recorded launches read it; ids come and logits stand in tensors that stay.

use candle_core::{DType, Tensor};

use crate::{
    arch::Model,
    engine::executor::StepPlan,
    error::{Error, Result},
    ids::{BlockId, Slot, TokenId},
    kernels::{
        graph::{Recorder, Recording, copy},
        paged_attention::AttentionMetadata,
    },
    layers::context::{KvCache, KvGroupStep, StepContext},
};

/// Sizes from here on are multiples of it; smaller ones are powers of two. As far from each other as filling up costs little
/// beside reading the weights.
const GAP: usize = 32;

/// The blocks at the end of a cache that rows which fill up a step write into, a slot each.
pub(super) fn blocks_of_nobody(block_size: usize) -> usize {
    (GAP - 1).div_ceil(block_size.max(1))
}

/// The sizes that are recorded for steps of up to so many rows.
fn sizes(most_rows: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1), |rows| Some(rows * 2)).take_while(|&rows| rows < GAP);
    let sizes = powers.chain((GAP..).step_by(GAP)).take_while(|&rows| rows < most_rows);
    sizes.chain((most_rows > 0).then_some(most_rows)).collect()
}

/// What the layers are told of a step that is filled up.
#[derive(Clone, Default)]
struct Filled {
    token_ids: Vec<TokenId>,
    positions: Vec<u32>,
    groups: Vec<KvGroupStep>,
}

/// A size of steps.
struct Bucket {
    rows: usize,
    /// The step that was recorded: no array of it is shorter than in any step of this size.
    longest: Filled,
    /// None on a device that records nothing: its steps are computed as they come.
    recording: Option<Recording>,
}

/// The sizes that there are, smallest first.
pub(super) struct Decoding {
    buckets: Vec<Bucket>,
    /// The first block of those that belong to nobody.
    nobodys: BlockId,
    /// u32 `[rows]`, of the largest size.
    ids: Tensor,
    /// Float32 `[rows, vocab_size]`.
    logits: Tensor,
    /// Reused from step to step.
    filled: Filled,
}

impl Decoding {
    /// Records steps of up to `most_rows` sequences of up to `max_model_len` tokens, before anybody's keys are in the cache, whose
    /// last blocks belong to nobody.
    ///
    /// # Errors
    /// `Internal` where a step waits for the device, or there is no room.
    pub(super) fn new(model: &dyn Model, kv: &KvCache, most_rows: usize, max_model_len: usize) -> Result<Self> {
        let device = model.adaptable().1;
        let nobodys = kv.shape().num_blocks - blocks_of_nobody(kv.shape().block_size);
        let mut decoding = Self {
            buckets: Vec::new(),
            nobodys: BlockId(nobodys as u32),
            ids: Tensor::zeros(most_rows, DType::U32, device)?,
            logits: Tensor::zeros((most_rows, model.config().vocab_size), DType::F32, device)?,
            filled: Filled::default(),
        };
        let recorder = Recorder::of(device)?;
        // The largest first: what it takes is enough for the others.
        for rows in sizes(most_rows).into_iter().rev() {
            let longest = Filled::longest(rows, kv, max_model_len);
            let [ids, logits] = decoding.places(rows)?;
            let mut step = || longest.compute(model, kv, &ids, &logits);
            longest.can_be_told_apart()?;
            let recording = recorder.as_ref().map(|recorder| recorder.record(&mut step));
            decoding.buckets.insert(0, Bucket { rows, recording: recording.transpose()?, longest });
        }
        Ok(decoding)
    }

    /// How many sizes there are.
    pub(super) fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether there is a size for so many rows.
    pub(super) fn has(&self, rows: usize) -> bool {
        self.buckets.last().is_some_and(|largest| rows <= largest.rows)
    }

    /// The logits `[rows, vocab_size]` of a step of which this holds, whose ids stand there where the host does not know them. They are
    /// good until the next step.
    ///
    /// # Errors
    /// `Internal` where an operation fails.
    pub(super) fn compute(
        &mut self,
        model: &dyn Model,
        kv: &KvCache,
        plan: &StepPlan,
        groups: &[KvGroupStep],
        placed_ids: Option<&Tensor>,
    ) -> Result<Tensor> {
        let count = plan.rows.len();
        let at = self.buckets.partition_point(|bucket| bucket.rows < count);
        let rows = self.buckets.get(at).map(|bucket| bucket.rows);
        let rows = rows.ok_or_else(|| Error::internal(format!("no size is as large as {count} rows")))?;
        let [ids, logits] = self.places(rows)?;
        match placed_ids {
            Some(placed) => copy(placed, &ids)?,
            None => {
                let known: &[u32] = bytemuck::cast_slice(&plan.token_ids);
                copy(&Tensor::from_slice(known, count, ids.device())?, &ids)?;
            }
        }
        self.filled.fill(rows, plan, groups, self.nobodys);
        let bucket = &mut self.buckets[at];
        // Where it is recorded, nobody but this looks at what the operations are told.
        if bucket.longest.arrays().zip(self.filled.arrays()).any(|(was, now)| now.len() > was.len()) {
            return Err(Error::internal(format!("a step of {count} rows is longer than the longest of {rows}")));
        }
        match &mut bucket.recording {
            Some(recording) => {
                for (was, now) in bucket.longest.arrays().zip(self.filled.arrays()) {
                    recording.write(was, now)?;
                }
                recording.replay()?;
            }
            None => self.filled.compute(model, kv, &ids, &logits)?,
        }
        Ok(logits.narrow(0, 0, count)?)
    }

    /// Where the ids and the logits of so many rows stand.
    fn places(&self, rows: usize) -> Result<[Tensor; 2]> {
        Ok([self.ids.narrow(0, 0, rows)?, self.logits.narrow(0, 0, rows)?])
    }
}

impl Filled {
    /// The step of so many rows in which every array is longest. Where it is recorded, only the lengths count.
    fn longest(rows: usize, kv: &KvCache, max_model_len: usize) -> Self {
        let (shape, last) = (kv.shape(), max_model_len.saturating_sub(1));
        let blocks = max_model_len.div_ceil(shape.block_size);
        let group = |group: usize| {
            // Descending, as no bounds are, and from another block in each group.
            let table = |k: usize| BlockId((shape.num_blocks - 1 - (group + k) % shape.num_blocks) as u32);
            KvGroupStep {
                slot_mapping: vec![Slot((shape.num_blocks * shape.block_size - 1 - group) as u32); rows],
                attention: AttentionMetadata {
                    block_size: shape.block_size,
                    cu_seqlens: (0..=rows as u32).collect(),
                    context_lens: vec![last as u32; rows],
                    block_tables: (0..rows * blocks).map(table).collect(),
                    cu_blocks: (0..=rows).map(|row| (row * blocks) as u32).collect(),
                },
            }
        };
        Self {
            token_ids: vec![TokenId(0); rows],
            positions: vec![last as u32; rows],
            groups: (0..kv.groups().count()).map(group).collect(),
        }
    }

    /// The plan's rows, and rows of nobody behind them.
    fn fill(&mut self, rows: usize, plan: &StepPlan, groups: &[KvGroupStep], nobodys: BlockId) {
        let missing = rows - plan.rows.len();
        self.token_ids.resize(rows, TokenId(0));
        self.positions.clone_from(&plan.positions);
        self.positions.resize(rows, 0);
        self.groups.resize_with(groups.len(), KvGroupStep::default);
        for (filled, group) in self.groups.iter_mut().zip(groups) {
            let (attention, of_plan) = (&mut filled.attention, &group.attention);
            let block_size = of_plan.block_size as u32;
            attention.block_size = of_plan.block_size;
            filled.slot_mapping.clone_from(&group.slot_mapping);
            filled.slot_mapping.extend((nobodys.0 * block_size..).take(missing).map(Slot));
            attention.cu_seqlens.clear();
            attention.cu_seqlens.extend(0..=rows as u32);
            attention.context_lens.clone_from(&of_plan.context_lens);
            attention.context_lens.resize(rows, 0);
            attention.block_tables.clone_from(&of_plan.block_tables);
            attention.cu_blocks.clone_from(&of_plan.cu_blocks);
            for row in 0..missing as u32 {
                attention.block_tables.push(BlockId(nobodys.0 + row / block_size));
                attention.cu_blocks.push(attention.block_tables.len() as u32);
            }
        }
    }

    /// What differs between two steps of a size, in an order of their own.
    fn arrays(&self) -> impl Iterator<Item = &[u32]> {
        // As many tokens stand before a row's one token as its position says.
        std::iter::once(&self.positions[..]).chain(self.groups.iter().flat_map(of_group))
    }

    /// # Errors
    /// `Internal` where two arrays that may differ are alike, so that nobody could say which of them the device was sent.
    fn can_be_told_apart(&self) -> Result<()> {
        let arrays: Vec<_> = self.arrays().collect();
        let bounds = self.groups.first().map(|group| &group.attention.cu_blocks[..]);
        let alike = |(at, array): (usize, &&[u32])| arrays[..at].contains(array) && Some(*array) != bounds;
        if arrays.iter().enumerate().any(alike) {
            return Err(Error::internal("a cache of so few blocks is not recorded"));
        }
        Ok(())
    }

    /// Queues what computes the logits of all rows, from the ids that stand there.
    fn compute(&self, model: &dyn Model, kv: &KvCache, ids: &Tensor, logits: &Tensor) -> Result<()> {
        let step = StepContext {
            placed_ids: Some(ids),
            positions: &self.positions,
            groups: &self.groups,
            kv,
            states: None,
            adapters: None,
            observer: None,
        };
        let hidden = model.hidden(&self.token_ids, &step)?;
        let rows: Vec<u32> = (0..self.token_ids.len() as u32).collect();
        copy(&model.logits(&hidden, &rows, &step)?, logits)
    }
}

/// What differs between two steps in what the layers of a group are told: slots, block tables and their bounds.
fn of_group(KvGroupStep { slot_mapping, attention }: &KvGroupStep) -> [&[u32]; 3] {
    [bytemuck::cast_slice(slot_mapping), bytemuck::cast_slice(&attention.block_tables), &attention.cu_blocks]
}
