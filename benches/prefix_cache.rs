//! How often the prefix cache has what is asked for, beside an ideal one: prompts as a trace has them, through the scheduler and
//! a model that computes nothing and checks every block that it is given; and through a least-recently-used cache of as many
//! blocks that knows nothing but the tree of prompts.
//!
//! `cargo bench --bench prefix_cache [-- TRACE.jsonl]`. A trace has one JSON object a line with `hash_ids`, the numbers of the
//! prompt's blocks of 512 tokens, as Mooncake's have (Qin et al. 2024, arXiv:2407.00079); without one, conversations are drawn.
//! Ends with 1 where one request at a time finds 2 points more or less than the ideal.

#[path = "../tests/it/prefix_cache/replay.rs"]
#[allow(unreachable_pub)] // It is a part of the tests as well.
mod replay;

use std::{
    collections::HashSet,
    fs::File,
    io::{BufRead, BufReader},
    process::ExitCode,
};

use replay::{Trace, conversations, ideal, replay};
use serde::Deserialize;

const BLOCK_SIZE: usize = 512;
const NUM_BLOCKS: [usize; 3] = [1_000, 5_000, 20_000];
/// Requests at once: one, as the ideal cache has them, and some, whose blocks cannot go meanwhile.
const AT_ONCE: [usize; 2] = [1, 4];
const POINTS: f64 = 2.0;

#[derive(Deserialize)]
struct Line {
    hash_ids: Vec<u32>,
}

fn read(path: &str) -> Result<Trace, Box<dyn std::error::Error>> {
    let lines = BufReader::new(File::open(path)?).lines();
    lines.map(|line| Ok(serde_json::from_str::<Line>(&line?)?.hash_ids)).collect()
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    // Cargo passes `--bench` along.
    let given = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let trace = match &given {
        Some(path) => read(path)?,
        None => conversations(4000, 1),
    };
    let blocks = trace.iter().map(Vec::len).sum::<usize>();
    let different = trace.iter().flatten().collect::<HashSet<_>>().len();
    let longest = trace.iter().map(Vec::len).max().unwrap_or(0);
    println!("{}", given.as_deref().unwrap_or("conversations of our own making"));
    println!("{} prompts, {blocks} blocks, {different} different ones, at most {longest} a prompt", trace.len());
    println!("{:>8} {:>8} {:>10} {:>10} {:>10}", "blocks", "at once", "hit rate", "ideal", "points");
    let mut within = true;
    for num_blocks in NUM_BLOCKS {
        let best = ideal(&trace, num_blocks) * 100.0;
        for at_once in AT_ONCE {
            let found = replay(&trace, num_blocks, BLOCK_SIZE, at_once)? * 100.0;
            let points = found - best;
            println!("{num_blocks:>8} {at_once:>8} {found:>8.2} % {best:>8.2} % {points:>+10.2}");
            within &= at_once > 1 || points.abs() <= POINTS;
        }
    }
    Ok(ExitCode::from(u8::from(!within)))
}
