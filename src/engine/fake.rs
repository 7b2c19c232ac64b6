//! An executor without arithmetic; API sketch, bodies follow.
use std::sync::Arc;
use super::executor::{Executor, StepOutput, StepPlan};
use crate::{config::EngineConfig, error::Result, ids::TokenId};

/// How a fake behaves; `FakeOptions { lag: .., ..FakeOptions::default() }`.
#[derive(Clone, Debug, Default)]
pub struct FakeOptions {
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Tokens a sequence gains a step at most; how many is drawn.
    pub max_tokens_per_step: usize,
    /// Chance, in 256ths, that a sequence's tokens come with a later step.
    pub lag: u8,
    /// Of what is drawn.
    pub seed: u64,
    /// What to do to the engine, at which step (`StepPlan::step`).
    pub mishap: Option<(u64, Mishap)>,
}
/// What can befall an engine.
#[derive(Clone, Debug)]
pub enum Mishap {
    /// `submit` panics.
    Panic,
    /// `submit` fails.
    Fail,
    /// `collect` waits for the gate.
    Hang(Arc<Gate>),
}
/// Shut until somebody opens it.
#[derive(Debug, Default)]
pub struct Gate {}
impl Gate {
    /// Lets all through, now and later.
    pub fn open(&self) {}
    /// Waits for `open`.
    pub fn wait(&self) {}
}
/// The fake.
pub struct FakeExecutor {}
impl FakeExecutor {
    /// With a KV cache as `config` says.
    pub fn new(_config: &EngineConfig, _options: FakeOptions) -> Self {
        unimplemented!()
    }
    /// What comes after `prompt` if nothing goes wrong, ends not considered.
    pub fn expected(_vocab_size: u32, _prompt: &[TokenId], _n: usize) -> Vec<TokenId> {
        unimplemented!()
    }
}
impl Executor for FakeExecutor {
    fn submit(&mut self, _plan: &StepPlan) -> Result<()> {
        unimplemented!()
    }
    fn collect(&mut self) -> Result<StepOutput> {
        unimplemented!()
    }
}
