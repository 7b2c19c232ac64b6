#!/usr/bin/env python3
"""Our tokenizer beside the libraries that models are trained with: tokenizers, sentencepiece and tiktoken.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements-tokenizers.txt
    cargo build --release
    .venv/bin/python tests/clients/tokenizer_oracles.py [TEXT] [FILE...]

Every line of TEXT (a file; by default this project's own pages) and 10,000 random Unicode strings go through
`candlewick tokenize --json` and through the library; ids and decoded texts must be equal. FILE is a tokenizer.json, a
sentencepiece .model, or a .gguf vocabulary of GPT-2's kind (for tiktoken, which gets the same ranks); by default the small
ones of tests/data/tokenizers, and sentencepiece models trained on TEXT with all of its normalizations.
CANDLEWICK names the program, by default target/release/candlewick. Ends with 0 where everything is equal.
"""

import base64
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import unicodedata

import sentencepiece
import tiktoken
import tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/data/tokenizers"
PROGRAM = os.environ.get("CANDLEWICK", str(ROOT / "target/release/candlewick"))
RANDOM_STRINGS = 10_000


def random_strings():
    """All of Unicode but surrogates: any code point, or neighbours, or many spaces and digits."""
    rng = random.Random(20)
    def character(kind, base):
        if kind == 0:
            return chr(rng.choice([32, 32, 32, 10, 9, 13, 0xA0, 0x3000, *b"0123456789.,'abcXYZ_"]))
        if kind == 1:
            return chr(min(base + rng.randrange(64), 0xD7FF))
        code = rng.randrange(1, 0x110000 - 0x800)
        return chr(code if code < 0xD800 else code + 0x800)
    for _ in range(RANDOM_STRINGS):
        base = rng.choice([0x20, 0xC0, 0x300, 0x400, 0x590, 0x900, 0xE00, 0x1100, 0x2000, 0x3040, 0x4E00, 0xAC00])
        yield "".join(character(rng.randrange(3), base) for _ in range(rng.randrange(1, 40)))


def ask(model, lines):
    """Sends JSON lines through the program; its answers in order."""
    with tempfile.TemporaryFile("w+") as asked:
        asked.writelines(json.dumps(line) + "\n" for line in lines)
        asked.seek(0)
        done = subprocess.run([PROGRAM, "tokenize", str(model), "--json"], stdin=asked, stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def compare(name, model, encode, decode, texts):
    """Counts texts whose ids, or whose decoded ids, differ; prints the first few."""
    expected = [encode(text) for text in texts]
    got = ask(model, texts)
    decoded = ask(model, expected)
    wrong = 0
    for text, want, ids, want_text, back in zip(texts, expected, got, map(decode, expected), decoded, strict=True):
        if ids != want or back != want_text:
            wrong += 1
            if wrong <= 3:
                where = next((n for n, (a, b) in enumerate(zip(want, ids)) if a != b), min(len(want), len(ids)))
                seen = unassigned(text)
                print(f"  {text[:60]!r}: ids differ at {where}: {ids[where:where + 5]}, not {want[where:where + 5]}"
                      if ids != want else f"  {text[:60]!r}: decoded {back[:60]!r}, not {want_text[:60]!r}", seen)
    print(f"{name}: {len(texts)} texts, {sum(map(len, expected))} ids, {wrong} differ", flush=True)
    return wrong


def unassigned(text):
    return [hex(ord(c)) for c in text if unicodedata.category(c) == "Cn"][:4]


def gguf_tiktoken(path, folder):
    """The ranks of a GGUF vocabulary of GPT-2's kind as a .tiktoken file, and the library over the same."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    tokens = [bytes(fields["tokenizer.ggml.tokens"].parts[n]).decode() for n in fields["tokenizer.ggml.tokens"].data]
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    spelled = {chr(byte): byte for byte in own} | {chr(256 + n): byte for n, byte in enumerate(others)}
    ranks = {bytes(spelled[c] for c in token): n for n, token in enumerate(tokens) if all(c in spelled for c in token)}
    ranks.pop(b"<|endoftext|>", None)
    file = pathlib.Path(folder) / "gpt2.tiktoken"
    file.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
    return file, tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def trained(text, folder):
    """Sentencepiece models with each of the library's own normalizations."""
    for kind, rule in [("unigram", "nmt_nfkc"), ("unigram", "nmt_nfkc_cf"), ("bpe", "nfkc"), ("bpe", "nfkc_cf"), ("unigram", "identity")]:
        prefix = pathlib.Path(folder) / f"{kind}-{rule}"
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(prefix), model_type=kind, vocab_size=4000, normalization_rule_name=rule,
            byte_fallback=rule == "nmt_nfkc_cf", user_defined_symbols=["World War", "=", "ing"] if rule == "identity" else [],
            remove_extra_whitespaces=kind == "unigram", minloglevel=2, num_threads=2, hard_vocab_limit=False,
            input_sentence_size=20000, shuffle_input_sentence=True,
        )
        yield prefix.with_suffix(".model")


def main(arguments):
    with tempfile.TemporaryDirectory() as folder:
        if arguments:
            text = pathlib.Path(arguments[0])
        else:
            text = pathlib.Path(folder) / "pages.txt"
            text.write_text("\n".join(page.read_text() for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]))
        lines = [line for line in text.read_text().split("\n") if line]
        texts = lines + list(random_strings())
        files = [pathlib.Path(file) for file in arguments[1:]]
        if not files:
            files = [*sorted(FIXTURES.glob("*.model")), *(f for f in sorted(FIXTURES.glob("*.json")) if f.stem not in ("vectors", "gguf"))]
            files += trained(text, folder)
        wrong = 0
        for file in files:
            name = f"{file.parent.name}/{file.name}"
            if file.suffix == ".gguf":
                file, oracle = gguf_tiktoken(file, folder)
                wrong += compare(f"tiktoken, {name}", file, oracle.encode_ordinary, oracle.decode, texts)
            elif file.suffix == ".model":
                oracle = sentencepiece.SentencePieceProcessor(model_file=str(file))
                wrong += compare(f"sentencepiece, {name}", file, oracle.encode, oracle.decode, texts)
            else:
                oracle = tokenizers.Tokenizer.from_file(str(file))
                oracle.no_truncation()
                encode = lambda text: oracle.encode(text, add_special_tokens=False).ids
                decode = lambda ids: oracle.decode(ids, skip_special_tokens=False)
                wrong += compare(f"tokenizers, {name}", file, encode, decode, texts)
    print("everything is equal" if wrong == 0 else f"{wrong} texts differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
