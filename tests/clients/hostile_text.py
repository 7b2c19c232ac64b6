#!/usr/bin/env python3
"""How long a tokenizer takes for hostile texts of 64 KiB, 256 KiB and 1 MiB: whatever the text, four times as long for each.

    cargo build --release
    python3 tests/clients/hostile_text.py [--few] [FILE...]

FILE is a tokenizer.json, a .model or .tiktoken file, or a .gguf vocabulary; by default the small ones of
tests/data/tokenizers. With --few only the first texts of the list, for a program that is not optimised. CANDLEWICK names the program, by default target/release/candlewick. Prints a row for each tokenizer:
its slowest text, with seconds for each size, and of all texts the largest growth from 256 KiB to 1 MiB, of those that take
long enough to be measured. Ends with 0 where none grows more than eightfold, which time that is squared would (16).
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/data/tokenizers"
PROGRAM = os.environ.get("CANDLEWICK", str(ROOT / "target/release/candlewick"))
SIZES = [1 << 16, 1 << 18, 1 << 20]
# Of so many times the least: the others are the machine's.
REPEATS = 3
# Below that, what is measured is the machine as well.
MEASURABLE_S = 0.05
MOST_GROWTH = 8
FEW = 4

LETTERS = random.Random(3)
UNITS = {
    "one letter": "a",
    "two letters": "ab",
    "a long word": "".join(LETTERS.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(4096)),
    "combining marks": "a" + "\u0301" * 1023,
    "spaces": " ",
    "line ends": "\n",
    "digits": "1",
    "marks": "!",
    "letters and spaces": "a ",
    "spaces that end": "  \n",
    "two bytes a letter": "é",
    "decomposed": "e\u0301",
    "ideographs": "漢",
    "emoji that join": "👩\u200d👩\u200d👧",
    "replacement characters": "\ufffd",
    "controls": "\x01\x7f\x85",
    "not assigned": "\U000e0fff",
    "sentencepiece's own space": "\u2581",
    "apostrophes": "'s't",
    "special tokens": "</s>",
    "halves of special tokens": "<|end",
}


class Tokenizer:
    """The program, asked a line at a time."""

    def __init__(self, file):
        self.process = subprocess.Popen(
            [PROGRAM, "tokenize", str(file), "--json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.seconds("a")

    def seconds(self, text):
        line = json.dumps(text).encode() + b"\n"
        start = time.perf_counter()
        self.process.stdin.write(line)
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        taken = time.perf_counter() - start
        if not answer:
            sys.exit(f"the program ended at {text[:20]!r}")
        return taken

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def filled(unit, size):
    """The text of that many bytes, in UTF-8."""
    return unit * (size // len(unit.encode()))


def main(arguments):
    few = "--few" in arguments
    files = [argument for argument in arguments if argument != "--few"]
    units = dict(list(UNITS.items())[:FEW]) if few else UNITS
    files = [pathlib.Path(file) for file in files] or sorted(
        [*FIXTURES.glob("*.model"), *FIXTURES.glob("tiktoken/*.tiktoken"),
         *(file for file in FIXTURES.glob("*.json") if file.stem not in ("vectors", "gguf"))]
    )
    worst = 0
    print(f"{'':28} {'64 KiB':>8} {'256 KiB':>8} {'1 MiB':>8}   the slowest text, and the largest growth of any")
    for file in files:
        tokenizer = Tokenizer(file)
        least = lambda text: min(tokenizer.seconds(text) for _ in range(REPEATS))
        rows = {name: [least(filled(unit, size)) for size in SIZES] for name, unit in units.items()}
        tokenizer.close()
        slowest = max(rows, key=lambda name: rows[name][-1])
        growth = {name: row[-1] / row[-2] for name, row in rows.items() if row[-2] >= MEASURABLE_S}
        steepest = max(growth, key=growth.get, default=None)
        seconds = " ".join(f"{s:8.3f}" for s in rows[slowest])
        grown = f"; {growth[steepest]:.1f} x, {steepest}" if steepest else ""
        print(f"{file.name:28} {seconds}   {slowest}{grown}", flush=True)
        worst = max(worst, growth.get(steepest, 0))
    print(f"{len(files)} tokenizers, {len(units)} texts each: four times the text takes at most {worst:.1f} times as long")
    return 0 if worst <= MOST_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
