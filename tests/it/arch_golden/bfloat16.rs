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

/// What was measured of all checkpoints.
const FIXTURE: &str = "tests/fixtures/bfloat16.json";
/// How far from float32 logits may be, as a share of their length, where transformers' own bfloat16 is nearer.
pub(super) const BOUND: f64 = 2e-2;

/// How far the logits of a prompt are from float32's, as a share of their length.
#[derive(Clone, Copy, Default, Deserialize)]
pub(super) struct Far {
    /// Of all tokens together.
    pub(super) together: f64,
    /// Of the farthest token.
    pub(super) farthest: f64,
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

    pub(super) fn max(self, other: Self) -> Self {
        Self { together: self.together.max(other.together), farthest: self.farthest.max(other.farthest) }
    }
}

/// What was measured of a checkpoint's prompts.
#[derive(Deserialize)]
struct Measured {
    transformers: Vec<Far>,
    candlewick: Vec<Far>,
}

/// What was measured, by checkpoint.
fn all_measured() -> BTreeMap<String, Measured> {
    let fixture = fs::read_to_string(repository(FIXTURE)).expect("is there");
    serde_json::from_str(&fixture).expect("as the script writes it")
}

/// How far from float32 the logits of each of a checkpoint's prompts may be where inputs are rounded to bfloat16: [`BOUND`], or as
/// far as transformers' own bfloat16 is.
pub(super) fn allowed(name: &str) -> Vec<Far> {
    let least = Far { together: BOUND, farthest: BOUND };
    all_measured()[name].transformers.iter().map(|theirs| theirs.max(least)).collect()
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
    let mut measured = all_measured();
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
        for ((ours, allowed), was) in ours.iter().zip(allowed(name)).zip(candlewick) {
            for (what, ours, allowed, was) in [
                ("all tokens", ours.together, allowed.together, was.together),
                ("one token", ours.farthest, allowed.farthest, was.farthest),
            ] {
                assert!(ours < allowed, "{name}, {what}: {ours} away, {allowed} is allowed");
                assert!(ours < growth() * was, "{name}, {what}: {ours} away, was {was}");
            }
        }
    }
    if writes {
        fs::write(repository(FIXTURE), written(&measured)).expect("is written");
    }
}
