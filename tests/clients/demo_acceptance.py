#!/usr/bin/env python3
"""What the built-in model must be able to do, asked of a running server.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements.txt
    cargo run --release -- serve &
    .venv/bin/python tests/clients/demo_acceptance.py --text FOLDER [--address 127.0.0.1:50051] [--json FILE]

FOLDER holds the corpus.tar.xz that the model was trained on: its words are the word list. Held-out wordings of questions
are answered with the facts listed for them, off-topic questions are declined, both under greedy decoding, and stories go
on from a first line without repeating themselves or making up words. Ends with 0 where all of it is as it must be.
"""

import argparse
import collections
import json
import pathlib
import re
import sys
import tarfile
import tempfile

import grpc

from python_grpcio import generated_services

DATA = pathlib.Path(__file__).resolve().parents[2] / "models" / "demo" / "data"
ANSWERED, DECLINED, STORIES = (90, 100), (20, 20), (20, 20)
DECLINE = "only know about candlewick"
ANSWER_TOKENS, STORY_TOKENS = 160, 150
RUN, REPEATS = 8, 3
REAL_WORDS = 0.98


def records(pattern):
    for path in sorted(DATA.glob(pattern)):
        yield from map(json.loads, path.read_text().splitlines())


def words(text):
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.casefold().replace("’", "'"))


def word_list(folder):
    """Every word of the corpus and of the data."""
    known = set()
    with tarfile.open(pathlib.Path(folder) / "corpus.tar.xz") as archive:
        for member in filter(tarfile.TarInfo.isfile, archive):
            known.update(words(archive.extractfile(member).read().decode("utf-8", "replace")))
    for path in DATA.glob("*.jsonl"):
        known.update(words(path.read_text()))
    return known


def missing_facts(answer, facts):
    """The facts of which no alternative is in the answer."""
    answer = answer.casefold()
    return [" / ".join(others) for others in facts if not any(other.casefold() in answer for other in others)]


def story_faults(story, known):
    """Why a story is none, or nothing."""
    if DECLINE in story.casefold():
        return ["declined"]
    said = words(story)
    runs = collections.Counter(tuple(said[n : n + RUN]) for n in range(len(said) - RUN + 1))
    repeated = [" ".join(run) for run, count in runs.items() if count >= REPEATS]
    unknown = [word for word in said if word not in known]
    faults = [f"repeats {run!r}" for run in repeated[:1]]
    if not said or len(unknown) > (1 - REAL_WORDS) * len(said):
        faults.append(f"{len(unknown)} of {len(said)} are no words: {' '.join(unknown[:6])}")
    return faults


class Model:
    def __init__(self, channel, folder):
        services = generated_services(folder, ["common", "chat"])
        self.common, self.chat, self.rpc = services["common_pb2"], services["chat_pb2"], services["chat_pb2_grpc"]
        self.stub = self.rpc.ChatStub(channel)

    def say(self, text, **sampling):
        message = self.chat.Message(role=self.chat.ROLE_USER, content=text)
        options = self.common.RequestOptions(sampling=self.common.SamplingParams(**sampling))
        answer = self.stub.Complete(self.chat.CompleteRequest(messages=[message], options=options), timeout=120)
        return answer.message.content, answer.finished.usage.completion_tokens


def arguments():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--text", required=True, help="the folder of corpus.tar.xz")
    options.add_argument("--address", default="127.0.0.1:50051")
    options.add_argument("--json", type=pathlib.Path, help="write every question and answer here")
    options.add_argument("--story-temperature", type=float, default=0.0, help="0 tells the most likely story")
    return options.parse_args()


def ask(model, options):
    """Every check as a row: its kind, what was asked, what came, and what is wrong with it."""
    for record in records("heldout*.jsonl"):
        for question in record["questions"]:
            answer, _ = model.say(question, temperature=0, max_tokens=ANSWER_TOKENS)
            yield {"kind": "answered", "id": record["id"], "asked": question, "came": answer, "wrong": missing_facts(answer, record["facts"])}
    for record in records("offtopic.jsonl"):
        answer, _ = model.say(record["question"], temperature=0, max_tokens=ANSWER_TOKENS)
        wrong = [] if DECLINE in answer.casefold() else ["not declined"]
        yield {"kind": "declined", "id": "offtopic", "asked": record["question"], "came": answer, "wrong": wrong}
    known = word_list(options.text)
    for seed, record in enumerate(records("stories.jsonl")):
        length = {"max_tokens": STORY_TOKENS, "min_tokens": STORY_TOKENS}
        story, tokens = model.say(record["prompt"], temperature=options.story_temperature, seed=seed, **length)
        wrong = story_faults(story, known) + ([] if tokens == STORY_TOKENS else [f"{tokens} tokens, not {STORY_TOKENS}"])
        yield {"kind": "stories", "id": "story", "asked": record["prompt"], "came": story, "wrong": wrong}


def main():
    options = arguments()
    with tempfile.TemporaryDirectory() as folder, grpc.insecure_channel(options.address) as channel:
        rows = list(ask(Model(channel, folder), options))
    print(f"{'':4} {'kind':9} {'id':26} {'asked':62} wrong")
    for row in rows:
        mark = "" if not row["wrong"] else "FAIL"
        print(f"{mark:4} {row['kind']:9} {row['id'][:26]:26} {row['asked'][:62]:62} {'; '.join(row['wrong'])}")
        if row["wrong"]:
            print(f"     {row['came']!r}")
    passed = True
    summary = {}
    for kind, (least, of) in {"answered": ANSWERED, "declined": DECLINED, "stories": STORIES}.items():
        of_kind = [row for row in rows if row["kind"] == kind]
        good = sum(not row["wrong"] for row in of_kind)
        summary[kind] = {"good": good, "of": len(of_kind), "least": least}
        # The counts are part of what was agreed: fewer questions than that are no pass.
        passed &= good >= least and len(of_kind) == of
        print(f"{kind}: {good} of {len(of_kind)}; at least {least} of {of} are needed")
    print(json.dumps(summary))
    if options.json:
        options.json.write_text(json.dumps({"summary": summary, "rows": rows}, indent=1, ensure_ascii=False) + "\n")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
