//! Mixtures of experts: a router chooses few of many feed-forward layers for each token (Shazeer et al. 2017,
//! arXiv 1701.06538; Fedus et al. 2021, arXiv 2101.03961).
//!
//! Rows are grouped by expert, so that an expert's weights are read once a step. A Linear's row does not depend on the
//! others, and a token's experts are summed in the order of their rank: whichever tokens share an expert, each gets the
//! same bits.
//!
//! On a card, experts of plain numbers are multiplied together, by rows that the card has put in order itself; elsewhere they
//! run one after another, in an order that the host makes.

use candle_core::Tensor;

use crate::{
    error::Result,
    kernels::{
        combine::{combine, combine_placed},
        linear::Inputs,
        route::{Router, Routing, route},
    },
    layers::{context::StepContext, experts::Experts, linear::Linear, mlp::GatedMlp, sublayer::Sublayer},
};

/// A layer of experts.
pub struct Moe {
    router: Linear,
    routing: Routing,
    experts: Vec<GatedMlp>,
    /// The same experts, where they are multiplied together.
    together: Option<(Router, Experts)>,
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
        routing.check(experts.len())?;
        let moe = Self { router, routing, experts, together: None, shared, weighed: None };
        let together = GatedMlp::together(&moe.experts)?;
        match together.filter(Experts::are_one_launch) {
            Some(experts) => moe.together(experts),
            None => Ok(moe),
        }
    }

    /// The same with its experts multiplied together.
    fn together(self, experts: Experts) -> Result<Self> {
        let router = Router::new(&self.routing, self.experts.len())?;
        let router = if self.weighed.is_some() { router.weighed() } else { router };
        Ok(Self { together: Some((router, experts)), ..self })
    }

    /// The same with one more expert for every token, which counts the sigmoid of one more score of the router's: Qwen's.
    #[must_use]
    pub fn with_weighed(self, expert: GatedMlp) -> Self {
        let together = self.together.map(|(router, experts)| (router.weighed(), experts));
        Self { weighed: Some(expert), together, ..self }
    }

    /// Experts a token, that of the last score among them.
    fn each(&self) -> usize {
        self.routing.experts_per_token + usize::from(self.weighed.is_some())
    }

    /// What the experts make of `x` of these scores, added to `onto`, all experts together. Waits for nothing.
    fn forward_together(
        &self,
        (router, experts): &(Router, Experts),
        (x, scores): (&Tensor, &Tensor),
        onto: Option<&Tensor>,
        step: &StepContext<'_>,
    ) -> Result<Tensor> {
        let routes = route(scores, router)?;
        let rows = experts.forward(x, &routes, step)?;
        let rows = match &self.weighed {
            Some(expert) => Tensor::cat(&[rows, expert.forward(Inputs::Rows(x), None, step)?], 0)?,
            None => rows,
        };
        combine_placed(&rows, (&routes.places, &routes.weights), self.each(), onto)
    }

    /// The same, expert by expert.
    fn forward_apart(
        &self,
        (x, scores): (&Tensor, &Tensor),
        onto: Option<&Tensor>,
        step: &StepContext<'_>,
    ) -> Result<Tensor> {
        let num_experts = self.experts.len();
        let experts = self.experts.iter().chain(&self.weighed).collect::<Vec<_>>();
        let (each, scores) = (self.each(), scores.to_vec2::<f32>()?);
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
        combine(&rows, &places, &weights, each, onto)
    }
}

impl Sublayer for Moe {
    fn forward(&self, x: Inputs<'_>, onto: Option<&Tensor>, step: &StepContext<'_>) -> Result<Tensor> {
        let x = x.tensor()?;
        let scores = self.router.forward(Inputs::Rows(&x), None, step)?;
        let scores = match step.observer {
            Some(observer) => observer.scored(self.router.name(), scores, &self.routing)?,
            None => scores,
        };
        let shared = self.shared.as_ref().map(|shared| shared.forward(Inputs::Rows(&x), onto, step)).transpose()?;
        let onto = shared.as_ref().or(onto);
        match &self.together {
            Some(together) => self.forward_together(together, (&x, &scores), onto, step),
            None => self.forward_apart((&x, &scores), onto, step),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::{DType, Device};

    use super::*;
    use crate::{
        kernels::{
            activation::{Activation, Gate},
            linear::{
                PackedWeight,
                format::{RawTensor, WeightFormat},
            },
            route::Scores,
        },
        layers::context::{KvCache, KvCacheShape},
    };

    /// Numbers in `(-1, 1)` that look like none.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 * 2.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn linear(outputs: usize, inputs: usize, bias: bool, seed: u32) -> Linear {
        let weight = numbers(outputs * inputs, seed);
        let bytes = bytemuck::cast_slice::<f32, u8>(&weight).to_vec().into();
        let raw = RawTensor { format: WeightFormat::F32.into(), shape: vec![outputs, inputs], bytes };
        let weight = PackedWeight::pack(&raw, WeightFormat::F32, &Device::Cpu).unwrap();
        let bias = bias.then(|| Tensor::new(numbers(outputs, seed + 1), &Device::Cpu).unwrap());
        Linear::new(String::new(), vec![Arc::new(weight)], bias)
    }

    fn expert(intermediate: usize, bias: bool, seed: u32) -> GatedMlp {
        let (gate_up, down) = (linear(2 * intermediate, 10, bias, seed), linear(10, intermediate, bias, seed + 2));
        GatedMlp::new(gate_up, down, Gate::Of(Activation::Silu))
    }

    /// Six experts, two a token, with one that all get, one that is weighed, or none.
    fn moe(kind: usize, scores: Scores) -> Moe {
        let routing = Routing {
            experts_per_token: 2,
            scores,
            renormalize: true,
            scale: 1.5,
            selection_bias: (kind == 1).then(|| numbers(6, 5)),
            groups: if kind == 1 { (3, 2) } else { (1, 1) },
        };
        let experts = (0..6).map(|k| expert(7, kind == 0, 10 * k + 100)).collect();
        let shared = (kind == 1).then(|| expert(5, false, 900));
        let moe = Moe::new(linear(6 + usize::from(kind == 2), 10, false, 7), routing, experts, shared).unwrap();
        if kind == 2 { moe.with_weighed(expert(9, false, 800)) } else { moe }
    }

    #[test]
    fn experts_that_are_multiplied_together_give_what_each_gives_by_itself() {
        let dtype = DType::F32;
        let shape = KvCacheShape { num_layers: 1, num_blocks: 1, block_size: 1, num_kv_heads: 1, head_dim: 1, dtype };
        let kv = KvCache::new(shape, &[None], &Device::Cpu).unwrap();
        let step = StepContext {
            placed_ids: None,
            positions: &[],
            groups: &[],
            kv: &kv,
            states: None,
            adapters: None,
            observer: None,
        };
        for (kind, scores) in [(0, Scores::Softmax), (1, Scores::Sigmoid), (2, Scores::SoftmaxOfTaken)] {
            for tokens in [1, 2, 50] {
                let x = Tensor::from_vec(numbers(tokens * 10, 3), (tokens, 10), &Device::Cpu).unwrap();
                let onto = Tensor::from_vec(numbers(tokens * 10, 4), (tokens, 10), &Device::Cpu).unwrap();
                let apart = moe(kind, scores);
                assert!(apart.together.is_none(), "there is no card");
                let want = apart.forward(Inputs::Rows(&x), Some(&onto), &step).unwrap();
                let experts = GatedMlp::together(&apart.experts).unwrap().unwrap();
                let got = apart.together(experts).unwrap().forward(Inputs::Rows(&x), Some(&onto), &step).unwrap();
                let bits = |y: &Tensor| y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(bits(&got), bits(&want), "{kind}, {tokens} tokens");
            }
        }
    }

    #[test]
    fn experts_that_differ_are_not_multiplied_together() {
        assert!(GatedMlp::together(&[]).unwrap().is_none());
        assert!(GatedMlp::together(&[expert(7, false, 1), expert(8, false, 2)]).unwrap().is_none());
        assert!(GatedMlp::together(&[expert(7, false, 1), expert(7, true, 2)]).unwrap().is_none());
        let mut other = [expert(7, false, 1), expert(7, false, 2)];
        assert!(GatedMlp::together(&other).unwrap().is_some());
        let (gate_up, down) = (linear(14, 10, false, 1), linear(10, 7, false, 3));
        other[1] = GatedMlp::new(gate_up, down, Gate::Of(Activation::Relu));
        assert!(GatedMlp::together(&other).unwrap().is_none());
    }
}
