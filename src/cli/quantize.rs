//! `candlewick quantize`: a GGUF file, or a directory as the hub lays it out, as a GGUF file of fewer bits.

use std::path::PathBuf;

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};

use super::{
    Stop,
    convert::{Input, Output, write},
};
use crate::convert::Mixture;

/// What `quantize` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct QuantizeArgs {
    #[command(flatten)]
    pub(super) input: Input,
    /// File to write.
    output: PathBuf,
    /// How many bits, in llama.cpp's names.
    #[arg(long, short, value_parser = mixture(), ignore_case = true)]
    quantization: Mixture,
    /// Threads to compute with; all cores if left out.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads: Option<u32>,
    #[command(flatten)]
    output_args: Output,
}

/// Takes the names of [`Mixture`].
fn mixture() -> impl TypedValueParser<Value = Mixture> {
    let find =
        |name: String| Mixture::all().find(|row| row.1.eq_ignore_ascii_case(&name)).map(|row| row.0).ok_or("none");
    PossibleValuesParser::new(Mixture::all().map(|row| row.1)).try_map(find)
}

pub(super) fn run(args: QuantizeArgs) -> Result<(), Stop> {
    let threads = args.threads.map_or(0, |threads| threads as usize);
    write(&args.input, &args.output, Some(args.quantization), threads, &args.output_args)
}
