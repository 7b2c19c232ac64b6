//! What a step brought, put into the books: new tokens, tokens taken back, ends.

use super::{End, Event, Scheduler};
use crate::{
    engine::{
        executor::{Rewind, SequenceOutput, StepOutput},
        faults::{Fault, planted},
    },
    error::{Code, Error, Result},
    params::FinishReason,
};

/// Times that a sequence may take tokens back, so that none goes on forever.
const MAX_REWINDS: u32 = 1000;

impl Scheduler {
    /// Takes in the output of the oldest submitted step. Events: new tokens, and the sequences that they end.
    ///
    /// # Errors
    /// `Internal` if the executor broke its contract.
    pub fn apply(&mut self, output: StepOutput, events: &mut Vec<Event>) -> Result<()> {
        let step = self.in_flight.pop_front().ok_or_else(|| Error::internal("the output of a step never planned"))?;
        let mut rows = step.rows;
        for row in rows.drain(..) {
            if let Some(sequence) = self.sequences.get_mut(row.key)
                && (sequence.id, sequence.num_preemptions) == (row.id, row.num_preemptions)
            {
                if row.num_tokens > sequence.tokens.len() {
                    let why = format!("the token of sequence {} that a row follows came too late", row.id);
                    return Err(Error::internal(why));
                }
                self.blocks.register(&mut sequence.table, &sequence.tokens, row.num_tokens);
            }
        }
        self.spare.push(rows);
        for (id, prompt) in output.prompts {
            let Some(key) = self.sequences.key(id) else { continue };
            self.sequences[key].prompts_under_way -= 1;
            events.push(Event::Prompt { id, prompt });
        }
        for (id, vector) in output.pooled {
            let Some(key) = self.sequences.key(id) else { continue }; // Aborted meanwhile.
            if self.sequences[key].outstanding.take().is_none() {
                return Err(Error::internal(format!("a vector for sequence {id}, whose prompt is not computed")));
            }
            self.num_outstanding -= 1;
            self.end(key, End::Pooled(vector), events);
        }
        for (id, error) in output.failed {
            if let Some(key) = self.sequences.key(id) {
                self.end(key, End::Failed(error), events);
            }
        }
        output.sequences.into_iter().try_for_each(|output| self.apply_to_sequence(output, events))
    }

    fn apply_to_sequence(&mut self, output: SequenceOutput, events: &mut Vec<Event>) -> Result<()> {
        let SequenceOutput { id, tokens, num_written, complete } = output;
        let num_written = num_written as usize;
        let Some(key) = self.sequences.key(id) else { return Ok(()) }; // Aborted meanwhile.
        let sequence = &mut self.sequences[key];
        if tokens.is_empty() && !complete {
            return Ok(());
        }
        let num_tokens = tokens.len();
        let acceptable = sequence.max_new_tokens.max(self.max_tokens_per_step);
        if num_tokens > acceptable || num_written >= num_tokens.clamp(1, self.max_tokens_per_step) {
            let why = format!("{num_tokens} tokens, {num_written} of them written, in one step for sequence {id}");
            return Err(Error::internal(why));
        }
        let Some(num_preemptions) = sequence.outstanding else {
            return Err(Error::internal(format!("tokens for sequence {id}, which did not sample")));
        };
        // A row that computes this very token is under way already, and its own comes next.
        let was_ahead = std::mem::take(&mut sequence.is_ahead);
        if !was_ahead {
            sequence.outstanding = None;
            self.num_outstanding -= 1;
        }
        self.release_siblings(key);
        let sequence = &mut self.sequences[key];

        let taken = sequence.take(tokens);
        self.tenants.charge(sequence.tenant_key, taken.count);
        let is_rewind = !taken.removed.is_empty();
        let same_life = num_preemptions == sequence.num_preemptions;
        if same_life {
            sequence.num_computed_tokens += num_written.min(taken.count.saturating_sub(1));
        }
        let mut begins_anew = false;
        if is_rewind {
            if self.prefixes_are_shared || planted(Fault::RewoundStateKept) {
                // The last token is always computed: its logits choose the next one.
                sequence.num_computed_tokens = sequence.num_computed_tokens.min(sequence.tokens.len() - 1);
                let kept = self.blocks.truncate(&mut sequence.table, sequence.num_computed_tokens);
                begins_anew = kept < sequence.num_computed_tokens;
                sequence.num_computed_tokens = kept;
            } else {
                // It keeps its blocks, unless its windows have given some of them back.
                sequence.num_computed_tokens = 0;
                begins_anew = sequence.table.has_left_behind();
            }
            let index = sequence.num_output_tokens() as u32;
            self.rewinds.push(Rewind { id, index, removed: taken.removed });
        }
        if same_life {
            self.blocks.register(&mut sequence.table, &sequence.tokens, sequence.num_computed_tokens);
        }
        if was_ahead && taken.finish.is_none() && (same_life || planted(Fault::AheadOfPreemption)) {
            sequence.num_computed_tokens += 1;
        }
        let gave_up = sequence.num_rewinds > MAX_REWINDS
            || self.max_tokens_per_step + sequence.held.len() > sequence.reader.capacity();
        if !taken.released.is_empty() {
            events.push(Event::Tokens { id, tokens: taken.released });
        }
        // Where the executor ends a sequence at the very token that its length does, it is the executor that counts.
        let finish = match taken.finish {
            None | Some(FinishReason::Length) if complete && taken.count == num_tokens && !is_rewind => {
                Some(FinishReason::GrammarComplete)
            }
            finish => finish,
        };
        if let Some(reason) = finish {
            self.end(key, End::Finished(reason), events);
        } else if gave_up {
            let why = "every way to go on came to say what bad_words bans: gave up";
            self.end(key, End::Failed(Error::new(Code::Aborted, why)), events);
        } else if begins_anew {
            // What it sees from there was given back: it goes through the door again, as after a preemption.
            self.preempt(key);
        }
        Ok(())
    }
}
