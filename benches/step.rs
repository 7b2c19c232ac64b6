//! What scheduling costs a sequence a step, in nanoseconds: `schedule` and `apply` around a fake executor, which is
//! not timed, with 1 to 1,024 sequences decoding; and with 256 of several tenants, while as many wait. Medians over the
//! steps.
//!
//! `cargo bench --bench step`, or with `-- --json` one JSON object a line.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use candlewick::{
    config::EngineConfig,
    engine::{
        executor::{Executor, StepPlan},
        fake::{FakeExecutor, FakeOptions},
        scheduler::Scheduler,
        sequence::{Reader, Sequence},
    },
    error::Result,
    ids::{SequenceId, TokenId},
    params::SamplingParams,
};

const PROMPT_TOKENS: usize = 48;
const STEPS: usize = 300;

/// Always has room, but has to be asked.
struct Eager(AtomicUsize);

impl Reader for Eager {
    fn room(&self) -> usize {
        self.0.load(Relaxed)
    }

    fn capacity(&self) -> usize {
        64
    }

    fn cancelled(&self) -> bool {
        false
    }
}

/// Nanoseconds a running sequence a step: planning, and taking in the output. Sequences belong to so many tenants in turn,
/// and so many more wait.
fn measure(num_sequences: usize, num_tenants: usize, num_waiting: usize) -> Result<(f64, f64)> {
    let max_model_len = PROMPT_TOKENS + STEPS + 1;
    let config = EngineConfig {
        num_blocks: (num_sequences + num_waiting) * max_model_len.div_ceil(16),
        max_num_seqs: num_sequences,
        max_num_batched_tokens: num_sequences * PROMPT_TOKENS, // All prompts in the first step, then decodes only.
        max_model_len,
        ..EngineConfig::default()
    };
    let mut scheduler = Scheduler::new(&config, 1);
    let mut executor = FakeExecutor::new(&config, FakeOptions { vocab_size: 32_000, ..FakeOptions::default() });
    let params = Arc::new(SamplingParams { ignore_eos: true, ..SamplingParams::default() });
    for id in 0..num_sequences + num_waiting {
        let prompt = (0..PROMPT_TOKENS).map(|i| TokenId((id * 31 + i) as u32)).collect();
        let reader = Arc::new(Eager(AtomicUsize::new(64)));
        let mut sequence = Sequence::new(SequenceId(id as u64), prompt, params.clone(), reader);
        sequence.tenant = Some(format!("{}", id % num_tenants).into());
        scheduler.add(sequence)?;
    }

    let (mut plan, mut events) = (StepPlan::default(), Vec::new());
    let (mut schedule, mut apply) = (Vec::with_capacity(STEPS), Vec::with_capacity(STEPS));
    while scheduler.has_work() && plan.step < STEPS as u64 {
        let start = Instant::now();
        let submit = scheduler.schedule(start, &mut plan, &mut events);
        let scheduled = start.elapsed();
        if !submit {
            continue;
        }
        executor.submit(&plan)?;
        let output = executor.collect()?;
        let start = Instant::now();
        scheduler.apply(output, &mut events)?;
        let applied = start.elapsed();
        events.clear();
        if plan.rows.len() == num_sequences && plan.token_ids.len() == num_sequences {
            schedule.push(scheduled);
            apply.push(applied);
        }
    }
    Ok((median(schedule) / num_sequences as f64, median(apply) / num_sequences as f64))
}

/// In nanoseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(f64::NAN, |time| time.as_nanos() as f64)
}

fn main() -> Result<()> {
    let cases = [1, 4, 16, 64, 256, 1024].map(|sequences| (sequences, 1, 0));
    let shared = [(256, 1, 256), (256, 16, 256), (256, 256, 256)];
    let json = std::env::args().any(|argument| argument == "--json");
    if !json {
        println!(
            "{:>10} {:>8} {:>8} {:>12} {:>12}   ns a sequence a step",
            "sequences", "tenants", "waiting", "schedule", "apply"
        );
    }
    for (num_sequences, tenants, waiting) in cases.into_iter().chain(shared) {
        let (schedule_ns, apply_ns) = measure(num_sequences, tenants, waiting)?;
        if json {
            println!(
                r#"{{"bench":"step","sequences":{num_sequences},"tenants":{tenants},"waiting":{waiting},"schedule_ns":{schedule_ns:.1},"apply_ns":{apply_ns:.1}}}"#
            );
        } else {
            println!("{num_sequences:>10} {tenants:>8} {waiting:>8} {schedule_ns:>12.1} {apply_ns:>12.1}");
        }
    }
    Ok(())
}
