//! What is sent: for each request when, how long its prompt is and what it consists of, and how long its answer.

use std::time::Duration;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::{BenchServeArgs, arrivals, trace};
use crate::error::Result;

/// Ids below this are left out of random prompts: most vocabularies have special tokens there.
const FIRST_ID: u32 = 3;
/// Vocabulary of a server that does not say: the bytes, which every vocabulary has near its beginning.
const VOCAB_SIZE: u32 = 256;
/// Streams of random numbers, so that a prompt does not depend on how many came before it.
const LENGTHS_STREAM: u64 = 1;
const ARRIVALS_STREAM: u64 = 2;
const PREFIX_STREAM: u64 = 3;
/// Of the prompt of request k: this and k. Of a trace's block: the seed is the block.
const FIRST_PROMPT_STREAM: u64 = 16;

/// One request to come.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Planned {
    /// After the start.
    pub at: Duration,
    pub input_tokens: u32,
    pub output_tokens: u32,
    /// Blocks of a trace.
    blocks: Vec<u64>,
    index: u64,
}

/// All requests to come.
pub(super) struct Workload {
    pub requests: Vec<Planned>,
    seed: u64,
    vocab_size: u32,
    prefix_tokens: u32,
}

impl Workload {
    /// Draws arrivals and lengths, or reads them. `vocab_size` is what the server says of itself.
    ///
    /// # Errors
    /// What is wrong with a trace, or with a rate.
    pub(super) fn plan(args: &BenchServeArgs, vocab_size: Option<u32>) -> Result<Self> {
        let n = args.num_prompts as usize;
        let mut requests = match &args.dataset_path {
            Some(path) => {
                let recorded = trace::read(path, n)?;
                let seconds: Vec<_> = recorded.iter().map(|recorded| recorded.at).collect();
                let times = arrivals::replayed(&seconds, args.request_rate)?;
                let planned = recorded.into_iter().zip(times).zip(0..).map(|((recorded, at), index)| {
                    let trace::Recorded { input_tokens, output_tokens, blocks, .. } = recorded;
                    Planned { at, input_tokens, output_tokens, blocks, index }
                });
                planned.collect()
            }
            None => Self::random(args)?,
        };
        for request in &mut requests {
            request.input_tokens = request.input_tokens.min(args.max_input_len.unwrap_or(u32::MAX));
            request.output_tokens = request.output_tokens.min(args.max_output_len.unwrap_or(u32::MAX));
        }
        let vocab_size = args.vocab_size.or(vocab_size).unwrap_or(VOCAB_SIZE).max(FIRST_ID + 1);
        let prefix_tokens = if args.dataset_path.is_some() { 0 } else { args.random_prefix_len };
        Ok(Self { requests, seed: args.seed, vocab_size, prefix_tokens })
    }

    fn random(args: &BenchServeArgs) -> Result<Vec<Planned>> {
        let n = args.num_prompts as usize;
        let rate = args.request_rate.unwrap_or(f64::INFINITY);
        let times = arrivals::drawn(n, rate, args.burstiness, &mut stream(args.seed, ARRIVALS_STREAM))?;
        let mut lengths = stream(args.seed, LENGTHS_STREAM);
        let mut length = |mean: u32| {
            let spread = f64::from(mean) * args.random_range_ratio;
            let (least, most) = ((f64::from(mean) - spread).floor() as u32, (f64::from(mean) + spread).ceil() as u32);
            (least + below(&mut lengths, most - least + 1)).max(1)
        };
        let planned = times.into_iter().zip(0..).map(|(at, index)| Planned {
            at,
            input_tokens: length(args.random_input_len).saturating_add(args.random_prefix_len),
            output_tokens: length(args.random_output_len),
            blocks: Vec::new(),
            index,
        });
        Ok(planned.collect())
    }

    /// The prompt of a request, made anew each time that it is asked for.
    pub(super) fn prompt(&self, request: &Planned) -> Vec<u32> {
        let n = request.input_tokens as usize;
        let mut ids = Vec::with_capacity(n);
        self.draw(&mut ids, n.min(self.prefix_tokens as usize), stream(self.seed, PREFIX_STREAM));
        for &block in &request.blocks {
            let wanted = (n - ids.len()).min(trace::BLOCK_TOKENS);
            self.draw(&mut ids, wanted, stream(self.seed, FIRST_PROMPT_STREAM.wrapping_add(block)));
        }
        let own = FIRST_PROMPT_STREAM.wrapping_add(request.index);
        let rest = n - ids.len();
        self.draw(&mut ids, rest, stream(!self.seed, own));
        ids
    }

    fn draw(&self, ids: &mut Vec<u32>, n: usize, mut random: ChaCha8Rng) {
        ids.extend((0..n).map(|_| FIRST_ID + below(&mut random, self.vocab_size - FIRST_ID)));
    }
}

fn stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    random
}

/// A number below `n`, which is at least 1. Off by less than one in four billion from even.
fn below(random: &mut ChaCha8Rng, n: u32) -> u32 {
    ((u64::from(random.next_u32()) * u64::from(n)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchServeArgs,
    }

    fn plan(line: &str) -> Workload {
        let line = std::iter::once("serve").chain(line.split_whitespace());
        Workload::plan(&Line::try_parse_from(line).unwrap().args, None).unwrap()
    }

    #[test]
    fn random_lengths_stay_in_their_range_and_reach_its_ends() {
        let workload = plan("--num-prompts 500 --random-input-len 10 --random-range-ratio 0.2 --random-output-len 5");
        let lengths: Vec<_> = workload.requests.iter().map(|request| request.input_tokens).collect();
        assert_eq!((lengths.iter().min(), lengths.iter().max()), (Some(&8), Some(&12)));
        assert!(workload.requests.iter().all(|request| (4..=6).contains(&request.output_tokens)));
        assert!(plan("--random-range-ratio 1").requests.iter().all(|request| request.input_tokens > 0));
    }

    #[test]
    fn prompts_are_as_long_as_planned_repeatable_and_differ() {
        let flags = "--num-prompts 3 --random-input-len 40 --random-prefix-len 10 --vocab-size 100 --seed 4";
        let (workload, again) = (plan(flags), plan(flags));
        let prompts: Vec<_> = workload.requests.iter().map(|request| workload.prompt(request)).collect();
        assert!(prompts.iter().all(|prompt| prompt.len() == 50 && prompt.iter().all(|id| (3..100).contains(id))));
        assert_eq!(prompts[0][..10], prompts[1][..10]);
        assert_ne!(prompts[0][10..], prompts[1][10..]);
        assert_eq!(prompts[2], again.prompt(&again.requests[2]));
        let other = plan("--num-prompts 3 --random-input-len 40 --random-prefix-len 10 --vocab-size 100 --seed 5");
        assert_ne!(prompts[0], other.prompt(&other.requests[0]));
    }

    #[test]
    fn blocks_of_a_trace_are_shared_and_lengths_are_capped() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for (time, length, blocks) in [(0, 600, "[7, 8]"), (1, 600, "[7, 9]"), (2, 5000, "[7]")] {
            let line = format!(
                r#"{{"timestamp": {time}, "input_length": {length}, "output_length": 9, "hash_ids": {blocks}}}"#
            );
            writeln!(file, "{line}").unwrap();
        }
        let path = file.path().display();
        let workload = plan(&format!("--dataset-path {path} --max-input-len 1024 --max-output-len 4"));
        let prompts: Vec<_> = workload.requests.iter().map(|request| workload.prompt(request)).collect();
        assert_eq!(prompts.iter().map(Vec::len).collect::<Vec<_>>(), [600, 600, 1024]);
        assert!(prompts.iter().all(|prompt| prompt[..512] == prompts[0][..512]));
        assert_ne!(prompts[0][512..], prompts[1][512..]);
        assert!(workload.requests.iter().all(|request| request.output_tokens == 4));
    }
}
