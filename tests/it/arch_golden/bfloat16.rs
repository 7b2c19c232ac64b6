//! Models in bfloat16 beside float32, token by token, and beside how far transformers' own bfloat16 is from its float32, which
//! `tests/oracles/bfloat16.py` measured, and how far ours was when `tests/fixtures/bfloat16.json` was last written. To write ours anew:
//! `CANDLEWICK_WRITE_BFLOAT16=1 cargo test --test it arch_golden::bfloat16`.

use std::{collections::BTreeMap, fs};

use candlewick::config::Dtype;
use serde::Deserialize;

use super::{
    CHECKPOINTS, ROUTED,
    driver::{Driver, distance, golden, growth, load_model, tokens},
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

    /// As the script writes it.
    fn written(&self) -> String {
        let [together, farthest] = [self.together, self.farthest].map(|far| (far * 1e6).round() / 1e6);
        format!("{{\"together\": {together}, \"farthest\": {farthest}}}")
    }

    fn max(self, other: Self) -> Self {
        Self { together: self.together.max(other.together), farthest: self.farthest.max(other.farthest) }
    }
}

/// What was measured of a checkpoint's prompts.
#[derive(Deserialize)]
struct Measured {
    transformers: Vec<Far>,
    candlewick: Vec<Far>,
}

/// The fixture with what was measured.
fn written(measured: &BTreeMap<String, Measured>) -> String {
    let list = |all: &[Far]| all.iter().map(Far::written).collect::<Vec<_>>().join(", ");
    let row = |(name, Measured { transformers, candlewick }): (&String, &Measured)| {
        let (theirs, ours) = (list(transformers), list(candlewick));
        format!("\"{name}\": {{\"transformers\": [{theirs}], \"candlewick\": [{ours}]}}")
    };
    format!("{{\n{}\n}}\n", measured.iter().map(row).collect::<Vec<_>>().join(",\n"))
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
fn each_tokens_logits_in_bfloat16_are_near_float32_where_transformers_are_and_as_near_as_they_were() {
    let fixture = repository("tests/fixtures/bfloat16.json");
    let known = fs::read_to_string(&fixture).expect("is there");
    let mut measured: BTreeMap<String, Measured> = serde_json::from_str(&known).expect("as the script writes it");
    let writes = std::env::var_os("CANDLEWICK_WRITE_BFLOAT16").is_some();
    println!(
        "| Checkpoint | transformers: together | a token | candlewick: together | a token |\n|---|---|---|---|---|"
    );
    for name in CHECKPOINTS {
        let ours = ours(name);
        let Measured { transformers, candlewick } = measured.get_mut(name).expect("the script measured it");
        if writes {
            candlewick.clone_from(&ours);
        }
        assert_eq!(ours.len(), transformers.len(), "{name}: the script is to measure it");
        assert_eq!(ours.len(), candlewick.len(), "{name}: ours is to be written anew");
        let [most, most_theirs] = [&ours, transformers].map(|all| all.iter().copied().fold(Far::default(), Far::max));
        let percent = |far: Far| format!("{:.2} % | {:.2} %", 100.0 * far.together, 100.0 * far.farthest);
        println!("| {name} | {} | {} |", percent(most_theirs), percent(most));
        for ((ours, theirs), was) in ours.iter().zip(transformers).zip(candlewick) {
            for (what, ours, theirs, was) in [
                ("all tokens", ours.together, theirs.together, was.together),
                ("one token", ours.farthest, theirs.farthest, was.farthest),
            ] {
                assert!(ours < theirs.max(BOUND), "{name}, {what}: {ours} away, transformers {theirs}");
                assert!(ours < growth() * was, "{name}, {what}: {ours} away, was {was}");
            }
        }
    }
    if writes {
        fs::write(fixture, written(&measured)).expect("is written");
    }
}
