//! 20,000 seeded mutations of each kind of file: no panic, no huge allocation, and an error that names file and field.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use candlewick::{
    error::{Error, Result},
    weights::{
        TensorSource,
        gguf::{Gguf, GgufSource},
        safetensors::SafetensorsSource,
    },
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::{capped, gguf_file::GgufFile, named, safetensors};

const MUTATIONS: u64 = 20_000;

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
}

impl Mutator {
    fn below(&mut self, limit: usize) -> usize {
        (self.stream.next_u64() % limit.max(1) as u64) as usize
    }

    /// One to four changes, each of a random kind at a random place.
    fn mutate(&mut self, original: &[u8]) -> Vec<u8> {
        let mut bytes = original.to_vec();
        for _ in 0..1 + self.below(4) {
            let at = self.below(bytes.len());
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

/// Mutates `original`, reads each mutation, and counts those that were read and those that were refused.
pub(super) fn survive(name: &str, original: &[u8], read: impl Fn(Vec<u8>) -> Result<()>) -> (u64, u64) {
    read(original.to_vec()).expect("the file that is mutated is good");
    let (mut good, mut refused) = (0, 0);
    for seed in 0..MUTATIONS {
        let mut mutator = Mutator { stream: ChaCha8Rng::seed_from_u64(seed) };
        let bytes = mutator.mutate(original);
        let result = catch_unwind(AssertUnwindSafe(|| capped(|| read(bytes))));
        match result.unwrap_or_else(|_| panic!("{name}: mutation {seed} panicked")) {
            Ok(()) => good += 1,
            Err(error) => {
                assert!(error.message.starts_with(&format!("{name}: ")), "mutation {seed} names no file: {error}");
                assert!(!error.violations.is_empty(), "mutation {seed} names no field: {error}");
                refused += 1;
            }
        }
    }
    eprintln!("{name}: of {MUTATIONS} mutations {good} are read, {refused} are refused");
    (good, refused)
}

/// Asserts that the mutations tried both what is read and what is refused.
pub(super) fn assert_both((good, refused): (u64, u64)) {
    assert!(good >= MUTATIONS / 100, "{good} of {MUTATIONS} were read: the mutations are too coarse");
    assert!(refused >= MUTATIONS / 10, "{refused} of {MUTATIONS} were refused: the mutations are too fine");
}

/// Touches every tensor and every byte count.
fn touch(source: &dyn TensorSource) -> Result<()> {
    for name in source.names() {
        let wrong = || Error::internal(format!("{name} is listed, but cannot be had"));
        let tensor = source.get(&name).ok_or_else(wrong)?;
        let elements = tensor.shape.iter().product();
        assert_eq!(Some(tensor.bytes.len()), tensor.format.bytes_for(elements), "{name}");
        std::hint::black_box(tensor.bytes.iter().fold(0u8, |sum, byte| sum ^ byte));
    }
    Ok(())
}

/// Asks for every key as every type; another type than the key's own is an error, which must name the key.
fn touch_metadata(gguf: &Gguf) {
    fn named_or_fine<T>(key: &str, result: Result<Option<T>>) -> Option<T> {
        result.unwrap_or_else(|error| {
            let field = error.violations.first().map_or("", |violation| violation.field.as_str());
            assert!(field.starts_with("metadata "), "{key}: {error}");
            None
        })
    }
    for key in gguf.metadata_keys() {
        named_or_fine(key, gguf.string(key));
        named_or_fine(key, gguf.u64(key));
        named_or_fine(key, gguf.f32(key));
        named_or_fine(key, gguf.bool(key));
        named_or_fine(key, gguf.token_id(key));
        if let Some(strings) = named_or_fine(key, gguf.array_strings(key)) {
            assert_eq!(strings.len(), strings.count(), "{key}");
        }
        if let Some(floats) = named_or_fine(key, gguf.array_f32(key)) {
            assert_eq!(floats.len(), floats.count(), "{key}");
        }
        if let Some(integers) = named_or_fine(key, gguf.array_i64(key)) {
            assert_eq!(integers.len(), integers.count(), "{key}");
        }
    }
}

#[test]
fn mutated_gguf_files_are_read_or_refused() {
    let counts = survive("tiny.gguf", &GgufFile::tiny().bytes(), |bytes| {
        let gguf = Gguf::from_bytes(named("tiny.gguf"), bytes.into())?;
        touch_metadata(&gguf);
        touch(&GgufSource::new(Arc::new(gguf))?)
    });
    assert_both(counts);
}

#[test]
fn mutated_gguf_headers_are_read_or_refused() {
    // Data is most of the tiny file; a file of metadata alone has every mutation in what is parsed.
    let mut file = GgufFile::tiny();
    file.tensors.clear();
    file.data.clear();
    let counts = survive("tiny.gguf", &file.bytes(), |bytes| {
        let gguf = Gguf::from_bytes(named("tiny.gguf"), bytes.into())?;
        touch_metadata(&gguf);
        touch(&GgufSource::new(Arc::new(gguf))?)
    });
    assert_both(counts);
}

#[test]
fn mutated_safetensors_are_read_or_refused() {
    let header = r#"{"__metadata__":{"format":"pt"},"model.embed_tokens.weight":{"dtype":"F32","shape":[4,2],"data_offsets":[0,32]},"model.norm.weight":{"dtype":"BF16","shape":[2],"data_offsets":[32,36]},"ids":{"dtype":"I64","shape":[1],"data_offsets":[36,44]}}    "#;
    let counts = survive("tiny.safetensors", &safetensors::file(header, 44), |bytes| {
        touch(&SafetensorsSource::from_bytes(named("tiny.safetensors"), bytes.into())?)
    });
    assert_both(counts);
}
