//! Models in bfloat16 beside float32, token by token, and beside how far transformers' own bfloat16 is from its float32, which
//! `tests/oracles/bfloat16.py` measured.

use std::{collections::BTreeMap, fs};

use candlewick::config::Dtype;
use serde::Deserialize;

use super::{
    CHECKPOINTS, ROUTED,
    driver::{Driver, distance, golden, load_model, tokens},
    experts::sent_where_float32_sends,
};
use crate::place::repository;

/// How far from float32 logits may be, as a share of their length.
const BOUND: f64 = 2e-2;

/// How far the logits of a prompt are from float32's, as a share of their length.
#[derive(Clone, Copy, Default, Deserialize)]
struct Far {
    /// Of all tokens together.
    together: f64,
    /// Of the farthest token.
    farthest: f64,
}

impl Far {
    fn of(rows: &[Vec<f32>], exact: &[Vec<f32>]) -> Self {
        let farthest = rows.iter().zip(exact).map(|(row, exact)| distance(row, exact)).fold(0.0, f64::max);
        Self { together: distance(&rows.concat(), &exact.concat()), farthest }
    }

    fn max(self, other: Self) -> Self {
        Self { together: self.together.max(other.together), farthest: self.farthest.max(other.farthest) }
    }
}

/// Ours of a checkpoint's prompts; tokens that choose experts are given those of float32.
fn ours(name: &str) -> Vec<Far> {
    let models = [Dtype::Float32, Dtype::Bfloat16].map(|dtype| load_model(name, dtype));
    if ROUTED.contains(&name) {
        return sent_where_float32_sends(name, models).iter().map(|[exact, rows]| Far::of(rows, exact)).collect();
    }
    let mut drivers = models.map(Driver::new);
    let far = |prompt: &[u32]| {
        let ids = tokens(prompt);
        let [exact, rows] = drivers.each_mut().map(|driver| driver.all_logits(&ids, ids.len()));
        Far::of(&rows, &exact)
    };
    golden(name).prompts.iter().map(|prompt| prompt.ids.as_slice()).map(far).collect()
}

#[test]
fn each_tokens_logits_in_bfloat16_are_near_float32_where_transformers_are() {
    let measured = fs::read_to_string(repository("tests/fixtures/bfloat16.json")).expect("is there");
    let measured: BTreeMap<String, Vec<Far>> = serde_json::from_str(&measured).expect("as the script writes it");
    println!(
        "| Checkpoint | transformers: together | a token | candlewick: together | a token |\n|---|---|---|---|---|"
    );
    for name in CHECKPOINTS {
        let (ours, theirs) = (ours(name), &measured[name]);
        assert_eq!(ours.len(), theirs.len(), "{name}");
        let [most, most_theirs] = [&ours, theirs].map(|all| all.iter().copied().fold(Far::default(), Far::max));
        let percent = |far: Far| format!("{:.2} % | {:.2} %", 100.0 * far.together, 100.0 * far.farthest);
        println!("| {name} | {} | {} |", percent(most_theirs), percent(most));
        for (ours, theirs) in ours.iter().zip(theirs) {
            for (what, ours, theirs) in
                [("all tokens", ours.together, theirs.together), ("one token", ours.farthest, theirs.farthest)]
            {
                assert!(ours < theirs.max(BOUND), "{name}, {what}: {ours} away, transformers {theirs}");
            }
        }
    }
}
