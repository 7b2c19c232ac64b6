"""Keeps the held-out questions held out: no run of five words of theirs may be in anything that is trained on.

    python models/demo/recipe/heldout.py [--text FOLDER]

lists the lines of the data that share such a run (and, with the folder of the corpus, counts the paragraphs of prose),
and ends with 1 where a fact or chat line does. The recipe itself leaves out whatever offends, after rewording.
"""

import argparse
import json
import re
import sys
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data"
RUN = 5


def lines(data, pattern):
    """The records of the files that match, each with the name of its file."""
    for path in sorted(Path(data).glob(pattern)):
        for line in path.read_text().splitlines():
            if line.strip():
                yield path.name, json.loads(line)


def questions(data=DATA):
    """All held-out questions: about candlewick, and off-topic."""
    for _, record in lines(data, "heldout*.jsonl"):
        yield from record["questions"]
    for _, record in lines(data, "offtopic.jsonl"):
        yield record["question"]


def runs(text):
    """Each five words in a row, case-folded, whatever stands between them."""
    words = re.findall(r"[^\W_]+", text.casefold())
    return {tuple(words[n : n + RUN]) for n in range(len(words) - RUN + 1)}


class HeldOut:
    def __init__(self, data=DATA):
        self.runs = set().union(*map(runs, questions(data)))

    def shared(self, text):
        """The runs that `text` shares with held-out questions."""
        return runs(text) & self.runs


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--data", type=Path, default=DATA)
    options.add_argument("--text", type=Path, help="the folder of corpus.tar.xz")
    options = options.parse_args()
    held_out, offending = HeldOut(options.data), 0
    for pattern in ("facts_*.jsonl", "chat.jsonl"):
        for file, record in lines(options.data, pattern):
            for text in record["questions"] + record["answers"]:
                for run in held_out.shared(text):
                    offending += 1
                    print(f"{file}: {record['id']}: {text!r} shares {' '.join(run)!r}")
    print(f"{offending} lines share a run of {RUN} words with {len(list(questions(options.data)))} held-out questions")
    if options.text:
        import corpus

        prose = (text for document in corpus.read(options.text).training for text in document.paragraphs)
        print(f"{sum(bool(held_out.shared(text)) for text in prose)} paragraphs of prose do; training leaves them out")
    sys.exit(offending > 0)


if __name__ == "__main__":
    main()
