#!/usr/bin/env python3
"""Makes tests/fixtures/long_tail/NAME: a small random checkpoint of an architecture that runs through candle-transformers, and
what another implementation makes of it in float32 on the CPU: the last logits, the best token at each position and 16 greedy
tokens for four prompts. The form is that of make_golden.py.

usage: make_long_tail.py [NAME ...]      default: all
needs: transformers, torch, safetensors, rwkv

The other implementation is Hugging Face transformers, without a cache; for RWKV it is the author's own package. A class that
transformers knows under other names than its files have (ChatGLM) is run under its names there and written under its own.
"""

import json
import os
import pathlib
import sys
import tempfile

import torch
import transformers
from safetensors.torch import save_file

MARGIN = 2e-3
LENGTHS = [1, 7, 33, 60]
GREEDY = 16
VOCAB = 256
OUT = pathlib.Path(__file__).parent.parent / "fixtures" / "long_tail"

USUAL = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}
FALCON = {"bias": False, "multi_query": True, "new_decoder_architecture": False, "alibi": False, "parallel_attn": True}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_hidden_layers": 2}
CASES = {
    # The module's GELU is the one by tanh; published checkpoints have the other.
    "falcon": ("Falcon", {**FALCON, "activation": "gelu_pytorch_tanh"}),
    "falcon-erf": ("Falcon", {**FALCON, "activation": "gelu"}),
    "phi": ("Phi", {"partial_rotary_factor": 0.5, "rope_theta": 10000.0, "num_key_value_heads": 4}),
    "olmo": ("Olmo", {"clip_qkv": 2.0, "rope_theta": 10000.0}),
    "gemma": ("Gemma", {"head_dim": 24, "rope_theta": 10000.0, "num_key_value_heads": 1}),
    "helium": ("Helium", {"head_dim": 16, "rope_theta": 10000.0}),
    "qwen2_moe": ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 32, "decoder_sparse_step": 1,
                               "norm_topk_prob": False, "tie_word_embeddings": False}),
    "gpt_bigcode": ("GPTBigCode", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 128,
                                   "multi_query": True, "activation_function": "gelu_pytorch_tanh"}),
    "deepseek_v2": ("DeepseekV2", {
        "moe_intermediate_size": 24, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "kv_lora_rank": 24, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
        "v_head_dim": 16, "n_group": 1, "topk_group": 1, "topk_method": "greedy", "num_key_value_heads": 4,
        "routed_scaling_factor": 1.5, "norm_topk_prob": False,
    }),
    "lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "block_auto_adjust_ff_dim": True,
                      "block_multiple_of": 8, "block_ffn_dim_multiplier": 1.0, "intermediate_size": 144}),
    "granitemoehybrid": ("GraniteMoeHybrid", {
        "layer_types": ["attention", "attention"], "num_local_experts": 0, "num_experts_per_tok": 0,
        "shared_intermediate_size": 96, "position_embedding_type": "rope", "embedding_multiplier": 4.0,
        "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 0.25, "tie_word_embeddings": True,
        "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_expand": 2,
    }),
    "recurrent_gemma": ("RecurrentGemma", {"block_types": ["recurrent", "recurrent", "attention"], "lru_width": 64,
                                           "num_hidden_layers": 3, "num_key_value_heads": 1, "intermediate_size": 96,
                                           "attention_window_size": 256}),
    "mamba": ("Mamba", {"state_size": 16, "conv_kernel": 4, "expand": 2, "time_step_rank": 4, "intermediate_size": 128}),
    "mamba2": ("Mamba2", {"state_size": 16, "conv_kernel": 4, "expand": 2, "head_dim": 16, "num_heads": 8, "n_groups": 1,
                          "tie_word_embeddings": True, "chunk_size": 16}),
    "chatglm": ("Glm", {"head_dim": 16, "attention_bias": True, "partial_rotary_factor": 0.5, "rope_theta": 10000.0}),
}
RWKV = {"rwkv5": 5, "rwkv6": 6, "rwkv7": 7}


def draw(weights):
    """Fills tensors in place with numbers that bfloat16 holds."""
    with torch.no_grad():
        for key, weight in weights:
            if ("norm" in key or "ln_" in key) and key.endswith("weight"):
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
            elif key.endswith("A_log"):
                weight.copy_(torch.rand_like(weight))
            elif key.endswith(("dt_proj.bias", "dt_bias")):
                weight.copy_(torch.rand_like(weight) - 2)
            elif key.endswith("recurrent_param"):
                weight.copy_(torch.rand_like(weight) - 3)
            elif "conv" in key and weight.dim() > 1:
                weight.copy_(0.5 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) * (0.1 if weight.dim() == 1 else weight.shape[-1] ** -0.5))
            weight.copy_(weight.bfloat16().float())


def make_results(every_logit, seed):
    """The results of every prompt by a function from ids to logits at every position, and the least margin of all."""
    random = torch.Generator().manual_seed(seed)
    results = []
    for length in LENGTHS:
        ids = torch.randint(3, VOCAB, (length,), generator=random).tolist()
        more = list(ids)
        for _ in range(GREEDY):
            more.append(int(every_logit(more)[-1].argmax()))
        logits = every_logit(more)
        best = logits[:-1].topk(2, dim=-1).values
        results.append({
            "ids": ids,
            "last_logits": logits[length - 1].tolist(),
            "argmax": logits[:length].argmax(-1).tolist(),
            "greedy": more[length:],
            "min_margin": float((best[:, 0] - best[:, 1]).min()),
        })
    return results


def transformers_model(name, seed):
    """A model and its function from ids to logits."""
    kind, fields = CASES[name]
    config = getattr(transformers, f"{kind}Config")(**{**USUAL, **fields})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    draw(model.named_parameters())
    try:
        model.set_attn_implementation("eager")
    except (ValueError, AttributeError):
        pass
    model.eval()
    return model, lambda ids: model(torch.tensor([ids]), use_cache=False).logits[0].float()


def write_chatglm(model, out):
    """The files of ChatGLM: other names, and query, key and value in one."""
    old, new = model.state_dict(), {}
    for key, weight in old.items():
        key = key.replace("model.layers", "transformer.encoder.layers").replace("self_attn.o_proj", "self_attention.dense")
        key = key.replace("mlp.gate_up_proj", "mlp.dense_h_to_4h").replace("mlp.down_proj", "mlp.dense_4h_to_h")
        key = key.replace("model.embed_tokens", "transformer.embedding.word_embeddings")
        key = key.replace("model.norm", "transformer.encoder.final_layernorm").replace("lm_head", "transformer.output_layer")
        if "q_proj" in key:
            parts = [old_part(old, key, part) for part in "qkv"]
            new[key.replace("self_attn.q_proj", "self_attention.query_key_value")] = torch.cat(parts)
        elif "k_proj" not in key and "v_proj" not in key:
            new[key] = weight
    save_file({key: weight.bfloat16().contiguous() for key, weight in new.items()}, out / "model.safetensors")
    config = model.config
    (out / "config.json").write_text(json.dumps({
        "architectures": ["ChatGLMModel"], "model_type": "chatglm", "num_layers": config.num_hidden_layers,
        "padded_vocab_size": VOCAB, "vocab_size": VOCAB, "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size, "kv_channels": config.head_dim,
        "num_attention_heads": config.num_attention_heads, "seq_length": config.max_position_embeddings,
        "layernorm_epsilon": config.rms_norm_eps, "rmsnorm": True, "apply_residual_connection_post_layernorm": False,
        "post_layer_norm": True, "add_bias_linear": False, "add_qkv_bias": True, "bias_dropout_fusion": True,
        "multi_query_attention": True, "multi_query_group_num": config.num_key_value_heads,
        "apply_query_key_layer_scaling": True, "attention_softmax_in_fp32": True, "fp32_residual_connection": False,
        "eos_token_id": 2,
    }, indent=2))


def old_part(old, key, part):
    return old[key.replace("transformer.encoder.layers", "model.layers").replace("q_proj", f"{part}_proj")]


def rwkv_weights(version, seed):
    """Tensors under the author's names."""
    torch.manual_seed(seed)
    width, heads, size, wide, layers = 64, 4, 16, 128, 2
    shapes = {"emb.weight": (VOCAB, width), "head.weight": (VOCAB, width)}
    for norm in ["ln_out", "blocks.0.ln0"]:
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for layer in range(layers):
        att, ffn = f"blocks.{layer}.att", f"blocks.{layer}.ffn"
        for norm in [f"blocks.{layer}.ln1", f"blocks.{layer}.ln2", f"{att}.ln_x"]:
            shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
        linears = ["receptance", "key", "value", "output"] + (["gate"] if version < 7 else [])
        shapes |= {f"{att}.{linear}.weight": (width, width) for linear in linears}
        shapes |= {f"{ffn}.key.weight": (wide, width), f"{ffn}.value.weight": (width, wide)}
        if version < 7:
            shapes[f"{ffn}.receptance.weight"] = (width, width)
        if version == 5:
            shapes |= {f"{att}.time_mix_{x}": (1, 1, width) for x in "kvrg"}
            shapes |= {f"{ffn}.time_mix_{x}": (1, 1, width) for x in "kr"}
            shapes |= {f"{att}.time_decay": (heads, size), f"{att}.time_faaaa": (heads, size)}
        if version == 6:
            shapes |= {f"{att}.time_maa_{x}": (1, 1, width) for x in "xwkvrg"}
            shapes |= {f"{ffn}.time_maa_{x}": (1, 1, width) for x in "kr"}
            shapes |= {f"{att}.time_decay": (1, 1, width), f"{att}.time_faaaa": (heads, size)}
            shapes |= {f"{att}.time_maa_w1": (width, 5 * heads), f"{att}.time_maa_w2": (5, heads, width)}
            shapes |= {f"{att}.time_decay_w1": (width, 2 * heads), f"{att}.time_decay_w2": (2 * heads, width)}
        if version == 7:
            shapes |= {f"{att}.{x}": (1, 1, width) for x in
                       ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "v0", "k_k", "k_a"]}
            shapes |= {f"{att}.{x}1": (width, 8) for x in "wavg"} | {f"{att}.{x}2": (8, width) for x in "wavg"}
            shapes |= {f"{att}.r_k": (heads, size), f"{ffn}.x_k": (1, 1, width)}
    weights = {key: torch.empty(shape) for key, shape in shapes.items()}
    for key, weight in weights.items():
        if ".ln" in key or key.startswith("ln_"):
            weight.copy_(0.1 * torch.randn_like(weight) + (1 if key.endswith("weight") else 0))
        elif "time_mix" in key or "time_maa" in key and weight.dim() == 3 and weight.shape[0] == 1 or ".x_" in key:
            weight.copy_(torch.rand_like(weight))
        elif key.endswith("time_decay"):
            weight.copy_(torch.rand_like(weight) * 2 - 2)
        elif weight.dim() == 3 or "faaaa" in key or "r_k" in key:
            weight.copy_(0.3 * torch.randn_like(weight))
        else:
            weight.copy_(torch.randn_like(weight) * weight.shape[-1] ** -0.5)
        weight.copy_(weight.bfloat16().float())
    return weights


def rwkv_model(version, seed):
    """The author's package over such tensors."""
    os.environ.update(RWKV_JIT_ON="0", RWKV_CUDA_ON="0", RWKV_V7_ON="1" if version == 7 else "0")
    for module in [module for module in sys.modules if module.split(".")[0] == "rwkv"]:
        del sys.modules[module]
    from rwkv.model import RWKV
    weights = rwkv_weights(version, seed)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(weights, f"{folder}/model.pth")
        if version == 7:
            model = RWKV(model=f"{folder}/model", strategy="cpu fp32")
        else:
            model = RWKV(model=f"{folder}/model.pth", strategy="cpu fp32", verbose=False)

    def every_logit(ids):
        state, rows = None, []
        for token in ids:
            row, state = model.forward([token], state)
            rows.append(row.float())
        return torch.stack(rows)

    return weights, every_logit


def write_rwkv(version, weights, out):
    """The files of versions 5 and 6 as Hugging Face has them; of 7, as the author has them."""
    config = {
        "architectures": [f"Rwkv{version}ForCausalLM"], "model_type": f"rwkv{version}", "vocab_size": VOCAB,
        "hidden_size": 64, "num_hidden_layers": 2, "head_size": 16, "intermediate_size": 128, "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if version < 7:
        config |= {"attention_hidden_size": 64, "num_attention_heads": 16, "layer_norm_epsilon": 1e-5, "rescale_every": 6}
        long = {"k": "key", "v": "value", "r": "receptance", "g": "gate"}

        def renamed(key):
            key = key.replace(".att.", ".attention.").replace(".ffn.", ".feed_forward.").replace(".ln0.", ".pre_ln.")
            key = key.replace("time_maa_", "time_mix_")
            for short, word in long.items():
                if key.endswith(f"time_mix_{short}"):
                    key = key[:-1] + word
            key = key.replace("emb.weight", "embeddings.weight")
            return key if key.startswith("head.") else f"rwkv.{key}"
        weights = {renamed(key): weight for key, weight in weights.items()}
    save_file({key: weight.bfloat16().contiguous() for key, weight in weights.items()}, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config, indent=2))


def make(name):
    for seed in range(1, 300):
        model, every_logit = rwkv_model(RWKV[name], seed) if name in RWKV else transformers_model(name, seed)
        with torch.no_grad():
            results = make_results(every_logit, seed)
        if min(result["min_margin"] for result in results) > MARGIN:
            break
    else:
        raise SystemExit(f"{name}: no seed keeps the margin")
    out = OUT / name
    out.mkdir(parents=True, exist_ok=True)
    if name in RWKV:
        import importlib.metadata
        write_rwkv(RWKV[name], model, out)
        reference = f"rwkv {importlib.metadata.version('rwkv')}, torch {torch.__version__}, float32 on bf16 weights"
    else:
        if name == "chatglm":
            write_chatglm(model, out)
        else:
            model.bfloat16().save_pretrained(out)
            (out / "generation_config.json").unlink(missing_ok=True)
        reference = f"transformers {transformers.__version__}, torch {torch.__version__}, float32 eager on bf16 weights"
    (out / "golden.json").write_text(json.dumps({"reference": reference, "prompts": results}))
    print(f"{name}: seed {seed}, {sum(p.stat().st_size for p in out.iterdir())} bytes", flush=True)


for each in sys.argv[1:] or [*CASES, *RWKV]:
    make(each)
