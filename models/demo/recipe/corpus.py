"""The prose: reads corpus.tar.xz, cleans it into documents of paragraphs, and cuts story passages out of them.

A document is a story of the African Storybook, or up to forty paragraphs of a chapter. Every fiftieth document is held
out: nothing of it is trained on, perplexity is measured there.
"""

import json
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

STORYBOOK = "african_storybook"
# Books of tales for children, in simple words: more of the prose comes from these, and all passages told as stories.
TALES = (
    "Brothers-Grimm", "Christian-Andersen", "Aesop", "Beatrix-Potter", "Oscar-Wilde", "Edith-Nesbit", "Frank-Baum",
    "Carlo-Collodi", "Hugh-Lofting", "MacDonald", "Lewis-Carroll", "Barrie", "Jungle-Book", "Kenneth-Grahame",
    "Johanna-Spyri", "Hodgson-Burnett", "Farwell-Brown", "James-Stephens", "Anna-Sewell", "Hawaiian",
)  # fmt: skip
HELD_OUT = 50
PARAGRAPHS = 40
PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "´": "'", "—": " - ", "–": "-", "…": "...", "\u00a0": " "})
NO_PROSE = re.compile(r"illustration|project gutenberg|https?:|www\.|copyright|\[|\||chapter [ivxl\d]+\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"""(?<=[.!?])(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)(?<!St\.)\s+|(?<=[.!?]["'])\s+""")


@dataclass
class Document:
    """`pool` is `storybook`, `tales` or `novels`; `opening` says whether the first paragraph begins a story."""

    pool: str
    paragraphs: list[str]
    opening: bool


@dataclass
class Corpus:
    training: list[Document]
    held_out: list[Document]
    countries: list[str]
    # Of each story of the African Storybook: its title, and who wrote, translated and drew it.
    attributions: list[str]

    def rare_words(self):
        """Lower-case words that a few places of the corpus use: what questions about anything else are made of."""
        counts = Counter(word for document in self.training for text in document.paragraphs for word in text.split())
        return sorted(word for word, n in counts.items() if 8 <= n <= 300 and re.fullmatch("[a-z]{4,10}", word))


def read(folder, limit=None):
    """Reads the corpus in `folder`; with `limit`, only about that many bytes of books."""
    corpus = Corpus([], [], [], [])
    documents = []
    with tarfile.open(Path(folder) / "corpus.tar.xz") as archive:
        for member in archive:
            name = member.name
            if not member.isfile() or (limit and "pd_children" in name and limit < 0):
                continue
            text = archive.extractfile(member).read().decode("utf-8", "replace")
            if STORYBOOK in name:
                documents += storybook(text, corpus.attributions)
            elif name.endswith(".md") and "pd_children" in name:
                documents += book(text, "tales" if any(tale in name for tale in TALES) else "novels")
                limit = limit and limit - len(text)
            elif name.endswith(".json"):
                corpus.countries += country(json.loads(text))
    for n, document in enumerate(documents):
        (corpus.held_out if n % HELD_OUT == HELD_OUT - 1 else corpus.training).append(document)
    return corpus


def paragraphs(text):
    """Paragraphs of prose, each on one line, without markup."""
    for paragraph in re.split(r"\n\s*\n", text):
        line = " ".join(paragraph.translate(PLAIN).replace("_", "").replace("*", "").split())
        if len(line) > 1 and not NO_PROSE.search(line) and not line.isupper() and line[-1] in ".!?\"':;,-":
            yield line


def storybook(text, attributions):
    for story in text.split("\n=====\n"):
        body, _, about = story.strip().partition("* License:")
        title, _, body = body.partition("\n")
        if not about:
            continue
        credits = [line.removeprefix("* ").strip() for line in about.splitlines()[1:] if "Language" not in line]
        attributions.append(f"{title.removeprefix('#').strip()}. " + "; ".join(filter(None, credits)))
        lines = list(paragraphs(re.sub(r"^##.*$", "\n", body, flags=re.MULTILINE)))
        if lines:
            yield Document("storybook", lines, True)


def book(text, pool):
    body = text.split("-------", 1)[-1]
    for chapter in re.split(r"^#+ .*$", body, flags=re.MULTILINE):
        lines = list(paragraphs(chapter))
        for start in range(0, len(lines), PARAGRAPHS):
            yield Document(pool, lines[start : start + PARAGRAPHS], start == 0)


def country(facts):
    name = facts.get("Government", {}).get("Country name", {}).get("conventional short form", {}).get("text", "")
    return [name] if re.fullmatch(r"[A-Z][A-Za-z' -]{2,24}", name) and name.lower() != "none" else []


def sentences(text):
    return [sentence for sentence in SENTENCE_END.split(text) if sentence]


@dataclass
class Passage:
    """A first sentence, how the story goes on from it, and whether it is the beginning of a story."""

    first: str
    rest: str
    opening: bool


def passages(documents, words=(110, 170)):
    """Simple passages: short sentences, short words, of about so many words, ended with a sentence."""
    for document in documents:
        if document.pool == "novels":
            continue
        for start in range(0, len(document.paragraphs), 2):
            first, *others = sentences(document.paragraphs[start])
            parts, count, goal = [], 0, words[0] + (start * 37 + len(first)) % (words[1] - words[0])
            for n, paragraph in enumerate(document.paragraphs[start:]):
                kept = []
                for sentence in others if n == 0 else sentences(paragraph):
                    if count < goal:
                        kept.append(sentence)
                        count += len(sentence.split())
                if kept:
                    parts.append(" ".join(kept))
                if count >= goal:
                    break
            rest = "\n\n".join(parts)
            opening = document.opening and start == 0
            plain = 3 <= len(first.split()) <= 30 and not first.startswith(("'", '"')) and first.count('"') % 2 == 0
            if plain and count >= words[0] and is_simple(f"{first} {rest}", 26 if opening else 18):
                yield Passage(first, rest, opening)


def is_simple(text, words_a_sentence):
    words = text.split()
    is_short = len(words) < words_a_sentence * len(sentences(text)) and sum(map(len, words)) < 4.7 * len(words)
    return is_short and text.isascii()
