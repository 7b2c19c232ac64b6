//! A drill: an engine that panics once because it was asked to, so that clients, alarms and the way back can be tried on a
//! server that is otherwise as it will run.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    executor::{Executor, StepOutput, StepPlan},
    supervisor::ExecutorFactory,
};
use crate::error::Result;

/// The first executor of `factory` that is given a step once `after` has passed panics over it; all others do their work.
#[must_use]
pub fn panics_once(factory: ExecutorFactory, after: Duration) -> ExecutorFactory {
    let drill = Arc::new(Drill { began: Instant::now(), after, is_over: AtomicBool::new(false) });
    Arc::new(move || Ok(Box::new(Drilled { executor: factory()?, drill: drill.clone() })))
}

/// Shared by all lives of an engine.
struct Drill {
    began: Instant,
    after: Duration,
    is_over: AtomicBool,
}

impl Drill {
    fn is_due(&self) -> bool {
        self.began.elapsed() >= self.after && !self.is_over.swap(true, Ordering::Relaxed)
    }
}

/// An executor, and what befalls it.
struct Drilled {
    executor: Box<dyn Executor + Send>,
    drill: Arc<Drill>,
}

impl Executor for Drilled {
    fn submit(&mut self, plan: &StepPlan) -> Result<()> {
        assert!(!self.drill.is_due(), "this is the panic that --engine-panic-after asked for");
        self.executor.submit(plan)
    }

    fn collect(&mut self) -> Result<StepOutput> {
        self.executor.collect()
    }

    fn max_tokens_per_step(&self) -> usize {
        self.executor.max_tokens_per_step()
    }

    fn runs_ahead(&self) -> bool {
        self.executor.runs_ahead()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::{
        config::EngineConfig,
        engine::fake::{FakeExecutor, FakeOptions},
    };

    fn fakes() -> ExecutorFactory {
        Arc::new(|| Ok(Box::new(FakeExecutor::new(&EngineConfig::default(), FakeOptions::default()))))
    }

    #[test]
    fn one_step_panics_whichever_life_has_it_and_no_other_does() {
        let factory = panics_once(fakes(), Duration::ZERO);
        let (mut first, mut second) = (factory().unwrap(), factory().unwrap());
        assert!(catch_unwind(AssertUnwindSafe(|| first.submit(&StepPlan::default()))).is_err());
        for _ in 0..3 {
            second.submit(&StepPlan::default()).unwrap();
            second.collect().unwrap();
        }
    }

    #[test]
    fn nothing_happens_before_its_time() {
        let mut executor = panics_once(fakes(), Duration::MAX)().unwrap();
        executor.submit(&StepPlan::default()).unwrap();
    }
}
