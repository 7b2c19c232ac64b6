#!/usr/bin/env python3
"""The Vercel AI SDK, by its providers for OpenAI and for those that are compatible, against the built-in model.

    python3 -m venv .venv && .venv/bin/pip install jsonschema==4.26.0
    .venv/bin/python tests/clients/ai_sdk.py target/release/candlewick [--schema openapi.json]

Installs what ai_sdk/package-lock.json pins, beside it (Node 20.11 or later), and runs ai_sdk/client.mjs.
"""

import pathlib
import subprocess

import stock

FOLDER = pathlib.Path(__file__).resolve().parent / "ai_sdk"
PATIENCE_S = 600


def run(*command):
    subprocess.run(command, cwd=FOLDER, check=True, timeout=PATIENCE_S)


def main():
    given = stock.options(__doc__)
    # Not `npm ci`, as tests/clients/languages.py has it; the lock file decides the versions here too.
    run("npm", "install", "--no-save", "--ignore-scripts", "--silent")
    with stock.served(given, *stock.TOOLS) as (model, base):
        run("node", "client.mjs", base, model)


if __name__ == "__main__":
    main()
