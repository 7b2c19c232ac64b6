//! `thinking_token_budget`: when the reasoning has had this many tokens, its end is forced.

use super::{Candidates, LogitsProcessor, SamplingContext};
use crate::{
    error::{Error, Result},
    ids::TokenId,
    params::SamplingParams,
};

/// Counts the tokens between the marks of reasoning; once they are spent, only the marks of its end can be chosen.
pub(super) struct ThinkingBudget {
    tokens: u32,
    start: Vec<TokenId>,
    end: Vec<TokenId>,
    /// The last tokens, as many as the longer mark has.
    recent: Vec<TokenId>,
    /// Inside the reasoning.
    inside: bool,
    spent: u32,
    /// Tokens of the end that were forced.
    forced: usize,
}

impl ThinkingBudget {
    fn is_forcing(&self) -> bool {
        self.inside && self.spent >= self.tokens
    }
}

impl LogitsProcessor for ThinkingBudget {
    fn from_params(params: &SamplingParams, context: &SamplingContext<'_>) -> Result<Option<Self>> {
        let Some(budget) = &params.thinking_budget else { return Ok(None) };
        let unknown = |id: &&TokenId| id.index() >= context.vocab_size;
        if budget.end.is_empty() || budget.start.iter().chain(&budget.end).find(unknown).is_some() {
            return Err(Error::invalid("thinking_token_budget", "the model's vocabulary has no marks of reasoning"));
        }
        Ok(Some(Self {
            tokens: budget.tokens,
            start: budget.start.clone(),
            end: budget.end.clone(),
            recent: Vec::new(),
            inside: budget.begins_inside,
            spent: 0,
            forced: 0,
        }))
    }

    fn apply(&self, candidates: &mut Candidates<'_>, _index: u32) {
        if !self.is_forcing() {
            return;
        }
        let Some(next) = self.end.get(self.forced) else { return };
        for (id, logit) in candidates.logits_mut().iter_mut().enumerate() {
            *logit = if id == next.index() { 0.0 } else { f32::NEG_INFINITY };
        }
    }

    fn observe(&mut self, token: TokenId) {
        let forcing = self.is_forcing();
        self.forced += usize::from(forcing);
        self.recent.push(token);
        let longest = self.start.len().max(self.end.len());
        let surplus = self.recent.len().saturating_sub(longest);
        self.recent.drain(..surplus);
        if self.inside {
            self.spent = self.spent.saturating_add(1);
            self.inside = !(self.recent.ends_with(&self.end) || self.forced == self.end.len());
        } else if !self.start.is_empty() && self.recent.ends_with(&self.start) {
            // What is left of the budget counts for the next thought too.
            self.inside = true;
            self.forced = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        params::ThinkingBudget as Params,
        sampling::test_cases::{self, context},
    };

    /// The tokens that 4 000 logits would choose: the highest, unless something else is forced.
    fn run(tokens: u32, begins_inside: bool, wanted: &[u32]) -> Vec<u32> {
        let budget = Params { tokens, start: vec![TokenId(8)], end: vec![TokenId(6), TokenId(7)], begins_inside };
        let params = SamplingParams { thinking_budget: Some(budget), ..SamplingParams::default() };
        let mut processor = ThinkingBudget::from_params(&params, &context(10)).unwrap().unwrap();
        let choose = |(index, &wanted): (usize, &u32)| {
            let mut logits = [0.0_f32; 10];
            logits[wanted as usize] = 5.0;
            let logits = test_cases::logits_after(&processor, &logits, index as u32);
            let best = (0..10).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
            processor.observe(TokenId(best));
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
        let budget = Params { tokens: 1, start: vec![], end: vec![TokenId(99)], begins_inside: true };
        let params = SamplingParams { thinking_budget: Some(budget), ..SamplingParams::default() };
        let error = ThinkingBudget::from_params(&params, &context(10)).err().unwrap();
        assert_eq!(error.violations[0].field, "thinking_token_budget");
    }
}
