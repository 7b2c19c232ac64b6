//! The third pass: writing the chosen sequences into a step's plan.

use std::{ops::Range, sync::Arc};

use super::{Computed, Event, InFlight, Mix, Scheduler};
use crate::{
    engine::{
        block_manager::BlockManager,
        executor::{AdmittedSequence, PlannedRow, StepPlan},
        faults::{Fault, planted},
        sequence::Sequence,
    },
    ids::{BlockId, Slot, TokenId},
};

impl Scheduler {
    /// Third pass. Where the first by place prefills, the decodes leave it a token.
    pub(super) fn pack(&mut self, plan: &mut StepPlan, events: &mut Vec<Event>) -> InFlight {
        let mut rows = self.spare.pop().unwrap_or_default();
        let mut budget = self.max_num_batched_tokens + usize::from(planted(Fault::BudgetOffByOne));
        let first = self.running.iter().map(|&(_, key)| &self.sequences[key]).find(|sequence| sequence.ready);
        let block_size = self.blocks.block_size();
        let first_prefills = first.is_some_and(|first| !decodes(first, block_size));
        let mut held_back = usize::from(first_prefills && !planted(Fault::DecodesTakeAll));
        let mut mix = Mix::default();
        for is_decode in [true, false] {
            if !is_decode && self.running.iter().any(|&(_, key)| self.sequences[key].ready) {
                budget = budget.min(self.prefill_budget.tokens(mix.decodes));
            }
            for &(_, key) in &self.running {
                let sequence = &mut self.sequences[key];
                if !sequence.ready || decodes(sequence, block_size) != is_decode {
                    continue;
                }
                // One that knows none goes ahead.
                let num_tokens = sequence.num_uncomputed_tokens().max(1);
                let num_scheduled = num_tokens.min(budget - held_back);
                if num_scheduled == 0 {
                    break;
                }
                budget -= num_scheduled;
                match is_decode {
                    true => mix.decodes += 1,
                    false => mix.prefill_tokens += num_scheduled,
                }
                if sequence.cached_tokens.is_none() {
                    start(sequence, &mut self.blocks, plan, events);
                }
                sequence.reader.computed(sequence.num_computed_tokens);
                let waited = sequence.outstanding.is_some();
                let num_tokens = sequence.num_computed_tokens + num_scheduled;
                pack_row(sequence, num_scheduled, self.max_tokens_per_step, block_size, self.step, plan);
                self.num_outstanding += usize::from(sequence.outstanding.is_some() && !waited);
                rows.push(Computed { key, id: sequence.id, num_preemptions: sequence.num_preemptions, num_tokens });
            }
            held_back = 0;
        }
        InFlight { rows, mix, may_be_followed: false }
    }
}

/// Whether a stream waits for a sequence's next row: its newest token is computed, with those that a grammar forced after
/// it, if they are few.
fn decodes(sequence: &Sequence, block_size: usize) -> bool {
    let num_uncomputed = sequence.num_uncomputed_tokens();
    num_uncomputed <= 1 || sequence.num_output_tokens() > 0 && num_uncomputed <= block_size
}

/// Lets the executor and the reader know that a sequence runs for the first time.
fn start(sequence: &mut Sequence, blocks: &mut BlockManager, plan: &mut StepPlan, events: &mut Vec<Event>) {
    blocks.record_query(sequence.tokens.len(), sequence.num_computed_tokens);
    let cached_tokens = sequence.num_computed_tokens as u32;
    sequence.cached_tokens = Some(cached_tokens);
    events.push(Event::Started { id: sequence.id, cached_tokens });
    plan.admitted.push(AdmittedSequence {
        id: sequence.id,
        params: sequence.params.clone(),
        prompt: sequence.prompt.clone(),
        dry_breakers: sequence.dry_breakers.clone(),
        grammar: sequence.grammar.clone(),
        pooling: sequence.pooling,
        adapter: sequence.adapter.as_ref().map(Arc::downgrade),
    });
}

/// Adds a sequence's next tokens to the plan of a step: known ones, or the one that is on its way.
fn pack_row(
    sequence: &mut Sequence,
    num_scheduled_tokens: usize,
    max_tokens_per_step: usize,
    block_size: usize,
    step: u64,
    plan: &mut StepPlan,
) {
    let context_len = sequence.num_computed_tokens;
    let end = context_len + num_scheduled_tokens;
    let is_ahead = context_len == sequence.tokens.len();
    let samples = end == sequence.tokens.len() + usize::from(is_ahead);
    let num_slots = if samples { end + max_tokens_per_step - 1 } else { end };
    let num_blocks = num_slots.div_ceil(block_size);

    let query = plan.token_ids.len()..plan.token_ids.len() + num_scheduled_tokens;
    match is_ahead {
        true => plan.token_ids.push(TokenId::default()),
        false => plan.token_ids.extend_from_slice(&sequence.tokens[context_len..end]),
    }
    plan.positions.extend((context_len..end).map(|position| position as u32));
    for position in context_len..end {
        let stale = planted(Fault::StaleSlot) && position > 0 && position % block_size == 0;
        let (i, offset) = (position / block_size - usize::from(stale), position % block_size);
        let slot = |blocks: &[BlockId]| Slot(blocks[i].0 * block_size as u32 + offset as u32);
        plan.slot_mapping.extend(sequence.table.groups().map(slot));
    }
    let first_block = plan.block_tables.len();
    for blocks in sequence.table.groups() {
        plan.block_tables.extend_from_slice(&blocks[..num_blocks]);
    }
    // Before what may come of the row: the log-probabilities take room as well.
    let prompt_targets = prompt_targets(sequence, context_len, end);
    let max_new_tokens = sequence.num_acceptable_tokens().saturating_sub(usize::from(is_ahead)).max(1);
    plan.rows.push(PlannedRow {
        id: sequence.id,
        query,
        blocks: first_block..plan.block_tables.len(),
        context_len: context_len as u32,
        samples,
        num_output_tokens: sequence.num_output_tokens() as u32 + u32::from(is_ahead),
        prompt_targets,
        max_new_tokens,
        follows: is_ahead.then_some(sequence.sampled_at.1),
    });
    sequence.ready = false;
    sequence.is_ahead = is_ahead;
    if !is_ahead {
        sequence.num_computed_tokens = end;
    }
    if samples {
        sequence.outstanding = Some(sequence.num_preemptions);
        sequence.sampled_at = (step, plan.rows.len() as u32 - 1);
        sequence.max_new_tokens = max_new_tokens;
    }
}

/// The prompt's tokens that a query from `context_len` to `end` predicts and that have not been reported.
fn prompt_targets(sequence: &mut Sequence, context_len: usize, end: usize) -> Range<u32> {
    let first = sequence.next_prompt_logprob.max(context_len + 1);
    let last = sequence.prompt.len().min(end + 1);
    if first >= last {
        return 0..0;
    }
    sequence.next_prompt_logprob = last;
    sequence.prompts_under_way += 1;
    first as u32..last as u32
}

/// Empties a plan, keeping its buffers.
pub(super) fn clear(plan: &mut StepPlan) {
    plan.admitted.clear();
    plan.retired.clear();
    plan.preempted.clear();
    plan.rewinds.clear();
    plan.edits.clear();
    plan.block_copies.clear();
    plan.rows.clear();
    plan.token_ids.clear();
    plan.positions.clear();
    plan.slot_mapping.clear();
    plan.block_tables.clear();
}
