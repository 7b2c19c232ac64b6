//! Models of experts in fewer bits beside float32: which experts each token gets, and how near those stood that it lost.
//!
//! A token that stands between two experts may get the other one where what led to its scores was rounded, and nothing bounds
//! what its logits are then, nor those of the tokens that see its keys. So such a token is sent where float32 sends it, and
//! the run goes on: what routers score differs by rounding alone everywhere, each token that would have gone elsewhere must
//! have stood as near as that explains, and no token's logits are excused.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use candle_core::Tensor;
use candlewick::{
    arch::Model,
    config::Dtype,
    error::Result,
    ids::TokenId,
    kernels::route::{Routing, Scores},
    layers::context::LinearObserver,
};

use super::{
    ROUTED,
    bfloat16::{BOUND, Far, allowed},
    driver::{Driver, config, distance, golden, growth, load_model, tokens},
};

/// How far Q8_0 was measured to be from the same weights in float32, so that all that differs is that inputs are rounded to eight
/// bits: of each checkpoint the logits of a prompt's tokens together, those of one token, a router's scores, and by how much float32
/// ranked an expert above the one that took its place. Random weights magnify rounding, and those with states that of some tokens
/// many times as much as that of most, so that no bound for all of them would say anything.
const Q8_0: [(&str, [f64; 4]); 5] = [
    ("mixtral", [0.058, 0.124, 0.039, 0.010]),
    ("qwen3_moe", [0.030, 0.051, 0.024, 0.055]),
    ("gpt_oss", [0.068, 0.167, 0.069, 0.170]),
    ("qwen3_5_moe", [0.231, 1.352, 0.169, 1.664]),
    ("qwen3_next", [0.095, 0.281, 0.087, 0.151]),
];

/// How far float32 may rank one expert above another that was preferred, as a multiple of how far its router's scores are off: the
/// difference of two scores is off by the root of two times what one is, and one such difference
/// among hundreds is three times as large.
const LEAD: f64 = 3.0 * std::f64::consts::SQRT_2;

/// How far what is computed in fewer bits may be from float32.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// The logits of a prompt's tokens together, as a share of their length.
    together: f64,
    /// Those of one token: tokens differ in how far rounding moves them, and in models without experts up to four times as far
    /// was measured. In bfloat16 also as far as transformers' own.
    alone: f64,
    /// A router's scores together, as a share of their root mean square. A router is a head: it multiplies the normed stream in
    /// float32, so its scores are as far off as logits are. There are hundreds of them here, where logits are tens of
    /// thousands, so that their mean is less sure: a quarter more.
    scores: f64,
    /// What a router's scores count as off at the least, where the experts of a token are others: few of them say little.
    off: f64,
}

impl Bounds {
    /// Those of a checkpoint whose inputs are rounded to bfloat16.
    pub(super) fn bfloat16(name: &str) -> Self {
        let Far { together, farthest } = allowed(name).into_iter().fold(Far::default(), Far::max);
        Self { together, alone: farthest.max(3.0 * BOUND), scores: 1.25 * together, off: BOUND }
    }

    /// Those of a checkpoint in Q8_0, from the same weights in float32.
    pub(super) fn q8_0(name: &str) -> Self {
        let (_, measured) = Q8_0.iter().find(|(other, _)| *other == name).expect("was measured");
        let [together, alone, scores, lead] = measured.map(|far| growth() * far);
        Self { together, alone, scores, off: BOUND.max(lead / LEAD) }
    }
}

/// What a router scored each token of a prompt.
struct Scored {
    routing: Routing,
    rows: Vec<Vec<f32>>,
}

/// The same of all routers, by name.
type AllScored = BTreeMap<String, Scored>;

/// Keeps what routers score, and sends tokens to the experts that they have in float32, where that is given.
struct Listener {
    num_experts: usize,
    float32: Option<AllScored>,
    heard: Mutex<AllScored>,
}

impl LinearObserver for Listener {
    fn linear(&self, _: &str, _: usize) {}

    fn scored(&self, name: &str, scores: Tensor, routing: &Routing) -> Result<Tensor> {
        let mut rows = scores.to_vec2::<f32>()?;
        // Behind them may stand the score of an expert that all tokens have.
        let heard = rows.iter().map(|row| row[..self.num_experts].to_vec()).collect::<Vec<_>>();
        if let Some(float32) = &self.float32 {
            for (row, wanted) in rows.iter_mut().zip(&float32[name].rows) {
                let row = &mut row[..self.num_experts];
                if experts(routing, row) != experts(routing, wanted) {
                    row.copy_from_slice(wanted);
                }
            }
        }
        let scored = Scored { routing: routing.clone(), rows: heard };
        let before = self.heard.lock().expect("no panic").insert(name.to_owned(), scored);
        assert!(before.is_none(), "{name} runs once a step");
        Ok(Tensor::from_vec(rows.concat(), scores.shape().clone(), scores.device())?)
    }
}

/// The experts of a token.
fn experts(routing: &Routing, scores: &[f32]) -> BTreeSet<usize> {
    routing.choose(scores).into_iter().map(|(expert, _)| expert).collect()
}

/// What experts are ranked by, in the order that it makes.
fn ranks(routing: &Routing, scores: &[f32]) -> Vec<f32> {
    match (routing.scores, &routing.selection_bias) {
        (Scores::Sigmoid, Some(bias)) => {
            scores.iter().zip(bias).map(|(x, bias)| 1.0 / (1.0 + (-x).exp()) + bias).collect()
        }
        // A softmax changes no order, and neither does a sigmoid.
        _ => scores.to_vec(),
    }
}

/// How much the rank of an expert moves with its score, at the most.
fn slope(routing: &Routing) -> f32 {
    if routing.scores == Scores::Sigmoid && routing.selection_bias.is_some() { 0.25 } else { 1.0 }
}

/// Half of the sum of the two best ranks of each group: it moves no further than a rank does.
fn groups(routing: &Routing, ranks: &[f32]) -> Vec<f32> {
    let half_of_best_two = |group: &[f32]| {
        let mut group = group.to_vec();
        group.sort_by(|a, b| b.total_cmp(a));
        group.iter().take(2).sum::<f32>() / 2.0
    };
    ranks.chunks(ranks.len() / routing.groups.0).map(half_of_best_two).collect()
}

/// The places of the so many greatest.
fn greatest(numbers: &[f32], count: usize) -> BTreeSet<usize> {
    let mut places = (0..numbers.len()).collect::<Vec<_>>();
    places.sort_by(|a, b| numbers[*b].total_cmp(&numbers[*a]));
    places.into_iter().take(count).collect()
}

/// By how much float32 ranks the best that a token lost above the least that it got instead, experts or groups of them.
fn lead(routing: &Routing, float32: &[f32], rounded: &[f32]) -> f32 {
    let [wanted, got] = [float32, rounded].map(|scores| ranks(routing, scores));
    let [wanted_groups, got_groups] = [&wanted, &got].map(|ranks| groups(routing, ranks));
    let open = |groups: &[f32]| greatest(groups, routing.groups.1);
    let (numbers, before, after) = match (open(&wanted_groups), open(&got_groups)) {
        (before, after) if before != after => (wanted_groups, before, after),
        _ => (wanted, experts(routing, float32), experts(routing, rounded)),
    };
    let lost = before.difference(&after).map(|place| numbers[*place]).fold(f32::NEG_INFINITY, f32::max);
    let won = after.difference(&before).map(|place| numbers[*place]).fold(f32::INFINITY, f32::min);
    lost - won
}

/// Logits of all tokens, and what routers scored them.
fn run(driver: &mut Driver, listener: Listener, ids: &[TokenId]) -> (Vec<Vec<f32>>, Arc<Listener>) {
    let listener = Arc::new(listener);
    driver.observer = Some(Box::new(Arc::clone(&listener)));
    let logits = driver.all_logits(ids, ids.len());
    driver.observer = None;
    (logits, listener)
}

/// The scores of a token in float32 and in fewer bits.
struct Pair {
    token: usize,
    float32: Vec<f32>,
    rounded: Vec<f32>,
}

/// What was said of a prompt in both runs.
struct Runs {
    /// In float32, and in fewer bits with each token sent where float32 sends it; a row each token.
    logits: [Vec<Vec<f32>>; 2],
    /// By router.
    routers: BTreeMap<String, (Routing, Vec<Pair>)>,
}

/// A checkpoint's prompts through it in float32 and in fewer bits.
fn both_runs(name: &str, models: [Arc<dyn Model>; 2]) -> Vec<Runs> {
    let num_experts = config(name).moe.expect("experts").num_experts;
    let [mut exact, mut rounded] = models.map(Driver::new);
    let listener = |float32| Listener { num_experts, float32, heard: Mutex::default() };
    let heard = |listener: &Listener| std::mem::take(&mut *listener.heard.lock().expect("no panic"));
    let mut prompts = Vec::new();
    for prompt in golden(name).prompts {
        let ids = tokens(&prompt.ids);
        let plain = rounded.all_logits(&ids, ids.len());
        let (wanted, listened) = run(&mut exact, listener(None), &ids);
        let (got, listened) = run(&mut rounded, listener(Some(heard(&listened))), &ids);
        let (mut routers, mut first_flip) = (BTreeMap::new(), ids.len());
        for (router, Scored { routing, rows }) in heard(&listened) {
            let float32 = &listened.float32.as_ref().expect("was given")[&router].rows;
            let pairs = float32.iter().cloned().zip(rows).enumerate();
            let pairs = pairs.map(|(token, (float32, rounded))| Pair { token, float32, rounded }).collect::<Vec<_>>();
            let flipped = |pair: &&Pair| experts(&routing, &pair.float32) != experts(&routing, &pair.rounded);
            first_flip = pairs.iter().find(flipped).map_or(first_flip, |pair| first_flip.min(pair.token));
            routers.insert(router, (routing, pairs));
        }
        assert!(plain[..first_flip] == got[..first_flip], "{name}: who is not sent elsewhere is left alone");
        prompts.push(Runs { logits: [wanted, got], routers });
    }
    prompts
}

/// The logits of all tokens of a checkpoint's prompts, in float32 and in fewer bits, with each token sent where float32 sends it.
pub(super) fn sent_where_float32_sends(name: &str, models: [Arc<dyn Model>; 2]) -> Vec<[Vec<Vec<f32>>; 2]> {
    both_runs(name, models).into_iter().map(|runs| runs.logits).collect()
}

/// Holds that a model of experts in fewer bits, `models[1]`, gives float32's tokens the experts that they have there but where
/// rounding decides, and with those all logits within the bounds. Says how many tokens got others.
pub(super) fn hold_to_float32(name: &str, numbers: &str, models: [Arc<dyn Model>; 2], bounds: Bounds) -> usize {
    let mut routers = BTreeMap::<String, (Routing, Vec<Pair>)>::new();
    let (mut together, mut farthest) = (0.0f64, 0.0f64);
    for Runs { logits: [wanted, got], routers: of_prompt } in both_runs(name, models) {
        for (token, (row, exact)) in got.iter().zip(&wanted).enumerate() {
            let far = distance(row, exact);
            farthest = farthest.max(far);
            assert!(far < bounds.alone, "{name}, token {token} of {}: {far:e} away", wanted.len());
        }
        let far = distance(&got.concat(), &wanted.concat());
        together = together.max(far);
        assert!(far < bounds.together, "{name}, {} tokens: {far:e} away", wanted.len());
        for (router, (routing, pairs)) in of_prompt {
            routers.entry(router).or_insert_with(|| (routing, Vec::new())).1.extend(pairs);
        }
    }
    let (mut choices, mut flips, mut off, mut led) = (0, 0, 0.0f64, 0.0f32);
    for (router, (routing, pairs)) in &routers {
        let all = |of: fn(&Pair) -> &[f32]| pairs.iter().flat_map(of).copied().collect::<Vec<_>>();
        let (float32, rounded) = (all(|pair| &pair.float32), all(|pair| &pair.rounded));
        let far = distance(&rounded, &float32);
        assert!(far < bounds.scores, "{name}, {router}: scores are {far:e} away");
        (choices, off) = (choices + pairs.len(), off.max(far));
        let scale = (float32.iter().map(|x| x * x).sum::<f32>() / float32.len() as f32).sqrt();
        for Pair { token, float32, rounded } in pairs {
            if experts(routing, float32) != experts(routing, rounded) {
                let lead = lead(routing, float32, rounded) / scale / slope(routing);
                let most = LEAD * far.max(bounds.off);
                assert!((0.0..most).contains(&f64::from(lead)), "{name}, {router}, token {token}: {lead} apart");
                (flips, led) = (flips + 1, led.max(lead));
            }
        }
    }
    println!(
        "{name}: {flips} of {choices} choices are others in {numbers}, of experts up to {led:.4} of their router's scores apart; \
         scores are {off:.4} off, logits up to {together:.4}, those of one token up to {farthest:.4}"
    );
    assert!(choices > 0, "{name}: nothing was routed");
    flips
}

#[test]
fn in_bfloat16_tokens_get_float32s_experts_but_where_rounding_decides_and_with_those_all_logits_are_near() {
    let both = |name| [Dtype::Float32, Dtype::Bfloat16].map(|dtype| load_model(name, dtype));
    let flips: usize =
        ROUTED.iter().map(|name| hold_to_float32(name, "bfloat16", both(name), Bounds::bfloat16(name))).sum();
    assert!(flips > 0, "no token stood between two experts, so that this shows nothing of such");
}

#[test]
fn a_lead_is_that_of_experts_or_where_others_are_open_that_of_groups() {
    let plain = Routing {
        experts_per_token: 1,
        scores: Scores::SoftmaxOfTaken,
        renormalize: false,
        scale: 1.0,
        selection_bias: None,
        groups: (1, 1),
    };
    assert_eq!(lead(&plain, &[1.0, 1.5, 0.0], &[1.5, 1.25, 0.0]), 0.5);
    let grouped = Routing { groups: (2, 1), ..plain };
    // Of the groups' best two halves of 3 and 2.5; then of 3 and 3.5.
    assert_eq!(lead(&grouped, &[2.0, 1.0, 1.5, 1.0], &[2.0, 1.0, 2.5, 1.0]), 0.25);
    assert_eq!(lead(&grouped, &[2.0, 1.0, 0.0, 0.0], &[1.0, 1.5, 0.0, 0.0]), 1.0);
}
