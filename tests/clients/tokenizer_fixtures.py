#!/usr/bin/env python3
"""Makes tests/data/tokenizers: a small vocabulary of every kind, trained on this project's own pages, and what the
reference libraries make of texts that are hard on tokenizers.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements-tokenizers.txt
    .venv/bin/python tests/clients/tokenizer_fixtures.py
"""

import base64
import json
import pathlib
import random
import re

import sentencepiece
import tiktoken
import tokenizers
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/data/tokenizers"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s"
)
SPECIAL = ["<|im_start|>", "<|im_end|>"]


def corpus():
    """The project's pages, and a few lines in other scripts."""
    pages = [(ROOT / name).read_text() for name in ["README.md", "docs/architecture.md", "models/demo/README.md"]]
    other = ["Der Wolf läuft, où ça? Ñandú.", "漢字とひらがな、カタカナ。", "Привет, мир!", "안녕하세요 세계", "🦙 👩‍👩‍👧 e\u0301 ½"]
    return [line for page in pages for line in page.splitlines() if line.strip()] + other * 4


def texts():
    """Texts that are hard on tokenizers; the same every time."""
    rng = random.Random(1)
    fixed = [
        "", " ", "  ", "\n", " \n ", "\t\t", "\r\n", "a", " a", "a ", " a  b   c ", "Hello world!", "Hello,  world .",
        "don't you're I'VE", "1234567 12 3.14 ½ ٣", "x = y[0] + f(z) // 2\n\treturn\n\n\n", "e\u0301 a\u0308\u0301 \u0301",
        "👩‍👩‍👧‍👦🏽 🇩🇪 🦙", "漢字ひらがな", "ﬁ Å ﷺ ①", "안녕 ไทย עברית العربية", "\u00a0\u2003\u3000x\u200b\ufeff",
        "\0\x7f\x80", "\U0010ffff\ue000", "a" * 200, " " * 100, " " * 99 + "x", "\n" * 70, "🦙" * 20, "e" + "\u0301" * 40,
        "<|im_start|>user\nhi<|im_end|>", "CamelCaseWORDS aB", "The candlewick server streams tokens.", "▁ ▁a <0x41> ##x",
    ]
    pools = [range(32, 127), [32, 32, 10, 9, 13, 0x3000], range(0x80, 0x800), range(0x4E00, 0x4F00),
             range(0x1F300, 0x1F700), range(0x300, 0x370), range(1, 0xD7FF)]
    for _ in range(60):
        length = rng.randrange(1, 24)
        fixed.append("".join(chr(rng.choice(rng.choice(pools))) for _ in range(length)))
    return fixed


def train_sentencepiece(name, **options):
    lines = [line for line in corpus()]
    text = OUT / "corpus.txt"
    text.write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(OUT / name), minloglevel=2, num_threads=1, hard_vocab_limit=False, **options
    )
    text.unlink()
    (OUT / f"{name}.vocab").unlink()
    # The path of the corpus is nobody's business.
    model = proto.ModelProto()
    model.ParseFromString((OUT / f"{name}.model").read_bytes())
    model.trainer_spec.ClearField("input")
    model.trainer_spec.ClearField("model_prefix")
    (OUT / f"{name}.model").write_bytes(model.SerializeToString())


def sentencepiece_models():
    rules = OUT / "rules.tsv"
    rules.write_text("\n".join(["FB01\t66 69", "C5\t61 30A", "A0\t20", "3000\t20", "2003\t20", "65 301\tE9", "200B\t", "2460\t31"]) + "\n")
    bytes_too = dict(byte_fallback=True, character_coverage=0.99)
    train_sentencepiece("unigram", model_type="unigram", vocab_size=500, normalization_rule_tsv=str(rules))
    rules.unlink()
    train_sentencepiece("unigram-symbols", model_type="unigram", vocab_size=700, normalization_rule_name="identity",
                        remove_extra_whitespaces=False, add_dummy_prefix=False, user_defined_symbols=["Hello", "token", "  "],
                        **bytes_too)
    train_sentencepiece("bpe", model_type="bpe", vocab_size=700, normalization_rule_name="identity",
                        remove_extra_whitespaces=False, **bytes_too)
    train_sentencepiece("bpe-unknown", model_type="bpe", vocab_size=400, normalization_rule_name="identity",
                        character_coverage=0.98, user_defined_symbols=["<|im_start|>", "world"])
    train_sentencepiece("word", model_type="word", vocab_size=300, normalization_rule_name="identity")
    train_sentencepiece("char", model_type="char", vocab_size=100, normalization_rule_name="identity",
                        treat_whitespace_as_suffix=True)


def save(name, tokenizer):
    (OUT / f"{name}.json").write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":")) + "\n")


def json_tokenizers():
    lines = corpus()
    alphabet = pre_tokenizers.ByteLevel.alphabet()

    plain = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated")
    plain.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    plain.decoder = decoders.ByteLevel()
    plain.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=SPECIAL))
    save("byte-level", plain)

    gpt2 = Tokenizer(models.BPE())
    gpt2.normalizer = normalizers.NFC()
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    gpt2.decoder = decoders.ByteLevel()
    gpt2.post_processor = processors.ByteLevel(trim_offsets=True)
    gpt2.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=SPECIAL))
    save("gpt2", gpt2)

    bert = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    bert.normalizer = normalizers.BertNormalizer()
    bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bert.decoder = decoders.WordPiece()
    bert.train_from_iterator(lines, trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]", "[CLS]", "[SEP]"]))
    bert.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    save("wordpiece", bert)

    words = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.decoder = decoders.BPEDecoder(suffix="</w>")
    words.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=400, end_of_word_suffix="</w>", special_tokens=["<unk>"]))
    save("word-suffix", words)

    spaces = Tokenizer(models.Unigram())
    spaces.pre_tokenizer = pre_tokenizers.Metaspace()
    spaces.decoder = decoders.Metaspace()
    spaces.train_from_iterator(lines, trainers.UnigramTrainer(vocab_size=500, unk_token="<unk>", special_tokens=["<unk>", *SPECIAL]))
    save("metaspace", spaces)
    return {"byte-level": plain, "gpt2": gpt2, "wordpiece": bert, "word-suffix": words, "metaspace": spaces}


def gpt2_bytes():
    """The characters that GPT-2 spells bytes with."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + n): byte for n, byte in enumerate(others)}


def tiktoken_file(source):
    """A .tiktoken file of the same merges, and the library's own encoding over it."""
    spelled = gpt2_bytes()
    tokens = [token for token, id in sorted(source.get_vocab().items(), key=lambda item: item[1]) if token not in SPECIAL]
    ranks = {bytes(spelled[c] for c in token): rank for rank, token in enumerate(tokens)}
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    folder = OUT / "tiktoken"
    folder.mkdir(exist_ok=True)
    (folder / "small.tiktoken").write_text("".join(lines))
    special = {token: len(ranks) + n for n, token in enumerate(SPECIAL)}
    config = {"pat_str": CL100K, "eos_token": SPECIAL[1],
              "added_tokens_decoder": {str(id): {"content": token, "special": True} for token, id in special.items()}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    return tiktoken.Encoding("small", pat_str=CL100K, mergeable_ranks=ranks, special_tokens=special)


def gguf_vocabularies(json_kinds):
    """What llama.cpp's converter would write into a GGUF file for three of the above."""
    model = proto.ModelProto()
    model.ParseFromString((OUT / "unigram.model").read_bytes())
    t5 = {
        "model": "t5", "tokens": [p.piece for p in model.pieces], "scores": [p.score for p in model.pieces],
        "token_types": [p.type for p in model.pieces], "unk": 0, "bos": 1, "eos": 2, "add_space_prefix": True,
        "remove_extra_whitespaces": True, "precompiled_charsmap": base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode(),
    }
    vocab = json_kinds["wordpiece"].get_vocab()
    def phantom(token):
        return token if re.fullmatch(r"\[.*\]", token) else token[2:] if token.startswith("##") else "\u2581" + token
    tokens = [phantom(token) for token, _ in sorted(vocab.items(), key=lambda item: item[1])]
    bert = {"model": "bert", "tokens": tokens, "token_types": [3 if re.fullmatch(r"\[(UNK|CLS|SEP)\]", t) else 1 for t in tokens],
            "unk": 0, "bos": 1, "sep": 2}
    state = json.loads(json_kinds["byte-level"].to_str())
    tokens = [token for token, _ in sorted(state["model"]["vocab"].items(), key=lambda item: item[1])]
    gpt2 = {"model": "gpt2", "pre": "llama-bpe", "tokens": tokens, "token_types": [3 if t in SPECIAL else 1 for t in tokens],
            "merges": [" ".join(merge) for merge in state["model"]["merges"]]}
    return {"unigram": t5, "wordpiece": bert, "byte-level": gpt2}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    sentencepiece_models()
    kinds = json_tokenizers()
    encoding = tiktoken_file(kinds["byte-level"])
    (OUT / "gguf.json").write_text(json.dumps(gguf_vocabularies(kinds), ensure_ascii=False, separators=(",", ":")) + "\n")

    samples = texts()
    vectors = {}
    for path in sorted(OUT.glob("*.model")):
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        # Control pieces in a text are ours to find, as chat templates write them.
        ids = [model.encode(text) for text in samples]
        vectors[path.name] = {"ids": ids, "decoded": [model.decode(row) for row in ids]}
    for name, tokenizer in kinds.items():
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in samples]
        vectors[f"{name}.json"] = {"ids": ids, "decoded": [tokenizer.decode(row, skip_special_tokens=False) for row in ids]}
    ids = [encoding.encode(text, allowed_special="all") for text in samples]
    vectors["tiktoken"] = {"ids": ids, "decoded": [encoding.decode(row) for row in ids]}
    (OUT / "vectors.json").write_text(json.dumps({"texts": samples, "expected": vectors}, separators=(",", ":")) + "\n")
    print({path.name: path.stat().st_size for path in sorted(OUT.rglob("*")) if path.is_file()})


if __name__ == "__main__":
    main()
