//! What flags are taken, and what comes into force by them.

use std::time::Duration;

use clap::Parser;

use super::{values::number_with_unit, *};
use crate::error::Result;

#[derive(Parser)]
struct Serve {
    #[command(flatten)]
    args: ServeArgs,
}

fn parse(line: &str) -> Result<ServeArgs, clap::Error> {
    Serve::try_parse_from(std::iter::once("serve").chain(line.split_whitespace())).map(|serve| serve.args)
}

/// A context of 1000 tokens, 64 bytes a token: 1 KiB a block of 16.
const MODEL: ModelFacts = ModelFacts {
    max_position_embeddings: 1000,
    kv_bytes_per_token: 64,
    kv_groups: KvCacheGroups::ONE,
    prefixes_are_shared: true,
    state_bytes_per_sequence: 0,
    weight_bytes: 0,
    loading_bytes: 0,
    activation_bytes_per_token: 0,
    logit_row_bytes: 0,
    adapter_bytes_per_rank: 0,
    adapter_bytes: 0,
};
const MACHINE: MachineFacts = machine(1 << 20);

const fn machine(bytes: usize) -> MachineFacts {
    MachineFacts { available_memory_bytes: Some(bytes), bound: MemoryBound::ControlGroup }
}

fn resolved(line: &str) -> Result<EngineConfig> {
    resolve(&parse(line).unwrap().engine, &MODEL, &MACHINE)
}

#[test]
fn defaults_are_those_of_the_configuration() {
    let args = parse("").unwrap();
    assert_eq!(args.listen, "127.0.0.1:50051");
    assert_eq!(args.drain_timeout, Duration::from_secs(30));
    assert_eq!(args.streams, StreamArgs::default());
    assert_eq!((args.model.dtype, args.model.device), (Dtype::Auto, DeviceKind::Auto));
    let big = machine(1 << 40);
    let facts = ModelFacts { max_position_embeddings: 4096, ..MODEL };
    // 64 sequences of 4096 tokens is all that can be used, however much memory there is.
    let (num_blocks, promised_bytes) = (64 * 4096 / 16, 64 * 4096 * 64);
    let expected = EngineConfig { num_blocks, promised_bytes, ..EngineConfig::default() };
    assert_eq!(resolve(&args.engine, &facts, &big).unwrap(), expected);
}

#[test]
fn blocks_and_context_follow_from_flags_model_and_memory() {
    // (flags, blocks, context)
    let cases = [
        // A quarter of 1 MiB makes 256 blocks, enough for the context of 1000.
        ("", 256, 1000),
        ("--num-gpu-blocks-override 24", 24, 384),
        ("--num-gpu-blocks-override 24 --max-model-len 384", 24, 384),
        // An eighth of all memory stays free.
        ("--num-gpu-blocks-override 5000", 896, 1000),
        ("--kv-cache-memory-bytes 1G", 896, 1000),
        ("--kv-cache-memory 500K", 500, 1000),
        ("--kv-cache-memory auto", 256, 1000),
        ("--kv-cache-memory-bytes 100K", 100, 1000),
        ("--kv-cache-memory-bytes 10240", 10, 160),
        ("--kv-cache-memory-bytes 10k", 9, 144),
        ("--max-model-len 512", 256, 512),
        // No more blocks than two sequences of 100 tokens can use.
        ("--max-model-len 100 --max-num-seqs 2", 14, 100),
        ("--block-size 1", 4096, 1000),
        ("--block-size 1024", 4, 1000),
    ];
    for (line, num_blocks, max_model_len) in cases {
        let config = resolved(line).unwrap();
        assert_eq!((config.num_blocks, config.max_model_len), (num_blocks, max_model_len), "{line}");
    }
}

#[test]
fn what_cannot_be_in_force_is_refused_by_the_name_of_its_flag() {
    let cases = [
        ("--max-model-len 1001", "--max-model-len", "context of 1000"),
        ("--max-model-len 0", "--max-model-len", "from 1 to"),
        ("--num-gpu-blocks-override 24 --max-model-len 385", "--max-model-len", "--kv-cache-memory-bytes 25600"),
        ("--kv-cache-memory-bytes 1000", "--kv-cache-memory-bytes", "1024 bytes"),
        ("--num-gpu-blocks-override 4000000000", "--num-gpu-blocks-override", "at most"),
    ];
    for (line, flag, says) in cases {
        let error = resolved(line).unwrap_err();
        assert_eq!(error.violations[0].field, flag, "{line}");
        assert!(error.message.contains(says), "{line}: {error}");
    }
}

#[test]
fn a_machine_that_does_not_say_gets_a_gibibyte() {
    let facts = ModelFacts { max_position_embeddings: 1 << 20, kv_bytes_per_token: 1 << 16, ..MODEL };
    let config = resolve(&parse("").unwrap().engine, &facts, &MachineFacts::default()).unwrap();
    assert_eq!(config.num_blocks * config.block_size * facts.kv_bytes_per_token, 1 << 30);
    assert_eq!(config.max_model_len, 1 << 14);
}

#[test]
fn absurd_models_overflow_nothing() {
    let facts = ModelFacts {
        max_position_embeddings: usize::MAX,
        prefixes_are_shared: true,
        state_bytes_per_sequence: usize::MAX,
        kv_bytes_per_token: usize::MAX,
        kv_groups: KvCacheGroups::of(&[None, Some(usize::MAX), Some(1)]),
        weight_bytes: usize::MAX,
        loading_bytes: usize::MAX,
        activation_bytes_per_token: usize::MAX,
        logit_row_bytes: usize::MAX,
        adapter_bytes_per_rank: usize::MAX,
        adapter_bytes: usize::MAX,
    };
    for line in ["", "--kv-cache-memory-bytes 1G", "--num-gpu-blocks-override 7"] {
        assert!(resolve(&parse(line).unwrap().engine, &facts, &MACHINE).is_err(), "{line}");
    }
}

/// 20 MiB of weights, 64 KiB a token of KV, 8 KiB a token and 4 KiB a row of logits in a step.
const REAL: ModelFacts = ModelFacts {
    max_position_embeddings: 4096,
    prefixes_are_shared: true,
    state_bytes_per_sequence: 0,
    kv_bytes_per_token: 64 << 10,
    kv_groups: KvCacheGroups::ONE,
    weight_bytes: 20 << 20,
    loading_bytes: 2 << 20,
    activation_bytes_per_token: 8 << 10,
    logit_row_bytes: 4 << 10,
    adapter_bytes_per_rank: 64 << 10,
    adapter_bytes: 0,
};

#[test]
fn a_model_that_does_not_fit_is_refused_with_the_sum() {
    let line = "--max-num-batched-tokens 128 --max-num-seqs 64";
    let args = parse(line).unwrap().engine;
    // 20 of weights, 32 for 512 tokens of context, 128 * 8 KiB and 64 * 4 KiB of activations, an eighth of 48 as room.
    let error = resolve(&args, &REAL, &machine(48 << 20)).unwrap_err();
    let sum = "weights 20 MiB + KV cache 32 MiB + activations 2 MiB + room 6 MiB = 60 MiB > 48 MiB available (left by the \
               limit of the control group)";
    assert!(error.message.contains(sum), "{error}");
    for flag in ["--max-model-len", "--quantization", "--kv-cache-dtype"] {
        assert!(error.message.contains(flag), "{error}");
    }
    // Less context, and it fits.
    let args = parse(&format!("{line} --max-model-len 256")).unwrap().engine;
    let config = resolve(&args, &REAL, &machine(48 << 20)).unwrap();
    assert_eq!((config.num_blocks, config.max_model_len), (16, 256));
    // Weights alone may be too much, as may what decoding them takes.
    assert!(resolve(&args, &ModelFacts { weight_bytes: 48 << 20, ..REAL }, &machine(48 << 20)).is_err());
    let decoded = ModelFacts { loading_bytes: 30 << 20, ..REAL };
    let error = resolve(&args, &decoded, &machine(48 << 20)).unwrap_err();
    assert!(error.message.contains("weights 20 MiB + decoding them 30 MiB + room 6 MiB = 56 MiB > 48 MiB"), "{error}");
}

#[test]
fn a_cache_that_does_not_fit_is_cut_and_the_context_with_it() {
    let line = "--max-num-batched-tokens 128 --kv-cache-memory-bytes 1G";
    let args = parse(line).unwrap().engine;
    // An eighth of 80 MiB is room: 80 - 10 - 20 - 1.25 leaves 48.75 MiB, which are 48 blocks of a MiB.
    let config = resolve(&args, &REAL, &machine(80 << 20)).unwrap();
    assert_eq!((config.num_blocks, config.max_model_len), (48, 768));
    // Not below what was asked for by name.
    let args = parse(&format!("{line} --max-model-len 1024")).unwrap().engine;
    let error = resolve(&args, &REAL, &machine(80 << 20)).unwrap_err();
    assert!(error.message.contains("KV cache 64 MiB"), "{error}");
}

#[test]
fn an_automatic_cache_leaves_three_quarters_unless_the_context_asked_for_needs_more() {
    let blocks = |line: &str| resolve(&parse(line).unwrap().engine, &REAL, &machine(1 << 30)).unwrap().num_blocks;
    let plain = blocks("--max-num-batched-tokens 128");
    // A quarter of 1024 - 20 - 1.25 MiB.
    assert_eq!(plain, 250);
    assert_eq!(blocks("--max-num-batched-tokens 128 --max-model-len 4096"), 256);
}

#[test]
fn adapters_that_may_come_are_in_the_sum() {
    let module = LoraModule { name: "a".into(), path: "a".into() };
    let two = LoraArgs { lora_modules: vec![module.clone(), module], max_lora_rank: 20, ..LoraArgs::default() };
    let any = LoraArgs { allow_runtime_lora_updating: true, max_loras: 5, ..two.clone() };
    // Ranks are packed by sixteens: 2 MiB each.
    for (args, bytes) in [(&LoraArgs::default(), 0), (&two, 4 << 20), (&any, 10 << 20)] {
        assert_eq!(REAL.with_adapters(args).adapter_bytes, bytes);
    }
    let args = parse("--max-num-batched-tokens 128 --max-model-len 256").unwrap().engine;
    assert!(resolve(&args, &REAL, &machine(48 << 20)).is_ok());
    let error = resolve(&args, &REAL.with_adapters(&any), &machine(48 << 20)).unwrap_err();
    assert!(error.message.contains("weights 20 MiB + adapters 10 MiB + KV cache 16 MiB"), "{error}");
}

#[test]
fn what_a_model_is_promised_is_the_sum_without_the_room() {
    let args = parse("--max-num-batched-tokens 128 --max-num-seqs 4 --kv-cache-memory-bytes 32M").unwrap().engine;
    let promised = |facts: &ModelFacts| resolve(&args, facts, &machine(1 << 30)).unwrap().promised_bytes;
    // 20 MiB of weights, 32 of cache, 128 tokens and 32 rows of logits.
    let plain = (20 << 20) + (32 << 20) + 128 * (8 << 10) + 32 * (4 << 10);
    assert_eq!(promised(&REAL), plain);
    // A block of four groups holds a fourth of the layers, and there are four times as many.
    let windows: Vec<_> = (1..=8).map(|layer| (layer % 4 != 0).then_some(64)).collect();
    assert_eq!(promised(&ModelFacts { kv_groups: KvCacheGroups::of(&windows), ..REAL }), plain);
    assert_eq!(promised(&ModelFacts { state_bytes_per_sequence: 1 << 20, ..REAL }), plain + (4 << 20));
    assert_eq!(promised(&ModelFacts { adapter_bytes: 3 << 20, ..REAL }), plain + (3 << 20));
}

#[test]
fn blocks_that_nobody_else_goes_on_from_are_as_many_as_those_who_run_can_use() {
    // A recurrent model's tokens leave nothing, so that a block is as good as free.
    let recurrent = ModelFacts { kv_bytes_per_token: 0, prefixes_are_shared: false, ..MODEL };
    for line in ["", "--kv-cache-memory-bytes 1G", "--kv-cache-memory-bytes 100G"] {
        let args = parse(&format!("--max-num-seqs 4 {line}")).unwrap().engine;
        let config = resolve(&args, &recurrent, &machine(1 << 40)).unwrap();
        assert_eq!((config.num_blocks, config.max_model_len), (4 * 1000usize.div_ceil(16), 1000), "{line}");
    }
}

#[test]
fn layers_with_a_window_leave_the_cache_to_longer_and_more_sequences() {
    // Of eight layers of 8 KiB a token, two see everything: blocks of two layers, 256 KiB each of 16 tokens.
    let windows: Vec<_> = (1..=8).map(|layer| (layer % 4 != 0).then_some(64)).collect();
    let mixed = ModelFacts { kv_groups: KvCacheGroups::of(&windows), ..REAL };
    let all = ModelFacts { kv_groups: KvCacheGroups::of(&[Some(64); 8]), ..REAL };
    let resolved = |facts: &ModelFacts, line: &str| {
        let args = parse(&format!("--max-num-batched-tokens 32 {line}")).unwrap().engine;
        resolve(&args, facts, &machine(1 << 30)).map(|config| (config.num_blocks, config.max_model_len))
    };
    // Three groups of at most ceil((63 + 32) / 16) + 1 blocks, the rest is the fourth's.
    assert_eq!(resolved(&REAL, "--kv-cache-memory-bytes 32M").unwrap(), (32, 512));
    assert_eq!(resolved(&mixed, "--kv-cache-memory-bytes 32M").unwrap(), (128, (128 - 3 * 7) * 16));
    assert_eq!(resolved(&all, "--kv-cache-memory-bytes 32M").unwrap(), (32, 4096), "its length does not matter");
    // What two sequences can use at most.
    assert_eq!(resolved(&mixed, "--max-num-seqs 2").unwrap().0, 2 * (4096 / 16 + 3 * 7));
    assert_eq!(resolved(&all, "--max-num-seqs 2").unwrap().0, 2 * 7);
    // A context that fits only so, and one that does not.
    assert!(resolved(&REAL, "--kv-cache-memory-bytes 32M --max-model-len 1024").is_err());
    assert_eq!(resolved(&mixed, "--kv-cache-memory-bytes 32M --max-model-len 1024").unwrap().1, 1024);
    let error = resolved(&mixed, "--kv-cache-memory-bytes 32M --max-model-len 2048").unwrap_err();
    let bytes = (2048 / 16 + 3 * 7) * (256 << 10);
    assert!(error.message.contains(&format!("holds 1712 tokens: ask for at most that many, or make the cache larger with --kv-cache-memory-bytes {bytes}")), "{error}");
    let error = resolved(&mixed, "--kv-cache-memory-bytes 786432").unwrap_err();
    assert!(error.message.contains("1048576 bytes"), "{error}");
    // As many tokens of all layers as of a model without windows.
    assert_eq!(resolved(&mixed, "--num-gpu-blocks-override 32").unwrap().0, 128);
}

#[test]
fn prefix_caching_follows_the_last_flag() {
    for (line, enabled) in [
        ("", true),
        ("--enable-prefix-caching", true),
        ("--enable-prefix-caching=false", false),
        ("--no-enable-prefix-caching", false),
        ("--enable-prefix-caching --no-enable-prefix-caching", false),
        ("--no-enable-prefix-caching --enable-prefix-caching", true),
    ] {
        assert_eq!(resolved(line).unwrap().enable_prefix_caching, enabled, "{line}");
    }
}

#[test]
fn flags_out_of_range_are_usage_errors() {
    for line in [
        "--block-size 0",
        "--block-size 1025",
        "--max-num-seqs 0",
        "--max-num-batched-tokens x",
        "--kv-cache-memory-bytes 3Q",
        "--kv-cache-memory-bytes 99999999999T",
        "--kv-cache-memory-bytes 1G --num-gpu-blocks-override 5",
        "--drain-timeout 0",
        "--step-timeout -1",
        "--step-timeout nan",
        "--dtype float16",
        "--device tpu",
        "--device cuda:",
        "--device cuda:x",
        "--device cpu:0",
        "--gpu-memory-utilization 0",
        "--gpu-memory-utilization 1.1",
        "--gpu-memory-utilization nan",
        "--threads 0",
        "a b",
        "--no-such-flag",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
    assert_eq!(parse("--dtype float").unwrap().model.dtype, Dtype::Float32);
    assert_eq!(parse("--stall-timeout 0.25").unwrap().engine.stall_timeout, Duration::from_millis(250));
}

#[test]
fn devices_have_names_and_cards_have_numbers() {
    for (text, device) in [
        ("auto", DeviceKind::Auto),
        ("cpu", DeviceKind::Cpu),
        ("cuda", DeviceKind::Cuda(0)),
        ("cuda:3", DeviceKind::Cuda(3)),
        ("metal", DeviceKind::Metal),
    ] {
        assert_eq!(parse(&format!("--device {text}")).unwrap().model.device, device, "{text}");
    }
}

#[test]
fn a_cache_on_a_card_takes_all_that_the_rest_leaves() {
    let card = |line: &str| {
        let args = parse(line).unwrap().engine;
        let machine = MachineFacts::of_card(1 << 20, 1 << 20, args.gpu_memory_utilization);
        resolve(&args, &MODEL, &machine).unwrap().num_blocks
    };
    // 1 KiB a block; an eighth of what may be taken stays free.
    assert_eq!(card("--gpu-memory-utilization 1"), 896);
    assert_eq!(card("--gpu-memory-utilization 0.5"), 448);
    assert_eq!(card("--gpu-memory-utilization 1 --kv-cache-memory-bytes 100K"), 100);
    // No more than its sequences can use.
    assert_eq!(card("--gpu-memory-utilization 1 --max-model-len 100 --max-num-seqs 2"), 14);
}

#[test]
fn what_a_card_records_is_bounded_and_takes_memory_of_its_own() {
    let of = |line: &str| {
        let args = parse(line).unwrap().engine;
        let card = MachineFacts::of_card(1 << 20, 1 << 20, 1.0);
        // A token's activations and a row of logits are half a block each.
        let model = ModelFacts { activation_bytes_per_token: 512, logit_row_bytes: 512, ..MODEL };
        let config = resolve(&args, &model, &card).unwrap();
        (config.max_cudagraph_capture_size, config.num_blocks)
    };
    let line = "--max-num-seqs 40 --max-num-batched-tokens 64";
    let (none, all) = of(&format!("{line} --enforce-eager"));
    assert_eq!(none, 0);
    assert_eq!(of(line), (40, all - 40), "no more than run at once");
    assert_eq!(of(&format!("{line} --max-cudagraph-capture-size 8")), (8, all - 8));
}

#[test]
fn units_are_those_of_vllm() {
    for (text, number) in
        [("7", 7), ("1k", 1000), ("1K", 1024), ("2m", 2_000_000), ("2G", 2 << 30), ("1t", 1_000_000_000_000)]
    {
        assert_eq!(number_with_unit(text).unwrap(), number, "{text}");
    }
    for text in ["", "K", "1KB", "-1", "1.5G", "１"] {
        assert!(number_with_unit(text).is_err(), "{text}");
    }
}

#[test]
fn every_argument_has_its_variable() {
    use clap::CommandFactory;
    let command = with_environment(Serve::command());
    assert!(command.get_arguments().count() > 20);
    for arg in command.get_arguments().filter(|arg| arg.get_id() != "no_enable_prefix_caching") {
        let variable = arg.get_env().unwrap().to_str().unwrap();
        let name = arg.get_long().unwrap_or("model").replace('-', "_").to_uppercase();
        assert_eq!(variable, format!("CANDLEWICK_{name}"));
    }
}
