//! Models with weights and inputs of eight-bit floats beside float32, and beside themselves in chunks. On the CPU these products
//! are loops that nobody is served by; on a card that is named they are those that it serves with.

use std::sync::Arc;

use candlewick::{
    arch::Model,
    config::{Dtype, Quantization},
    weights::{Weights, safetensors::SafetensorsSource},
};

use super::{
    CHECKPOINTS, ROUTED,
    driver::{Driver, config, distance, fixture, golden, growth, lacks_fp8, load_model, load_quantized, tokens},
};

/// How far from float32 the logits of a prompt's tokens were measured to be together at the most, as a share of their length, on
/// the CPU: two roundings to four bits, which random weights magnify. `quality.rs` says what trained ones lose.
const MEASURED: f64 = 0.306;

/// Whether rounding moves logits by no more than a bound that says something. A token that gets another expert has other logits,
/// however near the two stood, and what recurrent layers keep magnifies rounding further.
fn is_bounded(name: &str) -> bool {
    !ROUTED.contains(&name) && !name.starts_with("qwen3_5")
}

fn load_fp8(name: &str) -> Arc<dyn Model> {
    let weights = Weights::new(Box::new(SafetensorsSource::open(&fixture(name)).expect("safetensors")));
    load_quantized(&weights, &config(name), Dtype::Auto, Some(Quantization::Fp8))
}

#[test]
fn logits_of_eight_bit_floats_are_near_float32s_and_the_same_in_one_piece_and_in_chunks() {
    if lacks_fp8() {
        return;
    }
    for name in CHECKPOINTS {
        let model = load_fp8(name);
        assert_eq!(model.info().dtype, "fp8", "{name}");
        let (mut driver, mut exact) = (Driver::new(model), Driver::new(load_model(name, Dtype::Float32)));
        for prompt in golden(name).prompts {
            let ids = tokens(&prompt.ids);
            let whole = driver.all_logits(&ids, ids.len());
            assert!(driver.all_logits(&ids, 5) == whole, "{name}, {} tokens: chunks of 5 differ", ids.len());
            if is_bounded(name) {
                let far = distance(&whole.concat(), &exact.all_logits(&ids, ids.len()).concat());
                assert!(far > 1e-3 && far < growth() * MEASURED, "{name}, {} tokens: {far:e} away", ids.len());
            }
        }
    }
}
