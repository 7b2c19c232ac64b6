#!/usr/bin/env python3
"""aiperf, NVIDIA's load generator, against the built-in model: chats, texts and vectors under load.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements-aiperf.txt
    .venv/bin/python tests/clients/aiperf_client.py target/release/candlewick [--schema openapi.json]

Every request must come to its end, with usage, and the tokens that were asked for. What it measures is printed, not judged:
with the proxy of --schema in between it says nothing about the server.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import stock

REQUESTS, CONCURRENCY = 48, 8
TOKENS = 24
PATIENCE_S = 300


def tokenizer(folder):
    """A tokenizer to which a byte is a token: aiperf's own would come from the network."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: k for k, letter in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder)
    return folder


def profile(base, model, endpoint, *more):
    """aiperf's own summary of a run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [pathlib.Path(sys.executable).with_name("aiperf"), "profile", "--model", model, "--url", base]
        command += ["--endpoint-type", endpoint, "--request-count", REQUESTS, "--concurrency", CONCURRENCY]
        # What the server counts is what counts.
        command += ["--tokenizer", tokenizer(pathlib.Path(folder) / "bytes"), "--use-server-token-count", "--ui", "none", "--artifact-dir", folder, *more]
        run = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=PATIENCE_S)
        assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
        [summary] = pathlib.Path(folder).rglob("profile_export_aiperf.json")
        return json.loads(summary.read_text())


def generate(base, model, endpoint):
    told = profile(
        base, model, endpoint, "--streaming", "--synthetic-input-tokens-mean", 40, "--output-tokens-mean", TOKENS,
        "--extra-inputs", "ignore_eos:true", "--extra-inputs", f"min_tokens:{TOKENS}",
    )
    assert told["request_count"]["avg"] == REQUESTS and not told.get("error_request_count", {}).get("avg"), told
    assert told["output_sequence_length"]["min"] == told["output_sequence_length"]["max"] == TOKENS, told
    ms = lambda name: f"{told[name]['p50']:.1f} / {told[name]['p99']:.1f}"
    rate = told["output_token_throughput"]["avg"]
    return f"{rate:.0f} tokens/s; p50 / p99 in ms: first token {ms('time_to_first_token')}, between {ms('inter_token_latency')}"


def embed(base, model):
    told = profile(base, model, "embeddings", "--synthetic-input-tokens-mean", 40)
    assert told["request_count"]["avg"] == REQUESTS and not told.get("error_request_count", {}).get("avg"), told
    return f"{told['request_throughput']['avg']:.0f} requests/s"


def main():
    with stock.served(stock.options(__doc__)) as (model, base):
        for endpoint in ("chat", "completions"):
            stock.passed(f"aiperf: {endpoint}", lambda: generate(base, model, endpoint))
        stock.passed("aiperf: embeddings", lambda: embed(base, model))


if __name__ == "__main__":
    main()
