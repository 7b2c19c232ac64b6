//! Checkpoints as GPTQ, AWQ and FP8 store them, against transformers on the weights that they stand for
//! (`tests/oracles/make_quantized.py` widens them by the formulas that the quantizers' authors published).

use candlewick::config::Dtype;

use super::driver::{Driver, argmax, distance, golden, load_model, tokens};

/// Checkpoints, and the formats that their Linears are kept in where nothing else is asked for.
const QUANTIZED: [(&str, &str); 3] = [("llama-gptq", "q8_0"), ("llama-awq", "q8_0"), ("llama-fp8", "bfloat16")];

#[test]
fn quantized_checkpoints_give_the_logits_and_tokens_of_the_weights_that_they_stand_for() {
    for (name, _) in QUANTIZED {
        let mut driver = Driver::new(load_model(name, Dtype::Float32));
        for prompt in golden(name).prompts {
            let ids = tokens(&prompt.ids);
            let logits = driver.all_logits(&ids, ids.len());
            let far = distance(&logits[ids.len() - 1], &prompt.last_logits);
            assert!(far < 1e-4, "{name}, {} tokens: {far:e} away", ids.len());
            let best = logits.iter().map(|logits| argmax(logits)).collect::<Vec<_>>();
            assert_eq!(best, prompt.argmax, "{name}, {} tokens", ids.len());
            assert_eq!(driver.greedy(&ids, prompt.greedy.len()), prompt.greedy, "{name}, {} tokens", ids.len());
        }
    }
}

#[test]
fn quantized_checkpoints_are_kept_as_they_are_and_stay_near() {
    for (name, format) in QUANTIZED {
        let model = load_model(name, Dtype::Auto);
        assert_eq!(model.info().dtype, format, "{name}");
        let mut driver = Driver::new(model);
        for prompt in golden(name).prompts {
            let ids = tokens(&prompt.ids);
            let logits = driver.all_logits(&ids, ids.len());
            let far = distance(&logits[ids.len() - 1], &prompt.last_logits);
            // Inputs are rounded to eight bits, or to bfloat16.
            assert!(far < 5e-2, "{name} in {format}, {} tokens: {far:e} away", ids.len());
        }
    }
}
