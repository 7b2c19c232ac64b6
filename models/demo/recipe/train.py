"""Trains candlewick's demo model from scratch: tokenizer, transformer and GGUF file in one command.

    pip install -r models/demo/recipe/requirements.txt
    python models/demo/recipe/train.py --text FOLDER [--minutes N] [--out models/demo]

FOLDER holds corpus.tar.xz. Everything is drawn from one seed; with --steps instead of --minutes the run is the same
each time. Stopped, it goes on from its last checkpoint (in --work) when started again. --smoke runs all of it with a
tiny model within a minute.
"""

import argparse
import csv
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import corpus
import export
import report
import vocabulary
from batches import Batches, Prose
from dialogs import Dialogs
from model import Llama, Shape

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "data"
ROWS, LENGTH = 32, 256
# The last part of training sees rows as long as the context.
LONG_FROM = 0.9
WARM_UP, DECAY_FROM = 0.02, 0.5
# Seconds kept for measuring and writing at the end.
FINISH = 45
LOOKS = ("What is candlewick?", "hi", "what is 7 + 5?", "what is the capital of Spain?", "Tell me a story.")
ABOUT = {
    "name": "candlewick demo",
    "description": "The small chat model built into candlewick: knows candlewick, small sums and short stories. A demo.",
    "license": "mit",
}


def arguments():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--text", type=Path, required=True, help="the folder of corpus.tar.xz")
    options.add_argument("--out", type=Path, default=HERE.parent, help="where the model and its report go")
    options.add_argument("--work", type=Path, default=HERE / "work", help="where checkpoints go")
    options.add_argument("--minutes", type=float, default=200, help="the whole run's time")
    options.add_argument("--steps", type=int, help="train for so many steps, however long they take")
    options.add_argument("--layers", type=int, default=Shape.layers)
    options.add_argument("--rows", type=int, default=ROWS, help=f"texts of {LENGTH} tokens a step")
    options.add_argument("--lr", type=float, default=5e-3)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--checkpoint", type=float, default=4, help="minutes between checkpoints")
    options.add_argument("--dev", action="store_true", help="keep one wording of each fact from training and ask it at the end")
    options.add_argument("--no-compile", action="store_true", help="do without torch.compile, which needs a C++ compiler")
    options.add_argument("--smoke", action="store_true", help="a tiny model and little text, within a minute")
    options = options.parse_args()
    if options.smoke:
        options.minutes, options.rows, options.no_compile = min(options.minutes, 0.6), 8, True
        options.out = options.work = options.work / "smoke"
        shutil.rmtree(options.work, ignore_errors=True)
    return options


class Run:
    """One training run: what it learns from, the model, and how far it is."""

    def __init__(self, options):
        self.begun, self.options = time.monotonic(), options
        torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)
        for folder in (options.out, options.work):
            folder.mkdir(parents=True, exist_ok=True)

        text = corpus.read(options.text, limit=1_000_000 if options.smoke else None)
        passages = list(corpus.passages(text.training))
        self.dialogs = Dialogs(DATA, passages, text.countries, text.rare_words(), options.dev)
        self.leave_out_held_out(text)
        self.attributions = text.attributions
        self.shape = Shape(layers=options.layers)
        if options.smoke:
            self.shape = Shape(vocab=1024, hidden=64, intermediate=128, layers=2, heads=2, kv_heads=1)
        self.vocabulary = vocabulary.Vocabulary(self.tokenizer(text))
        pool = lambda documents, name: Prose([d for d in documents if d.pool == name], self.vocabulary)
        pools = {name: pool(text.training, name) for name in sorted({document.pool for document in text.training})}
        self.held_out = Prose(text.held_out, self.vocabulary).windows(LENGTH, 8 if options.smoke else 256)
        self.batches = Batches(pools, self.dialogs, self.vocabulary, options.seed)
        self.say(f"{sum(len(p.ids) for p in pools.values()):,} tokens of prose, {len(passages):,} passages, {len(self.dialogs.facts)} facts")

        self.model = Llama(self.shape)
        self.parameters = sum(weight.numel() for weight in self.model.parameters())
        matrices = [weight for weight in self.model.blk.parameters() if weight.ndim == 2]
        others = [self.model.token_embd.weight, *(weight for weight in self.model.parameters() if weight.ndim == 1)]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=options.lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=options.lr, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
        ]
        if not options.no_compile and shutil.which("c++"):
            for block in self.model.blk:
                block.compile()
        self.step, self.tokens, self.spent = 0, 0, 0.0
        self.log, self.perplexities = [], []
        self.checkpoint = options.work / "checkpoint.pt"
        if self.checkpoint.exists():
            self.resume()

    def say(self, text):
        print(f"[{self.clock():7.1f} s] {text}", flush=True)

    def clock(self):
        return time.monotonic() - self.begun + getattr(self, "spent", 0)

    def progress(self):
        if self.options.steps:
            return self.step / self.options.steps
        return self.clock() / max(self.options.minutes * 60 - FINISH / (3 if self.options.smoke else 1), 1)

    def leave_out_held_out(self, text):
        """No paragraph of prose that shares five words in a row with a held-out question."""
        dropped = 0
        for document in text.training:
            kept = [paragraph for paragraph in document.paragraphs if not self.dialogs.held_out.shared(paragraph)]
            dropped += len(document.paragraphs) - len(kept)
            document.paragraphs = kept
        self.say(f"left out {dropped} paragraphs that share five words in a row with a held-out question")

    def tokenizer(self, text):
        """The tokenizer: of the run that goes on, or learned from the chats, many times, the simpler prose and told stories."""
        path = self.options.work / "tokenizer.json"
        if not path.exists():
            simple = [paragraph for d in text.training if d.pool != "novels" for paragraph in d.paragraphs]
            told = [self.dialogs.stories.tell(np.random.default_rng(n)).rest for n in range(2000)]
            vocabulary.train(list(self.dialogs.texts()) * 20 + simple + told, self.shape.vocab).save(str(path))
            self.say(f"learned a vocabulary of {self.shape.vocab}")
        return vocabulary.Tokenizer.from_file(str(path))

    def resume(self):
        state = torch.load(self.checkpoint)
        self.model.load_state_dict(state["model"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(kept)
        for name in ("step", "tokens", "log", "perplexities"):
            setattr(self, name, state[name])
        self.spent = state["clock"]
        self.say(f"goes on from step {self.step}")

    def save(self):
        state = {name: getattr(self, name) for name in ("step", "tokens", "log", "perplexities")}
        state |= {"model": self.model.state_dict(), "clock": self.clock()}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save(state, self.checkpoint.with_suffix(".new"))
        self.checkpoint.with_suffix(".new").replace(self.checkpoint)

    def train(self):
        last_save, seconds, summed = self.clock(), self.clock(), []
        while (progress := self.progress()) < 1:
            summed.append(self.train_step(progress))
            if self.step % 20 == 0:
                mean = [torch.stack(losses).nanmean().item() for losses in zip(*summed)]
                speed = self.options.rows * LENGTH * len(summed) / (self.clock() - seconds)
                self.log.append([self.step, round(self.clock(), 1), self.tokens, *(round(loss, 4) for loss in mean)])
                self.say(f"{progress:6.1%} step {self.step}: chat {mean[0]:.3f}, prose {mean[1]:.3f}, {speed:,.0f} tokens/s")
                seconds, summed = self.clock(), []
            if self.clock() - last_save > self.options.checkpoint * 60:
                self.look()
                self.save()
                last_save = seconds = self.clock()
        self.save()

    def train_step(self, progress):
        """One step; gives the losses of chats and of prose."""
        length = LENGTH if progress < LONG_FROM or self.options.smoke else self.shape.context
        *arrays, chats = self.batches.batch(self.step, progress, self.options.rows * LENGTH // length, length)
        ids, labels, texts = map(torch.from_numpy, arrays)
        rate = min(1, progress / WARM_UP, (1 - progress) / (1 - DECAY_FROM))
        with torch.autocast("cpu", torch.bfloat16):
            losses = self.model.losses(ids, labels, texts)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.options.lr * max(rate, 0.01)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.tokens += int((texts >= 0).sum())
        is_chat = (torch.arange(len(ids))[:, None] < chats).expand_as(labels)[labels >= 0]
        return losses.detach()[is_chat].mean(), losses.detach()[~is_chat].mean()

    def look(self):
        perplexity, _ = self.measure(self.model, self.held_out[::4])
        self.perplexities.append([self.step, round(perplexity, 3)])
        self.say(f"held-out perplexity {perplexity:.2f}")
        for question in LOOKS:
            print(f"    {question} -> {self.answer(self.model, question)!r}", flush=True)

    def answer(self, model, question, count=80):
        ids = model.greedy(self.vocabulary.prompt(question), count, self.vocabulary.end)
        return self.vocabulary.tokenizer.decode(ids)

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")
    def measure(self, model, windows):
        """Perplexity a token of the held-out prose, and bits a byte."""
        total = 0.0
        for window in torch.from_numpy(windows.astype("int64")).split(16):
            logits = model.logits(model.hidden(window[:, :-1])).flatten(0, 1)
            total += F.cross_entropy(logits, window[:, 1:].flatten(), reduction="sum").item()
        size = sum(len(self.vocabulary.tokenizer.decode(window[1:].tolist()).encode()) for window in windows)
        mean = torch.tensor(total / (windows.size - len(windows)))
        return mean.exp().item(), total / size / torch.tensor(2.0).log().item()

    def finish(self):
        """Writes the file, reads it back, measures what it holds, and reports."""
        out = self.options.out
        path = out / "demo.gguf"
        export.write(path, self.model, self.vocabulary.tokenizer, ABOUT)
        model = export.read(path, self.shape)
        perplexity, bits = self.measure(model, self.held_out)
        self.perplexities.append([self.step, round(perplexity, 3)])
        facts = {
            "shape": asdict(self.shape),
            "parameters": self.parameters,
            "gguf_bytes": path.stat().st_size,
            "seed": self.options.seed,
            "steps": self.step,
            "tokens_seen": self.tokens,
            "seconds": round(self.clock()),
            "held_out_perplexity": round(perplexity, 3),
            "held_out_bits_per_byte": round(bits, 4),
            "held_out_tokens": int(self.held_out.size),
            "facts": len(self.dialogs.facts),
            "dropped_for_held_out": {str(kind): n for kind, n in self.dialogs.dropped.items()},
            "samples": {question: self.answer(model, question, 150) for question in LOOKS},
        }
        if self.dialogs.dev:
            right = [self.answer(model, question) in answers for question, answers in self.dialogs.dev]
            facts["dev_answered"] = f"{sum(right)} of {len(right)}"
        (out / "training.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        with open(out / "loss.csv", "w", newline="") as file:
            csv.writer(file).writerows([["step", "seconds", "tokens", "chat_loss", "prose_loss"], *self.log])
        report.plot(out / "loss.svg", self.log, self.perplexities)
        report.attributions(out / "ATTRIBUTIONS.md", self.attributions)
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        self.say(f"wrote {path}, {path.stat().st_size / 2**20:.2f} MiB")


def main():
    run = Run(arguments())
    run.say(f"{run.parameters:,} parameters")
    run.train()
    run.finish()


if __name__ == "__main__":
    main()
