#!/usr/bin/env python3
"""Makes tests/fixtures/golden/NAME: a small random checkpoint of a Hugging Face architecture, and what transformers makes
of it in float32 on the CPU: the last logits, the best token at each position and 32 greedy tokens for four prompts.

usage: make_golden.py [NAME ...]      default: all of CASES
needs: transformers, torch

A seed is taken whose two best logits are never nearer than MARGIN, so that the best token does not hang on the order of
additions. Tokens are run one at a time where a case says `stepwise`: transformers turns the tokens of a prompt by the
prompt's length under a dynamic scaling, we turn each as if it were the last.
"""

import json
import pathlib
import sys

import torch
import transformers

MARGIN = 2e-3
LENGTHS = [1, 7, 33, 80]
GREEDY = 32
OUT = pathlib.Path(__file__).parent.parent / "fixtures" / "golden"

USUAL = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}
ROPE = {"rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, **ROPE}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, **ROPE}
DEEP = {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}
LATENT = {
    "num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4,
    "topk_group": 2, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "kv_lora_rank": 24, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 16,
}
LONG = {
    "rope_type": "longrope", "original_max_position_embeddings": 4, **ROPE,
    "short_factor": [1.0 + k / 8 for k in range(8)], "long_factor": [1.0 + k for k in range(8)],
}
# Turned by a quarter; in sections for pictures, which text does not see.
QUARTER = {"rope_type": "default", "partial_rotary_factor": 0.25, **ROPE}
MROPE = {"mrope_section": [2, 1, 1], "mrope_interleaved": True, **QUARTER}
DELTA = {
    "head_dim": 32, "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "rope_parameters": MROPE,
}
SHARED = {
    "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48,
}
# What stands beside the text models of those that see pictures.
PICTURES = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 2, "out_hidden_size": 64,
    "num_position_embeddings": 4, "spatial_merge_size": 1,
}
SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 4, "patch_size": 2,
}
PIXTRAL = {**SIGLIP, "model_type": "pixtral", "head_dim": 8}
# Queries grow from the seventeenth token on.
GROWING = {**YARN, "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
STRETCHED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", **ROPE},
}
CASES = {
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}, {}),
    "llama-mha": ("Llama", {"num_key_value_heads": 4}, {}),
    "ministral3": ("Ministral3", {"rope_parameters": GROWING, "head_dim": 16}, {}),
    "mistral3-vision": ("Mistral3", {"model_type": "mistral", "head_dim": 32, "sliding_window": None},
                        {"vision": PIXTRAL, "whole": {"spatial_merge_size": 1, "tie_word_embeddings": False}}),
    "gemma3-vision": ("Gemma3", {"rope_parameters": STRETCHED, "sliding_window": 24, "head_dim": 32,
                                 "query_pre_attn_scalar": 32,
                                 "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
                      {"vision": SIGLIP, "whole": {"mm_tokens_per_image": 4}}),
    "cohere2": ("Cohere2", {"sliding_window": 24, "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
                            "num_hidden_layers": 4, "logit_scale": 0.25, "head_dim": 16}, {}),
    "exaone4": ("Exaone4", {"sliding_window": 24, "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
                            "num_hidden_layers": 4, "sliding_window_pattern": "LLLG", "head_dim": 16}, {}),
    "stablelm": ("StableLm", {"use_qkv_bias": True}, {}),
    "stablelm-parallel": ("StableLm", {"use_parallel_residual": True}, {}),
    # It has as many of both, and its class reads no such field.
    "gpt_neox": ("GPTNeoX", {"num_key_value_heads": 4}, {}),
    "deepseek_v3": ("DeepseekV3", {**LATENT, "q_lora_rank": 32, "n_shared_experts": 2, "rope_parameters": DEEP}, {}),
    "deepseek_v3-direct": ("DeepseekV3", {**LATENT, "q_lora_rank": None, "v_head_dim": 24, "rope_interleave": False}, {}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, **ROPE}}, {}),
    "llama-dynamic": ("Llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 48}, {"stepwise": True}),
    "qwen3-yarn": ("Qwen3", {"rope_parameters": YARN, "head_dim": 32}, {}),
    "phi3-longrope": ("Phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 4},
                      {"lengths": [6, 7, 33, 80]}),
    # No sequence is longer than the first training's, so that the short list counts from the first token to the last.
    "phi3-longrope-short": ("Phi3", {"rope_parameters": {**LONG, "original_max_position_embeddings": 128},
                                     "original_max_position_embeddings": 128}, {}),
    "ministral": ("Ministral", {"sliding_window": 24, "head_dim": 16,
                                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, {}),
    "qwen3_5": ("Qwen3_5", {**DELTA, "linear_num_value_heads": 4, "linear_value_head_dim": 24, "num_hidden_layers": 5}, {}),
    "qwen3_5-tied": ("Qwen3_5", {**DELTA, "tie_word_embeddings": True, "attention_bias": True, "linear_conv_kernel_dim": 3,
                                 "linear_key_head_dim": 20, "full_attention_interval": 2}, {}),
    "qwen3_5-vision": ("Qwen3_5", DELTA, {"vision": PICTURES}),
    "qwen3_5_moe": ("Qwen3_5Moe", {**DELTA, **SHARED}, {}),
    "qwen3_next": ("Qwen3Next", {**DELTA, **SHARED, "linear_num_value_heads": 6, "rope_parameters": QUARTER,
                                 "mlp_only_layers": [1]}, {}),
}


def blank(name):
    """A model of a case as its class makes it."""
    kind, fields, options = CASES[name]
    fields = {**USUAL, **fields}
    if options.get("vision"):
        whole = options.get("whole", {})
        config = getattr(transformers, f"{kind}Config")(text_config=fields, vision_config=options["vision"], **whole)
        return getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    configs = [f"{kind}TextConfig", f"{kind}Config"]
    config = next(getattr(transformers, c) for c in configs if hasattr(transformers, c))(**fields)
    classes = [f"{kind}ForCausalLM", f"{kind}LMHeadModel"]
    return next(getattr(transformers, c) for c in classes if hasattr(transformers, c))(config)


def checkpoint(name, seed):
    """A model whose weights are as bfloat16 holds them, in float32."""
    torch.manual_seed(seed)
    model = blank(name)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key and key.endswith("weight"):
                # From what the class begins with: 1, or 0 where it adds the 1 itself.
                weight.add_(0.2 * torch.randn_like(weight))
            elif key.endswith("A_log"):
                # States that last, beside some that do not.
                weight.copy_(torch.empty_like(weight).uniform_(0.01, 1.0).log())
            else:
                weight.copy_(torch.randn_like(weight) * (0.1 if weight.dim() == 1 else weight.shape[-1] ** -0.5))
        for key, bias in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                bias.copy_((0.1 * torch.randn_like(bias)).bfloat16().float())
        for weight in model.parameters():
            weight.copy_(weight.bfloat16().float())
    model.set_attn_implementation("eager")
    return model.eval()


def run(model, ids, stepwise, greedy=0):
    """Logits at every position of the ids and of as many greedy tokens, and all ids."""
    cache, rows, ids = transformers.DynamicCache(config=model.config), [], list(ids)
    chunks = [[token] for token in ids] if stepwise else [ids]
    position, end = 0, len(ids) + greedy
    while chunks:
        chunk = chunks.pop(0)
        places = torch.arange(position, position + len(chunk))[None]
        out = model(torch.tensor([chunk]), past_key_values=cache, use_cache=True, position_ids=places)
        cache, position = out.past_key_values, position + len(chunk)
        rows.append(out.logits[0])
        if not chunks and position < end:
            ids.append(int(out.logits[0, -1].argmax()))
            chunks.append(ids[-1:])
    return torch.cat(rows), ids


def prompts(model, name, seed):
    """The results of every prompt, and the least margin of all."""
    options = CASES[name][2]
    stepwise = options.get("stepwise", False)
    draw = torch.Generator().manual_seed(seed)
    results = []
    for length in options.get("lengths", LENGTHS):
        ids = torch.randint(3, USUAL["vocab_size"], (length,), generator=draw).tolist()
        every, all_ids = run(model, ids, stepwise, GREEDY)
        logits = every[:length]
        best = every.topk(2, dim=-1).values
        results.append({
            "ids": ids,
            "last_logits": logits[-1].tolist(),
            "argmax": logits.argmax(-1).tolist(),
            "greedy": all_ids[length:],
            "min_margin": float((best[:, 0] - best[:, 1]).min()),
        })
    return results


def write(out, model, results, how):
    reference = f"transformers {transformers.__version__}, torch {torch.__version__}, {how}"
    golden = {"architecture": type(model).__name__, "reference": reference, "prompts": results}
    (out / "golden.json").write_text(json.dumps(golden))


def make(name):
    for seed in range(1, 200):
        model = checkpoint(name, seed)
        with torch.no_grad():
            results = prompts(model, name, seed)
        if min(result["min_margin"] for result in results) > MARGIN:
            break
    else:
        raise SystemExit(f"{name}: no seed keeps the margin")
    out = OUT / name
    out.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    write(out, model, results, "float32 eager on bf16 weights")
    print(f"{name}: seed {seed}, {sum(p.stat().st_size for p in out.iterdir())} bytes")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or CASES:
        make(name)
