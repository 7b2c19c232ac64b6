#!/usr/bin/env python3
"""lm-evaluation-harness by its `local-completions`: the log-likelihoods that it reads off the server beside those of `hf`.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements-lm-eval.txt
    .venv/bin/python tests/clients/lm_eval_client.py target/release/candlewick [--schema openapi.json]

The harness evaluates two tasks twice: over the API, and on the same weights in transformers, in float32 on the CPU. Its
answers must be the same, every log-likelihood within a thousandth, and every word about what is greedy. The tasks are made
of the built-in model's own questions, so nothing comes from the network.
"""

import json
import math
import os
import pathlib
import tempfile

# Nothing is fetched.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

import stock

DEMO = pathlib.Path(__file__).resolve().parents[2] / "models" / "demo"
FILE = "demo.gguf"
CONTEXT = 512
MOST = 1e-3
QUESTIONS = [
    ("Once upon a time there was a", [" little girl", " kernel scheduler", " big dog"], 0),
    ("The sun is", [" shining", " seven and a half", " grpc"], 0),
    ("Tom and his mom went to the", [" park", " and and and", " blocks of the cache"], 0),
    ("She was very happy because", [" she had a new toy", " of of of", " 0x7f"], 0),
]
TEXTS = [
    "Once upon a time there was a little girl. She lived in a small house with her mother and a grey cat.",
    "The fox ran into the wood. \"Where are you going?\" asked the bird. The fox said nothing, and ran on.",
    # Longer than the context, so that the harness rolls over it.
    "One day the sun came out and all the children went to play in the garden. " * 32,
]


def tasks(folder):
    """Two tasks of the harness: answers to choose from, and the likelihood of whole texts."""
    rows = [{"question": question, "choices": choices, "answer": answer} for question, choices, answer in QUESTIONS]
    for name, lines in (("questions", rows), ("texts", [{"text": text} for text in TEXTS])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = lambda name: {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}, "test_split": "test",
    }
    choices = {
        "task": "candlewick_questions", **common("questions"), "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "answer", "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    rolling = {
        "task": "candlewick_texts", **common("texts"), "output_type": "loglikelihood_rolling", "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    }
    for task in (choices, rolling):
        # JSON is YAML.
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task))
    return TaskManager(include_path=str(folder), include_defaults=False)


def evaluate(model, manager, **more):
    """What the harness found, and each task's answers by document: log-likelihood and, where there is one, what is greedy."""
    names = ["candlewick_questions", "candlewick_texts"]
    found = lm_eval.simple_evaluate(model=model, tasks=names, task_manager=manager, log_samples=True, bootstrap_iters=0, **more)
    told = {
        (name, sample["doc_id"]): sample["filtered_resps"] for name in names for sample in found["samples"][name]
    }
    return found["results"], told


def pairs(answers):
    """(log-likelihood, is greedy) of each answer of a document."""
    return [(float(one[0]), bool(one[1])) if isinstance(one, (tuple, list)) else (float(one), None) for one in answers]


def compare(base, model, folder, manager, reference):
    tokenizer = folder / "tokenizer"
    arguments = {
        "model": model, "base_url": f"{base}/v1/completions", "tokenizer": str(tokenizer), "tokenizer_backend": "huggingface",
        "max_length": CONTEXT, "num_concurrent": 4, "max_retries": 1, "add_bos_token": True,
    }
    (expected, of_hf) = reference
    results, told = evaluate("local-completions", manager, model_args=arguments, batch_size=2)
    worst, answers = 0.0, 0
    assert told.keys() == of_hf.keys()
    for document, given in told.items():
        for (ours, greedy), (theirs, theirs_greedy) in zip(pairs(given), pairs(of_hf[document]), strict=True):
            assert math.isfinite(ours) and ours < 0, (document, ours)
            assert greedy == theirs_greedy, (document, ours, theirs)
            worst, answers = max(worst, abs(ours - theirs)), answers + 1
    assert worst <= MOST, f"{worst} is more than {MOST}"
    acc = "acc,none"
    assert results["candlewick_questions"][acc] == expected["candlewick_questions"][acc], (results, expected)
    return f"{answers} log-likelihoods, the worst {worst:.1e} from transformers'; accuracy {expected['candlewick_questions'][acc]}"


def main():
    given = stock.options(__doc__)
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        AutoTokenizer.from_pretrained(DEMO, gguf_file=FILE).save_pretrained(folder / "tokenizer")
        manager = tasks(folder)
        reference = HFLM(
            pretrained=str(DEMO), gguf_file=FILE, tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
            device="cpu", dtype="float32", batch_size=1, add_bos_token=True,
            # Over the API a window is two tokens less than it is told: one before it, and one to be generated.
            max_length=CONTEXT - 2,
        )
        expected = evaluate(reference, manager)
        with stock.served(given, "--dtype", "float32") as (model, base):
            stock.passed("lm-eval: local-completions", lambda: compare(base, model, folder, manager, expected))


if __name__ == "__main__":
    main()
