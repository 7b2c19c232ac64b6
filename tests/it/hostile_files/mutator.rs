//! Seeded mutations of a file: bits, bytes, integers, numbers, brackets, cuts.

use std::panic::{AssertUnwindSafe, catch_unwind};

use candlewick::error::{Code, Result};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::capped;

/// Mutations of each file.
pub(super) const MUTATIONS: u64 = 20_000;

/// Numbers at which widths and signs end.
const INTERESTING: [u64; 14] = [
    0,
    1,
    7,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX - 31,
    u64::MAX,
];

/// Draws mutations of one file.
struct Mutator {
    stream: ChaCha8Rng,
    /// Nine of ten changes are among this many first bytes, where the structure of the file lies.
    focus_bytes: usize,
}

impl Mutator {
    fn below(&mut self, limit: usize) -> usize {
        (self.stream.next_u64() % limit.max(1) as u64) as usize
    }

    /// One to four changes, each of a random kind at a random place.
    fn mutate(&mut self, original: &[u8]) -> Vec<u8> {
        let mut bytes = original.to_vec();
        for _ in 0..1 + self.below(4) {
            let focus = if self.below(10) == 0 { bytes.len() } else { self.focus_bytes.min(bytes.len()) };
            let at = self.below(focus);
            match self.below(7) {
                0 => self.flip_bit(&mut bytes, at),
                1 => self.overwrite_integer(&mut bytes, at),
                2 => self.splice(&mut bytes, at),
                3 => self.rewrite_number(&mut bytes, at),
                4 => drop(bytes.drain(at..(at + self.below(16)).min(bytes.len()))),
                5 => self.nest(&mut bytes, at),
                // Half of the truncations would otherwise leave nothing to look at.
                _ if self.below(4) == 0 => bytes.truncate(at),
                _ => self.flip_bit(&mut bytes, at),
            }
        }
        bytes
    }

    fn flip_bit(&mut self, bytes: &mut [u8], at: usize) {
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << self.below(8);
        }
    }

    /// A little-endian integer of 1 to 8 bytes.
    fn overwrite_integer(&mut self, bytes: &mut [u8], at: usize) {
        let value = INTERESTING[self.below(INTERESTING.len())].to_le_bytes();
        let width = 1 << self.below(4);
        for (byte, new) in bytes.iter_mut().skip(at).zip(value.into_iter().take(width)) {
            *byte = new;
        }
    }

    /// Inserts a copy of some other bytes of the file.
    fn splice(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let from = self.below(bytes.len());
        let to = (from + 1 + self.below(64)).min(bytes.len());
        let copy = bytes[from..to].to_vec();
        drop(bytes.splice(at..at, copy));
    }

    /// Puts another number for the next one written in decimal.
    fn rewrite_number(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let Some(start) = bytes.iter().skip(at).position(u8::is_ascii_digit).map(|skipped| at + skipped) else {
            return;
        };
        let digits = bytes.iter().skip(start).take_while(|byte| byte.is_ascii_digit()).count();
        let value = INTERESTING[self.below(INTERESTING.len())];
        let text = match self.below(4) {
            0 => format!("-{value}"),
            1 => format!("{value}.5"),
            2 => format!("{value}e{}", self.below(400)),
            _ => value.to_string(),
        };
        drop(bytes.splice(start..start + digits, text.into_bytes()));
    }

    /// Opens brackets that nobody closes.
    fn nest(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let bracket = if self.below(2) == 0 { "[" } else { "{\"a\":" };
        let brackets = bracket.repeat(1 << self.below(12));
        drop(bytes.splice(at..at, brackets.into_bytes()));
    }
}

/// Mutates `original`, reads each mutation under the allocation cap, and asserts that an error names `name` and a field,
/// and that both what is read and what is refused was tried. `structure_bytes` is where the mutations concentrate.
pub(super) fn survive(name: &str, original: &[u8], structure_bytes: usize, read: impl Fn(Vec<u8>) -> Result<()>) {
    read(original.to_vec()).expect("the file that is mutated is good");
    let (mut good, mut refused) = (0, 0);
    for seed in 0..MUTATIONS {
        let mut mutator = Mutator { stream: ChaCha8Rng::seed_from_u64(seed), focus_bytes: structure_bytes };
        let bytes = mutator.mutate(original);
        let result = catch_unwind(AssertUnwindSafe(|| capped(|| read(bytes))));
        match result.unwrap_or_else(|_| panic!("{name}: mutation {seed} panicked")) {
            Ok(()) => good += 1,
            Err(error) => {
                assert_eq!(error.code, Code::FailedPrecondition, "mutation {seed}: {error}");
                assert!(error.message.contains(name), "mutation {seed} names no file: {error}");
                assert!(!error.violations.is_empty(), "mutation {seed} names no field: {error}");
                refused += 1;
            }
        }
    }
    eprintln!("{name}: of {MUTATIONS} mutations {good} are read, {refused} are refused");
    assert!(good >= MUTATIONS / 100, "{good} of {MUTATIONS} were read: the mutations are too coarse");
    assert!(refused >= MUTATIONS / 10, "{refused} of {MUTATIONS} were refused: the mutations are too fine");
}
