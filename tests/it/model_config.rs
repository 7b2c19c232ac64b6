//! Configurations in every spelling, and files that lie: always a named field, never a panic.

use std::path::Path;

use candlewick::{
    arch::{config::ModelConfig, generation_config::GenerationDefaults},
    error::{Code, Result},
    ids::TokenId,
    layers::{attention::QueryGrowth, rope::RopeScaling},
};
use serde_json::{Value, json};

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 320,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "hidden_act": "silu",
        "rope_theta": 500000.0, "eos_token_id": 2, "bos_token_id": 1, "torch_dtype": "bfloat16",
    })
}

/// The configuration with some fields replaced; a null removes.
fn with(fields: Value) -> Value {
    let mut config = llama();
    for (name, value) in fields.as_object().expect("an object") {
        config[name] = value.clone();
    }
    config
}

fn read(config: &Value) -> Result<ModelConfig> {
    ModelConfig::from_hf_json(Path::new("config.json"), &config.to_string())
}

#[test]
fn the_older_and_the_newer_spelling_say_the_same() {
    let newer = json!({"rope_theta": null, "torch_dtype": null, "dtype": "bfloat16",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}});
    assert_eq!(read(&llama()).unwrap(), read(&with(newer)).unwrap());

    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let mut newer = llama3.clone();
    newer["rope_theta"] = json!(500000.0);
    let mut oldest = llama3.clone();
    oldest["type"] = oldest["rope_type"].take();
    let expected = read(&with(json!({"rope_scaling": llama3}))).unwrap();
    assert!(matches!(expected.rope.scaling, RopeScaling::Llama3 { .. }));
    assert_eq!(read(&with(json!({"rope_scaling": oldest}))).unwrap(), expected);
    assert_eq!(read(&with(json!({"rope_theta": null, "rope_parameters": newer}))).unwrap(), expected);
}

#[test]
fn what_a_file_may_leave_out_follows_from_the_rest() {
    let config = read(&with(json!({"head_dim": null, "num_key_value_heads": null, "eos_token_id": null,
        "bos_token_id": null, "rope_theta": null, "rms_norm_eps": null})))
    .unwrap();
    assert_eq!((config.head_dim, config.num_key_value_heads), (16, 4));
    assert_eq!((config.rope.theta, config.rope.rotary_dim, config.norm_eps), (10_000.0, 16, 1e-6));
    assert_eq!((config.eos_token_ids, config.bos_token_id), (vec![], None));
    let several = read(&with(json!({"eos_token_id": [2, 7], "partial_rotary_factor": 0.5}))).unwrap();
    assert_eq!(several.eos_token_ids, [TokenId(2), TokenId(7)]);
    assert_eq!(several.rope.rotary_dim, 16);
}

#[test]
fn windows_follow_layer_types_or_the_flags_or_the_architecture() {
    let windows = |fields: Value, by_default: bool| {
        let config = read(&with(fields)).unwrap();
        (0..3).map(|layer| config.sliding_window.of_layer(layer, by_default)).collect::<Vec<_>>()
    };
    let w = Some(24);
    assert_eq!(windows(json!({"sliding_window": 24}), true), [w, w, w]);
    assert_eq!(windows(json!({"sliding_window": 24}), false), [None; 3]);
    assert_eq!(windows(json!({"sliding_window": null}), true), [None; 3]);
    let flags = json!({"sliding_window": 24, "use_sliding_window": true, "max_window_layers": 2});
    assert_eq!(windows(flags, false), [None, None, w]);
    let off = json!({"sliding_window": 24, "use_sliding_window": false});
    assert_eq!(windows(off, true), [None; 3]);
    let types = ["sliding_attention", "full_attention", "sliding_attention"];
    assert_eq!(windows(json!({"sliding_window": 24, "layer_types": types}), false), [w, None, w]);
}

#[test]
fn an_impossible_field_is_named_with_its_file() {
    for (field, value, says) in [
        ("architectures", json!(null), "is missing"),
        ("architectures", json!([]), "is missing"),
        ("architectures", json!(["XLNetLMHeadModel"]), "supported are LlamaForCausalLM"),
        ("architectures", json!("LlamaForCausalLM"), "list of strings"),
        ("hidden_act", json!("mish"), "supported are silu"),
        ("qk_layernorm", json!(true), "not supported"),
        ("hidden_size", json!(null), "is missing"),
        ("hidden_size", json!(0), "from 1"),
        ("hidden_size", json!(-64), "from 1"),
        ("hidden_size", json!(64.5), "whole number"),
        ("hidden_size", json!("64"), "whole number"),
        ("hidden_size", json!(u64::MAX), "from 1"),
        ("intermediate_size", json!(1e300), "whole number"),
        ("num_hidden_layers", json!(0), "from 1 to 1024"),
        ("num_hidden_layers", json!(1025), "from 1 to 1024"),
        ("num_attention_heads", json!(0), "from 1"),
        ("num_key_value_heads", json!(0), "from 1"),
        ("num_key_value_heads", json!(3), "must divide the 4"),
        ("num_key_value_heads", json!(8), "must divide the 4"),
        ("head_dim", json!(6), "from 8 to 256"),
        ("head_dim", json!(9), "even"),
        ("head_dim", json!(512), "from 8 to 256"),
        ("vocab_size", json!(1 << 25), "from 1"),
        ("max_position_embeddings", json!(1u64 << 40), "from 1"),
        ("rms_norm_eps", json!(0), "between 0 and 1"),
        ("rms_norm_eps", json!(-1e-6), "between 0 and 1"),
        ("rope_theta", json!(-1), "above 0"),
        ("rope_theta", json!("a"), "above 0"),
        ("rope_scaling", json!([]), "must be an object"),
        ("partial_rotary_factor", json!(2), "at most 1"),
        ("partial_rotary_factor", json!(0.01), "no number of a head"),
        ("tie_word_embeddings", json!("yes"), "true or false"),
        ("eos_token_id", json!(320), "below vocab_size 320"),
        ("eos_token_id", json!([2, -1]), "below vocab_size 320"),
        ("eos_token_id", json!({"a": 1}), "below vocab_size 320"),
        ("sliding_window", json!(0), "from 1"),
        ("layer_types", json!(["full_attention"]), "1 entries for 3 layers"),
        ("layer_types", json!(["full_attention", "full_attention", "chunked_attention"]), "chunked_attention"),
    ] {
        let error = read(&with(json!({ field: value }))).unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition);
        assert!(error.message.starts_with(&format!("config.json: {field}: ")), "{field}: {error}");
        assert!(error.message.contains(says), "{field}: {error}");
    }
    for (scaling, field) in [
        (json!({"rope_type": "ntk"}), "rope_type"),
        (json!({"type": "ntk"}), "type"),
        (json!({"type": "dynamic"}), "factor"),
        (json!({"rope_type": "yarn", "factor": 0}), "factor"),
        (json!({"rope_type": "yarn", "factor": 2, "truncate": 1}), "truncate"),
        (json!({"rope_type": "longrope", "short_factor": [1.0]}), "short_factor"),
        (json!({"rope_type": "longrope", "short_factor": vec![1.0; 16], "long_factor": vec![0.0; 16]}), "long_factor"),
        (json!({"rope_type": "linear"}), "factor"),
        (json!({"rope_type": "linear", "factor": 0}), "factor"),
        (json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}), "high_freq_factor"),
    ] {
        let error = read(&with(json!({"rope_scaling": scaling}))).unwrap_err();
        assert!(error.message.starts_with(&format!("config.json: rope_scaling.{field}: ")), "{error}");
    }
}

#[test]
fn an_impossible_latent_is_named_by_its_field() {
    let latent = |field: &str, value: Value| {
        let sizes = json!({
            "num_key_value_heads": 4, "kv_lora_rank": 24, "q_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
            "v_head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "head_dim": 8,
        });
        let mut config = with(sizes);
        config[field] = value;
        read(&config)
    };
    let good = latent("q_lora_rank", json!(null)).expect("a direct query is one way");
    assert_eq!((good.head_dim, good.rope.rotary_dim, good.latent.map(|latent| latent.q_rank)), (24, 8, Some(None)));
    for (field, value, says) in [
        ("kv_lora_rank", json!(0), "from 1"),
        ("qk_nope_head_dim", json!(null), "is missing"),
        ("qk_rope_head_dim", json!(7), "must be even"),
        ("v_head_dim", json!(25), "at most the key's 24"),
        ("num_key_value_heads", json!(2), "must be the 4 attention heads"),
        ("n_group", json!(3), "must divide the 8 experts"),
        ("topk_group", json!(5), "from 1 to 4"),
        ("topk_group", json!(1), "opens 1 groups of 2 experts, fewer than the 3"),
        ("n_shared_experts", json!(65), "from 0 to 64"),
    ] {
        let error = latent(field, value).unwrap_err();
        assert!(error.message.starts_with(&format!("config.json: {field}: ")), "{field}: {error}");
        assert!(error.message.contains(says), "{field}: {error}");
    }
    let error = latent("qk_nope_head_dim", json!(256)).unwrap_err();
    assert!(error.message.contains("head_dim: is 264"), "{error}");
}

#[test]
fn no_value_in_any_field_panics() {
    let names = llama().as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    let more = ["rope_scaling", "rope_parameters", "layer_types", "sliding_window", "max_window_layers", "mlp_bias"];
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(7),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e308),
        json!(0.3),
        json!(""),
        json!("x"),
        json!([]),
        json!([[]]),
        json!({}),
        json!([1e40]),
        json!({"rope_type": 3}),
        json!({"rope_theta": 1e300}),
        json!({"rope_type": "linear", "factor": 1e-300}),
    ];
    for name in names.iter().map(String::as_str).chain(more) {
        for value in &values {
            if let Err(error) = read(&with(json!({ name: value }))) {
                assert!(error.message.starts_with("config.json: "), "{error}");
                assert!(!error.violations.is_empty(), "{error}");
            }
        }
    }
    let text = llama().to_string();
    for cut in 0..text.len() {
        let error = ModelConfig::from_hf_json(Path::new("config.json"), &text[..cut]).unwrap_err();
        assert!(error.message.starts_with("config.json: json: "), "{error}");
    }
    let deep = "[".repeat(100_000);
    assert!(ModelConfig::from_hf_json(Path::new("config.json"), &deep).is_err());
}

#[test]
fn a_generation_config_gives_defaults_and_end_tokens() {
    let read = |json: Value| GenerationDefaults::from_json(Path::new("generation_config.json"), &json.to_string(), 320);
    let defaults =
        read(json!({"eos_token_id": [2, 3], "temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": true}));
    let defaults = defaults.unwrap();
    assert_eq!(defaults.eos_token_ids, [TokenId(2), TokenId(3)]);
    let params = defaults.sampling_params();
    assert_eq!((params.temperature, params.top_k, params.top_p, params.min_p), (0.6, 20, 0.95, 0.0));
    for (json, field) in [
        (json!({"temperature": -1}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_k": -1}), "top_k"),
        (json!({"min_p": 2}), "min_p"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"eos_token_id": 400}), "eos_token_id"),
    ] {
        let error = read(json).unwrap_err();
        assert!(error.message.starts_with(&format!("generation_config.json: {field}: ")), "{error}");
    }
}

/// A model of five layers with states.
fn hybrid(fields: Value) -> Value {
    let mut config = with(json!({"architectures": ["Qwen3_5ForCausalLM"], "num_hidden_layers": 5,
        "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 16, "linear_value_head_dim": 24,
        "linear_conv_kernel_dim": 4}));
    for (name, value) in fields.as_object().expect("an object") {
        config[name] = value.clone();
    }
    config
}

#[test]
fn layers_that_keep_states_are_those_of_the_types_or_all_but_every_fourth() {
    let full = |config: &Value| {
        let linear = read(config).unwrap().linear_attention.unwrap();
        (0..5).filter(|&layer| !linear.of_layer(layer).0).collect::<Vec<_>>()
    };
    assert_eq!(full(&hybrid(json!({}))), [3]);
    assert_eq!(full(&hybrid(json!({"full_attention_interval": 2}))), [1, 3]);
    let [linear, attention] = ["linear_attention", "full_attention"];
    let types = json!({"full_attention_interval": 2, "layer_types": [attention, linear, linear, attention, linear]});
    assert_eq!(full(&hybrid(types.clone())), [0, 3]);
    let of_types = read(&hybrid(types)).unwrap().linear_attention.unwrap();
    let places: Vec<_> = (0..5).map(|layer| of_types.of_layer(layer)).collect();
    assert_eq!(places, [(false, 0), (true, 0), (true, 1), (false, 1), (true, 2)]);
    assert_eq!((of_types.num_kv_layers(), of_types.state_shape().num_layers), (2, 3));
}

#[test]
fn the_text_of_a_model_of_pictures_is_read_where_it_stands() {
    let mut text = hybrid(json!({"architectures": null, "tie_word_embeddings": null}));
    let wrapped = |text: &Value| {
        json!({"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "text_config": text,
            "tie_word_embeddings": true, "vision_config": {"depth": 1}})
    };
    let plain = read(&hybrid(json!({"tie_word_embeddings": true}))).unwrap();
    let expected = ModelConfig {
        architecture: "Qwen3_5ForConditionalGeneration".to_owned(),
        model_type: "qwen3_5".to_owned(),
        ..plain
    };
    assert_eq!(read(&wrapped(&text)).unwrap(), expected);
    text["hidden_size"] = json!("wide");
    let error = read(&wrapped(&text)).unwrap_err();
    assert_eq!(error.violations[0].field, "text_config.hidden_size");
}

#[test]
fn gemma_3_beside_a_model_of_pictures_is_told_by_its_widths_alone() {
    // As published for 4B and 27B: what is left out is what the class takes for granted.
    let text = json!({"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024});
    let wrapped = |text: &Value| {
        json!({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "eos_token_id": [1, 106],
            "text_config": text, "vision_config": {"hidden_size": 1152}})
    };
    let config = read(&wrapped(&text)).unwrap();
    assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.head_dim), (8, 4, 256));
    assert_eq!((config.vocab_size, config.max_position_embeddings, config.norm_eps), (262_208, 131_072, 1e-6));
    assert_eq!(config.multipliers.query_pre_attn_scalar, Some(256.0));
    assert_eq!((config.rope.theta, &config.rope.scaling), (1e6, &RopeScaling::Linear { factor: 8.0 }));
    let local = config.local_rope.unwrap();
    assert_eq!((local.theta, local.scaling), (1e4, RopeScaling::Default));
    assert_eq!(config.sliding_window.size, Some(1024));
    assert!(config.tie_word_embeddings);
    assert_eq!(config.eos_token_ids, [1, 106].map(TokenId));

    let mut larger = text;
    for (field, value) in [("num_attention_heads", 32), ("num_key_value_heads", 16), ("head_dim", 128)] {
        larger[field] = json!(value);
    }
    larger["query_pre_attn_scalar"] = json!(168);
    // Said to be none is another thing than not said.
    larger["sliding_window"] = Value::Null;
    let config = read(&wrapped(&larger)).unwrap();
    assert_eq!((config.num_attention_heads, config.head_dim), (32, 128));
    assert_eq!((config.multipliers.query_pre_attn_scalar, config.sliding_window.size), (Some(168.0), None));
}

#[test]
fn queries_grow_in_ministral_3_alone_and_its_files_say_how() {
    let yarn = json!({"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 32, "llama_4_scaling_beta": 0.1});
    let of = |model_type: &str, yarn: &Value| {
        let change =
            json!({"architectures": null, "model_type": model_type, "rope_theta": null, "rope_parameters": yarn});
        read(&json!({"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
            "text_config": with(change)}))
    };
    let growth = QueryGrowth { beta: 0.1, original_max_position_embeddings: 32 };
    assert_eq!(of("ministral3", &yarn).unwrap().query_growth, Some(growth));
    assert_eq!(of("mistral", &yarn).unwrap().query_growth, None);
    for field in ["llama_4_scaling_beta", "original_max_position_embeddings"] {
        let mut less = yarn.clone();
        less[field] = Value::Null;
        let error = of("ministral3", &less).unwrap_err();
        assert_eq!(error.violations[0].field, format!("text_config.rope_parameters.{field}"), "{error}");
    }
    assert_eq!(of("ministral3", &Value::Null).unwrap_err().violations[0].field, "text_config.rope_parameters");
}

#[test]
fn the_width_of_experts_is_enough_where_all_layers_have_them() {
    let fields = json!({"intermediate_size": null, "num_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48});
    let moe = read(&hybrid(fields)).unwrap().moe.unwrap();
    assert_eq!((moe.intermediate_size, moe.weighed_expert_size), (Some(32), Some(48)));
}

#[test]
fn heads_that_keep_no_state_or_that_nobody_has_are_refused_by_name() {
    for (config, field, says) in [
        (hybrid(json!({"linear_num_value_heads": null})), "linear_num_value_heads", "missing"),
        (hybrid(json!({"linear_num_key_heads": 4})), "linear_num_key_heads", "must divide the 6 value heads"),
        (hybrid(json!({"linear_key_head_dim": 257})), "linear_key_head_dim", "from 1 to 256"),
        (hybrid(json!({"linear_value_head_dim": 0})), "linear_value_head_dim", "from 1 to 256"),
        (hybrid(json!({"linear_conv_kernel_dim": 1})), "linear_conv_kernel_dim", "from 2 to 8"),
        (hybrid(json!({"layer_types": ["linear_attention"]})), "layer_types", "1 entries for 5 layers"),
        (hybrid(json!({"layer_types": vec!["linear_attention"; 5]})), "layer_types", "must have full_attention"),
        (hybrid(json!({"full_attention_interval": 6})), "layer_types", "must have full_attention"),
        (hybrid(json!({"architectures": ["LlamaForCausalLM"]})), "linear_num_value_heads", "has no such heads"),
        (
            with(json!({"layer_types": ["linear_attention", "full_attention", "full_attention"]})),
            "layer_types",
            "linear_attention",
        ),
    ] {
        let error = read(&config).unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition, "{error}");
        assert_eq!(error.violations[0].field, field, "{error}");
        assert!(error.message.contains(says), "{error}");
    }
}
