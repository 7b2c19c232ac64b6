//! Steps of decoding that are filled up with rows of nobody, as cards have them recorded.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use candle_core::{Device, Tensor};
use candlewick::{
    arch::{Model, ModelInfo, config::ModelConfig},
    config::Dtype,
    error::Result,
    ids::TokenId,
    layers::{
        context::{KvCache, StepContext},
        lora::AdaptableLinear,
        state::StateCache,
    },
};

use super::{crowd::crowd_of, driver::load_model};

/// A model, and how often it ran over so many tokens whose ids stood on the device.
struct Counted {
    model: Arc<dyn Model>,
    runs: Mutex<BTreeMap<usize, usize>>,
}

impl Model for Counted {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }
    fn info(&self) -> &ModelInfo {
        self.model.info()
    }
    fn prefixes_are_shared(&self) -> bool {
        self.model.prefixes_are_shared()
    }
    fn adaptable(&self) -> (&[AdaptableLinear], &Device) {
        self.model.adaptable()
    }
    fn hidden(&self, token_ids: &[TokenId], step: &StepContext<'_>) -> Result<Tensor> {
        if step.placed_ids.is_some() {
            *self.runs.lock().unwrap().entry(token_ids.len()).or_default() += 1;
        }
        self.model.hidden(token_ids, step)
    }
    fn logits(&self, hidden: &Tensor, logit_rows: &[u32], step: &StepContext<'_>) -> Result<Tensor> {
        self.model.logits(hidden, logit_rows, step)
    }
    fn states(&self, hidden: &Tensor, rows: &[u32]) -> Result<Tensor> {
        self.model.states(hidden, rows)
    }
    fn new_kv_cache(&self, num_blocks: usize, block_size: usize) -> Result<KvCache> {
        self.model.new_kv_cache(num_blocks, block_size)
    }
    fn new_states(&self, num_slots: usize) -> Result<Option<StateCache>> {
        self.model.new_states(num_slots)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_nobody_change_no_bit_of_anybodys_answer() {
    // Full attention, two groups with windows, learned positions, experts.
    for name in ["llama", "gemma3_text", "gpt2", "qwen3_moe"] {
        let of = |filled_rows| async move {
            let model = Arc::new(Counted { model: load_model(name, Dtype::Bfloat16), runs: Mutex::default() });
            let (engine, said) = crowd_of(name, model.clone(), filled_rows).await;
            assert!(engine.telemetry().totals().preemptions > 0, "{name}");
            let runs = model.runs.lock().unwrap().clone();
            (said, runs, model.adaptable().1.is_cpu())
        };
        let (as_they_come, runs, on_cpu) = of(0).await;
        assert!(runs.is_empty() || !on_cpu, "{name}: {runs:?}");
        // Larger steps, and those with prompts, come as they are.
        let (filled_up, runs, _) = of(12).await;
        assert!(filled_up == as_they_come, "{name}: an answer depends on rows of nobody");
        let sizes: Vec<usize> = runs.keys().copied().collect();
        assert!(sizes == [1, 2, 4, 8, 12] || !on_cpu, "{name}: {runs:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_keeps_states_has_its_steps_as_they_come() {
    let name = "qwen3_5";
    let model = || load_model(name, Dtype::Bfloat16);
    let (_, as_they_come) = crowd_of(name, model(), 0).await;
    let (_, filled_up) = crowd_of(name, model(), 12).await;
    assert!(filled_up == as_they_come);
}
