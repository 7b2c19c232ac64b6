#!/usr/bin/env python3
"""2,000 streams at once over one connection, and over 200: does every stream get its tokens as evenly as the others?

    clients/go/build.sh
    python3 tests/clients/many_streams.py target/release/candlewick [--streams 2000] [--tokens 64] [--threads N] [--most 5]

Starts a server of its own with room for as many sequences, opens the streams with a client in Go (little work a message, so
that the client is not what is measured), and prints for each number of connections: tokens, failures, how many streams ran
at once, median, p99 and longest gap between two messages of one stream, and the longest in medians. With --most, ends with 1
where that is more. Listens on the loopback interface alone, and ends by itself.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import threading

CLIENT = pathlib.Path(__file__).resolve().parents[2] / "clients/go/build/manystreams"
# Of the built-in model: the prompt, and what a block may waste.
PROMPT_TOKENS, BLOCK_TOKENS = 16, 16


def serve(binary, streams, tokens, threads):
    blocks = streams * (-(-(PROMPT_TOKENS + tokens) // BLOCK_TOKENS) + 1)
    command = [binary, "serve", "--listen", "127.0.0.1:0", "--num-gpu-blocks-override", str(blocks)]
    command += ["--max-num-seqs", str(streams), "--max-waiting", str(streams), "--max-num-batched-tokens", str(streams + 512)]
    command += ["--threads", str(threads)] if threads else []
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in server.stdout:
        if found := re.search(r"127\.0\.0\.1:\d+", line):
            threading.Thread(target=server.stdout.read, daemon=True).start()
            return server, found[0]
    sys.exit("the server did not come up")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, help="of the server; all cores if left out")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 200])
    parser.add_argument("--most", type=float, default=0)
    parser.add_argument("--timeout", default="5m", help="for each number of connections")
    options = parser.parse_args()
    if not CLIENT.exists():
        sys.exit("clients/go/build/manystreams is missing: clients/go/build.sh builds it")
    server, address = serve(options.binary, options.streams, options.tokens, options.threads)
    failed = False
    try:
        for connections in options.connections:
            command = [CLIENT, "-address", address, "-streams", options.streams, "-connections", connections]
            command += ["-tokens", options.tokens, "-most", options.most, "-timeout", options.timeout]
            failed |= subprocess.run([str(word) for word in command]).returncode != 0
    finally:
        server.terminate()
        server.wait(60)
    sys.exit(failed)


if __name__ == "__main__":
    main()
