//! What is kept of a model when it is written anew, and what is refused because it cannot be.

use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
};

use ::safetensors::{Dtype, serialize, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::{
    arch::{config::ModelConfig, generation_config::GenerationDefaults},
    ids::TokenId,
    kernels::linear::stored::{NVFP4, StoredFormat},
    weights::{
        files::{ModelFiles, model_files},
        gguf::writer::write,
        safetensors::SafetensorsSource,
    },
};

/// A directory with the smallest Llama that there can be, `change` made to its configuration, and these tensors.
fn directory(change: &Value, tensors: &[(&str, Dtype, &[usize], &[u8])]) -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8, "hidden_size": 32,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "head_dim": 32, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": [2, 3],
    });
    for (key, value) in change.as_object().expect("fields") {
        config[key] = value.clone();
    }
    put(&directory, "config.json", &config);
    let view = |&(name, dtype, shape, bytes): &(&str, Dtype, &[usize], _)| {
        (name.to_owned(), TensorView::new(dtype, shape.to_vec(), bytes).expect("fits"))
    };
    let bytes = serialize(tensors.iter().map(view), None).expect("serializes");
    fs::write(directory.path().join("model.safetensors"), bytes).expect("is written");
    directory
}

fn put(directory: &TempDir, name: &str, value: &Value) {
    fs::write(directory.path().join(name), value.to_string()).expect("is written");
}

const NORM: (&str, Dtype, &[usize], &[u8]) = ("model.norm.weight", Dtype::F32, &[32], &[0; 128]);

/// The directory as a file, converted.
fn converted(directory: &TempDir) -> Result<Gguf> {
    let ModelFiles::Directory(files) = model_files(directory.path())? else { panic!("is a directory") };
    let source = SafetensorsSource::open(directory.path())?;
    let path = directory.path().join("out/new.gguf");
    fs::create_dir_all(path.parent().expect("a folder")).expect("is made");
    Draft::from_directory(&files, &source)?.write(&path, None, &mut |_, _| ())?;
    Gguf::open(&path)
}

fn refused(directory: &TempDir) -> String {
    converted(directory).expect_err("is refused").message
}

#[test]
fn a_weight_that_is_not_read_is_refused_and_not_left_out() {
    let quantized = directory(
        &json!({"quantization_config": {"quant_method": "gptq", "bits": 8}}),
        &[
            NORM,
            ("model.layers.0.self_attn.o_proj.qweight", Dtype::I32, &[8, 32], &[0; 1024]),
            ("model.layers.0.self_attn.o_proj.qzeros", Dtype::I32, &[1, 8], &[0; 32]),
            ("model.layers.0.self_attn.o_proj.scales", Dtype::F16, &[1, 32], &[0; 64]),
        ],
    );
    let why = refused(&quantized);
    assert!(why.contains("tensor model.layers.0.self_attn.o_proj.weight: is quantized to 8 bits"), "{why}");
    let misfit = directory(
        &json!({}),
        &[
            NORM,
            ("lm_head.weight", Dtype::F8_E4M3, &[8, 32], &[0; 256]),
            ("lm_head.weight_scale", Dtype::F32, &[3], &[0; 12]),
        ],
    );
    assert!(
        refused(&misfit).contains("tensor lm_head.weight: of shape [8, 32] has scales of shape [3]"),
        "{}",
        refused(&misfit)
    );
    let octets = directory(&json!({}), &[NORM, ("lm_head.weight", Dtype::U8, &[8, 16], &[0; 128])]);
    assert!(refused(&octets).contains("tensor lm_head.weight: is stored as U8"));
}

#[test]
fn what_gguf_cannot_say_of_an_architecture_is_refused() {
    let yarn = |field: &str, value: Value| {
        let mut yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16});
        yarn[field] = value;
        yarn
    };
    let llama3 = json!({
        "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    });
    let long = json!({"type": "longrope", "short_factor": vec![1.0; 16], "long_factor": vec![1.0; 16]});
    let deep = |change: Value| {
        let mut config = json!({
            "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 32, "n_routed_experts": 4,
            "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 32,
        });
        change.as_object().expect("fields").iter().for_each(|(field, value)| config[field] = value.clone());
        config
    };
    for (class, change, why) in [
        ("Llama", json!({"hidden_act": "relu"}), "hidden_act: is relu; GGUF's llama is always silu"),
        (
            "Mistral",
            json!({"sliding_window": 24}),
            "sliding_window: is 24 of 64 tokens, which GGUF cannot say of llama",
        ),
        ("Qwen3", json!({"sliding_window": 24, "use_sliding_window": true}), "which GGUF cannot say of qwen3"),
        (
            "Phi3",
            json!({"sliding_window": 24, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}),
            "sliding_window: is that of 1 of 2 layers, and GGUF's phi3 has one for all",
        ),
        ("Exaone4", json!({"sliding_window": 24}), "llama.cpp takes one in exaone4 of 64 layers alone, not of 1"),
        ("Exaone4", json!({"num_hidden_layers": 64}), "sliding_window: is missing"),
        ("Llama", json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), "rope_scaling: is dynamic"),
        ("Qwen2", json!({"rope_scaling": llama3}), "rope_scaling: is llama3's, which llama.cpp does not read of qwen2"),
        ("Llama", json!({"rope_scaling": long}), "rope_scaling: is longrope, which llama.cpp does not read of llama"),
        ("Qwen3", json!({"rope_scaling": yarn("beta_fast", 16.into())}), "has beta_fast 16 and beta_slow 1"),
        (
            "Qwen3",
            json!({"rope_scaling": yarn("truncate", false.into())}),
            "has truncate false, and GGUF's qwen3 is always true",
        ),
        (
            "Gemma3",
            json!({"hidden_act": "gelu_pytorch_tanh", "rope_local_base_freq": 1e4, "rope_scaling": yarn("factor", 4.into())}),
            "rope_scaling: is YaRN's beside positions of layers with a window",
        ),
        (
            "Gemma3",
            json!({"hidden_act": "gelu_pytorch_tanh", "query_pre_attn_scalar": 99}),
            "query_pre_attn_scalar: is 99",
        ),
        (
            "Ministral3",
            json!({"model_type": "ministral3", "rope_parameters": yarn("llama_4_scaling_beta", 0.1.into())}),
            "rope_parameters.llama_4_scaling_beta: is given",
        ),
        ("Gemma2", json!({"hidden_act": "gelu_pytorch_tanh"}), "attn_logit_softcapping: is missing"),
        ("GptOss", json!({"swiglu_limit": 8.0}), "swiglu_limit: is not 7"),
        ("SmolLM3", json!({"no_rope_layers": [0]}), "no_rope_layers: are not every fourth"),
        (
            "Qwen3Moe",
            json!({"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": false}),
            "norm_topk_prob: is false",
        ),
        ("DeepseekV3", deep(json!({"rope_interleave": false})), "rope_interleave: is false"),
        ("DeepseekV3", deep(json!({"attention_bias": true})), "attention_bias: is true"),
        ("DeepseekV3", deep(json!({"rms_norm_eps": 1e-5})), "rms_norm_eps: is not 1e-6"),
        ("DeepseekV3", deep(json!({"n_shared_experts": 0})), "n_shared_experts: is 0"),
        ("DeepseekV3", deep(json!({"n_routed_experts": null})), "n_routed_experts: is missing"),
        (
            "DeepseekV3",
            deep(json!({"rope_scaling": yarn("mscale", 1.into())})),
            "rope_scaling.mscale_all_dim: must be there",
        ),
        ("Falcon", json!({}), "architectures"),
    ] {
        let mut change = change;
        change["architectures"] = json!([format!("{class}ForCausalLM")]);
        let refused = refused(&directory(&change, &[NORM]));
        assert!(refused.contains("config.json: ") && refused.contains(why), "{class} {change}: {refused}");
    }
}

#[test]
fn layers_with_a_window_are_listed_where_llama_cpp_reads_a_list() {
    let mut change = json!({"architectures": ["Exaone4ForCausalLM"], "num_hidden_layers": 64, "sliding_window": 24});
    let gguf = converted(&directory(&change, &[NORM])).expect("is converted");
    let layers = gguf.array_bools("exaone4.attention.sliding_window_pattern").expect("a list").expect("is there");
    assert!(layers.enumerate().all(|(layer, slides)| slides == (layer % 4 != 3)));
    assert_eq!(gguf.u64("exaone4.attention.sliding_window").expect("a number"), Some(24));

    change["num_hidden_layers"] = json!(1);
    change["sliding_window"] = Value::Null;
    let gguf = converted(&directory(&change, &[NORM])).expect("is converted");
    assert_eq!(gguf.u64("exaone4.attention.sliding_window").expect("a number"), None);
}

#[test]
fn which_layers_have_a_window_is_read_as_a_list_or_as_a_period() {
    let read = |pattern: NewValue| {
        let sizes = [
            ("context_length", 64),
            ("embedding_length", 32),
            ("feed_forward_length", 32),
            ("block_count", 4),
            ("attention.head_count", 1),
            ("attention.sliding_window", 24),
        ];
        let sizes = sizes.map(|(key, size)| (format!("gemma2.{key}"), NewValue::u32(size)));
        let others = [
            ("general.architecture".to_owned(), NewValue::string("gemma2")),
            ("gemma2.attention.layer_norm_rms_epsilon".to_owned(), NewValue::f32(1e-6)),
            ("gemma2.attention.sliding_window_pattern".to_owned(), pattern),
        ];
        let metadata: Vec<_> = sizes.into_iter().chain(others).collect();
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        let embedding =
            NewTensor { name: "token_embd.weight".into(), shape: vec![8, 32], format: WeightFormat::F32.into() };
        let (_folder, path) = file(&metadata, &[(embedding, vec![0; 1024])]);
        ModelConfig::from_gguf(&Gguf::open(&path).expect("a good file")).map(|config| config.sliding_window.layers)
    };
    let listed = [true, false, false, true];
    assert_eq!(read(NewValue::bools(&listed)).expect("a list"), Some(listed.to_vec()));
    // What guesses further tokens may be counted too.
    assert_eq!(read(NewValue::bools(&[true; 5])).expect("a list"), Some(vec![true; 4]));
    assert_eq!(read(NewValue::u32(3)).expect("a period"), Some(vec![true, true, false, true]));
    assert_eq!(read(NewValue::u32(0)).expect("a period"), Some(vec![true; 4]));
    assert!(read(NewValue::bools(&[true; 3])).expect_err("too few").message.contains("has 3 entries for 4 layers"));
    assert!(read(NewValue::string("LLLG")).is_err());
}

/// A byte-level tokenizer of eight tokens.
fn tokenizer() -> Value {
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "special": true});
    json!({
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "d": 3}, "merges": []},
        "pre_tokenizer": {"type": "ByteLevel", "use_regex": true},
        "added_tokens": [special(4, "<begin>"), special(5, "<|eot|>"), special(6, "<|eom|>"), special(7, "<end>")],
    })
}

#[test]
fn the_tokenizers_own_begin_and_all_ends_are_kept() {
    let model = directory(&json!({}), &[NORM]);
    put(&model, "tokenizer.json", &tokenizer());
    put(&model, "tokenizer_config.json", &json!({"bos_token": {"content": "<begin>"}, "eos_token": "<|eot|>"}));
    let gguf = converted(&model).expect("is converted");
    let id = |key: &str| gguf.token_id(&format!("tokenizer.ggml.{key}_token_id")).expect("an id");
    assert_eq!(id("bos"), Some(TokenId(4)), "config.json says 1");
    assert_eq!(["eos", "eot", "eom"].map(id), [5, 2, 3].map(|id| Some(TokenId(id))));

    put(&model, "generation_config.json", &json!({"eos_token_id": [2, 6]}));
    let why = refused(&model);
    assert!(why.contains("generation_config.json: eos_token_id: there are 4"), "{why}");

    let messages = directory(&json!({"eos_token_id": 5}), &[NORM]);
    put(&messages, "tokenizer.json", &tokenizer());
    put(&messages, "generation_config.json", &json!({"eos_token_id": [6, 5, 7]}));
    let gguf = converted(&messages).expect("is converted");
    let id = |key: &str| gguf.token_id(&format!("tokenizer.ggml.{key}_token_id")).expect("an id");
    assert_eq!(["eos", "eom", "eot"].map(id), [5, 6, 7].map(|id| Some(TokenId(id))));
    // The tokenizer says nothing of a begin here, so the configuration's stays.
    assert_eq!(id("bos"), Some(TokenId(1)));
}

#[test]
fn a_model_without_a_tokenizer_keeps_its_ends_and_how_it_samples() {
    let model = directory(&json!({}), &[NORM, ("model.embed_tokens.weight", Dtype::F32, &[8, 32], &[0; 1024])]);
    let defaults = json!({
        "eos_token_id": [2, 4], "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1,
    });
    put(&model, "generation_config.json", &defaults);
    let gguf = converted(&model).expect("is converted");
    let config = ModelConfig::from_gguf(&gguf).expect("a model");
    assert_eq!(config.eos_token_ids, [2, 3, 4].map(TokenId));
    let kept = GenerationDefaults::from_gguf(&gguf).expect("numbers");
    let given = GenerationDefaults::from_json(Path::new("g"), &defaults.to_string(), 8).expect("numbers");
    assert_eq!(GenerationDefaults { eos_token_ids: given.eos_token_ids.clone(), ..kept }, given);
}

#[test]
fn every_chat_template_is_kept_under_its_name() {
    let model = directory(&json!({}), &[NORM]);
    let with = |templates: Value| {
        put(&model, "tokenizer_config.json", &json!({"chat_template": templates}));
        converted(&model)
    };
    let text = |gguf: &Gguf, key: &str| gguf.string(&format!("tokenizer.{key}")).expect("a text").map(str::to_owned);
    let list = json!([{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}, {"name": "r-g", "template": "R"}]);
    let gguf = with(list).expect("is converted");
    assert_eq!(text(&gguf, "chat_template").as_deref(), Some("D"));
    assert_eq!(text(&gguf, "chat_template.tool_use").as_deref(), Some("T"));
    assert_eq!(text(&gguf, "chat_template.r_g").as_deref(), Some("R"));
    let names = gguf.array_strings("tokenizer.chat_templates").expect("texts").expect("is there");
    assert_eq!(names.collect::<Vec<_>>(), ["tool_use", "r_g"]);
    let only = with(json!([{"name": "tool_use", "template": "T"}])).expect("is converted");
    assert_eq!(text(&only, "chat_template").as_deref(), Some("T"));
    assert_eq!(text(&with(json!("P")).expect("is converted"), "chat_template").as_deref(), Some("P"));
    let two = json!([{"name": "r-g", "template": "T"}, {"name": "r_g", "template": "R"}]);
    assert!(with(two).expect_err("one name").message.contains("tokenizer_config.json: chat_template"));
}

/// A file of these tensors, and the folder that it lies in.
fn file(metadata: &[(&str, NewValue)], tensors: &[(NewTensor, Vec<u8>)]) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("old.gguf");
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let new: Vec<_> = tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
    write(&path, &metadata, &new, &mut |index| Ok(Cow::Borrowed(&tensors[index].1))).expect("is written");
    (directory, path)
}

fn rewritten(path: &Path, mixture: Option<Mixture>) -> Gguf {
    let gguf = Gguf::open(path).expect("a good file");
    let new = path.with_file_name("new.gguf");
    Draft::from_gguf(&gguf).expect("a model").write(&new, mixture, &mut |_, _| ()).expect("is written");
    Gguf::open(&new).expect("a good file")
}

#[test]
fn a_scale_beside_a_weight_goes_into_it_when_it_is_quantized_anew_and_stays_otherwise() {
    let tensor = |name: &str, shape: &[usize], format: StoredFormat| NewTensor {
        name: name.into(),
        shape: shape.into(),
        format,
    };
    // Two rows of 64 weights of 1, under a scale of 8.
    let block = [[0x38; 4].as_slice(), &[0x22; 32]].concat();
    let tensors = [
        (tensor("blk.0.ffn_up.scale", &[1], WeightFormat::F32.into()), 8f32.to_le_bytes().to_vec()),
        (tensor("blk.0.ffn_up.weight", &[2, 64], StoredFormat::ReadOnly(&NVFP4)), block.repeat(2)),
    ];
    let (_folder, path) = file(&[("general.architecture", NewValue::string("qwen3"))], &tensors);
    let raw = |gguf: &Gguf| {
        let tensor = gguf.tensor("blk.0.ffn_up.weight").expect("is there");
        let bytes = gguf.tensor_bytes(tensor).expect("is read").to_vec();
        RawTensor { format: tensor.format.expect("is read"), shape: tensor.shape.clone(), bytes: bytes.into() }
    };
    let eight = rewritten(&path, Some(Mixture::Q8_0));
    assert!(eight.tensor("blk.0.ffn_up.scale").is_none(), "it would count twice");
    let raw_eight = raw(&eight);
    assert_eq!(raw_eight.format, WeightFormat::Q8_0);
    assert!(raw_eight.to_f32().iter().all(|weight| (weight - 8.0).abs() < 0.01), "{:?}", raw_eight.to_f32());
    let same = rewritten(&path, None);
    assert!(same.tensor("blk.0.ffn_up.scale").is_some());
    assert_eq!(raw(&same).format, StoredFormat::ReadOnly(&NVFP4));
}

#[test]
fn a_file_that_is_merged_says_of_its_mixture_what_it_said() {
    let weight = NewTensor { name: "a.weight".into(), shape: vec![1, 32], format: WeightFormat::F32.into() };
    let tensors = [(weight, vec![0; 128])];
    let q3_k_l = [("general.architecture", NewValue::string("llama")), (FILE_TYPE, NewValue::u32(13))];
    let (_folder, path) = file(&q3_k_l, &tensors);
    assert_eq!(rewritten(&path, None).u64(FILE_TYPE).expect("a number"), Some(13));
    assert_eq!(rewritten(&path, Some(Mixture::Q8_0)).u64(FILE_TYPE).expect("a number"), Some(7));
    let (_folder, path) = file(&q3_k_l[..1], &tensors);
    assert_eq!(rewritten(&path, None).u64(FILE_TYPE).expect("a number"), Some(0));
}

#[test]
fn a_latent_that_cannot_be_is_refused_by_its_key() {
    let read = |change: Option<(&str, u32)>| {
        let mut sizes = vec![
            ("context_length", 64),
            ("embedding_length", 32),
            ("feed_forward_length", 32),
            ("block_count", 1),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("attention.key_length", 24),
            ("attention.value_length", 16),
            ("attention.key_length_mla", 16),
            ("attention.value_length_mla", 12),
            ("attention.kv_lora_rank", 16),
            ("attention.q_lora_rank", 0),
            ("rope.dimension_count", 8),
            ("expert_count", 4),
            ("expert_used_count", 2),
            ("expert_gating_func", 2),
        ];
        if let Some((key, number)) = change {
            sizes.retain(|(other, _)| *other != key);
            sizes.extend((number != 0).then_some((key, number)));
        }
        let sizes = sizes.into_iter().map(|(key, size)| (format!("deepseek2.{key}"), NewValue::u32(size)));
        let others = [
            ("general.architecture".to_owned(), NewValue::string("deepseek2")),
            ("deepseek2.attention.layer_norm_rms_epsilon".to_owned(), NewValue::f32(1e-6)),
        ];
        let metadata: Vec<_> = sizes.chain(others).collect();
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        let shape = vec![8, 32];
        let embedding = NewTensor { name: "token_embd.weight".into(), shape, format: WeightFormat::F32.into() };
        let (_folder, path) = file(&metadata, &[(embedding, vec![0; 1024])]);
        ModelConfig::from_gguf(&Gguf::open(&path).expect("a good file"))
    };
    let config = read(None).expect("a model");
    let latent = config.latent.expect("sizes");
    assert_eq!((latent.kv_rank, latent.q_rank, latent.nope, latent.rope, latent.value), (16, None, 8, 8, 12));
    assert_eq!((config.num_key_value_heads, config.head_dim, config.rope.rotary_dim), (2, 16, 8));
    let moe = config.moe.expect("experts");
    assert_eq!((moe.groups, moe.renormalize, moe.shared_experts), ((1, 1), Some(false), 0));
    for (key, number, why) in [
        ("rope.dimension_count", 16, "is 16, must leave some of the 16 numbers of a key"),
        ("attention.value_length_mla", 20, "is 20, must be at most the key's 16"),
        ("attention.head_count_kv", 3, "is 3, must be 1 or the 2 attention heads"),
        ("attention.kv_lora_rank", 0, "is missing"),
        ("expert_gating_func", 1, "is 1; supported is 2"),
        ("expert_gating_func", 0, "is missing; supported is 2"),
        ("expert_group_count", 3, "is 3, must divide the 4 experts"),
        ("expert_group_used_count", 2, "must be a whole number from 0 to 1"),
    ] {
        let refused = read(Some((key, number))).expect_err("is refused").message;
        assert!(refused.contains(&format!("metadata deepseek2.{key}: ")) && refused.contains(why), "{refused}");
    }
}
