#!/usr/bin/env python3
"""llama.cpp and candlewick on the same GGUF files, greedily, token by token: files that we write, and files that it writes.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements-llama-cpp.txt
    .venv/bin/python tests/clients/llama_cpp.py DIR [NAME ...] [--kinds KIND ...]

DIR is a folder of llama.cpp's programs: llama-server and llama-quantize. Its converter is found beside it or at --converter
(convert_hf_to_gguf.py in a tree of its sources). NAME is a checkpoint of tests/fixtures/golden or one of WIDE below; by
default all of them. CANDLEWICK names the program, by default target/release/candlewick.

Each checkpoint becomes files by `candlewick convert` and `candlewick quantize` ("ours") and by convert_hf_to_gguf.py and
llama-quantize ("theirs"). Both programs go on after the checkpoint's four prompts, 32 tokens each. Where one chooses
another token than candlewick with `--dtype float32`, that one's is put behind the prompt and they go on: so 128 choices are
compared a file, each after the same tokens. Of each program the table has how many of them are the same, how much likelier
the reference's token was than the other at most, and how far the log-probabilities of its 20 likeliest tokens are at most.

Kinds: f32 has the checkpoint's weights widened, so that both compute in float32 throughout, and every choice must be the
same; ends with 1 where one is not, but for checkpoints of APART. In bf16 and quantized files both programs round the inputs
of products, each in its way, so that near ties fall either way, and a token between two experts may get the other one.

NAME may also be a trained model, demo (models/demo/demo.gguf) or a GGUF file of plain numbers whose stem is in TRAINED, which
has eight real prompts of each. Of those both programs quantize float32, 16 tokens are compared after each prompt in the same way,
and 64 that each program writes by itself: how many of float32's ids it has before it parts from it, and how many the two have
before they part from each other.

Checkpoints have no tokenizer. They get one of letters, and llama.cpp's converter the same: which one it recognizes by its
fingerprint is not the matter here.
"""

import argparse
import contextlib
import functools
import importlib
import itertools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import torch
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/fixtures/golden"
sys.path.insert(0, str(ROOT / "tests/oracles"))
import make_golden  # noqa: E402

# Types of tokens in a GGUF file.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
TOKENS = 32
TOP = 20
# After each prompt of a trained model: after the same tokens, and freely.
FORCED, FREE = 16, 64
# Quantized by both; those of 256 weights a block where all rows are whole blocks.
SMALL = ["Q8_0", "Q4_0"]
LARGE = [*SMALL, "Q4_K_M", "Q5_K_M", "Q6_K"]
# What llama.cpp's converter looks for in a config.json, and transformers writes no more.
FIELDS = {
    "cohere2": {"rotary_pct": 1.0},
    "gpt2": {"n_ctx": 512},
    "deepseek_v3": {"scoring_func": "sigmoid"},
    "deepseek_v3-wide": {"scoring_func": "sigmoid"},
}
# Checkpoints that llama.cpp computes differently from transformers, which we follow, and why.
APART = {
    "exaone4": "llama.cpp takes windows for those of 64 layers alone",
    "gpt_oss": "llama.cpp lets YaRN's ramp begin and end at whole frequencies, which the checkpoint says not to",
}

DELTA, SHARED = make_golden.DELTA, make_golden.SHARED
BIG = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
BIG_DELTA = {**DELTA, **BIG, "linear_num_value_heads": 4, "linear_key_head_dim": 64, "linear_value_head_dim": 64}
# Positions and scores stretched by one number, as in what DeepSeek published.
BIG_LATENT = {
    **make_golden.LATENT, **BIG, "q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32,
    "v_head_dim": 32, "n_shared_experts": 1, "moe_intermediate_size": 256,
    "rope_parameters": {**make_golden.DEEP, "mscale_all_dim": 1.0},
}
BIG_SHARED = {**SHARED, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 256}
# Rows of whole blocks of 256, and shapes of Qwen's that llama.cpp takes: keys as long as values, experts everywhere.
WIDE = {
    "llama-wide": ("Llama", BIG, {}),
    "qwen3-wide": ("Qwen3", BIG, {}),
    "qwen3_moe-wide": ("Qwen3Moe", {**BIG, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 256,
                                    "norm_topk_prob": True}, {}),
    "deepseek_v3-wide": ("DeepseekV3", BIG_LATENT, {}),
    "qwen3_5-wide": ("Qwen3_5", BIG_DELTA, {}),
    "qwen3_5_moe-wide": ("Qwen3_5Moe", {**BIG_DELTA, **BIG_SHARED}, {}),
    "qwen3_next-wide": ("Qwen3Next", {**BIG_DELTA, **BIG_SHARED, "rope_parameters": make_golden.QUARTER}, {}),
}

DEMO = ROOT / "models/demo/demo.gguf"
ASKED = "<|endoftext|><|user|>{}<|end|><|assistant|>"
# What trained models are asked, whether a token begins it, and the token that ends a text.
TRAINED = {
    "demo": ([ASKED.format(text) for text in (
        "What is candlewick?", "how do i call it from python?", "what is the KV cache?", "what happens to a slow reader?",
        "Tell me a story.", "A king had three sons.", "count from 3 to 9", "what is the capital of Spain?")], False, 4),
    "stories260K": (["Once upon a time,", "Lily and her mom went to the park.", "The little dog was sad because",
                     "Tom found a big red ball. He", "One day, a bird sat on a tree and", "\"I am sorry,\" said the cat.",
                     "There was a girl named Anna who loved to", "It was a cold day and"], True, 2),
}

def vocabulary():
    """Three special tokens, letters and pairs of letters, and as many more as the checkpoints have: all are whole texts, so
    that llama-server holds none back until a character is complete."""
    letters = "abcdefghijklmnop"
    normal = [*letters, *(first + second for first in letters for second in letters)]
    tokens = ["<pad>", "<bos>", "<eos>", *normal]
    size = make_golden.USUAL["vocab_size"]
    types = [CONTROL] * 3 + [NORMAL] * len(normal) + [USER_DEFINED] * (size - len(tokens))
    return tokens + [f"<{k}>" for k in range(len(tokens), size)], types


def put_tokenizer(folder):
    tokens, types = vocabulary()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": k, "content": token, "special": types[k] == CONTROL, **flags}
             for k, token in enumerate(tokens) if types[k] != NORMAL]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {token: k for k, token in enumerate(tokens) if types[k] == NORMAL},
                  "merges": [["a", "b"]]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>", "eos_token": "<eos>"}))


def checkpoint(name, folder):
    """Puts a checkpoint into two folders, as it is and widened to float32. Gives them and its prompts."""
    plain, wide = folder / "bf16", folder / "f32"
    if name in WIDE:
        make_golden.CASES[name] = WIDE[name]
        model = make_golden.checkpoint(name, 1)
        model.bfloat16().save_pretrained(plain)
        draw = torch.Generator().manual_seed(1)
        prompts = [torch.randint(3, 320, (length,), generator=draw).tolist() for length in make_golden.LENGTHS]
    else:
        shutil.copytree(GOLDEN / name, plain)
        prompts = [prompt["ids"] for prompt in json.loads((plain / "golden.json").read_text())["prompts"]]
    (plain / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**config, **FIELDS.get(name, {})}))
    put_tokenizer(plain)
    shutil.copytree(plain, wide)
    file = wide / "model.safetensors"
    save_file({key: tensor.float() for key, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    return plain, wide, prompts


class Refused(Exception):
    """A program ended with an error; its last line."""


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise Refused(lines[-1][:200] if lines else f"ended with {done.returncode}")
    return done.stdout


class Converter:
    """llama.cpp's convert_hf_to_gguf.py, with our vocabulary whatever a model's class looks for."""

    def __init__(self, file):
        sys.path.insert(0, str(file.resolve().parent))
        self.program = importlib.import_module("convert_hf_to_gguf")
        find = self.program.get_model_class

        def get_model_class(*args, **named):
            found = find(*args, **named)
            found.set_vocab = self.set_vocab
            # None of the checkpoints guesses further tokens.
            found.no_mtp = True
            return found

        self.program.get_model_class = get_model_class

    @staticmethod
    def set_vocab(model):
        out, (tokens, types) = model.gguf_writer, vocabulary()
        out.add_tokenizer_model("gpt2")
        out.add_tokenizer_pre("gpt-2")
        out.add_token_list(tokens)
        out.add_token_types(types)
        out.add_token_merges(["a b"])
        out.add_bos_token_id(1)
        out.add_eos_token_id(2)

    def write(self, directory, kind, file):
        arguments, sys.argv = sys.argv, ["convert_hf_to_gguf.py", str(directory), "--outtype", kind, "--outfile", str(file)]
        try:
            self.program.main()
        # Whatever a class of a model raises for what it does not take.
        except (Exception, SystemExit) as error:
            raise Refused(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]) from None
        finally:
            sys.argv = arguments


class Ours:
    def __init__(self, program, file, dtype):
        self.command = [program, "generate", file, "--dtype", dtype, "--kv-cache-dtype", "float32", "--threads", 1,
                        "--temperature", "0", "--ignore-eos", "--json", "--logprobs", TOP]

    def go_on(self, ids, count):
        """Tokens, and of each the log-probabilities of the likeliest."""
        said = json.loads(run(*self.command, "--prompt-token-ids", ",".join(map(str, ids)), "--max-tokens", count))
        tops = [{entry["token_id"]: entry["logprob"] for entry in place["top"]} for place in said["logprobs"]]
        return said["token_ids"], tops


class Theirs:
    def __init__(self, folder, file, eos=2):
        self.eos = eos
        with contextlib.closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        flags = ["--host", "127.0.0.1", "--port", self.port, "-np", 1, "--temp", 0, "-c", 512, "-ctk", "f32", "-ctv", "f32",
                 "-fa", "off", "--no-warmup", "-t", 1, "--offline"]
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        command = [str(part) for part in (folder / "llama-server", "-m", file, *flags)]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def __enter__(self):
        for _ in range(600):
            if self.process.poll() is not None:
                self.log.seek(0)
                lines = [line.strip() for line in self.log if "error" in line.lower()] or ["ended"]
                raise Refused(lines[0][:200])
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5)
                return self
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        raise Refused("llama-server does not become ready")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()

    def go_on(self, ids, count):
        asked = {"prompt": ids, "n_predict": count, "temperature": 0, "cache_prompt": False, "return_tokens": True,
                 "n_probs": TOP}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/completion", json.dumps(asked).encode(),
                                         {"content-type": "application/json"})
        said = json.load(urllib.request.urlopen(request, timeout=120))
        tokens = said["tokens"][:count]
        if said["stop_type"] == "eos" and tokens[-1:] != [self.eos] and len(tokens) < count:
            tokens.append(self.eos)
        tops = [{entry["id"]: entry["logprob"] for entry in place["top_logprobs"]}
                for place in said.get("completion_probabilities", [])]
        return tokens, tops


def compare(exact, other, prompts, count=TOKENS):
    """How many choices of the other are the reference's, how much likelier those are where not, and the farthest
    log-probability."""
    same, gap, far = 0, 0.0, 0.0
    for prompt in prompts:
        chosen, tops = exact(prompt)
        at = 0
        while at < count:
            others, other_tops = other.go_on(prompt + chosen[:at], count - at)
            if not others:
                raise Refused("says nothing")
            for token, top in itertools.zip_longest(others, other_tops[:len(others)], fillvalue={}):
                own, wanted = tops[at], chosen[at]
                far = max([far, *(abs(own[k] - top[k]) for k in own.keys() & top.keys())])
                at += 1
                if token != wanted:
                    gap = max(gap, own[wanted] - own.get(token, min(own.values())))
                    break
                same += 1
    return same, gap, far


def files(name, folder, options, converter):
    """Makes the files of a checkpoint, one after another: who wrote it, what kind it is, and the file or why there is none."""
    plain, wide, prompts = checkpoint(name, folder)
    width = json.loads((plain / "config.json").read_text())
    width = width.get("text_config", width).get("hidden_size", 0)
    program = options.candlewick
    yield prompts
    for writer in ("ours", "theirs"):
        exact = folder / f"{writer}-f32.gguf"
        for kind in ("f32", "bf16", *(LARGE if width % 256 == 0 else SMALL)):
            file = folder / f"{writer}-{kind}.gguf"
            if kind != "f32" and (options.kinds and kind not in options.kinds or not exact.exists()):
                continue
            try:
                if kind in ("f32", "bf16"):
                    directory = wide if kind == "f32" else plain
                    run(program, "convert", directory, file) if writer == "ours" else converter.write(directory, kind, file)
                elif writer == "ours":
                    run(program, "quantize", "-q", kind.lower(), exact, file)
                else:
                    run(options.folder / "llama-quantize", exact, file, kind)
                yield writer, kind, file
            except Refused as refused:
                yield writer, kind, refused


def same_before(one, other):
    """How many ids two texts have in common before they part."""
    return next((at for at, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def trained(name, folder, options):
    """Compares both programs on a trained model, quantized by either. Says whether float32 is the same in both."""
    same = False
    texts, begins, eos = TRAINED[name.stem]
    program, quantizer = options.candlewick, options.folder / "llama-quantize"
    exact = folder / "exact.gguf"
    # Numbers as they are stored, widened.
    run(quantizer, "--allow-requantize", name, exact, "F32")
    begin = ["--add-special-tokens"] if begins else []
    prompts = [json.loads(run(program, "tokenize", name, "--text", text, *begin)) for text in texts]
    until_end = lambda ids: ids[:ids.index(eos) + 1] if eos in ids else ids
    width = json.loads(run(program, "inspect", name, "--json"))["hidden_size"]
    kinds = LARGE if width % 256 == 0 else SMALL
    for writer, kind in itertools.product(("candlewick", "llama.cpp"), ("F32", *kinds)):
        if kind == "F32" and writer == "llama.cpp" or options.kinds and kind not in ("F32", *options.kinds):
            continue
        file = exact if kind == "F32" else folder / f"{writer}-{kind}.gguf"
        row = f"| {name.stem} | {writer if kind != 'F32' else ''} | {kind} |"
        try:
            if kind != "F32" and writer == "candlewick":
                run(program, "quantize", "-q", kind.lower(), exact, file)
            elif kind != "F32":
                run(quantizer, exact, file, kind)
            reference, ours = Ours(program, file, "float32"), Ours(program, file, "auto")
            wanted = {tuple(prompt): reference.go_on(prompt, FREE) for prompt in prompts}
            first = lambda prompt: tuple(part[:FORCED] for part in wanted[tuple(prompt)])
            free = [until_end(ids) for ids, _ in wanted.values()]
            with Theirs(options.folder, file, eos) as theirs:
                forced = [compare(first, other, prompts, FORCED)[0] for other in (theirs, ours)]
                written = [[until_end(other.go_on(prompt, FREE)[0]) for prompt in prompts] for other in (theirs, ours)]
        except Refused as refused:
            print(f"{row} {refused} |", flush=True)
            continue
        pairs = [(written[0], free), (written[1], free), tuple(written)]
        same |= kind == "F32" and forced == [FORCED * len(prompts)] * 2
        common = [f"{sum(map(same_before, *pair))} ({sum(map(list.__eq__, *pair))})" for pair in pairs]
        print(f"{row} {forced[0]} / {forced[1]} | {sum(map(len, free))} | {common[0]} / {common[1]} | {common[2]} |", flush=True)
    return same


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("folder", type=pathlib.Path, help="llama.cpp's programs")
    options.add_argument("names", nargs="*", help="checkpoints")
    options.add_argument("--candlewick", default=os.environ.get("CANDLEWICK", ROOT / "target/release/candlewick"))
    options.add_argument("--converter", type=pathlib.Path, help="convert_hf_to_gguf.py")
    options.add_argument("--kinds", nargs="*", help="f32 and these alone")
    options = options.parse_args()
    torch.set_num_threads(1)
    names = [DEMO if name == "demo" else name for name in options.names]
    files_of_models = [pathlib.Path(name) for name in names if str(name).endswith(".gguf")]
    if files_of_models:
        print(f"| Model | Quantized by | Kind | float32's of {FORCED * 8} | float32's ids | of those (whole texts) | both alike |")
        print("|---" * 7 + "|")
    failed = 0
    for name in files_of_models:
        with tempfile.TemporaryDirectory() as folder:
            failed += not trained(name, pathlib.Path(folder), options)
    names = [name for name in names if not str(name).endswith(".gguf")]
    if files_of_models and not names:
        sys.exit(1 if failed else 0)
    converter = Converter(options.converter or options.folder.parent / "convert_hf_to_gguf.py")
    print("| Checkpoint | Written by | Kind | llama.cpp: same of 128 | gap | log-probability ", end="")
    print("| candlewick: same | gap | log-probability |")
    print("|---" * 9 + "|")
    for name in names or [*sorted(entry.name for entry in GOLDEN.iterdir()), *WIDE]:
        with tempfile.TemporaryDirectory() as folder:
            made = files(name, pathlib.Path(folder), options, converter)
            prompts = next(made)
            for writer, kind, file in made:
                row = f"| {name} | {writer} | {kind} |"
                if isinstance(file, Refused):
                    print(f"{row} no file: {file} |", flush=True)
                    continue
                reference = Ours(options.candlewick, file, "float32")
                exact = functools.cache(lambda ids: reference.go_on(list(ids), TOKENS))
                try:
                    with Theirs(options.folder, file) as theirs:
                        cells = [compare(lambda ids: exact(tuple(ids)), theirs, prompts)]
                    if kind != "f32":
                        cells.append(compare(lambda ids: exact(tuple(ids)), Ours(options.candlewick, file, "auto"), prompts))
                except Refused as refused:
                    print(f"{row} does not run: {refused} |", flush=True)
                    continue
                places = TOKENS * len(prompts)
                failed += kind == "f32" and cells[0][0] < places and name not in APART
                note = f" ({APART[name]})" if name in APART else ""
                said = [f" {same}{note} | {gap:.3f} | {far:.3f} |" for same, gap, far in cells]
                print(row + "".join(said), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
