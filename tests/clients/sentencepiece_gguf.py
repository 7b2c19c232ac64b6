#!/usr/bin/env python3
"""Sentencepiece tokenizers in GGUF files that `candlewick convert` writes: llama.cpp and candlewick beside the libraries.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements-sentencepiece-gguf.txt
    cargo build --release
    .venv/bin/python tests/clients/sentencepiece_gguf.py DIR [TEXT]

DIR is a folder of llama.cpp's programs, of which llama-server is run. On TEXT (a file; by default this project's own pages)
three sentencepiece models are trained: one as Llama's, one as Gemma's, without a space before a text and with runs of spaces and
lines that are always whole, and one of unigram as T5's, which replaces characters and folds spaces. Each is converted as the model itself, and as the tokenizer.json that transformers'
converters make of it. Every line of TEXT and 10,000 random Unicode strings then go through the library (sentencepiece, or
tokenizers), through `candlewick tokenize` on the GGUF file, and through llama-server on the same file; those of a
tokenizer.json with its special tokens between too. CANDLEWICK names the program, by default target/release/candlewick. Ends
with 0 where all ids are equal, but for those of texts where tokenizers itself departs from sentencepiece, which are counted, and
of unigram's where two ways are as likely but for rounding: sentencepiece adds in single precision, the others in double.
"""

import contextlib
import json
import pathlib
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import types
import urllib.error
import urllib.request

import sentencepiece
import tokenizers
from tokenizer_oracles import PROGRAM, ROOT, ask, random_strings
from transformers.convert_slow_tokenizer import (
    GemmaConverter, LlamaConverter, SentencePieceExtractor, T5Converter, generate_merges)

SIZE, WIDTH, CONTEXT = 6000, 32, 64
RUNS = ["\n" * n for n in range(1, 32)] + ["\u2581" * n for n in range(2, 32)]
TAGS = ["<table>", "</h1>", "<start_of_turn>", "<end_of_turn>"]
# As it is, without replacing or folding anything.
IDENTITY = {"model_type": "bpe", "byte_fallback": True, "split_digits": True, "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False}
KINDS = {
    "llama": (LlamaConverter, IDENTITY),
    "t5": (T5Converter, {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}),
    "gemma": (GemmaConverter, {**IDENTITY, "add_dummy_prefix": False, "user_defined_symbols": RUNS + TAGS, "pad_id": 0, "eos_id": 1,
                                    "bos_id": 2, "unk_id": 3}),
}


def trained(name, text, folder):
    prefix = folder / name
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(prefix), vocab_size=SIZE, character_coverage=0.9995, minloglevel=2,
        hard_vocab_limit=False, **KINDS[name][1])
    return prefix.with_suffix(".model")


class Scored(SentencePieceExtractor):
    """Merges by the score of what they make, as in published files."""

    def extract(self, scores):
        vocab = {piece.piece: id for id, piece in enumerate(self.proto.pieces)}
        vocab.setdefault("\t", vocab["<0x09>"])
        return vocab, generate_merges(vocab, scores)


def as_json(name, model):
    """The tokenizer.json of a model, by transformers' converter of its kind."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    named = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
    original = types.SimpleNamespace(
        vocab_file=str(model), convert_ids_to_tokens=pieces.id_to_piece, legacy=True, add_prefix_space=True, **named)
    if name == "t5":
        original._extra_ids = 0
        original.convert_tokens_to_ids = pieces.piece_to_id
    converter = KINDS[name][0](original)
    if name != "t5":
        converter.SpmExtractor = Scored
        return converter.converted()
    converted = converter.converted()
    # As published files of T5 have it, which strip both ends of a text.
    converted.normalizer = tokenizers.normalizers.Precompiled(converter.proto.normalizer_spec.precompiled_charsmap)
    words = [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Metaspace()]
    converted.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(words)
    return converted


def directory(folder, tokens):
    """A model whose weights are all zero."""
    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": tokens, "hidden_size": WIDTH,
              "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
              "head_dim": WIDTH, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(config))
    square = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    shapes = {f"model.layers.0.{part}.weight": [WIDTH, WIDTH] for part in square}
    shapes |= {f"model.{norm}.weight": [WIDTH] for norm in
               ("norm", "layers.0.input_layernorm", "layers.0.post_attention_layernorm")}
    shapes |= {name: [tokens, WIDTH] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(at))


@contextlib.contextmanager
def llama_server(program, file):
    """What asks it for the ids of a text."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def post(path, body):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(),
                                         {"content-type": "application/json"})
        return json.load(urllib.request.urlopen(request, timeout=60))

    with tempfile.TemporaryFile("w+") as log:
        command = [program, "-m", file, "--host", "127.0.0.1", "--port", port, "-np", 1, "-c", CONTEXT, "-t", 1, "--no-warmup",
                   "--offline"]
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
        try:
            for _ in range(600):
                with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                    break
                if process.poll() is not None:
                    break
                time.sleep(0.1)
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(log.read()[-2000:])
            yield lambda text: post("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]
        finally:
            process.kill()
            process.wait()


def compare(name, folder, encode, texts, server):
    """How many texts have other ids in either program than in the library."""
    file = folder.with_suffix(".gguf")
    subprocess.run([PROGRAM, "convert", str(folder), str(file)], check=True, capture_output=True)
    ours, wrong = ask(file, texts), {}
    with llama_server(server, file) as theirs:
        count = apart = 0
        for text, mine in zip(texts, ours, strict=True):
            want, other = encode(text), theirs(text)
            count += len(want)
            apart += mine != other
            for who, ids in (("candlewick", mine), ("llama.cpp", other)):
                if ids != want:
                    wrong.setdefault(who, []).append((text, ids, want))
    counts = {who: len(wrong.get(who, [])) for who in ("candlewick", "llama.cpp")}
    print(f"{name}: {len(texts)} texts, {count} ids, other ids: {counts}, apart from each other: {apart}", flush=True)
    return wrong


def main(server, text=None):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if text is None:
            text = folder / "pages.txt"
            text.write_text("\n".join(page.read_text() for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]))
        lines = [line for line in pathlib.Path(text).read_text().split("\n") if line]
        # A file's pieces have U+2581 for a space, and none for itself. A text of C ends with its first zero.
        texts = [line for line in lines + list(random_strings()) if "\u2581" not in line and "\0" not in line]
        rng, failed = random.Random(4), 0
        spaced = [f"{' ' * rng.randrange(34)}{line[:40]}{chr(10) * rng.randrange(34)}{line[40:80]}" for line in lines[:2000]]
        for name in KINDS:
            model = trained(name, text, folder)
            library = sentencepiece.SentencePieceProcessor(model_file=str(model))
            tokens = library.get_piece_size() + 40
            own = folder / f"{name}-model"
            directory(own, tokens)
            (own / "tokenizer.model").write_bytes(model.read_bytes())
            plain = texts + spaced
            wrong = compare(f"{name}, tokenizer.model", own, library.encode, plain, server)
            score = lambda ids: sum(map(library.get_score, ids))
            is_tie = lambda case: name == "t5" and abs(score(case[1]) - score(case[2])) < 1e-4
            apart = [case for found in wrong.values() for case in found if not is_tie(case)]
            failed += len(apart)
            ties = sum(map(len, wrong.values())) - len(apart)
            if ties:
                print(f"  {ties} of them are of texts with two ways that are as likely as each other")
            for text_, ids, want in apart[:5]:
                print(f"  {text_[:80]!r}: {ids[:12]}, not {want[:12]}")

            merges = as_json(name, model)
            merges.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
            merges.add_special_tokens([tokenizers.AddedToken("<|im_start|>", normalized=False)])
            other = folder / f"{name}-json"
            directory(other, tokens)
            merges.save(str(other / "tokenizer.json"))
            special = [token for token in ("<s>", "</s>", "<|im_start|>", "<tool>", *TAGS[:2]) if name != "t5" or token != "<s>"]
            mixed = plain + [line[:at] + rng.choice(special) + line[at:] for line in lines[:4000]
                             for at in [rng.randrange(len(line) + 1)]]
            encode = lambda text: merges.encode(text, add_special_tokens=False).ids
            wrong = compare(f"{name}, tokenizer.json", other, encode, mixed, server)
            # Where two pairs of one piece overlap, the library takes the one that is listed first.
            whole = re.compile("(" + "|".join(map(re.escape, special)) + ")")
            parted = 0
            for who, found in wrong.items():
                for text_, ids, want in found:
                    parts = [part for part in whole.split(text_) if part and part not in special]
                    if any(library.encode(part) != encode(part) for part in parts):
                        parted += 1
                        continue
                    failed += 1
                    if failed <= 5:
                        print(f"  {who}: {text_[:80]!r}: {ids[:12]}, not {want[:12]}")
            print(f"  {parted} of them are of texts that tokenizers and sentencepiece merge otherwise")
    print("everything is equal" if failed == 0 else f"{failed} differ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]) / "llama-server", *sys.argv[2:]))
