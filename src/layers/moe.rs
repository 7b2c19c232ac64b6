//! Mixtures of experts: a router chooses few of many feed-forward layers for each token (Shazeer et al. 2017,
//! arXiv 1701.06538; Fedus et al. 2021, arXiv 2101.03961).
//!
//! Rows are grouped by expert, so that an expert's weights are read once a step. A Linear's row does not depend on the
//! others, and a token's experts are summed in the order of their rank: whichever tokens share an expert, each gets the
//! same bits.

use candle_core::Tensor;

use crate::{
    error::{Error, Result},
    kernels::{combine::combine, linear::Inputs},
    layers::{context::StepContext, linear::Linear, mlp::GatedMlp, sublayer::Sublayer},
};

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
    /// The experts of a token with these scores and what each counts, best first; of equals the first.
    #[must_use]
    pub fn choose(&self, scores: &[f32]) -> Vec<(usize, f32)> {
        let weights = match self.scores {
            Scores::Softmax => softmax(scores),
            Scores::Sigmoid => scores.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
            Scores::SoftmaxOfTaken => scores.to_vec(),
        };
        let ranked = match &self.selection_bias {
            Some(bias) => weights.iter().zip(bias).map(|(weight, bias)| weight + bias).collect(),
            None => weights.clone(),
        };
        let mut order = self.open(&ranked);
        // Stable, so that equals keep their order; a score that is no number is the last.
        order.sort_by(|a, b| rank(&ranked, *b).total_cmp(&rank(&ranked, *a)));
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
            of_group.sort_by(|a, b| b.total_cmp(a));
            of_group.iter().take(2).sum::<f32>()
        };
        let sums = (0..groups).map(best_two).collect::<Vec<_>>();
        let mut order = (0..groups).collect::<Vec<_>>();
        order.sort_by(|a, b| sums[*b].total_cmp(&sums[*a]));
        order.truncate(open);
        order.sort_unstable();
        order.into_iter().flat_map(|group| group * size..(group + 1) * size).collect()
    }
}

fn rank(ranked: &[f32], expert: usize) -> f32 {
    Some(ranked[expert]).filter(|rank| !rank.is_nan()).unwrap_or(f32::NEG_INFINITY)
}

fn softmax(scores: &[f32]) -> Vec<f32> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = scores.iter().map(|score| (score - max).exp()).collect();
    let total: f32 = powers.iter().sum();
    powers.iter().map(|power| power / total).collect()
}

/// A layer of experts.
pub struct Moe {
    router: Linear,
    routing: Routing,
    experts: Vec<GatedMlp>,
    /// One that every token gets.
    shared: Option<GatedMlp>,
    /// One that every token gets as well, times the sigmoid of the router's last score.
    weighed: Option<GatedMlp>,
}

impl Moe {
    /// Of a router `[experts, hidden]` and its experts.
    ///
    /// # Errors
    /// `Internal` where a token is to get more experts than there are, or none.
    pub fn new(router: Linear, routing: Routing, experts: Vec<GatedMlp>, shared: Option<GatedMlp>) -> Result<Self> {
        let biases = routing.selection_bias.as_ref().map_or(experts.len(), Vec::len);
        if !(1..=experts.len()).contains(&routing.experts_per_token) || biases != experts.len() {
            let why = format!("{} of {} experts a token, {biases} biases", routing.experts_per_token, experts.len());
            return Err(Error::internal(why));
        }
        Ok(Self { router, routing, experts, shared, weighed: None })
    }

    /// The same with one more expert for every token, which counts the sigmoid of one more score of the router's: Qwen's.
    #[must_use]
    pub fn with_weighed(self, expert: GatedMlp) -> Self {
        Self { weighed: Some(expert), ..self }
    }
}

impl Sublayer for Moe {
    fn forward(&self, x: Inputs<'_>, onto: Option<&Tensor>, step: &StepContext<'_>) -> Result<Tensor> {
        let x = x.tensor()?;
        let num_experts = self.experts.len();
        let experts = self.experts.iter().chain(&self.weighed).collect::<Vec<_>>();
        let each = self.routing.experts_per_token + (experts.len() - num_experts);
        let scores = self.router.forward(Inputs::Rows(&x), None, step)?.to_vec2::<f32>()?;
        let mut tokens_of = vec![Vec::new(); experts.len()];
        let mut weights = vec![0.0; scores.len() * each];
        let mut ranks_of = vec![Vec::new(); experts.len()];
        for (token, scores) in scores.iter().enumerate() {
            let (of_experts, of_weighed) = scores.split_at(num_experts);
            let weighed = of_weighed.iter().map(|score| (num_experts, 1.0 / (1.0 + (-score).exp())));
            for (rank, (expert, weight)) in self.routing.choose(of_experts).into_iter().chain(weighed).enumerate() {
                tokens_of[expert].push(token as u32);
                ranks_of[expert].push(token * each + rank);
                weights[token * each + rank] = weight;
            }
        }
        // Where the results of each token's experts stand among all.
        let mut places = vec![0; weights.len()];
        for (place, rank) in ranks_of.into_iter().flatten().enumerate() {
            places[rank] = place as u32;
        }
        let chosen = experts.into_iter().zip(&tokens_of).filter(|(_, tokens)| !tokens.is_empty());
        let run = |(expert, tokens): (&GatedMlp, &Vec<u32>)| {
            let rows = x.index_select(&Tensor::new(tokens.as_slice(), x.device())?, 0)?;
            expert.forward(Inputs::Rows(&rows), None, step)
        };
        let rows = chosen.map(run).collect::<Result<Vec<_>>>()?;
        let rows = if rows.is_empty() { x.clone() } else { Tensor::cat(&rows, 0)? };
        let shared = self.shared.as_ref().map(|shared| shared.forward(Inputs::Rows(&x), onto, step)).transpose()?;
        combine(&rows, &places, &weights, each, shared.as_ref().or(onto))
    }
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
