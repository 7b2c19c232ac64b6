#!/usr/bin/env python3
"""Makes tests/fixtures/golden/llama-gptq, llama-awq and llama-fp8: a small random Llama whose Linears are stored as those
quantizers store them, and what transformers makes, in float32 on the CPU, of the weights that this stands for.

usage: make_quantized.py [NAME ...]      default: all of KINDS
needs: transformers, torch

Transformers itself runs GPTQ and AWQ on a card alone, through packages of kernels. So the packed weights are widened here, by
the formulas that their authors published, and transformers runs the plain model:

- GPTQ (Frantar et al. 2022, arXiv 2210.17323; the first `checkpoint_format`, "gptq"): eight numbers of four bits a word along
  the inputs, lowest first; zeros, less one, along the outputs; a weight is `scale * (number - zero)`, scales are halves.
- AWQ (Lin et al. 2023, arXiv 2306.00978; version "gemm"): eight a word along the outputs, in the order of ORDER; zeros are
  stored as they are.
- FP8 (DeepSeek-AI 2024, arXiv 2412.19437): E4M3 under a float32 scale for each block of rows and columns; a weight is the
  product rounded to bfloat16, which is what DeepSeek's own conversion and transformers' `dequantize` give.
"""

import json
import sys

import make_golden
import torch
from safetensors.torch import save_file

GROUP = 32
BLOCK = [32, 16]
# Which of eight neighbouring outputs AWQ has in each place of a word.
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
KINDS = {
    "llama-gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False,
                   "checkpoint_format": "gptq"},
    "llama-awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "llama-fp8": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": BLOCK},
}


def in_groups(weight):
    """Numbers, zeros and scales of a weight [out, in]: [in, out], and [groups, out] twice."""
    groups = weight.t().reshape(-1, GROUP, weight.shape[0])
    low, high = groups.amin(1), groups.amax(1)
    scales = ((high - low) / 15).half()
    # GPTQ stores them less one.
    zeros = (-low / scales.float()).round().clamp(1, 15).int()
    numbers = (groups / scales.float()[:, None] + zeros[:, None]).round().clamp(0, 15).int()
    return numbers.reshape(weight.shape[1], -1), zeros, scales


def packed(numbers, order):
    """Eight numbers a word along the last dimension; place k of a word has number order[k]."""
    eights = numbers.reshape(*numbers.shape[:-1], -1, 8).long()
    words = sum(eights[..., number] << (4 * place) for place, number in enumerate(order))
    return (words - ((words >> 31) << 32)).int().contiguous()


def unpacked(words, order):
    places = [(words.long() >> (4 * order.index(number))) & 15 for number in range(8)]
    return torch.stack(places, -1).reshape(*words.shape[:-1], -1)


def gptq(name, weight):
    numbers, zeros, scales = in_groups(weight)
    plain = list(range(8))
    return {
        f"{name}.qweight": packed(numbers.t(), plain).t().contiguous(),
        f"{name}.qzeros": packed(zeros - 1, plain),
        f"{name}.scales": scales,
        f"{name}.g_idx": (torch.arange(weight.shape[1]) // GROUP).int(),
    }


def of_gptq(name, stored):
    plain = list(range(8))
    numbers = unpacked(stored[f"{name}.qweight"].t(), plain).t()
    zeros = unpacked(stored[f"{name}.qzeros"], plain) + 1
    group = stored[f"{name}.g_idx"].long()
    return (stored[f"{name}.scales"].float()[group] * (numbers - zeros[group])).t()


def awq(name, weight):
    numbers, zeros, scales = in_groups(weight)
    return {f"{name}.qweight": packed(numbers, ORDER), f"{name}.qzeros": packed(zeros, ORDER), f"{name}.scales": scales}


def of_awq(name, stored):
    numbers, zeros = (unpacked(stored[f"{name}.{part}"], ORDER) for part in ("qweight", "qzeros"))
    group = torch.arange(numbers.shape[0]) // GROUP
    return (stored[f"{name}.scales"].float()[group] * (numbers - zeros[group])).t()


def spread(scales):
    return scales.repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1)


def fp8(name, weight):
    rows, columns = weight.shape
    largest = weight.abs().reshape(rows // BLOCK[0], BLOCK[0], columns // BLOCK[1], BLOCK[1]).amax((1, 3))
    scales = largest / torch.finfo(torch.float8_e4m3fn).max
    return {f"{name}.weight": (weight / spread(scales)).to(torch.float8_e4m3fn), f"{name}.weight_scale_inv": scales}


def of_fp8(name, stored):
    return (stored[f"{name}.weight"].float() * spread(stored[f"{name}.weight_scale_inv"])).bfloat16().float()


FORMS = {"llama-gptq": (gptq, of_gptq), "llama-awq": (awq, of_awq), "llama-fp8": (fp8, of_fp8)}


def quantize(model, kind):
    """The tensors of a file, and the model with the weights that they stand for."""
    store, widen = FORMS[kind]
    stored = {}
    linears = {f"{name}.weight" for name, module in model.named_modules()
               if isinstance(module, torch.nn.Linear) and name != "lm_head"}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in linears:
                whole = name.removesuffix(".weight")
                parts = store(whole, weight)
                weight.copy_(widen(whole, parts))
                stored.update(parts)
            else:
                stored[name] = weight.bfloat16()
    return stored


def make(kind):
    make_golden.CASES[kind] = ("Llama", {}, {})
    for seed in range(1, 200):
        model = make_golden.checkpoint(kind, seed)
        stored = quantize(model, kind)
        with torch.no_grad():
            results = make_golden.prompts(model, kind, seed)
        if min(result["min_margin"] for result in results) > make_golden.MARGIN:
            break
    else:
        raise SystemExit(f"{kind}: no seed keeps the margin")
    out = make_golden.OUT / kind
    out.mkdir(parents=True, exist_ok=True)
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    config = {**json.loads(model.config.to_json_string()), "dtype": "bfloat16", "quantization_config": KINDS[kind]}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    widened = "float32 eager on weights widened by the published formula"
    make_golden.write(out, model, results, widened)
    print(f"{kind}: seed {seed}, {sum(p.stat().st_size for p in out.iterdir())} bytes")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind in sys.argv[1:] or KINDS:
        make(kind)
