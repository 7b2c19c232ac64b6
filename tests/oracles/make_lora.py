"""Makes tests/fixtures/lora: small random adapters as PEFT saves them, and what PEFT's own models make of prompts.

Run with transformers, torch and peft (0.21) installed, from the root of the repository:

    python tests/oracles/make_lora.py [NAME ...]
"""

import json
import pathlib
import shutil
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[1] / "fixtures"
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
STATES = ["in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"]
FUSED_STATES = ["in_proj_qkvz", "in_proj_ba", "out_proj"]
# name, checkpoint, seed, configuration
ADAPTERS = [
    ("llama-all", "llama", 1, dict(r=4, lora_alpha=8, target_modules=ALL)),
    ("llama-rslora", "llama", 2, dict(r=8, lora_alpha=4, use_rslora=True, target_modules=["q_proj", "v_proj"])),
    ("qwen3-all", "qwen3", 3, dict(r=3, lora_alpha=6, target_modules=ALL)),
    ("phi3-fused", "phi3", 4, dict(r=4, lora_alpha=8, target_modules=FUSED)),
    ("qwen3_5-all", "qwen3_5", 5, dict(r=2, lora_alpha=2, target_modules=[*ALL, *STATES])),
    # Beside what every token goes through: experts are one tensor in its class.
    ("qwen3_next-states", "qwen3_next", 6, dict(r=2, lora_alpha=2, target_modules=[*ALL[:4], *FUSED_STATES])),
    ("gpt_neox-all", "gpt_neox", 7, dict(r=4, lora_alpha=8, target_modules=["query_key_value", "dense"])),
]
STEPS = 16
# A seed is taken whose two best logits are never nearer, so that no token hangs on the order of additions.
MARGIN = 2e-3


def greedy(model, ids):
    """The most likely tokens after `ids`, and the least margin between the first two."""
    ids, out, margin = list(ids), [], float("inf")
    for _ in range(STEPS):
        logits = model(torch.tensor([ids])).logits[0, -1]
        first, second = logits.topk(2).values.tolist()
        margin = min(margin, first - second)
        out.append(int(logits.argmax()))
        ids.append(out[-1])
    return out, margin


@torch.no_grad()
def make(name, checkpoint, seed, options):
    """Whether the adapter of this seed was kept."""
    directory = ROOT / "golden" / checkpoint
    base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    torch.manual_seed(seed)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    for key, parameter in sorted(model.named_parameters()):
        if "lora_" in key:
            # Both matrices: PEFT itself begins with B = 0, which would change nothing.
            parameter.copy_(torch.randn(parameter.shape) * (0.2 if "lora_A" in key else 0.3))
    prompts = json.loads((directory / "golden.json").read_text())["prompts"][:3]
    golden = []
    for prompt in prompts:
        ids = prompt["ids"]
        out, margin = greedy(model, ids)
        last = model(torch.tensor([ids])).logits[0, -1].tolist()
        golden.append({"ids": ids, "last_logits": [round(x, 6) for x in last], "greedy": out, "margin": margin})
        differs = out != prompt["greedy"][:STEPS]
        print(f"{name}: {len(ids)} ids, least margin {margin:.4f}, differs from the model alone: {differs}")
    if min(prompt["margin"] for prompt in golden) < MARGIN:
        return False
    folder = ROOT / "lora" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)
    (folder / "adapter_model.safetensors").chmod(0o644)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = checkpoint
    config["target_modules"] = sorted(config["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "golden.json").write_text(json.dumps({"checkpoint": checkpoint, "prompts": golden}) + "\n")
    return True


for name, checkpoint, seed, options in ADAPTERS:
    if len(sys.argv) > 1 and name not in sys.argv[1:]:
        continue
    while not make(name, checkpoint, seed, options):
        seed += 100
