//! 20,000 seeded mutations of each kind of file: no panic, no huge allocation, and an error that names file and field.

use std::{cell::Cell, path::Path, sync::Arc};

use candlewick::{
    arch::{config::ModelConfig, generation_config::GenerationDefaults, shapes::tensor_shapes},
    config::ModelArgs,
    engine::load::load,
    error::{Error, Result},
    ids::TokenId,
    text::Tokenizer,
    weights::{
        TensorSource,
        gguf::{Gguf, GgufSource},
        safetensors::{INDEX_FILE, SafetensorsSource, WEIGHTS_FILE},
        seeded::SeededSource,
    },
};
use safetensors::{Dtype, tensor::TensorView};

use super::{gguf_file::GgufFile, mutator::survive, named};

/// A llama of one layer, in the newer spelling.
const CONFIG: &str = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":16,"intermediate_size":16,"num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,"head_dim":8,"vocab_size":16,"max_position_embeddings":64,"rms_norm_eps":1e-5,"hidden_act":"silu","tie_word_embeddings":true,"attention_bias":false,"eos_token_id":[2,3],"bos_token_id":1,"torch_dtype":"bfloat16","rope_parameters":{"rope_theta":10000.0,"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":32}}"#;

/// A qwen of one layer, in the older spelling.
const OLDER_CONFIG: &str = r#"{"architectures":["Qwen2ForCausalLM"],"model_type":"qwen2","hidden_size":16,"intermediate_size":16,"num_hidden_layers":1,"num_attention_heads":2,"vocab_size":16,"max_position_embeddings":64,"rms_norm_eps":1e-6,"rope_theta":1000000.0,"rope_scaling":{"type":"linear","factor":2.0},"use_sliding_window":true,"sliding_window":24,"max_window_layers":1,"layer_types":["full_attention"],"eos_token_id":2}"#;

/// Byte-level BPE with every part of the pipeline.
const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":0,"content":"<unk>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},{"id":1,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},{"id":8,"content":"<|end|>","single_word":false,"lstrip":true,"rstrip":true,"normalized":true,"special":false}],"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{N}{1,3}| ?\\p{L}+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]},"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{"<s>":{"id":"<s>","ids":[1],"tokens":["<s>"]}}},"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","dropout":null,"unk_token":"<unk>","continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{"<unk>":0,"<s>":1,"</s>":2,"a":3,"b":4,"ab":5,"\u0120":6,"\u0120ab":7},"merges":[["a","b"],["\u0120","ab"]]}}"#;

/// Sentencepiece-like unigram.
const UNIGRAM: &str = r#"{"version":"1.0","added_tokens":[{"id":0,"content":"<unk>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"\u2581"},{"type":"Replace","pattern":{"String":" "},"content":"\u2581"}]},"pre_tokenizer":{"type":"Metaspace","replacement":"\u2581","prepend_scheme":"first","split":true},"post_processor":null,"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"\u2581"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},"model":{"type":"Unigram","unk_id":0,"byte_fallback":false,"vocab":[["<unk>",0.0],["\u2581a",-1.5],["b",-2.5],["ab",-2.75],["\u2581",-3.0]]}}"#;

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

/// Calls on every tenth time only: what is slow.
struct EveryTenth(Cell<u32>);

impl EveryTenth {
    fn new() -> Self {
        Self(Cell::new(0))
    }

    fn run(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.0.set(self.0.get() + 1);
        if self.0.get() % 10 == 1 { work() } else { Ok(()) }
    }
}

/// Loads what lies at a path the way the server does, to the model that could run.
fn load_model(path: &Path) -> Result<()> {
    let model = path.to_str().map(str::to_owned);
    load(&ModelArgs { model, ..ModelArgs::default() }, None, &mut |_| {}).map(drop)
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a temporary file can be written");
}

fn config(text: &str) -> ModelConfig {
    ModelConfig::from_hf_json(named("config.json"), text).expect("a good configuration")
}

/// The weights that a configuration calls for, and the bytes of their header.
fn weights(text: &str) -> (Vec<u8>, usize) {
    let shapes = tensor_shapes(&config(text));
    let source = SeededSource::new(1, shapes.clone());
    let tensors: Vec<_> = shapes.iter().map(|(name, _)| source.get(name).expect("is among the shapes")).collect();
    let views = shapes.iter().zip(&tensors).map(|((name, shape), tensor)| {
        (name, TensorView::new(Dtype::BF16, shape.clone(), &tensor.bytes).expect("bytes that fit"))
    });
    let bytes = safetensors::serialize(views, None).expect("serializes");
    let data: usize = tensors.iter().map(|tensor| tensor.bytes.len()).sum();
    let header = bytes.len() - data;
    (bytes, header)
}

/// A directory of good files, of which a test replaces one.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    write(&directory.path().join("config.json"), CONFIG.as_bytes());
    write(&directory.path().join("tokenizer.json"), TOKENIZER.as_bytes());
    write(&directory.path().join(WEIGHTS_FILE), &weights(CONFIG).0);
    load_model(directory.path()).expect("the good files are good");
    directory
}

#[test]
fn mutated_gguf_files_are_read_or_refused() {
    let file = GgufFile::tiny();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("tiny.gguf");
    let tenth = EveryTenth::new();
    survive("tiny.gguf", &file.bytes(), file.header_bytes(), |bytes| {
        tenth.run(|| {
            write(&path, &bytes);
            load_model(&path)
        })?;
        let gguf = Gguf::from_bytes(named("tiny.gguf"), bytes.into())?;
        touch_metadata(&gguf);
        let config = ModelConfig::from_gguf(&gguf);
        touch(&GgufSource::new(Arc::new(gguf))?)?;
        config.map(drop)
    });
}

#[test]
fn mutated_safetensors_are_read_or_refused() {
    let directory = directory();
    let (bytes, header) = weights(CONFIG);
    let tenth = EveryTenth::new();
    survive(WEIGHTS_FILE, &bytes, header, |bytes| {
        tenth.run(|| {
            write(&directory.path().join(WEIGHTS_FILE), &bytes);
            load_model(directory.path())
        })?;
        touch(&SafetensorsSource::from_bytes(named(WEIGHTS_FILE), bytes.into())?)
    });
}

#[test]
fn mutated_safetensors_of_few_bits_are_read_or_refused() {
    let bytes = [1u8; 256];
    let tensors: [(&str, Dtype, &[usize]); 9] = [
        ("a.weight", Dtype::F8_E4M3, &[4, 6]),
        ("a.weight_scale_inv", Dtype::F32, &[4, 1]),
        ("b.weight", Dtype::F8_E4M3, &[4, 6]),
        ("b.weight_scale", Dtype::BF16, &[]),
        ("c.qweight", Dtype::I32, &[8, 8]),
        ("c.qzeros", Dtype::I32, &[2, 1]),
        ("c.scales", Dtype::F16, &[2, 8]),
        ("c.g_idx", Dtype::I32, &[64]),
        ("d.qweight", Dtype::I32, &[32, 1]),
    ];
    let awq: [(&str, Dtype, &[usize]); 2] = [("d.qzeros", Dtype::I32, &[1, 1]), ("d.scales", Dtype::F16, &[1, 8])];
    let views = tensors.into_iter().chain(awq).map(|(name, dtype, shape)| {
        let length = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        // The groups of inputs are zeros: any other number would be none of theirs.
        let bytes = if name == "c.g_idx" { &[0; 256] } else { &bytes };
        (name, TensorView::new(dtype, shape.to_vec(), &bytes[..length]).expect("bytes that fit"))
    });
    let file = safetensors::serialize(views, None).expect("serializes");
    let header = 8 + u64::from_le_bytes(*file.first_chunk().expect("a length")) as usize;
    let source = SafetensorsSource::from_bytes(named(WEIGHTS_FILE), file.clone().into()).expect("a good file");
    assert_eq!(source.names(), ["a.weight", "b.weight", "c.weight", "d.weight"]);
    survive(WEIGHTS_FILE, &file, header, |bytes| {
        let source = SafetensorsSource::from_bytes(named(WEIGHTS_FILE), bytes.into())?;
        for facts in source.facts() {
            std::hint::black_box(source.get(&facts.name).map(|tensor| tensor.bytes.len()));
        }
        touch(&source)
    });
}

#[test]
fn mutated_safetensors_indexes_are_read_or_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let bytes = [0; 4];
    for shard in ["a", "b"] {
        let view = TensorView::new(Dtype::F32, vec![1], &bytes).expect("bytes that fit");
        let file = safetensors::serialize([(format!("{shard}.weight"), view)], None).expect("serializes");
        write(&directory.path().join(format!("{shard}.safetensors")), &file);
    }
    let index = r#"{"metadata":{"total_size":8},"weight_map":{"a.weight":"a.safetensors","b.weight":"b.safetensors"}}"#;
    survive(INDEX_FILE, index.as_bytes(), index.len(), |bytes| {
        write(&directory.path().join(INDEX_FILE), &bytes);
        touch(&SafetensorsSource::open(directory.path())?)
    });
}

/// Reads mutations of a configuration; every tenth is loaded with the weights of the good one.
fn survive_config(good: &str) {
    let directory = directory();
    write(&directory.path().join(WEIGHTS_FILE), &weights(good).0);
    let tenth = EveryTenth::new();
    survive("config", good.as_bytes(), good.len(), |bytes| {
        let text = String::from_utf8_lossy(&bytes);
        let config = ModelConfig::from_hf_json(named("config.json"), &text)?;
        tenth.run(|| {
            std::hint::black_box(tensor_shapes(&config));
            write(&directory.path().join("config.json"), text.as_bytes());
            load_model(directory.path())
        })
    });
}

#[test]
fn mutated_configurations_are_read_or_refused() {
    survive_config(CONFIG);
}

#[test]
fn mutated_configurations_in_the_older_spelling_are_read_or_refused() {
    survive_config(OLDER_CONFIG);
}

#[test]
fn mutated_generation_configurations_are_read_or_refused() {
    let good = r#"{"do_sample":true,"temperature":0.6,"top_k":20,"top_p":0.95,"min_p":0.0,"repetition_penalty":1.05,"eos_token_id":[2,3],"bos_token_id":1}"#;
    survive("generation_config.json", good.as_bytes(), good.len(), |bytes| {
        let text = String::from_utf8_lossy(&bytes);
        let defaults = GenerationDefaults::from_json(named("generation_config.json"), &text, 16)?;
        std::hint::black_box(defaults.sampling_params());
        Ok(())
    });
}

/// Reads mutations of a tokenizer and uses it; every tenth is loaded with its model.
fn survive_tokenizer(good: &str) {
    let directory = directory();
    let tenth = EveryTenth::new();
    survive("tokenizer.json", good.as_bytes(), good.len(), |bytes| {
        let tokenizer = Tokenizer::from_json_bytes(named("tokenizer.json"), &bytes)?;
        // An encoder may refuse a text that its vocabulary cannot spell, but it may not panic.
        let _ = tokenizer.encode("ab <|end|> a\u{e9}b 123\n", true);
        let ids: Vec<TokenId> = (0..20).chain([u32::MAX]).map(TokenId).collect();
        std::hint::black_box((tokenizer.decode(&ids, true), tokenizer.decode(&ids, false)));
        for &id in &ids {
            std::hint::black_box((tokenizer.token_bytes(id), tokenizer.is_special(id), tokenizer.id_to_token(id)));
        }
        tokenizer.ensure_fits(16)?;
        tenth.run(|| {
            write(&directory.path().join("tokenizer.json"), &bytes);
            load_model(directory.path())
        })
    });
}

#[test]
fn mutated_tokenizers_are_read_or_refused() {
    survive_tokenizer(TOKENIZER);
}

#[test]
fn mutated_unigram_tokenizers_are_read_or_refused() {
    survive_tokenizer(UNIGRAM);
}
