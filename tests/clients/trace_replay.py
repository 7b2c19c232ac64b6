#!/usr/bin/env python3
"""How many requests a second a server takes before its streams stutter: candlewick beside llama.cpp's llama-server.

    cargo build --release
    python3 tests/clients/trace_replay.py target/release/candlewick MODEL.gguf --trace azure_conv.csv \
        --llama-server llama-server [--rates 0.02,0.05,0.1,0.15,0.2] [--num-prompts 24] [--threads 2]

Both servers have the same file and as many threads, and get the first requests of the trace, lengths capped, at one rate
after the other until one is too high: until a hundredth of the gaps between two tokens is longer than --itl-ms, or a
hundredth of the requests waits longer than --ttft-ms for its first token, or a request fails. Before that each gets three
of the longest prompts, one after the other: a server whose first token of those alone comes too late keeps up with no rate
where more than a hundredth of the prompts are as long. llama-server runs once for each size of --ubatch, with room for 32
requests at once, and its best counts. Prints a line a run and the ratio of the two highest rates. Ends with 0 where ours is at least three times theirs. Needs nothing but Python; loopback alone, and both
servers end with it.
"""

import argparse
import contextlib
import csv
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

RATIO = 3
START = 120
SEEDS = itertools.count()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("--trace", required=True)
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--rates", default="0.02,0.05,0.1,0.15,0.2,0.3", help="requests a second, rising")
    parser.add_argument("--num-prompts", type=int, default=24)
    parser.add_argument("--max-len", type=int, default=1024, help="tokens of a prompt, and of an answer, at most")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--parallel", type=int, default=32, help="requests that llama-server runs at once")
    parser.add_argument("--ubatch", default="64,256,512", help="tokens that llama-server computes at once, one run each")
    parser.add_argument("--itl-ms", type=float, default=200)
    parser.add_argument("--ttft-ms", type=float, default=5000)
    return parser.parse_args()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def served(command, port):
    """A server while it is needed, once it says that it is well."""
    base = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            ends = time.monotonic() + START
            while True:
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    urllib.request.urlopen(f"{base}/health", timeout=5).close()
                    break
                if process.poll() is not None or time.monotonic() > ends:
                    log.seek(0)
                    sys.exit(f"{command[0]} does not serve:\n{log.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.2)
            yield base
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def replay(args, base, rate):
    """One replay; what it measured. Without a rate, three of the longest prompts one after the other."""
    command = [args.binary, "bench", "serve", "--json", "--base-url", base, "--vocab-size", "256", "--num-warmups", "1"]
    if rate:
        command += ["--dataset-path", args.trace, "--num-prompts", str(args.num_prompts), "--request-rate", str(rate)]
        command += ["--max-input-len", str(args.max_len), "--max-output-len", str(args.max_len)]
    else:
        command += ["--random-input-len", str(args.max_len), "--random-output-len", "32"]
        command += ["--num-prompts", "3", "--max-concurrency", "1"]
    # Other prompts each time: what a cache kept of the last replay would be found.
    command += ["--seed", str(next(SEEDS))]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{' '.join(command)}: {run.stderr}")
    return json.loads(run.stdout)


def highest(args, name, command, port):
    """The highest of the rates that a server keeps up with; 0 where it is none."""
    best = 0.0
    with served(command, port) as base:
        for rate in [None, *map(float, args.rates.split(","))]:
            told = replay(args, base, rate)
            well = not told["failed"] and told["p99_itl_ms"] <= args.itl_ms and told["p99_ttft_ms"] <= args.ttft_ms
            print(
                f"| {name} | {f'{rate:g}' if rate else 'longest, alone'} | {told['p99_itl_ms']:.0f} | {told['median_itl_ms']:.0f} | {told['p99_ttft_ms']:.0f} "
                f"| {told['median_ttft_ms']:.0f} | {told['output_throughput']:.1f} | {told['max_concurrent_requests']} "
                f"| {told['failed']} | {'yes' if well else 'no'} |",
                flush=True,
            )
            if not well:
                break
            best = rate or 0.0
    return best


def longest(args):
    """The share of the trace's prompts that are as long as they may be, or longer."""
    with open(args.trace, newline="") as trace:
        lengths = [int(row["ContextTokens"]) for row in csv.DictReader(trace)]
    return sum(length >= args.max_len for length in lengths) / len(lengths)


def main():
    args = arguments()
    share = longest(args)
    if share <= 0.01:
        sys.exit(f"{args.trace}: {share:.1%} of its prompts have {args.max_len} tokens: give a smaller --max-len")
    print(f"{share:.0%} of the trace's prompts have {args.max_len} tokens or more, and are cut there\n")
    print("| server | requests/s | ITL p99, ms | median | TTFT p99, ms | median | tokens/s | at once | failed | kept up |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    port, threads = free_port(), str(args.threads)
    ours = [args.binary, "serve", args.model, "--listen", f"127.0.0.1:{port}", "--threads", threads]
    ours = highest(args, "candlewick", ours, port)
    theirs = 0.0
    for ubatch in args.ubatch.split(","):
        port = free_port()
        command = [args.llama_server, "-m", args.model, "--host", "127.0.0.1", "--port", str(port), "-t", threads]
        command += ["-np", str(args.parallel), "-c", str(2 * args.max_len * args.parallel), "-ub", ubatch]
        command += ["-b", str(max(2048, int(ubatch)))]
        theirs = max(theirs, highest(args, f"llama-server, ubatch {ubatch}", command, port))
    if not theirs:
        print(f"\ncandlewick keeps up with {ours:g} requests a second, llama-server with none of these rates")
    else:
        print(f"\ncandlewick keeps up with {ours:g} requests a second, llama-server with {theirs:g}: {ours / theirs:.1f} times as many")
    sys.exit(0 if ours and ours >= RATIO * theirs else 1)


if __name__ == "__main__":
    main()
