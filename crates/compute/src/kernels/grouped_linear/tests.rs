//! Experts over rows that stand by expert, against each token's own Linears.

use std::sync::Arc;

use candle_core::{DType, Device};

use super::*;
use crate::kernels::{
    linear::{
        Extras,
        format::{RawTensor, WeightFormat},
        linear,
    },
    route::{Router, Routing, Scores, route},
    test_data::{bits, floats, random, rng},
};

fn weight(rng: &mut rand::rngs::StdRng, outputs: usize, inputs: usize) -> Arc<PackedWeight> {
    let numbers = floats(rng, outputs * inputs);
    let bytes = bytemuck::cast_slice::<f32, u8>(&numbers).to_vec().into();
    let raw = RawTensor { format: WeightFormat::F32.into(), shape: vec![outputs, inputs], bytes };
    Arc::new(PackedWeight::pack(&raw, WeightFormat::F32, &Device::Cpu).unwrap())
}

#[test]
fn each_row_goes_through_the_expert_that_its_token_chose() {
    let (mut rng, experts, tokens) = (rng(1), 5, 40);
    let weights: Vec<_> = (0..experts).map(|_| weight(&mut rng, 12, 30)).collect();
    let biases = random(&mut rng, &[experts, 12]);
    let all = ExpertWeights::new(weights.clone(), Some(biases.clone())).unwrap();
    assert!(!all.is_one_launch(), "there is no card");
    let (x, scores) = (random(&mut rng, &[tokens, 30]), random(&mut rng, &[tokens, experts]));
    let (rules, groups) = (Scores::Softmax, (1, 1));
    let rules =
        Routing { experts_per_token: 2, scores: rules, renormalize: true, scale: 1.0, selection_bias: None, groups };
    let routes = route(&scores, &Router::new(&rules, experts).unwrap()).unwrap();
    let got = grouped_linear(Inputs::Rows(&x), Some(&routes.tokens), &all, &routes.tiles).unwrap();
    let places: Vec<u32> = routes.places.to_vec1().unwrap();
    for (token, scores) in scores.to_vec2::<f32>().unwrap().iter().enumerate() {
        for (rank, (expert, _)) in rules.choose(scores).into_iter().enumerate() {
            let bias = biases.get(expert).unwrap();
            let extras = Extras { bias: Some(&bias), ..Extras::default() };
            let want = linear(Inputs::Rows(&x.narrow(0, token, 1).unwrap()), &weights[expert], extras).unwrap();
            let place = places[token * 2 + rank] as usize;
            assert_eq!(bits(&got.narrow(0, place, 1).unwrap()), bits(&want), "token {token}, expert {expert}");
        }
    }
    // Rows as they come: those that were gathered already.
    let gathered = x.index_select(&routes.tokens, 0).unwrap();
    let again = grouped_linear(Inputs::Rows(&gathered), None, &all, &routes.tiles).unwrap();
    assert_eq!(bits(&again), bits(&got));
}

#[test]
fn no_rows_make_none_and_what_does_not_fit_is_refused() {
    let mut rng = rng(2);
    let weights: Vec<_> = (0..2).map(|_| weight(&mut rng, 3, 4)).collect();
    let tiles = |bounds: &[[u32; 3]]| {
        let bounds = Tensor::from_slice(bounds.as_flattened(), (bounds.len(), 3), &Device::Cpu).unwrap();
        Tiles { bounds, rows: 16 }
    };
    let all = ExpertWeights::new(weights.clone(), None).unwrap();
    let none = Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap();
    let made = grouped_linear(Inputs::Rows(&none), None, &all, &tiles(&[[u32::MAX; 3]])).unwrap();
    assert_eq!(made.dims(), [0, 3]);
    let x = random(&mut rng, &[2, 4]);
    let refused = |x: &Tensor, bounds: &[[u32; 3]]| {
        grouped_linear(Inputs::Rows(x), None, &all, &tiles(bounds)).unwrap_err().message
    };
    assert!(refused(&x, &[[0, 0, 1]]).contains("of 1 rows, not of 2"));
    assert!(refused(&x, &[[2, 0, 2]]).contains("no expert 2"));
    assert!(refused(&random(&mut rng, &[2, 5]), &[[0, 0, 2]]).contains("5 inputs for 4"));
    assert!(ExpertWeights::new(Vec::new(), None).is_err());
    assert!(ExpertWeights::new(vec![Arc::clone(&weights[0]), weight(&mut rng, 4, 4)], None).is_err());
    assert!(ExpertWeights::new(weights, Some(random(&mut rng, &[3]))).is_err());
}
