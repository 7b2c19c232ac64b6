//! Which experts a token gets, by rules that are a model's own, on the host: what is right, and what the CPU does.

use std::cmp::Ordering;

use crate::error::{Error, Result};

/// How scores become weights of experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scores {
    /// A softmax over all experts, before the best are taken.
    Softmax,
    /// A softmax over those that were taken.
    SoftmaxOfTaken,
    /// A sigmoid each (DeepSeek V3, arXiv 2412.19437).
    Sigmoid,
}

/// How experts are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// How many a token gets.
    pub experts_per_token: usize,
    /// How scores become weights.
    pub scores: Scores,
    /// Whether a token's weights are made to sum to 1.
    pub renormalize: bool,
    /// What weights are multiplied with at last.
    pub scale: f32,
    /// Added to the weights while the best are taken, not to what they count: `[experts]`.
    pub selection_bias: Option<Vec<f32>>,
    /// Experts stand in so many groups of equal size, of which so many are open to a token: those whose two best experts
    /// have the greatest sum. One of one is all.
    pub groups: (usize, usize),
}

impl Routing {
    /// Whether it is one of so many experts.
    ///
    /// # Errors
    /// `Internal` where a token is to get more experts than are open to it, or none, or biases are not as many.
    pub fn check(&self, experts: usize) -> Result<()> {
        let (groups, open) = self.groups;
        let size = experts.checked_div(groups).unwrap_or(0);
        let choice = if open >= groups || size == 0 { experts } else { open * size };
        let biases = self.selection_bias.as_ref().map_or(experts, Vec::len);
        if !(1..=choice).contains(&self.experts_per_token) || biases != experts {
            let each = self.experts_per_token;
            return Err(Error::internal(format!(
                "{each} of {choice} experts a token, {experts} in all, {biases} biases"
            )));
        }
        Ok(())
    }

    /// The experts of a token with these scores and what each counts, best first; of equals the first.
    #[must_use]
    pub fn choose(&self, scores: &[f32]) -> Vec<(usize, f32)> {
        let weights = match self.scores {
            Scores::Softmax => softmax(scores),
            Scores::Sigmoid => scores.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
            Scores::SoftmaxOfTaken => scores.to_vec(),
        };
        let mut ranked = match &self.selection_bias {
            Some(bias) => weights.iter().zip(bias).map(|(weight, bias)| weight + bias).collect(),
            None => weights.clone(),
        };
        // A score that is no number is the last.
        ranked.iter_mut().filter(|rank| rank.is_nan()).for_each(|rank| *rank = f32::NEG_INFINITY);
        let mut order = self.open(&ranked);
        // Stable, so that equals keep their order.
        order.sort_by(|a, b| by_rank(ranked[*b], ranked[*a]));
        order.truncate(self.experts_per_token);
        let mut taken: Vec<f32> = order.iter().map(|&expert| weights[expert]).collect();
        if self.scores == Scores::SoftmaxOfTaken {
            taken = softmax(&taken);
        }
        if self.renormalize {
            // Sigmoids may all be zero; DeepSeek's own code adds as much.
            let total = taken.iter().sum::<f32>() + 1e-20;
            taken.iter_mut().for_each(|weight| *weight /= total);
        }
        order.into_iter().zip(taken.into_iter().map(|weight| weight * self.scale)).collect()
    }

    /// The experts that a token may choose from, in order.
    fn open(&self, ranked: &[f32]) -> Vec<usize> {
        let (groups, open) = self.groups;
        let size = ranked.len().checked_div(groups).unwrap_or(0);
        if open >= groups || size == 0 {
            return (0..ranked.len()).collect();
        }
        let best_two = |group: usize| {
            let mut of_group = ranked[group * size..(group + 1) * size].to_vec();
            of_group.sort_by(|a, b| by_rank(*b, *a));
            of_group.iter().take(2).sum::<f32>()
        };
        let sums = (0..groups).map(best_two).collect::<Vec<_>>();
        let mut order = (0..groups).collect::<Vec<_>>();
        order.sort_by(|a, b| by_rank(sums[*b], sums[*a]));
        order.truncate(open);
        order.sort_unstable();
        order.into_iter().flat_map(|group| group * size..(group + 1) * size).collect()
    }
}

/// A zero is as good as another, whatever its sign.
fn by_rank(a: f32, b: f32) -> Ordering {
    (a + 0.0).total_cmp(&(b + 0.0))
}

fn softmax(scores: &[f32]) -> Vec<f32> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = scores.iter().map(|score| (score - max).exp()).collect();
    let total: f32 = powers.iter().sum();
    powers.iter().map(|power| power / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routing(scores: Scores, renormalize: bool) -> Routing {
        Routing { experts_per_token: 2, scores, renormalize, scale: 1.0, selection_bias: None, groups: (1, 1) }
    }

    #[test]
    fn a_softmax_of_the_taken_is_a_renormalized_softmax_of_all() {
        let scores = [0.3, -1.0, 2.0, 1.5];
        let of_all = routing(Scores::Softmax, true).choose(&scores);
        let of_taken = routing(Scores::SoftmaxOfTaken, false).choose(&scores);
        assert_eq!(of_all.iter().map(|(expert, _)| *expert).collect::<Vec<_>>(), [2, 3]);
        for ((a, x), (b, y)) in of_all.iter().zip(&of_taken) {
            assert!(a == b && (x - y).abs() < 1e-6, "{x} {y}");
        }
        let kept = routing(Scores::Softmax, false).choose(&scores);
        assert!(kept.iter().map(|(_, weight)| weight).sum::<f32>() < 0.99, "not renormalized: {kept:?}");
    }

    #[test]
    fn a_selection_bias_chooses_and_does_not_count() {
        let biased = Routing { selection_bias: Some(vec![0.0, 9.0, 0.0, 0.0]), ..routing(Scores::Sigmoid, false) };
        let chosen = biased.choose(&[0.0, -1.0, 2.0, 1.0]);
        assert_eq!(chosen.iter().map(|(expert, _)| *expert).collect::<Vec<_>>(), [1, 2]);
        assert!((chosen[0].1 - 1.0 / (1.0 + 1f32.exp())).abs() < 1e-6);
    }

    #[test]
    fn experts_that_all_count_nothing_count_nothing_once_they_are_renormalized() {
        let chosen = routing(Scores::Sigmoid, true).choose(&[-200.0, -300.0, -200.0]);
        assert_eq!(chosen, [(0, 0.0), (1, 0.0)]);
    }

    #[test]
    fn groups_close_their_experts_and_equals_keep_their_order() {
        let grouped = Routing { groups: (2, 1), ..routing(Scores::Sigmoid, true) };
        let chosen = grouped.choose(&[3.0, -9.0, 1.0, 2.5]);
        assert_eq!(
            chosen.iter().map(|(expert, _)| *expert).collect::<Vec<_>>(),
            [3, 2],
            "the best expert's group is closed"
        );
        let equals = routing(Scores::Sigmoid, true).choose(&[f32::NAN, 1.0, 1.0, 1.0]);
        assert_eq!(equals.iter().map(|(expert, _)| *expert).collect::<Vec<_>>(), [1, 2]);
    }
}
