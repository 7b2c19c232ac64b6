#!/usr/bin/env python3
"""What a server takes in memory, beside what it planned to take before it loaded a weight.

    cargo build --release
    python3 tests/clients/memory.py [--tokens N] [--streams N] [MODEL...]

MODEL is a directory or a GGUF file; by default the built-in model, and one of the shape of Qwen3-0.6B whose weights are drawn
(`--load-format dummy`), which takes 1.2 GB and some minutes of two cores. CANDLEWICK names the program, by default
target/release/candlewick. For each model a server is started, the sum is read from its log, and its KV cache is filled by
streams that have long prompts, log-probabilities and a batch that is full. Meanwhile /proc says what is resident: anonymous
memory, which is what a kernel kills for, and the most that ever was with the pages of files (VmHWM), which it takes back.

Prints a row for each model. Ends with 0 where no server took more than its sum, without the room that it leaves, and 32 MiB for
the program itself: threads, connections, a tokenizer.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("CANDLEWICK", str(ROOT / "target/release/candlewick"))
POLL_S = 0.01
START_S = 900
REQUEST_S = 900
PROGRAM_MIB = 32

# Qwen3-0.6B's config.json, as far as it decides sizes.
SMALL = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


class Watch(threading.Thread):
    """Follows what a process has in memory, in KiB."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.status = pathlib.Path(f"/proc/{pid}/status")
        self.anonymous = self.high_water = 0
        self.ended = threading.Event()

    def look(self):
        fields = dict(line.split(":", 1) for line in self.status.read_text().splitlines())
        kib = lambda name: int(fields[name].split()[0])
        self.anonymous = max(self.anonymous, kib("RssAnon") + kib("RssShmem"))
        self.high_water = kib("VmHWM")

    def run(self):
        while not self.ended.wait(POLL_S):
            try:
                self.look()
            except (OSError, KeyError):
                return


def planned(log):
    """The sum of a server's log: MiB by name."""
    line = next((line for line in log.splitlines() if "memory: weights" in line), None)
    if line is None:
        sys.exit(f"the server did not say what it plans:\n{log}")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
    return {name.strip(): int(mib) for name, mib in re.findall(r"([A-Za-z ]+?) (\d+) MiB", plain.split("memory:")[1])}


def ask(address, model, ids, max_tokens):
    body = {"model": model, "prompt": ids, "max_tokens": max_tokens, "ignore_eos": True, "logprobs": 5, "temperature": 1.0}
    request = urllib.request.Request(
        f"http://{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=REQUEST_S) as answer:
        usage = json.load(answer)["usage"]
        assert usage["completion_tokens"] == max_tokens, usage
        return usage["prompt_tokens"] + max_tokens


def measure(model, extra, args):
    """Serves a model, fills its cache, and gives what was planned and what was taken."""
    flags = ["--listen", "127.0.0.1:0", "--json", "--max-num-seqs", str(args.streams), "--max-model-len", str(args.tokens)]
    flags += ["--max-num-batched-tokens", str(args.batch)]
    with tempfile.TemporaryFile("w+") as log:
        command = [PROGRAM, "serve", *([model] if model else []), *flags, *extra]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            watch = Watch(server.pid)
            watch.start()
            line = server.stdout.readline()
            if not line:
                server.wait()
                log.seek(0)
                sys.exit(f"{' '.join(command)}:\n{log.read()}")
            facts = json.loads(line)
            longest = facts["max_model_len"]
            # As many as fill all blocks, and one batch at least. Each is another prompt: what the prefix cache knows is kept,
            # so that blocks are touched that nobody had.
            blocks_each = -(-longest // facts["block_size"])
            count = max(args.streams, -(-facts["num_blocks"] // blocks_each))
            new = min(16, longest // 2)
            done = []

            def run(first):
                for k in range(first, count, args.streams):
                    ids = [10 + k % 200, 10 + k // 200 % 200] + [10 + i * 31 % 200 for i in range(longest - new - 2)]
                    done.append(ask(facts["address"], facts["model"], ids, new))

            streams = [threading.Thread(target=run, args=(first,)) for first in range(args.streams)]
            for stream in streams:
                stream.start()
            for stream in streams:
                stream.join()
            if len(done) != count:
                sys.exit(f"{count - len(done)} of {count} requests failed")
            watch.look()
            watch.ended.set()
            log.seek(0)
            return planned(log.read()), watch.anonymous / 1024, watch.high_water / 1024
        finally:
            server.terminate()
            server.wait(timeout=60)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=512, help="context, prompt and answer together")
    parser.add_argument("--streams", type=int, default=16, help="at once")
    parser.add_argument("--batch", type=int, default=512, help="tokens a step")
    parser.add_argument("--kv", default="640M", help="the KV cache of models that are not built in")
    parser.add_argument("models", nargs="*", metavar="MODEL")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = pathlib.Path(directory) / "drawn-0.6b"
        place.mkdir()
        (place / "config.json").write_text(json.dumps(SMALL))
        cases = [(model, model, ["--kv-cache-memory-bytes", args.kv]) for model in args.models]
        if not cases:
            cases = [
                ("built in", None, ["--kv-cache-memory-bytes", "64M"]),
                ("0.6B, drawn", str(place), ["--load-format", "dummy", "--kv-cache-memory-bytes", args.kv]),
            ]
        print("| model | planned without room, MiB | of that activations | anonymous, most | share | VmHWM |")
        print("|---|---:|---:|---:|---:|---:|")
        over = False
        for name, model, extra in cases:
            plan, anonymous, high_water = measure(model, extra, args)
            # While weights are loaded there is neither a cache nor a step; the larger of the two is what is planned.
            parts = ["weights", "decoding them", "adapters", "KV cache", "activations"]
            total = sum(plan.get(part, 0) for part in parts)
            over |= anonymous > total + PROGRAM_MIB
            share = anonymous / total
            print(f"| {name} | {total} | {plan.get('activations', '-')} | {anonymous:.0f} | {share:.0%} | {high_water:.0f} |")
            sys.stdout.flush()
    sys.exit(over)


if __name__ == "__main__":
    main()
