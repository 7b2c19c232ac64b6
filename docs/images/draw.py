"""Draws the pictures of docs/sampling.md: python3 docs/images/draw.py, without any package.

sample.py makes both files that this reads. next_token.json holds what the model inside the binary thinks comes next, the
20 most likely tokens. The bars are the formulas of the page, written once more in the plainest way; the dots, of
sampled.json, are how often the program itself drew each token.
"""

import json
import math
from pathlib import Path
from typing import Callable, NamedTuple

HERE = Path(__file__).parent
WIDTH, HEIGHT, GAP = 190, 120, 26
PROMPTS = {"sure": "Once upon a time, there was a little", "unsure": "The fox"}


def softmax(logits):
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def keep(probs, kept):
    """Renormalizes what is kept; None for what is not."""
    total = sum(probs[k] for k in kept)
    return [p / total if k in kept else None for k, p in enumerate(probs)]


def until(order, probs, mass):
    """The first of `order` that together reach `mass`."""
    kept, total = set(), 0.0
    for k in order:
        kept.add(k)
        total += probs[k]
        if total >= mass:
            break
    return kept


def entropy(probs):
    return -sum(p * math.log(p) for p in probs if p > 0)


def temperature(logits, t):
    return softmax([x / t for x in logits])


def dynamic(logits, low, high):
    probs = softmax(logits)
    return temperature(logits, low + (high - low) * entropy(probs) / math.log(len(probs)))


def top_k(logits, k):
    return keep(softmax(logits), set(range(k)))


def top_p(logits, p):
    probs = softmax(logits)
    return keep(probs, until(range(len(probs)), probs, p))


def min_p(logits, p):
    probs = softmax(logits)
    return keep(probs, {k for k, q in enumerate(probs) if q >= p * max(probs)})


def typical_p(logits, p):
    probs = softmax(logits)
    expected = entropy(probs)
    order = sorted(range(len(probs)), key=lambda k: abs(-math.log(probs[k]) - expected))
    return keep(probs, until(order, probs, p))


def top_n_sigma(logits, n):
    mean = sum(logits) / len(logits)
    sigma = math.sqrt(sum((x - mean) ** 2 for x in logits) / len(logits))
    return keep(softmax(logits), {k for k, x in enumerate(logits) if x >= max(logits) - n * sigma})


def xtc(logits, threshold):
    probs = softmax(logits)
    top = [k for k, p in enumerate(probs) if p >= threshold]
    return keep(probs, set(range(len(probs))) - set(top[:-1]))


def mirostat(logits, mu):
    probs = softmax(logits)
    return keep(probs, {k for k, p in enumerate(probs) if -math.log2(p) <= mu} or {0})


class Setting(NamedTuple):
    """A panel's: fields of SamplingParams, what they do, and the picture that shows it."""

    picture: str
    formula: Callable
    fields: dict


SETTINGS = {
    "temperature 0.5": Setting("temperature", lambda x: temperature(x, 0.5), {"temperature": 0.5}),
    "temperature 1": Setting("temperature", lambda x: temperature(x, 1.0), {}),
    "temperature 2": Setting("temperature", lambda x: temperature(x, 2.0), {"temperature": 2}),
    "dynamic, 0.5 to 2": Setting(
        "temperature", lambda x: dynamic(x, 0.5, 2.0), {"temperature": 1.25, "dynatemp_range": 0.75}
    ),
    "top_k 5": Setting("truncation", lambda x: top_k(x, 5), {"top_k": 5}),
    "top_p 0.8": Setting("truncation", lambda x: top_p(x, 0.8), {"top_p": 0.8}),
    "min_p 0.1": Setting("truncation", lambda x: min_p(x, 0.1), {"min_p": 0.1}),
    "typical_p 0.5": Setting("truncation", lambda x: typical_p(x, 0.5), {"typical_p": 0.5}),
    "top_n_sigma 1": Setting("truncation", lambda x: top_n_sigma(x, 1.0), {"top_n_sigma": 1}),
    "xtc_threshold 0.05, when it strikes": Setting(
        "xtc_mirostat", lambda x: xtc(x, 0.05), {"xtc_probability": 1, "xtc_threshold": 0.05}
    ),
    "mirostat, mu 4 bits": Setting("xtc_mirostat", lambda x: mirostat(x, 4.0), {"mirostat": 2, "mirostat_tau": 2}),
}


def panel(x, y, title, before, after, drawn):
    """Bars of the distribution before (outlined) and after (filled), and dots at what was drawn."""
    parts = [f'<text x="{x}" y="{y - 8}" class="title">{title}</text>']
    step = WIDTH / len(before)
    tallest = max(max(before), max(p or 0 for p in after))
    for k, (old, new) in enumerate(zip(before, after)):
        for value, style in ((new, "after"), (old, "before")):
            if value:
                height = value / tallest * HEIGHT
                parts.append(
                    f'<rect x="{x + k * step:.1f}" y="{y + HEIGHT - height:.1f}" width="{step - 2:.1f}" '
                    f'height="{height:.1f}" class="{style}"/>'
                )
        if drawn[k]:
            top = y + HEIGHT - drawn[k] / tallest * HEIGHT
            parts.append(f'<circle cx="{x + k * step + step / 2 - 1:.1f}" cy="{top:.1f}" r="2.2" class="drawn"/>')
    parts.append(f'<line x1="{x}" y1="{y + HEIGHT}" x2="{x + WIDTH}" y2="{y + HEIGHT}" class="axis"/>')
    parts.append(f'<text x="{x + WIDTH}" y="{y + 10}" class="scale">{tallest:.2f}</text>')
    return parts


def picture(name, rows, sampled):
    """One row of panels a prompt, one column a setting."""
    columns = {title: setting for title, setting in SETTINGS.items() if setting.picture == name}
    width = 2 * GAP + len(columns) * (WIDTH + GAP)
    height = len(rows) * (HEIGHT + 3 * GAP) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        "<style>.after{fill:#3b7dd8}.before{fill:none;stroke:#888;stroke-width:1}.axis{stroke:#444}.drawn{fill:#d9541e}"
        ".title{font-size:13px;fill:#444}.scale{font-size:10px;fill:#888;text-anchor:end}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for r, (key, row) in enumerate(rows.items()):
        y = GAP + r * (HEIGHT + 3 * GAP) + 2 * GAP
        lines.append(f'<text x="{GAP}" y="{y - GAP}" class="title">after “{row["prompt"]}”</text>')
        for c, (title, setting) in enumerate(columns.items()):
            logits = row["logprobs"]
            drawn = sampled["shares"][key][title]
            lines += panel(GAP + c * (WIDTH + GAP), y, title, softmax(logits), setting.formula(logits), drawn)
    (HERE / f"{name}.svg").write_text("\n".join([*lines, "</svg>", ""]), encoding="utf-8")


def main():
    rows, sampled = (json.loads((HERE / file).read_text(encoding="utf-8")) for file in ("next_token.json", "sampled.json"))
    for name in dict.fromkeys(setting.picture for setting in SETTINGS.values()):
        picture(name, rows, sampled)


if __name__ == "__main__":
    main()
