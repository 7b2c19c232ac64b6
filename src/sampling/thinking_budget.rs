//! `thinking_token_budget`: when the reasoning has had this many tokens, its end is forced.

use super::{Candidates, LogitsProcessor, SamplingContext};
use crate::{
    error::{Error, Result},
    ids::TokenId,
    params::{SamplingParams, ThinkingBudget as Budget},
};

/// Counts the tokens between the marks of reasoning; once they are spent, only the marks of its end can be chosen.
pub(super) struct ThinkingBudget {
    budget: Budget,
    /// What was chosen, so that the sequence can go back.
    chosen: Vec<TokenId>,
    state: State,
}

/// Where the answer stands.
#[derive(Clone, Copy)]
struct State {
    /// Inside the reasoning.
    inside: bool,
    spent: u32,
    /// Tokens of the end that were forced.
    forced: usize,
}

impl ThinkingBudget {
    fn new(budget: Budget) -> Self {
        let state = State { inside: budget.begins_inside, spent: 0, forced: 0 };
        Self { budget, chosen: Vec::new(), state }
    }

    fn is_forcing(&self) -> bool {
        self.state.inside && self.state.spent >= self.budget.tokens
    }

    fn learn(&mut self, token: TokenId) {
        let forcing = self.is_forcing();
        self.chosen.push(token);
        let Self { budget, chosen, state } = self;
        state.forced += usize::from(forcing);
        if state.inside {
            state.spent = state.spent.saturating_add(1);
            state.inside = !(chosen.ends_with(&budget.end) || state.forced == budget.end.len());
        } else if !budget.start.is_empty() && chosen.ends_with(&budget.start) {
            // What is left of the budget counts for the next thought too.
            *state = State { inside: true, forced: 0, ..*state };
        }
    }
}

impl LogitsProcessor for ThinkingBudget {
    fn from_params(params: &SamplingParams, context: &SamplingContext<'_>) -> Result<Option<Self>> {
        let Some(budget) = &params.thinking_budget else { return Ok(None) };
        let unknown = |id: &&TokenId| id.index() >= context.vocab_size;
        if budget.end.is_empty() || budget.start.iter().chain(&budget.end).find(unknown).is_some() {
            return Err(Error::invalid("thinking_token_budget", "the model's vocabulary has no marks of reasoning"));
        }
        Ok(Some(Self::new(budget.clone())))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, _index: u32) {
        if !self.is_forcing() {
            return;
        }
        let Some(next) = self.budget.end.get(self.state.forced) else { return };
        for (id, logit) in candidates.logits_mut().iter_mut().enumerate() {
            *logit = if id == next.index() { 0.0 } else { f32::NEG_INFINITY };
        }
    }

    fn observe(&mut self, token: TokenId, _left: &Candidates<'_>) {
        self.learn(token);
    }

    fn forget(&mut self, _token: TokenId) {
        // Rare, so the shortest way will do: all over again, but for the last.
        let mut chosen = std::mem::take(&mut self.chosen);
        chosen.pop();
        *self = Self::new(self.budget.clone());
        chosen.into_iter().for_each(|token| self.learn(token));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::test_cases::{self, context};

    /// What is chosen where the model wants these, unless something else is forced.
    fn run(tokens: u32, begins_inside: bool, wanted: &[u32]) -> Vec<u32> {
        let budget = Budget { tokens, start: vec![TokenId(8)], end: vec![TokenId(6), TokenId(7)], begins_inside };
        let params = SamplingParams { thinking_budget: Some(budget), ..SamplingParams::default() };
        let mut processor = ThinkingBudget::from_params(&params, &context(10)).unwrap().unwrap();
        let choose = |(index, &wanted): (usize, &u32)| {
            let mut logits = [0.0_f32; 10];
            logits[wanted as usize] = 5.0;
            let logits = test_cases::logits_after(&processor, &logits, index as u32);
            let best = (0..10).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
            processor.learn(TokenId(best));
            // Going back and forth changes nothing.
            processor.learn(TokenId(6));
            processor.forget(TokenId(6));
            best
        };
        wanted.iter().enumerate().map(choose).collect()
    }

    #[test]
    fn a_spent_budget_forces_the_end_and_then_lets_go() {
        assert_eq!(run(2, true, &[1, 2, 3, 3, 4, 5]), [1, 2, 6, 7, 4, 5]);
        assert_eq!(run(0, true, &[1, 2, 3]), [6, 7, 3]);
    }

    #[test]
    fn reasoning_that_ends_by_itself_is_left_alone() {
        assert_eq!(run(4, true, &[1, 6, 7, 1, 2, 3, 4]), [1, 6, 7, 1, 2, 3, 4]);
    }

    #[test]
    fn an_answer_that_does_not_reason_is_left_alone_until_it_does() {
        assert_eq!(run(1, false, &[1, 2, 8, 3, 4, 4, 5]), [1, 2, 8, 3, 6, 7, 5]);
    }

    #[test]
    fn marks_outside_the_vocabulary_are_refused() {
        let budget = Budget { tokens: 1, start: vec![], end: vec![TokenId(99)], begins_inside: true };
        let params = SamplingParams { thinking_budget: Some(budget), ..SamplingParams::default() };
        let error = ThinkingBudget::from_params(&params, &context(10)).err().unwrap();
        assert_eq!(error.violations[0].field, "thinking_token_budget");
    }
}
