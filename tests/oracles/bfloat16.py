"""Measures how far transformers' own bfloat16 is from its float32 on the checkpoints of tests/fixtures/golden, token by token,
and writes it to tests/fixtures/bfloat16.json, which the tests hold ours to. What ours was when it was last written stands beside it:
tests/it/arch_golden/bfloat16.rs says how to write that.

usage: bfloat16.py [NAME ...]      default: all
needs: transformers, torch

Both run the same prompts in eager attention. A distance is that of logits, as a share of the length of float32's: of all of a
prompt's tokens together, and of the token that is farthest. In models of experts each token goes to the experts that it has in
float32, or one that stands between two of them would say more about where it went than about rounding.
"""

import json
import sys

import make_golden
import torch
import transformers

FILE = make_golden.OUT.parent / "bfloat16.json"


class SameExperts:
    """Routers choose by `topk`: what they choose in the first run, in order, they are given in the second, with their own scores."""

    def __init__(self, chosen=None):
        self.given, self.chosen, self.topk = chosen and list(chosen), [], torch.topk

    def __enter__(self):
        def topk(scores, *args, **named):
            best = self.topk(scores, *args, **named)
            self.chosen.append(best.indices)
            if self.given is None:
                return best
            indices = self.given.pop(0)
            return torch.return_types.topk((scores.gather(named.get("dim", -1), indices), indices))

        torch.topk = torch.Tensor.topk = topk
        return self

    def __exit__(self, *_):
        torch.topk = self.topk
        del torch.Tensor.topk


def model(name, dtype):
    config = json.loads((make_golden.OUT / name / "config.json").read_text())
    of_kind = getattr(transformers, config["architectures"][0])
    return of_kind.from_pretrained(make_golden.OUT / name, dtype=dtype, attn_implementation="eager").eval()


def distance(rows, exact):
    return float((rows - exact).norm() / exact.norm())


def measure(name):
    exact, rounded = model(name, torch.float32), model(name, torch.bfloat16)
    stepwise = name in make_golden.CASES and make_golden.CASES[name][2].get("stepwise", False)
    found = []
    for prompt in json.loads((make_golden.OUT / name / "golden.json").read_text())["prompts"]:
        with torch.no_grad():
            with SameExperts() as experts:
                want = make_golden.run(exact, prompt["ids"], stepwise)[0].double()
            with SameExperts(experts.chosen) as others:
                rows = make_golden.run(rounded, prompt["ids"], stepwise)[0].double()
        # It is the reference that the fixture was made with.
        assert distance(want[-1], torch.tensor(prompt["last_logits"]).double()) < 1e-4, name
        assert not others.given, name
        alone = [distance(row, other) for row, other in zip(rows, want)]
        far = {"together": distance(rows, want), "farthest": max(alone)}
        found.append({key: round(value, 6) for key, value in far.items()})
    print(name, max(row["together"] for row in found), max(row["farthest"] for row in found), flush=True)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    # Those that quantizers wrote have another reference.
    plain = [path.parent.name for path in make_golden.OUT.glob("*/config.json") if "quantization_config" not in path.read_text()]
    names = sys.argv[1:] or sorted(plain)
    for name in names:
        known[name] = {"transformers": measure(name), "candlewick": known.get(name, {}).get("candlewick", [])}
    rows = [f"{json.dumps(name)}: {json.dumps(known[name])}" for name in sorted(known)]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
