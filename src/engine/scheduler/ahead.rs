//! Rows that are planned a step ahead, before it is known which token they compute.
//!
//! While a step is under way, all but ids is known of what comes of it: a sequence that has sampled goes on by one token, at the
//! next position, in the next slot. So the next step can be planned and submitted meanwhile, with rows that say which row of
//! the step before chooses their token ([`PlannedRow::follows`](crate::engine::executor::PlannedRow::follows)).
//!
//! A sequence's books know of such a row only that it is under way ([`Sequence::is_ahead`]): its tokens and how many of them are
//! computed stay what they would be without it. When the token comes that the row computes, it is a row like any other. When the
//! sequence ends with that token, what comes of the row is nobody's; its slot may be somebody else's by then, who writes it in a
//! later step. That it ends by its length is known ahead, so there is no such row.

use super::{Computed, Scheduler};
use crate::engine::{
    faults::{Fault, planted},
    sequence::Sequence,
};

impl Scheduler {
    /// The newest step stays under way while the next one is planned. False where that cannot be, because a row of it is of a
    /// sequence that may take its token back: the step is to be collected first.
    pub fn go_ahead(&mut self) -> bool {
        let Some(newest) = self.in_flight.back_mut() else { return false };
        let may_go_back = |row: &Computed| {
            let sequence = self.sequences.get(row.key).filter(|sequence| sequence.id == row.id);
            sequence.is_some_and(|sequence| sequence.guard.is_some() && sequence.outstanding.is_some())
        };
        newest.may_be_followed =
            self.max_tokens_per_step == 1 && (planted(Fault::GuardedAhead) || !newest.rows.iter().any(may_go_back));
        newest.may_be_followed
    }

    /// Tokens of a running sequence that the next step can compute: those that are known and that no step has been asked to
    /// compute, or the one that comes of the newest step.
    pub(super) fn num_plannable_tokens(&self, sequence: &Sequence) -> usize {
        match sequence.num_uncomputed_tokens() {
            0 => usize::from(self.goes_ahead(sequence)),
            known => known,
        }
    }

    /// Whether a sequence's token comes of the newest step, does not end it by its length, and leaves its reader room for the one
    /// after it.
    fn goes_ahead(&self, sequence: &Sequence) -> bool {
        let room = sequence.reader.room() + usize::from(planted(Fault::AheadWithoutRoom));
        self.in_flight.back().is_some_and(|newest| newest.may_be_followed)
            && sequence.sampled_at.0 + 1 == self.step
            && sequence.outstanding == Some(sequence.num_preemptions)
            && !sequence.is_ahead
            && sequence.tokens.len() + 1 < sequence.max_len
            && room > sequence.room_needed(self.max_tokens_per_step)
    }
}
